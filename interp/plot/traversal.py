"""Which item of a list wins over a grid of a channel's coordinates: lines, or maps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.colors
import plotly.graph_objects as go

from interp.errors import UsageError
from interp.plot import theme
from interp.plot.check import integers, need
from interp.plot.sheet import Sheet
from interp.plot.text import count, joined, number, percent, safe
from interp.plot.theme import Width

_VEIL = 0.85
"""White over a place of a map where the winner hardly wins."""


def traversal_grid(
    grid: pd.DataFrame,
    axes: Sequence[str] | None = None,
    *,
    facet: str | None = None,
    width: Width = "double",
) -> go.Figure:
    """Which item of the list wins where a channel's coordinates are set: lines in one dimension, maps in two and three.

    On a map a place has the colour and number of its item, in full where an item wins the most prompts of all, and
    the paler the fewer it wins; where two win as many, none does, and the place is empty.

    Args:
        grid: one row a place and item: the coordinates, `item` (place in the list, from 0) and `share` (of the prompts
            on which it wins). The third coordinate is cut into panels.
        axes: names of the coordinates, at most three; None takes the columns `c0`, `c1`, `c2` that there are. `s0` to
            `s2` are said to be in standard deviations.
        facet: another column with a value a panel, such as the number of items; not with three coordinates.
        width: `single`, `double`, `page` or pixels.

    Raises:
        UsageError: missing columns, no coordinate or more than three, no row, or two rows of one place and item.
    """
    chosen = (
        list(axes)
        if axes is not None
        else [c for c in ("c0", "c1", "c2") if c in getattr(grid, "columns", ())]
    )
    if not 1 <= len(chosen) <= 3 or (facet and len(chosen) == 3):
        raise UsageError(
            f"traversal_grid: {len(chosen)} coordinates{' and facets' if facet else ''}; give 1 to 3 (with facets 1 or "
            "2) by axes=, or columns c0, c1, c2"
        )
    wanted = (*chosen, "item", "share", *([facet] if facet else []))
    need(grid, wanted, "traversal_grid", numeric=(*chosen, "item", "share"))
    integers(grid, ("item",), "traversal_grid")
    split = facet or (chosen[2] if len(chosen) == 3 else None)
    rows = grid.assign(panel=grid[split] if split else "")
    twice = rows[rows.duplicated(["panel", *chosen, "item"])]
    if len(twice):
        raise UsageError(
            f"traversal_grid: two rows of item {int(twice['item'].iloc[0])} at one place; average over what differs, "
            "or name it as facet"
        )
    panels = sorted(set(rows["panel"])) if split else [""]
    captions = [f"{_named(split)} = {_short(p)}" if split else "" for p in panels]
    items = sorted({int(i) for i in rows["item"]})
    colors = _item_colors(items)
    flat = len(chosen) > 1
    sheet = Sheet.of(
        "Which item wins where the channel is set", _grid_note(rows, chosen, flat), captions, width,
        alt=_grid_alt(rows, chosen), least=28 if len(panels) < 3 else 19, tall=15,
    )  # fmt: skip
    top = float(rows["share"].max())
    told: set[int] = set()
    for i, panel in enumerate(panels):
        own = rows[rows["panel"] == panel]
        if flat:
            _map(sheet, i, own, chosen, items, colors, top)
        else:
            _curves(sheet, i, own, chosen[0], colors, told)
    if flat:
        for item in items:
            sheet.fig.add_scatter(
                x=[None], y=[None], mode="markers", name=f"item {item + 1}", showlegend=True, hoverinfo="skip",
                marker={"symbol": "square", "size": 9, "color": colors[item]},
            )  # fmt: skip
    return sheet.done()


def _item_colors(items: Sequence[int]) -> dict[int, str]:
    """Colours from dark to light in the order of the list."""
    steps = np.linspace(0.0, 0.88, len(items)) if len(items) > 1 else [0.0]
    return dict(zip(items, plotly.colors.sample_colorscale(theme.VIRIDIS, list(steps)), strict=True))


def _short(value: Any) -> str:
    return (
        number(float(value)).removesuffix(".00") if isinstance(value, (int, float, np.number)) else str(value)
    )


def _curves(
    sheet: Sheet, panel: int, own: pd.DataFrame, axis: str, colors: dict[int, str], told: set[int]
) -> None:
    """A line an item; the legend has each once, by the first panel that it is in."""
    dashes = ("solid", "dash", "dot", "dashdot")
    for n, item in enumerate(colors):
        part = own[own["item"] == item].sort_values(axis)
        if part.empty:
            continue
        sheet.fig.add_scatter(
            x=part[axis], y=part["share"], mode="lines", name=f"item {item + 1}", legendgroup=str(item),
            showlegend=item not in told, line={"color": colors[item], "width": 2, "dash": dashes[n % len(dashes)]},
            hovertemplate=f"<b>item {item + 1}</b> wins on %{{y:.1%}} at {safe(axis)} = %{{x:.3g}}<extra></extra>",
            **sheet.at(panel),
        )  # fmt: skip
        told.add(item)
    low, high = float(own[axis].min()), float(own[axis].max())
    y = "share of prompts it wins" if panel % sheet.columns == 0 else ""
    sheet.axes(panel, _named(axis), y, (low, high if high > low else low + 1), (-0.03, 1.03))


def _map(
    sheet: Sheet,
    panel: int,
    own: pd.DataFrame,
    axes: Sequence[str],
    items: Sequence[int],
    colors: dict[int, str],
    top: float,
) -> None:
    """The winner's colour and number in each place, the paler the fewer prompts it wins; nothing at a tie."""
    xs, ys = (sorted(set(own[axis])) for axis in axes[:2])
    z, faint = np.full((len(ys), len(xs)), np.nan), np.full((len(ys), len(xs)), np.nan)
    hover = np.full((len(ys), len(xs)), "", dtype=object)
    for place, part in own.groupby(list(axes[:2])):
        at = ys.index(place[1]), xs.index(place[0])
        part = part.sort_values("share", ascending=False, kind="stable")
        if len(_winner(part)):
            z[at], faint[at] = items.index(int(part["item"].iloc[0])), 1 - float(part["share"].iloc[0])
        told = "<br>".join(
            f"item {int(r.item) + 1}: {percent(float(r.share))}" for r in part.head(4).itertuples()
        )
        where = ", ".join(f"{safe(a)} {_short(v)}" for a, v in zip(axes[:2], place, strict=True))
        hover[at] = f"<b>{where}</b><br>{told}"
    n = len(items)
    scale = [
        stop for k, item in enumerate(items) for stop in ([k / n, colors[item]], [(k + 1) / n, colors[item]])
    ]
    sheet.fig.add_heatmap(
        z=z, x=xs, y=ys, zmin=-0.5, zmax=n - 0.5, colorscale=scale, showscale=False, customdata=hover, xgap=0.5,
        ygap=0.5, hovertemplate="%{customdata}<extra></extra>", name="winner", showlegend=False, **sheet.at(panel),
    )  # fmt: skip
    sheet.fig.add_heatmap(
        z=faint, x=xs, y=ys, zmin=1 - top, zmax=1, showscale=False, hoverinfo="skip", name="others", xgap=0.5, ygap=0.5,
        showlegend=False, colorscale=[[0, "rgba(255,255,255,0)"], [1, f"rgba(255,255,255,{_VEIL})"]], **sheet.at(panel),
    )  # fmt: skip
    if sheet.room / len(xs) >= 1.8 * sheet.font:
        places = np.argwhere(np.isfinite(z)).tolist()
        numbers = [items[int(z[y, x])] for y, x in places]
        veils = [_VEIL * (1 - (1 - faint[y, x]) / top) for y, x in places]
        inks = [
            theme.on(0, [[0, _veiled(colors[k], v)], [1, "#fff"]])
            for k, v in zip(numbers, veils, strict=True)
        ]
        sheet.fig.add_scatter(
            x=[xs[x] for _, x in places], y=[ys[y] for y, _ in places], mode="text", text=[str(k + 1) for k in numbers],
            textfont={"color": inks, "size": 0.8 * sheet.font}, hoverinfo="skip", name="number of the winner",
            showlegend=False, **sheet.at(panel),
        )  # fmt: skip
    y = _named(axes[1]) if panel % sheet.columns == 0 else ""
    ends = [_ends(values) for values in (xs, ys)]
    sheet.axes(panel, _named(axes[0]), y, ends[0], ends[1])
    sheet.fig.update_layout({f"yaxis{sheet.axis(panel)}": {"showgrid": False}})


