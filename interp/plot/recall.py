"""What a model recalls of the tasks: every size of every ladder beside a guess, and curves over what is asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from interp.errors import UsageError
from interp.plot import theme
from interp.plot.check import need
from interp.plot.curves import Scale
from interp.plot.sheet import Sheet
from interp.plot.text import count, joined, listed, number, percent, safe
from interp.plot.theme import Width

LADDER = (
    "task", "param", "size", "n", "guess", "judged", "status", "accuracy", "accuracy_lo", "accuracy_hi", "choice",
    "choice_lo", "choice_hi", "logit_diff", "logit_diff_lo", "logit_diff_hi",
)  # fmt: skip
"""What each row says of a task at one size; `status` is `ok`, `at chance` or `not asked`."""

CURVES = ("task", "axis", "by", "line", "metric", "x", "value", "ci_lo", "ci_hi", "n", "chance")
"""What each row says of a point of a curve; `line` tells lists of different lengths apart, and is empty else."""

OK, NOT_ASKED = "ok", "not asked"
_SHARES = {"choice": ("choice among the candidates", theme.BLUE, "circle", -0.17),
           "accuracy": ("exact answer", theme.ORANGE, "diamond", 0.17)}  # fmt: skip
_DIFFERENCE = ("logit_diff", "answer less foil", theme.GREEN, "square")
_RANKS = (theme.SKY, theme.BLUE, theme.GREEN, theme.ORANGE, theme.VERMILLION, theme.PURPLE, theme.INK)
_LOG = ("length", "distance", "updates", "set size")
"""Axes on a scale of logarithms."""


# -- ladders ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Line:
    """A line of the figure: its place from the top, its label, and the row that it shows, where it is no heading."""

    y: float
    label: str
    row: Any = None


def recall_ladder(table: pd.DataFrame, *, title: str = "", width: Width = "double") -> go.Figure:
    """Every size of some tasks: choice and exact answer beside a guess, and the logits of answer less foil.

    Marks are open where the floor rule says that the model is at chance.

    Args:
        table: the columns `LADDER`; a row a size.
        title: of the figure; default what it shows.
        width: `single`, `double`, `page` or pixels.

    Raises:
        UsageError: missing columns, no row, or a size of a task twice.
    """
    need(table, LADDER, "recall_ladder", numeric=(*LADDER[3:5], *LADDER[7:]))
    if table.duplicated(["task", "param", "size"]).any():
        twice = table[table.duplicated(["task", "param", "size"])].iloc[0]
        raise UsageError(f"recall_ladder: {twice['task']!r} has two rows of {_size(twice)!r}; filter to one")
    title = title or "What is recalled, by task and size"
    lines, end = _lines(table)
    font, total = theme.font_px(width), theme.pixels(width)
    longest = max(0.6 * len(line.label) if line.row is None else 0.54 * len(line.label) for line in lines)
    left, right, gap, apart = (longest + 1.2) * font, 1.4 * font, 2.2 * font, 5.4 * font
    two = bool(table["logit_diff"].notna().any())
    stacked = two and total < 45 * font
    rows_h = 1.55 * font * (end + 0.2)
    tall = 2 * rows_h + apart if stacked else rows_h
    fig = theme.figure(
        title, _ladder_note(table), width=width, plot_height=tall, left=left, right=right, top=1.7 * font,
        bottom=6.2 * font, alt=_ladder_alt(title, table),
    )  # fmt: skip
    across = total - left - right
    split = 0.6 if two and not stacked else 1.0
    ticks: dict[str, Any] = {
        "tickvals": [line.y for line in lines],
        "ticktext": [f"<b>{safe(at.label)}</b>" if _bold(at) else safe(at.label) for at in lines],
        "ticks": "", "showline": False, "range": [end - 0.3, -0.7],
    }  # fmt: skip
    first = split - gap / across if split < 1 else 1.0
    fig.update_layout({
        "xaxis": {"domain": [0, first], "anchor": "y", "showgrid": True, "range": [-0.02, 1.02], "tickformat": ".0%",
                  "nticks": 6, "tickangle": 0, "title": {"text": "answered right"}},
        "yaxis": {"domain": [(rows_h + apart) / tall if stacked else 0, 1], "anchor": "x", **ticks},
    })  # fmt: skip
    told = [line for line in lines if line.row is not None]
    _guesses(fig, told, font)
    for metric, (name, color, symbol, offset) in _SHARES.items():
        _marks(fig, told, metric, name, color, symbol, offset, font, "")
    _unasked(fig, told, font)
    if two:
        fig.update_layout({
            "xaxis2": {"domain": [0, 1] if stacked else [split, 1], "anchor": "y2", "showgrid": True, "nticks": 5,
                       "zeroline": True, "tickangle": 0, "title": {"text": "logits, answer less foil"}},
            "yaxis2": {"domain": [0, rows_h / tall] if stacked else [0, 1], "anchor": "x2", **ticks,
                       "showticklabels": stacked},
        })  # fmt: skip
        metric, name, color, symbol = _DIFFERENCE
        _marks(fig, told, metric, name, color, symbol, 0.0, font, "2")
    if (table["status"] == "at chance").any():
        fig.add_scatter(
            x=[None], y=[None], mode="markers", name="open: at chance", hoverinfo="skip",
            marker={"symbol": "circle-open", "size": 0.6 * font, "color": theme.MUTED},
        )  # fmt: skip
    return theme.legend_below(fig, font)


def _lines(table: pd.DataFrame) -> tuple[list[_Line], float]:
    """Headings and sizes from the top, and the place below them."""
    out, y = [], 0.0
    for name, rows in table.groupby("task", sort=False):
        if len(rows) == 1 and not rows["param"].iloc[0]:
            out.append(_Line(y, str(name), rows.iloc[0]))
            y += 1.4
            continue
        out.append(_Line(y, str(name)))
        for _, row in rows.iterrows():
            y += 1.0
            out.append(_Line(y, _size(row), row))
        y += 1.4
    return out, y - 0.4


def _bold(line: _Line) -> bool:
    return line.row is None or not line.row["param"]


def _size(row: pd.Series) -> str:
    """A size as labels have it."""
    return f"{str(row['param']).replace('_', ' ')} {row['size']!s}".strip()


def _guesses(fig: go.Figure, lines: Sequence[_Line], font: float) -> None:
    own = [line for line in lines if np.isfinite(line.row["guess"])]
    fig.add_scatter(
        x=[line.row["guess"] for line in own], y=[line.y for line in own], mode="markers", name="uniform guess",
        marker={"symbol": "line-ns-open", "size": 0.95 * font, "color": theme.MUTED, "line": {"width": 1.2}},
        hovertemplate="uniform guess %{x:.3g}<extra></extra>",
    )  # fmt: skip


def _marks(
    fig: go.Figure, lines: Sequence[_Line], metric: str, name: str, color: str, symbol: str, offset: float, font: float,
    axis: str,
) -> None:  # fmt: skip
    """A metric of every size with its interval: filled where it is above chance, else open."""
    shown = False
    for filled in (True, False):
        own = [
            at
            for at in lines
            if np.isfinite(at.row[metric]) and (at.row["status"] == OK) == filled
        ]  # fmt: skip
        if not own:
            continue
        fig.add_scatter(
            x=[line.row[metric] for line in own], y=[line.y + offset for line in own], mode="markers", name=name,
            legendgroup=name, showlegend=not shown, xaxis=f"x{axis}", yaxis=f"y{axis}",
            marker={"symbol": symbol if filled else f"{symbol}-open", "size": 0.5 * font, "color": color,
                    "line": {"width": 1.2, "color": color}},
            error_x={
                "array": [line.row[f"{metric}_hi"] - line.row[metric] for line in own],
                "arrayminus": [line.row[metric] - line.row[f"{metric}_lo"] for line in own],
                "color": color, "thickness": 1.1, "width": 0,
            },
            customdata=[_said(line.row, metric, name) for line in own],
            hovertemplate="%{customdata}<extra></extra>",
        )  # fmt: skip
        shown = True


def _said(row: pd.Series, metric: str, name: str) -> str:
    """What hovering over a mark tells."""
    value, low, high = (float(row[f"{metric}{end}"]) for end in ("", "_lo", "_hi"))
    written = (lambda v: number(v, 2)) if metric == "logit_diff" else (lambda v: percent(v))
    return (
        f"<b>{safe(joined([str(row['task']), _size(row)], ', '))}</b><br>{name} {written(value)}, 95% interval "
        f"{written(low)} to {written(high)}<br>n = {int(row['n'])}, a guess {number(row['guess'], 3)}: "
        f"{'above chance' if row['status'] == OK else 'at chance'}"
    )


def _unasked(fig: go.Figure, lines: Sequence[_Line], font: float) -> None:
    for line in lines:
        if line.row["status"] == NOT_ASKED:
            fig.add_annotation(
                text=NOT_ASKED, x=0, xref="x", xanchor="left", xshift=4, y=line.y, yref="y",
                font={"color": theme.MUTED, "size": 0.92 * font},
            )  # fmt: skip


def _ladder_note(table: pd.DataFrame) -> str:
    asked = table[table["status"] != NOT_ASKED]
    n = asked["n"].astype(int)
    parts = [f"above chance at {int((asked['status'] == OK).sum())} of {count(len(asked), 'size')}"]
    if len(asked):
        parts.append(
            f"{n.min():,} examples a size" if n.min() == n.max() else f"{n.min():,} to {n.max():,} examples"
        )
    return joined([*parts, "bars: 95% intervals"])


def _ladder_alt(title: str, table: pd.DataFrame) -> str:
    parts = []
    for row in table.to_dict("records"):
        metric = row["judged"] or "accuracy"
        where = joined([str(row["task"]), f"{row['param']} {row['size']}".strip()], ", ")
        told = NOT_ASKED if row["status"] == NOT_ASKED else f"{percent(row[metric])} ({row['status']})"
        parts.append(f"{where}: {told}.")
    return f"{title}. " + " ".join(parts)


# -- curves ----------------------------------------------------------------------------------------------------------


def recall_curves(curves: pd.DataFrame, axis: str, *, width: Width = "double") -> go.Figure:
    """Choice and exact answer over the length, the depth, the set size, ...: a panel a task, dotted: a uniform guess.

    Points are open where their interval reaches down to chance.

    Args:
        curves: the columns `CURVES`.
        axis: which of the axes.
        width: `single`, `double`, `page` or pixels.

    Raises:
        UsageError: missing columns, no row, no such axis, or more than seven lines in a panel.
    """
    need(curves, CURVES, "recall_curves", numeric=CURVES[5:])
    own = curves[(curves["axis"] == axis) & curves["metric"].isin(list(_SHARES))]
    if own.empty:
        there = listed(dict.fromkeys(curves["axis"]))
        raise UsageError(f"recall_curves: no curve over {axis!r}; there are those over {there}")
    own = own.assign(above=own["ci_lo"] > own["chance"])
    panels = [(str(t), str(b)) for t, b in dict.fromkeys(zip(own["task"], own["by"], strict=True))]
    parts = {key: own[(own["task"] == key[0]) & (own["by"] == key[1])] for key in panels}
    title = f"Recall by {axis}"
    sheet = Sheet.of(
        title, _curves_note(own), [_caption(key, parts[key]) for key in panels], width,
        alt=f"{title}. {_curves_alt(own)}", tall=9.5, least=19, gap=6.4,
    )  # fmt: skip
    shown: set[str] = set()
    for i, key in enumerate(panels):
        part = parts[key]
        scale = Scale.of(part["x"].tolist(), "recall_curves") if axis in _LOG else None
        _guess(sheet, i, part, scale, shown)
        for name, color, rows in _drawn(part):
            _curve(sheet, i, rows, name, color, scale, legend=name not in shown)
            shown.add(name)
        across = scale.range if scale else _spread(part["x"])
        sheet.axes(
            i, key[1].replace("_", " "), "right" if i % sheet.columns == 0 else "", across, (-0.04, 1.04)
        )
        layout: dict[str, Any] = {"tickangle": 0}
        if scale:
            places, texts = scale.ticks(sheet.room / sheet.font, False)
            layout |= {"tickvals": places, "ticktext": texts}
        else:
            layout |= {"nticks": 5}
        sheet.fig.update_layout({
            f"xaxis{sheet.axis(i)}": layout, f"yaxis{sheet.axis(i)}": {"tickformat": ".0%", "nticks": 4},
        })  # fmt: skip
    return sheet.done()


def _judged(part: pd.DataFrame) -> str:
    """What is held against chance: the choice where there is one."""
    return "choice" if (part["metric"] == "choice").any() else "accuracy"


def _caption(key: tuple[str, str], part: pd.DataFrame) -> str:
    """A panel's name, and the lists that its lines are of."""
    lines = [line for line in dict.fromkeys(part["line"].fillna("").astype(str)) if line]
    sizes = ", ".join(line.partition(" ")[0] for line in lines)
    return f"{key[0]}: {sizes} {lines[0].partition(' ')[2]}" if lines else key[0]


