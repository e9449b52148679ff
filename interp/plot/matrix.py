"""What each mechanism does to each task: the matrix of effects, with the controls beside every cut."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from interp.plot import theme
from interp.plot.conditions import AT_CHANCE, WAY, Panel, at_k, metric_label, named, panels, rows_of, shared
from interp.plot.text import joined, number, safe, signed, wrapped
from interp.plot.theme import Width

ROLES = {"target": "target", "control_task": "control task", "off_target": "off target"}
"""How the columns are grouped, in this order."""

_FAINT = {"accuracy": 0.2}
"""Effects all below this stay pale: a map of nothing must not shine."""


def effect_matrix(
    effects: pd.DataFrame, metric: str = "accuracy", k: int | None = None, *, width: Width = "double"
) -> go.Figure:
    """Mechanism x task: the change under the cut with its 95 % interval, and the matched controls in the row below it.

    Tasks on which the clean model is at chance are hatched, whatever was measured there (the floor rule).

    Args:
        effects: one row per condition, task and metric, as `interp.measure` gives them.
        metric: which metric to draw.
        k: number of components cut; None takes, for each row, 10 where it was measured, else the largest.
        width: `single`, `double`, `page` or pixels.

    Raises:
        UsageError: missing columns, an unknown metric, nothing cut at `k`, or no clean row.
    """
    rows = rows_of(effects, metric, "effect_matrix")
    found = at_k(panels(rows, "effect_matrix"), k, "effect_matrix")
    role_of = dict(zip(rows["task"], rows["role"], strict=True))
    tasks = sorted(dict.fromkeys(p.task for p in found), key=lambda task: order_of_role(role_of[task]))
    lines = _lines(found)
    font, total = theme.font_px(width), theme.pixels(width)

    narrow = total < 400
    widest = max(len(part) for line in lines for part in line["label"])
    left = min((0.3 if narrow else 0.34) * total, (0.56 * widest + 1.4) * font)
    # In one column the numbers in the cells are the scale.
    right = 0.8 * font if narrow else 6.6 * font
    cell = min((total - left - right) / len(tasks), 16 * font)
    right = total - left - cell * len(tasks)
    longest = max(len(part) for task in tasks for part in re.split(r"(?<=[_\- ])", task))
    upright = 0.56 * font * longest + 4 > cell
    heads = [safe(task) if upright else _broken(task, cell, font) for task in tasks]
    above = (
        0.56 * font * max(map(len, tasks))
        if upright
        else 1.3 * font * max(h.count("<br>") + 1 for h in heads)
    )
    labels = [_stacked(line["label"], left - 0.6 * font, font) for line in lines]
    tall_cell = (3.3 if cell >= 6.8 * font else 4.0 if cell >= 3.6 * font else 2.8) * font
    tall_cell = max(tall_cell, 1.32 * font * max(label.count("<br>") + 1 for label in labels))
    fig = theme.figure(
        f"What each cut changes: {metric_label(metric, unit=False)}", _summary(found), width=width,
        plot_height=tall_cell * len(lines), left=left, right=right, bottom=0.8 * font, top=above + 2.2 * font,
        alt=_alt(found, metric),
    )  # fmt: skip
    z, hover = _grid(lines, tasks)
    finite = np.abs(z[np.isfinite(z)])
    reach = max(float(finite.max()) if finite.size else 0.0, _FAINT.get(metric, 1e-9))
    scale_name = f"change of {metric_label(metric, unit=False)}"
    if 0.56 * font * len(scale_name) > tall_cell * len(lines):
        scale_name = "change"
    fig.add_heatmap(
        z=z, x=list(range(len(tasks))), y=list(range(len(lines))), zmin=-reach, zmax=reach, zmid=0,
        colorscale=theme.RDBU, xgap=2, ygap=2, hoverongaps=False, customdata=hover,
        hovertemplate="%{customdata}<extra></extra>", showscale=not narrow,
        colorbar=theme.colorbar(scale_name, tall_cell * len(lines), font),
    )  # fmt: skip
    for y, line in enumerate(lines):
        for x, task in enumerate(tasks):
            _cell(fig, x, y, line["cells"].get(task), line["what"], reach, cell, font)
    for y in range(2, len(lines)):
        if lines[y]["what"] == "cut":
            fig.add_shape(
                type="line",
                xref="paper",
                x0=0,
                x1=1,
                y0=y - 0.5,
                y1=y - 0.5,
                line={"color": theme.MUTED, "width": 1},
            )
    role_heads(fig, [role_of[task] for task in tasks], above + 0.6 * font, cell, font)
    fig.update_xaxes(
        tickvals=list(range(len(tasks))), ticktext=heads, side="top", range=[-0.5, len(tasks) - 0.5], ticks="",
        showline=False, tickangle=-90 if upright else 0,
    )  # fmt: skip
    fig.update_yaxes(
        tickvals=list(range(len(lines))), ticktext=labels, ticks="",
        range=[len(lines) - 0.5, -0.5], showline=False,
    )  # fmt: skip
    return fig


def order_of_role(role: str) -> int:
    return list(ROLES).index(role) if role in ROLES else len(ROLES)


def _lines(found: Sequence[Panel]) -> list[dict[str, Any]]:
    """Two lines for each way of cutting: the cut and its controls, each with its panels by task."""
    out = []
    for way in dict.fromkeys(panel.way for panel in found):
        mine = [panel for panel in found if panel.way == way]
        cells = {panel.task: panel for panel in mine}
        ks = sorted({int(panel.cut["k"].iloc[0]) for panel in mine})
        size = "/".join(map(str, ks))
        rest = named(mine[0], found, [c for c in WAY if c != "mechanism"])
        mechanism = mine[0].at("mechanism") or "cut"
        out.append({"what": "cut", "cells": cells, "label": (f"{size} {mechanism}", rest)})
        draws = sorted({len(panel.control) for panel in mine} - {0})
        if draws:
            many = f"{draws[0]}" if len(draws) == 1 else f"{draws[0]}\u2013{draws[-1]}"
            label = (f"{size} matched others", f"mean of {many} draws")
            out.append({"what": "control", "cells": cells, "label": label})
    return out


def _value(panel: Panel | None, what: str) -> tuple[float, float, float]:
    """Change, and the ends of its interval: 95 % of the cut, 5th to 95th percentile of the control draws."""
    if panel is None or panel.at_chance:
        return float("nan"), float("nan"), float("nan")
    if what == "cut":
        row = panel.cut.iloc[0]
        return float(row["delta"]), float(row["ci_lo"]), float(row["ci_hi"])
    draws = panel.control["delta"].dropna().to_numpy(float)
    if not len(draws):
        return float("nan"), float("nan"), float("nan")
    return float(draws.mean()), float(np.quantile(draws, 0.05)), float(np.quantile(draws, 0.95))


def _grid(lines: Sequence[dict[str, Any]], tasks: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    z = np.full((len(lines), len(tasks)), np.nan)
    hover = np.full(z.shape, "", dtype=object)
    for y, line in enumerate(lines):
        for x, task in enumerate(tasks):
            panel = line["cells"].get(task)
            z[y, x], low, high = _value(panel, line["what"])
            if panel is None:
                continue
            row, clean = panel.cut.iloc[0], panel.clean
            range_of = "95% interval" if line["what"] == "cut" else "5th to 95th percentile"
            hover[y, x] = "<br>".join([
                f"<b>{safe(task)}</b>: {safe(' '.join(line['label']))}",
                f"clean {number(float(clean['value']), 3)}, change {signed(z[y, x], 3)}",
                f"{range_of} {number(low, 3)} to {number(high, 3)}",
                f"{safe(row['scope'])} positions, mode {safe(row['mode'])}, n = {int(row['n'])}",
            ])  # fmt: skip
    return z, hover


def _cell(
    fig: go.Figure, x: int, y: int, panel: Panel | None, what: str, reach: float, cell: float, font: float
) -> None:
    value, low, high = _value(panel, what)
    if panel is not None and panel.at_chance:
        hatch(fig, x, y)
        label = AT_CHANCE if cell >= 5 * font else "at<br>chance"
        size = 0.9 * font if cell >= 3.6 * font else 0.72 * font
        fig.add_annotation(
            x=x, y=y, text=label, font={"color": theme.MUTED, "size": size}, bgcolor=theme.ABSENT, borderpad=1
        )
        return
    if not np.isfinite(value):
        fig.add_annotation(x=x, y=y, text="\u2013", font={"color": theme.MUTED})
        return
    if cell >= 6.8 * font:
        interval = f"<br>[{number(low)}, {number(high)}]"
    elif cell >= 3.6 * font:
        interval = f"<br>{number(low)} to<br>{number(high)}"
    else:
        interval = ""
    color = theme.ON_DARK if abs(value) > 0.62 * reach else theme.INK
    fig.add_annotation(
        x=x, y=y, text=f"<b>{signed(value)}</b>{interval}", font={"color": color, "size": 0.86 * font}
    )


def hatch(fig: go.Figure, x: int, y: int, strokes: int = 7) -> None:
    """Grey with diagonal strokes: told from a pale effect without colour too."""
    half = 0.47
    fig.add_shape(
        type="rect", x0=x - half, x1=x + half, y0=y - half, y1=y + half, fillcolor=theme.ABSENT, line_width=0,
        name=AT_CHANCE,
    )  # fmt: skip
    path = []
    for i in range(1, 2 * strokes):
        t = i / strokes
        a, b = min(t, 1.0), max(0.0, t - 1.0)
        path.append(
            f"M{x - half + 2 * half * a:.4f},{y - half + 2 * half * b:.4f}"
            f"L{x - half + 2 * half * b:.4f},{y - half + 2 * half * a:.4f}"
        )
    fig.add_shape(
        type="path", path="".join(path), line={"color": theme.CONTROL, "width": 0.5}, name=AT_CHANCE
    )


def role_heads(fig: go.Figure, roles: Sequence[str], lift: float, cell: float, font: float) -> None:
    """The group of each run of columns, above their names."""
    start = 0
    for i in range(1, len(roles) + 1):
        if i < len(roles) and roles[i] == roles[start]:
            continue
        text = ROLES.get(roles[start], roles[start].replace("_", " "))
        room = (i - start) * cell
        if 0.5 * font * len(text) > room:
            text = text.split(" ")[0]
        fig.add_annotation(
            x=(start + i - 1) / 2, y=1, yref="paper", yshift=lift, yanchor="bottom", text=safe(text),
            font={"color": theme.MUTED, "size": 0.94 * font},
        )  # fmt: skip
        start = i


def _broken(task: str, cell: float, font: float, most: int = 3) -> str:
    """A task's name in lines that fit the column, broken after `_`, `-` and spaces."""
    fits = max(3, int((cell - 4) / (0.55 * font)))
    lines = [""]
    for part in re.findall(r"[^_\- ]+[_\- ]*|[_\- ]+", task):
        if lines[-1] and len(lines[-1]) + len(part.rstrip()) > fits:
            lines.append("")
        lines[-1] += part
    lines = [line if len(line.rstrip()) <= fits else line[: fits - 1] + "\u2026" for line in lines]
    if len(lines) > most:
        lines = [*lines[: most - 1], lines[most - 1].rstrip() + "\u2026"]
    return "<br>".join(safe(line.rstrip()) for line in lines)


