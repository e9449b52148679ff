"""What cutting the heads of each score does to each task, as a share of what the uncut model does there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from interp.errors import UsageError
from interp.plot import theme
from interp.plot.check import EFFECTS, need
from interp.plot.conditions import AT_CHANCE, HOW, LESS_IS_BETTER, spelled
from interp.plot.matrix import hatch, order_of_role, role_heads
from interp.plot.text import count, joined, listed, number, safe
from interp.plot.theme import Width

METRICS = ("accuracy", "f1", "number", "exact", "nll")
"""A task is shown in the first of these that it has."""

LEVEL = 0.05
_KINDS = {"layer": "matched by layer", "norm": "matched by norm", "entropy": "matched by entropy",
          "bottom": "lowest scores", "": "matched others"}  # fmt: skip


@dataclass(frozen=True)
class _Cell:
    """One cut on one task: `share` is the change over the uncut value, of perplexity where the metric is `nll`."""

    share: float
    low: float
    high: float
    clean: float
    sure: bool
    n: int
    draws: int = 0
    chance: bool = False
    metric: str = "accuracy"

    @property
    def harm(self) -> float:
        """What the colour shows: below zero the model got worse, whichever way the metric goes; within -1 and 1."""
        sign = -1.0 if self.metric in LESS_IS_BETTER else 1.0
        return float(np.clip(sign * self.share, -1.0, 1.0))


def specificity(effects: pd.DataFrame, k: int | None = None, *, width: Width = "double") -> go.Figure:
    """Cut x task: the change relative to the uncut model, one line a score type and one a kind of control.

    The first line has the uncut values (perplexity for prose). A mark stands where the change is sure: adjusted p
    (column `q`) below 0.05 where the table has one, else a 95 % interval without zero. Tasks on which the uncut model
    is at chance are hatched and show no change (the floor rule).

    Args:
        effects: one row per condition, task and metric; `locator` is the score type, `control` (optional) the kind of
            control. Each task is shown in its first metric of accuracy, f1, number, exact and nll.
        k: number of heads cut; None takes 10 where it was measured, else the largest.
        width: `single`, `double`, `page` or pixels.

    Raises:
        UsageError: missing columns, nothing cut at `k`, or cuts of several modes or scopes.
    """
    rows, k = _rows(effects, k)
    tasks, lines = _layout(rows)
    role_of = dict(zip(rows["task"], rows["role"], strict=True))
    grid = [[_cell(rows, line, task) for task in tasks] for line in lines]
    font, total = theme.font_px(width), theme.pixels(width)
    names = ["uncut", *(_name(line) for line in lines)]
    left = (0.56 * max(map(len, names)) + 0.9) * font
    bar = 0.0 if total < 400 else 6.2 * font
    cell = min((total - left - bar - 0.6 * font) / len(tasks), 8 * font)
    right = total - left - cell * len(tasks)
    flat = 0.56 * font * max(map(len, tasks)) + 6 <= cell
    above = 1.3 * font if flat else 0.52 * font * max(map(len, tasks))
    tall_cell = 1.75 * font
    tall = tall_cell * (len(lines) + 1)
    fig = theme.figure(
        f"What cutting the top {count(k, 'head')} of each score changes",
        _summary(rows, grid, tasks, lines, cell < 3.2 * font),
        width=width, plot_height=tall, left=left, right=right, bottom=0.8 * font, top=above + 2.2 * font,
        alt=_alt(grid, tasks, lines),
    )  # fmt: skip
    z = np.array([[np.nan if c is None or c.chance else c.harm for c in line] for line in grid], float)
    hover = [
        [_hover(cell, task, _name(line)) for cell, task in zip(cells, tasks, strict=True)]
        for cells, line in zip(grid, lines, strict=True)
    ]
    scale = "worse   \u2190   change   \u2192   better"
    if 0.6 * font * len(scale) > tall:
        scale = "change"
    fig.add_heatmap(
        z=z, x=list(range(len(tasks))), y=list(range(1, len(lines) + 1)), zmin=-1, zmax=1, zmid=0,
        colorscale=theme.RDBU, xgap=1.5, ygap=1.5, hoverongaps=False, customdata=np.array(hover, dtype=object),
        hovertemplate="%{customdata}<extra></extra>", showscale=bar > 0,
        colorbar=theme.colorbar(scale, min(tall, 22 * font), font)
        | {"tickvals": [-1, -0.5, 0, 0.5, 1], "ticktext": ["100%", "50%", "0", "50%", "100%"]},
    )  # fmt: skip
    for x in range(len(tasks)):
        clean = next((cells[x] for cells in grid if cells[x] is not None), None)
        _text(fig, x, 0, _level(clean, cell < 2.6 * font), theme.INK, font, weight=400)
        for y, cells in enumerate(grid, 1):
            here = cells[x]
            if here is None:
                _text(fig, x, y, "\u2013", theme.MUTED, font, weight=400)
            elif here.chance:
                hatch(fig, x, y)
            else:
                color = theme.ON_DARK if abs(here.harm) > 0.62 else theme.INK
                _text(
                    fig, x, y, _share(here, cell < 3.2 * font), color, font, weight=600 if here.sure else 400
                )
    cuts = sum(line[0] == "cut" for line in lines)
    for y in (0, *([cuts] if cuts < len(lines) else [])):
        fig.add_shape(
            type="line", x0=-0.5, x1=len(tasks) - 0.5, y0=y + 0.5, y1=y + 0.5,
            line={"color": theme.MUTED, "width": 1},
        )  # fmt: skip
    role_heads(fig, [role_of[task] for task in tasks], above + 0.6 * font, cell, font)
    fig.update_xaxes(
        tickvals=list(range(len(tasks))), ticktext=[safe(task) for task in tasks], side="top", ticks="",
        range=[-0.5, len(tasks) - 0.5], showline=False, tickangle=0 if flat else -90,
    )  # fmt: skip
    fig.update_yaxes(
        tickvals=list(range(len(names))), ticktext=[safe(name) for name in names], ticks="", showline=False,
        range=[len(names) - 0.5, -0.5],
    )  # fmt: skip
    return fig


def _rows(effects: pd.DataFrame, k: int | None) -> tuple[pd.DataFrame, int]:
    """One metric a task, one size of cut."""
    need(effects, EFFECTS, "specificity", numeric=("k", "value", "delta", "ci_lo", "ci_hi", "n"))
    rows = effects.assign(
        control=effects["control"].fillna("").astype(str) if "control" in effects else "",
        locator=effects["locator"].fillna("").astype(str),
    )
    has = rows.groupby("task", sort=False)["metric"].agg(set)
    best = {task: next((m for m in METRICS if m in own), None) for task, own in has.items()}
    lost = [str(task) for task, metric in best.items() if metric is None]
    if lost:
        raise UsageError(f"specificity: task {lost[0]!r} has none of the metrics {', '.join(METRICS)}")
    rows = rows[rows["metric"] == rows["task"].map(best)]
    cut = rows[rows["condition"] == "cut"]
    sizes = sorted({int(v) for v in cut["k"]})
    if not sizes:
        raise UsageError("specificity: the table has no row with condition 'cut'")
    chosen = k if k is not None else 10 if 10 in sizes else sizes[-1]
    if chosen not in sizes:
        raise UsageError(
            f"specificity: nothing was cut at k = {chosen}; measured: {', '.join(map(str, sizes))}"
        )
    for column in HOW[:2]:
        ways = list(dict.fromkeys(cut[column].fillna("").astype(str)))
        if len(ways) > 1:
            raise UsageError(
                f"specificity: {column} is {' and '.join(ways[:3])}; filter the table to one way of cutting"
            )
    uncut = rows[rows["condition"] == "clean"]
    bare = [task for task in dict.fromkeys(cut["task"]) if task not in set(uncut["task"])]
    if bare:
        raise UsageError(f"specificity: task {bare[0]!r} has no row with condition 'clean' to compare with")
    return rows[(rows["condition"] == "clean") | (rows["k"] == chosen)], chosen


def _layout(rows: pd.DataFrame) -> tuple[list[str], list[tuple[str, str]]]:
    """Tasks by role, and lines: the score types, then the kinds of control."""
    cut, control = rows[rows["condition"] == "cut"], rows[rows["condition"] == "control"]
    role_of = dict(zip(rows["task"], rows["role"], strict=True))
    tasks = sorted(dict.fromkeys(cut["task"]), key=lambda task: order_of_role(role_of[task]))
    kinds = sorted(dict.fromkeys(control["control"]), key=lambda c: [*_KINDS, c].index(c))
    return tasks, [("cut", name) for name in dict.fromkeys(cut["locator"])] + [
        ("control", kind) for kind in kinds
    ]


def _name(line: tuple[str, str]) -> str:
    return line[1] if line[0] == "cut" else _KINDS.get(line[1], line[1])


def _cell(rows: pd.DataFrame, line: tuple[str, str], task: str) -> _Cell | None:
    """One cell; None where this cut was not measured on this task."""
    column = "locator" if line[0] == "cut" else "control"
    own = rows[(rows["condition"] == line[0]) & (rows[column] == line[1]) & (rows["task"] == task)]
    if own.empty:
        return None
    uncut = rows[(rows["condition"] == "clean") & (rows["task"] == task)].iloc[0]
    clean, metric = float(uncut["value"]), str(uncut["metric"])
    chance = AT_CHANCE in (uncut["status"], *own["status"])
    if line[0] == "cut":
        row = own.iloc[0]
        ends = [float(row["delta"]), float(row["ci_lo"]), float(row["ci_hi"])]
        q = float(row["q"]) if "q" in own else float("nan")
        sure = q < LEVEL if np.isfinite(q) else ends[1] > 0 or ends[2] < 0
        draws = 0
    else:
        deltas = own["delta"].to_numpy(float)
        ends = [float(deltas.mean()), *np.quantile(deltas, [0.05, 0.95]).tolist()]
        sure, draws = False, len(deltas)
    share = [float(np.expm1(v)) if metric == "nll" else v / clean if clean else float("nan") for v in ends]
    return _Cell(share[0], share[1], share[2], clean, sure, int(own["n"].iloc[0]), draws, chance, metric)


def _level(cell: _Cell | None, narrow: bool) -> str:
    if cell is None:
        return "\u2013"
    if cell.metric == "nll":
        return number(float(np.exp(cell.clean)), 0 if narrow else 1)
    text = number(cell.clean)
    return text.lstrip("0") if narrow and text != "0.00" else text


def _share(cell: _Cell, narrow: bool) -> str:
    if not np.isfinite(cell.share):
        return "\u2013"
    value = number(100 * cell.share, 0)
    value = "+" + value if cell.share > 0 and value != "0" else value
    # In narrow cells the weight of the letters is the mark.
    return value if narrow else f"{value}%" + ("*" if cell.sure else "")


def _text(fig: go.Figure, x: int, y: int, text: str, color: str, font: float, *, weight: int) -> None:
    fig.add_annotation(x=x, y=y, text=text, font={"color": color, "size": 0.86 * font, "weight": weight})


def _hover(cell: _Cell | None, task: str, name: str) -> str:
    if cell is None:
        return ""
    what = "perplexity" if cell.metric == "nll" else cell.metric
    clean = number(float(np.exp(cell.clean)) if cell.metric == "nll" else cell.clean, 3)
    head = f"<b>{safe(task)}</b>: {safe(name)}<br>{safe(what)} uncut {clean}"
    if cell.chance:
        return f"{head}<br>the uncut model is at chance: no effect is reported"
    ends = f"{number(100 * cell.low, 1)} to {number(100 * cell.high, 1)}%"
    kind = f"5th to 95th percentile of {count(cell.draws, 'draw')}" if cell.draws else "95% interval"
    return f"{head}<br>change {number(100 * cell.share, 1)}%, {kind} {ends}<br>n = {cell.n}"


def _summary(
    rows: pd.DataFrame,
    grid: Sequence[Sequence[_Cell | None]],
    tasks: Sequence[str],
    lines: Sequence[tuple[str, str]],
    narrow: bool,
) -> str:
    first = rows[rows["condition"] == "cut"].iloc[0]
    how = f"{first['mode']} ablation, {spelled('scope', str(first['scope']))}"
    by = "adjusted p below 0.05" if "q" in rows and rows["q"].notna().any() else "95% interval without zero"
    chance = [t for x, t in enumerate(tasks) if any(c is not None and c.chance for c in (g[x] for g in grid))]
    many = {
        c.draws for cells, line in zip(grid, lines, strict=True) if line[0] == "control" for c in cells if c
    }
    parts = [
        how,
        "change in % of the uncut value (first line; prose: perplexity)",
        f"{'bold' if narrow else '*'}: {by}",
    ]
    if many:
        parts.append(f"controls: mean of {min(many)}{f' to {max(many)}' if len(many) > 1 else ''} draws")
    if chance:
        parts.append(f"hatched: uncut model at chance ({listed(chance)})")
    return joined(parts)


def _alt(
    grid: Sequence[Sequence[_Cell | None]], tasks: Sequence[str], lines: Sequence[tuple[str, str]]
) -> str:
    parts = []
    for cells, line in zip(grid, lines, strict=True):
        told = [
            f"{task} {'at chance' if c.chance else number(100 * c.share, 0) + '%'}"
            for c, task in zip(cells, tasks, strict=True)
            if c is not None
        ]
        parts.append(f"{_name(line)}: {', '.join(told)}.")
    return "Matrix of the relative change by score and task. " + " ".join(parts)
