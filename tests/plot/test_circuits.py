"""The figures of circuits show the numbers of their tables."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

import interp.plot.circuits
import interp.plot.faithful
import interp.plot.reuse  # noqa: F401  (modules that are imported first must not shadow the functions)
from interp import plot
from interp.errors import UsageError
from tests.plot.circuit_frames import (
    CLASSES,
    RECEIVERS,
    TASKS,
    areas_frame,
    cross_frame,
    edges_frame,
    faithful_frame,
    overlap_frame,
    paths_frame,
)
from tests.plot.test_channels import named, note

PATHS, EDGES, CROSS, OVERLAP, FAITHFUL = (
    paths_frame(), edges_frame(), cross_frame(), overlap_frame(), faithful_frame(),
)  # fmt: skip
MINUS = "\u2212"


def cell(fig: Any, x: int, y: int) -> str:
    return "".join(a.text for a in fig.layout.annotations if a.xref in (None, "x") and (a.x, a.y) == (x, y))


def test_a_map_for_each_set_of_receivers_without_mlps() -> None:
    fig = plot.circuit_heads(PATHS, CLASSES)
    heads = PATHS[PATHS["head"] >= 0]
    for receivers in RECEIVERS:
        (trace,) = named(fig, receivers)
        want = heads[heads["receivers"] == receivers].pivot(index="head", columns="layer", values="effect")
        np.testing.assert_allclose(np.array(trace.z, float), want.to_numpy())
    assert (
        fig.layout.coloraxis.cmax == pytest.approx(heads["effect"].abs().max()) == -fig.layout.coloraxis.cmin
    )


def test_heads_stand_by_class_with_their_largest_effect_and_interval() -> None:
    fig = plot.circuit_heads(PATHS, CLASSES)
    names = list(fig.layout.xaxis4.ticktext)
    order = list(dict.fromkeys(CLASSES.values()))
    places = [order.index(CLASSES[name]) for name in names]
    assert places == sorted(places) and set(names) == set(CLASSES)
    for name in ("L22H3", "L23H2"):
        own = PATHS[PATHS["sender"] == name]
        best = own.loc[own["effect"].abs().idxmax()]
        (point,) = [t for t in named(fig, name) if t.yaxis == "y4"]
        assert point.y[0] == pytest.approx(best["effect"]) and point.error_y.array[0] == pytest.approx(0.05)
        assert f"to {best['receivers']}" in point.customdata[0]


def test_marks_of_classes_stand_on_their_heads() -> None:
    fig = plot.circuit_heads(PATHS, CLASSES)
    mark = named(fig, "name mover")[0]
    assert sorted(zip(mark.x, mark.y, strict=True)) == [(22, 3), (24, 8)]


def test_the_area_under_each_curve_is_that_of_scikit_learn() -> None:
    frame = EDGES.assign(score=EDGES["score"].round(1), in_circuit=EDGES["effect"] > 0.1)
    fig = plot.edge_matrix(frame)
    for mode, own in frame.groupby("mode"):
        area = roc_auc_score(own["in_circuit"], own["score"])
        assert any(t.name == f"{mode}: AUROC {area:.2f}" for t in fig.data), "ties count half"
        (curve,) = [t for t in fig.data if t.name and t.name.startswith(f"{mode}:")]
        assert np.trapezoid(curve.y, curve.x) == pytest.approx(area)
        assert f"{mode}: {own['in_circuit'].sum()} edges of {len(own)}" in note(fig)


def test_edges_of_the_circuit_are_those_above_the_threshold_where_nothing_says() -> None:
    fig = plot.edge_matrix(EDGES, threshold=0.1)
    assert note(fig) == note(plot.edge_matrix(EDGES.assign(in_circuit=EDGES["effect"].abs() >= 0.1)))
    told = note(plot.edge_matrix(EDGES.assign(p=0.012), threshold=0.1))
    assert "(p = 0.012)" in told


def test_the_matrix_has_the_effects_at_their_writers_and_readers() -> None:
    fig = plot.edge_matrix(EDGES)
    trace = named(fig, "effect")[0]
    writers, readers = list(fig.layout.yaxis.ticktext), list(fig.layout.xaxis.ticktext)
    best = EDGES.loc[EDGES["effect"].abs().groupby([EDGES["writer"], EDGES["reader"]]).idxmax()]
    for r in best.head(20).itertuples():
        assert trace.z[writers.index(r.writer)][readers.index(r.reader)] == r.effect


def test_the_cross_task_matrix_has_shares_controls_and_the_floor_rule() -> None:
    fig = plot.cross_task_matrix(CROSS)
    names = list(TASKS)
    at = names.index("laundry")
    draws = CROSS[
        (CROSS["condition"] == "control") & (CROSS["circuit"] == "laundry") & (CROSS["task"] == "laundry")
    ]
    low, high = (100 * np.quantile(draws["delta"] / 0.73, q) for q in (0.05, 0.95))
    ends = f"{low:.0f}, {high:.0f}".replace("-0", "0").replace("-", MINUS)
    assert cell(fig, at, at + 1) == f"<b>{MINUS}70</b><br>[{ends}]"
    assert cell(fig, at, 0) == "0.73"
    assert fig.data[0].z[at][at] == pytest.approx(-0.7)
    weak = cell(fig, names.index("ioi"), names.index("niah") + 1)
    assert weak.startswith(f"{MINUS}2<br>"), "not bold: its interval holds zero"
    chance = names.index("colored_objects")
    assert all(cell(fig, chance, y) == "" for y in range(1, 6))
    assert np.isnan(np.array(fig.data[0].z, float)[:, chance]).all()
    assert sum(s.name == "at chance" for s in fig.layout.shapes) == 10
    assert {(s.x0 + s.x1) / 2 + 1 for s in fig.layout.shapes if s.name == "own task"} == {1, 2, 3, 4, 5}


def test_a_cut_no_worse_than_its_controls_is_not_bold() -> None:
    harsh = CROSS.assign(
        delta=CROSS["delta"].where(CROSS["condition"] != "control", -0.8 * CROSS["value"].max())
    )
    assert "<b>" not in "".join(a.text for a in plot.cross_task_matrix(harsh).layout.annotations)
    adjusted = plot.cross_task_matrix(CROSS.assign(q=0.2))
    assert "<b>" not in "".join(a.text for a in adjusted.layout.annotations)


def test_the_overlap_matrix_has_jaccard_below_and_times_chance_above() -> None:
    fig = plot.overlap_matrix(OVERLAP)
    row = OVERLAP.iloc[0]
    assert cell(fig, 0, 1) == f"<b>{row['jaccard']:.2f} ({row['shared']})</b>"
    assert cell(fig, 1, 0) == f"<b>\u00d7 {row['shared'] / 0.8:.1f}</b>"
    assert cell(fig, 0, 2) == "0.11 (2)", "p = 0.4 is not bold"
    assert fig.data[0].z[1][0] == row["jaccard"] and np.isnan(fig.data[0].z[0][1])
    assert "random heads of the same layers" in note(fig)


def test_faithfulness_has_each_order_and_the_range_of_the_random_ones() -> None:
    fig = plot.faithfulness_curves(FAITHFUL.query("ablation == 'mean'"), areas_frame())
    own = FAITHFUL.query("ablation == 'mean' and order == 'EAP'")
    np.testing.assert_allclose(named(fig, "EAP")[0].y, own["f"])
    drawn = FAITHFUL[FAITHFUL["order"].str.startswith("random") & (FAITHFUL["ablation"] == "mean")]
    np.testing.assert_allclose(named(fig, "random orders")[0].y, drawn.groupby("share")["f"].median())
    told = note(fig)
    assert "EAP-IG: CPR 0.97, CMD 0.03" in told and "random: CPR 0.45, CMD 0.55" in told
    assert len(named(plot.faithfulness_curves(FAITHFUL, facet="ablation"), "EAP")) == 2


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: plot.circuit_heads(PATHS.drop(columns="effect")), "missing columns effect"),
        (lambda: plot.circuit_heads(PATHS[PATHS["head"] < 0]), "no row is of a head"),
        (lambda: plot.circuit_heads(pd.concat([PATHS, PATHS])), "L0H0 occurs twice for receivers 'logits'"),
        (lambda: plot.circuit_heads(PATHS, {f"L0H{i}": str(i) for i in range(9)}), "9 classes; at most 8"),
        (lambda: plot.edge_matrix(EDGES.drop(columns="score")), "missing columns score"),
        (lambda: plot.edge_matrix(pd.concat([EDGES, EDGES])), "occurs twice in a mode"),
        (lambda: plot.edge_matrix(EDGES, threshold=9.0), "no mode has edges in the circuit and others"),
        (lambda: plot.cross_task_matrix(CROSS.iloc[:0]), "nothing to draw"),
        (lambda: plot.cross_task_matrix(CROSS[CROSS["condition"] == "clean"]), "no row with condition 'cut'"),
        (lambda: plot.cross_task_matrix(CROSS[CROSS["condition"] != "clean"]), "has no row with condition 'clean'"),
        (lambda: plot.cross_task_matrix(pd.concat([CROSS, CROSS])), "circuit 'ioi' is cut twice on 'ioi'"),
        (
            lambda: plot.cross_task_matrix(pd.concat([CROSS.assign(metric="f1"), CROSS.assign(metric="a")])),
            "several metrics",
        ),
        (lambda: plot.overlap_matrix(OVERLAP.drop(columns="p")), "missing columns p"),
        (lambda: plot.overlap_matrix(pd.concat([OVERLAP, OVERLAP])), "ioi and induction occur twice"),
        (lambda: plot.overlap_matrix(pd.concat([OVERLAP, OVERLAP.assign(null="x")])), "nulls are layers, x"),
        (lambda: plot.faithfulness_curves(FAITHFUL), "two rows of 'EAP-IG' at 0.1%"),
        (lambda: plot.faithfulness_curves(FAITHFUL.drop(columns="f")), "missing columns f"),
        (lambda: plot.faithfulness_curves(FAITHFUL, areas_frame(), facet="ablation"), "missing columns ablation"),
    ],
)  # fmt: skip
def test_circuits_name_what_is_wrong(draw: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        draw()
