"""Values over a dose, an exposure or a budget: lines with bands on a scale of logarithms, one panel a measure."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from interp.errors import UsageError
from interp.plot import theme
from interp.plot.by_layer import Ink, ends_of, inks
from interp.plot.check import need, scale_of
from interp.plot.sheet import Sheet
from interp.plot.text import joined, listed, number, safe
from interp.plot.theme import Width

_DASHES = ("dash", "dot", "dashdot", "longdash", "longdashdot", "solid")


@dataclass(frozen=True)
class Scale:
    """Where values stand on an axis of logarithms; a zero stands left of the rest, and is written as it is."""

    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Sequence[float], what: str) -> Scale:
        """The scale of these values.

        Raises:
            UsageError: one is negative or missing.
        """
        found = tuple(sorted({float(v) for v in values}))
        if any(not v >= 0 for v in found):
            raise UsageError(f"{what}: values along the axis must be 0 or more")
        return cls(found)

    @property
    def zero(self) -> float:
        """Where zero stands."""
        above = [np.log10(v) for v in self.values if v]
        return above[0] - 0.14 * max(1.0, above[-1] - above[0]) if above else 0.0

    def at(self, value: float) -> float:
        """Place of a value."""
        return float(np.log10(value)) if value else self.zero

    @property
    def range(self) -> tuple[float, float]:
        """Ends of the axis."""
        low, high = self.at(self.values[0]), self.at(self.values[-1])
        pad = 0.05 * (high - low or 1.0)
        return low - pad, high + pad

    def ticks(self, room: float, percent: bool) -> tuple[list[float], list[str]]:
        """Places and texts of ticks on an axis of `room` characters: the values, as many as fit."""
        texts = {v: self.text(v, percent) for v in self.values}
        low, high = self.range
        a_character = (high - low) / room
        kept: list[float] = []
        # The ends first, so that the extent can be read.
        for v in sorted(self.values, key=lambda v: v not in (self.values[0], self.values[-1])):
            reach = 0.34 * (len(texts[v]) + 2) * a_character
            if all(abs(self.at(v) - self.at(k)) > reach + 0.34 * len(texts[k]) * a_character for k in kept):
                kept.append(v)
        kept.sort()
        return [self.at(v) for v in kept], [texts[v] for v in kept]

    @staticmethod
    def text(value: float, percent: bool) -> str:
        """A value as it is written."""
        return f"{100 * value:.3g}%" if percent else f"{value:,.4g}"


def value_curves(
    frame: pd.DataFrame,
    x: str,
    value: str = "value",
    ends: tuple[str, str] | None = ("ci_lo", "ci_hi"),
    *,
    panel: str | None = None,
    line: str | None = None,
    controls: Sequence[str] = (),
    bands: Collection[str] | None = None,
    colors: Mapping[str, str] | None = None,
    levels: Mapping[str, Mapping[str, float]] | None = None,
    title: str,
    note: str = "",
    x_title: str = "",
    y: str | Mapping[str, str] = "",
    percent: bool = False,
    x_percent: bool = False,
    y_range: tuple[float, float] | None = None,
    ratios: Collection[str] = (),
    captions: Mapping[str, str] | None = None,
    against: tuple[str, str] | None = None,
    width: Width = "double",
) -> go.Figure:
    """A value over doses, exposures, steps or budgets: a panel for each measure, a line for each way.

    Args:
        frame: the columns `x`, `value`, the ends of its interval, and those of panels and lines. Values of `x` are 0 or
            more, and stand on a scale of logarithms; 0 is left of it.
        panel: column with a value a panel; None is one panel.
        line: column with a value a line; None is one line.
        controls: lines that are drawn in grey.
        bands: lines whose intervals are drawn, where all of them would hide each other; default all.
        colors: of lines, by name.
        levels: lines across, in the panel of that name: what they are called, and where they are.
        title: of the figure. note: below it.
        x_title, y: titles of the axes; with one for each panel they have ranges of their own.
        percent, x_percent: write shares in per cent.
        y_range: ends of all y axes; default by what is drawn.
        ratios: panels of multiples, which stand on a scale of logarithms; give `y` for each panel then.
        captions: of panels, where they are not called after themselves.
        against: two panels; a last one shows the second's values over those of the first, each line in order of `x`.
        width: `single`, `double`, `page` or pixels.

    Raises:
        UsageError: missing columns, no row, more than seven lines, two rows for one point, no such panel, or a ratio
            that is not above 0.
    """
    what = "value_curves"
    need(
        frame,
        (x, value, *(ends or ()), *(c for c in (panel, line) if c)),
        what,
        numeric=(x, value, *(ends or ())),
    )
    rows = pd.DataFrame({
        "x": frame[x].astype(float), "value": frame[value].astype(float),
        "lo": frame[ends[0]].astype(float) if ends else np.nan,
        "hi": frame[ends[1]].astype(float) if ends else np.nan,
        "panel": frame[panel].astype(str) if panel else "", "line": frame[line].astype(str) if line else "",
    })  # fmt: skip
    twice = rows[rows.duplicated(["panel", "line", "x"])]
    if len(twice):
        first = twice.iloc[0]
        raise UsageError(
            f"{what}: {first['line']!r} has two rows at {x} {first['x']:g}; filter the table to one"
        )
    panels, names = list(dict.fromkeys(rows["panel"])), list(dict.fromkeys(rows["line"]))
    if against is not None and (absent := [p for p in against if p not in panels]):
        raise UsageError(f"{what}: no panel {absent[0]!r} to draw against; there are {', '.join(panels)}")
    scale, styles = Scale.of(rows["x"].tolist(), what), _styles(names, controls, colors)
    told = captions or {}
    heads = [told.get(p, _caption(p)) for p in panels]
    factor, unit, digits = (100, "%", 1) if percent else (1, "", 3)
    has_bands = bool(ends) and bool(rows["lo"].notna().any())
    sheet = Sheet.of(
        title, joined([note, _banded(names, bands) if has_bands and "interval" not in note else ""]),
        [*heads, *(["One against the other"] if against else [])], width,
        alt=f"{title}. {_ends_told(rows, styles, x_title or x, x_percent)}", least=26 if len(panels) > 1 else 20,
    )  # fmt: skip
    shown: set[str] = set()
    for i, name in enumerate(panels):
        own = rows[rows["panel"] == name]
        across = scale.range
        for said, level in (levels or {}).get(name, {}).items():
            sheet.fig.add_scatter(
                x=list(across), y=[level, level], mode="lines", name=safe(said), legendgroup=said,
                showlegend=said not in shown, line={"color": theme.MUTED, "dash": "dot", "width": 1.2},
                hovertemplate=f"<b>{safe(said)}</b>: {number(factor * level, digits)}{unit}<extra></extra>",
                **sheet.at(i),
            )  # fmt: skip
            shown.add(said)
        for each in styles:
            part = own[own["line"] == each].sort_values("x")
            banded = part.dropna(subset=["lo", "hi"])
            if len(banded) > 1 and (bands is None or each in bands):
                color = theme.CONTROL_BAND if each in controls else theme.faint(styles[each].color, 0.13)
                places = [scale.at(v) for v in banded["x"]]
                sheet.band(i, places, banded["lo"].tolist(), banded["hi"].tolist(), color)
        for each in styles:
            part = own[own["line"] == each].sort_values("x")
            if len(part):
                hover = [
                    joined([
                        f"{number(factor * r.value, digits)}{unit}",
                        ends_of(factor * r.lo, factor * r.hi, digits, unit),
                    ], "<br>")
                    for r in part.itertuples()
                ]  # fmt: skip
                at = [Scale.text(v, x_percent) for v in part["x"]]
                _draw(sheet, i, [scale.at(v) for v in part["x"]], part["value"].tolist(), each, styles[each],
                      [f"{x_title or x} {a}<br>{h}" for a, h in zip(at, hover, strict=True)],
                      legend=bool(each) and each not in shown)  # fmt: skip
                shown.add(each)
        y_title = y if isinstance(y, str) else y.get(name, "")
        drawn = own if not isinstance(y, str) else rows
        levels_here = [
            v for p, by in (levels or {}).items() if p == name or isinstance(y, str) for v in by.values()
        ]
        upright = scale_of(name, ratios, what)
        low_high = _room(upright([*drawn["value"], *drawn["lo"], *drawn["hi"], *levels_here]))
        if y_range is not None:
            low_high = (float(upright(y_range)[0]), float(upright(y_range)[1]))
        first_column = i % sheet.columns == 0 or not isinstance(y, str)
        sheet.axes(i, x_title or x, y_title if first_column else "", across, low_high)
        places, texts = scale.ticks(sheet.room / sheet.font, x_percent)
        sheet.fig.update_layout({
            f"xaxis{sheet.axis(i)}": {"tickvals": places, "ticktext": texts, "tickangle": 0},
            f"yaxis{sheet.axis(i)}": {
                "tickformat": ".0%" if percent else "", "nticks": 6, **({"type": "log"} if name in ratios else {}),
            },
        })  # fmt: skip
    if against is not None:
        titles = [told.get(p, _caption(p)) for p in against]
        _against(sheet, len(panels), rows, against, titles, styles, percent, y_range)
    return sheet.done()


def _banded(names: Sequence[str], bands: Collection[str] | None) -> str:
    """What bands are, and of which lines where not all have one."""
    if bands is None:
        return "bands: 95% intervals"
    shown = [n for n in names if n in bands]
    return f"bands: 95% intervals of {listed(shown)}" if shown else ""


def _caption(name: str) -> str:
    """A name as a heading; names of parts and of columns stay as they are."""
    return name if "_" in name or "[" in name else name[:1].upper() + name[1:]


def _styles(
    names: Sequence[str], controls: Sequence[str], colors: Mapping[str, str] | None
) -> dict[str, Ink]:
    """The ink of each line: those that count first, controls in grey after them."""
    grey = [n for n in names if n in controls]
    if len(grey) > len(_DASHES):
        raise UsageError(f"{len(grey)} controls do not fit in a panel; filter the table to {len(_DASHES)}")
    own = inks([n for n in names if n not in grey], colors)
    return {**own, **{n: Ink(theme.CONTROL, _DASHES[i]) for i, n in enumerate(grey)}}


def _draw(
    sheet: Sheet, panel: int, x: Sequence[float], y: Sequence[float], name: str, ink: Ink, hover: Sequence[str],
    *, legend: bool,
) -> None:  # fmt: skip
    sheet.fig.add_scatter(
        x=list(x), y=list(y), mode="lines+markers", name=safe(name), legendgroup=name, showlegend=legend,
        line={"color": ink.color, "width": 1.6, "dash": ink.dash},
        marker={"size": 0.42 * sheet.font, "color": ink.color}, customdata=list(hover),
        hovertemplate=(f"<b>{safe(name)}</b><br>" if name else "") + "%{customdata}<extra></extra>", **sheet.at(panel),
    )  # fmt: skip


def _against(
    sheet: Sheet,
    panel: int,
    rows: pd.DataFrame,
    names: tuple[str, str],
    titles: Sequence[str],
    styles: Mapping[str, Ink],
    percent: bool,
    y_range: tuple[float, float] | None,
) -> None:
    first, second = (rows[rows["panel"] == n].set_index(["line", "x"])["value"] for n in names)
    joint = pd.concat([first.rename("a"), second.rename("b")], axis=1).dropna().reset_index()
    unit = "%" if percent else ""
    for name, ink in styles.items():
        own = joint[joint["line"] == name].sort_values("x")
        hover = [
            f"at {r.x:.3g}: {number(100 * r.a if percent else r.a, 1 if percent else 3)}{unit} and "
            f"{number(100 * r.b if percent else r.b, 1 if percent else 3)}{unit}"
            for r in own.itertuples()
        ]
        if len(own):
            _draw(sheet, panel, own["a"].tolist(), own["b"].tolist(), name, ink, hover, legend=False)
    sheet.axes(
        panel,
        titles[0],
        titles[1],
        y_range or _room(joint["a"].tolist()),
        y_range or _room(joint["b"].tolist()),
    )
    form = ".0%" if percent else ""
    sheet.fig.update_layout({
        f"xaxis{sheet.axis(panel)}": {"tickformat": form, "nticks": 6, "tickangle": 0},
        f"yaxis{sheet.axis(panel)}": {"tickformat": form, "nticks": 6},
    })  # fmt: skip


def _room(values: Sequence[float] | np.ndarray) -> tuple[float, float]:
    finite = [v for v in values if np.isfinite(v)]
    low, high = (min(finite), max(finite)) if finite else (0.0, 1.0)
    pad = 0.05 * (high - low or 1.0)
    return low - pad, high + pad


def _ends_told(rows: pd.DataFrame, styles: Mapping[str, Ink], x: str, x_percent: bool) -> str:
    """First and last value of each line in words, for those who cannot see the figure."""
    said = []
    for (panel, name), own in rows.groupby(["panel", "line"], sort=False):
        own = own.sort_values("x")
        first, last = own.iloc[0], own.iloc[-1]
        said.append(
            f"{joined([str(panel), str(name)], ', ')}: {number(first['value'])} at {x} "
            f"{Scale.text(first['x'], x_percent)}, {number(last['value'])} at {Scale.text(last['x'], x_percent)}."
        )
    return " ".join(said)
