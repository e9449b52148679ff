"""NeMo equals the sequential search, finds planted value units and leaves decoys alone."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from interp.errors import UsageError
from interp.locate.memorization.blocking import Ask, Blocker, Found, drive, refine, widen
from interp.locate.memorization.nemo import NeMo
from interp.locate.memorization.values import RUNGS, activity, initial_sets
from interp.measure.memorization.similarity import pearson
from interp.models.parts import module_of, parts, watching
from tests.locate.memorization.naive_nemo import Naive
from tests.locate.memorization.planted_values import MEMORIZED, ORDINARY, Planted, planted
from tests.pipelines import pixels
from tests.subjects import subject

SEEDS = (0, 1, 2)


@cache
def fitted(seed: int, strength: float = 5.0) -> tuple[Planted, NeMo]:
    it = planted(seed, strength)
    return it, NeMo(seeds=SEEDS, steps=10, level=0.05).fit(it.pipeline, MEMORIZED, reference=ORDINARY)


def exact(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Pearson in the precision of what it is given."""
    x, y = (v.flatten(1) - v.flatten(1).mean(1, keepdim=True) for v in (a, b))
    return (x * y).sum(1) / (x.norm(dim=1) * y.norm(dim=1))


# In the first the initial set is enough and one unit stays; in the second it is not, and many stay.
@pytest.mark.parametrize(("seed", "at", "of", "reached"), [(0, 1, "data", True), (1, 0, "noise", False)])
def test_the_batched_search_equals_the_sequential_one(seed: int, at: int, of: Any, reached: bool) -> None:
    pipeline = planted(seed, 5.0).pipeline
    for module in (pipeline.pipe.unet, pipeline.pipe.text_encoder):
        module.double()
    reference, rungs = ORDINARY[:8], RUNGS[::4]
    pipeline.spent.reset()
    nemo = NeMo(exact, seeds=SEEDS, steps=10, at=at, of=of, rungs=rungs).fit(
        pipeline, MEMORIZED, reference=reference
    )
    rows, batches = pipeline.spent.rows, pipeline.spent.calls
    values = [p for p in parts(pipeline, "cross_v") if "up_blocks" not in p.path]
    assert list(nemo.parts_) == values
    naive = Naive(pipeline, [module_of(pipeline, p) for p in values], exact, 10, at, of)
    calls = 0
    for i, prompt in enumerate(MEMORIZED):
        own = nemo.prompts_.iloc[i]
        expected = naive.find(prompt, reference, SEEDS, nemo.threshold_, rungs)
        calls += naive.runs
        naive.runs = 0
        assert expected is not None and own["memorized"]
        assert own[["seeds", "rung"]].tolist() == [expected["seeds"], expected["rung"]]
        assert own["initial"] == sum(map(len, expected["initial"]))
        assert own["initial_similarity"] == pytest.approx(expected["initial_similarity"], abs=1e-9)
        assert own["similarity"] == pytest.approx(expected["similarity"], abs=1e-9)
        found = nemo.blocked(items=[i])
        assert [list(found.get(p, ())) for p in values] == expected["units"]
    assert nemo.prompts_["reached"].tolist() == [reached] * 2
    # What the search itself runs; activities and the reference's threshold are left out of both.
    rows -= (at + 1) * len(reference) * len(SEEDS)
    assert rows < calls and batches < calls / 2
    one = NeMo(exact, seeds=SEEDS, steps=10, at=at, of=of, rungs=rungs, ahead=5, batch=2).fit(
        pipeline, MEMORIZED, reference=reference
    )
    assert one.units_.equals(nemo.units_)


