"""Values by layer as lines with bands of their intervals: what all figures of layers share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from interp.errors import UsageError
from interp.plot import theme
from interp.plot.sheet import Sheet
from interp.plot.text import number, safe
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


def ends_of(lo: float, hi: float, digits: int = 3) -> str:
    """An interval in words; empty where there is none."""
    if not (np.isfinite(lo) and np.isfinite(hi)):
        return ""
    return f"95% interval {number(lo, digits)} to {number(hi, digits)}"


def _range(rows: pd.DataFrame, level: float | None, floor: float | None) -> tuple[float, float]:
    seen = rows[["value", "lo", "hi"]].to_numpy(float)
    seen = seen[np.isfinite(seen)].tolist() + ([] if level is None else [level])
    low, high = (min(seen), max(seen)) if seen else (0.0, 1.0)
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