def _stacked(label: tuple[str, str], room: float, font: float) -> str:
    """A line's two names, each wrapped to the room left of the map, the second in italics."""
    names, ways = (["<br>".join(map(safe, wrapped(part, room, font)))] if part else [] for part in label)
    return "<br>".join([*names, *(f"<i>{way}</i>" for way in ways)])


def _summary(found: Sequence[Panel]) -> str:
    chance = [panel.task for panel in found if panel.at_chance]
    told = [panel for panel in found if not panel.at_chance]
    if not told:
        return "The clean model is at chance on every task: no effect is reported."
    worst = max(told, key=lambda panel: abs(float(panel.cut["delta"].iloc[0])))
    largest = f"largest change: {signed(float(worst.cut['delta'].iloc[0]))} on {worst.task}"
    parts = [shared(found), largest]
    if chance:
        parts.append(f"hatched: clean model at chance on {', '.join(dict.fromkeys(chance))}")
    return joined(parts)


def _alt(found: Sequence[Panel], metric: str) -> str:
    cells = []
    for panel in found:
        name = joined([panel.at("mechanism"), named(panel, found), panel.task], ", ")
        if panel.at_chance:
            cells.append(f"{name}: at chance.")
            continue
        value, low, high = _value(panel, "cut")
        control = _value(panel, "control")[0]
        cells.append(
            f"{name}: {signed(value)} ({number(low)} to {number(high)}), controls {signed(control)}."
        )
    return f"Matrix of the change of {metric_label(metric)} by mechanism and task. " + " ".join(cells)
