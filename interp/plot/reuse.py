"""Circuits of several tasks against each other: what they share, and what cutting each does to every task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from interp.errors import UsageError
from interp.plot import theme
from interp.plot.check import need
from interp.plot.conditions import AT_CHANCE
from interp.plot.matrix import hatch
from interp.plot.text import count, joined, listed, number, safe
from interp.plot.theme import Width

CROSS = ("circuit", "task", "condition", "value", "delta", "ci_lo", "ci_hi", "n")
"""A row of the cross-task table: `clean` rows of each task, `cut` of each circuit, `control` of each draw."""

OVERLAP = ("a", "b", "shared", "jaccard", "expected", "p")
"""What two circuits share; `size_a` and `size_b` are told where they are there."""

LEVEL = 0.05


@dataclass(frozen=True)
class _Cell:
    """One circuit cut on one task: shares of the uncut value, with the middle 90 % of as large random cuts."""

    share: float
    low: float
    high: float
    clean: float
    controls: tuple[float, float, float]
    draws: int
    n: int
    chance: bool
    q: float

    @property
    def beyond(self) -> bool:
        """Whether it does more harm than 95 % of its controls, in the same direction for the whole interval."""
        return (
            self.draws > 0
            and self.share < self.controls[1]
            and (self.q < LEVEL if np.isfinite(self.q) else self.high < 0)
        )


def cross_task_matrix(effects: pd.DataFrame, *, width: Width = "double") -> go.Figure:
    """Circuit x task: the change of each task, in per cent of its uncut value, with the range of as large random cuts.

    Own tasks (the circuit's name is the task's) are framed. Bold: below zero with its whole interval (or with an
    adjusted p, column `q`, under 0.05), and below 95 % of its controls. Tasks that the uncut model does at chance are
    hatched and show no change (the floor rule).

    Args:
        effects: `circuit task condition value delta ci_lo ci_hi n`; the interval is of the change; `status` (`at
            chance`), `q`, `draw` and `metric` where there are. One metric a task.
        width: `single`, `double`, `page` or pixels.

    Raises:
        UsageError: missing columns, nothing cut, a task without clean row, several metrics, or two cuts of a circuit.
    """
    need(effects, CROSS, "cross_task_matrix", numeric=("value", "delta", "ci_lo", "ci_hi", "n"))
    cut = effects[effects["condition"] == "cut"]
    if cut.empty:
        raise UsageError("cross_task_matrix: the table has no row with condition 'cut'")
    tasks, circuits = list(dict.fromkeys(cut["task"])), list(dict.fromkeys(cut["circuit"]))
    grid = [[_cell(effects, circuit, task) for task in tasks] for circuit in circuits]
    font, total = theme.font_px(width), theme.pixels(width)
    left = (0.56 * max(map(len, circuits)) + 1.0) * font
    cell = min((total - left - 0.8 * font) / len(tasks), 11 * font)
    right = total - left - cell * len(tasks)
    flat = 0.56 * font * max(map(len, tasks)) + 6 <= cell
    above = 1.3 * font if flat else 0.52 * font * max(map(len, tasks))
    roomy = cell >= 6.2 * font
    tall_cell = (3.0 if roomy else 2.0) * font
    lines = len(circuits) + 1
    fig = theme.figure(
        "What cutting each task's circuit does to every task", _cross_note(grid, tasks, roomy), width=width,
        plot_height=tall_cell * lines, left=left, right=right, bottom=0.8 * font, top=above + 1.0 * font,
        alt=_cross_alt(grid, circuits, tasks),
    )  # fmt: skip
    z = np.array(
        [[np.nan if c is None or c.chance else np.clip(c.share, -1, 1) for c in row] for row in grid]
    )
    hover = [
        [_cross_hover(c, a, b) for c, b in zip(row, tasks, strict=True)]
        for row, a in zip(grid, circuits, strict=True)
    ]
    fig.add_heatmap(
        z=z, x=list(range(len(tasks))), y=list(range(1, lines)), zmin=-1, zmax=1, zmid=0, colorscale=theme.RDBU,
        xgap=1.5, ygap=1.5, hoverongaps=False, customdata=np.array(hover, dtype=object), showscale=False,
        hovertemplate="%{customdata}<extra></extra>",
    )  # fmt: skip
    for x, task in enumerate(tasks):
        clean = next(row[x].clean for row in grid if row[x] is not None)  # type: ignore[union-attr]
        _write(fig, x, 0, number(clean), theme.INK, font)
        for y, row in enumerate(grid, 1):
            here = row[x]
            if here is None:
                _write(fig, x, y, "\u2013", theme.MUTED, font)
            elif here.chance:
                hatch(fig, x, y)
            else:
                color = theme.ON_DARK if abs(here.share) > 0.62 else theme.INK
                text = f"<b>{_points(here.share)}</b>" if here.beyond else _points(here.share)
                if roomy and here.draws:
                    text += f"<br>[{_points(here.controls[1])}, {_points(here.controls[2])}]"
                _write(fig, x, y, text, color, font)
            if circuits[y - 1] == task:
                fig.add_shape(
                    type="rect", x0=x - 0.48, x1=x + 0.48, y0=y - 0.47, y1=y + 0.47, name="own task",
                    line={"color": theme.INK, "width": 1.4},
                )  # fmt: skip
    fig.add_shape(
        type="line", x0=-0.5, x1=len(tasks) - 0.5, y0=0.5, y1=0.5, line={"color": theme.MUTED, "width": 1}
    )
    fig.update_xaxes(
        tickvals=list(range(len(tasks))), ticktext=[safe(task) for task in tasks], side="top", ticks="",
        range=[-0.5, len(tasks) - 0.5], showline=False, tickangle=0 if flat else -90,
    )  # fmt: skip
    fig.update_yaxes(
        tickvals=list(range(lines)), ticktext=["uncut", *map(safe, circuits)], ticks="", showline=False,
        range=[lines - 0.5, -0.5],
    )  # fmt: skip
    return fig


def _cell(effects: pd.DataFrame, circuit: str, task: str) -> _Cell | None:
    own = effects[effects["task"] == task]
    clean = own[own["condition"] == "clean"]
    if clean.empty:
        raise UsageError(
            f"cross_task_matrix: task {task!r} has no row with condition 'clean' to compare with"
        )
    if "metric" in own and own["metric"].nunique() > 1:
        raise UsageError(
            f"cross_task_matrix: task {task!r} has several metrics; filter the table to one a task"
        )
    cut = own[(own["condition"] == "cut") & (own["circuit"] == circuit)]
    if cut.empty:
        return None
    if len(cut) > 1:
        raise UsageError(
            f"cross_task_matrix: circuit {circuit!r} is cut twice on {task!r}; filter the table to one"
        )
    row, uncut = cut.iloc[0], float(clean["value"].iloc[0])
    scale = abs(uncut) or float("nan")
    draws = (
        own[(own["condition"] == "control") & (own["circuit"] == circuit)]["delta"].to_numpy(float) / scale
    )
    middle = np.quantile(draws, [0.5, 0.05, 0.95]).tolist() if len(draws) else [float("nan")] * 3
    chance = "status" in own and AT_CHANCE in (*clean["status"], row["status"])
    share, low, high = (float(row[c]) / scale for c in ("delta", "ci_lo", "ci_hi"))
    q = float(row["q"]) if "q" in own else float("nan")
    controls = (middle[0], middle[1], middle[2])
    return _Cell(share, low, high, uncut, controls, len(draws), int(row["n"]), chance, q)


def _points(share: float) -> str:
    text = number(100 * share, 0)
    return "\u2013" if not np.isfinite(share) else ("+" + text if share > 0 and text != "0" else text)


def _write(fig: go.Figure, x: int, y: int, text: str, color: str, font: float) -> None:
    fig.add_annotation(x=x, y=y, text=text, font={"color": color, "size": 0.86 * font})


def _cross_hover(cell: _Cell | None, circuit: str, task: str) -> str:
    if cell is None:
        return ""
    head = f"<b>{safe(task)}</b> with the circuit of {safe(circuit)} cut<br>uncut {number(cell.clean, 3)}"
    if cell.chance:
        return f"{head}<br>the uncut model is at chance: no effect is reported"
    lines = [
        head,
        f"change {_points(cell.share)}%, 95% interval {_points(cell.low)} to {_points(cell.high)}%",
    ]
    if cell.draws:
        middle, low, high = (_points(v) for v in cell.controls)
        lines.append(f"{count(cell.draws, 'random cut')} of its size: {middle}% ({low} to {high}%)")
    return "<br>".join([*lines, f"n = {cell.n}"])


def _cross_note(grid: Sequence[Sequence[_Cell | None]], tasks: Sequence[str], roomy: bool) -> str:
    told = [c for row in grid for c in row if c is not None]
    draws = {c.draws for c in told} - {0}
    parts = ["change in % of the uncut value (first line); framed: the circuit's own task"]
    if draws:
        few = (
            f"{min(draws)}"
            + (f" to {max(draws)}" if len(draws) > 1 else "")
            + " random cuts of the same size"
        )
        if roomy:
            parts.append(f"in brackets: {few}, 5th to 95th percentile")
        parts.append(f"bold: below zero, and below {'them' if roomy else '95% of ' + few}")
    chance = [t for x, t in enumerate(tasks) if any(row[x] is not None and row[x].chance for row in grid)]  # type: ignore[union-attr]
    if chance:
        parts.append(f"hatched: uncut model at chance ({listed(chance)})")
    return joined(parts)


def _cross_alt(grid: Sequence[Sequence[_Cell | None]], circuits: Sequence[str], tasks: Sequence[str]) -> str:
    lines = []
    for circuit, row in zip(circuits, grid, strict=True):
        told = [
            f"{t} {'at chance' if c.chance else _points(c.share) + '% (random ' + _points(c.controls[0]) + '%)'}"
            for c, t in zip(row, tasks, strict=True)
            if c is not None
        ]
        lines.append(f"Circuit of {circuit}: {', '.join(told)}.")
    return "Matrix of the change of each task when a circuit is cut. " + " ".join(lines)


def overlap_matrix(pairs: pd.DataFrame, *, width: Width = "double") -> go.Figure:
    """Circuit x circuit: below the diagonal the share of common components, above it how many times chance that is.

    Args:
        pairs: one row two circuits, `a b shared jaccard expected p`; `expected` is the number that circuits of these
            sizes share under the null. Bold: more than chance (p below 0.05). `null` names the null where it is there.
        width: `single`, `double`, `page` or pixels.

    Raises:
        UsageError: missing columns, no row, a pair twice, or several nulls.
    """
    need(pairs, OVERLAP, "overlap_matrix", numeric=OVERLAP[2:])
    nulls = list(dict.fromkeys(pairs["null"].astype(str))) if "null" in pairs else []
    if len(nulls) > 1:
        raise UsageError(f"overlap_matrix: nulls are {', '.join(nulls)}; filter the table to one")
    names = list(dict.fromkeys([*pairs["a"], *pairs["b"]]))
    told: dict[frozenset[str], Any] = {}
    for r in pairs[pairs["a"] != pairs["b"]].itertuples():
        key = frozenset((r.a, r.b))
        if key in told and (told[key].a, told[key].b) == (r.a, r.b):
            raise UsageError(f"overlap_matrix: {r.a} and {r.b} occur twice; filter the table to one run")
        told[key] = r
    n = len(names)
    font, total = theme.font_px(width), theme.pixels(width)
    left = (0.56 * max(map(len, names)) + 1.0) * font
    cell = min((total - left - 0.8 * font) / n, 9 * font)
    flat = 0.56 * font * max(map(len, names)) + 6 <= cell
    above = 1.3 * font if flat else 0.52 * font * max(map(len, names))
    tall = 2.6 * font
    fig = theme.figure(
        "What the circuits of tasks share", _overlap_note(nulls), width=width, plot_height=tall * n, left=left,
        right=total - left - cell * n, bottom=0.8 * font, top=above + 0.8 * font, alt=_overlap_alt(told),
    )  # fmt: skip
    z = np.full((n, n), np.nan)
    hover = np.full((n, n), "", dtype=object)
    for (i, a), (j, b) in ((p, q) for p in enumerate(names) for q in enumerate(names)):
        r = told.get(frozenset((a, b))) if a != b else None
        if r is None:
            continue
        ratio = r.shared / r.expected if r.expected > 0 else float("nan")
        if i > j:
            z[i, j] = r.jaccard
        text = f"{number(r.jaccard)} ({int(r.shared)})" if i > j else f"\u00d7 {number(ratio, 1)}"
        bold = float(r.p) < LEVEL
        _write(
            fig, j, i, f"<b>{text}</b>" if bold else text,
            theme.on((1 + float(r.jaccard)) / 2, theme.RDBU) if i > j else theme.INK, font,
        )  # fmt: skip
        hover[i, j] = (
            f"<b>{safe(r.a)} and {safe(r.b)}</b><br>{count(int(r.shared), 'component')} in common, "
            f"{number(r.expected)} by chance<br>Jaccard {number(r.jaccard, 3)}, p = {number(float(r.p), 4)}"
        )
    fig.add_heatmap(
        z=z, x=list(range(n)), y=list(range(n)), zmin=-1, zmax=1, colorscale=theme.RDBU, xgap=1.5, ygap=1.5,
        customdata=hover, hovertemplate="%{customdata}<extra></extra>", hoverongaps=True, showscale=False,
    )  # fmt: skip
    ticks = {"tickvals": list(range(n)), "ticktext": [safe(x) for x in names], "ticks": "", "showline": False}
    fig.update_xaxes(**ticks, side="top", range=[-0.5, n - 0.5], tickangle=0 if flat else -90)
    fig.update_yaxes(**ticks, range=[n - 0.5, -0.5])
    return fig


def _overlap_note(nulls: Sequence[str]) -> str:
    by = {"hypergeometric": "random heads", "layers": "random heads of the same layers"}
    null = by.get(nulls[0], nulls[0]) if nulls else "chance"
    return joined([
        "below the diagonal: Jaccard index (number in common)", f"above: times {null}",
        f"bold: p below {LEVEL}",
    ])  # fmt: skip


def _overlap_alt(told: Mapping[frozenset[str], Any]) -> str:
    parts = [
        f"{r.a} and {r.b}: {int(r.shared)} in common, Jaccard {number(r.jaccard)}." for r in told.values()
    ]
    return "Matrix of common components of circuits. " + " ".join(parts)
