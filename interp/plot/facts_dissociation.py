"""Cutting what recalls facts against cutting what reads the context: who loses what, beside matched controls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from interp.errors import UsageError
from interp.plot import theme
from interp.plot.check import need
from interp.plot.conditions import AT_CHANCE
from interp.plot.sheet import Sheet
from interp.plot.text import count, joined, number, percent, safe
from interp.plot.theme import Width

LOSSES = ("task", "mechanism", "scope", "condition", "metric", "loss", "loss_lo", "loss_hi", "status")
"""A row of the table: `cut` with the interval of its loss, `control` for each matched set."""

GAPS = ("mechanism", "fact_task", "context_task", "scope", "metric", "primary", "verdict",
        "mlp_gap", "mlp_gap_lo", "mlp_gap_hi", "heads_gap", "heads_gap_lo", "heads_gap_hi",
        "interaction", "interaction_lo", "interaction_hi")  # fmt: skip

TASKS = {
    "fit": "chosen on", "held": "held out", "kin": "same subjects", "other": "other relations", "needle": "needles",
    "induction": "induction", "prose": "prose",
}  # fmt: skip
"""Sets of facts (what layers were chosen on, other subjects, these in other relations, others of these), and tasks."""

SCOPES = {"content": "all tokens but the first", "place": "one token", "all": "all tokens"}

FACTS = ("fit", "held", "kin", "other")


def dissociation(
    effects: pd.DataFrame,
    *,
    scope: str = "content",
    metric: str = "probability",
    mechanisms: Sequence[str] | None = None,
    width: Width = "double",
) -> go.Figure:
    """What each task loses when a mechanism is cut: one panel a mechanism, controls as dots behind.

    Facts are blue, tasks of the context orange; a task that the clean model does not do shows no effect.

    Args:
        effects: `task mechanism scope condition metric loss loss_lo loss_hi status`.
        scope: which tokens were cut.
        metric: a share is lost of it; of `nll`, nats are gained.
        mechanisms: which ones, in their order; default all.
        width: `single`, `double`, `page` or pixels.

    Raises:
        UsageError: missing columns, or nothing was cut so.
    """
    need(effects, LOSSES, "dissociation", numeric=("loss", "loss_lo", "loss_hi"))
    rows = effects[(effects["scope"] == scope) & (effects["metric"] == metric)]
    cut = rows[rows["condition"] == "cut"]
    chosen = list(dict.fromkeys(cut["mechanism"])) if mechanisms is None else list(mechanisms)
    cut = cut[cut["mechanism"].isin(chosen)]
    if cut.empty:
        raise UsageError(
            f"dissociation: no row of a cut has scope {scope!r}, metric {metric!r} and mechanism {', '.join(chosen)}"
        )
    if cut.duplicated(["mechanism", "task"]).any():
        raise UsageError("dissociation: a mechanism is cut twice on a task; filter the table to one")
    tasks = [t for t in TASKS if (cut["task"] == t).any()]
    tasks += [t for t in dict.fromkeys(cut["task"]) if t not in tasks]
    control = rows[(rows["condition"] == "control") & rows["mechanism"].isin(chosen)]
    share = metric != "nll"
    sheet = Sheet.of(
        "What each task loses when a mechanism is cut", _note(control, cut, scope, metric),
        [m[:1].upper() + m[1:] for m in chosen], width, alt=_alt(cut, control, share), least=19, tall=13, gap=9.6,
    )  # fmt: skip
    # A control that hurts far more than all cuts would flatten them.
    seen = pd.concat([cut["loss"], cut["loss_lo"], cut["loss_hi"], control["loss"]]).dropna()
    low, high = min(0.0, float(seen.min())), max(0.0, float(seen.max()))
    if share:
        low, high = max(low, -1.0), min(high, 1.0)
    pad = 0.06 * (high - low or 1.0)
    ends = (-0.6, len(tasks) - 0.4)
    for i, mechanism in enumerate(chosen):
        sheet.fig.add_scatter(
            x=list(ends), y=[0, 0], mode="lines", hoverinfo="skip", showlegend=False,
            line={"color": theme.MUTED, "width": 0.8}, **sheet.at(i),
        )  # fmt: skip
        _controls(sheet, i, control[control["mechanism"] == mechanism], tasks, legend=i == 0, share=share)
        _cuts(sheet, i, cut[cut["mechanism"] == mechanism], tasks, legend=i == 0, share=share)
        y = f"{metric} lost" if share else "loss gained (nats)"
        sheet.axes(i, "", y if i % sheet.columns == 0 else "", ends, (low - pad, high + pad))
        sheet.names(i, [TASKS.get(t, safe(t)) for t in tasks])
        if share:
            sheet.fig.update_layout({f"yaxis{sheet.axis(i)}": {"tickformat": ".0%"}})
    return sheet.done()


def dissociation_gaps(table: pd.DataFrame, *, width: Width = "double") -> go.Figure:
    """Both sides of the double dissociation with their intervals: one line a mechanism of facts and pair of tasks.

    Args:
        table: `mechanism fact_task context_task scope metric mlp_gap heads_gap interaction`, these three with `_lo` and
            `_hi`, `primary` and `verdict`; one scope and metric.
        width: `single`, `double`, `page` or pixels.

    Raises:
        UsageError: missing columns, no row, or several scopes or metrics.
    """
    need(table, GAPS, "dissociation_gaps", numeric=("mlp_gap", "heads_gap", "interaction"))
    for column in ("scope", "metric"):
        if table[column].nunique() > 1:
            values = " and ".join(list(dict.fromkeys(table[column].astype(str)))[:3])
            raise UsageError(f"dissociation_gaps: {column} is {values}; filter the table to one")
    font = theme.font_px(width)
    named = [f"{r.mechanism}: {_named(r.fact_task)} / {_named(r.context_task)}" for r in table.itertuples()]
    lines = [name.partition(": ")[::2] for name in named]
    left = (0.54 * max(len(part) for line in lines for part in line) + 1.2) * font
    verdicts = list(table["verdict"].astype(str))
    right = (0.52 * max(map(len, verdicts)) + 1.4) * font
    share = table["metric"].iloc[0] != "nll"
    fig = theme.figure(
        "Do facts and context dissociate?", _gaps_note(table), width=width, plot_height=3.0 * font * len(table),
        left=left, right=right, bottom=6.4 * font, top=0.3 * font,
        alt="Differences of losses. " + " ".join(
            f"{n}: MLPs {number(r.mlp_gap)}, heads {number(r.heads_gap)}, {r.verdict}."
            for n, r in zip(named, table.itertuples(), strict=True)
        ),
    )  # fmt: skip
    for column, name, color, symbol, shift in (
        ("mlp_gap", "facts less context, fact mechanism cut", theme.BLUE, "circle", -0.22),
        ("heads_gap", "context less facts, retrieval heads cut", theme.ORANGE, "square", 0.0),
        ("interaction", "both together", theme.INK, "diamond", 0.22),
    ):
        fig.add_scatter(
            x=table[column], y=[i + shift for i in range(len(table))], mode="markers", name=name,
            marker={"symbol": symbol, "size": 0.55 * font, "color": color},
            error_x={
                "array": table[f"{column}_hi"] - table[column], "arrayminus": table[column] - table[f"{column}_lo"],
                "color": color, "thickness": 1.3, "width": 0,
            },
            customdata=[
                f"<b>{safe(n)}</b><br>{name}: {number(v, 3)}<br>95% interval {number(a, 3)} to {number(b, 3)}"
                for n, v, a, b in zip(
                    named, table[column], table[f"{column}_lo"], table[f"{column}_hi"], strict=True
                )
            ],
            hovertemplate="%{customdata}<extra></extra>",
        )  # fmt: skip
    for i, (verdict, primary) in enumerate(zip(verdicts, table["primary"], strict=True)):
        fig.add_annotation(
            text=f"<b>{safe(verdict)}</b>" if primary else safe(verdict), x=1, xref="paper", xanchor="left", xshift=6,
            y=i, font={"color": theme.INK if primary else theme.MUTED},
        )  # fmt: skip
    fig.add_vline(x=0, line={"color": theme.MUTED, "width": 0.8})
    told = [
        f"<b>{safe(first)}</b><br><b>{safe(second)}</b>" if primary else f"{safe(first)}<br>{safe(second)}"
        for (first, second), primary in zip(lines, table["primary"], strict=True)
    ]
    fig.update_layout(
        xaxis={
            "title": {"text": "difference of losses" + (" (shares)" if share else " (nats)")}, "showgrid": True,
            "nticks": 7, "tickangle": 0,
        },
        yaxis={
            "tickvals": list(range(len(table))), "ticktext": told, "range": [len(table) - 0.4, -0.6], "ticks": "",
            "showline": False,
        },
    )  # fmt: skip
    return theme.legend_below(fig, font)


def _named(task: object) -> str:
    return TASKS.get(str(task), str(task))


def _told(value: float, share: bool) -> str:
    return percent(value) if share else f"{number(value, 3)} nats"


def _controls(
    sheet: Sheet, panel: int, own: pd.DataFrame, tasks: Sequence[str], *, legend: bool, share: bool
) -> None:
    own = own[own["task"].isin(list(tasks))].dropna(subset="loss")
    if own.empty:
        return
    sheet.fig.add_scatter(
        x=[tasks.index(t) + 0.2 for t in own["task"]], y=own["loss"], mode="markers", name="a matched control",
        legendgroup="control", showlegend=legend,
        marker={"color": theme.CONTROL, "size": 0.36 * sheet.font, "opacity": 0.75, "symbol": "circle"},
        customdata=[f"{safe(str(r.task))}: a matched control loses {_told(r.loss, share)}" for r in own.itertuples()],
        hovertemplate="%{customdata}<extra></extra>", **sheet.at(panel),
    )  # fmt: skip


def _cuts(
    sheet: Sheet, panel: int, own: pd.DataFrame, tasks: Sequence[str], *, legend: bool, share: bool
) -> None:
    for name, color, symbol, kind in (
        ("facts", theme.BLUE, "circle", True), ("context and text", theme.ORANGE, "square", False),
    ):  # fmt: skip
        part = own[(own["task"].isin(FACTS) == kind) & (own["status"] != AT_CHANCE)]
        if part.empty:
            continue
        error: dict[str, Any] = {
            "array": part["loss_hi"] - part["loss"], "arrayminus": part["loss"] - part["loss_lo"], "color": color,
            "thickness": 1.4, "width": 0,
        }  # fmt: skip
        sheet.fig.add_scatter(
            x=[tasks.index(t) - 0.12 for t in part["task"]], y=part["loss"], mode="markers", name=name,
            legendgroup=name, showlegend=legend, error_y=error,
            marker={"color": color, "symbol": symbol, "size": 0.66 * sheet.font},
            customdata=[
                f"<b>{safe(str(r.task))}</b>: loses {_told(r.loss, share)}<br>95% interval "
                f"{_told(r.loss_lo, share)} to {_told(r.loss_hi, share)}"
                for r in part.itertuples()
            ],
            hovertemplate="%{customdata}<extra></extra>", **sheet.at(panel),
        )  # fmt: skip
    for task in own[own["status"] == AT_CHANCE]["task"]:
        sheet.fig.add_annotation(
            text="at chance", x=tasks.index(task), y=0.5, textangle=-90, xref=f"x{sheet.axis(panel)}",
            yref=f"y{sheet.axis(panel)} domain", font={"color": theme.MUTED, "size": 0.9 * sheet.font},
        )  # fmt: skip


def _note(control: pd.DataFrame, cut: pd.DataFrame, scope: str, metric: str) -> str:
    where = {"content": "all tokens but the first", "place": "one token", "all": "all tokens"}.get(
        scope, scope
    )
    draws = control.groupby(["mechanism", "task"]).size()
    few = f"grey: {count(int(draws.max()), 'matched control')} of each" if len(draws) else ""
    what = f"share of the {metric} of the answer" if metric != "nll" else "nats a token"
    return joined([f"cut at {where}; {what}, 95% intervals", few])


def _alt(cut: pd.DataFrame, control: pd.DataFrame, share: bool) -> str:
    parts = []
    beside = control.groupby(["mechanism", "task"])["loss"].mean()
    for r in cut.itertuples():
        key = (r.mechanism, r.task)
        other = f" (controls {_told(float(beside[key]), share)})" if key in beside.index else ""
        parts.append(f"{r.mechanism}, {r.task}: {_told(float(r.loss), share)}{other}.")
    return "What tasks lose when mechanisms are cut. " + " ".join(parts)


def _gaps_note(table: pd.DataFrame) -> str:
    scope, metric = table["scope"].iloc[0], table["metric"].iloc[0]
    return joined([
        f"cut at {SCOPES.get(scope, scope)}; {metric}; facts / context, 95% intervals",
        "right of zero: a cut hurts its own task more",
        "bold: named before anything was measured" if table["primary"].any() else "",
    ])  # fmt: skip
