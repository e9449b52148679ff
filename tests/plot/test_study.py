"""The figures of a head study show the numbers of its tables."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pandas as pd
import pytest

import interp.plot.needles
import interp.plot.task_matrix  # noqa: F401  (modules that are imported first must not shadow the functions)
from interp import plot
from interp.errors import UsageError
from interp.plot import theme
from tests.plot.study_frames import (
    DEPTHS,
    KS,
    LENGTHS,
    METHODS,
    areas_frame,
    doses_frame,
    needles_frame,
    pairs_frame,
    tasks_frame,
)

NEEDLES, DOSES, TASKS, PAIRS = needles_frame(), doses_frame(), tasks_frame(), pairs_frame()


def in_cells(fig: Any) -> list[Any]:
    """The annotations that stand at a place of the data."""
    return [a for a in fig.layout.annotations if a.xref in (None, "x") and a.yref in (None, "y")]


def texts(fig: object) -> list[str]:
    return [a.text for a in fig.layout.annotations]  # type: ignore[attr-defined]


# -- needle maps -----------------------------------------------------------------------------------------------------


def test_each_cell_is_the_mean_over_its_needles_and_draws() -> None:
    fig = plot.needle_map(NEEDLES)
    assert [trace.name for trace in fig.data] == [
        "uncut", "top 10 heads: uniform", "10 matched others: uniform", "top 10 heads: mean", "10 matched others: mean",
    ]  # fmt: skip
    for trace, (condition, mode) in zip(
        fig.data,
        [("clean", ""), ("cut", "uniform"), ("control", "uniform"), ("cut", "mean"), ("control", "mean")],
        strict=True,
    ):
        own = NEEDLES[(NEEDLES["condition"] == condition) & (NEEDLES["mode"] == mode)]
        want = own.pivot_table(index="depth_asked", columns="length_asked", values="accuracy")
        np.testing.assert_allclose(trace.z, want.to_numpy())
    assert fig.layout.xaxis.ticktext == tuple(map(str, LENGTHS))
    assert fig.layout.yaxis.ticktext == tuple(f"{d:.2g}" for d in DEPTHS)


def test_all_maps_share_one_scale_and_first_depths_stand_on_top() -> None:
    fig = plot.needle_map(NEEDLES)
    assert {trace.coloraxis for trace in fig.data} == {"coloraxis"}
    assert (fig.layout.coloraxis.cmin, fig.layout.coloraxis.cmax) == (0.0, 1.0)
    assert fig.layout.yaxis.range[0] > fig.layout.yaxis.range[1]
    loss = plot.needle_map(NEEDLES, "logprob")
    every = np.concatenate([trace.z.ravel() for trace in loss.data])
    assert (loss.layout.coloraxis.cmin, loss.layout.coloraxis.cmax) == (every.min(), every.max())


def test_a_cell_tells_its_realised_depth_and_how_many() -> None:
    fig = plot.needle_map(NEEDLES)
    cell = NEEDLES[
        (NEEDLES["condition"] == "clean") & (NEEDLES["length_asked"] == 512) & (NEEDLES["depth_asked"] == 0.4)
    ]
    said = fig.data[0].customdata[2][2]
    assert (
        f"realised depth {cell['depth'].mean():.3f} ({cell['depth'].min():.3f} to {cell['depth'].max():.3f})"
        in said
    )
    assert said.endswith("n = 4")
    assert fig.data[2].customdata[2][2].endswith("n = 4, 3 draws")
    off = (NEEDLES["depth"] - NEEDLES["depth_asked"]).abs().max()
    assert any(f"largest distance from the depth asked for: {off:.3f}" in t for t in texts(fig))


def test_numbers_in_cells_are_per_cent() -> None:
    trace = plot.needle_map(NEEDLES).data[0]
    assert trace.text[0][0] == f"{100 * trace.z[0][0]:.0f}"
    assert plot.needle_map(NEEDLES, "logprob").data[0].text is None, "four characters do not fit"


def test_maps_stand_below_each_other_in_one_column() -> None:
    fig = plot.needle_map(NEEDLES, width="single")
    assert {fig.layout[f"xaxis{i or ''}"].domain for i in (0, 2, 3, 4, 5)} == {(0.0, 1.0)}


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (NEEDLES.drop(columns="depth"), "missing columns depth"),
        (NEEDLES[NEEDLES["condition"] != "clean"], "no row has condition 'clean'"),
        (NEEDLES.assign(condition="other"), "condition 'other' is none of"),
        (
            pd.concat([NEEDLES, NEEDLES[NEEDLES["mode"] == "mean"].assign(k=5)]),
            "mode 'mean' has cuts of 5, 10 heads",
        ),
    ],
)
def test_maps_name_what_is_wrong(frame: pd.DataFrame, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        plot.needle_map(frame)


# -- dose curves -----------------------------------------------------------------------------------------------------


def lines(fig: object) -> dict[str, object]:
    return {t.name: t for t in fig.data if t.mode == "lines+markers" and t.name in METHODS}  # type: ignore[attr-defined]


def test_one_line_a_score_type_with_its_values() -> None:
    found = lines(plot.dose_curves(DOSES))
    assert set(found) == set(METHODS)
    for name, line in found.items():
        own = DOSES[(DOSES["condition"] == "cut") & (DOSES["locator"] == name)].sort_values("k")
        assert list(line.x) == list(KS) and list(line.y) == own["value"].tolist()
    styles = {(line.line.color, line.marker.symbol) for line in found.values()}
    assert len(styles) == len(METHODS), "two lines look alike"


def test_the_band_is_of_the_controls_by_layer() -> None:
    fig = plot.dose_curves(DOSES)
    (band,) = [t for t in fig.data if t.fillcolor == theme.CONTROL_BAND]
    draws = DOSES[(DOSES["condition"] == "control") & (DOSES["control"] == "layer")]
    low = draws.groupby("k")["value"].quantile(0.05)
    high = draws.groupby("k")["value"].quantile(0.95)
    np.testing.assert_allclose(band.y, [*low, *high[::-1]])


def test_scores_are_sorted_by_area_and_controls_come_last() -> None:
    areas = areas_frame(DOSES)
    fig = plot.dose_curves(DOSES, areas)
    own = areas[areas["condition"] == "cut"].sort_values("value")["locator"].tolist()
    assert list(fig.layout.yaxis2.ticktext) == [
        *own, "matched by layer", "matched by norm", "matched by entropy", "lowest scores",
    ]  # fmt: skip
    dots = {t.name: t for t in fig.data if t.xaxis == "x2"}
    row = areas[areas["locator"] == "qr"].iloc[0]
    assert dots["qr"].x[0] == row["value"]
    assert dots["qr"].x[0] + dots["qr"].error_x.array[0] == pytest.approx(row["ci_hi"])
    layer = areas[(areas["control"] == "layer")]["value"]
    assert dots["matched by layer"].x[0] == pytest.approx(layer.median())


def test_areas_are_computed_where_none_are_given() -> None:
    given, computed = (
        {t.name: t.x[0] for t in fig.data if t.xaxis == "x2"}
        for fig in (plot.dose_curves(DOSES, areas_frame(DOSES)), plot.dose_curves(DOSES))
    )
    assert computed == pytest.approx(given)


def test_kept_heads_are_another_question() -> None:
    kept = doses_frame(kept=True)
    fig = plot.dose_curves(pd.concat([DOSES, kept[kept["condition"] != "clean"]]), kept=True)
    own = kept[(kept["condition"] == "keep") & (kept["locator"] == "copy") & (kept["k"] > 0)]
    assert list(lines(fig)["copy"].y) == own["value"].tolist()
    assert fig.layout.yaxis2.ticktext[0] == "copy", "the score that keeps most is best"
    (floor,) = [t for t in fig.data if t.name == "no head kept"]
    assert set(floor.y) == {0.03}
    assert fig.layout.xaxis.title.text == "heads kept"


def test_at_chance_no_curve_is_drawn() -> None:
    fig = plot.dose_curves(DOSES.assign(status="at chance"))
    assert not lines(fig) and "at chance: no effect reported" in texts(fig)


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (DOSES[DOSES["condition"] != "cut"], "no row of a cut"),
        (DOSES[DOSES["condition"] != "clean"], "no row with condition 'clean'"),
        (pd.concat([DOSES, DOSES.assign(task="facts")]), "2 tasks"),
        (pd.concat([DOSES, DOSES[DOSES["condition"] == "cut"].assign(mode="zero")]), "mode is mean and zero"),
        (pd.concat([DOSES, DOSES]), "two cuts of 1 heads ranked by copy"),
    ],
)
def test_dose_curves_name_what_is_wrong(frame: pd.DataFrame, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        plot.dose_curves(frame)


# -- cut x task ------------------------------------------------------------------------------------------------------


def test_cells_are_changes_relative_to_the_uncut_model() -> None:
    fig = plot.specificity(TASKS)
    tasks = list(fig.layout.xaxis.ticktext)
    assert list(fig.layout.yaxis.ticktext) == [
        "uncut", "copy", "needle_mass", "qr", "matched by layer", "matched by norm",
    ]  # fmt: skip
    z = fig.data[0].z
    row = TASKS[
        (TASKS["task"] == "paraphrase") & (TASKS["locator"] == "copy") & (TASKS["condition"] == "cut")
    ].iloc[0]
    assert z[0, tasks.index("paraphrase")] == pytest.approx(row["delta"] / 0.61)
    loss = TASKS[(TASKS["task"] == "prose") & (TASKS["locator"] == "qr")].iloc[0]["delta"]
    assert loss > 0 and z[2, tasks.index("prose")] == pytest.approx(-np.expm1(loss)), "more loss is worse"
    controls = TASKS[(TASKS["task"] == "needle") & (TASKS["control"] == "norm")]["delta"]
    assert z[4, tasks.index("needle")] == pytest.approx(controls.mean() / 0.94)


def test_at_chance_is_hatched_and_shows_no_number() -> None:
    fig = plot.specificity(TASKS)
    x = list(fig.layout.xaxis.ticktext).index("multi_hop")
    assert np.isnan(fig.data[0].z[:, x]).all()
    assert [a.text for a in in_cells(fig) if a.x == x] == ["0.12"], "the uncut value alone"
    assert len([s for s in fig.layout.shapes if s.name == "at chance" and s.type == "path"]) == 5
    assert any("uncut model at chance (multi_hop)" in t for t in texts(fig))
    assert "at chance: no effect" in fig.data[0].customdata[0][x]


def test_marks_follow_the_adjusted_p_or_the_interval() -> None:
    def marked(frame: pd.DataFrame) -> set[str]:
        fig = plot.specificity(frame)
        return {
            fig.layout.xaxis.ticktext[int(a.x)] for a in in_cells(fig) if a.text.endswith("*") and a.y == 1
        }

    assert marked(TASKS) == {"needle", "paraphrase", "multi_key", "reading", "arithmetic_cot"}
    cut = TASKS[(TASKS["condition"] == "cut") & (TASKS["locator"] == "copy") & (TASKS["status"] == "ok")]
    apart = set(cut[(cut["ci_lo"] > 0) | (cut["ci_hi"] < 0)]["task"])
    assert marked(TASKS.drop(columns="q")) == apart
    assert marked(TASKS.assign(q=TASKS["q"].where(TASKS["q"].isna(), 0.2))) == set()


def test_the_first_line_has_the_uncut_values() -> None:
    fig = plot.specificity(TASKS)
    tasks = list(fig.layout.xaxis.ticktext)
    first = {tasks[int(a.x)]: a.text for a in in_cells(fig) if a.y == 0}
    assert (
        first["needle"] == "0.94" and first["prose"] == f"{np.exp(3.3):.1f}" and first["multi_hop"] == "0.12"
    )


@pytest.mark.parametrize(
    ("frame", "k", "message"),
    [
        (TASKS[TASKS["condition"] != "cut"], None, "no row with condition 'cut'"),
        (TASKS[TASKS["condition"] != "clean"], None, "task 'needle' has no row with condition 'clean'"),
        (TASKS, 5, "nothing was cut at k = 5; measured: 10"),
        (pd.concat([TASKS, TASKS.assign(scope="answer")]), None, "scope is all and answer"),
        (TASKS.assign(metric="rank"), None, "task 'needle' has none of the metrics"),
    ],
)
def test_specificity_names_what_is_wrong(frame: pd.DataFrame, k: int | None, message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        plot.specificity(frame, k)


# -- agreement -------------------------------------------------------------------------------------------------------


def test_overlap_below_correlation_above_ceiling_on_the_diagonal() -> None:
    z = plot.score_agreement(PAIRS).data[0].z
    at = PAIRS.set_index(["a", "b"])
    i, j = METHODS.index("dla"), METHODS.index("qr")
    assert z[i, j] == at.loc[("dla", "qr"), "overlap"] and z[j, i] == at.loc[("qr", "dla"), "spearman"]
    assert z[i, i] == at.loc[("dla", "dla"), "ceiling"]
    assert len({z[i, j], z[j, i], z[i, i]}) == 3, "the three cannot be told apart"


def test_bold_is_more_than_chance() -> None:
    fig = plot.score_agreement(PAIRS)
    bold = {(a.y, a.x) for a in in_cells(fig) if a.font.weight == 700}
    want = {
        (METHODS.index(r.a), METHODS.index(r.b))
        for r in PAIRS.itertuples()
        if METHODS.index(r.a) > METHODS.index(r.b) and r.p < 0.05
    }
    assert bold == want and want


def test_agreement_takes_one_set() -> None:
    with pytest.raises(UsageError, match="sets are top 10, top 20"):
        plot.score_agreement(pd.concat([PAIRS, pairs_frame(k=20)]))
