"""Strips of conditions and figures of detection show the numbers of their tables."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from interp import plot
from interp.errors import UsageError
from interp.plot import theme
from interp.plot.memory_signals import roc
from tests.plot import memory_frames as f
from tests.plot.test_channels import named, note
from tests.plot.test_facts import captions, line

ROWS = f.strips_frame()
SIGNALS = f.signals_frame()


def test_each_condition_has_its_point_and_interval_in_each_panel() -> None:
    fig = plot.value_strips(ROWS, "edit", panel="measure", controls=("random",), title="t", percent=True)
    assert captions(fig) == ["A", "B", "Right digit"]
    for i, measure in enumerate(("A", "B", "right digit")):
        own = ROWS[ROWS["measure"] == measure].set_index("edit")
        axis = f"x{i + 1}" if i else "x"
        points = [t for t in fig.data if (t.xaxis or "x") == axis]
        grey = [t for t in points if t.marker.color == theme.CONTROL]
        assert (
            len(points) == 2
            and len(grey) == 1
            and list(grey[0].x) == pytest.approx([own.loc["random", "value"]])
        )
        for trace in points:
            for x, y, up, down in zip(
                trace.x, trace.y, trace.error_x.array, trace.error_x.arrayminus, strict=True
            ):
                row = own.loc[f.STRIPS[round(y)]]
                assert (x, x + up, x - down) == pytest.approx((row["value"], row["ci_hi"], row["ci_lo"]))
    assert list(fig.layout.yaxis.ticktext) == list(f.STRIPS)
    assert fig.layout.yaxis.range[0] > fig.layout.yaxis.range[1], "the first line is on top"
    assert fig.layout.yaxis.showticklabels and not fig.layout.yaxis2.showticklabels
    assert "95% intervals" in note(fig)


def test_lines_of_one_group_stand_together_and_groups_apart() -> None:
    mixed = ROWS.sort_values("edit", kind="stable")
    fig = plot.value_strips(mixed, "edit", panel="measure", group="kind", title="t")
    names, places = list(fig.layout.yaxis.ticktext), np.array(fig.layout.yaxis.tickvals)
    kinds = dict(zip(f.STRIPS, f.KINDS, strict=True))
    together = [kinds[n] for n in names]
    assert [k for i, k in enumerate(together) if i == 0 or k != together[i - 1]] == list(
        dict.fromkeys(together)
    )
    apart = np.diff(places)
    new = [a != b for a, b in pairwise(together)]
    assert (apart[new] > 1.5).all() and np.allclose(apart[~np.array(new)], 1.0)
    with pytest.raises(UsageError, match="'NeMo' stands in two groups"):
        wrong = ROWS.assign(kind=[f"{k}{i % 2}" for i, k in enumerate(ROWS["kind"])])
        plot.value_strips(wrong[wrong["edit"] == "NeMo"], "edit", panel="measure", group="kind", title="t")


def test_marks_stand_beside_each_other_in_their_order_and_colour() -> None:
    rows = f.strips_frame(("A", "B"), ("by the prompt", "under attack"))
    fig = plot.value_strips(
        rows, "edit", panel="measure", mark="mark", controls=("by the prompt",), colors={"under attack": theme.PURPLE},
        title="t",
    )  # fmt: skip
    before, after = line(fig, "by the prompt"), line(fig, "under attack")
    assert (before.marker.color, after.marker.color) == (theme.CONTROL, theme.PURPLE)
    assert before.marker.symbol != after.marker.symbol
    assert np.allclose(np.subtract(after.y, before.y), 0.4)
    assert list(after.x) == pytest.approx([v - 0.1 for v in before.x])
    assert [t.name for t in fig.data if t.showlegend] == ["by the prompt", "under attack"]


def test_levels_stand_where_they_are_in_their_panel_alone() -> None:
    levels = {"A": {"before": 0.97}, "B": {"before": 0.5, "oracle": 0.1}}
    fig = plot.value_strips(ROWS, "edit", panel="measure", levels=levels, title="t", percent=True)
    drawn = [((t.xaxis or "x"), t.name, t.x[0]) for t in fig.data if t.mode == "lines"]
    assert drawn == [("x", "before", 0.97), ("x2", "before", 0.5), ("x2", "oracle", 0.1)]
    assert [t.showlegend for t in fig.data if t.mode == "lines"] == [True, False, True]
    turned = plot.value_strips(
        ROWS, "edit", panel="measure", levels={"A": {"a": 0.1}, "B": {"b": 0.2}}, title="t"
    )
    assert len({t.line.dash for t in turned.data if t.mode == "lines"}) == 2, "a dash a name, not a place"
    assert list(fig.layout.xaxis.range) == [-0.08, 1.08] and fig.layout.xaxis.tickformat == ".0%"
    own = plot.value_strips(
        ROWS, "edit", panel="measure", title="t", percent=("B",), ranges={"A": (0.0, 2.0)}
    )
    assert own.layout.xaxis.tickformat is None and own.layout.xaxis2.tickformat == ".0%"
    assert list(own.layout.xaxis.range) == [0.0, 2.0]


def test_ratios_stand_on_a_scale_of_logarithms_in_their_panel_alone() -> None:
    rows = ROWS.assign(value=ROWS["value"] + 1, ci_lo=ROWS["ci_lo"] + 1, ci_hi=1000.0)
    panel = {"panel": "measure", "title": "t", "ratios": ["B"]}
    fig = plot.value_strips(rows, "edit", levels={"B": {"before": 0.1}}, **panel)
    assert fig.layout.xaxis.type is None and fig.layout.xaxis2.type == "log"
    low, high = fig.layout.xaxis2.range
    assert -1.5 < low < -1 and 3 < high < 3.5 and fig.layout.xaxis.range[1] > 1000
    given = plot.value_strips(rows, "edit", ranges={"B": (0.1, 100.0)}, **panel)
    assert list(given.layout.xaxis2.range) == pytest.approx([-1, 2])
    curves = rows.assign(dose=rows.groupby(["edit", "measure"]).cumcount() + 1.0)
    drawn = plot.value_curves(curves, "dose", line="edit", y={"A": "share", "B": "times"}, **panel)
    assert drawn.layout.yaxis.type is None and drawn.layout.yaxis2.type == "log"
    assert 3 < drawn.layout.yaxis2.range[1] < 3.5 and drawn.layout.yaxis.range[1] > 1000
    with pytest.raises(UsageError, match="'B' holds ratios that are not above 0"):
        plot.value_strips(rows.assign(ci_lo=0.0), "edit", **panel)


def test_strips_that_cannot_be_drawn_are_told() -> None:
    with pytest.raises(UsageError, match=r"'before' has two rows \(A\)"):
        plot.value_strips(pd.concat([ROWS, ROWS.head(1)]), "edit", panel="measure", title="t")
    many = f.strips_frame(("A",), [str(i) for i in range(7)])
    with pytest.raises(UsageError, match="7 marks of a line do not fit"):
        plot.value_strips(many, "edit", mark="mark", title="t")


def test_hits_over_false_alarms_enclose_the_area_that_others_compute() -> None:
    for signal in ("first", "one_step", "spread"):
        for other in ("control", "base"):
            rows = SIGNALS[SIGNALS["group"].isin(["memorized", other])]
            alarms, hits = roc(SIGNALS, signal, other)
            area = float(np.trapezoid(hits, alarms))
            want = roc_auc_score(
                rows["group"] == "memorized", rows[signal] * (-1 if signal == "spread" else 1)
            )
            assert area == pytest.approx(want) and (alarms[0], hits[0], alarms[-1], hits[-1]) == (0, 0, 1, 1)
    tied = pd.DataFrame({"group": ["memorized", "base"] * 2, "first": [1.0, 1.0, 2.0, 0.0]})
    assert roc(tied, "first", "base") == ([0.0, 0.0, 0.5, 1.0], [0.0, 0.5, 1.0, 1.0])


def test_detection_tells_areas_of_the_table_where_there_is_one() -> None:
    table = pd.DataFrame(
        {"signal": ["first", "all"], "against": "control", "auc": [0.91, 0.8], "auc_lo": 0.7, "auc_hi": 1}
    )
    fig = plot.detection_curves(SIGNALS, table, shown=("first", "all"))
    assert captions(fig)[:2] == ["Against rare words", "Against ordinary prompts"]
    texts = [a.text for a in fig.layout.annotations]
    assert "0.910 [0.70, 1.00]" in texts and "0.800 [0.70, 1.00]" in texts and "1.000" in texts
    assert "24 memorized" not in note(fig) and "8 memorized, 8 rare words, 8 ordinary" in note(fig)
    assert len([t for t in fig.data if t.name == "chance"]) == 2
    with pytest.raises(UsageError, match="two rows of one group"):
        plot.detection_curves(SIGNALS, pd.concat([table, table]))
    with pytest.raises(UsageError, match="others to tell them from"):
        plot.detection_curves(SIGNALS[SIGNALS["group"] == "memorized"])


def test_every_prompt_and_sample_is_a_point_of_its_groups_violin() -> None:
    fig = plot.signal_violins(SIGNALS)
    assert captions(fig)[0] == "Noise difference, first step" and len(captions(fig)) == 5
    for i, signal in enumerate(("first", "all", "one_step", "similarity", "spread")):
        axis = f"x{i + 1}" if i else "x"
        for at, group in enumerate(("memorized", "control", "base")):
            (trace,) = [t for t in named(fig, f.LEGEND[group]) if (t.xaxis or "x") == axis]
            assert sorted(trace.y) == pytest.approx(sorted(SIGNALS[SIGNALS["group"] == group][signal]))
            assert set(trace.x) == {at} and trace.points == "all"
    with pytest.raises(UsageError, match="none of the signals first"):
        plot.signal_violins(SIGNALS[["group"]])
