"""Locators of single weights: supermasks, contrastive gradients and flat curvature, against naive gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from interp.errors import UsageError
from interp.intervene.weights import Delta, Stack
from interp.intervene.weights.ranking import pruned
from interp.locate.memorization.contrastive import ContrastiveGradients
from interp.locate.memorization.kfac import FlatDirections
from interp.locate.memorization.masks import random_like
from interp.locate.memorization.supermask import BalancedSubnet
from interp.measure.memorization.objective import drift, ignorance, loss, predictions
from interp.models.parts import Part, module_of, parts, weight_of
from interp.models.subject import CausalLM
from interp.tasks.memorized import TextItem
from tests.locate.memorization.small import small_pipeline
from tests.locate.memorization.test_gates import images, planted, recall, texts
from tests.planted.memories import VOCAB
from tests.subjects import subject


def ordinary(n: int, seed: int = 9) -> list[TextItem]:
    """Sequences of no meaning, all of whose tokens count."""
    rng = torch.Generator().manual_seed(seed)
    draws = torch.randint(0, VOCAB, (n, 11), generator=rng).tolist()
    return [TextItem(f"ordinary {i}", tuple(ids), 1) for i, ids in enumerate(draws)]


def losses(it: Any, items: Sequence[Any]) -> list[float]:
    with torch.no_grad():
        return loss(it, items, draws=2).tolist()


def naive_gradient(it: Any, items: Sequence[Any], part: Part) -> torch.Tensor:
    """Of the mean objective by the model's own weight, out x in."""
    weight = module_of(it, part).weight
    (grad,) = torch.autograd.grad(loss(it, items, draws=2).mean(), weight)
    transposed = type(module_of(it, part)).__name__ == "Conv1D"
    return grad.T if transposed else grad


def subjects() -> list[tuple[Any, list[Any]]]:
    return [(subject("gpt2"), texts()), (subject("llama"), texts()), (small_pipeline(), images())]


# -- supermasks ------------------------------------------------------------------------------------------------------


def test_the_first_step_of_a_supermask_is_the_gradient_times_the_weight() -> None:
    for it, items in subjects():
        found = BalancedSubnet(steps=1, rate=0.5, momentum=0.0, decay=0.02, balance=2.0, draws=2)
        found.fit(it, items[:1], reference=items[1:])
        for part in parts(it, "ff_out")[1:3]:
            mixed = naive_gradient(it, items[1:], part) - 2 * naive_gradient(it, items[:1], part)
            if losses(it, items[:1])[0] >= ignorance(it):
                mixed = naive_gradient(it, items[1:], part)
            expected = 0.5 * (mixed * weight_of(it, part) + 0.02)
            torch.testing.assert_close(found.weights_[part], expected, rtol=2e-3, atol=1e-5)
            unit = found.scores_[found.scores_["part"] == repr(part)].sort_values("unit")["score"]
            np.testing.assert_allclose(unit, expected.mean(0), rtol=2e-3, atol=1e-5)


def test_a_mask_leaves_out_exactly_its_share_and_nothing_while_scores_are_equal() -> None:
    it = BalancedSubnet(share=0.25)
    assert bool(it._kept(torch.ones(4, 6)).all())
    score = torch.ones(4, 6)
    score[1, 2], score[3, 0] = 0.5, -2.0  # by size the second is the highest
    kept = it._kept(score)
    assert int((~kept).sum()) == 6 and not kept[1, 2] and kept[3, 0]


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_balanced_subnet_forgets_one_sequence_and_keeps_the_other(kind: str) -> None:
    made = planted(kind, 0)
    it, (target, other) = made.subject, made.items
    found = BalancedSubnet().fit(it, [target], reference=[other])
    before = it.fingerprint
    with found.edit(share=0.01).applied(it):
        assert (after := losses(it, made.items))[0] > 2 and after[1] < 0.3, after
    assert it.fingerprint == before
    masks = {s.part: s.mask for s in found.edit(share=0.01).singles}  # type: ignore[attr-defined]
    assert all(int(m.sum()) == int(0.01 * m.numel()) for m in masks.values())
    with pruned(it, random_like(masks)).applied(it):
        assert losses(it, made.items)[0] < 0.5
    assert recall(found, made) >= 0.8
    assert found.history_[0][0] < 0.5 and found.history_[-1][0] > 2 and found.history_[-1][1] < 0.3


