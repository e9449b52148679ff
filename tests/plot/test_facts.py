"""The figures of fact recall show the numbers of their tables."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from interp import plot
from interp.errors import UsageError
from interp.plot import theme
from tests.plot import fact_frames as f
from tests.plot.test_channels import named, note

MINUS = "\u2212"
AVERAGES = f.averages_frame()
MLPS = AVERAGES[AVERAGES["kind"] == "mlp_out"]


def line(fig: Any, name: str, axis: str = "x") -> Any:
    """The only drawn line of a name in a panel."""
    (trace,) = [t for t in named(fig, name) if (t.xaxis or "x") == axis]
    return trace


def captions(fig: Any) -> list[str]:
    return [a.text for a in fig.layout.annotations if a.font.weight == 600]


# -- causal maps -----------------------------------------------------------------------------------------------------


def test_a_map_has_every_cell_of_its_scenario_at_its_layer_and_place() -> None:
    fig = plot.causal_map(MLPS.sample(frac=1, random_state=1))
    assert [c.partition(" (")[0] for c in captions(fig)] == [s.capitalize() for s in f.SCENARIOS]
    for scenario in f.SCENARIOS:
        trace = named(fig, scenario)[0]
        want = MLPS[MLPS["scenario"] == scenario].pivot(index="place", columns="layer", values="aie")
        np.testing.assert_allclose(np.array(trace.z, float), want.loc[list(f.PLACES)].to_numpy())
    assert list(fig.layout.yaxis.ticktext) == list(f.PLACES) and fig.layout.yaxis.range == (5.5, -0.5)
    reach = MLPS["aie"].abs().max()
    assert (fig.layout.coloraxis.cmin, fig.layout.coloraxis.cmax) == pytest.approx((-reach, reach))
    assert "TE 0.41" in captions(fig)[0] and "n = 40" in captions(fig)[0]


def test_dots_are_the_cells_whose_interval_excludes_zero_and_are_read_on_their_colour() -> None:
    fig = plot.causal_map(MLPS)
    marks = named(fig, "interval excludes zero")
    for scenario, trace in zip(f.SCENARIOS, marks, strict=True):
        own = MLPS[MLPS["scenario"] == scenario]
        sure = own[(own["aie_lo"] > 0) | (own["aie_hi"] < 0)]
        want = {(r.layer, f.PLACES.index(r.place)) for r in sure.itertuples()}
        assert set(zip(trace.x, trace.y, strict=True)) == want
    dark = [c for x, c in zip(marks[0].x, marks[0].marker.color, strict=True) if x == 11]
    assert dark == [theme.ON_DARK] and theme.ON_LIGHT in marks[0].marker.color


def test_layers_that_are_left_out_leave_no_gap_in_a_map() -> None:
    fig = plot.causal_map(MLPS[MLPS["layer"].isin([0, 4, 10])])
    trace = named(fig, "exact recall")[0]
    assert list(trace.x) == [-2, 2, 7, 13] and np.array(trace.z).shape == (6, 3)
    assert fig.layout.xaxis.range == (-2, 13)
    assert {0, 4, 10} >= set(named(fig, "interval excludes zero")[0].x)


def test_colours_end_where_they_are_told_to() -> None:
    fig = plot.causal_map(MLPS, limit=0.05)
    assert fig.layout.coloraxis.cmax == 0.05 and "colours end at 0.05" in note(fig)
    assert plot.causal_map(MLPS, limit=9.0).layout.coloraxis.cmax == pytest.approx(MLPS["aie"].max())


def test_profiles_have_a_line_a_scenario_with_its_band_and_one_range_a_kind() -> None:
    fig = plot.effect_profiles(AVERAGES[AVERAGES["kind"] != "attn_out"], value="share")
    assert captions(fig) == [
        "Residual stream, last subject token", "Residual stream, last token", "MLP, last subject token",
        "MLP, last token",
    ]  # fmt: skip
    own = MLPS[(MLPS["scenario"] == "guesswork") & (MLPS["place"] == "last")]
    trace = line(fig, "guesswork", "x4")
    assert list(trace.y) == pytest.approx(list(own["share"])) and list(trace.x) == list(own["layer"])
    low, high = own["share_lo"].tolist(), own["share_hi"].tolist()
    bands = [t for t in named(fig, "band") if t.xaxis == "x4"]
    assert any(list(b.y) == pytest.approx([*low, *high[::-1]]) for b in bands)
    assert fig.layout.yaxis.range == fig.layout.yaxis2.range != fig.layout.yaxis3.range
    assert fig.layout.yaxis3.range == fig.layout.yaxis4.range


@pytest.mark.parametrize(("column", "other"), [("kind", "attn_out"), ("window", 5), ("severed", "mlp_out")])
def test_maps_of_several_kinds_are_not_mixed(column: str, other: Any) -> None:
    mixed = pd.concat([MLPS, MLPS.assign(**{column: other})])
    with pytest.raises(UsageError, match=f"causal_map: {column} is"):
        plot.causal_map(mixed)
    with pytest.raises(UsageError, match="more than once"):
        plot.causal_map(pd.concat([MLPS, MLPS.head(1)]))
    with pytest.raises(UsageError, match="two rows of 'exact recall' at layer 0"):
        plot.effect_profiles(pd.concat([MLPS, MLPS[MLPS["place"] == "last"].head(1)]))


# -- flow and layers -------------------------------------------------------------------------------------------------


def test_knockout_curves_are_those_of_their_source_and_scenario() -> None:
    rows = f.knockout_frame()
    fig = plot.knockout_curves(rows)
    own = rows[(rows["scenario"] == "guesswork") & (rows["source"] == "subject")]
    assert list(line(fig, "the subject", "x3").y) == pytest.approx(list(own["relative"]))
    assert "attention cut in 9 layers" in note(fig)
    sink = rows[rows["source"] == "other"].assign(source="first", relative=-7.0)
    assert set(line(plot.knockout_curves(pd.concat([rows, sink])), "the first token", "x3").y) == {-7.0}
    with pytest.raises(UsageError, match="two rows of 'the subject' at layer 0"):
        plot.knockout_curves(rows, None)


def test_extraction_in_any_layer_is_told_and_not_drawn() -> None:
    rows = f.rates_frame(("exact recall", "generic"))
    fig = plot.extraction_rates(rows)
    assert captions(fig) == ["Attention", "MLP"]
    assert min(line(fig, "exact recall").x) == 0
    assert "in any layer (exact recall, generic): attention 60%, 46%; MLP 60%, 46%" in note(fig)


def test_wild_bands_do_not_flatten_the_lines() -> None:
    rows = pd.DataFrame(
        {"layer": range(4), "v": [0.0, 0.2, 0.4, 0.1], "lo": -0.1, "hi": [0.1, 90.0, 0.5, 0.2]}
    )
    low, high = plot.layer_lines(rows, "v", ("lo", "hi"), title="t").layout.yaxis.range
    assert high < 1.0 and low < -0.1
    low, high = plot.layer_lines(rows.assign(hi=0.5), "v", ("lo", "hi"), title="t").layout.yaxis.range
    assert 0.5 < high < 0.55


def test_layers_are_marked_in_every_panel_and_panels_with_titles_have_their_own_ranges() -> None:
    rows = f.knockout_frame()
    titles = {"subject": "loss"}
    fig = plot.layer_lines(
        rows, "relative", panel="source", line="scenario", marked=[4, 7, 4], title="t", y=titles
    )
    shaded = [(s.xref, s.x0, s.x1) for s in fig.layout.shapes if s.name == "marked"]
    assert sorted(shaded) == sorted((x, n - 0.5, n + 0.5) for x in ("x", "x2", "x3") for n in (4, 7))
    assert fig.layout.yaxis.title.text == "loss" and fig.layout.yaxis2.range != fig.layout.yaxis3.range
    assert not named(fig, "band"), "no interval was asked for"


# -- census ----------------------------------------------------------------------------------------------------------


def test_the_census_has_every_relation_with_its_interval_and_what_it_rests_on() -> None:
    known, kinds = f.known_frame(), f.kinds_frame()
    fig = plot.fact_census(known, kinds)
    order = list(fig.layout.yaxis.ticktext)
    assert order[0] == "capital" and order[-1] == "all" and len(order) == len(f.RELATIONS) + 1
    trace = named(fig, "3 solved examples before")[0]
    own = known[known["shots"] == 3]
    assert list(trace.x) == list(own["accuracy"])
    assert [order[round(y)] for y in trace.y] == [r.replace("_", " ") for r in own["relation"]]
    np.testing.assert_allclose(trace.x + trace.error_x.array, own["hi"])
    bars = {name: named(fig, name)[0] for name in ("exact recall", "neither", "may rest on a heuristic")}
    told = kinds[kinds["known"] > 0]
    assert list(bars["exact recall"].x) == list(told["pure"])
    np.testing.assert_allclose(sum(np.array(b.x) for b in bars.values()), 1.0)
    assert f"{int(own[own['relation'] != 'all']['known'].sum())} of 320 questions right" in note(fig)
    beside = {a.text for a in fig.layout.annotations if a.xref == "x2 domain"}
    assert {"368", "0", "1480"} <= beside
    weight = told[told["relation"] != "all"]
    share = (weight["pure"] * weight["known"]).sum() / weight["known"].sum()
    assert f"{100 * share:.0f}% are exact recall" in note(fig)


# -- dissociation ----------------------------------------------------------------------------------------------------


def test_losses_stand_at_their_task_with_their_controls() -> None:
    rows = f.losses_frame()
    fig = plot.dissociation(rows, mechanisms=("fact layers 3", "retrieval heads"))
    names = list(fig.layout.xaxis.ticktext)
    assert names == [
        "chosen on",
        "held out",
        "same subjects",
        "other relations",
        "needles",
        "induction",
        "prose",
    ]
    trace = line(fig, "context and text", "x2")
    cut = rows[(rows["condition"] == "cut") & (rows["mechanism"] == "retrieval heads")].set_index("task")[
        "loss"
    ]
    assert [names[round(x)] for x in trace.x] == names[4:]
    assert list(trace.y) == list(cut[["needle", "induction", "prose"]])
    assert len(line(fig, "a matched control", "x2").x) == 5 * 7
    assert "5 matched controls" in note(fig)


def test_a_task_at_chance_shows_no_loss() -> None:
    fig = plot.dissociation(f.losses_frame(chance=("needle",)))
    assert all(round(x) != 4 for t in named(fig, "context and text") for x in t.x)
    assert sum(a.text == "at chance" for a in fig.layout.annotations) == len(f.MECHANISMS)


def test_gaps_have_intervals_and_verdicts() -> None:
    rows = f.gaps_frame()
    fig = plot.dissociation_gaps(rows)
    trace = named(fig, "facts less context, fact mechanism cut")[0]
    assert list(trace.x) == list(rows["mlp_gap"])
    np.testing.assert_allclose(trace.x - trace.error_x.arrayminus, rows["mlp_gap_lo"])
    said = [a.text for a in fig.layout.annotations if a.name != "subtitle"]
    assert (
        said.count("<b>holds</b>") == 1
        and said.count("context only") == (rows["verdict"] == "context only").sum()
    )
    with pytest.raises(UsageError, match="dissociation_gaps: scope is content and all"):
        plot.dissociation_gaps(pd.concat([rows, rows.assign(scope="all")]))


# -- edits -----------------------------------------------------------------------------------------------------------


def test_the_scoreboard_has_scores_before_once_and_after_each_way() -> None:
    rows = f.scoreboard_frame()
    fig = plot.edit_scoreboard(rows)
    lines = list(fig.layout.yaxis.ticktext)
    assert lines[0] == "before" and lines[-1].startswith("control") and "MEMIT, 10 at once" in lines
    dots = [t for t in named(fig, "wanted answer likelier than the other") if (t.xaxis or "x") == "x2"]
    at = {lines[round(y)]: x for t in dots for x, y in zip(t.x, t.y, strict=True)}
    after = rows[(rows["state"] == "after") & (rows["measure"] == "PS")]
    want = after[(after["method"] == "memit") & (after["at_once"] == 10)]["value"].iloc[0]
    assert at["MEMIT, 10 at once"] == want and at["before"] == 0.06 and len(at) == len(lines)
    assert sum(len(t.x) for t in dots) == len(lines), "before once, since it is the same for all"
    (greedy,) = [t for t in named(fig, "greedy decoding gives it") if t.xaxis == "x2" and len(t.x) == 5]
    assert greedy.x[0] == pytest.approx(0.8 - 0.04)
    assert not [t for t in named(fig, "greedy decoding gives it") if t.xaxis == "x4"]
    with pytest.raises(UsageError, match="has two rows"):
        plot.edit_scoreboard(rows.drop(columns="at_once"))


def test_edits_stand_against_the_effect_of_their_fact_and_layer() -> None:
    scan, effects = f.scan_frame(), f.traces_frame()
    fig = plot.edits_against_effects(scan, effects.sample(frac=1, random_state=2), f.localisation_frame())
    own = scan[(scan["state"] == "after") & (scan["kind"] == "paraphrase") & (scan["layer"] == 10)]
    means = own.groupby("record", sort=False)["magnitude"].mean()
    trace = line(fig, "layer 10", "x2")
    assert dict(zip(trace.customdata, trace.y, strict=True)) == pytest.approx(means.to_dict())
    effect = effects[effects["layer"] == 10].set_index("record")["effect"]
    assert list(trace.x) == pytest.approx(list(effect[list(trace.customdata)]))
    assert f"paraphrase: \u03c1 = {MINUS}0.11 over all" in note(fig) and "neighbour" not in note(fig)
    with pytest.raises(UsageError, match="filter the table to one trace"):
        plot.edits_against_effects(scan, pd.concat([effects, effects]))


# -- conflict --------------------------------------------------------------------------------------------------------


def test_the_balance_has_shares_that_add_up_and_the_ratio_with_its_interval() -> None:
    rows = f.ratios_frame()
    fig = plot.conflict_balance(rows)
    np.testing.assert_allclose(
        sum(np.array(named(fig, n)[0].x) for n in ("memory", "neither", "context")), 1.0
    )
    ratio = named(fig, "memorisation ratio")[0]
    assert list(ratio.x) == list(rows["ratio"]) and list(fig.layout.yaxis.ticktext) == list(f.SETTINGS)
    np.testing.assert_allclose(ratio.x - ratio.error_x.arrayminus, rows["ci_lo"])
    with pytest.raises(UsageError, match="occurs twice"):
        plot.conflict_balance(f.ratios_frame(("low", "high")))


def test_moves_stand_beside_the_mean_of_their_controls() -> None:
    rows = f.moves_frame()
    fig = plot.conflict_dose(rows)
    assert captions(fig) == ["Heads that carry the context", "Heads that carry the memory"]
    of = rows[(rows["family"] == "scale memory") & (rows["factor"] == 0.25)]
    chosen = line(fig, "attention \u00d7 0.25", "x2")
    assert list(chosen.y) == pytest.approx(list(of[of["control"] == ""]["d_memory"]))
    np.testing.assert_allclose(chosen.error_y.array, 0.07)
    np.testing.assert_allclose(chosen.error_y.arrayminus, 0.08)
    beside = line(fig, "attention \u00d7 0.25: controls", "x2")
    want = of[of["control"] != ""].groupby("k")["d_memory"].mean()
    assert list(beside.y) == pytest.approx(list(want)) and set(beside.customdata) == {10}
    assert [round(x) for x in chosen.x] == [0, 1, 2, 3] and list(fig.layout.xaxis.ticktext) == [
        "1",
        "4",
        "8",
        "16",
    ]
    margin = plot.conflict_dose(rows, "margin")
    assert line(margin, "heads cut").y[0] == pytest.approx(6 * line(fig, "heads cut").y[0])


def test_heads_of_context_and_memory_are_marked() -> None:
    rows = f.context_heads_frame()
    fig = plot.context_heads(rows)
    grid = np.array(fig.data[0].z, float)
    assert grid[3, 12] == 2.1 and grid[5, 21] == -1.7
    assert set(zip(fig.data[1].x, fig.data[1].y, strict=True)) == {(12, 3), (17, 0), (21, 5), (24, 8)}
    assert "2 heads that carry the context's answer and 2" in note(fig)
    assert fig.layout.coloraxis.cmax == -fig.layout.coloraxis.cmin == 2.1


# -- prior -----------------------------------------------------------------------------------------------------------


def test_accuracy_is_in_thirds_and_keeps_the_floor_rule() -> None:
    fig = plot.accuracy_by_prior(f.accuracy_frame().sample(frac=1, random_state=3))
    assert sorted(captions(fig)) == ["Acronym", "Counting", "Shift cipher"]
    panel = captions(fig).index("Acronym") + 1
    trace = line(fig, "beats seven others", "x" if panel == 1 else f"x{panel}")
    assert list(trace.x) == pytest.approx([0, 1, 2]) and list(trace.y) == pytest.approx([0.5, 0.62, 0.68])
    shifted = captions(fig).index("Shift cipher") + 1
    axis = "x" if shifted == 1 else f"x{shifted}"
    assert all(t.x is None or t.x[0] is None for t in fig.data if (t.xaxis or "x") == axis)
    assert sum("at chance" in a.text for a in fig.layout.annotations) == 1


def test_layers_of_the_prior_have_their_null_and_marks() -> None:
    rows = f.prior_layers_frame()
    fig = plot.prior_layers(rows)
    assert len(captions(fig)) == 4 and captions(fig)[1].startswith("Acronym: what can be read out")
    own = rows[(rows["task"] == "counting") & (rows["method"] == "added_mlp")]
    assert list(line(fig, "MLP", "x3").y) == pytest.approx(list(own["score"]))
    null = named(fig, "shuffled")
    assert len(null) == 4 and set(null[0].y) == {-0.21, 0.22}
    assert fig.layout.yaxis.range[0] < -0.21
    marks = next(t for t in named(fig, "beyond") if t.xaxis == "x3")
    lens = rows[(rows["task"] == "counting") & rows["method"].isin(["added", "added_mlp", "added_attn"])]
    assert len(marks.x) == (lens["q"] <= 0.05).sum() > 0


def test_changes_show_every_run_its_mean_and_leave_out_what_is_at_chance() -> None:
    rows = f.tuning_frame()
    fig = plot.changes_by_prior(rows, "kind", controls=("random",), title="t")
    runs = line(fig, "random")
    assert len(runs.x) == 6 * 4 and runs.marker.color == theme.CONTROL and runs.error_y.array is None
    mean = line(fig, "mean of random")
    own = rows[(rows["task"] == "acronym") & (rows["kind"] == "random")].groupby("prior")["delta"].mean()
    assert sorted(mean.y) == pytest.approx(sorted(own))
    one = line(fig, "all")
    assert one.error_y.array is not None and len(one.x) == 4
    status = rows["task"].map({"acronym": "ok", "counting": "at chance"})
    few = plot.changes_by_prior(rows.assign(status=status), "kind", title="t")
    assert captions(few) == ["Acronym"]
    with pytest.raises(UsageError, match="no row above chance has metric 'pair'"):
        plot.changes_by_prior(rows, "kind", "pair", title="t")


# -- all -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("draw", "frame"),
    [
        (plot.causal_map, AVERAGES), (plot.effect_profiles, AVERAGES), (plot.knockout_curves, f.knockout_frame()),
        (plot.extraction_rates, f.rates_frame()), (plot.fact_census, f.known_frame()),
        (plot.dissociation, f.losses_frame()), (plot.dissociation_gaps, f.gaps_frame()),
        (plot.edit_scoreboard, f.scoreboard_frame()), (plot.conflict_balance, f.ratios_frame()),
        (plot.conflict_dose, f.moves_frame()), (plot.context_heads, f.context_heads_frame()),
        (plot.accuracy_by_prior, f.accuracy_frame()), (plot.prior_layers, f.prior_layers_frame()),
    ],
)  # fmt: skip
def test_a_column_that_is_missing_is_named(draw: Any, frame: pd.DataFrame) -> None:
    with pytest.raises(UsageError, match=f"{draw.__name__}: missing columns"):
        draw(frame[["n"]] if "n" in frame else frame.iloc[:, :1])