def found_in(strength: float, seeds: int) -> dict[str, int]:
    """Over drawn pipelines, of two prompts each: what was found."""
    out = dict.fromkeys(("prompts", "memorized", "hits", "reached", "alone", "decoys"), 0)
    for seed in range(seeds):
        it, nemo = fitted(seed, strength)
        for row in nemo.prompts_.itertuples():
            out["prompts"] += 1
            out["memorized"] += row.memorized
            out["reached"] += row.reached
            if row.memorized:
                units = {(p, u) for p, own in nemo.blocked(items=[row.item]).items() for u in own}
                out["hits"] += it.memory in units
                if row.reached:
                    out["alone"] += units == {it.memory}
                    out["decoys"] += len(units & set(it.decoys))
    return out


def test_the_planted_unit_is_found_and_decoys_are_not() -> None:
    found = found_in(5.0, 5)
    assert found["prompts"] == 10 and found["memorized"] >= 9
    assert found["hits"] == found["memorized"]
    # Where blocking undoes the memory, the unit that holds it is what is left; else more stays, and NeMo says so.
    assert found["reached"] >= 5 and found["alone"] >= found["reached"] - 1 and found["decoys"] <= 1


def test_where_nothing_is_planted_little_is_found() -> None:
    found = found_in(0.0, 3)
    assert found["memorized"] <= 1 and found["hits"] == 0 == found["reached"]


def test_the_edit_takes_the_memory_and_gives_every_bit_back() -> None:
    it, nemo = fitted(0)
    pipeline, (part, unit) = it.pipeline, it.memory
    before = {n: w.clone() for n, w in pipeline.pipe.unet.state_dict().items()}
    edit = nemo.edit()
    assert nemo.blocked() == {part: (unit,)}
    assert edit.budget(pipeline).changed == module_of(pipeline, part).in_features
    x = pipeline.latents(range(4))
    t = int(pipeline.timesteps(10)[0])
    words, plain = (pipeline.embed([p]) for p in (MEMORIZED[0], ORDINARY[0]))
    with torch.no_grad():
        whole, ordinary = pipeline.noise(x, t, words), pipeline.noise(x, t, plain)
        with edit.applied(pipeline):
            cut, other = pipeline.noise(x, t, words), pipeline.noise(x, t, plain)
        with nemo.edit(k=1).applied(pipeline):
            assert torch.equal(pipeline.noise(x, t, words), cut)
    image = torch.sin(torch.arange(64.0))

    def pushed(noise: torch.Tensor) -> float:
        return float(((noise - x).flatten(1) @ image / image.norm()).mean())

    assert pushed(whole) > 20 * abs(pushed(cut)) and pushed(whole) > 5
    assert (other - ordinary).norm() < 0.02 * (cut - whole).norm()
    after = pipeline.pipe.unet.state_dict()
    assert all(torch.equal(after[n], w) for n, w in before.items())
    # Blocking in the search and the edit are one thing.
    blocker = nemo._blocker(MEMORIZED)
    blocked = torch.zeros(blocker.n, dtype=torch.bool)
    offset = sum(blocker.widths[: nemo.parts_.index(part)])
    blocked[offset + unit] = True
    masked = blocker.differences([Ask(1, 7, blocked), Ask(0, 7, None), Ask(1, 7, None)])
    with edit.applied(pipeline):
        edited = nemo._blocker(MEMORIZED).differences([Ask(1, 7, None)])
    torch.testing.assert_close(masked[:1], edited, atol=1e-5, rtol=1e-4)
    assert (masked[0] - masked[2]).abs().max() > 0.1