def _drawn(part: pd.DataFrame) -> list[tuple[str, str, pd.DataFrame]]:
    """The lines of a panel: name, colour, rows; lists by their rank, else the metrics."""
    lines = list(dict.fromkeys(part["line"].fillna("").astype(str)))
    if lines == [""]:
        found = [(m, part[part["metric"] == m]) for m in ("accuracy", "choice")]
        return [(_SHARES[m][0], _SHARES[m][1], rows) for m, rows in found if len(rows)]
    if len(lines) > len(_RANKS):
        raise UsageError(f"recall_curves: {len(lines)} lines do not fit in a panel; filter to {len(_RANKS)}")
    own = part[part["metric"] == _judged(part)]
    return [(_rank(i), _RANKS[i], own[own["line"] == line]) for i, line in enumerate(lines)]


def _rank(i: int) -> str:
    return "shortest list" if i == 0 else f"{ {1: '2nd', 2: '3rd'}.get(i, f'{i + 1}th') } list"


def _guess(sheet: Sheet, panel: int, part: pd.DataFrame, scale: Scale | None, shown: set[str]) -> None:
    rows = part[part["metric"] == _judged(part)].sort_values(["line", "x"])
    name = "uniform guess"
    for _, own in rows.groupby("line", sort=False, dropna=False):
        sheet.fig.add_scatter(
            x=_places(own["x"], scale), y=own["chance"], mode="lines", name=name, legendgroup=name, legendrank=1003,
            showlegend=name not in shown, line={"color": theme.MUTED, "width": 1, "dash": "dot"},
            hovertemplate="uniform guess %{y:.3g}<extra></extra>", **sheet.at(panel),
        )  # fmt: skip
        shown.add(name)


