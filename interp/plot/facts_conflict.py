"""Context against memory: whom the model believes, by the evidence that it is shown, and what moves the balance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from interp.errors import UsageError
from interp.plot import theme
from interp.plot.check import integers, need
from interp.plot.sheet import Sheet
from interp.plot.text import count, joined, number, percent, safe, signed
from interp.plot.theme import Width

BALANCE = ("n", "f_memory", "f_context", "f_other", "ratio", "ci_lo", "ci_hi")
"""Columns of `interp.measure.conflict.memorisation`; what tells the rows apart comes with them."""

SIDES = (("f_memory", "memory", theme.BLUE), ("f_other", "neither", theme.ABSENT),
         ("f_context", "context", theme.ORANGE))  # fmt: skip

STATISTICS = {
    "memory": "the share of answers from memory", "context": "the share of answers from the context",
    "margin": "the margin of memory (nats)",
}  # fmt: skip
FAMILIES = ("scale context", "scale memory", "cut context", "cut memory")
CUT = "heads cut"
_FACTORS = (
    (theme.VERMILLION, "circle"), (theme.ORANGE, "square"), (theme.BLUE, "triangle-up"), (theme.SKY, "cross"),
    (theme.GREEN, "star"), (theme.PURPLE, "x"),
)  # fmt: skip
NOTE = "bars: answers from memory, neither, context; diamonds: memory / (memory + context), 95% intervals over facts"
BALANCES = {
    "cut": "what the balance (context less memory) loses when a head is cut",
    "read": "what the balance (context less memory) loses when a head cannot see the context's answer",
    "write": "what a head itself adds to the balance (context less memory)",
}  # fmt: skip


def conflict_balance(
    rows: pd.DataFrame,
    name: str = "setting",
    panel: str | None = None,
    *,
    title: str = "Whom the model believes: its memory or the context",
    note: str = "",
    width: Width = "double",
) -> go.Figure:
    """Share of answers from memory, from the context and from neither, one bar a row, and the memorisation ratio.

    Args:
        rows: of `memorisation`: `n f_memory f_context f_other ratio ci_lo ci_hi`, the column of the names, and that of
            the panels; as many bars as rows, in their order.
        name: column with the name of each bar.
        panel: column with a value a panel, one below the other; None is one panel.
        title: of the figure. note: what its names mean.
        width: `single`, `double`, `page` or pixels.

    Raises:
        UsageError: missing columns, no row, or two rows of one name.
    """
    need(rows, (*BALANCE, name, *([panel] if panel else [])), "conflict_balance", numeric=BALANCE)
    rows = rows.assign(name=rows[name].astype(str), panel=rows[panel].astype(str) if panel else "")
    if rows.duplicated(["panel", "name"]).any():
        twice = rows[rows.duplicated(["panel", "name"])]["name"].iloc[0]
        raise UsageError(f"conflict_balance: {name} {twice!r} occurs twice; filter the table to one")
    panels = list(dict.fromkeys(rows["panel"]))
    font, total = theme.font_px(width), theme.pixels(width)
    left = min(0.42 * total, (0.54 * max(map(len, rows["name"])) + 1.2) * font)
    step, head = 1.75 * font, 2.6 * font
    lines = [len(rows[rows["panel"] == p]) for p in panels]
    tall = step * sum(lines) + head * (len(panels) - 1)
    fig = theme.figure(
        title, joined([note, NOTE]), width=width, plot_height=tall, left=left, right=5.2 * font,
        top=(1.6 if panel else 0.4) * font, bottom=6.2 * font, alt=_balance_alt(rows),
    )  # fmt: skip
    below = 0.0
    for i, shown in enumerate(panels):
        own = rows[rows["panel"] == shown]
        axis, high = "" if i == 0 else str(i + 1), step * len(own)
        y1 = 1 - below / tall
        fig.update_layout({
            f"xaxis{axis}": {
                "domain": [0, 1], "anchor": f"y{axis}", "range": [0, 1], "tickformat": ".0%", "nticks": 6,
                "title": {"text": "share of answers" if i + 1 == len(panels) else ""}, "tickangle": 0,
                "showticklabels": i + 1 == len(panels), "ticks": "outside" if i + 1 == len(panels) else "",
            },
            f"yaxis{axis}": {
                "domain": [max(0.0, y1 - high / tall), y1], "anchor": f"x{axis}", "ticks": "", "showline": False,
                "range": [len(own) - 0.5, -0.5], "tickvals": list(range(len(own))),
                "ticktext": [safe(_fitted(n, left, font)) for n in own["name"]],
            },
            "barmode": "stack",
        })  # fmt: skip
        if shown:
            fig.add_annotation(
                text=safe(shown[:1].upper() + shown[1:]), x=0, xref=f"x{axis} domain", xanchor="left", y=1,
                yref=f"y{axis} domain", yanchor="bottom", xshift=-1, font={"weight": 600},
            )  # fmt: skip
        _bars(fig, own, axis, font, legend=i == 0)
        below += high + head
    return theme.legend_below(fig, font)


def _bars(fig: go.Figure, own: pd.DataFrame, axis: str, font: float, *, legend: bool) -> None:
    at: dict[str, Any] = {"xaxis": f"x{axis}", "yaxis": f"y{axis}"}
    y = list(range(len(own)))
    for column, side, color in SIDES:
        fig.add_bar(
            x=own[column], y=y, orientation="h", name=side, legendgroup=side, showlegend=legend, width=0.74,
            marker={"color": color, "line": {"width": 0}}, customdata=[safe(n) for n in own["name"]],
            hovertemplate=f"%{{customdata}}: {side} %{{x:.1%}}<extra></extra>", **at,
        )  # fmt: skip
    fig.add_scatter(
        x=own["ratio"], y=y, mode="markers", name="memorisation ratio", legendgroup="ratio", showlegend=legend,
        marker={
            "symbol": "diamond", "size": 0.6 * font, "color": theme.INK, "line": {"color": theme.PAPER, "width": 0.8},
        },
        error_x={
            "array": own["ci_hi"] - own["ratio"], "arrayminus": own["ratio"] - own["ci_lo"], "color": theme.INK,
            "thickness": 1.3, "width": 0,
        },
        customdata=[
            f"<b>{safe(r.name)}</b>: memory over memory and context {percent(float(r.ratio))}<br>95% interval "
            f"{percent(float(r.ci_lo))} to {percent(float(r.ci_hi))}, n = {int(r.n)}"
            for r in own.itertuples(index=False)
        ],
        hovertemplate="%{customdata}<extra></extra>", **at,
    )  # fmt: skip
    for i, n in enumerate(own["n"]):
        fig.add_annotation(
            text=f"n = {int(n)}", x=1, xref=f"x{axis} domain", xanchor="left", xshift=4, y=i, yref=at["yaxis"],
            font={"color": theme.MUTED, "size": 0.92 * font},
        )  # fmt: skip


def _fitted(name: str, left: float, font: float) -> str:
    """A name that fits the margin, cut at its end where it does not."""
    room = int((left / font - 1.2) / 0.54)
    return name if len(name) <= room else name[: room - 1] + "\u2026"


def _balance_alt(rows: pd.DataFrame) -> str:
    parts = [
        f"{joined([p, n], ', ')}: memory {percent(m)}, context {percent(c)}, ratio {number(r)}."
        for p, n, m, c, r in zip(
            rows["panel"], rows["name"], rows["f_memory"], rows["f_context"], rows["ratio"], strict=True
        )
    ]
    return "Stacked bars of answers from memory and from the context. " + " ".join(parts)


def conflict_dose(
    moves: pd.DataFrame, statistic: str = "memory", *, task: str = "conflict", width: Width = "double"
) -> go.Figure:
    """What moves the balance: heads cut, or their attention scaled, over the number of heads, beside matched others.

    One panel for the heads of each side. Filled and solid: the chosen heads; open and dotted: the mean of controls.

    Args:
        moves: `task family k factor control d_memory d_context d_margin`, these three with `_lo` and `_hi`; families
            `scale context`, `scale memory`, `cut context`, `cut memory`, of others nothing is drawn.
        statistic: `memory`, `context` (shares of answers) or `margin` (nats, memory less context).
        task: whose rows.
        width: `single`, `double`, `page` or pixels.

    Raises:
        UsageError: missing columns, an unknown statistic, no such row, or a move twice.
    """
    if statistic not in STATISTICS:
        raise UsageError(f"conflict_dose: statistic {statistic!r} is unknown; take {', '.join(STATISTICS)}")
    value = f"d_{statistic}"
    columns = ("task", "family", "k", "factor", "control", value, f"{value}_lo", f"{value}_hi")
    need(moves, columns, "conflict_dose", numeric=("k", "factor", *columns[5:]))
    rows = moves[(moves["task"] == task) & moves["family"].isin(list(FAMILIES))].copy()
    if rows.empty:
        raise UsageError(f"conflict_dose: no row of task {task!r} is of {', '.join(FAMILIES)}")
    rows["side"] = [str(f).partition(" ")[2] for f in rows["family"]]
    rows["what"] = [_what(f, x) for f, x in zip(rows["family"], rows["factor"], strict=True)]
    rows["control"] = rows["control"].fillna("").astype(str)
    own = rows[rows["control"] == ""]
    if own.duplicated(["side", "what", "k"]).any():
        raise UsageError("conflict_dose: a move has two rows; filter the table to one scope")
    sides = [s for s in ("context", "memory") if (own["side"] == s).any()]
    factors = sorted({float(f) for f in own["factor"].dropna()})
    inks = dict(zip([_what("scale", f) for f in factors], _FACTORS, strict=False)) | {
        CUT: (theme.INK, "diamond")
    }
    ks = sorted({int(k) for k in own["k"]})
    sheet = Sheet.of(
        f"What moves the balance: {STATISTICS[statistic]}", _dose_note(rows, task),
        [f"Heads that carry the {s}" for s in sides], width, alt=_dose_alt(own, rows, value),
    )  # fmt: skip
    seen = pd.concat([own[f"{value}_lo"], own[f"{value}_hi"], own[value]]).dropna()
    low, high = min(0.0, float(seen.min())), max(0.0, float(seen.max()))
    pad = 0.06 * (high - low or 1.0)
    for i, side in enumerate(sides):
        ends = (-0.4, len(ks) - 0.6)
        sheet.fig.add_scatter(
            x=list(ends), y=[0, 0], mode="lines", hoverinfo="skip", showlegend=False,
            line={"color": theme.MUTED, "width": 0.8}, **sheet.at(i),
        )  # fmt: skip
        for n, (name, (color, symbol)) in enumerate(inks.items()):
            here = rows[(rows["side"] == side) & (rows["what"] == name)]
            shift = 0.07 * (n - (len(inks) - 1) / 2)
            _dose_line(sheet, i, here, value, name, color, symbol, ks, shift, legend=i == 0)
        y = "change (nats)" if statistic == "margin" else "change of the share"
        sheet.axes(i, "heads", y if i % sheet.columns == 0 else "", ends, (low - pad, high + pad))
        sheet.fig.update_layout({
            f"xaxis{sheet.axis(i)}": {"tickvals": list(range(len(ks))), "ticktext": [str(k) for k in ks]},
            f"yaxis{sheet.axis(i)}": {"tickformat": "" if statistic == "margin" else ".0%"},
        })  # fmt: skip
    return sheet.done()


def _what(family: str, factor: float) -> str:
    if family.startswith("cut"):
        return CUT
    return "attention \u00d7 0 (edges out)" if factor == 0 else f"attention \u00d7 {factor:g}"


def _dose_line(
    sheet: Sheet,
    panel: int,
    here: pd.DataFrame,
    value: str,
    name: str,
    color: str,
    symbol: str,
    ks: Sequence[int],
    shift: float,
    *,
    legend: bool,
) -> None:
    own = here[here["control"] == ""].sort_values("k")
    if own.empty:
        return
    beside = here[here["control"] != ""].groupby("k")[value].agg(["mean", "size"])
    if len(beside):
        sheet.fig.add_scatter(
            x=[ks.index(int(k)) + shift for k in beside.index], y=beside["mean"], mode="lines+markers",
            name=f"{name}: controls", legendgroup=name, showlegend=False,
            line={"color": color, "width": 1, "dash": "dot"},
            marker={"symbol": f"{symbol}-open", "size": 0.5 * sheet.font, "color": color},
            customdata=beside["size"],
            hovertemplate=f"{name}, matched others: mean of %{{customdata}} %{{y:.3f}}<extra></extra>",
            **sheet.at(panel),
        )  # fmt: skip
    sheet.fig.add_scatter(
        x=[ks.index(int(k)) + shift for k in own["k"]], y=own[value], mode="lines+markers", name=name,
        legendgroup=name, showlegend=legend, line={"color": color, "width": 1.6},
        marker={"symbol": symbol, "size": 0.6 * sheet.font, "color": color},
        error_y={
            "array": own[f"{value}_hi"] - own[value], "arrayminus": own[value] - own[f"{value}_lo"], "color": color,
            "thickness": 1.1, "width": 0,
        },
        customdata=[
            f"{int(r['k'])} heads, {name}: {signed(r[value], 3)}<br>95% interval {number(r[f'{value}_lo'], 3)} to "
            f"{number(r[f'{value}_hi'], 3)}"
            for r in own.to_dict("records")
        ],
        hovertemplate="%{customdata}<extra></extra>", **sheet.at(panel),
    )  # fmt: skip


def _dose_note(rows: pd.DataFrame, task: str) -> str:
    drawn = rows[rows["control"] != ""].groupby(["family", "k", "factor"], dropna=False).size()
    n = int(rows["n"].max()) if "n" in rows else 0
    facts = f"{n} facts of the task {task}" if n else f"task {task}"
    few = f"open, dotted: mean of {int(drawn.max())} matched sets of other heads" if len(drawn) else ""
    return joined([f"change from the intact model, {facts}, 95% intervals", few])


def _dose_alt(own: pd.DataFrame, rows: pd.DataFrame, value: str) -> str:
    beside = rows[rows["control"] != ""].groupby(["side", "what", "k"])[value].mean()
    parts = []
    for r in own.to_dict("records"):
        key = (r["side"], r["what"], r["k"])
        other = f" (others {signed(float(beside[key]))})" if key in beside.index else ""
        parts.append(f"{int(r['k'])} heads of the {r['side']}, {r['what']}: {signed(r[value])}{other}.")
    return "Line charts of what moves the balance. " + " ".join(parts)


def context_heads(heads: pd.DataFrame, column: str = "cut", *, width: Width = "double") -> go.Figure:
    """Map of the heads that carry the context's answer (blue) and the memory's (red); dots: they do, by their q-value.

    Args:
        heads: `ContextHeads.heads_`: `layer head carries` and the column, with `_q` for hover texts.
        column: `cut` (what the balance loses by the head's cut, logits), `read` or `write`.
        width: `single`, `double`, `page` or pixels.

    Raises:
        UsageError: missing columns, no row, or a head twice.
    """
    need(
        heads,
        ("layer", "head", "carries", column, f"{column}_q"),
        "context_heads",
        numeric=("layer", "head", column),
    )
    integers(heads, ("layer", "head"), "context_heads")
    if heads.duplicated(["layer", "head"]).any():
        raise UsageError("context_heads: a head has two rows; filter the table to one")
    layers, n = int(heads["layer"].max()) + 1, int(heads["head"].max()) + 1
    grid = np.full((n, layers), np.nan)
    hover = np.full((n, layers), "", dtype=object)
    for r in heads.to_dict("records"):
        y, x = int(r["head"]), int(r["layer"])
        grid[y, x] = r[column]
        said = f"<br>carries the {r['carries']}" if r["carries"] else ""
        hover[y, x] = (
            f"<b>L{x}H{y}</b>: {signed(r[column], 3)} logits, q = {number(r[f'{column}_q'], 4)}{said}"
        )
    font, total = theme.font_px(width), theme.pixels(width)
    left, right = 3.8 * font, 6.4 * font
    cell = min((total - left - right) / layers, 1.6 * font)
    tall = n * max(cell, 1.15 * font)
    reach = float(np.nanmax(np.abs(grid))) or 1.0
    sizes = [int((heads["carries"] == s).sum()) for s in ("context", "memory")]
    fig = theme.figure(
        "Which heads carry the context's answer, and which the memory's",
        f"{BALANCES.get(column, column)} \u00b7 dots: {count(sizes[0], 'head')} that carry the context's answer and "
        f"{sizes[1]} that carry the memory's, by adjusted p",
        width=width, plot_height=tall, left=left, right=right, bottom=3.6 * font, alt=_heads_alt(heads, column),
    )  # fmt: skip
    fig.add_heatmap(
        z=grid, x=list(range(layers)), y=list(range(n)), coloraxis="coloraxis", customdata=hover, hoverongaps=False,
        hovertemplate="%{customdata}<extra></extra>", xgap=0.5, ygap=0.5,
    )  # fmt: skip
    marked = heads[heads["carries"].isin(["context", "memory"])]
    fig.add_scatter(
        x=marked["layer"], y=marked["head"], mode="markers", hoverinfo="skip", showlegend=False, name="carries",
        marker={
            "symbol": "circle", "size": 0.3 * font,
            "color": [theme.on((1 + v / reach) / 2, theme.RDBU) for v in marked[column]],
        },
    )  # fmt: skip
    steps = next(s for s in (1, 2, 5, 10, 20) if s * cell >= 2.0 * font)
    down = next(s for s in (1, 2, 5, 10, 20) if s * tall / n >= 1.25 * font)
    fig.update_xaxes(title_text="layer", tick0=0, dtick=steps, range=[-0.5, layers - 0.5], showline=False)
    fig.update_yaxes(title_text="query head", tick0=0, dtick=down, range=[-0.5, n - 0.5], showline=False)
    fig.update_layout(
        coloraxis={
            "cmin": -reach, "cmax": reach, "cmid": 0, "colorscale": theme.RDBU,
            "colorbar": theme.colorbar("logits of the balance", tall, font),
        }
    )  # fmt: skip
    return fig


def _heads_alt(heads: pd.DataFrame, column: str) -> str:
    best = heads.reindex(heads[column].abs().sort_values(ascending=False).index).head(5)
    told = ", ".join(
        f"L{int(r['layer'])}H{int(r['head'])} {signed(r[column])}" for r in best.to_dict("records")
    )
    return f"Heat map of heads by layer. Largest: {told}."