def test_scores_sets_and_coverage() -> None:
    it, nemo = fitted(0)
    best = nemo.scores_.sort_values("score", ascending=False, kind="stable")
    blocked = best[best["method"] == "blocked"].iloc[0]
    name = f"{it.memory[0]}.{it.memory[1]}"
    assert (blocked["component"], blocked["score"], blocked["n"]) == (name, 1.0, 2)
    assert {name, *(f"{p}.{u}" for p, u in it.decoys)} >= set(
        best[best["method"] == "z"]["component"][:3]
    )  # decoys are as far off their mean: activity alone cannot tell
    assert nemo.ranking().iloc[0]["component"] == name
    assert sum(map(len, nemo.blocked(share=0.25).values())) == round(0.25 * len(nemo.stats_))
    assert nemo.blocked(least=1.0) == nemo.blocked()
    # The set stands for a prompt that it was not found on, and other units do not.
    new = ["the poster of zorax"]
    table = nemo.coverage(new, (1, 2))
    if len(table):
        assert table["covered"].tolist() == [1.0, 1.0] and table["n"].tolist() == [1, 1]
        assert (table["ci_lo"] < 0.1).all()  # one prompt says little
    with pytest.raises(UsageError, match="none of these prompts"):
        nemo.coverage(["a red digit"], (1,))
    with pytest.raises(UsageError, match="not with both"):
        nemo.blocked(k=1, share=0.1)
    with pytest.raises(UsageError, match="prompt 5 has no units"):
        nemo.edit(items=[5])


def test_activity_needs_no_unet_and_is_what_the_unet_computes() -> None:
    pipeline = pixels()
    chosen = parts(pipeline, "cross_v")
    pipeline.spent.reset()
    found = activity(pipeline, chosen, ORDINARY[:3], batch=2)
    assert pipeline.spent.rows == 0
    for i, prompt in enumerate(ORDINARY[:3]):
        seen: dict[Any, torch.Tensor] = {}
        with (
            watching(pipeline, chosen, lambda part, x, _, seen=seen: seen.update({part: x})),
            torch.no_grad(),
        ):
            pipeline.noise(pipeline.latents([0]), 500, pipeline.embed([prompt]))
        by_hand = [(seen[p][0] @ module_of(pipeline, p).weight.detach().T).abs().mean(0) for p in chosen]
        torch.testing.assert_close(found[i], torch.cat(by_hand), rtol=1e-4, atol=1e-6)


def test_the_threshold_is_the_rule_or_the_level_of_ordinary_prompts() -> None:
    it, nemo = fitted(0)
    pipeline = it.pipeline
    blocker = nemo._blocker(ORDINARY)
    whole = blocker.whole([(i, s) for i in range(len(ORDINARY)) for s in SEEDS]).unflatten(0, (-1, 3))
    pairs = torch.stack([pearson(whole[:, a], whole[:, b]) for a, b in ((0, 1), (0, 2), (1, 2))], 1)
    by_rule = NeMo(seeds=SEEDS, steps=10, rungs=RUNGS[:1]).fit(pipeline, MEMORIZED[:1], reference=ORDINARY)
    assert by_rule.threshold_ == pytest.approx(float(pairs.mean() + pairs.std()), abs=1e-4)
    assert nemo.threshold_ == pytest.approx(np.quantile(pairs.amax(1), 0.95), abs=1e-4)
    # The published rule lets many ordinary prompts through: the highest of several pairs is compared with it.
    passed = float((pairs.amax(1) > by_rule.threshold_).float().mean())
    assert passed > 0.25 > float((pairs.amax(1) > nemo.threshold_).float().mean())


def test_initial_sets_grow_and_keep_the_order_of_the_reference() -> None:
    z = torch.tensor([6.0, 0.0, 4.8, 2.0, 9.0, 0.0])
    active = torch.tensor([0.1, 0.9, 0.5, 0.2, 0.3, 0.4])
    sets = initial_sets(z, active, [4, 2], ((5.0, 0), (4.75, 1), (1.0, 2)))
    assert [b.tolist() for b, _ in sets] == [
        [True, False, False, False, True, False],
        [True, True, True, False, True, True],
        [True] * 6,
    ]
    assert [order for _, order in sets] == [[[0], [4]], [[0, 2, 1], [4, 5]], [[0, 3, 1, 2], [5, 4]]]


class Table(Blocker):
    """Similarities from a function of the blocked units, in place of a pipeline."""

    def __init__(self, of: Any):
        self.of, self.asked = of, 0

    def similar(self, asked: Any) -> torch.Tensor:
        self.asked += len(asked)
        return torch.tensor([self.of(a.item, a.seed, a.blocked) for a in asked])


