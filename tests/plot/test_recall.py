"""The figures of a run of the tasks show the numbers of its tables."""

from __future__ import annotations

import pandas as pd
import pytest

from interp import plot
from interp.errors import UsageError
from tests.plot.recall_frames import recall_ages_frame, recall_curves_frame, recall_frame

TABLE, CURVES = recall_frame(), recall_curves_frame()


def traces(fig: object, name: str) -> list[object]:
    return [trace for trace in fig.data if trace.name == name]  # type: ignore[attr-defined]


def test_every_size_is_a_line_and_every_number_a_mark() -> None:
    fig = plot.recall_ladder(TABLE)
    places = dict(zip(fig.layout.yaxis.ticktext, fig.layout.yaxis.tickvals, strict=True))
    assert "<b>niah</b>" in places and "form paraphrase" in places and "<b>reading</b>" in places
    assert len(fig.layout.yaxis.tickvals) == len(TABLE) + 5, "a heading each, but for the task of one size"
    asked = TABLE[TABLE["status"] != "not asked"]
    for metric, name in (("choice", "choice among the candidates"), ("accuracy", "exact answer"),
                         ("logit_diff", "answer less foil")):  # fmt: skip
        filled, *rest = traces(fig, name)
        own = asked[asked[metric].notna()]
        assert list(filled.x) == own[own["status"] == "ok"][metric].tolist()  # type: ignore[attr-defined]
        (hollow,) = rest
        assert list(hollow.x) == own[own["status"] != "ok"][metric].tolist()  # type: ignore[attr-defined]
        assert hollow.marker.symbol.endswith("-open") and not filled.marker.symbol.endswith("-open")  # type: ignore[attr-defined]
        low = own[own["status"] == "ok"]
        assert list(filled.error_x.arrayminus) == pytest.approx(list(low[metric] - low[f"{metric}_lo"]))  # type: ignore[attr-defined]
    (guess,) = traces(fig, "uniform guess")
    assert list(guess.x) == asked["guess"].tolist()  # type: ignore[attr-defined]


def test_marks_stand_on_the_line_of_their_label() -> None:
    fig = plot.recall_ladder(TABLE[TABLE["task"] == "laundry"])
    places = dict(zip(fig.layout.yaxis.ticktext, fig.layout.yaxis.tickvals, strict=True))
    (guess,) = traces(fig, "uniform guess")
    sizes = {1 / n: places[f"items {n}"] for n in (2, 4, 6, 8, 12)}
    assert dict(zip(guess.x, guess.y, strict=True)) == sizes  # type: ignore[attr-defined]
    assert "above chance at 3 of 5 sizes · 32 examples a size" in fig.layout.annotations[0].text


def test_what_was_not_asked_is_said_in_its_place() -> None:
    fig = plot.recall_ladder(TABLE[TABLE["task"] == "niah"])
    (said,) = [a for a in fig.layout.annotations if a.text == "not asked"]
    places = dict(zip(fig.layout.yaxis.ticktext, fig.layout.yaxis.tickvals, strict=True))
    assert said.y == places["length 1024"]
    assert "niah, length 1024: not asked." in fig.layout.meta["alt"]
    assert "open: at chance" not in [t.name for t in fig.data]


def test_a_task_without_foils_has_no_panel_of_logits() -> None:
    fig = plot.recall_ladder(TABLE[TABLE["task"] == "reading"])
    assert "xaxis2" not in fig.layout.to_plotly_json()
    assert not traces(fig, "choice among the candidates")


def test_curves_are_points_of_the_table_and_open_down_at_chance() -> None:
    fig = plot.recall_curves(CURVES, "updates")
    (line,) = traces(fig, "choice among the candidates")
    own = CURVES[(CURVES["axis"] == "updates") & (CURVES["metric"] == "choice")]
    assert list(line.y) == own["value"].tolist()  # type: ignore[attr-defined]
    wanted = ["circle" if low > 0.2 else "circle-open" for low in own["ci_lo"]]
    assert list(line.marker.symbol) == wanted and {*wanted} == {"circle", "circle-open"}  # type: ignore[attr-defined]
    steps = [b - a for a, b in zip(line.x, line.x[1:], strict=False)]  # type: ignore[attr-defined]
    assert steps == pytest.approx([steps[0]] * 5), "doublings are equally far apart"


def test_lists_of_several_lengths_are_lines_of_their_own() -> None:
    fig = plot.recall_curves(CURVES, "position")
    names = [t.name for t in fig.data if t.name != "uniform guess"]
    assert names == ["shortest list", "2nd list", "3rd list", "4th list", "5th list"]
    (last,) = traces(fig, "5th list")
    assert list(last.x) == list(range(1, 13)) and last.error_y.array is None  # type: ignore[attr-defined]
    assert "12 items" in last.customdata[0]  # type: ignore[attr-defined]
    assert any(a.text == "laundry: 2, 4, 6, 8, 12 items" for a in fig.layout.annotations)


def test_panels_are_tasks_and_steps_may_be_none() -> None:
    fig = plot.recall_curves(CURVES, "length")
    captions = [a.text for a in fig.layout.annotations if a.name != "subtitle"]
    assert captions == ["niah", "multi_key", "multi_value", "multi_hop", "paraphrase"]
    assert len([t for t in fig.data if t.showlegend]) == 3, "each name once in the legend"
    hops = plot.recall_curves(CURVES, "steps")
    assert list(traces(hops, "exact answer")[0].x) == [0, 1, 2, 3]  # type: ignore[attr-defined]


def test_what_cannot_be_drawn_is_said() -> None:
    with pytest.raises(UsageError, match="no curve over 'weight'; there are those over length, depth"):
        plot.recall_curves(CURVES, "weight")
    with pytest.raises(UsageError, match="missing columns task"):
        plot.recall_ladder(TABLE.drop(columns="task"))
    with pytest.raises(UsageError, match="'reading' has two rows"):
        plot.recall_ladder(TABLE[TABLE["task"] == "reading"].loc[lambda f: f.index.repeat(2)])
    many = CURVES.assign(line=[f"{i} items" for i in range(len(CURVES))])
    with pytest.raises(UsageError, match="lines do not fit"):
        plot.recall_curves(many, "depth")


def test_ages_of_answers_have_a_panel_a_number_of_updates() -> None:
    ages = recall_ages_frame()
    fig = plot.recall_ages(ages)
    for axis, updates in (("x", 2), ("x2", 4)):
        own = ages[ages["updates"] == updates].sort_values("age")
        bars = [t for t in fig.data if t.type == "bar" and t.xaxis == axis]
        drawn = {x: y for t in bars for x, y in zip(t.x, t.y, strict=True)}
        assert drawn == dict(zip(own["age"], own["share"], strict=True))
        assert {t.name: list(t.x) for t in bars}["the value that holds"] == [0]
        (guess,) = [t for t in fig.data if t.name == "uniform guess" and t.xaxis == axis]
        assert set(guess.y) == {1 / len(own)}
    assert list(fig.layout.xaxis2.ticktext) == ["never", "0", "3"]
    with pytest.raises(UsageError, match="two rows"):
        plot.recall_ages(pd.concat([ages, ages[:1]]))
    with pytest.raises(UsageError, match="missing columns share"):
        plot.recall_ages(ages.drop(columns="share"))
