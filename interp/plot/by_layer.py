"""Values by layer as lines with bands of their intervals: what figures of layers share, and a figure of any table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from interp.errors import UsageError
from interp.plot import theme
from interp.plot.check import integers, need
from interp.plot.sheet import Sheet
from interp.plot.text import joined, number, safe
from interp.plot.theme import Width

LINES = ("panel", "line", "layer", "value", "lo", "hi", "hover")
"""What each row says: its panel, its line, the layer, the value with its ends, and more for the hover text."""

SCENARIOS = {
    "exact recall": theme.BLUE, "heuristics recall": theme.VERMILLION, "guesswork": theme.ORANGE,
    "generic": theme.CONTROL,
}  # fmt: skip
"""Colour of each scenario; plain language modelling is what the others are compared with, so grey."""

_INKS = (theme.BLUE, theme.VERMILLION, theme.GREEN, theme.PURPLE, theme.ORANGE, theme.SKY, theme.INK)
_DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot", "solid")


@dataclass(frozen=True)
class Ink:
    """Colour and dash of a line: lines are told apart by either."""

    color: str
    dash: str = "solid"


def inks(names: Sequence[str], colors: Mapping[str, str] | None = None) -> dict[str, Ink]:
    """An ink for each name: of `colors` where they know it, else those of the theme in turn.

    Raises:
        UsageError: more names than inks.
    """
    if len(names) > len(_INKS):
        raise UsageError(f"{len(names)} lines do not fit in a panel; filter the table to {len(_INKS)}")
    known = colors or {}
    free = (c for c in _INKS if c not in {known[n] for n in names if n in known})
    return {n: Ink(known[n] if n in known else next(free), _DASHES[i]) for i, n in enumerate(names)}


def layer_lines(
    frame: pd.DataFrame,
    value: str,
    ends: tuple[str, str] | None = None,
    *,
    panel: str | None = None,
    line: str | None = None,
    colors: Mapping[str, str] | None = None,
    marked: Iterable[int] = (),
    title: str,
    note: str = "",
    y: str | Mapping[str, str] = "",
    percent: bool = False,
    level: float | None = 0.0,
    width: Width = "double",
) -> go.Figure:
    """A value by layer, one line for each value of a column and one panel for each of another.

    Args:
        frame: `layer`, the value, its ends, and the columns of panels and lines; rows of layer -1 are left out.
        value: column that is drawn.
        ends: columns of its interval; None draws none.
        panel: column with a value a panel; None is one panel.
        line: column with a value a line; None is one line.
        colors: of lines, by name; scenarios have theirs.
        marked: layers that are shaded.
        title: of the figure. note: below it.
        y: title of the axis; with one for each panel they have ranges of their own.
        percent: write shares in per cent.
        level: where a thin line is drawn across; None for none.
        width: `single`, `double`, `page` or pixels.

    Raises:
        UsageError: missing columns, no row, more than seven lines, or two rows for one point.
    """
    lo, hi = ends or (value, value)
    more = [c for c in (panel, line) if c]
    need(frame, ("layer", value, lo, hi, *more), "layer_lines", numeric=("layer", value, lo, hi))
    integers(frame, ("layer",), "layer_lines")
    own = frame[frame["layer"] >= 0]
    digits = 1 if percent else 3
    factor, unit = (100, "%") if percent else (1, "")
    rows = own.assign(
        panel=own[panel].astype(str) if panel else "", line=own[line].astype(str) if line else value,
        value=own[value], lo=own[lo] if ends else np.nan, hi=own[hi] if ends else np.nan,
    )  # fmt: skip
    rows["hover"] = [
        joined([f"{number(factor * v, digits)}{unit}", ends_of(factor * a, factor * b, digits, unit)], "<br>")
        for v, a, b in zip(rows["value"], rows["lo"], rows["hi"], strict=True)
    ]
    names = list(dict.fromkeys(rows["line"]))
    told = joined([note, "bands: 95% intervals" if ends and "interval" not in note else ""])
    fig = by_layer(
        rows, inks(names, {**SCENARIOS, **(colors or {})}), title=title, note=told, width=width,
        y=y if isinstance(y, str) else lambda p: y.get(p, value),
        scale=None if isinstance(y, str) else {p: p for p in rows["panel"]}, level=level,
        y_format=".0%" if percent else "", alt=f"{title}. {peaks(rows)}",
    )  # fmt: skip
    for layer in sorted(set(marked)):
        for i in range(rows["panel"].nunique()):
            axis = Sheet.axis(i)
            fig.add_shape(
                type="rect", xref=f"x{axis}", yref=f"y{axis} domain", x0=layer - 0.5, x1=layer + 0.5, y0=0, y1=1,
                fillcolor=theme.CLEAN_BAND, line_width=0, layer="below", name="marked",
            )  # fmt: skip
    return fig


def peaks(rows: pd.DataFrame) -> str:
    """The largest value of each line of each panel in words, for those who cannot see the figure."""
    parts = []
    for (panel, name), own in rows.groupby(["panel", "line"], sort=False):
        told = own.dropna(subset="value")
        if len(told):
            best = told.loc[told["value"].abs().idxmax()]
            where = joined([str(panel), str(name)], ", ")
            parts.append(f"{where}: largest {number(best['value'])} at layer {int(best['layer'])}.")
    return " ".join(parts)


def by_layer(
    rows: pd.DataFrame,
    styles: Mapping[str, Ink],
    *,
    title: str,
    note: str,
    y: Callable[[str], str] | str,
    alt: str,
    width: Width,
    level: float | None = 0.0,
    scale: Mapping[str, str] | None = None,
    y_format: str = "",
    floor: float | None = None,
    least: float = 24,
) -> go.Figure:
    """One panel for each value of `panel`, one line for each of `line`.

    Args:
        rows: `LINES`; the hover text is escaped by who wrote it.
        styles: the ink of each line, in the order of the legend.
        y: title of the y axes, or of a panel's.
        level: where a thin line is drawn across; None for none.
        scale: panels with one value share their range; default all do.
        y_format: of the ticks, as plotly has it.
        floor: lowest end of the ranges, where values cannot be below.

    Raises:
        UsageError: two rows of one panel, line and layer.
    """
    twice = rows[rows.duplicated(["panel", "line", "layer"])]
    if len(twice):
        first = twice.iloc[0]
        raise UsageError(
            f"two rows of {first['line']!r} at layer {int(first['layer'])} in panel {first['panel']!r}; filter the "
            "table to one"
        )
    panels = list(dict.fromkeys(rows["panel"]))
    scale = {p: "" for p in panels} if scale is None else scale
    ends = {
        key: _range(rows[[scale[p] == key for p in rows["panel"]]], level, floor) for key in scale.values()
    }
    across = (float(rows["layer"].min()) - 0.5, float(rows["layer"].max()) + 0.5)
    sheet = Sheet.of(
        title, note, [p[:1].upper() + p[1:] for p in panels], width, alt=alt, least=least, gap=5.6
    )
    shown: set[str] = set()
    for i, panel in enumerate(panels):
        own = rows[rows["panel"] == panel]
        if level is not None:
            sheet.fig.add_scatter(
                x=list(across), y=[level, level], mode="lines", hoverinfo="skip", showlegend=False,
                line={"color": theme.MUTED, "width": 0.8}, **sheet.at(i),
            )  # fmt: skip
        names = [name for name in styles if (own["line"] == name).any()]
        for name in names:
            _band(sheet, i, own[own["line"] == name].sort_values("layer"), styles[name])
        for name in names:
            _line(
                sheet, i, own[own["line"] == name].sort_values("layer"), name, styles[name], name not in shown
            )
            shown.add(name)
        told = y if isinstance(y, str) else y(panel)
        before = y if isinstance(y, str) else y(panels[i - 1])
        sheet.axes(
            i, "layer", told if i % sheet.columns == 0 or told != before else "", across, ends[scale[panel]]
        )
        sheet.fig.update_layout({
            f"xaxis{sheet.axis(i)}": {"tickvals": layer_ticks(across[1], sheet.room / sheet.font)},
            f"yaxis{sheet.axis(i)}": {"tickformat": y_format, "nticks": 6},
        })  # fmt: skip
    return sheet.done()


def layer_ticks(last: float, room: float) -> list[int]:
    """Layers that are written under an axis of `room` characters that ends at layer `last`."""
    step = next(s for s in (1, 2, 5, 10, 20, 50, 100) if (last + 1) / s * 2.2 <= room)
    return list(range(0, int(last) + 1, step))


def ends_of(lo: float, hi: float, digits: int = 3, unit: str = "") -> str:
    """An interval in words; empty where there is none."""
    if not (np.isfinite(lo) and np.isfinite(hi)):
        return ""
    return f"95% interval {number(lo, digits)} to {number(hi, digits)}{unit}"


def _range(rows: pd.DataFrame, level: float | None, floor: float | None) -> tuple[float, float]:
    """Ends of an axis: of the lines, and of the bands as far as they do not flatten the lines."""
    lines = rows["value"].dropna().tolist() + ([] if level is None else [level])
    low, high = (min(lines), max(lines)) if lines else (0.0, 1.0)
    room = high - low or 1.0
    bands = rows[["lo", "hi"]].to_numpy(float)
    bands = bands[np.isfinite(bands)]
    if bands.size:
        low, high = max(min(low, bands.min()), low - room), min(max(high, bands.max()), high + room)
    pad = 0.05 * (high - low or 1.0)
    return (low - pad if floor is None else max(floor - pad / 2, low - pad)), high + pad


def _band(sheet: Sheet, panel: int, own: pd.DataFrame, ink: Ink) -> None:
    told = own.dropna(subset=["lo", "hi"])
    if len(told) > 1:
        sheet.band(
            panel, told["layer"].tolist(), told["lo"].tolist(), told["hi"].tolist(), theme.faint(ink.color)
        )


def _line(sheet: Sheet, panel: int, own: pd.DataFrame, name: str, ink: Ink, legend: bool) -> None:
    sheet.fig.add_scatter(
        x=own["layer"], y=own["value"], mode="lines", name=safe(name), legendgroup=name, showlegend=legend,
        line={"color": ink.color, "width": 1.7, "dash": ink.dash}, customdata=own["hover"],
        hovertemplate=f"<b>{safe(name)}</b>, layer %{{x}}<br>%{{customdata}}<extra></extra>", **sheet.at(panel),
    )  # fmt: skip
