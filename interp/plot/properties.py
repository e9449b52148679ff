"""The properties of retrieval heads, drawn: sparse, dynamic, causal, universal, intrinsic.

Each function takes the frame and the tables of the property of its name (`interp.locate.properties`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from interp.plot import theme
from interp.plot.check import need
from interp.plot.effects import dose_curve
from interp.plot.text import count, number, percent, safe
from interp.plot.theme import Width

THRESHOLD = 0.1
HEADS = 24
"""Heads shown one by one."""

STATISTICS = ("statistic", "value", "ci_lo", "ci_hi", "null", "n")
RANKED = ("component", "rank", "share", "score", "mass", "null_lo", "null", "null_hi")
ACTIVITY = ("component", "static", "active", "ci_lo", "ci_hi", "steps", "always")
STEPS = ("example", "step", "size", "jaccard", "expected")


def sparse(frame: pd.DataFrame, *, ranked: pd.DataFrame, width: Width = "double") -> go.Figure:
    """The scores of all heads, best first, and what part of the total the best of them hold.

    Args:
        frame: statistics of `interp.locate.properties.sparse`.
        ranked: its table of that name.
        width: `single`, `double`, `page` or pixels.

    Raises:
        UsageError: missing columns.
    """
    need(frame, STATISTICS, "sparse", numeric=("value",))
    need(ranked, RANKED, "sparse", numeric=RANKED[1:])
    at = frame.set_index("statistic")
    top = at.loc["mass_top_5%"]
    over = int((ranked["score"] >= THRESHOLD).sum())
    null = "" if np.isnan(top["null"]) else f", exchangeable heads {percent(top['null'], digits=0)}"
    note = (
        f"{over} of {count(len(ranked), 'head')} score {THRESHOLD:g} or more; the top 5% hold "
        f"{percent(top['value'], digits=0)} of the total{null}; {int(top['n'])} instances"
    )
    sheet = Sheet.of(
        "How sparse the score is", note, ("score of each head", "part of the total score"), width,
        alt=f"Left: the scores of all heads in order. Right: the part of the total that the best heads hold. {note}.",
    )  # fmt: skip
    fig = sheet.fig
    hover = [[safe(c), int(r)] for c, r in zip(ranked["component"], ranked["rank"], strict=True)]
    fig.add_scatter(
        x=100 * ranked["share"], y=ranked["score"], mode="lines+markers", showlegend=False, customdata=hover,
        line={"color": theme.BLUE, "width": 1.2}, marker={"color": theme.BLUE, "size": 0.36 * sheet.font},
        hovertemplate="<b>%{customdata[0]}</b>, rank %{customdata[1]}<br>score %{y:.3f}<extra></extra>", **sheet.at(0),
    )  # fmt: skip
    sheet.level(0, THRESHOLD, f"{THRESHOLD:g}: retrieval head (Wu et al. 2024)", (0, 100))
    x = [0.0, *(100 * ranked["share"])]
    if ranked["null"].notna().all():
        sheet.band(1, x, [0.0, *ranked["null_lo"]], [0.0, *ranked["null_hi"]])
        fig.add_scatter(
            x=x, y=[0.0, *ranked["null"]], mode="lines", name="exchangeable heads, 95%", hoverinfo="skip",
            line={"color": theme.CONTROL, "dash": "dash", "width": 1.2}, **sheet.at(1),
        )  # fmt: skip
    fig.add_scatter(
        x=x, y=[0.0, *ranked["mass"]], mode="lines", name="measured", line={"color": theme.BLUE, "width": 1.8},
        hovertemplate="top %{x:.1f}% of the heads: %{y:.3f}<extra></extra>", **sheet.at(1),
    )  # fmt: skip
    high = 1.08 * max(float(ranked["score"].max()), THRESHOLD)
    sheet.axes(0, "heads, best first (%)", "mean score", (-2, 102), (-0.03 * high, high))
    sheet.axes(1, "heads, best first (%)", "part of the total", (-2, 102), (-0.03, 1.05))
    return sheet.done()


def dynamic(
    frame: pd.DataFrame,
    *,
    activity: pd.DataFrame,
    steps: pd.DataFrame,
    contexts: pd.DataFrame | None = None,
    width: Width = "double",
) -> go.Figure:
    """How often the most active heads copy, and how far the set at each step is from the static one.

    Args:
        frame: statistics of `interp.locate.properties.dynamic`.
        activity: its table of that name; likewise `steps`, and `contexts`: the values of the static heads in each
            context, drawn as small dots where there are several.
        width: `single`, `double`, `page` or pixels.

    Raises:
        UsageError: missing columns.
    """
    need(frame, STATISTICS, "dynamic", numeric=("value",))
    need(activity, ACTIVITY, "dynamic", numeric=("active", "ci_lo", "ci_hi", "steps"))
    need(steps, STEPS, "dynamic", numeric=STEPS[1:])
    at = frame.set_index("statistic")
    always = int(at.loc["always_active", "value"])
    note = (
        f"{count(always, 'head')} of {len(activity)} copy in each of {int(at.loc['jaccard', 'n'])} instances; "
        f"{number(at.loc['set_size', 'value'], 1)} copy at a step, Jaccard with the static set "
        f"{number(at.loc['jaccard', 'value'])} (random sets as large {number(at.loc['jaccard', 'null'])})"
    )
    sheet = Sheet.of(
        "Which heads copy when", note, ("instances in which a head copies", "Jaccard with the static set"), width,
        alt=f"Left: the share of instances in which each head copies. Right: the Jaccard index by step. {note}.",
    )  # fmt: skip
    fig, font = sheet.fig, sheet.font
    most = max(4, min(HEADS, int(sheet.room / (1.25 * font))))
    shown = activity.sort_values("active", ascending=False, kind="stable").head(most).reset_index(drop=True)
    if contexts is not None and contexts["context"].nunique() > 1:
        own = contexts.merge(shown.reset_index()[["index", "component"]], on="component")
        fig.add_scatter(
            x=own["index"], y=own["active"], mode="markers", name="one context",
            marker={"symbol": "line-ew-open", "size": 0.7 * font, "color": theme.CONTROL},
            customdata=[[safe(r.context), safe(r.by), int(r.n)] for r in own.itertuples()],
            hovertemplate="%{customdata[1]} %{customdata[0]}: %{y:.2f} of %{customdata[2]}<extra></extra>",
            **sheet.at(0),
        )  # fmt: skip
    for static, name, symbol in ((True, "in the static set", "circle"), (False, "not in it", "circle-open")):
        part = shown[shown["static"].astype(bool) == static]
        if part.empty:
            continue
        color = theme.BLUE if static else theme.CONTROL
        fig.add_scatter(
            x=part.index, y=part["active"], mode="markers", name=name,
            error_y={"array": part["ci_hi"] - part["active"], "arrayminus": part["active"] - part["ci_lo"],
                     "thickness": 1.1, "width": 0, "color": color},
            marker={"color": color, "symbol": symbol, "size": 0.6 * font, "line": {"width": 1.2, "color": color}},
            customdata=[[safe(r.component), number(r.steps, 3)] for r in part.itertuples()],
            hovertemplate="<b>%{customdata[0]}</b><br>active in %{y:.3f} of the instances, copies at "
            "%{customdata[1]} of the steps<extra></extra>", **sheet.at(0),
        )  # fmt: skip
    by = steps.groupby("step")[["jaccard", "expected"]].agg(["mean", "sem", "count"])
    by = by[by["jaccard"]["count"] >= max(1, int(0.1 * by["jaccard"]["count"].max()))]
    fig.add_scatter(
        x=by.index + 1, y=by["expected"]["mean"], mode="lines", name="random sets as large", hoverinfo="skip",
        line={"color": theme.CONTROL, "dash": "dash", "width": 1.2}, **sheet.at(1),
    )  # fmt: skip
    fig.add_scatter(
        x=by.index + 1, y=by["jaccard"]["mean"], mode="lines+markers", name="measured, \u00b1 SE", showlegend=True,
        line={"color": theme.BLUE, "width": 1.6}, marker={"size": 0.5 * font, "color": theme.BLUE},
        error_y={"array": by["jaccard"]["sem"].fillna(0), "thickness": 1.1, "width": 0, "color": theme.BLUE},
        customdata=by["jaccard"]["count"],
        hovertemplate="step %{x}: %{y:.3f}, %{customdata} instances<extra></extra>", **sheet.at(1),
    )  # fmt: skip
    sheet.axes(0, "", "share of instances", (-0.7, len(shown) - 0.3), (-0.03, 1.05))
    sheet.names(0, [safe(c) for c in shown["component"]])
    last = int(by.index.max()) + 1
    sheet.axes(1, "step of the output", "Jaccard", (0.5, last + 0.5), (-0.03, 1.05))
    fig.update_layout({f"xaxis{sheet.axis(1)}": {"tick0": 1, "dtick": max(1, -(-last // 8))}})
    return sheet.done()


def causal(
    frame: pd.DataFrame,
    *,
    effects: pd.DataFrame,
    contrast: pd.DataFrame | None = None,
    width: Width = "double",
) -> go.Figure:
    """What is lost with each number of heads cut, beside matched others: `dose_curve` of the effects.

    Args:
        frame: statistics of `interp.locate.properties.causal`; their metric is drawn.
        effects: its table of that name; `contrast` goes with it and is not drawn.
        width: `single`, `double`, `page` or pixels.
    """
    metric = str(effects["metric"].iloc[-1])
    return dose_curve(effects, metric, width=width)


@dataclass
class Sheet:
    """A figure of panels, abreast where the width allows it, else one below the other."""

    fig: go.Figure
    font: float
    columns: int
    room: float
    """Width of a panel in pixels."""

    @classmethod
    def of(
        cls, title: str, note: str, captions: Sequence[str], width: Width, *, alt: str, tall: float = 15
    ) -> Sheet:
        """Empty panels with their captions; `tall` is a panel's height in characters."""
        font, total = theme.font_px(width), theme.pixels(width)
        columns = len(captions) if total >= 28 * font * len(captions) else 1
        lines = -(-len(captions) // columns)
        left, gap_x, gap_y = 4.6 * font, 5.2 * font, 8.2 * font
        across = total - left - 1.2 * font
        room = (across - (columns - 1) * gap_x) / columns
        high = tall * font * lines + gap_y * (lines - 1)
        fig = theme.figure(
            title, note, width=width, plot_height=high, left=left, right=1.2 * font, bottom=7.4 * font,
            top=1.6 * font, alt=alt,
        )  # fmt: skip
        sheet = cls(fig, font, columns, room)
        for i, caption in enumerate(captions):
            column, line = i % columns, i // columns
            x0, y1 = column * (room + gap_x) / across, 1 - line * (tall * font + gap_y) / high
            axis = sheet.axis(i)
            fig.update_layout({
                f"xaxis{axis}": {"domain": [x0, min(1.0, x0 + room / across)], "anchor": f"y{axis}"},
                f"yaxis{axis}": {"domain": [max(0.0, y1 - tall * font / high), y1], "anchor": f"x{axis}"},
            })  # fmt: skip
            fig.add_annotation(
                text=safe(caption), x=0, xref=f"x{axis} domain", xanchor="left", xshift=-1, y=1,
                yref=f"y{axis} domain", yanchor="bottom", font={"color": theme.INK, "weight": 600},
            )  # fmt: skip
        return sheet

    @staticmethod
    def axis(panel: int) -> str:
        """Suffix of a panel's axes."""
        return "" if panel == 0 else str(panel + 1)

    def at(self, panel: int) -> dict[str, str]:
        """The axes of a panel, for a trace."""
        return {"xaxis": f"x{self.axis(panel)}", "yaxis": f"y{self.axis(panel)}"}

    def axes(
        self, panel: int, x: str, y: str, x_range: tuple[float, float], y_range: tuple[float, float]
    ) -> None:
        """Titles and ranges of a panel's axes."""
        axis = self.axis(panel)
        self.fig.update_layout({
            f"xaxis{axis}": {"title": {"text": x}, "range": list(x_range)},
            f"yaxis{axis}": {"title": {"text": y}, "range": list(y_range), "showgrid": True, "nticks": 7},
        })  # fmt: skip

    def names(self, panel: int, names: Sequence[str]) -> None:
        """Names along the x axis, upright."""
        self.fig.update_layout({
            f"xaxis{self.axis(panel)}": {
                "tickvals": list(range(len(names))), "ticktext": list(names), "tickangle": -90,
            }
        })  # fmt: skip

    def level(self, panel: int, y: float, name: str, x_range: tuple[float, float]) -> None:
        """A dashed line across a panel, named in the legend."""
        self.fig.add_scatter(
            x=list(x_range), y=[y, y], mode="lines", name=name, hoverinfo="skip", showlegend=True,
            line={"color": theme.MUTED, "dash": "dot", "width": 1}, **self.at(panel),
        )  # fmt: skip

    def band(self, panel: int, x: Sequence[float], low: Sequence[float], high: Sequence[float]) -> None:
        """A grey band."""
        self.fig.add_scatter(
            x=[*x, *list(x)[::-1]], y=[*low, *list(high)[::-1]], fill="toself", mode="none", showlegend=False,
            fillcolor=theme.CONTROL_BAND, hoverinfo="skip", **self.at(panel),
        )  # fmt: skip

    def done(self) -> go.Figure:
        """The figure, with its legend below: in one line, or a line for each name where they do not fit abreast."""
        names = [str(trace.name) for trace in self.fig.data if trace.name and trace.showlegend is not False]
        long = sum(0.56 * len(name) + 5 for name in names) * self.font > self.fig.layout.width
        more = 1.5 * self.font * ((len(names) if long else 1) - 1)
        self.fig.update_layout(
            height=round(self.fig.layout.height + more), margin_b=self.fig.layout.margin.b + more
        )
        self.fig.update_layout(
            legend={
                "orientation": "h", "x": 0.5, "xanchor": "center", "xref": "container", "y": 0,
                "yref": "container", "yanchor": "bottom", "itemclick": False, "itemdoubleclick": False,
                "traceorder": "normal",
            }
        )  # fmt: skip
        return self.fig