def _curve(
    sheet: Sheet, panel: int, rows: pd.DataFrame, name: str, color: str, scale: Scale | None, *, legend: bool
) -> None:
    rows = rows.sort_values("x")
    bars = None if (rows["line"].fillna("") != "").any() else {
        "array": rows["ci_hi"] - rows["value"], "arrayminus": rows["value"] - rows["ci_lo"], "color": color,
        "thickness": 1, "width": 0,
    }  # fmt: skip
    sheet.fig.add_scatter(
        x=_places(rows["x"], scale), y=rows["value"], mode="lines+markers", name=name, legendgroup=name, error_y=bars,
        showlegend=legend, line={"color": color, "width": 1.6},
        marker={"symbol": ["circle" if above else "circle-open" for above in rows["above"]], "size": 0.46 * sheet.font,
                "color": color, "line": {"width": 1.1, "color": color}},
        customdata=[_point(r, name) for r in rows.to_dict("records")],
        hovertemplate="%{customdata}<extra></extra>", **sheet.at(panel),
    )  # fmt: skip


def _point(row: dict[str, Any], name: str) -> str:
    """What hovering over a point tells."""
    what = safe(joined([f"{row['by']} {row['x']:,.3g}", str(row["line"] or "")], ", "))
    return (
        f"<b>{safe(row['task'])}</b>, {what}<br>{name}: {percent(row['value'])}, 95% interval "
        f"{percent(row['ci_lo'])} to {percent(row['ci_hi'])}<br>n = {int(row['n'])}, a guess {number(row['chance'], 3)}"
    )


