"""The figures of channels and lists show the numbers of their tables."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from interp import plot
from interp.errors import UsageError
from interp.plot import theme
from tests.plot.circuit_frames import (
    CLASSES,
    composition_frame,
    grid_frame,
    items_frame,
    readers_frame,
    spectrum_frame,
)

READERS, SPECTRUM, ITEMS = readers_frame(), spectrum_frame(), items_frame()


def note(fig: Any) -> str:
    return " ".join(next(a.text for a in fig.layout.annotations if a.name == "subtitle").split("<br>"))


def named(fig: Any, name: str) -> list[Any]:
    return [trace for trace in fig.data if trace.name == name]


# -- the graph -------------------------------------------------------------------------------------------------------


def test_the_strongest_edges_of_each_mode_and_the_best_component_of_each() -> None:
    fig = plot.channel_graph(READERS, top=7)
    for mode, color in (("Q", theme.BLUE), ("K", theme.VERMILLION), ("V", theme.GREEN)):
        (told,) = named(fig, f"{mode} edges")
        assert told.marker.color == color
        own = READERS[READERS["mode"] == mode]
        best = own.groupby(["writer", "reader"])["value"].agg(["max", "size"])
        best = best.sort_values("max", ascending=False).head(7)
        assert len(told.customdata) == 7
        (writer, reader), row = best.index[0], best.iloc[0]
        first = told.customdata[0]
        assert (
            first.startswith(f"<b>{writer} \u2192 {reader}</b>") and f"component: {row['max']:.3f}" in first
        )
        assert f"{int(row['size'])} component" in first


def test_stronger_edges_are_wider() -> None:
    rows = pd.DataFrame({
        "writer": ["L0H0", "L0H1"], "reader": ["L1H0", "L1H1"], "writer_layer": 0, "reader_layer": 1, "mode": "Q",
        "value": [0.2, 0.8],
    })  # fmt: skip
    lines = [t for t in plot.channel_graph(rows).data if t.mode == "lines"]
    at = {line.y[0]: line.line.width for line in lines}
    assert at[1.0] > at[0.0], "the second head stands in line 1 and has the stronger edge"
    swapped = [
        t for t in plot.channel_graph(rows.assign(apart=[3.0, 1.0]), by="apart").data if t.mode == "lines"
    ]
    at = {line.y[0]: line.line.width for line in swapped}
    assert at[0.0] > at[1.0]


def test_edges_run_from_the_writer_to_the_reader_or_its_kv_group() -> None:
    rows = pd.DataFrame({
        "writer": ["L2H7", "M1", "embed"], "reader": ["L5KV1", "L4H0", "M3"], "writer_layer": [2, 1, -1],
        "reader_layer": [5, 4, 3], "mode": ["K", "Q", "V"], "value": 0.5,
    })  # fmt: skip
    fig = plot.channel_graph(rows, heads=9, kv_heads=3)
    lines = {t.legendgroup: t for t in fig.data if t.mode == "lines"}
    ends = {mode: [(t.x[0], t.y[0]), (t.x[-2], t.y[-2])] for mode, t in lines.items()}
    assert ends == {"K": [(2, 7), (5, 4)], "Q": [(1, 9), (4, 0)], "V": [(-1, 9), (3, 9)]}
    (group,) = [s for s in fig.layout.shapes if s.name == "L5KV1"]
    assert (group.y0, group.y1) == (pytest.approx(2.62), pytest.approx(5.38)), "heads 3 to 5"
    assert "MLP" in fig.layout.yaxis.ticktext


def test_classes_are_marked_also_where_no_edge_ends() -> None:
    fig = plot.channel_graph(READERS, {"L29H8": "mover", "L0H0": "other"}, top=3)
    (mover,) = named(fig, "mover")
    assert (mover.x, mover.y) == ((29,), (8,)) and mover.showlegend
    other = named(fig, "other")[0]
    assert (other.marker.color, other.marker.symbol) != (mover.marker.color, mover.marker.symbol)


def test_how_many_beat_the_anticausal_pairs_is_said() -> None:
    best = READERS.sort_values("value", ascending=False).drop_duplicates(["writer", "reader", "mode"])
    sure = (best.groupby("mode").head(20)["q_null"] <= 0.05).sum()
    assert f"{sure} of 60 beat anti-causal pairs" in note(plot.channel_graph(READERS))
    assert "beat" not in note(plot.channel_graph(READERS.drop(columns="q_null")))


@pytest.mark.parametrize(
    ("frame", "more", "message"),
    [
        (READERS.drop(columns="mode"), {}, "missing columns mode"),
        (READERS.iloc[:0], {}, "no rows, so there is nothing to draw"),
        (READERS.assign(writer="9.1"), {}, "node '9.1' is no component"),
        (READERS, {"top": 0}, "show at least one edge"),
        (READERS, {"by": "apart"}, "missing columns apart"),
        (READERS, {"classes": {f"L0H{i}": str(i) for i in range(9)}}, "9 classes; at most 8"),
    ],
)
def test_the_graph_names_what_is_wrong(frame: pd.DataFrame, more: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        plot.channel_graph(frame, **more)


# -- spectra and maps ------------------------------------------------------------------------------------------------


def test_the_spectrum_is_the_share_of_pairs_at_or_above() -> None:
    fig = plot.component_spectrum(SPECTRUM)
    own = SPECTRUM[SPECTRUM["mode"] == "K"]
    for column, name in (("causal", "causal pairs"), ("anticausal", "anti-causal pairs (nothing can flow)")):
        trace = named(fig, name)[1]
        counts = own[column].to_numpy(float)
        for x, y in ((trace.x[0], trace.y[0]), (trace.x[40], trace.y[40])):
            assert y == pytest.approx(counts[own["low"].to_numpy() >= x].sum() / counts.sum())
    assert named(fig, "causal pairs")[0].y[0] == 1.0
    assert fig.layout.yaxis2.type == "log"


def test_the_spectrum_tells_the_cosine_of_one_pair_in_a_hundred_thousand() -> None:
    rows = pd.DataFrame({
        "low": [0.0, 0.25, 0.5, 0.75], "high": [0.25, 0.5, 0.75, 1.0], "causal": [999_980, 5, 15, 0],
        "anticausal": [999_970, 25, 5, 0], "expected": [1e6 - 1e-3, 1e-3, 0.0, 0.0],
    })  # fmt: skip
    assert "0.50 / 0.25 / 0.00" in note(plot.component_spectrum(rows))


def test_the_map_has_the_highest_pair_of_two_layers() -> None:
    frame = composition_frame()
    fig = plot.composition_map(frame)
    q = named(fig, "Q")[0]
    want = frame[frame["mode"] == "Q"].pivot_table(
        index="reader_layer", columns="writer_layer", values="value", aggfunc="max"
    )
    np.testing.assert_allclose(q.z, want.to_numpy())
    assert "nothing can flow" in q.customdata[1][3] and "nothing can flow" not in q.customdata[3][1]
    best = frame[frame["causal"]].loc[frame[frame["causal"]]["value"].idxmax()]
    assert f"{best['writer']} to {best['reader']} ({best['mode']}) {best['value']:.2f}" in note(fig)
    assert fig.layout.coloraxis.cmax == pytest.approx(best["value"])


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: plot.component_spectrum(SPECTRUM.drop(columns="expected")), "missing columns expected"),
        (lambda: plot.component_spectrum(SPECTRUM.assign(causal=0)), "no causal pair was counted"),
        (lambda: plot.composition_map(composition_frame(), "z"), "missing columns z"),
        (lambda: plot.composition_map(composition_frame().iloc[:0]), "nothing to draw"),
    ],
)
def test_spectra_and_maps_name_what_is_wrong(draw: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        draw()


# -- lists -----------------------------------------------------------------------------------------------------------


def test_accuracy_by_items_has_each_condition_with_its_interval() -> None:
    fig = plot.accuracy_by_items(ITEMS, "family")
    for panel, family in enumerate("AB"):
        own = ITEMS[(ITEMS["family"] == family) & (ITEMS["condition"] == "edited")]
        line = named(fig, "edited")[panel]
        assert list(line.x) == own["items"].tolist()
        np.testing.assert_allclose(line.y, own["value"])
        np.testing.assert_allclose(line.error_y.array, 0.04)
        drawn = ITEMS[(ITEMS["family"] == family) & (ITEMS["control"] == "random direction")]
        median = named(fig, "control: random direction")[panel]
        np.testing.assert_allclose(median.y, drawn.groupby("items")["value"].median())
        guess = named(fig, "uniform guess")[panel]
        np.testing.assert_allclose(guess.y, 1 / np.arange(3, 11))
    assert "edited: largest change 10.0 points" in note(fig), "the mean over the families"


def test_a_chance_of_its_own_is_drawn() -> None:
    fig = plot.accuracy_by_items(ITEMS.assign(chance=0.5), "family")
    assert set(named(fig, "uniform guess")[0].y) == {0.5}


def test_in_one_dimension_each_item_has_a_line() -> None:
    frame = grid_frame(1)
    fig = plot.traversal_grid(frame)
    for item in range(4):
        own = frame[frame["item"] == item]
        np.testing.assert_allclose(named(fig, f"item {item + 1}")[0].y, own["share"])


def test_in_two_dimensions_each_place_shows_who_wins_and_how_surely() -> None:
    frame = grid_frame(2)
    fig = plot.traversal_grid(frame)
    (winner,), (others,) = named(fig, "winner"), named(fig, "others")
    share = frame.pivot_table(index="c1", columns="c0", values="share", aggfunc="max")
    assert share.loc[0.0, 0.0] == 0.25, "nobody points to the middle, so that there all win as many"
    share.loc[0.0, 0.0] = np.nan
    np.testing.assert_allclose(others.z, 1 - share.to_numpy())
    for i, c1 in enumerate(winner.y):
        for j, c0 in enumerate(winner.x):
            here = frame[(frame["c0"] == c0) & (frame["c1"] == c1)]
            want = here.loc[here["share"].idxmax(), "item"] if (c0, c1) != (0, 0) else np.nan
            np.testing.assert_equal(winner.z[i][j], want)
    best = frame[(frame["c0"] != 0) | (frame["c1"] != 0)]
    best = best.loc[best.groupby(["c0", "c1"])["share"].idxmax()]
    assert f"{best['item'].nunique()} of 4 items can be made to win" in note(fig)


def test_the_third_dimension_and_facets_are_panels() -> None:
    fig = plot.traversal_grid(grid_frame(3))
    assert [a.text for a in fig.layout.annotations if a.text.startswith("third")] == [
        "third coordinate = \u22122",
        "third coordinate = 0",
        "third coordinate = 2",
    ]
    two = pd.concat([grid_frame(1).assign(items=4), grid_frame(1, 5).assign(items=5)])
    fig = plot.traversal_grid(two, facet="items")
    # Each item is in the legend once, those that only a later panel has too.
    shown = [[t.showlegend for t in named(fig, f"item {i}")] for i in (1, 5)]
    assert shown == [[True, False], [True]]


def test_where_two_win_as_many_none_does() -> None:
    shares = {
        (0, 0): (0.6, 0.2, 0.2),
        (1, 0): (0.4, 0.4, 0.2),
        (0, 1): (0.1, 0.1, 0.3),
        (1, 1): (0.5, 0.5, 0),
    }
    rows = [
        {"s0": x, "s1": y, "item": i, "share": v} for (x, y), own in shares.items() for i, v in enumerate(own)
    ]
    fig = plot.traversal_grid(pd.DataFrame(rows), ["s0", "s1"])
    (winner,), (others,), (numbers,) = (named(fig, n) for n in ("winner", "others", "number of the winner"))
    np.testing.assert_array_equal(winner.z, [[0, np.nan], [2, np.nan]])
    np.testing.assert_allclose(others.z, [[0.4, np.nan], [0.7, np.nan]])
    assert (others.zmin, others.zmax) == (0.4, 1), "the most prompts of all are shown in full"
    assert list(zip(numbers.x, numbers.y, numbers.text, strict=True)) == [(0, 0, "1"), (0, 1, "3")]
    # White on the full dark colour of the first item, ink on the pale one of the last.
    assert list(numbers.textfont.color) == [theme.ON_DARK, theme.ON_LIGHT]
    assert "2 of 3 items can be made to win (1, 3)" in note(fig) and "2 of them tied" in note(fig)
    assert "full colour: 60%" in note(fig)
    assert fig.layout.meta["alt"].endswith("item 1 at 1 place, item 3 at 1 place, none at 2 places.")
    assert fig.layout.xaxis.title.text == "first coordinate, sd"


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: plot.accuracy_by_items(ITEMS.drop(columns="ci_lo")), "missing columns ci_lo"),
        (lambda: plot.accuracy_by_items(ITEMS), "two rows of 'clean' at 3 items"),
        (lambda: plot.accuracy_by_items(ITEMS.iloc[:0]), "nothing to draw"),
        (lambda: plot.traversal_grid(grid_frame(2).drop(columns=["c0", "c1"])), "0 coordinates; give 1 to 3"),
        (lambda: plot.traversal_grid(grid_frame(3), facet="item"), "3 coordinates and facets"),
        (lambda: plot.traversal_grid(grid_frame(2), ["c0"]), "two rows of item 0 at one place"),
        (lambda: plot.traversal_grid(pd.DataFrame()), "0 coordinates"),
    ],
)
def test_lists_name_what_is_wrong(draw: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        draw()


def test_classes_of_the_circuit_can_all_be_told_apart() -> None:
    fig = plot.channel_graph(READERS, CLASSES)
    looks = {(t.marker.color, t.marker.symbol) for t in fig.data if t.name in set(CLASSES.values())}
    assert len(looks) == len(set(CLASSES.values()))