def _winner(part: pd.DataFrame) -> pd.DataFrame:
    """The row of the item that wins at a place; none where two win as many."""
    best = part[part["share"] == part["share"].max()]
    return best if len(best) == 1 else best.head(0)


def _veiled(color: str, share: float) -> str:
    """A colour under so much white."""
    rgb = plotly.colors.unlabel_rgb(color)
    return plotly.colors.label_rgb(tuple(round(c + (255 - c) * share) for c in rgb))


def _ends(values: Sequence[float]) -> tuple[float, float]:
    half = (values[-1] - values[0]) / max(1, len(values) - 1) / 2 or 0.5
    return float(values[0] - half), float(values[-1] + half)


def _named(axis: str) -> str:
    places = {"0": "first", "1": "second", "2": "third"}
    if axis[:-1] in ("c", "s") and axis[-1:] in places:
        return f"{places[axis[-1]]} coordinate{', sd' if axis[0] == 's' else ''}"
    return safe(axis.replace("_", " "))


def _won(rows: pd.DataFrame, axes: Sequence[str]) -> tuple[pd.DataFrame, int]:
    """The rows of the items that win at a place, and how many places there are."""
    places = [part for _, part in rows.groupby(["panel", *axes])]
    return pd.concat([_winner(part) for part in places]), len(places)


def _grid_note(rows: pd.DataFrame, axes: Sequence[str], flat: bool) -> str:
    won, places = _won(rows, axes)
    reached = sorted({int(i) + 1 for i in won["item"]})
    every = rows["item"].nunique()
    which = f" ({', '.join(map(str, reached))})" if reached else ""
    parts = [
        f"{len(reached)} of {count(every, 'item')} can be made to win{which}",
        f"{count(places, 'place')} of the grid"
        + (f", {places - len(won):,} of them tied" if len(won) < places else ""),
    ]
    if flat:
        parts.append(
            f"paler: wins on fewer prompts, full colour: {percent(float(rows['share'].max()), digits=0)}"
        )
    return joined(parts)


def _grid_alt(rows: pd.DataFrame, axes: Sequence[str]) -> str:
    won, places = _won(rows, axes)
    told = [
        f"item {i + 1} at {count(int(n), 'place')}"
        for i, n in won["item"].astype(int).value_counts().sort_index().items()
    ]
    ties = [f"none at {count(places - len(won), 'place')}"] if len(won) < places else []
    return (
        f"Grid of {count(len(axes), 'coordinate')} of a channel and the item that wins at each: "
        f"{', '.join([*told, *ties])}."
    )
