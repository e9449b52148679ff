"""Values of conditions as points with intervals: a line a condition, a panel a measure, marks that are told apart."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from interp.errors import UsageError
from interp.plot import theme
from interp.plot.by_layer import ends_of
from interp.plot.check import need, scale_of
from interp.plot.text import joined, number, safe, wrapped
from interp.plot.theme import Width

_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "star")
_APART = 0.7


@dataclass(frozen=True)
class _Frame:
    """Where panels stand: abreast, in as many bands as it takes, all of them with the same lines."""

    fig: go.Figure
    font: float
    columns: int
    places: Mapping[str, float]

    def axis(self, panel: int) -> str:
        return "" if panel == 0 else str(panel + 1)


def value_strips(
    frame: pd.DataFrame,
    line: str,
    value: str = "value",
    ends: tuple[str, str] | None = ("ci_lo", "ci_hi"),
    *,
    panel: str | None = None,
    mark: str | None = None,
    group: str | None = None,
    controls: Sequence[str] = (),
    colors: Mapping[str, str] | None = None,
    levels: Mapping[str, Mapping[str, float]] | None = None,
    ranges: Mapping[str, tuple[float, float]] | None = None,
    title: str,
    note: str = "",
    x: str | Mapping[str, str] = "",
    percent: bool | Collection[str] = False,
    ratios: Collection[str] = (),
    captions: Mapping[str, str] | None = None,
    width: Width = "double",
) -> go.Figure:
    """What each condition scores, one below the other: a panel for each measure, a point with its interval each.

    Args:
        frame: the columns `line`, `value`, the ends of its interval, and those of panels and marks. Lines and panels
            stand in the order in which they first occur.
        panel: column with a value a panel; None is one panel.
        mark: column that tells several points of a line apart (before and after, say).
        group: column by which lines are set apart; each line has one value of it.
        controls: lines or marks that are drawn in grey.
        colors: of lines or marks, by name.
        levels: lines down, in the panel of that name: what they are called, and where they are.
        ranges: ends of axes, by panel; default those of what is drawn, and 0 to 100 % for shares in per cent.
        title: of the figure. note: below it.
        x: title of the axes, or one for each panel.
        percent: write shares in per cent; or the panels that do.
        ratios: panels of multiples, which stand on a scale of logarithms.
        captions: of panels, where they are not called after themselves.
        width: `single`, `double`, `page` or pixels.

    Raises:
        UsageError: missing columns, no row, more than six marks, two rows for one point, a line in two groups, or
            a ratio that is not above 0.
    """
    what = "value_strips"
    columns = (line, value, *(ends or ()), *(c for c in (panel, mark, group) if c))
    need(frame, columns, what, numeric=(value, *(ends or ())))
    rows = pd.DataFrame({
        "line": frame[line].astype(str), "value": frame[value].astype(float),
        "lo": frame[ends[0]].astype(float) if ends else np.nan,
        "hi": frame[ends[1]].astype(float) if ends else np.nan,
        "panel": frame[panel].astype(str) if panel else "", "mark": frame[mark].astype(str) if mark else "",
        "group": frame[group].astype(str) if group else "",
    })  # fmt: skip
    twice = rows[rows.duplicated(["panel", "line", "mark"])]
    if len(twice):
        first = twice.iloc[0]
        where = joined([first["panel"], first["mark"]], ", ")
        raise UsageError(f"{what}: {first['line']!r} has two rows ({where}); filter the table to one")
    marks = list(dict.fromkeys(rows["mark"]))
    if len(marks) > len(_SYMBOLS):
        raise UsageError(
            f"{what}: {len(marks)} marks of a line do not fit; filter the table to {len(_SYMBOLS)}"
        )
    panels = list(dict.fromkeys(rows["panel"]))
    shares = {p: p in percent if isinstance(percent, Collection) else percent for p in panels}
    told = captions or {}
    made = _frame(
        rows, [told.get(p, p[:1].upper() + p[1:]) for p in panels], len(marks), title,
        joined([note, "95% intervals" if ends and "interval" not in note else ""]), width,
    )  # fmt: skip
    shown: set[str] = set()
    named = dict.fromkeys(n for by in (levels or {}).values() for n in by)
    dashes = {n: ("dot", "dash", "dashdot")[k % 3] for k, n in enumerate(named)}
    for i, name in enumerate(panels):
        own = rows[rows["panel"] == name]
        across = (levels or {}).get(name, {})
        scale = scale_of(name, ratios, what)
        given = (ranges or {}).get(name)
        low_high = (
            _ends(scale([*own["value"], *own["lo"], *own["hi"], *across.values()]), shares[name])
            if given is None
            else (float(scale(given)[0]), float(scale(given)[1]))
        )
        _levels(made, i, across, dashes, shares[name], shown)
        for k, each in enumerate(marks):
            _points(
                made, i, own[own["mark"] == each], k, len(marks), shares[name], controls, colors or {}, shown
            )
        _axes(made, i, x if isinstance(x, str) else x.get(name, ""), low_high, shares[name], name in ratios)
    return theme.legend_below(made.fig, made.font)


def _frame(
    rows: pd.DataFrame, captions: Sequence[str], marks: int, title: str, note: str, width: Width
) -> _Frame:
    """An empty figure with the panels' axes and captions."""
    groups = rows.drop_duplicates(["line", "group"])
    if groups["line"].duplicated().any():
        name = groups[groups["line"].duplicated()]["line"].iloc[0]
        raise UsageError(f"value_strips: {name!r} stands in two groups; give it one")
    font, total = theme.font_px(width), theme.pixels(width)
    ordered = groups.assign(
        at=groups["group"].map({g: i for i, g in enumerate(dict.fromkeys(groups["group"]))})
    )
    ordered = ordered.sort_values("at", kind="stable")
    places, y, before = {}, 0.0, None
    for name, group in zip(ordered["line"], ordered["group"], strict=True):
        y += 0.0 if before is None else 1.0 if group == before else 1.0 + _APART
        places[name], before = y, group
    names = {n: wrapped(n, 0.36 * total, font) for n in places}
    tall = max(map(len, names.values()))
    left = (0.53 * max(len(text) for texts in names.values() for text in texts) + 1.2) * font
    right, gap = 1.8 * font, 2.9 * font
    columns = len(captions)
    longest = max(map(len, captions))
    while (
        columns > 1
        and (total - left - right - (columns - 1) * gap) / columns < max(6.0, 0.56 * longest) * font
    ):
        columns = -(-columns // 2)
    room, across = (total - left - right - (columns - 1) * gap) / columns, total - left - right
    bands = -(-len(captions) // columns)
    high = max(1.5 + 0.4 * (marks - 1), 1.3 * tall + 0.3) * font * (y + 1)
    apart = 6.4 * font
    height = bands * high + (bands - 1) * apart
    fig = theme.figure(
        title, note, width=width, plot_height=height, left=left, right=right, top=1.6 * font, bottom=7.4 * font,
        alt=f"{title}. {_told(rows)}",
    )  # fmt: skip
    made = _Frame(fig, font, columns, places)
    for i, caption in enumerate(captions):
        axis, column, band = made.axis(i), i % columns, i // columns
        x0, y1 = column * (room + gap) / across, 1 - band * (high + apart) / height
        fig.update_layout({
            f"xaxis{axis}": {
                "domain": [x0, min(1.0, x0 + room / across)], "anchor": f"y{axis}", "showgrid": True, "tickangle": 0,
            },
            f"yaxis{axis}": {
                "domain": [max(0.0, y1 - high / height), y1], "anchor": f"x{axis}", "ticks": "", "showline": False,
                "range": [y + 0.6, -0.6], "tickvals": list(places.values()),
                "ticktext": ["<br>".join(map(safe, names[n])) for n in places], "showticklabels": column == 0,
            },
        })  # fmt: skip
        fig.add_annotation(
            text=safe(caption), x=0, xref=f"x{axis} domain", xanchor="left", y=1, xshift=-1,
            yref=f"y{axis} domain", yanchor="bottom", font={"weight": 600},
        )  # fmt: skip
    return made


def _levels(
    made: _Frame,
    panel: int,
    across: Mapping[str, float],
    dashes: Mapping[str, str],
    share: bool,
    shown: set[str],
) -> None:
    factor, unit, digits = (100, "%", 1) if share else (1, "", 3)
    axis, last = made.axis(panel), max(made.places.values())
    for name, at in across.items():
        made.fig.add_scatter(
            x=[at, at], y=[-0.6, last + 0.6], mode="lines", name=safe(name), legendgroup=name,
            showlegend=name not in shown, xaxis=f"x{axis}", yaxis=f"y{axis}",
            line={"color": theme.MUTED, "dash": dashes[name], "width": 1.2},
            hovertemplate=f"<b>{safe(name)}</b>: {number(factor * at, digits)}{unit}<extra></extra>",
        )  # fmt: skip
        shown.add(name)


def _points(
    made: _Frame,
    panel: int,
    own: pd.DataFrame,
    at: int,
    marks: int,
    share: bool,
    controls: Sequence[str],
    colors: Mapping[str, str],
    shown: set[str],
) -> None:
    """Points of one mark in one panel, a trace for each colour."""
    factor, unit, digits = (100, "%", 1) if share else (1, "", 3)
    own = own.dropna(subset="value")
    name = str(own["mark"].iloc[0]) if len(own) else ""
    plain = colors.get(name) or (theme.CONTROL if name in controls else theme.COLORWAY[at])
    inks = [
        colors.get(n, theme.CONTROL if n in controls else plain) if not name or n in colors else
        theme.CONTROL if name in controls else plain
        for n in own["line"]
    ]  # fmt: skip
    shift = 0.4 * (at - (marks - 1) / 2) / max(1, marks - 1) if marks > 1 else 0.0
    axis = made.axis(panel)
    for ink in dict.fromkeys(inks):
        part = own[[c == ink for c in inks]]
        hover = [
            joined([
                f"<b>{safe(joined([r.line, name], ', '))}</b>: {number(factor * r.value, digits)}{unit}",
                ends_of(factor * r.lo, factor * r.hi, digits, unit),
            ], "<br>")
            for r in part.itertuples()
        ]  # fmt: skip
        made.fig.add_scatter(
            x=part["value"], y=[made.places[n] + shift for n in part["line"]], mode="markers",
            name=safe(name), legendgroup=name, showlegend=bool(name) and name not in shown,
            xaxis=f"x{axis}", yaxis=f"y{axis}",
            marker={"symbol": _SYMBOLS[at], "size": 0.6 * made.font, "color": ink, "line": {"width": 1, "color": ink}},
            error_x={
                "array": part["hi"] - part["value"], "arrayminus": part["value"] - part["lo"], "color": ink,
                "thickness": 1.3, "width": 0,
            },
            customdata=hover, hovertemplate="%{customdata}<extra></extra>",
        )  # fmt: skip
        shown.add(name)


def _axes(
    made: _Frame, panel: int, title: str, low_high: tuple[float, float], share: bool, ratio: bool
) -> None:
    shown = {
        "range": list(low_high),
        "title": {"text": safe(title), "standoff": 0.3 * made.font},
        "nticks": 4,
    }
    if ratio:
        shown |= {"type": "log"}
    if share:
        shown |= {"tickformat": ".0%"}
        if low_high == _SHARES:
            shown |= {"tickvals": [0, 0.5, 1]}
    made.fig.update_layout({f"xaxis{made.axis(panel)}": shown})


_SHARES = (-0.08, 1.08)


def _ends(seen: np.ndarray, share: bool) -> tuple[float, float]:
    seen = seen[np.isfinite(seen)]
    low, high = (seen.min(), seen.max()) if len(seen) else (0.0, 1.0)
    if share and low >= 0 and high <= 1:
        return _SHARES
    pad = 0.06 * (high - low or 1.0)
    return float(low - pad), float(high + pad)


def _told(rows: pd.DataFrame) -> str:
    """Every value in words, for those who cannot see the figure."""
    said = [
        f"{joined([r.panel, r.line, r.mark], ', ')}: {number(r.value)}."
        for r in rows.dropna(subset="value").itertuples()
    ]
    return " ".join(said)
