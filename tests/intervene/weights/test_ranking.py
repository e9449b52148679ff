"""From scores to edits: the best by rank and no others, and budgets that are what they say."""

from __future__ import annotations

import pytest
import torch

from interp.errors import UsageError
from interp.intervene.weights import (
    Delta,
    LowRank,
    MeanAblate,
    ModelDelta,
    Prune,
    Scaled,
    Stack,
    prune,
    prune_to_norm,
    prune_units,
    pruned,
    to_norm,
    top_masks,
    top_units,
)
from interp.models.parts import parts, weight_of
from interp.models.pipeline import Pipeline
from tests.intervene.weights.cases import KINDS, bits, draw, edit, part, same, subject


def scores(s):
    return {p: draw(*weight_of(s, p).shape, seed=i) for i, p in enumerate(parts(s, "ff_out"))}


@pytest.mark.parametrize("name", ["llama", "gpt2", "pipeline"])
@pytest.mark.parametrize("share", [0.1, 0.37, 1.0])
def test_the_best_of_each_row_part_or_model_are_cut(name, share):
    s = subject(name)
    found = scores(s)
    for part_, mask in top_masks(found, share).items():
        k = int(share * mask.shape[1])
        for row, taken in zip(found[part_], mask, strict=True):
            assert set(taken.nonzero().flatten().tolist()) == set(
                sorted(range(len(row)), key=lambda i: -row[i])[:k]
            )
    for part_, mask in top_masks(found, share, per="part").items():
        k = int(share * mask.numel())
        assert int(mask.sum()) == k and found[part_][mask].min() >= found[part_].flatten().sort().values[-k]
    every = torch.cat([found[p].flatten() for p in sorted(found)])
    masks = top_masks(found, share, per="all")
    assert sum(int(m.sum()) for m in masks.values()) == int(share * len(every))
    least = min(float(found[p][m].min()) for p, m in masks.items() if m.any())
    assert least == float(every.sort().values[-int(share * len(every))])
    cut = prune(s, found, share)
    k = {p: int(share * m.shape[1]) * m.shape[0] for p, m in found.items()}
    assert {e.part: int(e.mask.sum()) for e in cut.edits} == k  # type: ignore[attr-defined]
    with cut.applied(s):
        assert all(int((weight_of(s, p) == 0).sum()) == n for p, n in k.items())


def test_ties_go_to_the_first_and_a_mask_of_what_may_be_taken_leaves_fewer():
    s = subject("llama")
    at = part(s, "ff_out")
    flat = {at: torch.zeros(2, 10)}
    assert top_masks(flat, 0.3)[at].nonzero().tolist() == [[r, c] for r in range(2) for c in range(3)]
    within = torch.zeros(2, 10, dtype=torch.bool)
    within[0, 1], within[1, 5] = True, True
    # The best are taken first: the unit at 5 is not among them, and nothing comes in its place.
    assert top_masks(flat, 0.3, within={at: within})[at].nonzero().tolist() == [[0, 1]]
    assert pruned(s, {at: torch.zeros(48, 80, dtype=torch.bool)}).edits == ()


def test_units_are_whole_columns():
    s = subject("gpt2")
    one, two = parts(s, "ff_out")[:2]
    d_in = weight_of(s, one).shape[1]
    found = {one: torch.zeros(d_in), two: torch.zeros(d_in)}
    found[one][[5, 9, 2]] = torch.tensor([3.0, 2.0, 1.0])
    found[two][7] = 2.5
    assert {p: u.tolist() for p, u in top_units(found, 3, per="all").items()} == {one: [5, 9], two: [7]}
    assert {p: u.tolist() for p, u in top_units(found, 2).items()} == {one: [5, 9], two: [0, 7]}
    assert all(len(u) == int(0.1 * d_in) for u in top_units(found, 0.1).values())
    cut = prune_units(s, found, 3, per="all")
    with cut.applied(s):
        gone = (weight_of(s, one) == 0).all(0).nonzero().flatten().tolist()
        assert gone == [5, 9] and int((weight_of(s, two) == 0).all(0).sum()) == 1
    assert cut.budget(s).changed == 3 * weight_of(s, one).shape[0]


def test_units_are_columns_on_the_way_in_and_rows_on_the_way_out():
    s = subject("gpt2")
    at = part(s, "ff_out")
    assert Prune.units(s, at, [3, 5]).mask.nonzero()[:, 1].unique().tolist() == [3, 5]
    assert Prune.units(s, at, [3, 5]).mask.sum() == 2 * 48
    rows = Prune.units(s, at, [47, 0], "out").mask
    assert rows.nonzero()[:, 0].unique().tolist() == [0, 47] and rows[[0, 47]].all()


def test_shares_and_scores_that_are_none_are_refused():
    s = subject("llama")
    found = scores(s)
    for share in (0.0, -0.1, 1.5, 0.001):
        with pytest.raises(UsageError, match=r"share|at least"):
            prune(s, found, share)
    with pytest.raises(UsageError, match="at most all"):
        top_units({part(s, "ff_out"): torch.zeros(4)}, 5)
    with pytest.raises(UsageError, match="no way"):
        prune(s, found, 0.5, per="column")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="no scores"):
        prune(s, {}, 0.5)
    found[part(s, "ff_out")][0, 0] = float("nan")
    with pytest.raises(UsageError, match=r"ff_out\[1\]: scores are not numbers"):
        prune(s, found, 0.5)


