"""Recall from lists: accuracy by the number of items, and which item wins over a grid of a channel."""

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

ACCURACY = ("items", "condition", "value", "ci_lo", "ci_hi", "n")
"""What each row says: number of items, what was done to the model, and its accuracy with its interval."""

CLEAN = ("clean", "uncut")
_LINES = (
    (theme.VERMILLION, "circle"), (theme.BLUE, "square"), (theme.GREEN, "diamond"), (theme.PURPLE, "triangle-up"),
    (theme.ORANGE, "cross"), (theme.SKY, "star"),
)  # fmt: skip
_GREYS = ("dash", "dot", "dashdot", "longdash")


def accuracy_by_items(
    rows: pd.DataFrame,
    facet: str | None = None,
    *,
    what: str = "accuracy among the items",
    width: Width = "double",
) -> go.Figure:
    """Accuracy over the number of items, one line a condition; grey: controls; dotted: a uniform guess.

    Args:
        rows: `items condition value ci_lo ci_hi n`; where there are, `control` (kind of control), `draw`, `chance` and
            the column of the facets. Conditions `clean` and `uncut` are the model as it is; those that begin with
            `control` or `random` are controls, several draws of which are shown by their median and 5-95 % range.
        facet: column with a value a panel, such as `family`, `split` or `position`; None is one panel.
        what: name of the value.
        width: `single`, `double`, `page` or pixels.

    Raises:
        UsageError: missing columns, no row, or two rows of one condition and number of items.
    """
    need(
        rows, (*ACCURACY, *([facet] if facet else [])), "accuracy_by_items", numeric=("items", *ACCURACY[2:])
    )
    integers(rows, ("items",), "accuracy_by_items")
    rows = rows.assign(
        facet=rows[facet].astype(str) if facet else "", name=_names(rows), chance=_chance(rows)
    )
    panels = list(dict.fromkeys(rows["facet"]))
    captions = [f"{facet}: {panel}".replace("_", " ") if facet else "" for panel in panels]
    sheet = Sheet.of(
        f"{what[0].upper()}{what[1:]}, by the number of items", _note(rows), captions, width, alt=_alt(rows, what),
        least=22 if len(panels) > 2 else 28,
    )  # fmt: skip
    names = list(dict.fromkeys(rows["name"]))
    told = [n for n in names if not _is_control(n) and n not in CLEAN]
    styles = {name: _LINES[i % len(_LINES)] for i, name in enumerate(told)}
    greys = {name: _GREYS[i % len(_GREYS)] for i, name in enumerate(n for n in names if _is_control(n))}
    shown: set[str] = set()
    for i, panel in enumerate(panels):
        own = rows[rows["facet"] == panel]
        guess = own.groupby("items")["chance"].first().sort_index()
        sheet.fig.add_scatter(
            x=guess.index, y=guess, mode="lines", name="uniform guess", showlegend=i == 0, legendrank=1003,
            line={"color": theme.MUTED, "width": 1, "dash": "dot"}, legendgroup="guess",
            hovertemplate="uniform guess of %{x}: %{y:.3f}<extra></extra>", **sheet.at(i),
        )  # fmt: skip
        for name in sorted(
            set(own["name"]), key=lambda n: (not _is_control(n), n not in CLEAN, names.index(n))
        ):
            part = own[own["name"] == name]
            if name in greys:
                _control(sheet, i, part, name, greys[name], name not in shown)
            else:
                color, symbol = (theme.INK, "circle-open") if name in CLEAN else styles[name]
                _line(sheet, i, part, name, color, symbol, name not in shown)
            shown.add(name)
        high = float(own["items"].max()) + 0.3
        sheet.axes(
            i, "items in the list", what if i % sheet.columns == 0 else "",
            (float(own["items"].min()) - 0.3, high), (-0.03, 1.03),
        )  # fmt: skip
        sheet.fig.update_layout({
            f"xaxis{sheet.axis(i)}": {"tickvals": _ticks(own["items"], sheet.room / sheet.font)}
        })  # fmt: skip
    return sheet.done()


def _names(rows: pd.DataFrame) -> list[str]:
    """Name of each line: the condition, and of a control its kind."""
    kinds = rows["control"].fillna("").astype(str) if "control" in rows else [""] * len(rows)
    return [
        f"control: {kind}" if kind and _is_control(str(c)) else str(c)
        for c, kind in zip(rows["condition"], kinds, strict=True)
    ]


def _is_control(name: str) -> bool:
    return name.startswith(("control", "random"))


