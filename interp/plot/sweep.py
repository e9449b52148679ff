"""Figures of a sweep's merged table: dose curves, profiles of layers, mechanisms beyond their controls."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from interp.errors import UsageError
from interp.plot import theme
from interp.plot.by_layer import layer_lines
from interp.plot.conditions import AT_CHANCE, LESS_IS_BETTER, metric_label
from interp.plot.curves import value_curves
from interp.plot.matrix import hatch, order_of_role, role_heads
from interp.plot.sweep_tables import beyond_table, dose_table, layer_table, short, told
from interp.plot.text import joined, listed, number, safe, signed
from interp.plot.theme import Width

CONTROLS = "controls of "


def sweep_doses(frame: pd.DataFrame, metric: str = "choice", *, width: Width = "double") -> go.Figure:
    """A metric over the number of components cut: a panel a task, a line a locator, its matched controls in grey.

    Args:
        frame: merged rows of one model and one cut; see `interp.plot.sweep_tables.dose_table` for what is drawn.
        metric: of the panels; a task that has it not is shown in another one.
        width: `single`, `double`, `page` or pixels.

    Raises:
        UsageError: missing columns, nothing to draw, or several models or cuts.
    """
    table = _one(dose_table(frame, metric), "sweep_doses", ("subject", "cut"))
    names = short(table["locator"])
    lines = table[table["line"] != "clean"].copy()
    own = lines["locator"].map(names)
    lines["name"] = own.where(lines["line"] == "cut", CONTROLS + own)
    lines["panel"] = lines["task"].map(_captions(table))
    clean = table[table["line"] == "clean"].drop_duplicates("task")
    levels = {_captions(table)[r.task]: {"uncut": float(r.value)} for r in clean.itertuples()}
    return value_curves(
        lines, "k", ends=("lo", "hi"), panel="panel", line="name", levels=levels,
        controls=[n for n in dict.fromkeys(lines["name"]) if n.startswith(CONTROLS)],
        title=f"What is left as more {table['mechanism'].iloc[0]} are cut",
        note=joined([
            str(table["subject"].iloc[0]), "bands of cuts: 95% intervals; grey: mean of matched controls, "
            f"5th to 95th percentile of {_draws(lines)}", _left_out(frame, metric, table),
        ]),
        x_title="components cut", y=_titles(lines), width=width,
    )  # fmt: skip


def sweep_layers(frame: pd.DataFrame, metric: str = "choice", *, width: Width = "double") -> go.Figure:
    """The change where parts were cut one by one, layer by layer: a panel a task, controls in grey where there are any.

    Args:
        frame: merged rows of one model and one cut; see `interp.plot.sweep_tables.layer_table` for what is drawn.
        metric: of the panels; a task that has it not is shown in another one.
        width: `single`, `double`, `page` or pixels.

    Raises:
        UsageError: missing columns, nothing to draw, or several models or cuts.
    """
    table = _one(layer_table(frame, metric), "sweep_layers", ("subject", "cut"))
    table["panel"] = table["task"].map(_captions(table))
    drawn = table[table["line"] == "controls"]
    cuts = frame[frame["mechanism"].str.startswith("every ") & (frame["condition"] == "cut")]
    each = cuts["components"].nunique() > table["layer"].nunique()
    return layer_lines(
        table, "delta", ("lo", "hi"), panel="panel", line="line", colors={"controls": theme.CONTROL},
        title=f"What each layer does to each task: {table['mechanism'].iloc[0]}, {table['cut'].iloc[0]}",
        note=joined([
            str(table["subject"].iloc[0]),
            "line: mean of a layer's heads; band: from the least to the largest of them, no interval"
            if each else "bands of cuts: 95% intervals",
            f"grey: 5th to 95th percentile of {_draws(drawn)}"
            if len(drawn) else "no control draws: each layer is held against the others",
            _left_out(frame, metric, table),
        ]),
        y=_titles(table, "change of "), width=width,
    )  # fmt: skip


def sweep_matrix(frame: pd.DataFrame, metric: str = "choice", *, width: Width = "page") -> go.Figure:
    """Mechanism x task: the cut's change less the mean change of its matched controls, and its rank among them.

    Colours say harm, scaled metric by metric. Hatched where the clean model is at chance (the floor rule).

    Args:
        frame: merged rows of one model; see `interp.plot.sweep_tables.beyond_table` for what is drawn.
        metric: of the columns; a task that has it not is shown in another one.
        width: `single`, `double`, `page` or pixels.

    Raises:
        UsageError: missing columns, nothing to draw, or several models.
    """
    table = _one(beyond_table(frame, metric), "sweep_matrix", ("subject",))
    roles = dict(zip(table["task"], table["role"], strict=True))
    tasks = sorted(roles, key=lambda task: order_of_role(roles[task]))
    locators, cuts = short(table["locator"]), short(table["cut"])
    # A cut's own parameters other than its doses tell apart what has as many components.
    table["row"] = [
        f"{locators[r.locator]}, {cuts[r.cut]}: {r.k} cut" for r in table.itertuples()
    ]  # fmt: skip
    rows = list(dict.fromkeys(table["row"]))
    font, total = theme.font_px(width), theme.pixels(width)
    other = {r.task: r.metric for r in table.itertuples() if r.metric != metric}
    heads = {
        task: name.replace(" (n", f", {metric_label(other[task], unit=False)} (n") if task in other else name
        for task, name in _captions(table).items()
    }
    left = min(0.36 * total, (0.54 * max(map(len, rows)) + 1) * font)
    cell = (total - left - font) / len(tasks)
    above = 0.56 * font * max(len(heads[task]) for task in tasks)
    tall = 4.0 * font
    at_chance = listed(dict.fromkeys(short(tasks)[t] for t in table[table["status"] == AT_CHANCE]["task"]))
    fig = theme.figure(
        "What each cut changes beyond its matched controls",
        joined([
            str(table["subject"].iloc[0]), f"{metric_label(metric, unit=False)}, or the metric named with the task",
            f"each cell: change less the controls' mean, its rank among {_draws(table)} (1: more harm than all)",
            "intervals: 95% of the cut, moved by as much",
            "red: harm, scaled metric by metric", f"hatched: at chance on {at_chance}" if at_chance else "",
        ]),
        width=width, plot_height=tall * len(rows), left=left, right=font, bottom=0.8 * font, top=above + 2.4 * font,
        alt=" ".join(f"{r.row} on {r.task}: {signed(r.beyond)}." for r in table.itertuples()),
    )  # fmt: skip
    sign = table["metric"].map(lambda m: -1.0 if m in LESS_IS_BETTER else 1.0)
    reach = table.groupby("metric")["beyond"].transform(lambda own: max(float(own.abs().max()), 0.2))
    table["harm"] = sign * table["beyond"] / reach
    z = np.full((len(rows), len(tasks)), np.nan)
    hover = np.full(z.shape, "", dtype=object)
    for r in table.itertuples():
        x, y = tasks.index(r.task), rows.index(r.row)
        z[y, x] = r.harm
        hover[y, x] = (
            f"<b>{safe(r.row)}</b><br>{safe(r.task)}: {safe(r.metric)}, n = {r.n}<br>uncut {number(r.clean, 3)}, "
            f"change {signed(r.delta, 3)}, controls {signed(r.control, 3)} ({number(r.control_lo, 3)} to "
            f"{number(r.control_hi, 3)})<br>beyond controls {signed(r.beyond, 3)}, 95% interval of the cut "
            f"{number(r.lo, 3)} to {number(r.hi, 3)}"
        )
    fig.add_heatmap(
        z=z, x=list(range(len(tasks))), y=list(range(len(rows))), zmin=-1, zmax=1, zmid=0, colorscale=theme.RDBU,
        xgap=2, ygap=2, hoverongaps=False, customdata=hover, hovertemplate="%{customdata}<extra></extra>",
        showscale=False,
    )  # fmt: skip
    for r in table.itertuples():
        x, y = tasks.index(r.task), rows.index(r.row)
        if r.status == AT_CHANCE:
            hatch(fig, x, y)
            continue
        rank = f"<br>{int(r.rank)} of {r.draws + 1}" if np.isfinite(r.rank) else ""
        if cell >= 6.8 * font and np.isfinite(r.lo):
            rank = f"<br>[{number(r.lo)}, {number(r.hi)}]{rank}"
        ink = theme.ON_DARK if abs(r.harm) > 0.62 else theme.INK
        fig.add_annotation(
            x=x, y=y, text=f"<b>{signed(r.beyond)}</b>{rank}", font={"color": ink, "size": 0.86 * font}
        )
    role_heads(fig, [roles[task] for task in tasks], above + 0.6 * font, cell, font)
    fig.update_xaxes(
        tickvals=list(range(len(tasks))), ticktext=[safe(heads[task]) for task in tasks], side="top", ticks="",
        range=[-0.5, len(tasks) - 0.5], showline=False, tickangle=-90,
    )  # fmt: skip
    fig.update_yaxes(
        tickvals=list(range(len(rows))), ticktext=[_broken(row, left, font) for row in rows], ticks="",
        range=[len(rows) - 0.5, -0.5], showline=False,
    )  # fmt: skip
    return fig


def _one(table: pd.DataFrame, what: str, columns: tuple[str, ...]) -> pd.DataFrame:
    if table.empty:
        raise UsageError(f"{what}: the table has no row of a cut that can be drawn so")
    for column in columns:
        found = list(dict.fromkeys(table[column]))
        if len(found) > 1:
            raise UsageError(f"{what}: {column} is {' and '.join(found[:3])}; filter the table to one")
    return table


def _captions(table: pd.DataFrame) -> dict[str, str]:
    """Tasks with their number of examples."""
    names, n = short(table["task"]), table.groupby("task")["n"].max()
    return {task: f"{name} (n = {n[task]})" for task, name in names.items()}


def _titles(table: pd.DataFrame, before: str = "") -> dict[str, str]:
    return {
        p: before + metric_label(m, unit=False) for p, m in zip(table["panel"], table["metric"], strict=True)
    }


def _draws(table: pd.DataFrame) -> str:
    counts = sorted({int(d) for d in table["draws"] if d})
    if not counts:
        return "no draws"
    return f"{counts[0]} draws" if len(counts) == 1 else f"{counts[0]} to {counts[-1]} draws"


def _left_out(frame: pd.DataFrame, metric: str, table: pd.DataFrame) -> str:
    """Tasks that a table has not because the clean model is at chance."""
    rows = told(frame, metric, "sweep")
    gone = dict.fromkeys(rows[(rows["status"] == AT_CHANCE) & ~rows["task"].isin(table["task"])]["task"])
    return f"at chance, so left out: {listed(short(rows['task'])[t] for t in gone)}" if gone else ""


def _broken(row: str, room: float, font: float) -> str:
    from interp.plot.text import wrapped

    return "<br>".join(map(safe, wrapped(row, room - 0.6 * font, font)[:2]))
