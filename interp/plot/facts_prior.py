"""Priors of answers: accuracy by prior, layers that go with the prior, and what prompts and tuning change by prior."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from interp.errors import UsageError
from interp.plot import theme
from interp.plot.by_layer import by_layer, inks, peaks
from interp.plot.check import integers, need
from interp.plot.conditions import AT_CHANCE
from interp.plot.sheet import Sheet
from interp.plot.text import joined, number, safe, signed
from interp.plot.theme import Width

ACCURACY = ("task", "metric", "prior", "n", "value", "ci_lo", "ci_hi", "chance", "status")
LAYERS = ("task", "method", "layer", "score", "se", "null_lo", "null_hi", "q")
CHANGES = ("task", "metric", "prior", "delta", "ci_lo", "ci_hi")

THIRDS = ("low", "middle", "high", "all", "gap")
VIEWS = {
    "what a layer adds to the answer (lens)": ("added", "added_mlp", "added_attn"),
    "what can be read out (probe)": ("probe", "probe_mlp", "probe_attn"),
}
_PARTS = {"added": "layer", "added_mlp": "MLP", "added_attn": "attention",
          "probe": "layer", "probe_mlp": "MLP", "probe_attn": "attention"}  # fmt: skip
_METRICS = {
    "accuracy": "greedy decoding gives it", "choice": "beats seven others", "pair": "likelier than its foil",
    "logprob": "log-probability (nats)", "margin": "margin over the foil (nats)",
}  # fmt: skip
_INKS = ((theme.BLUE, "circle"), (theme.ORANGE, "square"), (theme.GREEN, "diamond"), (theme.PURPLE, "cross"))


def accuracy_by_prior(
    rows: pd.DataFrame, metrics: Sequence[str] = ("accuracy", "choice", "pair"), *, width: Width = "double"
) -> go.Figure:
    """How often the right answer is given, in thirds by how likely it is before the question: one panel a task.

    A task that the model does at chance shows nothing but its name (the floor rule).

    Args:
        rows: `task metric prior n value ci_lo ci_hi chance status`; priors `low`, `middle`, `high`.
        metrics: one line each, of those that are there; their uniform guess is dotted.
        width: `single`, `double`, `page` or pixels.

    Raises:
        UsageError: missing columns, none of the metrics, or two rows for one point.
    """
    need(rows, ACCURACY, "accuracy_by_prior", numeric=("n", "value", "ci_lo", "ci_hi", "chance"))
    thirds = list(THIRDS[:3])
    own = rows[rows["metric"].isin(list(metrics)) & rows["prior"].isin(thirds)]
    if own.empty:
        raise UsageError(f"accuracy_by_prior: no row of a third has one of the metrics {', '.join(metrics)}")
    if own.duplicated(["task", "metric", "prior"]).any():
        raise UsageError(
            "accuracy_by_prior: a task has two rows for one metric and prior; filter the table to one"
        )
    tasks = list(dict.fromkeys(own["task"]))
    shown = [m for m in metrics if (own["metric"] == m).any()]
    sheet = Sheet.of(
        "Right answers by how likely they were before the question", _accuracy_note(own, shown),
        [_named(t) for t in tasks], width, alt=_accuracy_alt(own), least=19, tall=13,
    )  # fmt: skip
    ends = (-0.4, 2.4)
    for i, task in enumerate(tasks):
        part = own[own["task"] == task]
        if (part["status"] == AT_CHANCE).all():
            sheet.fig.add_annotation(
                text="at chance: no effect reported", x=0.5, xref=f"x{sheet.axis(i)} domain", y=0.5,
                yref=f"y{sheet.axis(i)} domain", font={"color": theme.MUTED, "size": 0.94 * sheet.font},
            )  # fmt: skip
            # An empty panel needs something on it to be drawn.
            sheet.fig.add_scatter(x=[None], y=[None], showlegend=False, hoverinfo="skip", **sheet.at(i))
        else:
            for k, metric in enumerate(shown):
                _thirds(sheet, i, part[part["metric"] == metric], metric, k, len(shown), ends, legend=i == 0)
        sheet.axes(
            i, "prior of the answer", "share right" if i % sheet.columns == 0 else "", ends, (-0.04, 1.04)
        )
        sheet.fig.update_layout({
            f"xaxis{sheet.axis(i)}": {"tickvals": [0, 1, 2], "ticktext": thirds},
            f"yaxis{sheet.axis(i)}": {"tickformat": ".0%"},
        })  # fmt: skip
    return sheet.done()


def prior_layers(scores: pd.DataFrame, *, width: Width = "double") -> go.Figure:
    """Correlation of each layer, its MLP and its attention with the prior of the answer: one panel a task and view.

    Grey: where 95 % of shuffled priors lie (of the layer as a whole); dots: adjusted p up to 0.05.

    Args:
        scores: of `PriorLayers`, with the task: `task method layer score se null_lo null_hi q`.
        width: `single`, `double`, `page` or pixels.

    Raises:
        UsageError: missing columns, none of the methods, or two rows for one point.
    """
    need(scores, LAYERS, "prior_layers", numeric=LAYERS[2:])
    integers(scores, ("layer",), "prior_layers")
    view = {m: name for name, methods in VIEWS.items() for m in methods}
    own = scores[scores["method"].isin(list(view))].dropna(subset="score")
    if own.empty:
        raise UsageError(f"prior_layers: no row has one of the methods {', '.join(view)}")
    rows = own.assign(
        panel=[f"{_named(t)}: {view[m]}" for t, m in zip(own["task"], own["method"], strict=True)],
        line=own["method"].map(_PARTS), value=own["score"], lo=np.nan, hi=np.nan,
    )  # fmt: skip
    rows["hover"] = [
        joined(
            [
                f"correlation {signed(r['value'], 3)}",
                f"standard error {number(r['se'], 3)}, q = {number(r['q'], 4)}",
            ],
            "<br>",
        )
        for r in rows.to_dict("records")
    ]
    rows = rows.sort_values(
        "panel", key=lambda p: p.map(list(dict.fromkeys(rows["panel"])).index), kind="stable"
    )
    names = list(dict.fromkeys(_PARTS.values()))
    fig = by_layer(
        rows, inks(names, {"layer": theme.INK, "MLP": theme.VERMILLION, "attention": theme.BLUE}),
        title="Layers that go with the prior of the answer",
        note="rank correlation with the log-prior, within answers of equal length \u00b7 grey: 95% of shuffled priors "
        "\u00b7 dots: adjusted p up to 0.05",
        y="correlation", alt=f"Line charts of correlations with the prior. {peaks(rows)}", width=width,
    )  # fmt: skip
    for i, panel in enumerate(dict.fromkeys(rows["panel"])):
        axis = Sheet.axis(i)
        whole = rows[(rows["panel"] == panel) & (rows["line"] == "layer")].sort_values("layer")
        if len(whole) > 1:
            x = whole["layer"].tolist()
            fig.add_scatter(
                x=[*x, *x[::-1]], y=[*whole["null_lo"], *whole["null_hi"][::-1]], fill="toself", mode="none",
                fillcolor=theme.CONTROL_BAND, hoverinfo="skip", showlegend=False, name="shuffled",
                xaxis=f"x{axis}", yaxis=f"y{axis}",
            )  # fmt: skip
            low, high = fig.layout[f"yaxis{axis}"].range
            ends = (
                min(low, 1.1 * float(whole["null_lo"].min())),
                max(high, 1.1 * float(whole["null_hi"].max())),
            )
            fig.update_layout({f"yaxis{axis}": {"range": ends}})
        sure = rows[(rows["panel"] == panel) & (rows["q"] <= 0.05)]
        palette = {"layer": theme.INK, "MLP": theme.VERMILLION, "attention": theme.BLUE}
        fig.add_scatter(
            x=sure["layer"], y=sure["value"], mode="markers", hoverinfo="skip", showlegend=False, name="beyond",
            marker={"size": 4.5, "color": [palette[n] for n in sure["line"]]}, xaxis=f"x{axis}", yaxis=f"y{axis}",
        )  # fmt: skip
    fig.data = sorted(fig.data, key=lambda trace: trace.name != "shuffled")
    return fig


def changes_by_prior(
    rows: pd.DataFrame,
    line: str,
    metric: str = "accuracy",
    *,
    controls: Sequence[str] = (),
    title: str,
    note: str = "",
    width: Width = "double",
) -> go.Figure:
    """What is changed in the right answers, in thirds by their prior: one panel a task, controls in grey.

    Several rows of one name (runs of a tuning) are all drawn, and a bar at their mean.

    Args:
        rows: `task metric prior delta ci_lo ci_hi`, and the column of the names; rows of status `at chance` are left
            out.
        line: column with the name of what was done (a preface, a kind of tuning).
        metric: which metric to draw.
        controls: names that are controls.
        title: of the figure. note: below it.
        width: `single`, `double`, `page` or pixels.

    Raises:
        UsageError: missing columns, or no such metric.
    """
    need(rows, (*CHANGES, line), "changes_by_prior", numeric=("delta", "ci_lo", "ci_hi"))
    own = rows[(rows["metric"] == metric) & rows["prior"].isin(list(THIRDS))]
    if "status" in own:
        own = own[own["status"] != AT_CHANCE]
    if own.empty:
        raise UsageError(f"changes_by_prior: no row above chance has metric {metric!r}")
    names = list(dict.fromkeys(own[line].astype(str)))
    names = [n for n in names if n not in controls] + [n for n in names if n in controls]
    tasks = list(dict.fromkeys(own["task"]))
    groups = [g for g in THIRDS if (own["prior"] == g).any()]
    told = joined([note, f"{_METRICS.get(metric, metric)}; bars: 95% intervals over answers"])
    sheet = Sheet.of(
        title, told, [_named(t) for t in tasks], width, alt=_changes_alt(own, line, title), least=22, tall=13
    )
    seen = own[["delta", "ci_lo", "ci_hi"]].to_numpy(float)
    low, high = min(0.0, float(np.nanmin(seen))), max(0.0, float(np.nanmax(seen)))
    pad = 0.06 * (high - low or 1.0)
    ends = (-0.55, len(groups) - 0.45)
    step = 0.7 / len(names)
    bright = [n for n in names if n not in controls]
    for i, task in enumerate(tasks):
        sheet.fig.add_scatter(
            x=list(ends), y=[0, 0], mode="lines", hoverinfo="skip", showlegend=False,
            line={"color": theme.MUTED, "width": 0.8}, **sheet.at(i),
        )  # fmt: skip
        for k, name in enumerate(names):
            part = own[(own["task"] == task) & (own[line].astype(str) == name)]
            color, symbol = (
                _INKS[bright.index(name) % len(_INKS)]
                if name in bright
                else (theme.CONTROL, _GREYS[k % len(_GREYS)])
            )
            _changes(
                sheet, i, part, groups, name, color, symbol, step * (k - (len(names) - 1) / 2), legend=i == 0
            )
        y = "change" + (" (share right)" if metric in ("accuracy", "choice", "pair") else "")
        sheet.axes(
            i, "prior of the answer", y if i % sheet.columns == 0 else "", ends, (low - pad, high + pad)
        )
        sheet.fig.update_layout({
            f"xaxis{sheet.axis(i)}": {
                "tickvals": list(range(len(groups))), "tickangle": 0,
                "ticktext": ["high \u2212 low" if g == "gap" else g for g in groups],
            },
            f"yaxis{sheet.axis(i)}": {"tickformat": "+.0%" if metric in ("accuracy", "choice", "pair") else ""},
        })  # fmt: skip
    return sheet.done()


_GREYS = ("circle-open", "square-open", "diamond-open", "triangle-up-open")


def _changes(
    sheet: Sheet,
    panel: int,
    part: pd.DataFrame,
    groups: Sequence[str],
    name: str,
    color: str,
    symbol: str,
    shift: float,
    *,
    legend: bool,
) -> None:
    if part.empty:
        return
    several = part.groupby("prior").size().max() > 1
    sheet.fig.add_scatter(
        x=[groups.index(g) + shift for g in part["prior"]], y=part["delta"], mode="markers", name=safe(name),
        legendgroup=name, showlegend=legend,
        marker={
            "symbol": symbol, "size": (0.42 if several else 0.62) * sheet.font, "color": color,
            "opacity": 0.7 if several else 1, "line": {"width": 1.2, "color": color},
        },
        error_y=None if several else {
            "array": part["ci_hi"] - part["delta"], "arrayminus": part["delta"] - part["ci_lo"], "color": color,
            "thickness": 1.2, "width": 0,
        },
        customdata=[
            f"<b>{safe(name)}</b>, {r['prior']}: {signed(r['delta'], 3)}<br>95% interval {number(r['ci_lo'], 3)} to "
            f"{number(r['ci_hi'], 3)}"
            for r in part.to_dict("records")
        ],
        hovertemplate="%{customdata}<extra></extra>", **sheet.at(panel),
    )  # fmt: skip
    if several:
        mean = part.groupby("prior")["delta"].mean()
        sheet.fig.add_scatter(
            x=[groups.index(g) + shift for g in mean.index], y=mean, mode="markers", showlegend=False,
            legendgroup=name, name=f"mean of {safe(name)}",
            marker={"symbol": "line-ew-open", "size": 1.3 * sheet.font, "color": color, "line": {"width": 2}},
            hovertemplate=f"<b>{safe(name)}</b>: mean %{{y:+.3f}}<extra></extra>", **sheet.at(panel),
        )  # fmt: skip


def _thirds(
    sheet: Sheet,
    panel: int,
    part: pd.DataFrame,
    metric: str,
    k: int,
    of: int,
    ends: tuple[float, float],
    *,
    legend: bool,
) -> None:
    if part.empty:
        return
    color, symbol = _INKS[k % len(_INKS)]
    at = {third: i for i, third in enumerate(THIRDS)}
    part = part.sort_values("prior", key=lambda p: p.map(at))
    chance = float(part["chance"].iloc[0])
    if np.isfinite(chance) and chance > 0:
        sheet.fig.add_scatter(
            x=list(ends), y=[chance] * 2, mode="lines", hoverinfo="skip", showlegend=False,
            line={"color": color, "width": 0.9, "dash": "dot"}, **sheet.at(panel),
        )  # fmt: skip
    shift = 0.07 * (k - (of - 1) / 2)
    sheet.fig.add_scatter(
        x=[at[p] + shift for p in part["prior"]], y=part["value"], mode="lines+markers",
        name=_METRICS.get(metric, metric), legendgroup=metric, showlegend=legend, line={"color": color, "width": 1.5},
        marker={"symbol": symbol, "size": 0.6 * sheet.font, "color": color},
        error_y={
            "array": part["ci_hi"] - part["value"], "arrayminus": part["value"] - part["ci_lo"], "color": color,
            "thickness": 1.1, "width": 0,
        },
        customdata=[
            f"{r['prior']} prior: {number(r['value'], 3)}<br>95% interval {number(r['ci_lo'], 3)} to "
            f"{number(r['ci_hi'], 3)}, n = {int(r['n'])}"
            for r in part.to_dict("records")
        ],
        hovertemplate=f"<b>{_METRICS.get(metric, metric)}</b>, %{{customdata}}<extra></extra>", **sheet.at(panel),
    )  # fmt: skip


def _named(task: str) -> str:
    name = str(task).replace("_", " ")
    return name[:1].upper() + name[1:]


def _accuracy_note(own: pd.DataFrame, metrics: Sequence[str]) -> str:
    n = own.groupby("task")["n"].max()
    sizes = f"{int(n.min())}" if n.min() == n.max() else f"{int(n.min())} to {int(n.max())}"
    return joined(
        [
            f"{sizes} questions a third, 95% intervals over answers",
            "dotted: a uniform guess",
            "thirds of the foil by the odds of the two" if "pair" in metrics else "",
        ]
    )


def _accuracy_alt(own: pd.DataFrame) -> str:
    parts = []
    for (task, metric), part in own.groupby(["task", "metric"], sort=False):
        told = ", ".join(f"{p} {number(v)}" for p, v in zip(part["prior"], part["value"], strict=True))
        parts.append(f"{task}, {metric}: {told}.")
    return "Share of right answers by prior. " + " ".join(parts)


def _changes_alt(own: pd.DataFrame, line: str, title: str) -> str:
    parts = []
    for (task, name), part in own.groupby(["task", line], sort=False):
        by = part.groupby("prior", sort=False)["delta"].mean()
        parts.append(f"{task}, {name}: " + ", ".join(f"{p} {signed(v)}" for p, v in by.items()) + ".")
    return f"{title}. " + " ".join(parts)
