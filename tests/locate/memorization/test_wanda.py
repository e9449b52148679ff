"""The published rule mask for mask, the corrected ones by their formulas, planted columns, budgets of controls."""

from __future__ import annotations

from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from scipy import stats

from interp.errors import UsageError
from interp.intervene.weights import Prune
from interp.locate.memorization.masks import (
    best_like,
    magnitude_like,
    random_like,
    rule_like,
    share_of,
    top_per_row,
)
from interp.locate.memorization.wanda import RULES, WandaContrast
from interp.models.parts import weight_of
from interp.models.pipeline import Pipeline
from interp.trace.passes import Prompts
from tests.locate.memorization.naive_wanda import Norms, norms, union_mask
from tests.locate.memorization.planted_columns import (
    CONTROLS,
    HELD_OUT,
    LOUD,
    MEMORY,
    TARGETS,
    WORDED,
    Planted,
    planted,
)
from tests.locate.memorization.small import OTHERS, TEXTS, raw_pipeline, small_pipeline
from tests.subjects import subject

STEPS, TAU, GUIDANCE = 5, 4, 7.5


def _same(found: dict[Any, torch.Tensor], naive: dict[str, torch.Tensor]) -> None:
    assert len(found) == len(naive) == 7
    for part, mask in found.items():
        assert torch.equal(mask, naive[part.path.removeprefix("unet.")]), part
        assert mask.any()


@pytest.fixture(scope="module")
def pndm() -> Any:
    """A pipeline whose scheduler visits its second timestep twice, as the published code's."""
    return raw_pipeline(
        diffusers.PNDMScheduler(skip_prk_steps=True, steps_offset=1, beta_schedule="squaredcos_cap_v2")
    )


def test_published_masks_are_identical_for_every_share_and_tau_of_one_fit(pndm: Any) -> None:
    target = norms(pndm, TEXTS, steps=STEPS, guidance=GUIDANCE)
    base = norms(pndm, [""] * 3, steps=STEPS, guidance=GUIDANCE)
    found = WandaContrast("reference", "empty", steps=STEPS, tau=TAU, guidance=GUIDANCE)
    found.fit(Pipeline(pndm, name="pndm"), list(TEXTS))
    times = found.contrasts_["empty"].target.timesteps
    assert times[1] == times[2]
    for tau in (1, 3, TAU):
        for share in (0.02, 0.1):
            _same(found.mask(share, tau=tau), union_mask(target, base, share, tau))
    assert target.rows == base.rows == 3 * 2 * (STEPS + 1)
    assert found.rows_ == {"target": 3 * 2 * TAU, "null": TAU}


def test_paired_and_prompt_nulls_of_the_published_rule_equal_their_own_runs() -> None:
    raw = small_pipeline().pipe
    found = WandaContrast("reference", "prompts", steps=STEPS, tau=TAU, guidance=GUIDANCE)
    found.fit(small_pipeline(), list(TEXTS), reference=list(OTHERS))
    assert found.nulls_ == ("paired", "prompts")
    target = norms(raw, TEXTS, steps=STEPS, guidance=GUIDANCE)
    others = norms(raw, OTHERS, steps=STEPS, guidance=GUIDANCE)
    _same(found.mask(0.05), union_mask(target, others, 0.05, TAU))
    with_text = norms(raw, TEXTS, steps=STEPS, guidance=GUIDANCE, half=1)
    without = norms(raw, TEXTS, steps=STEPS, guidance=GUIDANCE, half=0)
    _same(found.mask(0.05, null="paired"), union_mask(with_text, without, 0.05, TAU))


def test_forwards_against_two_runs_of_51_steps(pndm: Any) -> None:
    naive = Norms(pndm)
    naive.run(TEXTS[0], 0, 50, GUIDANCE)
    assert naive.rows == 2 * 51
    published = 10 * naive.rows * 2  # ten prompts, a target and a base run each
    texts = [f"{w} of the {d}" for w in ("zorax", "velim") for d in ("one", "two", "three", "four", "five")]
    found = WandaContrast("reference", "empty", steps=50, guidance=GUIDANCE).fit(
        Pipeline(pndm, name="pndm"), texts
    )
    assert sum(found.rows_.values()) == 210 and published / 210 > 9.7
    assert found.rows_["target"] == 200 and published / 200 > 10  # the paired null needs these alone
    columns = found.scores_["method"].eq("reference").sum()
    assert found.contrasts_["paired"].target.bytes == 3 * 2 * 10 * 10 * columns * 8


