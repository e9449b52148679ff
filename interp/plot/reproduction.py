"""A reproduction drawn: what was published of retrieval heads, and what was found on another model, side by side."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from interp.errors import UsageError
from interp.plot import theme
from interp.plot.check import need
from interp.plot.sheet import Sheet
from interp.plot.text import number, percent, safe
from interp.plot.theme import Width

FIGURES = ("kind", "subject", "statistic", "value", "ci_lo", "ci_hi", "n", "tag", "source")
SHARES = {"share_over_0.1": "\u2265 0.1", "share_over_0.5": "\u2265 0.5", "share_zero": "exactly 0"}
RECALL = "recall_"


def reproduction(comparison: pd.DataFrame, subject: str, *, width: Width = "double") -> go.Figure:
    """Shares of heads, scores of the best heads, and recall with heads masked: published figures and ours.

    Args:
        comparison: one row a figure, as `interp.reproduce` writes it.
        subject: the model that was run.
        width: `single`, `double`, `page` or pixels.

    Raises:
        UsageError: missing columns, or no figure of the model.
    """
    need(comparison, FIGURES, "reproduction", numeric=("value", "ci_lo", "ci_hi"))
    ours = comparison[(comparison["kind"] == "ours") & (comparison["subject"] == subject)]
    theirs = comparison[(comparison["kind"] == "published") & (comparison["tag"] != "abs")]
    if ours.empty:
        raise UsageError(f"reproduction: the table has no figure of {subject!r}")
    at = ours.set_index("statistic")
    over = at.loc["share_over_0.1"]
    models = theirs["subject"].nunique()
    span = theirs[theirs["statistic"] == "share_over_0.1"]["value"]
    note = (
        f"{subject}: {percent(over['value'])} of the heads score 0.1 or more in {int(over['n'])} instances; "
        f"published {percent(span.min())} to {percent(span.max())}, for {models} other models"
    )
    sheet = Sheet.of(
        "The published protocol on another model", note,
        ("share of heads by score", "scores of the best heads", "recall with heads masked"), width, tall=13,
        alt=f"Published figures of {models} models in grey, those of {subject} in blue. {note}.",
    )  # fmt: skip
    _shares(sheet, ours, theirs)
    _best(sheet, ours, theirs)
    _recall(sheet, ours, theirs)
    return sheet.done()


def _shares(sheet: Sheet, ours: pd.DataFrame, theirs: pd.DataFrame) -> None:
    for i, statistic in enumerate(SHARES):
        part = theirs[theirs["statistic"] == statistic]
        sheet.fig.add_scatter(
            x=i - 0.12 + 0.08 * np.sin(2.4 * np.arange(len(part))), y=part["value"], mode="markers",
            name="published, other models", showlegend=i == 0,
            marker={"color": theme.CONTROL, "size": 0.5 * sheet.font, "opacity": 0.75},
            customdata=[[safe(r.subject), safe(r.source), int(r.n)] for r in part.itertuples()],
            hovertemplate="%{customdata[0]}: %{y:.3f}<br>%{customdata[1]}, %{customdata[2]} instances<extra></extra>",
            **sheet.at(0),
        )  # fmt: skip
    part = ours[ours["statistic"].isin(SHARES)]
    _own(sheet, 0, [list(SHARES).index(s) + 0.16 for s in part["statistic"]], part, legend=True)
    sheet.axes(0, "mean score", "share of heads", (-0.5, len(SHARES) - 0.5), (-0.03, 1.03))
    sheet.fig.update_layout(xaxis={"tickvals": list(range(len(SHARES))), "ticktext": list(SHARES.values())})


def _best(sheet: Sheet, ours: pd.DataFrame, theirs: pd.DataFrame) -> None:
    high = 1.0
    for frame, color, wide in ((theirs, theme.CONTROL, 1.0), (ours, theme.BLUE, 1.8)):
        best = frame[frame["statistic"].str.fullmatch(r"top_\d+")]
        for name, part in best.groupby("subject", sort=False):
            rank = part["statistic"].str.removeprefix("top_").astype(int)
            high = max(high, float(part["value"].max()))
            sheet.fig.add_scatter(
                x=rank, y=part["value"], mode="lines+markers", showlegend=False, opacity=1 if wide > 1 else 0.6,
                line={"color": color, "width": wide}, marker={"color": color, "size": 0.4 * sheet.font},
                hovertemplate=f"{safe(name)}, rank %{{x}}: %{{y:.3f}}<extra></extra>", **sheet.at(1),
            )  # fmt: skip
    sheet.axes(1, "rank of the head", "mean score", (0.5, 10.5), (-0.03, 1.05 * high))
    sheet.fig.update_layout({f"xaxis{sheet.axis(1)}": {"tick0": 1, "dtick": 3}})


def _recall(sheet: Sheet, ours: pd.DataFrame, theirs: pd.DataFrame) -> None:
    part = ours[ours["statistic"].str.startswith(RECALL)]
    published = theirs[theirs["statistic"].str.startswith(RECALL)]
    names = list(dict.fromkeys([*part["statistic"], *published["statistic"]]))
    at = {name: i for i, name in enumerate(names)}
    sheet.fig.add_scatter(
        x=[at[s] - 0.12 for s in published["statistic"]], y=published["value"], mode="markers", showlegend=False,
        marker={"color": theme.CONTROL, "size": 0.5 * sheet.font},
        customdata=[[safe(r.subject), safe(r.source)] for r in published.itertuples()],
        hovertemplate="%{customdata[0]}: %{y:.1f}<br>%{customdata[1]}<extra></extra>", **sheet.at(2),
    )  # fmt: skip
    _own(sheet, 2, [at[s] for s in part["statistic"]], part)
    sheet.axes(2, "", "ROUGE-1 recall (%)", (-0.6, len(names) - 0.4), (-3, 103))
    sheet.names(2, [safe(name.removeprefix(RECALL)).replace("_", "<br>") for name in names])


def _own(sheet: Sheet, panel: int, x: list[float], part: pd.DataFrame, *, legend: bool = False) -> None:
    """Our figures with their intervals, where they have some."""
    up, down = (part["ci_hi"] - part["value"]).fillna(0), (part["value"] - part["ci_lo"]).fillna(0)
    sheet.fig.add_scatter(
        x=x, y=part["value"], mode="markers", name=safe(" ".join(part["subject"].head(1))), showlegend=legend,
        error_y={"array": up, "arrayminus": down, "color": theme.BLUE, "thickness": 1.2, "width": 0},
        marker={"color": theme.BLUE, "symbol": "diamond", "size": 0.75 * sheet.font},
        customdata=[[safe(r.statistic), number(r.ci_lo, 3), number(r.ci_hi, 3), int(r.n)] for r in part.itertuples()],
        hovertemplate="%{customdata[0]}: %{y:.3f} (%{customdata[1]} to %{customdata[2]})<br>n = %{customdata[3]}"
        "<extra></extra>", **sheet.at(panel),
    )  # fmt: skip