@pytest.mark.parametrize("name", ["llama", "gpt2", "pipeline"])
def test_a_budget_counts_what_is_changed_to_the_bit(name):
    s = subject(name)
    one, two = parts(s, "ff_out")[:2]
    before = bits(s)
    w, v = weight_of(s, one).clone(), weight_of(s, two).clone()
    mask, change = draw(*w.shape) > 1, torch.zeros_like(v)
    change[1, 2], change[0, 0] = 0.3, 0.4
    found = (Prune(one, mask) + Delta(two, change)).budget(s)
    modules = (s.pipe.unet, s.pipe.text_encoder) if isinstance(s, Pipeline) else (s.hf,)
    every = sum(p.numel() for m in modules for p in m.parameters())
    assert found.changed == int(mask.sum()) + 2 and found.weights == w.numel() + v.numel()
    assert found.share == found.changed / found.weights and found.of_model == found.changed / every
    assert found.norm == pytest.approx((float(w[mask].square().sum()) + 0.25) ** 0.5, rel=1e-5)
    assert found.by_name[f"{two.path}.weight"] == (2, pytest.approx(0.5, rel=1e-5)) and found.shift == 0
    mean = MeanAblate(one, torch.tensor([3]), torch.tensor([2.0])).budget(s)
    assert mean.shift == pytest.approx(2 * float(w[:, 3].norm()), rel=1e-5)
    assert mean.norm == pytest.approx(float(w[:, 3].norm()), rel=1e-5)
    # A change that another takes back costs nothing.
    nothing = Stack((Prune(one, mask), Delta(one, w * mask))).budget(s)
    assert (nothing.changed, nothing.norm) == (0, 0)
    assert same(s, before)


@pytest.mark.parametrize("name", ["llama", "gpt2", "pipeline"])
def test_a_cut_can_be_made_to_cost_a_given_norm(name):
    s = subject(name)
    found = {
        p: weight_of(s, p).abs() if i % 2 else draw(*weight_of(s, p).shape) for i, p in enumerate(scores(s))
    }
    widths = {m.shape[1] for m in found.values()}
    grid = sorted({k / d for d in widths for k in range(1, d + 1)})
    norms = [prune_norm(s, found, share) for share in grid]
    for norm in (norms[2] * 1.01, norms[len(norms) // 2] * 0.999, norms[-1]):
        cut = prune_to_norm(s, found, norm)
        got = cut.budget(s).norm
        assert abs(got - norm) == pytest.approx(min(abs(n - norm) for n in norms), abs=1e-4 * norm)
    with pytest.raises(UsageError, match="cutting all weights"):
        prune_to_norm(s, found, norms[-1] * 1.1)


def prune_norm(s, found, share):
    total = 0.0
    for p, score in found.items():
        k = int(share * score.shape[1] + 1e-6)
        at = score.argsort(dim=1, descending=True, stable=True)[:, :k]
        total += float(weight_of(s, p).gather(1, at).double().square().sum())
    return total**0.5


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "prune rows"])
def test_any_edit_has_a_dose_of_a_given_norm(kind):
    s = subject("llama")
    one = edit(s, part(s, "ff_out"), kind) + edit(s, part(s, "ff_out", 2), "delta")
    for norm in (0.5, 7.0):
        assert to_norm(one, s, norm).budget(s).norm == pytest.approx(norm, rel=1e-4)


def test_doses_that_are_not_proportional_are_refused():
    s = subject("llama")
    at = part(s, "ff_out")
    one = edit(s, at, "prune")
    with pytest.raises(UsageError, match="edits a weight twice"):
        to_norm(one + edit(s, at, "delta"), s, 1.0)
    with pytest.raises(UsageError, match="changes no matrix"):
        to_norm(Prune(at, torch.zeros(48, 80, dtype=torch.bool)), s, 1.0)
    with pytest.raises(UsageError, match="of one part is scaled"):
        Scaled(ModelDelta({}), 0.5)  # type: ignore[arg-type]


def test_a_change_of_low_rank_is_found_again_and_says_what_it_keeps():
    s = subject("llama")
    at = part(s, "ff_out")
    d_out, d_in = weight_of(s, at).shape
    full = LowRank(at, draw(d_in, 3), draw(3, d_out, seed=1))
    change = (full.a @ full.b).T
    low, kept = Delta(at, change).low_rank(3)
    torch.testing.assert_close((low.a @ low.b).T, change, atol=1e-4, rtol=1e-4)
    assert kept == pytest.approx(1, abs=1e-6)
    low, kept = Delta(at, change).low_rank(2)
    rest = float((change - (low.a @ low.b).T).square().sum() / change.square().sum())
    assert kept == pytest.approx(1 - rest, abs=1e-5) and 0.4 < kept < 0.99
    assert (low.a.shape, low.b.shape) == ((d_in, 2), (2, d_out))
    with pytest.raises(UsageError, match="rank 0"):
        Delta(at, change).low_rank(0)