@pytest.fixture(scope="module")
def fitted() -> WandaContrast:
    found = WandaContrast(null="prompts", steps=STEPS, tau=TAU, seeds=(0, 5))
    return found.fit(small_pipeline(), list(TEXTS), reference=list(OTHERS))


def _rms(found: WandaContrast, null: str, part: Any) -> tuple[np.ndarray, np.ndarray]:
    """Of each item, the root of the mean over steps of the mean square over tokens (and seeds)."""
    sides = []
    contrast = found.contrasts_[null]
    for moments, half in (
        (contrast.target, "conditional"),
        (contrast.reference, "unconditional" if null == "paired" else "conditional"),
    ):
        squares = [moments.sums(part, t, half) / moments.tokens(part, t, half)[:, None] for t in range(TAU)]  # type: ignore[arg-type]
        sides.append(torch.stack(squares).mean(0).sqrt().numpy())
    return sides[0], sides[1]


def test_corrected_rules_are_their_formulas(fitted: WandaContrast) -> None:
    part = fitted.parts_[3]
    size = weight_of(small_pipeline(), part).abs().double().numpy()
    for null in ("paired", "prompts"):
        a, b = _rms(fitted, null, part)
        if null == "paired":
            t = stats.ttest_rel(a, b, alternative="greater")
        else:
            t = stats.ttest_ind(a, b, equal_var=False, alternative="greater")
        own = fitted.table(null=null)
        own = own[own["part"] == repr(part)]
        np.testing.assert_allclose(own["diff"], a.mean(0) - b.mean(0), rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(own["t"], t.statistic, rtol=1e-6)
        np.testing.assert_allclose(own["p"], t.pvalue, rtol=1e-6)
        np.testing.assert_allclose(own["se"], own["diff"] / t.statistic, rtol=1e-6)
        expected = {
            "corrected": np.maximum(a.mean(0) - b.mean(0), 0),
            "log_ratio": np.maximum(np.log(a).mean(0) - np.log(b).mean(0), 0),
            "welch": np.maximum(t.statistic, 0),
            "target": a.mean(0),
        }
        for rule, column in expected.items():
            score = fitted.weights(rule=rule, null=null)[part].numpy()  # type: ignore[arg-type]
            np.testing.assert_allclose(score, size * column, rtol=1e-6, atol=1e-12)
            mask = fitted.mask(0.1, rule=rule, null=null)[part].numpy()  # type: ignore[arg-type]
            count = int(0.1 * size.shape[1])
            for row in range(len(size)):
                best = np.argsort(-size[row] * column)[:count]
                assert set(np.flatnonzero(mask[row])) == {j for j in best if column[j] > 0}
    assert (
        fitted.scores_["q"].between(0, 1).all() and (fitted.scores_["q"] >= fitted.scores_["p"] - 1e-12).all()
    )
    assert tuple(fitted.scores_["method"].unique()) == ("corrected", *(r for r in RULES if r != "corrected"))


def test_items_of_one_fit_are_fits_of_those_items() -> None:
    options: dict[str, Any] = dict(null="empty", steps=STEPS, tau=TAU)
    every = WandaContrast("reference", **options).fit(small_pipeline(), Prompts(TEXTS, (3, 4, 3), STEPS, TAU))
    assert every.rows_ == {"target": 24, "null": 8}  # two seeds, so two runs of the empty prompt
    for chosen in ((0, 1), (2,)):
        texts, seeds = tuple(TEXTS[i] for i in chosen), tuple((3, 4, 3)[i] for i in chosen)
        some = WandaContrast("reference", **options).fit(small_pipeline(), Prompts(texts, seeds, STEPS, TAU))
        for rule in ("reference", "corrected"):
            here, there = every.mask(0.05, rule=rule, items=chosen), some.mask(0.05, rule=rule)
            assert all(torch.equal(here[p], there[p]) for p in here)
    assert "welch" not in set(some.scores_["method"]) and some.scores_["se"].isna().all()


@pytest.fixture(scope="module")
def plant() -> tuple[Planted, WandaContrast]:
    it = planted()
    found = WandaContrast(null="prompts", steps=STEPS, tau=TAU)
    return it, found.fit(it.pipe, list(TARGETS), reference=list(CONTROLS))


def _top(found: WandaContrast, it: Planted, n: int, **options: Any) -> set[int]:
    table = found.table(**options)
    own = table[table["part"] == repr(it.part)].sort_values("score", ascending=False)
    return set(own["unit"][:n])


def test_planted_columns_are_found_and_decoys_told_apart(plant: tuple[Planted, WandaContrast]) -> None:
    it, found = plant
    for rule in ("corrected", "log_ratio", "welch"):
        assert _top(found, it, 4, rule=rule) == set(MEMORY)
    assert set(found.units(4)) == {(it.part, j) for j in MEMORY}
    # Against the empty prompt, columns that any prompt fires look like memory.
    assert _top(found, it, 7, null="paired") == {*MEMORY, *WORDED}
    # Without a contrast the loud ones win; the published one is a sign, and lets them pass on a trace of a difference.
    assert _top(found, it, 3, rule="target") == set(LOUD)
    assert _top(found, it, 3, rule="reference") == set(LOUD)
    table = found.table().set_index(["part", "unit"]).loc[repr(it.part)]
    assert (table.loc[list(MEMORY), "q"] < 1e-3).all() and not (table.loc[list(WORDED), "q"] < 0.9).any()


def test_planted_columns_are_lost_as_they_fade() -> None:
    recall = {}
    for strength in (0.25, 0.0):
        it = planted(strength)
        found = WandaContrast(steps=STEPS, tau=TAU).fit(it.pipe, list(TARGETS), reference=list(CONTROLS))
        recall[strength] = len(_top(found, it, 4) & set(MEMORY)) / 4
    assert recall == {0.25: 0.25, 0.0: 0.0}


def test_cutting_the_mask_moves_target_prompts_alone(plant: tuple[Planted, WandaContrast]) -> None:
    it, found = plant
    mask = found.mask(4 / 64, level=0.01)[it.part]
    assert mask.sum(0).nonzero()[:, 0].tolist() == sorted(MEMORY) and bool(mask[:, list(MEMORY)].all())
    x = it.pipe.latents(range(6))
    t = int(it.pipe.timesteps(STEPS)[0])
    with torch.no_grad():
        prompts = {"located": TARGETS[:2], "held out": HELD_OUT, "others": CONTROLS[:2]}
        before = {k: it.pipe.noise(x[:2], t, it.pipe.embed(v)) for k, v in prompts.items()}

        def moved(edit: Prune) -> dict[str, float]:
            with edit.applied(it.pipe):
                after = {k: it.pipe.noise(x[:2], t, it.pipe.embed(v)) for k, v in prompts.items()}
            return {k: float((after[k] - before[k]).norm() / before[k].norm()) for k in prompts}

        cut = moved(Prune(it.part, mask))
        control = [moved(Prune(it.part, random_like({it.part: mask}, seed)[it.part])) for seed in range(5)]
    assert min(cut["located"], cut["held out"]) > 100 * cut["others"]
    # Random masks hit loud columns: they may move as much, but other prompts then, too.
    assert all(c["located"] < 1.5 * c["others"] for c in control)


def test_controls_take_as_many_of_each_row(fitted: WandaContrast) -> None:
    masks = fitted.mask(0.1, rule="reference", null="paired")
    counts = {part: mask.sum(1) for part, mask in masks.items()}
    assert len({int(n) for c in counts.values() for n in c}) > 3  # unions are uneven
    pipe = small_pipeline()
    weights = {part: weight_of(pipe, part).abs() for part in masks}
    controls = {
        "random": random_like(masks, 1),
        "again": random_like(masks, 1),
        "other": random_like(masks, 2),
        "second": random_like(masks, 1, draw=1),
        "rule": rule_like(fitted, masks, 0.05, null="paired"),
        "magnitude": magnitude_like(pipe, masks),
        "scores": best_like(fitted.weights(rule="target"), masks),
    }
    for control in controls.values():
        assert all(torch.equal(control[part].sum(1), counts[part]) for part in masks)
        assert share_of(control) == share_of(masks)
    for part in masks:
        assert torch.equal(controls["random"][part], controls["again"][part])
        drawn = [controls[name][part] for name in ("random", "other", "second")]
        assert not any(torch.equal(drawn[i], drawn[i - 1]) for i in range(3))
        chosen = controls["magnitude"][part]
        least = weights[part].masked_fill(~chosen, torch.inf).amin(1)
        most = weights[part].masked_fill(chosen, -1.0).amax(1)
        assert bool((least >= most).all())
    alone = random_like({part: masks[part] for part in list(masks)[2:3]}, 1)
    assert all(torch.equal(alone[part], controls["random"][part]) for part in alone)
    assert top_per_row(torch.tensor([[3.0, 1, 2], [0, 5, 4]]), torch.tensor([1, 2])).tolist() == [
        [True, False, False],
        [False, True, True],
    ]


def test_the_control_of_a_rule_is_the_mask_of_that_rule(fitted: WandaContrast) -> None:
    options: dict[str, Any] = dict(null="paired", items=[0, 2])
    own = fitted.mask(0.1, rule="reference", **options)
    masks = fitted.mask(0.1, rule="reference", null="paired", items=[1])
    same, control = rule_like(fitted, own, 0.1, **options), rule_like(fitted, masks, 0.1, **options)
    pooled = fitted.weights(rule="reference", **options)
    wanda = fitted.weights(rule="target", **options)
    trimmed = filled = unlike = 0
    for part, mask in masks.items():
        assert torch.equal(same[part], own[part]), "as many as it has is the rule's mask itself"
        unlike += int((best_like(pooled, own)[part] != own[part]).sum())
        counts, sizes = mask.sum(1).tolist(), own[part].sum(1).tolist()
        trimmed += sum(n < size for n, size in zip(counts, sizes, strict=True))
        filled += sum(n > size for n, size in zip(counts, sizes, strict=True))
        keys = torch.stack([-own[part].double(), -pooled[part], -wanda[part]], 2).tolist()
        for row, n in enumerate(counts):
            # Slowly: own weights by their pooled score, then the others by theirs, then by |W| a.
            first = sorted(range(mask.shape[1]), key=lambda j: keys[row][j])[:n]
            assert set(first) == set(control[part][row].nonzero()[:, 0].tolist())
    assert trimmed and filled and unlike, "rows of every kind were seen, and the pooled scores alone differ"


def test_edit_is_the_mask_as_a_prune(fitted: WandaContrast) -> None:
    edit = fitted.edit(0.1)
    masks = fitted.mask(0.1)
    budget = edit.budget(small_pipeline())
    assert budget.changed == sum(int(m.sum()) for m in masks.values())
    part = fitted.parts_[0]
    before = weight_of(small_pipeline(), part).clone()
    with edit.applied(small_pipeline()):
        assert torch.equal(weight_of(small_pipeline(), part), before.masked_fill(masks[part], 0))
        with pytest.raises(UsageError, match="was changed since the fit"):
            fitted.mask(0.1)
    assert torch.equal(weight_of(small_pipeline(), part), before)


def test_language_models_compare_with_other_sequences() -> None:
    from interp.tasks.memorized import TextItem

    model = subject("llama")
    items = [TextItem(f"{i}", tuple(range(i, i + 8)), 4) for i in (3, 60)]
    others = [TextItem(f"{i}", tuple(range(i, i + 6)), 4) for i in (30, 90, 120)]
    found = WandaContrast(share=0.1).fit(model, items, reference=others)
    assert found.nulls_ == ("prompts",) and len(found.parts_) == 3
    assert found.scores_["n"].eq(2).all()
    mask = found.mask()[found.parts_[1]]
    assert mask.sum(1).max() == 8 and mask.shape == weight_of(model, found.parts_[1]).shape
    with pytest.raises(UsageError, match="is of pipelines; a language model takes reference"):
        WandaContrast(null="paired").fit(model, items)


def test_wrong_arguments_are_told(fitted: WandaContrast) -> None:
    with pytest.raises(UsageError, match=r"share=0\.001 of 64 columns is no weight; write at least 0\.016"):
        fitted.mask(0.001)
    with pytest.raises(UsageError, match="tau=5: sums are of 4 steps"):
        fitted.mask(0.1, tau=5)
    with pytest.raises(UsageError, match="no sums of the null 'empty'; there are paired, prompts"):
        fitted.mask(0.1, null="empty")
    with pytest.raises(UsageError, match=r"items=\[3\]: write some of 0 to 2"):
        fitted.mask(0.1, items=[3])
    with pytest.raises(UsageError, match="rule='best'"):
        WandaContrast("best").fit(small_pipeline(), list(TEXTS))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="needs other items"):
        WandaContrast(null="prompts").fit(small_pipeline(), list(TEXTS))
    with pytest.raises(UsageError, match="not fitted yet"):
        WandaContrast().mask(0.1)