def sequential(of: Any, item: int, seeds: Any, start: Found, groups: Any, limit: float) -> torch.Tensor:
    state = start.blocked
    for group in groups:
        trial = state.clone()
        trial[list(group)] = False
        if max(of(item, s, trial) for s in seeds) < limit:
            state = trial
    return state


@pytest.mark.parametrize("ahead", [1, 3, 64])
def test_asking_ahead_never_changes_the_greedy_result(ahead: int) -> None:
    """Random landscapes with interactions; several searches side by side."""
    rng = np.random.default_rng(ahead)
    for _ in range(15):
        n, seeds = 14, (0, 1, 2)
        weight, pair = rng.normal(size=(4, 3, n)), rng.normal(size=(4, n, n)) * 0.3

        def of(item: int, seed: int, blocked: torch.Tensor, weight: Any = weight, pair: Any = pair) -> float:
            free = 1.0 - blocked.double().numpy()
            return float(weight[item, seed] @ free + free @ pair[item] @ free)

        groups = (
            [[i] for i in rng.permutation(n)]
            if rng.random() < 0.5
            else [[0, 1, 2], [3], [4, 5], [6, 7, 8, 9]]
        )
        every = torch.ones(n, dtype=torch.bool)
        starts = [Found(every, tuple(of(i, s, every) for s in seeds)) for i in range(4)]
        table, limit = Table(of), float(rng.normal() + 1)
        found = drive(table, [refine(i, seeds, starts[i], groups, limit, ahead=ahead) for i in range(4)])
        for i in range(4):
            expected = sequential(of, i, seeds, starts[i], groups, limit)
            assert torch.equal(found[i].blocked, expected)
            assert found[i].similarity == pytest.approx(max(of(i, s, expected) for s in seeds))


def test_the_first_set_that_is_enough_is_taken() -> None:
    rungs = [torch.arange(6) < k for k in range(6)]

    def of(item: int, seed: int, blocked: torch.Tensor) -> float:
        return 1.0 - 0.25 * float(blocked.sum()) + 0.125 * seed

    for ahead in (1, 2, 64):
        found = drive(
            Table(of), [widen(0, (0, 1), rungs, limit, ahead=ahead) for limit in (0.63, 0.625, 0.0, -1.0)]
        )
        assert [int(f.blocked.sum()) for f in found] == [2, 2, 5, 5]
        assert found[3].similarity == -0.125


def test_what_cannot_be_asked_for_is_refused() -> None:
    pipeline = pixels()
    with pytest.raises(UsageError, match="is a language model"):
        NeMo().fit(subject("llama"), MEMORIZED, reference=ORDINARY)
    with pytest.raises(UsageError, match="two or more ordinary ones"):
        NeMo().fit(pipeline, MEMORIZED, reference=ORDINARY[:1])
    with pytest.raises(UsageError, match="two or more seeds"):
        NeMo(seeds=(0,)).fit(pipeline, MEMORIZED, reference=ORDINARY)
    with pytest.raises(UsageError, match="no cross-attention in side"):
        NeMo(blocks=("side",)).fit(pipeline, MEMORIZED, reference=ORDINARY)
    with pytest.raises(UsageError, match="no threshold beside it"):
        NeMo(level=0.05, threshold=0.4).fit(pipeline, MEMORIZED, reference=ORDINARY)
    with pytest.raises(UsageError, match="have a `prompt`"):
        NeMo().fit(pipeline, [3], reference=ORDINARY)
    with pytest.raises(UsageError, match="not fitted yet"):
        NeMo().edit()
    none = NeMo(seeds=SEEDS, steps=4, threshold=0.9999).fit(pipeline, MEMORIZED, reference=ORDINARY)
    assert not none.prompts_["memorized"].any() and none.units_.empty
    with pytest.raises(UsageError, match="no prompt was found to be memorized"):
        none.edit()