def _chance(rows: pd.DataFrame) -> pd.Series:
    guess = 1.0 / rows["items"].astype(float)
    return rows["chance"].fillna(guess) if "chance" in rows else guess


def _ticks(items: pd.Series, room: float) -> list[int]:
    every = sorted({int(n) for n in items})
    step = -(-len(every) * 2 // max(2, int(room)))
    return every[::step]


def _line(
    sheet: Sheet, panel: int, part: pd.DataFrame, name: str, color: str, symbol: str, legend: bool
) -> None:
    part = part.sort_values("items")
    twice = part[part.duplicated("items")]
    if len(twice):
        raise UsageError(
            f"accuracy_by_items: two rows of {name!r} at {int(twice['items'].iloc[0])} items; filter the table, or "
            "name the column of the facets"
        )
    sheet.fig.add_scatter(
        x=part["items"], y=part["value"], mode="lines+markers", name=safe(name), legendgroup=name, showlegend=legend,
        line={"color": color, "width": 1.8},
        marker={"symbol": symbol, "size": 0.62 * sheet.font, "color": color, "line": {"width": 1.4, "color": color}},
        error_y={
            "array": part["ci_hi"] - part["value"], "arrayminus": part["value"] - part["ci_lo"], "color": color,
            "thickness": 1.1, "width": 0,
        },
        customdata=[
            [number(r.ci_lo, 3), number(r.ci_hi, 3), int(r.n), number(r.chance, 3)] for r in part.itertuples()
        ],
        hovertemplate=f"<b>{safe(name)}</b>, %{{x}} items: %{{y:.3f}}<br>95% interval %{{customdata[0]}} to "
        "%{customdata[1]}, n = %{customdata[2]}<br>a uniform guess: %{customdata[3]}<extra></extra>",
        **sheet.at(panel),
    )  # fmt: skip


def _control(sheet: Sheet, panel: int, part: pd.DataFrame, name: str, dash: str, legend: bool) -> None:
    """Median of the draws of a control; a band where there are several."""
    found = part.groupby("items")["value"]
    at = found.quantile([0.05, 0.5, 0.95]).unstack()
    draws = found.size()
    x = at.index.to_numpy(float).tolist()
    if (draws > 1).any() and len(x) > 1:
        sheet.band(panel, x, at[0.05].tolist(), at[0.95].tolist())
    sheet.fig.add_scatter(
        x=x, y=at[0.5], mode="lines+markers", name=safe(name), legendgroup=name, showlegend=legend, legendrank=1001,
        line={"color": theme.CONTROL, "width": 1.4, "dash": dash},
        marker={"color": theme.CONTROL, "symbol": "diamond-wide", "size": 0.5 * sheet.font},
        customdata=draws.to_numpy(),
        hovertemplate=f"<b>{safe(name)}</b>, %{{x}} items: %{{y:.3f}}<br>median of %{{customdata}} draws"
        "<extra></extra>",
        **sheet.at(panel),
    )  # fmt: skip


def _note(rows: pd.DataFrame) -> str:
    n = rows["n"].astype(int)
    per = count(int(n.min()), "prompt") if n.min() == n.max() else f"{n.min():,} to {n.max():,} prompts"
    parts = [f"{per} a point, bars: 95% intervals"]
    clean = rows[rows["name"].isin(CLEAN)].groupby("items")["value"].mean()
    others = [n for n in dict.fromkeys(rows["name"]) if not _is_control(n) and n not in CLEAN]
    if len(clean) and others:
        edited = rows[rows["name"] == others[0]].groupby("items")["value"].mean()
        gain = (edited - clean).dropna()
        if len(gain):
            at = int(gain.abs().idxmax())
            parts.append(f"{others[0]}: largest change {percent(gain[at])[:-1]} points, at {at} items")
    return joined(parts)


def _alt(rows: pd.DataFrame, what: str) -> str:
    parts = []
    for (panel, name), own in rows.groupby(["facet", "name"], sort=False):
        at = own.groupby("items")["value"].median()
        told = ", ".join(f"{number(v)} at {n}" for n, v in at.items())
        parts.append(f"{joined([str(panel), str(name)], ', ')}: {told}.")
    return f"Line chart of {what} over the number of items. " + " ".join(parts)


def traversal_grid(
    grid: pd.DataFrame,
    axes: Sequence[str] | None = None,
    *,
    facet: str | None = None,
    width: Width = "double",
) -> go.Figure:
    """Which item of the list wins where a channel's coordinates are set: lines in one dimension, maps in two and three.

    Args:
        grid: one row a place and item: the coordinates, `item` (place in the list, from 0) and `share` (of the prompts
            on which it wins). The third coordinate is cut into panels.
        axes: names of the coordinates, at most three; None takes the columns `c0`, `c1`, `c2` that there are.
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
    captions = [f"{split} = {_short(p)}".replace("_", " ") if split else "" for p in panels]
    items = sorted({int(i) for i in rows["item"]})
    colors = _item_colors(items)
    flat = len(chosen) > 1
    sheet = Sheet.of(
        "Which item wins where the channel is set", _grid_note(rows, chosen, flat), captions, width,
        alt=_grid_alt(rows, chosen), least=28 if len(panels) < 3 else 19, tall=15,
    )  # fmt: skip
    for i, panel in enumerate(panels):
        own = rows[rows["panel"] == panel]
        if flat:
            _map(sheet, i, own, chosen, items, colors)
        else:
            _curves(sheet, i, own, chosen[0], items, colors)
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
    sheet: Sheet, panel: int, own: pd.DataFrame, axis: str, items: Sequence[int], colors: dict[int, str]
) -> None:
    dashes = ("solid", "dash", "dot", "dashdot", "longdash")
    for n, item in enumerate(items):
        part = own[own["item"] == item].sort_values(axis)
        sheet.fig.add_scatter(
            x=part[axis], y=part["share"], mode="lines", name=f"item {item + 1}", legendgroup=str(item),
            showlegend=panel == 0, line={"color": colors[item], "width": 2, "dash": dashes[n % len(dashes)]},
            hovertemplate=f"<b>item {item + 1}</b> wins on %{{y:.1%}} at {safe(axis)} = %{{x:.3g}}<extra></extra>",
            **sheet.at(panel),
        )  # fmt: skip
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
) -> None:
    """The winner's colour in each place, the paler the fewer prompts it wins."""
    best = own.loc[own.groupby(list(axes[:2]))["share"].idxmax()]
    xs, ys = (sorted(set(best[axis])) for axis in axes[:2])
    z, faint = np.full((len(ys), len(xs)), np.nan), np.full((len(ys), len(xs)), np.nan)
    hover = np.full((len(ys), len(xs)), "", dtype=object)
    for place, part in own.groupby(list(axes[:2])):
        at = ys.index(place[1]), xs.index(place[0])
        part = part.sort_values("share", ascending=False)
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
        z=faint, x=xs, y=ys, zmin=0, zmax=1, showscale=False, hoverinfo="skip", name="others", xgap=0.5, ygap=0.5,
        showlegend=False, colorscale=[[0, "rgba(255,255,255,0)"], [1, "rgba(255,255,255,0.9)"]], **sheet.at(panel),
    )  # fmt: skip
    y = _named(axes[1]) if panel % sheet.columns == 0 else ""
    ends = [_ends(values) for values in (xs, ys)]
    sheet.axes(panel, _named(axes[0]), y, ends[0], ends[1])
    sheet.fig.update_layout({f"yaxis{sheet.axis(panel)}": {"showgrid": False}})


