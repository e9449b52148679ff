"""Gates: their gradients, paths and learned openings, on language models and pipelines, against naive loops."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest
import torch

from interp.errors import UsageError
from interp.locate.memorization.activation import Activation, _Sizes
from interp.locate.memorization.gates import LearnedGates
from interp.locate.memorization.gating import gate_gradients, gated, open_gates
from interp.locate.memorization.gradients import GradientActivation, IntegratedGradients
from interp.locate.memorization.leave_out import LeaveOneOut, leave_one_out
from interp.locate.memorization.units import UnitLocator
from interp.measure.memorization.objective import draws_of, loss
from interp.models.parts import Pass, module_of, parts, weight_of
from interp.tasks.memorized import TextItem
from tests.locate.memorization.small import TEXTS, small_pipeline
from tests.planted.memories import Memories, memories
from tests.subjects import ALL, subject


@dataclass(frozen=True)
class Image:
    name: str
    prompt: str
    image: torch.Tensor


def images(n: int = 2) -> list[Image]:
    rng = torch.Generator().manual_seed(3)
    shape = small_pipeline().image_shape
    return [Image(f"image {i}", TEXTS[i], torch.rand(shape, generator=rng)) for i in range(n)]


def texts() -> list[TextItem]:
    rng = torch.Generator().manual_seed(1)
    sizes = ((9, 3), (14, 6))
    return [
        TextItem(f"text {i}", tuple(torch.randint(0, 256, (n,), generator=rng).tolist()), given)
        for i, (n, given) in enumerate(sizes)
    ]


@cache
def planted(kind: str, seed: int, spread: int = 1, strength: float = 3.0) -> Memories:
    return memories(kind, seed, spread=spread, strength=strength)


def recall(found: UnitLocator, made: Memories, method: str | None = None, name: str = "item 0") -> float:
    true = {(f"ff_out[{n.layer}]", n.i) for n in made.neurons[name]}
    got = {(repr(part), unit) for part, unit in found.units(len(true), method)}
    return len(true & got) / len(true)


# -- gradients -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ALL)
def test_gate_gradients_are_activation_times_gradient_of_single_runs(family: str) -> None:
    it, items = subject(family), texts()
    every = parts(it, "ff_out")
    losses, grads = gate_gradients(it, items, open_gates(it, every, 2))
    for i, item in enumerate(items):
        kept: list[torch.Tensor] = []
        hooks = []
        for part in every:

            def keep(module: object, args: tuple[torch.Tensor, ...], kept: list[torch.Tensor] = kept) -> None:
                kept.append(args[0])
                args[0].retain_grad()

            hooks.append(module_of(it, part).register_forward_pre_hook(keep))
        ids = torch.tensor([item.ids])
        logits = it.hf(inputs_embeds=it.hf.get_input_embeddings()(ids).detach().requires_grad_()).logits
        rows = logits[0, item.prefix - 1 : -1].log_softmax(-1)
        value = -rows.gather(-1, ids[0, item.prefix :, None]).mean()
        value.backward()
        for hook in hooks:
            hook.remove()
        it.hf.zero_grad()
        torch.testing.assert_close(losses[i], value.detach(), rtol=1e-4, atol=1e-4)
        for part, x in zip(every, kept, strict=True):
            assert x.grad is not None
            expected = (x.detach() * x.grad)[0].sum(0)
            torch.testing.assert_close(grads[part][i], expected, rtol=1e-3, atol=1e-4)


def test_gates_of_a_pipeline_have_the_gradients_of_finite_differences() -> None:
    it, items = small_pipeline(), images()
    every = parts(it, "ff_out")
    gates = open_gates(it, every, 2)
    rows = it.spent.rows
    losses, grads = gate_gradients(it, items, gates, draws=3)
    assert it.spent.rows - rows == 2 * 3
    with torch.no_grad():
        torch.testing.assert_close(losses, loss(it, items, draws=3), rtol=1e-5, atol=1e-6)
    rng = torch.Generator().manual_seed(0)
    for part in every:
        direction = torch.randn(gates[part].shape, generator=rng)
        sides = []
        for sign in (1, -1):
            moved = {**gates, part: gates[part] + sign * 3e-3 * direction}
            with torch.no_grad(), gated(it, moved):
                sides.append(loss(it, items, draws=3).double())
        slope = (sides[0] - sides[1]) / 6e-3
        torch.testing.assert_close((grads[part] * direction).sum(1).double(), slope, rtol=0.03, atol=2e-4)
    # A score says what closing costs: the slope towards zero.
    found = GradientActivation(draws=3).fit(it, items).scores_
    for method, sign in (("gradient", -1), ("gradient_size", None)):
        own = found[found["method"] == method]["score"].to_numpy()
        each = [sign * g if sign else g.abs() for g in grads.values()]
        np.testing.assert_allclose(own, torch.cat([g.mean(0) for g in each]), rtol=1e-3, atol=1e-7)


def test_flags_and_hooks_are_as_before() -> None:
    it = small_pipeline()
    flags = [p.requires_grad for p in it.pipe.unet.parameters()]
    print_before = it.fingerprint
    GradientActivation(draws=2).fit(it, images())
    assert [p.requires_grad for p in it.pipe.unet.parameters()] == flags
    assert it.fingerprint == print_before and all(p.grad is None for p in it.pipe.unet.parameters())


@pytest.mark.parametrize("path", ["layer", "joint"])
def test_integrated_gradients_sum_to_the_cost_of_the_path(path: str) -> None:
    made = planted("llama", 1)
    for it, items in ((made.subject, made.items), (small_pipeline(), images(1))):
        found = IntegratedGradients(path, steps=12, draws=1).fit(it, items)  # type: ignore[arg-type]
        table = found.completeness_
        assert len(table) == len(items) * (1 if path == "joint" else len(parts(it, "ff_out")))
        assert table["cost"].abs().max() > 5e-4
        assert (table["gap"].abs() <= 0.01 * table["cost"].abs().max()).all()
        own = found.scores_["score"].sum() * len(items)
        assert own == pytest.approx(table["total"].sum(), rel=1e-4)
        few = IntegratedGradients(path, steps=1, draws=1).fit(it, items).completeness_  # type: ignore[arg-type]
        assert few["gap"].abs().max() > 3 * table["gap"].abs().max()


def test_a_gauss_node_is_worth_many_midpoints() -> None:
    made = planted("llama", 0)
    found = IntegratedGradients("joint", steps=16).fit(made.subject, made.items[:1])
    exact = found.completeness_["cost"][0]
    every = found.parts_
    total = 0.0
    for node in (np.arange(16) + 0.5) / 16:
        gates = {part: v * node for part, v in open_gates(made.subject, every, 1).items()}
        _, grads = gate_gradients(made.subject, made.items[:1], gates)
        total -= sum(float(g.sum()) for g in grads.values()) / 16
    assert abs(found.completeness_["gap"][0]) < abs(total - exact)


# -- leaving units out -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "neox"])
def test_leaving_out_equals_a_zeroed_column_in_language_models(family: str) -> None:
    it, items = subject(family), texts()
    every = parts(it, "ff_out")
    units = [(every[0], 3), (every[2], 70), (every[1], 11)]
    found = leave_one_out(it, items, units)
    with torch.no_grad():
        before = loss(it, items)
        for row, (part, unit) in enumerate(units):
            weight = weight_of(it, part)
            column = weight[:, unit].clone()
            weight[:, unit] = 0
            after = loss(it, items)
            weight[:, unit] = column
            torch.testing.assert_close(found[row], after - before, rtol=1e-3, atol=1e-4)
    gated_out = leave_one_out(it, items, [(parts(it, "self_out")[1], 2)])
    assert gated_out.abs().max() > 1e-5


def test_leaving_out_equals_a_zeroed_column_in_pipelines() -> None:
    it, items = small_pipeline(), images()
    every = parts(it, "ff_out")
    units = [(every[5], 3), (every[0], 60)]
    found = leave_one_out(it, items, units, draws=2)
    with torch.no_grad():
        before = loss(it, items, draws=2)
        for row, (part, unit) in enumerate(units):
            weight = weight_of(it, part)
            column = weight[:, unit].clone()
            weight[:, unit] = 0
            after = loss(it, items, draws=2)
            weight[:, unit] = column
            torch.testing.assert_close(found[row], after - before, rtol=1e-3, atol=1e-6)
    assert found.abs().min() > 1e-6


def test_a_screen_measures_the_first_units_of_a_ranking_alone() -> None:
    made = planted("llama", 0)
    item = made.items[:1]
    whole = LeaveOneOut().fit(made.subject, item)
    path, loud = IntegratedGradients("layer").fit(made.subject, item), Activation().fit(made.subject, item)
    for screened, by in (
        (LeaveOneOut(screen=24), path),
        (LeaveOneOut(screen=24, by=loud), loud),
    ):
        some = screened.fit(made.subject, item).scores_
        assert len(some) == 24 and len(whole.scores_) == 4 * 96
        both = some.merge(whole.scores_, on="component")
        assert (both["score_x"] - both["score_y"]).abs().max() < 1e-5
        first = by.scores_.loc[by.scores_["score"].abs().nlargest(24).index, "component"]
        assert set(first) == set(some["component"])


# -- activation ------------------------------------------------------------------------------------------------------


def test_activation_is_the_mean_over_the_tokens_that_predict_the_suffix() -> None:
    it, items = subject("gpt2"), texts()
    found = Activation().fit(it, items)
    for part in found.parts_[1:2]:
        weight = weight_of(it, part)
        expected = []
        for item in items:
            seen: list[torch.Tensor] = []
            hook = module_of(it, part).register_forward_pre_hook(lambda m, a, seen=seen: seen.append(a[0]))
            with torch.no_grad():
                it.hf(torch.tensor([item.ids]))
            hook.remove()
            # From the last token that is given on; the last token of all is read too, though nothing is asked after it.
            expected.append(seen[0][0, item.prefix - 1 :].abs().mean(0) * weight.norm(dim=0))
        own = found.scores_[found.scores_["part"] == repr(part)].sort_values("unit")
        want = torch.stack(expected)
        np.testing.assert_allclose(own["score"], want.mean(0).detach(), rtol=1e-4)
        se = want.std(0).detach() / 2**0.5
        np.testing.assert_allclose(own["se"], se, rtol=1e-3, atol=1e-6)


def test_activation_counts_the_conditional_half_and_valid_tokens_alone() -> None:
    sums, part = _Sizes(2), parts(subject("gpt2"), "ff_out")[0]
    x = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))
    valid = torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1], [0, 0, 1, 1]]).bool()
    sums(part, x, Pass(0, torch.tensor([1, 0, 1]), torch.tensor([True, False, True]), valid))
    expected = x[0, 1:].abs().sum(0) + x[2, 2:].abs().sum(0)
    torch.testing.assert_close(sums.sums[part], torch.stack([torch.zeros(5), expected]))
    assert sums.tokens[part].tolist() == [0, 5]
    it = small_pipeline()
    free = Activation(steps=4, stop=2).fit(it, images())
    assert free.scores_["score"].min() >= 0 and free.scores_["score"].max() > 0


# -- planted memories ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_the_neurons_that_hold_a_sequence_are_found_and_decoys_are_not(kind: str) -> None:
    made = planted(kind, 2)
    item = made.items[:1]
    exact = LeaveOneOut(screen=60).fit(made.subject, item)
    path = IntegratedGradients().fit(made.subject, item)
    assert recall(exact, made) == recall(path, made) == 1
    decoys = {f"ff_out[{n.layer}].{n.i}" for n in made.loud | made.eager | made.neurons["item 1"]}
    for found in (exact, path):
        assert not decoys & set(found.ranking()["component"][:5])
        with torch.no_grad(), found.edit(k=5).applied(made.subject):
            cut, other = loss(made.subject, made.items).tolist()
        assert cut > 3 and other < 0.5
    with torch.no_grad():
        assert loss(made.subject, made.items).max() < 0.1
    # What is loud is not what holds it: of what fires on the item, the baseline takes the decoys too.
    loudest = set(Activation().fit(made.subject, item).ranking()["component"][:12])
    assert len(loudest & decoys) >= 3


def test_a_memory_spread_over_equal_neurons_is_hidden_from_cutting_single_ones() -> None:
    """Each of the four neurons of a token can be spared, so only paths see all of them."""
    made = planted("llama", 2, spread=4)
    item = made.items[:1]
    assert recall(LeaveOneOut(screen=80).fit(made.subject, item), made) < 0.7
    assert recall(IntegratedGradients().fit(made.subject, item), made) == 1


@pytest.mark.parametrize("rule", ["hard_concrete", "slimming"])
def test_learned_gates_keep_a_set_that_holds_the_item(rule: str) -> None:
    made = planted("llama", 2, spread=3, strength=1.5)
    rate = 0.1 if rule == "hard_concrete" else 0.03
    found = LearnedGates(rule, steps=70, rate=rate).fit(made.subject, made.items[:1])  # type: ignore[arg-type]
    assert recall(found, made) >= 0.6 and found.scores_["score"].between(0, 1).all()
    assert found.history_[-1][0] < 1 and found.history_[-1][1] < 0.3 * found.history_[0][1]
    kept = {(repr(part), unit) for part, unit in found.units(40)}
    gates = open_gates(made.subject, found.parts_, 1)
    for part in found.parts_:
        gates[part][0] = torch.tensor([float((repr(part), u) in kept) for u in range(gates[part].shape[1])])
    with torch.no_grad(), gated(made.subject, gates):
        assert float(loss(made.subject, made.items[:1])) < 1.5


def test_gates_of_items_are_learned_side_by_side() -> None:
    made = planted("llama", 2)
    both = LearnedGates("slimming", per="item", steps=15, rate=0.03).fit(made.subject, made.items)
    alone = LearnedGates("slimming", per="item", steps=15, rate=0.03).fit(made.subject, made.items[1:])
    own = both.scores_["target"] * 2 - alone.scores_["target"]
    first = LearnedGates("slimming", per="item", steps=15, rate=0.03).fit(made.subject, made.items[:1])
    assert (own - first.scores_["target"]).abs().max() < 0.02
    assert both.scores_["se"].notna().all() and alone.scores_["se"].isna().all()


def test_gates_are_learned_in_pipelines_too(rng_untouched: None) -> None:
    it = small_pipeline()
    found = LearnedGates(steps=3, draws=2).fit(it, images())
    again = LearnedGates(steps=3, draws=2).fit(it, images())
    assert found.scores_.equals(again.scores_) and found.scores_["score"].nunique() > 50
    t, _ = draws_of(it, images()[0], 2, 0)
    assert len(t) == 2


def test_what_cannot_be_asked_for_is_refused() -> None:
    made = planted("llama", 2)
    with pytest.raises(UsageError, match="learns from items"):
        GradientActivation().fit(made.subject)
    with pytest.raises(UsageError, match="write one of layer, joint"):
        IntegratedGradients("both").fit(made.subject, made.items)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="each is above 0"):
        LearnedGates(price=0).fit(made.subject, made.items)
    found = GradientActivation().fit(made.subject, made.items)
    with pytest.raises(UsageError, match="not both"):
        found.edit()
    with pytest.raises(UsageError, match="385 units were asked for, but 384"):
        found.units(385)
    assert sum(int(s.mask.any(0).sum()) for s in found.edit(share=0.05).singles) == 19  # type: ignore[attr-defined]
