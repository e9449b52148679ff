"""Causal maps of facts: where a restored state brings the answer back, by layer and place of token.

Both figures take the averages of `interp.intervene.trace.aggregate`; a panel is a scenario (why the model says what it
says), since maps of recalled facts and of guesses differ and their mean shows neither.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from interp.errors import UsageError
from interp.plot import theme
from interp.plot.by_layer import SCENARIOS, by_layer, ends_of, inks, layer_ticks, peaks
from interp.plot.check import integers, need
from interp.plot.text import joined, number, safe, signed
from interp.plot.theme import Width

AVERAGES = ("kind", "window", "corruption", "metric", "layer", "place", "n", "te", "aie", "aie_lo", "aie_hi")
"""Columns of `aggregate` that are drawn; `share` with its ends where shares are asked for."""

PLACES = ("before", "first subject", "middle subject", "last subject", "first after", "further", "last")
"""Places of tokens in the order of the prompt."""

KINDS = {
    "resid_post": "residual stream", "mlp_out": "MLP", "attn_out": "attention",
    "resid_pre": "residual stream (pre)", "resid_mid": "residual stream (mid)",
}  # fmt: skip

VALUES = {"aie": "average indirect effect", "share": "share of the total effect"}
UNITS = {"probability": "probability", "logprob": "nats", "logit_diff": "logits"}
CORRUPTIONS = {"noise": "noise on the subject", "subject_swap": "subject replaced by another"}


def causal_map(
    averages: pd.DataFrame,
    panel: str = "scenario",
    *,
    value: str = "aie",
    places: Sequence[str] = PLACES[1:],
    limit: float | None = None,
    width: Width = "double",
) -> go.Figure:
    """Layer x place maps of the effect of restoring a state, one a scenario, in one range of colours.

    Dots mark cells whose 95 % interval excludes zero.

    Args:
        averages: rows of `aggregate` of one kind of state, window, corruption, metric and target.
        panel: column with a value a panel.
        value: `aie` (in units of the metric) or `share` (of the total effect).
        places: of tokens, from the top.
        limit: where colours end, so that one layer does not pale all others; None for the largest value.
        width: `single`, `double`, `page` or pixels.

    Raises:
        UsageError: missing columns, an unknown value, no such place, or several kinds, windows, ... in one panel.
    """
    rows = _one(_checked(averages, panel, value, "causal_map"), panel, "causal_map")
    found = [p for p in places if (rows["place"] == p).any()]
    if not found:
        raise UsageError(f"causal_map: no row has one of the places {', '.join(places)}")
    panels = _ordered(rows[panel].astype(str))
    layers = sorted({int(n) for n in rows["layer"]})
    edges = _edges(layers)
    font, total = theme.font_px(width), theme.pixels(width)
    left, gap_x, gap_y = (0.54 * max(map(len, found)) + 1.2) * font, 1.6 * font, 4.3 * font
    right = (6.4 if value == "aie" else 7.6) * font
    across = total - left - right
    columns = min(len(panels), 2) if (across - gap_x) / 2 >= 12 * font else 1
    lines = -(-len(panels) // columns)
    cell = (across - (columns - 1) * gap_x) / columns
    high = 1.5 * font * len(found)
    tall = high * lines + gap_y * (lines - 1)
    fig = theme.figure(
        f"What restoring the {KINDS.get(rows['kind'].iloc[0], rows['kind'].iloc[0])} brings back of the answer",
        _map_note(rows, limit), width=width, plot_height=tall, left=left, right=right, top=1.7 * font,
        bottom=3.6 * font, alt=_map_alt(rows, panel, value, found),
    )  # fmt: skip
    most = float(np.nanmax(np.abs(rows[rows["place"].isin(found)][value]))) or 1.0
    reach = min(most, limit or most)
    for i, name in enumerate(panels):
        column, line = i % columns, i // columns
        axis = "" if i == 0 else str(i + 1)
        x0, y1 = column * (cell + gap_x) / across, 1 - line * (high + gap_y) / tall
        own = rows[rows[panel].astype(str) == name]
        fig.update_layout({
            f"xaxis{axis}": {
                "domain": [x0, min(1.0, x0 + cell / across)], "anchor": f"y{axis}", "range": [edges[0], edges[-1]],
                "tickvals": layer_ticks(layers[-1], cell / font), "showline": False,
                "title": {"text": "layer" if i + columns >= len(panels) else ""},
            },
            f"yaxis{axis}": {
                "domain": [max(0.0, y1 - high / tall), y1], "anchor": f"x{axis}", "showline": False, "ticks": "",
                "range": [len(found) - 0.5, -0.5], "tickvals": list(range(len(found))),
                "ticktext": [safe(p) for p in found], "showticklabels": column == 0,
            },
        })  # fmt: skip
        _draw(fig, own, name, axis, found, layers, value, reach, font)
        fig.add_annotation(
            text=_caption(own, name, cell, font), x=0, xref=f"x{axis} domain", xanchor="left", xshift=-1, y=1,
            yref=f"y{axis} domain", yanchor="bottom", yshift=1, font={"weight": 600},
        )  # fmt: skip
    unit = UNITS.get(rows["metric"].iloc[0], rows["metric"].iloc[0])
    fig.update_layout(
        coloraxis={
            "cmin": -reach, "cmax": reach, "cmid": 0, "colorscale": theme.RDBU,
            "colorbar": theme.colorbar(
                f"AIE ({safe(unit)})" if value == "aie" else "share of TE", min(tall, 15 * font), font, y=1,
                yanchor="top", **({} if value == "aie" else {"tickformat": ".0%"}),
            ),
        }
    )  # fmt: skip
    return fig


def effect_profiles(
    averages: pd.DataFrame,
    line: str = "scenario",
    *,
    value: str = "aie",
    places: Sequence[str] = ("last subject", "last"),
    width: Width = "double",
) -> go.Figure:
    """The effect of restoring a state by layer, at the subject's last token and at the last: a line a scenario.

    Args:
        averages: rows of `aggregate` of one window a kind, one corruption, metric and target; a panel is a kind of
            state at a place, and panels of one kind have one range.
        line: column with a value a line.
        value: `aie` (in units of the metric) or `share` (of the total effect).
        places: of tokens.
        width: `single`, `double`, `page` or pixels.

    Raises:
        UsageError: missing columns, an unknown value, no such place, or two rows for one point.
    """
    rows = _checked(averages, line, value, "effect_profiles")
    rows = rows[rows["place"].isin(list(places))]
    if rows.empty:
        raise UsageError(f"effect_profiles: no row has one of the places {', '.join(places)}")
    for column in ("corruption", "metric", "severed", "target"):
        _agree(rows, column, "effect_profiles")
    kinds = list(dict.fromkeys(rows["kind"]))
    rows = rows.assign(place=pd.Categorical(rows["place"], [*places], ordered=True))
    rows = rows.sort_values("place", kind="stable").sort_values(
        "kind", key=lambda k: k.map(kinds.index), kind="stable"
    )
    panel = [f"{KINDS.get(k, k)}, {p} token" for k, p in zip(rows["kind"], rows["place"], strict=True)]
    drawn = rows.assign(
        panel=panel, line=rows[line].astype(str), value=rows[value], lo=rows[f"{value}_lo"], hi=rows[f"{value}_hi"],
        hover=[_told(r, value) for r in rows.to_dict("records")],
    )  # fmt: skip
    order = _ordered(rows[line].astype(str))
    unit = UNITS.get(rows["metric"].iloc[0], rows["metric"].iloc[0])
    return by_layer(
        drawn, inks(order, SCENARIOS), title="What restoring a state brings back of the answer, layer by layer",
        note=_profile_note(rows, line, value), y=f"AIE ({safe(unit)})" if value == "aie" else "share of TE",
        alt=f"Line charts of the {VALUES[value]} by layer. {peaks(drawn)}", width=width,
        scale=dict(zip(panel, rows["kind"], strict=True)),
        y_format="" if value == "aie" else ".0%",
    )  # fmt: skip


def _checked(averages: pd.DataFrame, column: str, value: str, what: str) -> pd.DataFrame:
    if value not in VALUES:
        raise UsageError(f"{what}: value {value!r} is unknown; write 'aie' or 'share'")
    values = (value, f"{value}_lo", f"{value}_hi")
    need(averages, (*AVERAGES, column, *values), what, numeric=("layer", "n", "te", *values))
    integers(averages, ("layer",), what)
    return averages


def _one(rows: pd.DataFrame, panel: str, what: str) -> pd.DataFrame:
    for column in ("kind", "window", "corruption", "metric", "severed", "target"):
        _agree(rows, column, what)
    twice = rows[rows.duplicated([panel, "layer", "place"])]
    if len(twice):
        r = twice.iloc[0]
        raise UsageError(f"{what}: {r[panel]!r} has layer {int(r['layer'])}, {r['place']!r} more than once")
    return rows


def _agree(rows: pd.DataFrame, column: str, what: str) -> None:
    values = list(dict.fromkeys(rows[column].astype(str))) if column in rows else []
    if len(values) > 1:
        raise UsageError(f"{what}: {column} is {' and '.join(values[:3])}; filter the table to one")


def _draw(
    fig: go.Figure,
    own: pd.DataFrame,
    name: str,
    axis: str,
    places: Sequence[str],
    layers: Sequence[int],
    value: str,
    reach: float,
    font: float,
) -> None:
    grid = np.full((len(places), len(layers)), np.nan)
    hover = np.full(grid.shape, "", dtype=object)
    marks: list[tuple[int, int, str]] = []
    for r in own[own["place"].isin(list(places))].to_dict("records"):
        y, x = places.index(r["place"]), layers.index(int(r["layer"]))
        grid[y, x] = r[value]
        hover[y, x] = f"<b>{safe(name)}</b>, layer {layers[x]}, {safe(r['place'])} token<br>{_told(r, value)}"
        if r[f"{value}_lo"] > 0 or r[f"{value}_hi"] < 0:
            marks.append((layers[x], y, theme.on((1 + r[value] / reach) / 2, theme.RDBU)))
    fig.add_heatmap(
        z=grid, x=_edges(layers), y=list(range(len(places))), coloraxis="coloraxis", hoverongaps=False,
        customdata=hover, xaxis=f"x{axis}", yaxis=f"y{axis}", name=safe(name),
        hovertemplate="%{customdata}<extra></extra>",
    )  # fmt: skip
    fig.add_shape(
        type="rect", xref=f"x{axis} domain", yref=f"y{axis} domain", x0=0, x1=1, y0=0, y1=1, layer="below",
        fillcolor=theme.ABSENT, line_width=0,
    )  # fmt: skip
    fig.add_scatter(
        x=[x for x, *_ in marks], y=[y for _, y, _ in marks], mode="markers", xaxis=f"x{axis}", yaxis=f"y{axis}",
        marker={"symbol": "circle", "size": 0.2 * font, "color": [color for *_, color in marks]}, showlegend=False,
        hoverinfo="skip",
        name="interval excludes zero",
    )  # fmt: skip


def _told(r: dict[str, Any], value: str) -> str:
    """A cell in words."""
    aie, lo, hi, te = (float(r[c]) for c in (value, f"{value}_lo", f"{value}_hi", "te"))
    parts = [
        f"{VALUES[value]} {signed(aie, 3)}",
        ends_of(lo, hi),
        f"total effect {number(te, 3)}, n = {r['n']}",
    ]
    return joined(parts, "<br>")


def _caption(own: pd.DataFrame, name: str, cell: float, font: float) -> str:
    """A panel's name with its prompts and their total effect, as far as there is room."""
    # Not every prompt has tokens of every place.
    most = own.loc[own["n"].idxmax()]
    te, n = float(most["te"]), int(most["n"])
    first = name[:1].upper() + name[1:]
    whole = f"{first} (n = {n}, TE {number(te)})"
    return safe(whole if 0.6 * font * len(whole) <= cell else first)