def _ends(values: Sequence[float]) -> tuple[float, float]:
    half = (values[-1] - values[0]) / max(1, len(values) - 1) / 2 or 0.5
    return float(values[0] - half), float(values[-1] + half)


def _named(axis: str) -> str:
    known = {"c0": "first coordinate", "c1": "second coordinate", "c2": "third coordinate"}
    return known.get(axis, safe(axis.replace("_", " ")))


def _grid_note(rows: pd.DataFrame, axes: Sequence[str], flat: bool) -> str:
    best = rows.loc[rows.groupby(["panel", *axes])["share"].idxmax()]
    reached = sorted({int(i) + 1 for i in best["item"]})
    every = rows["item"].nunique()
    parts = [
        f"{len(reached)} of {count(every, 'item')} can be made to win ({', '.join(map(str, reached))})",
        f"{count(len(best), 'place')} of the grid",
    ]
    if flat:
        parts.append("paler: wins on fewer prompts")
    return joined(parts)


def _grid_alt(rows: pd.DataFrame, axes: Sequence[str]) -> str:
    best = rows.loc[rows.groupby(["panel", *axes])["share"].idxmax()]
    wins = best["item"].astype(int).value_counts().sort_index()
    told = ", ".join(f"item {i + 1} at {count(int(n), 'place')}" for i, n in wins.items())
    return f"Grid of {len(axes)} coordinates of a channel and the item that wins at each: {told}."
