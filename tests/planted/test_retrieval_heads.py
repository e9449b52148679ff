"""`interp.RetrievalHeads` on planted models: it finds what is there, and the cut of what it found shows it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import numpy as np
import pandas as pd
import pytest

import interp
from interp.errors import NoAcceptedExample
from interp.locate.greedy import Decoded
from interp.locate.scores import copying
from interp.models.sites import Component, Head
from interp.models.subject import CausalLM
from interp.tasks.base import Example, FixedTask, Span

from .naive import MUTANTS, decode, forward, judge, mean_score, score_steps
from .placement import Place
from .retrieval import CONTEXT, Planted, plant, planted_task

KINDS = ("gpt2", "llama")
SEEDS = range(4)
LENGTH = 60
THRESHOLD = 0.5


@dataclass(frozen=True)
class Case:
    """A planted model, loaded, with the locator fitted on one set of needles."""

    planted: Planted
    model: CausalLM
    task: FixedTask
    heads: interp.RetrievalHeads

    @property
    def found(self) -> tuple[Component, ...]:
        """As many of the best heads as there are planted ones."""
        return self.heads.top(len(self.planted.retrieval))


def fit(planted: Planted, task: FixedTask, mode: Literal["greedy", "forced"] = "greedy") -> Case:
    model = interp.load(planted.module, tokenizer=None)
    return Case(planted, model, task, interp.RetrievalHeads(mode=mode).fit(model, task))


@pytest.fixture(scope="module", params=[(k, s) for k in KINDS for s in SEEDS], ids=lambda p: f"{p[0]}-{p[1]}")
def case(request: pytest.FixtureRequest) -> Case:
    kind, seed = request.param
    planted = plant(kind, seed=seed)
    return fit(planted, planted_task(planted, 8, 0, LENGTH))


def scores(heads: interp.RetrievalHeads, method: str = "copy") -> dict[Place, float]:
    own = heads.scores_[heads.scores_.method == method]
    return dict(zip(zip(own["layer"], own["head"], strict=True), own["score"], strict=True))


def places(found: Sequence[Component]) -> set[Place]:
    return {(part.layer, part.head) for part in found if isinstance(part, Head)}


def heads_of(chosen: Iterable[Place]) -> list[Head]:
    return [Head(layer, head) for layer, head in sorted(chosen)]


def accuracy(effects: pd.DataFrame, condition: str) -> np.ndarray:
    return effects[(effects.metric == "accuracy") & (effects.condition == condition)].value.to_numpy()


@pytest.mark.parametrize("method", ["copy", "copy_position"])
def test_finds_exactly_the_planted_heads(case: Case, method: str) -> None:
    verdict = judge(scores(case.heads, method), case.planted, THRESHOLD)
    assert (verdict.precision, verdict.recall, verdict.lowest) == (1.0, 1.0, 1.0)
    assert verdict.highest < 0.4
    assert verdict.sound
    assert places(case.heads.top(len(case.planted.retrieval), method)) == case.planted.retrieval
    assert places(case.heads.select(THRESHOLD, method)) == case.planted.retrieval


def test_scores_equal_the_naive_loop(case: Case) -> None:
    examples = case.task.examples(None)
    naive = mean_score(examples, [forward(case.planted, e)[0] for e in examples])
    assert scores(case.heads) == pytest.approx(naive, abs=1e-6)
    assert case.heads.acceptance_ == 1.0
    assert case.heads.instances_.exact.all()
    assert (case.heads.instances_.passes == 1).all()


def test_frame_says_what_the_heads_are(case: Case) -> None:
    planted, frame = case.planted, case.heads.scores_
    assert len(frame) == 2 * planted.n_layers * planted.n_heads
    shared = planted.n_heads // planted.n_kv_heads
    assert (frame.kv_head == frame["head"] // shared).all()
    assert (frame.n == 8).all()
    assert (frame[[(r.layer, r["head"]) in planted.retrieval for _, r in frame.iterrows()]].se == 0).all()
    groups = case.heads.groups_
    best = groups[(groups.method == "copy") & (groups["max"] == 1.0)]
    assert set(zip(best.layer, best.kv_head, strict=True)) == {(i, h // shared) for i, h in planted.retrieval}


@pytest.mark.parametrize("scope", ["all", "answer"])
def test_cut_destroys_recall_and_matched_cuts_do_not(case: Case, scope: str) -> None:
    """Measured on other needles than those the heads were chosen on."""
    task = planted_task(case.planted, 8, 1, LENGTH)
    cut = interp.ablate(case.found, mode="zero", scope=scope)
    effects = interp.measure(case.model, task, cut, controls=4, off_target=())
    assert accuracy(effects, "clean").tolist() == [1.0]
    assert accuracy(effects, "cut")[0] == 0.0
    row = effects[(effects.metric == "accuracy") & (effects.condition == "cut")].iloc[0]
    assert (row.delta, row.ci_hi, row.k) == (-1.0, -1.0, len(case.planted.retrieval))
    assert row.p == pytest.approx(2 / 2**8)
    control = effects[(effects.metric == "accuracy") & (effects.condition == "control")]
    assert len(control) > 0
    # A draw may reach down to a layer with supporting heads where the own layer has too few heads left.
    support = {repr(h) for h in heads_of(case.planted.support)}
    harmless = control[[not support & set(c.split()) for c in control.components]]
    assert (harmless.value == 1.0).all()
    assert (harmless.delta == 0.0).all()


def test_cutting_decoys_does_nothing(case: Case) -> None:
    decoys = [Head(layer, head) for layer, head in case.planted.decoys.values()]
    effects = interp.measure(
        case.model, case.task, interp.ablate(decoys, mode="zero"), controls=0, off_target=()
    )
    assert accuracy(effects, "cut")[0] == 1.0


def test_supporting_heads_matter_in_the_context_only(case: Case) -> None:
    support = heads_of(case.planted.support)
    for scope, value in (("all", 0.0), ("answer", 1.0)):
        cut = interp.ablate(support, mode="zero", scope=scope)
        effects = interp.measure(case.model, case.task, cut, controls=0, off_target=())
        assert accuracy(effects, "cut")[0] == value, scope


@pytest.mark.parametrize("mode", ["uniform", "mean"])
def test_other_modes_destroy_recall_too(case: Case, mode: Literal["uniform", "mean"]) -> None:
    cut = interp.ablate(case.found, mode=mode, scope="answer")
    effects = interp.measure(case.model, case.task, cut, controls=0, off_target=())
    assert accuracy(effects, "cut")[0] <= 0.25


@pytest.mark.parametrize("kind", KINDS)
def test_silent_heads_are_found_and_the_cut_tells_them_apart(kind: str) -> None:
    planted = plant(kind, seed=2, n_planted=2, n_silent=2)
    case = fit(planted, planted_task(planted, 8, 0, LENGTH))
    assert places(case.heads.top(4)) == planted.retrieval | planted.silent
    for cut_places, value in ((planted.silent, 1.0), (planted.retrieval, 0.0)):
        cut = interp.ablate(heads_of(cut_places), mode="zero")
        effects = interp.measure(case.model, case.task, cut, controls=0, off_target=())
        assert accuracy(effects, "cut")[0] == value


@pytest.mark.parametrize("kind", KINDS)
def test_one_fixed_distance_deceives(kind: str) -> None:
    """A head that looks a fixed distance back is taken for a retrieval head at that distance, and at no other."""
    planted = plant(kind, seed=0)
    place = planted.decoys["offset"]
    for distance, expected in ((planted.offsets["offset"], 1.0), (40, 0.0)):
        case = fit(planted, planted_task(planted, 4, 0, LENGTH, distance=distance))
        assert scores(case.heads)[place] == expected
        assert scores(case.heads, "copy_position")[place] == expected


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("noise", [0.1, 0.3, 0.6])
def test_forced_scores_equal_the_naive_loop_at_any_noise(kind: str, noise: float) -> None:
    planted = plant(kind, seed=1, noise=noise)
    case = fit(planted, planted_task(planted, 8, 0, LENGTH), mode="forced")
    examples = case.task.examples(None)
    naive = mean_score(examples, [forward(planted, e)[0] for e in examples])
    assert scores(case.heads) == pytest.approx(naive, abs=1e-6)


@pytest.mark.parametrize(("kind", "seed"), [("gpt2", 0), ("llama", 2)])
def test_greedy_scores_equal_token_by_token_decoding(kind: str, seed: int) -> None:
    """A model that gets some needles wrong: drafts are refuted, outputs run on, instances are rejected."""
    planted = plant(kind, seed=seed, noise=0.15)
    case = fit(planted, planted_task(planted, 6, 0, LENGTH))
    kept = []
    for example, row in zip(case.task.examples(None), case.heads.instances_.itertuples(), strict=True):
        m = len(example.answer_ids)
        output, tops = decode(planted, example, m + 16)
        right = tuple(output[:m]) == example.answer_ids
        if right:
            output, tops = output[:m], tops[:m]
        assert row.output == " ".join(map(str, output))
        assert row.exact == right
        recalled = len(set(output) & set(example.answer_ids)) / m
        assert row.recall == pytest.approx(recalled)
        assert row.accepted == (recalled > 0.5)
        if recalled > 0.5:
            kept.append(score_steps(example, output, tops))
    assert 0 < case.heads.instances_.exact.sum() < 6
    assert case.heads.acceptance_ == len(kept) / 6
    assert len(kept) < 6
    assert np.array(list(scores(case.heads).values())) == pytest.approx(
        np.mean(kept, axis=0).ravel(), abs=1e-6
    )


@pytest.mark.parametrize("kind", KINDS)
def test_difficulty_curve_ends_in_failure(kind: str) -> None:
    recalls, acceptances = [], []
    for noise in (0.0, 0.15, 0.25, 0.6):
        recall, acceptance = [], []
        for seed in range(2):
            planted = plant(kind, seed=seed, noise=noise)
            try:
                case = fit(planted, planted_task(planted, 4, 0, LENGTH))
            except NoAcceptedExample as why:
                assert "recalls none of 4 needles" in str(why)
                recall.append(0.0)
                acceptance.append(0.0)
                continue
            verdict = judge(scores(case.heads), planted, THRESHOLD)
            assert not verdict.caught, "at no noise is a decoy taken for a retrieval head"
            recall.append(verdict.recall)
            acceptance.append(case.heads.acceptance_)
        recalls.append(np.mean(recall))
        acceptances.append(np.mean(acceptance))
    print(f"\n{kind}: recall {np.round(recalls, 2)}, acceptance {np.round(acceptances, 2)}")
    assert recalls[:2] == [1.0, 1.0]
    assert acceptances[0] == 1.0
    assert all(a >= b for a, b in pairwise(acceptances))
    assert recalls[-1] == acceptances[-1] == 0.0


def test_full_context() -> None:
    planted = plant("llama", seed=4)
    case = fit(planted, planted_task(planted, 4, 0, CONTEXT - 5))
    assert judge(scores(case.heads), planted, THRESHOLD).sound


Score = Callable[..., np.ndarray]
REAL = copying.copy_score


def _shift_rows(decoded: Decoded, example: Example, **_: object) -> np.ndarray:
    return REAL(Decoded(decoded.output[:-1], decoded.argmax[1:], decoded.exact), example)


def _shift_needle(decoded: Decoded, example: Example, **_: object) -> np.ndarray:
    spans = tuple(
        Span(s.start + 1, s.end + 1, s.role, s.item) if s.role == "value" else s for s in example.spans
    )
    return REAL(decoded, replace(example, spans=spans))


def _forget_token(decoded: Decoded, example: Example, **_: object) -> np.ndarray:
    return score_steps(example, decoded.output, decoded.argmax, match=False)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("name", "mutant"),
    [
        ("row_off_by_one", _shift_rows),
        ("needle_off_by_one", _shift_needle),
        ("no_token_match", _forget_token),
    ],
)
def test_a_broken_score_is_noticed(
    kind: str, name: str, mutant: Score, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same mistakes as in `MUTANTS`, made in the locator: the checks above must fail for each."""
    assert name in MUTANTS
    planted = plant(kind, seed=3)
    task = planted_task(planted, 8, 0, LENGTH)
    assert judge(scores(fit(planted, task).heads), planted, THRESHOLD).sound
    monkeypatch.setattr(copying, "copy_score", mutant)
    verdict = judge(scores(fit(planted, task).heads), planted, THRESHOLD)
    assert not verdict.sound
    if name == "row_off_by_one":
        assert verdict.missed == planted.retrieval
        assert planted.decoys["duplicate"] in verdict.caught
    if name == "no_token_match":
        assert {planted.decoys["duplicate"], planted.decoys["ahead"]} <= verdict.caught
    if name == "needle_off_by_one":
        assert verdict.lowest < 0.8