def _places(x: pd.Series, scale: Scale | None) -> list[float]:
    return [scale.at(float(v)) if scale else float(v) for v in x]


def _spread(x: pd.Series) -> tuple[float, float]:
    low, high = float(x.min()), float(x.max())
    pad = 0.06 * (high - low or 1.0)
    return low - pad, high + pad


def _curves_note(own: pd.DataFrame) -> str:
    n = own["n"].astype(int)
    per = (
        f"{n.min():,} examples a point"
        if n.min() == n.max()
        else f"{n.min():,} to {n.max():,} examples a point"
    )
    lists = own["line"].fillna("") != ""
    bars = "bars: 95% intervals"
    if lists.any():
        bars = "" if lists.all() else f"{bars}, left out where lists of several lengths are told apart"
    return joined([per, bars, "open: the interval reaches down to a guess"])


def _curves_alt(own: pd.DataFrame) -> str:
    """First and last point of each line in words."""
    said = []
    for (name, by, line), part in own.groupby(["task", "by", "line"], sort=False, dropna=False):
        rows = part[part["metric"] == _judged(part)].sort_values("x")
        first, last = rows.iloc[0], rows.iloc[-1]
        where = joined([str(name), str(line or "")], ", ")
        said.append(
            f"{where}: {percent(first['value'])} at {by} {first['x']:.3g}, {percent(last['value'])} at {last['x']:.3g}."
        )
    return " ".join(said)
