"""Effects: paired with the clean run, beside matched and distinct controls, under the floor rule."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

import interp
from interp.errors import AtChance, NoAcceptedExample, UsageError
from interp.intervene.ablate import ablate
from interp.measure.controls import matched_heads
from interp.measure.effects import (
    AT_CHANCE,
    COLUMNS,
    at_chance,
    contrast,
    dose,
    floor_metric,
    guess,
    measure,
)
from interp.measure.metrics import score_answer
from interp.measure.outcomes import evaluate
from interp.measure.plans import CLEAN
from interp.measure.stats import proportion_ci
from interp.models.batch import Batch
from interp.models.sites import Head, components
from interp.tasks.base import Example, FixedTask, Span
from tests.subjects import examples, subject


def solvable(s, n=8, seed=0, length=20):
    """Examples whose answer is what the model says, so that the clean accuracy is 1."""
    out = []
    for i, e in enumerate(examples((length,) * n, seed)):
        said = tuple(s.generate(Batch.of_ids([e.ids]), 2)[0])
        others = [(said[0], (said[1] + step) % 256) for step in range(1, 20)]
        out.append(
            replace(
                e,
                answer_ids=said,
                foil_ids=others[0],
                candidates=(said, *others),
                chance=0.05,
                corrupt={},
                cluster=str(i // 2),
            )
        )
    return FixedTask(out, name="solvable")


def test_rows_say_what_was_cut_and_pair_with_clean():
    s = subject("llama")
    task = solvable(s)
    cut = ablate("L1H2 L2H0", "zero", "answer")
    frame = measure(s, task, cut, controls=4, off_target=(), mechanism="m", locator="l", seed=3)
    assert list(frame.columns) == COLUMNS
    assert (frame["components"][frame["condition"] == "cut"] == "L1H2 L2H0").all()
    assert set(frame["condition"]) == {"clean", "cut", "control"} and (frame["n_clusters"] == 4).all()
    clean = frame[(frame.condition == "clean") & (frame.metric == "accuracy")].iloc[0]
    assert clean.value == 1.0 and clean.delta == 0.0 and clean.ci_lo < 1.0
    # The cut's row, by hand: one run under the cut.
    with s.apply(cut):
        by_hand = []
        for e in task.examples(s):
            logits = s.run([e]).logits[0]
            by_hand.append(float(logits[1, e.answer_ids[1]] - logits[1, e.foil_ids[1]]))
    row = frame[(frame.condition == "cut") & (frame.metric == "logit_diff")].iloc[0]
    assert row.value == pytest.approx(np.mean(by_hand), abs=1e-4)
    base = frame[(frame.condition == "clean") & (frame.metric == "logit_diff")].iloc[0]
    assert row.delta == pytest.approx(row.value - base.value, abs=1e-9)
    assert row.ci_lo <= row.delta <= row.ci_hi


def naive(s, data, plan):
    """Metrics of every example under every condition, by a run of its own each."""
    out = {}
    for name, item in plan.items():
        with s.apply(*([item] if item is not None else [])):
            found = [score_answer(s.run([e]).logits[0], e) for e in data]
        out[name] = {metric: [f[metric] for f in found] for metric in found[0]}
    return out


def branching(s, n):
    """Examples over one context: questions of two tokens behind prefixes of three lengths."""
    generator = torch.Generator().manual_seed(5)
    context = torch.randint(1, 250, (40,), generator=generator).tolist()
    out = []
    for i in range(n):
        end = (40, 25, 33)[i % 3]
        ids = (*context[:end], 7, i + 1)
        answer, foil = (3, 10 + i), (3, 60 + i)
        spans = (Span(2, 4, "key", 0), Span(4, 6, "value", 0), Span(end, end + 2, "question"))
        out.append(
            Example(
                "branching", ids, answer, spans=spans, foil_ids=foil, candidates=(answer, foil), chance=0.5
            )
        )
    return out


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "neox", "mistral"])
@pytest.mark.parametrize("scope", ["answer", "question"])
def test_examples_that_begin_alike_share_what_no_condition_edits(family, scope):
    s = subject(family)
    data = branching(s, 7)
    plan = {"clean": None, **{h: ablate(h, "zero", scope) for h in ("L0H1", "L1H3", "L2H0")}}
    plan["uniform"] = ablate("L1H0 L1H1", "uniform", scope)
    shared = evaluate(s, data, plan)
    for name, slow in naive(s, data, plan).items():
        for metric, values in shared.values[name].items():
            np.testing.assert_allclose(values, slow[metric], atol=1e-4)
    # The context of 40 tokens once, then questions (their first token is one of three where no cut edits it), and what
    # cuts edit once a cut.
    own, questions = (1, 3 + 7) if scope == "answer" else (2, 2 * 7)
    assert shared.prefill_tokens == 40 + questions + 4 * 7 * own


def test_nothing_is_shared_before_what_a_condition_edits():
    s = subject("llama")
    data = branching(s, 4)
    plan = {"clean": None, "cut": ablate("L1H3", "zero", "value")}
    shared = evaluate(s, data, plan)
    for name, slow in naive(s, data, plan).items():
        np.testing.assert_allclose(shared.values[name]["logprob"], slow["logprob"], atol=1e-4)
    with s.apply(ablate("L0H0", "zero", "value")):
        under = evaluate(s, data, {"clean": None})
        by_hand = naive(s, data, {"clean": None})
    np.testing.assert_allclose(under.values["clean"]["logprob"], by_hand["clean"]["logprob"], atol=1e-4)
    assert under.prefill_tokens == sum(len(e.ids) for e in data)


def test_outcomes_are_a_frame_with_what_examples_say_of_themselves():
    s = subject("llama")
    data = [
        replace(e, meta={"depth": i / 2, "list": [1]}, cluster="c") for i, e in enumerate(branching(s, 2))
    ]
    frame = evaluate(s, data, {"clean": None, "cut": ablate("L1H3", "zero", "answer")}).frame()
    assert frame[["example", "condition", "depth", "cluster", "chance"]].to_numpy().tolist() == [
        [i, c, i / 2, "c", 0.5] for c in ("clean", "cut") for i in (0, 1)
    ]
    assert "list" not in frame and frame["logprob"].notna().all()


@pytest.mark.parametrize("scope", ["answer", "all", "value"])
def test_shared_prefix_and_one_run_each_give_the_same_numbers(scope):
    s = subject("qwen3")
    data = solvable(s, 4).examples(s)
    plan = {"clean": None, **{h: ablate(h, "zero", scope) for h in ("L0H1", "L1H3", "L2H0")}}
    fast = evaluate(s, data, plan)
    for name, slow in naive(s, data, plan).items():
        for metric, values in fast.values[name].items():
            np.testing.assert_allclose(values, slow[metric], atol=1e-4)
    # A cut runs the prompt anew from its first column on: the last token alone for the scope answer.
    rerun = {
        "answer": len(data),
        "all": sum(len(e.ids) for e in data),
        "value": sum(len(e.ids) - e.spans_of("value", 0)[0].start for e in data),
    }
    assert fast.prefill_tokens == sum(len(e.ids) for e in data) + 3 * rerun[scope]


def test_a_mean_cut_without_reference_names_the_measured_task():
    s = subject("llama")
    frame = measure(s, solvable(s, 4), ablate("L1H2", "mean", "answer"), controls=0, off_target=())
    assert frame[frame.condition == "cut"]["reference"].str.startswith("solvable(").all()


def test_the_floor_rule_reports_no_effect_at_chance():
    s = subject("llama")
    task = FixedTask(examples((20, 21, 22, 23)), name="hopeless")
    with pytest.raises(AtChance, match="at chance on hopeless"):
        measure(s, task, ablate("L1H2"), controls=1, off_target=())
    frame = measure(s, task, ablate("L1H2"), controls=1, off_target=(), floor="mark")
    assert (frame.status == AT_CHANCE).all()
    assert frame[frame.condition != "clean"][["delta", "ci_lo", "ci_hi", "p"]].isna().all(axis=None)


def test_the_floor_is_judged_among_candidates_where_there_are_some():
    s = subject("llama")
    said = list(solvable(s, 12).examples(s))
    unasked = []  # an answer that greedy decoding never gives, and that still beats its foil each time
    for e in said:
        logits = s.run([e]).logits[0, 0]
        low, high = logits.argsort()[[100, 200]].tolist()
        pair = ((high,), (low,))
        unasked.append(replace(e, answer_ids=pair[0], foil_ids=pair[1], candidates=pair, chance=0.5))
    frame = measure(s, FixedTask(unasked, name="unasked"), ablate("L1H2"), controls=1, off_target=())
    clean = frame[frame.condition == "clean"].set_index("metric")["value"]
    assert clean["accuracy"] == 0.0 and clean["rank"] == 1.0 and (frame.status == "ok").all()
    told = replace(said[0], candidates=(), foil_ids=(), chance=0.05)
    assert floor_metric(evaluate(s, said[:1], {CLEAN: None}), ("nll",)) == "choice"
    assert floor_metric(evaluate(s, [told], {CLEAN: None}), ("nll",)) == ""
    # A choice that is wrong each time is at chance, whatever metric is asked for.
    wrong = [
        replace(e, answer_ids=e.foil_ids, foil_ids=e.answer_ids, candidates=e.candidates[::-1])
        for e in unasked
    ]
    with pytest.raises(AtChance, match=r"accuracy among candidates 0\.00"):
        measure(
            s,
            FixedTask(wrong, name="wrong"),
            ablate("L1H2"),
            controls=1,
            metrics=("logit_diff",),
            off_target=(),
        )


def test_controls_match_layers_are_distinct_and_never_chosen():
    s = subject("llama")  # 3 layers of 4 heads
    chosen = components("L0H1 L0H2 L2H3")
    sets = matched_heads(s, chosen, 10, seed=1)
    assert len(sets) == len(set(sets)) == 3  # C(2, 2) x C(3, 1): enumerated, and fewer than asked for
    for drawn in sets:
        assert not set(drawn) & set(chosen)
        assert sorted(h.layer for h in drawn) == [0, 0, 2]
    assert matched_heads(s, chosen, 2, seed=1) == sets[:2]
    large = matched_heads(s, components("L1H0"), 2, seed=0)
    assert len(set(large)) == 2 and all(h.layer == 1 for d in large for h in d)


def test_controls_overflow_to_the_nearest_layer():
    s = subject("llama")
    chosen = [Head(0, h) for h in range(4)]
    for drawn in matched_heads(s, chosen, 5, seed=0):
        assert [h.layer for h in drawn] == [1, 1, 1, 1]
    with pytest.raises(UsageError, match="too few are left"):
        matched_heads(s, s.heads()[:7], 1)


def test_a_dose_curve_never_draws_a_ranked_head():
    s = subject("llama")
    ranked = components("L1H0 L2H1 L0H3")
    plan = dose(s, ranked, (1, 3), ablate([], "zero", "answer"), controls=3, seed=0)
    assert [c.k for c in plan if c.condition == "cut"] == [1, 3]
    for c in plan:
        if c.condition == "control":
            assert not set(c.intervention.components) & set(ranked)
    with pytest.raises(UsageError, match="dose of 4"):
        dose(s, ranked, (4,), ablate([]), controls=0)


def test_contrast_gives_z_and_rank_and_no_p_value():
    s = subject("llama")
    frame = measure(s, solvable(s), ablate("L2H0", "zero", "answer"), controls=3, off_target=())
    row = contrast(frame).query("metric == 'logprob'").iloc[0]
    drawn = frame[(frame.condition == "control") & (frame.metric == "logprob")].delta.to_numpy()
    assert len(drawn) == 3
    assert row.z == pytest.approx((row.delta - drawn.mean()) / drawn.std(ddof=1))
    assert row["rank"] == 1 + (drawn <= row.delta).sum()


def test_contrast_finds_controls_in_a_table_that_was_read_from_text():
    """Empty names come back as missing values."""
    s = subject("gpt2")
    frame = measure(s, solvable(s), ablate("L0H1", "mean"), controls=2, metrics=["logprob"], off_target=())
    back = pd.read_csv(io.StringIO(frame.to_csv(index=False)))
    assert contrast(back)["n_controls"].tolist() == contrast(frame)["n_controls"].tolist() == [2]
    np.testing.assert_allclose(contrast(back)["z"], contrast(frame)["z"])


def test_contrast_refuses_cuts_whose_controls_cannot_be_told_apart_and_ranks_nothing_at_chance():
    s = subject("llama")
    from interp.measure.effects import with_controls

    two = [c for h in ("L1H2", "L2H0") for c in with_controls(s, ablate(h, "zero", "answer"), controls=2)]
    frame = measure(s, solvable(s), two, off_target=())
    with pytest.raises(UsageError, match="two cuts of 1"):
        contrast(frame)
    hopeless = FixedTask(examples((20, 21, 22, 23)), name="hopeless")
    at_floor = measure(s, hopeless, ablate("L1H2"), controls=2, off_target=(), floor="mark")
    assert contrast(at_floor)[["z", "rank"]].isna().all(axis=None)


def test_the_floor_rule_holds_for_open_answers_too():
    s = subject("llama")
    data = [replace(e, candidates=(), foil_ids=(), chance=0.05) for e in examples((20, 21, 22))]
    with pytest.raises(AtChance):
        measure(s, FixedTask(data, name="open"), ablate("L1H2"), controls=1, off_target=())


def test_one_reference_serves_a_whole_measurement(monkeypatch):
    from interp.intervene.reference import Reference

    s, made = subject("llama"), []
    means = Reference._means
    monkeypatch.setattr(Reference, "_means", lambda self, *a: made.append(1) or means(self, *a))
    measure(s, solvable(s, 4), ablate("L1H2", "mean", "answer"), controls=3, off_target=())
    assert len(made) == 1


def test_known_to_keeps_what_is_answered_right_and_refuses_an_empty_set():
    s = subject("llama")
    right, wrong = solvable(s, 3).examples(s), examples((20, 21))
    known = interp.measure.known_to(s, FixedTask([*wrong, *right], name="mixed"))
    assert [e.ids for e in known.examples(s)] == [e.ids for e in right]
    with pytest.raises(NoAcceptedExample, match="none of the 2 examples of wrong"):
        interp.known_to(s, FixedTask(wrong, name="wrong"))


def test_bad_requests_say_what_to_write():
    s = subject("llama")
    with pytest.raises(UsageError, match="metrics are accuracy"):
        measure(s, solvable(s, 2), ablate("L0H0"), metrics=["f1"])
    with pytest.raises(UsageError, match="heads 0 to 3"):
        interp.measure(s, solvable(s, 2), ablate("L0H4"))
    with pytest.raises(UsageError, match="controls=0"):
        interp.measure(s, solvable(s, 2), ablate("M1"), off_target=())
    with pytest.raises(NoAcceptedExample):
        evaluate(s, [], {"clean": None})


def test_the_global_random_state_is_left_alone(rng_untouched):
    s = subject("llama")
    measure(s, solvable(s, 4), ablate("L1H2", "resample", "answer"), controls=2, off_target=())
    assert torch.is_grad_enabled()


def test_the_floor_of_a_choice_counts_candidates_that_share_the_token_looked_at():
    """Three of four candidates begin alike, so a guess is right three times of four: no better is at chance."""
    s = subject("llama")
    asked = []
    for i, e in enumerate(solvable(s, 12).examples(s)):
        logits = s.run([e]).logits[0, 0]
        worst, best = (int(t) for t in logits.argsort()[[0, -1]])
        # Right nine times of twelve: less than the interval can tell from .75, far above one in four.
        first, other = (best, worst) if i < 9 else (worst, best)
        answer, *others = (first, 5), (first, 6), (first, 7), (other, 5)
        asked.append(
            replace(e, answer_ids=answer, foil_ids=others[2], candidates=(answer, *others), chance=0.25)
        )
    outcomes = evaluate(s, asked, {CLEAN: None})
    assert outcomes.values[CLEAN]["choice"].mean() == 0.75
    assert proportion_ci(outcomes.values[CLEAN]["choice"], outcomes.clusters)[0] > 0.25
    assert guess(asked, "choice") == 0.75 and guess(asked, "accuracy") == 0.25
    assert at_chance(outcomes)
