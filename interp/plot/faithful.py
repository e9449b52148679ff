"""How much of a model's behaviour the first items of an order carry: faithfulness curves with random controls."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from interp.errors import UsageError
from interp.plot import theme
from interp.plot.check import need
from interp.plot.sheet import Sheet
from interp.plot.text import count, joined, number, safe
from interp.plot.theme import Width

CURVES = ("order", "share", "items", "f", "ci_lo", "ci_hi")
"""A size of a faithfulness curve; orders that begin with `random` are controls."""

_INKS = (theme.BLUE, theme.VERMILLION, theme.GREEN, theme.PURPLE, theme.ORANGE, theme.INK)
_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "star")


def faithfulness_curves(
    curves: pd.DataFrame,
    areas: pd.DataFrame | None = None,
    *,
    facet: str | None = None,
    width: Width = "double",
) -> go.Figure:
    """How much of the behaviour the first items of an order carry, with intervals; grey: random orders.

    Args:
        curves: `order share items f ci_lo ci_hi`, as `Faithfulness.frame`.
        areas: `order cpr cmd`, as `Faithfulness.areas`, told in the legend; with facets their column too.
        facet: column with a value a panel, such as `task`, `ablation` or `level`; None is one panel.
        width: `single`, `double`, `page` or pixels.

    Raises:
        UsageError: missing columns, no row, or an order with two rows of one size.
    """
    more = [facet] if facet else []
    need(curves, (*CURVES, *more), "faithfulness_curves", numeric=CURVES[1:])
    if areas is not None:
        need(areas, ("order", "cpr", "cmd", *more), "faithfulness_curves areas", numeric=("cpr", "cmd"))
    rows = curves.assign(panel=curves[facet].astype(str) if facet else "")
    rows = rows[rows["share"] > 0]
    twice = rows[rows.duplicated(["panel", "order", "share"])]
    if len(twice):
        raise UsageError(
            f"faithfulness_curves: two rows of {twice['order'].iloc[0]!r} at {float(twice['share'].iloc[0]):.1%}; "
            "filter the table, or name what differs as facet"
        )
    random = rows["order"].astype(str).str.startswith("random")
    names = list(dict.fromkeys(rows[~random]["order"]))
    panels = list(dict.fromkeys(rows["panel"]))
    captions = [f"{facet}: {p}" if facet else "" for p in panels]
    sheet = Sheet.of(
        "How much of the behaviour the circuit carries", _faith_note(rows, names, areas, facet), captions, width,
        alt=_faith_alt(rows, names), least=24,
    )  # fmt: skip
    seen = rows[["f", "ci_lo", "ci_hi"]].to_numpy(float)
    low, high = min(-0.05, max(-1.0, float(np.nanmin(seen)))), max(1.1, min(2.0, float(np.nanmax(seen))))
    ends = (float(np.log10(rows["share"].min())) - 0.08, 0.08)
    for i, panel in enumerate(panels):
        own = rows[rows["panel"] == panel]
        sheet.fig.add_scatter(
            x=[10**e for e in ends], y=[1.0, 1.0], mode="lines", name="the whole model", showlegend=i == 0,
            hoverinfo="skip", line={"color": theme.MUTED, "dash": "dot", "width": 1}, **sheet.at(i),
        )  # fmt: skip
        _random(sheet, i, own[own["order"].astype(str).str.startswith("random")])
        for k, name in enumerate(names):
            part = own[own["order"] == name].sort_values("share")
            if len(part):
                _curve(sheet, i, part, str(name), _INKS[k % len(_INKS)], _SYMBOLS[k % len(_SYMBOLS)], i == 0)
        y_title = "share of the behaviour" if i % sheet.columns == 0 else ""
        sheet.axes(i, "share of items kept", y_title, ends, (low, high))
        ticks = [t for t in (1e-4, 1e-3, 0.01, 0.1, 1.0) if np.log10(t) >= ends[0]]
        sheet.fig.update_layout({
            f"xaxis{sheet.axis(i)}": {
                "type": "log", "tickvals": ticks, "ticktext": [f"{100 * t:g}%" for t in ticks], "minor": {"ticks": ""},
            },
            f"yaxis{sheet.axis(i)}": {"tickformat": ".0%"},
        })  # fmt: skip
    return sheet.done()


def _random(sheet: Sheet, panel: int, own: pd.DataFrame) -> None:
    """Median and range of the random orders."""
    if own.empty:
        return
    at = own.groupby("share")["f"].agg(["median", "min", "max"])
    x = at.index.to_numpy(float).tolist()
    draws = own["order"].nunique()
    if draws > 1:
        sheet.band(panel, x, at["min"].tolist(), at["max"].tolist())
    sheet.fig.add_scatter(
        x=x, y=at["median"], mode="lines", name="random orders", legendgroup="random", showlegend=panel == 0,
        line={"color": theme.CONTROL, "dash": "dash", "width": 1.4},
        hovertemplate=f"{count(draws, 'random order')}: median %{{y:.1%}} with %{{x:.1%}} of the items<extra></extra>",
        **sheet.at(panel),
    )  # fmt: skip


def _curve(
    sheet: Sheet, panel: int, part: pd.DataFrame, name: str, color: str, symbol: str, legend: bool
) -> None:
    x = part["share"].tolist()
    sheet.band(panel, x, part["ci_lo"].tolist(), part["ci_hi"].tolist(), theme.faint(color))
    sheet.fig.add_scatter(
        x=x, y=part["f"], mode="lines+markers", name=safe(name), legendgroup=name, showlegend=legend,
        line={"color": color, "width": 1.8}, marker={"symbol": symbol, "size": 0.55 * sheet.font, "color": color},
        customdata=[[int(r.items), number(100 * r.ci_lo, 1), number(100 * r.ci_hi, 1)] for r in part.itertuples()],
        hovertemplate=f"<b>{safe(name)}</b>: %{{customdata[0]}} items (%{{x:.1%}})<br>%{{y:.1%}} of the behaviour<br>"
        "95% interval %{customdata[1]} to %{customdata[2]}%<extra></extra>",
        **sheet.at(panel),
    )  # fmt: skip


def _faith_note(
    rows: pd.DataFrame, names: Sequence[str], areas: pd.DataFrame | None, facet: str | None
) -> str:
    parts = ["100%: as the whole model, 0%: as without any item; bands: 95% intervals"]
    if areas is not None and not facet:
        own = areas[areas["order"].isin(list(names))]
        parts += [f"{r.order}: CPR {number(r.cpr)}, CMD {number(r.cmd)}" for r in own.itertuples()]
        drawn = areas[areas["order"].astype(str).str.startswith("random")]
        if len(drawn):
            parts.append(f"random: CPR {number(drawn['cpr'].mean())}, CMD {number(drawn['cmd'].mean())}")
    elif "ablation" in rows and rows["ablation"].nunique() == 1:
        parts.append(f"others ablated by {rows['ablation'].iloc[0]}")
    return joined(parts)


def _faith_alt(rows: pd.DataFrame, names: Sequence[str]) -> str:
    parts = []
    for (panel, name), own in rows[rows["order"].isin(list(names))].groupby(["panel", "order"], sort=False):
        told = ", ".join(
            f"{number(r.f)} at {100 * r.share:g}%" for r in own.sort_values("share").itertuples()
        )
        parts.append(f"{joined([str(panel), str(name)], ', ')}: {told}.")
    return "Line chart of the share of the behaviour over the share of items kept. " + " ".join(parts)