# -- contrastive gradients -------------------------------------------------------------------------------------------


def test_contrastive_scores_are_gradients_of_the_weights() -> None:
    for it, items in subjects():
        found = ContrastiveGradients(damping=0.5, draws=2).fit(it, items[:1], reference=items)
        every = parts(it, "ff_out")
        change = {p: naive_gradient(it, items[:1], p) for p in every}
        squares = {p: sum(naive_gradient(it, [i], p).square() for i in items) / len(items) for p in every}
        total = torch.cat([s.flatten() for s in squares.values()]).mean().sqrt()  # type: ignore[union-attr]
        for part in every:
            expected = change[part].abs()
            torch.testing.assert_close(found.weights_["gradient"][part], expected, rtol=1e-3, atol=1e-6)
            expected = expected / (squares[part].sqrt() + 0.5 * total)  # type: ignore[union-attr]
            torch.testing.assert_close(found.weights_["guarded"][part], expected, rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_thousandth_of_the_weights_is_trained_and_forgets(kind: str) -> None:
    made = planted(kind, 1)
    it, (target, other) = made.subject, made.items
    found = ContrastiveGradients().fit(it, [target], reference=[other])
    edit = found.edit(steps=30)
    before = it.fingerprint
    with edit.applied(it):
        after = losses(it, made.items)
    assert after[0] > 0.5 and after[1] < 0.1, after
    assert it.fingerprint == before
    changed = sum(int(s.change.ne(0).sum()) for s in edit.singles)  # type: ignore[attr-defined]
    assert 0 < changed <= int(0.001 * 4 * 96 * 64)
    whole = found.edit(share=0.2, steps=30)
    with whole.applied(it):
        assert losses(it, made.items)[0] > 0.95 * ignorance(it)
    with found.cut(share=0.01).applied(it):
        assert losses(it, made.items)[0] > losses(it, made.items)[1]


def test_training_stops_at_the_level_that_is_asked_for() -> None:
    made = planted("llama", 1)
    found = ContrastiveGradients(share=0.2).fit(made.subject, made.items[:1], reference=made.items[1:])
    seen: list[int] = []
    edit = found.edit(level=1.0, steps=30, progress=lambda done, total, what: seen.append(done))
    assert 0 < len(seen) < 30
    with edit.applied(made.subject):
        assert 1.0 <= losses(made.subject, made.items)[0] < ignorance(made.subject)


def test_the_divergence_holds_the_predictions_on_items_to_keep() -> None:
    made, kept = planted("llama", 1), ordinary(8)
    found = ContrastiveGradients("gradient", share=0.1).fit(made.subject, made.items[:1], reference=kept)
    with torch.no_grad():
        before = predictions(made.subject, kept)
        moved = []
        for keep in (0.0, 30.0):
            with found.edit(keep=keep, steps=15).applied(made.subject):
                moved.append(float(drift(made.subject, predictions(made.subject, kept), before).mean()))
    assert 0 < moved[1] < 0.6 * moved[0], moved


def test_weights_are_trained_in_pipelines_too() -> None:
    it, items = small_pipeline(), images()
    found = ContrastiveGradients(share=0.05, draws=2).fit(it, items[:1], reference=items[1:])
    start = losses(it, items)
    with found.edit(level=2 * start[0], steps=12, rate=0.2).applied(it):
        after = losses(it, items)
    assert after[0] > start[0] * 1.02 and abs(after[1] - start[1]) < 0.5 * (after[0] - start[0])
    assert losses(it, items) == start


# -- flat curvature --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_curvature_is_that_of_single_runs(family: str) -> None:
    it, items = subject(family), texts()
    found = FlatDirections().fit(it, reference=items)
    part = parts(it, "ff_out")[1]
    a = g = 0.0
    for item in items:
        seen: list[torch.Tensor] = []

        def keep(module: object, args: Any, out: torch.Tensor, seen: list[torch.Tensor] = seen) -> None:
            out.retain_grad()
            seen.extend((args[0], out))

        hook = module_of(it, part).register_forward_hook(keep)
        loss(it, [item]).sum().backward()
        hook.remove()
        x, out = seen
        assert out.grad is not None
        a = a + (x[0].T @ x[0]).detach().double()
        g = g + (out.grad[0].T @ out.grad[0]).double()
    it.hf.zero_grad()
    factors = found.factors_[part]
    for vectors, values, expected in (
        (factors.read, factors.read_values, a),
        (factors.write, factors.write_values, g),
    ):
        assert isinstance(expected, torch.Tensor)
        scale = float(expected.abs().max())
        torch.testing.assert_close(
            vectors * values @ vectors.T / scale, expected / scale, rtol=1e-3, atol=1e-4
        )


def test_components_that_are_dropped_are_the_flattest() -> None:
    it = small_pipeline()
    found = FlatDirections(draws=2).fit(it, reference=images())
    part = found.parts_[2]
    factors, weight = found.factors_[part], weight_of(it, part).double()
    kept = factors.kept(0.7)
    pi = factors.curvature
    assert pi[kept].min() >= pi[~kept].max() and float(pi[kept].sum() / pi.sum()) >= 0.7
    assert float((pi[kept].sum() - pi[kept].min()) / pi.sum()) < 0.7
    whole = torch.zeros_like(weight)
    for i, j in kept.nonzero().tolist():
        u, v = factors.write[:, i], factors.read[:, j]
        whole += (u @ weight @ v) * u[:, None] * v
    torch.testing.assert_close(weight + factors.without(weight, kept), whole)
    start = losses(it, images())
    with found.edit(mass=0.7, parts=[part]).applied(it):
        torch.testing.assert_close(weight_of(it, part).double(), whole, rtol=1e-4, atol=1e-5)
        assert losses(it, images()) != start
    assert losses(it, images()) == start


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_without_flat_components_memories_go_and_predictions_move_least(kind: str) -> None:
    """No sequence is named; as many components at random do more to ordinary predictions."""
    made = planted(kind, 1)
    it: CausalLM = made.subject
    every = ordinary(64)
    found = FlatDirections(0.95).fit(it, reference=every[:48])
    rng = torch.Generator().manual_seed(4)
    edits = []
    for part, factors in found.factors_.items():
        kept = factors.kept(0.95)
        order = torch.randperm(kept.numel(), generator=rng).view(kept.shape)
        change = factors.without(weight_of(it, part), order < int(kept.sum()))
        edits.append(Delta(part, change.float()))
    with torch.no_grad():
        before = predictions(it, every[48:])
        moved = []
        for edit in (found.edit(), Stack(tuple(edits))):
            with edit.applied(it):
                moved.append(float(drift(it, predictions(it, every[48:]), before).mean()))
        with found.edit().applied(it):
            assert losses(it, made.items[:1])[0] > 1.5
    assert moved[0] < 0.4 < 0.5 < moved[1], moved


# -- refusals --------------------------------------------------------------------------------------------------------


def test_what_cannot_be_asked_for_is_refused() -> None:
    made = planted("llama", 1)
    for locator in (BalancedSubnet(), ContrastiveGradients()):
        with pytest.raises(UsageError, match="needs items to keep"):
            locator.fit(made.subject, made.items)
        with pytest.raises(UsageError, match="not fitted yet"):
            locator.edit()
    with pytest.raises(UsageError, match="share=1: write a share"):
        BalancedSubnet(share=1).fit(made.subject, made.items, reference=made.items)
    with pytest.raises(UsageError, match="between 0 and 1"):
        FlatDirections(1.0).fit(made.subject, reference=made.items)
    found = FlatDirections().fit(made.subject, reference=made.items)
    with found.edit().applied(made.subject), pytest.raises(UsageError, match="was changed since the fit"):
        found.edit()
