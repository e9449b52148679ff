"""Curves of recall on planted outcomes: points, intervals, slopes, primacy and recency, recovery."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats as reference

from interp.errors import UsageError
from interp.measure.outcomes import Outcomes
from interp.measure.recall_curves import BINS, POINTS, curve, ends, recovery, slope
from interp.tasks.base import Example


def planted(p_of: dict[int, float], n: int = 40, **columns: object) -> pd.DataFrame:
    """`n` rows at each position, of which the share `p_of[position]` is right; every row is a cluster of its own."""
    rows = [
        {"position": x, "accuracy": float(i < round(p * n)), "chance": 1 / len(p_of), "cluster": f"{x}:{i}"}
        for x, p in p_of.items()
        for i in range(n)
    ]
    return pd.DataFrame(rows).assign(**columns)


def test_each_position_is_a_point_with_its_own_share() -> None:
    wanted = {1: 0.9, 2: 0.5, 3: 0.25, 4: 0.75}
    got = curve(planted(wanted))
    assert list(got.columns[:7]) == ["x", "value", "ci_lo", "ci_hi", "n", "n_clusters", "chance"]
    assert got["x"].tolist() == [1, 2, 3, 4]
    assert got["value"].tolist() == pytest.approx(list(wanted.values()))
    assert set(got["n"]) == set(got["n_clusters"]) == {40} and set(got["chance"]) == {0.25}
    exact = reference.binomtest(36, 40).proportion_ci()
    assert (got["ci_lo"][0], got["ci_hi"][0]) == pytest.approx((exact.low, exact.high), abs=0.01)


def test_clusters_are_the_unit_and_rows_of_one_move_together() -> None:
    once = planted({1: 0.5}, n=20)
    ten = pd.concat([once] * 10, ignore_index=True)
    a, b = curve(once).iloc[0], curve(ten).iloc[0]
    assert (b["n"], b["n_clusters"]) == (200, 20)
    assert (b["ci_lo"], b["ci_hi"]) == pytest.approx((a["ci_lo"], a["ci_hi"]), abs=1e-9)


def test_other_metrics_are_bootstrapped_and_have_no_chance() -> None:
    rng = np.random.default_rng(0)
    frame = planted({1: 0.5, 2: 0.5}, n=100)
    frame["logit_diff"] = np.where(frame["position"] == 1, 2.0, -1.0) + rng.normal(size=200)
    got = curve(frame, metric="logit_diff")
    assert got["value"].tolist() == pytest.approx([2, -1], abs=0.3)
    assert (got["ci_hi"] - got["ci_lo"]).tolist() == pytest.approx([2 * 1.96 / 10] * 2, abs=0.1)
    assert got["chance"].isna().all()


def test_a_continuous_quantity_is_binned_into_equal_shares() -> None:
    rng = np.random.default_rng(0)
    depth = rng.random(800)
    frame = pd.DataFrame({"depth": depth, "accuracy": (depth > 0.5).astype(float), "chance": 0.1})
    frame["cluster"] = [str(i) for i in range(800)]
    got = curve(frame, by="depth")
    assert len(got) == BINS and set(got["n"]) == {100}
    assert (got["x_lo"][1:].to_numpy() > got["x_hi"][:-1].to_numpy()).all()
    assert got["x"].between(got["x_lo"], got["x_hi"]).all()
    assert got["value"].iloc[0] == 0 and got["value"].iloc[-1] == 1
    assert len(curve(frame, by="depth", bins=3)) == 3
    whole = frame.assign(depth=np.arange(800) % POINTS)
    assert len(curve(whole, by="depth")) == POINTS
    assert len(curve(whole, by="depth", bins=4)) == 4
    # A value that most rows have takes one bin and never two.
    heaped = curve(frame.assign(depth=np.where(depth < 0.7, 0.0, depth)), by="depth")
    assert heaped["x_lo"].is_unique and heaped["n"].sum() == 800 and heaped["n"].iloc[0] > 500


def test_rows_without_a_value_are_left_out_and_told_in_n() -> None:
    frame = planted({1: 1.0, 2: 0.5}, n=10)
    frame.loc[:4, "accuracy"] = np.nan
    got = curve(frame)
    assert got["n"].tolist() == [5, 10] and got["value"].tolist() == [1.0, 0.5]
    frame["position"] = frame["position"].astype(float)
    frame.loc[frame["position"] == 2, "position"] = np.nan
    assert curve(frame)["x"].tolist() == [1]


def test_curves_within_groups_share_their_bins() -> None:
    a, b = planted({1: 1.0, 2: 0.5}, condition="clean"), planted({1: 0.0, 2: 0.0}, condition="cut")
    both = pd.concat([a, b], ignore_index=True)
    got = curve(both, within="condition")
    assert got[["condition", "x", "value"]].to_numpy().tolist() == [
        ["clean", 1.0, 1.0],
        ["clean", 2.0, 0.5],
        ["cut", 1.0, 0.0],
        ["cut", 2.0, 0.0],
    ]
    with pytest.raises(UsageError, match=r"conditions clean, cut; take one of them, or within='condition'"):
        curve(both)
    alone = curve(both[both["condition"] == "cut"])
    assert alone["value"].tolist() == [0, 0]


def test_the_frame_of_outcomes_is_taken_as_it_is() -> None:
    examples = [
        Example("t", (1, i), (2,), cluster=str(i), chance=0.5, meta={"items": 2 + i % 2}) for i in range(8)
    ]
    values = {"clean": {"accuracy": np.array([1.0, 0.0] * 4)}}
    got = curve(Outcomes(examples, values).frame(), by="items")
    assert got[["x", "value", "n"]].to_numpy().tolist() == [[2, 1, 4], [3, 0, 4]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"by": "depth"}, r"no column 'depth'; those of numbers are position, accuracy, chance"),
        ({"metric": "logit_diff"}, r"no column 'logit_diff'"),
        ({"by": "cluster"}, r"column 'cluster' holds no numbers"),
        ({"within": ["task"]}, r"no column 'task'"),
    ],
)
def test_bad_columns_are_named(change: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        curve(planted({1: 0.5}), **change)  # type: ignore[arg-type]


def test_nothing_left_is_refused() -> None:
    with pytest.raises(UsageError, match=r"no row has both position and accuracy"):
        curve(planted({1: 0.5}).assign(accuracy=np.nan))


def test_the_slope_is_that_of_least_squares_with_a_cluster_interval() -> None:
    rng = np.random.default_rng(1)
    x = rng.integers(2, 9, size=300)
    frame = pd.DataFrame({"items": x, "logprob": 3 - 0.4 * x + rng.normal(size=300), "chance": 0.5})
    frame["cluster"] = [str(i) for i in range(300)]
    line = reference.linregress(x, frame["logprob"])
    (got,) = slope(frame, metric="logprob").to_dict("records")
    assert got["slope"] == pytest.approx(line.slope)
    assert got["ci_hi"] - got["ci_lo"] == pytest.approx(2 * 1.96 * line.stderr, rel=0.15)
    assert got["ci_lo"] < -0.4 < got["ci_hi"] and (got["n"], got["n_clusters"]) == (300, 300)
    alone = slope(frame.assign(items=3), metric="logprob").iloc[0]
    assert np.isnan(alone["slope"]) and np.isnan(alone["ci_lo"])
    two = slope(
        pd.concat([frame.assign(kind="a"), frame.assign(kind="b", logprob=x)]),
        metric="logprob",
        within="kind",
    )
    assert two["slope"].tolist() == pytest.approx([line.slope, 1.0])


def test_primacy_and_recency_are_the_ends_against_the_middle() -> None:
    frame = planted({1: 0.9, 2: 0.9, 3: 0.4, 4: 0.4, 5: 0.6, 6: 0.6}).assign(items=6)
    got = ends(frame)
    assert got["effect"].tolist() == ["primacy", "recency"]
    assert got["value"].tolist() == pytest.approx([0.5, 0.2])
    assert (got["ci_lo"] < got["value"]).all() and (got["value"] < got["ci_hi"]).all()
    assert got["ci_lo"][0] > 0.3 and got["n"].tolist() == [160, 160]
    flat = ends(planted(dict.fromkeys(range(1, 7), 0.5)).assign(items=6))
    assert flat["value"].tolist() == [0, 0] and (flat["ci_lo"] < 0).all()
    # Two positions have no middle.
    assert ends(planted({1: 1.0, 2: 0.0}).assign(items=2))["value"].isna().all()
    several = pd.concat([frame, frame.assign(items=12)])
    assert len(ends(several, within="items")) == 4


def test_recovery_is_a_share_or_says_why_not() -> None:
    got = recovery([2.0, 2.0, 1.0, 1.0, np.nan], [0.0, 0.0, 1.0, 0.0, 0.0], [1.0, -1.0, 5.0, np.nan, 1.0])
    assert got["recovery"].tolist() == pytest.approx([0.5, -0.5, np.nan, np.nan, np.nan], nan_ok=True)
    assert got["reason"].tolist() == [
        "",
        "",
        "clean and corrupt do not differ by 0.001",
        "patched has no value",
        "clean has no value",
    ]
    assert recovery([1.0], [0.5], [1.0], least=0.6)["recovery"].isna().all()
    with pytest.raises(UsageError, match=r"2 clean, 1 corrupt, 2 patched values"):
        recovery([1.0, 2.0], [1.0], [1.0, 2.0])
    with pytest.raises(UsageError, match=r"least=0; take a difference above 0"):
        recovery([1.0], [0.0], [1.0], least=0)