def _ordered(names: pd.Series) -> list[str]:
    """Scenarios in the order of their inks, then what else there is."""
    found = list(dict.fromkeys(names))
    return [n for n in SCENARIOS if n in found] + [n for n in found if n not in SCENARIOS]


def _edges(layers: Sequence[int]) -> list[float]:
    """Ends of the cells of layers, which touch where layers are left out."""
    middles = [(a + b) / 2 for a, b in itertools.pairwise(layers)]
    first, last = (middles[0], middles[-1]) if middles else (layers[0] + 0.5, layers[0] - 0.5)
    return [2 * layers[0] - first, *middles, 2 * layers[-1] - last]


def _map_note(rows: pd.DataFrame, limit: float | None) -> str:
    clipped = f"colours end at {limit:.2g}" if limit else ""
    return joined([_how(rows), "dots: 95% interval excludes zero", clipped, _severed(rows)])


def _how(rows: pd.DataFrame) -> str:
    corruption = str(rows["corruption"].iloc[0])
    widths = sorted({int(w) for w in rows["window"]})
    layers = "1 layer" if widths == [1] else f"windows of {' and '.join(map(str, widths))} layers"
    return f"corrupt run: {CORRUPTIONS.get(corruption, corruption)}; restored: {layers} of the clean run"


def _severed(rows: pd.DataFrame) -> str:
    severed = str(rows["severed"].iloc[0]) if "severed" in rows else ""
    return (
        f"later {KINDS.get(severed, severed)} outputs held corrupt"
        if severed not in ("", "None", "nan")
        else ""
    )


def _profile_note(rows: pd.DataFrame, line: str, value: str) -> str:
    sizes = rows.groupby(rows[line].astype(str), sort=False)["n"].max()
    told = ", ".join(f"{name} {int(n)}" for name, n in sizes.items())
    return joined([_how(rows), f"bands: 95% intervals; prompts: {told}", _severed(rows)])


def _map_alt(rows: pd.DataFrame, panel: str, value: str, places: Sequence[str]) -> str:
    parts = []
    for name, own in rows[rows["place"].isin(list(places))].groupby(panel, sort=False):
        best = own.loc[own[value].abs().idxmax()]
        parts.append(
            f"{name}: largest {signed(best[value])} at layer {int(best['layer'])}, {best['place']} token."
        )
    return f"Heat maps of the {VALUES[value]} by layer and place of token. " + " ".join(parts)
