"""Plans: kinds of control in rows, sufficient sets, areas of dose curves; and what stored tables still give."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import interp
from interp.errors import UsageError
from interp.intervene.ablate import ablate
from interp.measure import auc, smallest
from interp.measure.curves import weights
from interp.measure.effects import Measured, contrast, measure
from interp.measure.outcomes import Outcomes
from interp.measure.plans import Condition, dose, sufficient, with_controls
from interp.models.sites import Head, components
from interp.tasks.base import FixedTask
from tests.measure.test_effects import solvable
from tests.subjects import examples, subject


def test_rows_say_which_control_and_how_near_it_is():
    s = subject("llama")
    task = solvable(s, 4)
    cut = ablate("L0H1 L1H2", "zero", "answer")
    others = components("L2H0 L2H1")
    frame = measure(
        s, task, cut, controls=3, match=["layer", "norm", "entropy", "bottom", "given"], ranking=s.heads(),
        given=others, off_target=(), seed=2,
    )  # fmt: skip
    rows = frame[(frame.metric == "logprob") & (frame.condition == "control")]
    assert rows.groupby("control", sort=False).size().to_dict() == {
        "layer": 3, "norm": 3, "entropy": 3, "bottom": 1, "given": 1,
    }  # fmt: skip
    assert (rows.n_distinct == rows.groupby("control")["draw"].transform("size")).all()
    assert rows[rows.control == "given"]["components"].item() == "L2H0 L2H1"
    assert rows[rows.control == "bottom"]["components"].item() == "L2H2 L2H3"
    assert (rows[rows.control == "layer"]["match_gap"] == 0).all()
    expected = interp.measure.matched(s, cut.components, 3, "norm", data=task, seed=2)
    assert rows[rows.control == "norm"]["match_gap"].tolist() == pytest.approx(expected.gaps)
    assert (frame[frame.condition != "control"]["control"] == "").all()
    # Each kind is held against the cut by itself.
    told = contrast(frame).query("metric == 'logprob'").set_index("control")
    for kind, group in rows.groupby("control"):
        assert told.loc[kind, "control_mean"] == pytest.approx(group["delta"].mean())
        assert told.loc[kind, "n_controls"] == len(group)
    assert told["p_control"].isna().all()


def test_controls_of_two_kinds_that_draw_the_same_heads_are_both_measured():
    s = subject("llama")
    cut = ablate("L0H1", "zero", "answer")
    plan = with_controls(s, cut, controls=1, match=["bottom", "given"], ranking=s.heads(), given=["L2H3"])
    assert plan[1].intervention.components == plan[2].intervention.components
    frame = measure(s, solvable(s, 4), plan, metrics=("nll",), off_target=())
    one, two = frame[frame.condition == "control"]["value"]
    assert one == two and len({c.name for c in plan}) == 3


def test_a_p_value_of_controls_takes_200_draws():
    base = {c: "" for c in ("subject", "task", "role", "mechanism", "locator", "mode", "scope", "reference")}
    base |= {"k": 1, "seed": 0, "metric": "accuracy", "components": "L0H0"}
    for n, wanted in ((199, np.nan), (200, 4 / 201)):
        deltas = np.linspace(-1, 0, n)  # 3 of them are at or below the cut's
        rows = [{**base, "condition": "control", "control": "layer", "delta": d} for d in deltas]
        rows.append({**base, "condition": "cut", "control": "", "delta": deltas[2]})
        row = contrast(pd.DataFrame(rows)).iloc[0]
        assert row["rank"] == 4 and row["p_control"] == pytest.approx(wanted, nan_ok=True)


def test_tables_without_the_newer_columns_are_contrasted_alike():
    s = subject("llama")
    frame = measure(s, solvable(s, 4), ablate("L2H0", "zero", "answer"), controls=3, off_target=())
    old = frame.drop(columns=["control", "kept", "keys", "p_cluster", "match_gap"])
    for column in ("z", "rank", "control_mean"):
        pd.testing.assert_series_equal(contrast(old)[column], contrast(frame)[column])


def test_knockout_is_named_in_rows_and_prose_is_not_asked_for_evidence(monkeypatch):
    from interp.measure.effects import _off_target

    s = subject("llama")
    frame = measure(s, solvable(s, 4), ablate("L2H0", "knockout", "answer"), controls=1)
    assert (frame[frame.condition == "cut"]["keys"] == "evidence, else value").all()
    monkeypatch.setattr(type(s), "has_tokens", True)
    names = [
        [t.name for t in _off_target(s, [Condition(ablate("L2H0", mode, "answer"), "cut")], None)]
        for mode in ("zero", "uniform", "knockout")
    ]
    assert names == [["prose"], ["prose"], []]


def test_a_sufficient_set_keeps_the_top_and_cuts_all_others():
    s = subject("llama")
    ranked = components("L1H0 L1H2 L0H3")
    plan = sufficient(s, ranked, (0, 1, 2), ablate([], "zero", "answer"), controls=3, seed=0)
    assert [(c.condition, c.k) for c in plan if c.draw < 0] == [("keep", k) for k in (0, 1, 2)]
    assert sum(c.condition == "keep_control" for c in plan) == 3  # of L1H1 and L1H3: two, and one
    for c in plan:
        assert len(c.kept) == c.k and not set(c.kept) & set(c.intervention.components)
        assert len(c.kept) + len(c.intervention.components) == 12
        if c.condition == "keep":
            assert c.kept == ranked[: c.k]
        else:
            assert not set(c.kept) & set(ranked[:2]) and c.control == "layer"
            assert sorted(h.layer for h in c.kept) == sorted(h.layer for h in ranked[: c.k])
    task = solvable(s, 4)
    frame = measure(s, task, plan, metrics=("nll",), off_target=())
    row = frame[(frame.condition == "keep") & (frame.k == 1)].iloc[0]
    with s.apply(ablate([h for h in s.heads() if h != Head(1, 0)], "zero", "answer")):
        by_hand = measure(s, task, [], metrics=("nll",), off_target=(), floor="report")
    assert row["kept"] == "L1H0" and row["value"] == pytest.approx(by_hand["value"].item(), abs=1e-5)
    assert row["delta"] > 0.1
    for bad, told in (
        (lambda: sufficient(s, ranked, (4,), ablate([]), controls=0), "sufficient set of 4"),
        (lambda: sufficient(s, components("M1"), (1,), ablate([]), controls=0), "rank heads only"),
    ):
        with pytest.raises(UsageError, match=told):
            bad()


def keeping(values, clean=0.8, metric="accuracy", status="ok"):
    """Rows of a sufficient plan whose values are known."""
    base = {"subject": "s", "task": "t", "mechanism": "", "locator": "", "reference": "", "seed": 0}
    rows = [
        {
            **base,
            "condition": "clean",
            "k": 0,
            "kept": "",
            "value": clean,
            "mode": "",
            "scope": "",
            "keys": "",
        }
    ]
    for k, value, others in values:
        row = {**base, "k": k, "mode": "zero", "scope": "all", "keys": ""}
        rows.append(
            {**row, "condition": "keep", "kept": " ".join(f"L0H{i}" for i in range(k)), "value": value}
        )
        rows += [{**row, "condition": "keep_control", "kept": "", "value": v} for v in others]
    return pd.DataFrame(rows).assign(metric=metric, status=status)


def test_the_smallest_sufficient_set_is_the_first_that_keeps_the_share():
    frame = keeping([(5, 0.8, [0.1, 0.3]), (1, 0.2, []), (2, 0.73, [0.2, 0.4]), (3, 0.5, [])])
    row = smallest(frame).iloc[0]
    assert (row["k"], row["kept"], row["value"], row["wanted"]) == (2, "L0H0 L0H1", 0.73, pytest.approx(0.72))
    assert not row["stays"]  # three heads keep less
    assert (row["control_mean"], row["control_best"], row["n_controls"]) == (pytest.approx(0.3), 0.4, 2)
    whole = smallest(frame, share=1.0).iloc[0]
    assert whole["k"] == 5 and whole["stays"] and whole["control_best"] == 0.3
    low = smallest(keeping([(1, 0.2, [])])).iloc[0]
    assert np.isnan(low["k"]) and low["kept"] == ""
    assert np.isnan(smallest(keeping([(1, 0.8, [])], status="at chance")).iloc[0]["k"])
    # Less is better: 1.0 / 0.9 may be reached from above.
    nll = smallest(keeping([(1, 3.0, []), (2, 1.1, [2.0, 1.5])], clean=1.0, metric="nll"), metric="nll").iloc[
        0
    ]
    assert nll["k"] == 2 and nll["control_best"] == 1.5
    with pytest.raises(UsageError, match="measure a plan by `sufficient`"):
        smallest(frame[frame.condition != "keep"])
    with pytest.raises(UsageError, match="share=0"):
        smallest(frame, share=0)
    # 0.9 of a negative number lies above it.
    with pytest.raises(UsageError, match="negative"):
        smallest(keeping([(1, -2.0, [])], clean=-2.0, metric="logprob"), metric="logprob")


def test_the_area_of_a_dose_curve_is_the_trapezoid_over_log_k():
    ks = (1, 2, 5, 10)
    heights = np.array([0.9, 0.5, 0.4, 0.1])
    assert weights(ks) @ heights == pytest.approx(np.trapezoid(heights, np.log(ks)) / np.log(10))
    assert weights(ks).sum() == pytest.approx(1)
    s, into = subject("llama"), {}
    task = solvable(s)
    plan = dose(
        s, components("L1H0 L2H1 L0H3 L1H1"), (1, 2, 4), ablate([], "zero", "answer"),
        controls=2, match=["layer", "norm"], data=task,
    )  # fmt: skip
    frame = measure(s, task, plan, off_target=(), into=into).query("metric == 'logprob'")
    found = auc(into["solvable"], "logprob").set_index(["what", "control"])
    curve = frame[frame.condition == "cut"].sort_values("k")["value"].to_numpy()
    assert found.loc[("cut", ""), "value"] == pytest.approx(weights((1, 2, 4)) @ curve)
    assert found.loc[("clean", ""), "value"] == pytest.approx(
        frame[frame.condition == "clean"]["value"].item()
    )
    for kind in ("layer", "norm"):
        mean = frame[frame.control == kind].groupby("k")["value"].mean().sort_index().to_numpy()
        assert found.loc[("control", kind), "value"] == pytest.approx(weights((1, 2, 4)) @ mean)
        apart = found.loc[("cut - control", kind)]
        assert apart["value"] == pytest.approx(weights((1, 2, 4)) @ (curve - mean))
        assert apart["ci_lo"] < apart["value"] < apart["ci_hi"]
    for bad, told in (
        (lambda: auc(into["solvable"], "f1"), "no metric 'f1'"),
        (
            lambda: auc(Measured(into["solvable"].outcomes, into["solvable"].plan[:3], "ok")),
            "at each of two ks",
        ),
    ):
        with pytest.raises(UsageError, match=told):
            bad()


def test_the_interval_of_an_area_is_over_clusters_and_absent_at_chance():
    from dataclasses import replace

    data = [replace(e, cluster="ab"[i // 10]) for i, e in enumerate(examples((12,) * 20))]
    plan = (Condition(None, "clean"), *(Condition(ablate(f"L0H{k}"), "cut", k) for k in (1, 2)))
    values = {"clean": {"accuracy": np.ones(20)}}
    values |= {c.name: {"accuracy": np.repeat([0.0, 1.0], 10)} for c in plan[1:]}
    found = auc(Measured(Outcomes(data, values), plan, "ok")).set_index("what")
    # Two clusters, each of one kind: the area of a resample is 0, 1/2 or 1.
    assert found.loc["cut", ["value", "ci_lo", "ci_hi"]].tolist() == [0.5, 0.0, 1.0]
    at_chance = auc(Measured(Outcomes(data, values), plan, "at chance")).set_index("what")
    assert np.isnan(at_chance.loc["cut", "ci_lo"]) and at_chance.loc["clean", "ci_lo"] == 1.0


def test_examples_that_share_prefixes_are_knocked_out_as_alone():
    """The KV cache of what examples share, and masks of branches on it."""
    from dataclasses import replace

    s = subject("qwen3")
    base = examples((60,))[0]
    data = [
        replace(base, ids=(*base.ids[: 40 + 3 * i], *range(5 * i, 5 * i + 8)), cluster=str(i))
        for i in range(4)
    ]
    plan = [ablate("L0H1 L1H2", "knockout", "answer"), ablate("L1H0", "knockout", "all", keys=(44,))]
    conditions = {"clean": None, **{str(i): c for i, c in enumerate(plan)}}
    together = interp.measure.evaluate(s, data, conditions)
    assert together.prefill_tokens < 3 * sum(len(e.ids) for e in data)
    for i, e in enumerate(data):
        alone = interp.measure.evaluate(s, [e], conditions)
        for name in conditions:
            for metric in ("logprob", "nll"):
                wanted = alone.values[name][metric][0]
                assert together.values[name][metric][i] == pytest.approx(wanted, abs=1e-4)
            assert name == "clean" or alone.values[name]["nll"][0] != alone.values["clean"]["nll"][0]


def test_tasks_are_kept_apart_in_what_measure_hands_out():
    s, into = subject("llama"), {}
    other = FixedTask(examples((20, 21)), name="other")
    measure(s, solvable(s, 4), ablate("L1H2"), controls=0, off_target=[other], into=into)
    assert set(into) == {"solvable", "other"} and into["other"].status == "at chance"
    assert len(into["other"].outcomes.examples) == 2
