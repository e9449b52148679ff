"""How old the values are that a model answers with, where values were updated: a histogram a number of updates."""

from __future__ import annotations

from typing import Any

import pandas as pd
import plotly.graph_objects as go

from interp.errors import UsageError
from interp.plot import theme
from interp.plot.check import need
from interp.plot.sheet import Sheet
from interp.plot.text import count, joined, number, percent
from interp.plot.theme import Width

AGES = ("task", "updates", "age", "share", "ci_lo", "ci_hi", "n", "chance")
"""What each row says of an age; 0 is the current value, 1 the one before, -1 a value that was never said of the key."""


def recall_ages(table: pd.DataFrame, *, width: Width = "double") -> go.Figure:
    """Which update is answered: a panel a number of updates, a bar an age, dotted: a uniform guess.

    Args:
        table: the columns `AGES`, of one task (`interp.measure.staleness.stale_rank`).
        width: `single`, `double`, `page` or pixels.

    Raises:
        UsageError: missing columns, no row, or an age of a panel twice.
    """
    need(table, AGES, "recall_ages", numeric=AGES[1:])
    if table.duplicated(["task", "updates", "age"]).any():
        raise UsageError("recall_ages: an age has two rows of one number of updates; filter to one")
    title = "Which update is answered"
    panels = sorted({(str(t), int(u)) for t, u in zip(table["task"], table["updates"], strict=True)})
    n = table["n"].astype(int)
    per = f"{n.min():,} to {n.max():,}" if n.min() < n.max() else f"{n.min():,}"
    note = joined([f"{per} examples a panel", "0 is the value that holds", "bars: 95% intervals"])
    captions = [f"{name}: {count(updates, 'value')} of a key" for name, updates in panels]
    sheet = Sheet.of(
        title, note, captions, width, alt=f"{title}. {_alt(table, panels)}", tall=8.5, least=19, gap=6.4
    )
    high = min(1.04, 1.15 * float(table["ci_hi"].max()))
    for i, (task, updates) in enumerate(panels):
        rows = table[(table["task"] == task) & (table["updates"] == updates)].sort_values("age")
        ends = float(rows["age"].min()) - 0.6, float(rows["age"].max()) + 0.6
        for name, color, own in (
            ("the value that holds", theme.GREEN, rows[rows["age"] == 0]),
            ("another one", theme.ORANGE, rows[rows["age"] != 0]),
        ):
            sheet.fig.add_bar(
                x=own["age"], y=own["share"], name=name, legendgroup=name, showlegend=i == 0, width=0.8,
                marker={"color": color}, customdata=[_said(row) for row in own.to_dict("records")],
                error_y={
                    "array": own["ci_hi"] - own["share"], "arrayminus": own["share"] - own["ci_lo"],
                    "color": theme.INK, "thickness": 0.8, "width": 0,
                },
                hovertemplate="%{customdata}<extra></extra>", **sheet.at(i),
            )  # fmt: skip
        sheet.fig.add_scatter(
            x=rows["age"], y=rows["chance"], mode="lines", name="uniform guess", legendgroup="guess",
            showlegend=i == 0, line={"color": theme.MUTED, "dash": "dot", "width": 1}, hoverinfo="skip", **sheet.at(i),
        )  # fmt: skip
        sheet.axes(i, "updates ago", "answers" if i % sheet.columns == 0 else "", ends, (0, high))
        axis = sheet.axis(i)
        ticks: dict[str, Any] = {"tickangle": 0, "nticks": 6, "tickformat": "d"}
        if (rows["age"] == -1).any():
            ticks |= {"tickvals": [-1, 0, updates - 1], "ticktext": ["never", "0", str(updates - 1)]}
        elif updates <= 5:
            ticks |= {"dtick": 1}
        sheet.fig.update_layout({f"xaxis{axis}": ticks, f"yaxis{axis}": {"tickformat": ".0%", "nticks": 4}})
    return sheet.done()


def _said(row: dict[str, Any]) -> str:
    """What hovering over a bar tells."""
    age = int(row["age"])
    what = {-1: "never said of the key", 0: "the value that holds"}.get(age, f"{count(age, 'update')} ago")
    return (
        f"<b>{what}</b><br>{percent(row['share'])} of the answers, 95% interval {percent(row['ci_lo'])} to "
        f"{percent(row['ci_hi'])}<br>n = {int(row['n'])}, a guess {number(row['chance'], 3)}"
    )


def _alt(table: pd.DataFrame, panels: list[tuple[str, int]]) -> str:
    """The value that holds and the commonest answer of each panel, in words."""
    said = []
    for name, updates in panels:
        rows = table[(table["task"] == name) & (table["updates"] == updates)]
        now = rows[rows["age"] == 0]["share"].sum()
        most = rows.loc[rows["share"].idxmax()]
        said.append(
            f"{name}, {count(updates, 'value')}: {percent(now)} the one that holds; commonest {int(most['age'])} "
            f"updates ago, {percent(most['share'])}."
        )
    return " ".join(said)
