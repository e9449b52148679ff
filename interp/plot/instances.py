"""Which scoring prompts counted: where each needle stood, how long the prompt was, and whether it was accepted."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from interp.errors import UsageError
from interp.plot import theme
from interp.plot.check import INSTANCES, need
from interp.plot.text import count, number, percent, safe
from interp.plot.theme import Width


def instance_map(instances: pd.DataFrame, *, width: Width = "double") -> go.Figure:
    """Scoring prompts by realised depth and length, accepted ones filled, rejected ones crossed.

    Grid lines stand at the depths that were asked for, so that a needle off its place is seen.

    Args:
        instances: one row per prompt: `example accepted recall depth depth_asked length`.
        width: `single`, `double`, `page` or pixels.

    Raises:
        UsageError: missing columns, or no prompt has a depth.
    """
    need(instances, INSTANCES, "instance_map", numeric=("recall", "depth", "depth_asked", "length"))
    told = instances[instances["depth"].notna() & instances["length"].notna()]
    if told.empty:
        raise UsageError("instance_map: no prompt has a depth and a length (column depth is empty)")
    font = theme.font_px(width)
    lengths = sorted({int(v) for v in told["length"]})
    banded = len(lengths) <= 8
    accepted = instances["accepted"].astype(bool)
    share = (
        f"{int(accepted.sum())} of {count(len(instances), 'prompt')} accepted ({percent(accepted.mean())})"
    )
    off = (told["depth"] - told["depth_asked"]).abs().max()
    note = f"{share}; largest distance from the depth asked for: {number(float(off), 3)}"
    tall = (max(2.4 * len(lengths), 9) if banded else 14) * font
    left = (0.56 * len(str(lengths[-1])) + 3.2) * font
    fig = theme.figure(
        "Prompts that the scores come from", note, width=width, plot_height=tall, left=left, right=font,
        bottom=6.0 * font, alt=f"Prompts by depth of the needle and length in tokens. {note}.",
    )  # fmt: skip
    for kept, name, color, symbol in (
        (True, "accepted", theme.BLUE, "circle"), (False, "rejected", theme.VERMILLION, "x-thin"),
    ):  # fmt: skip
        part = told[told["accepted"].astype(bool) == kept]
        if part.empty:
            continue
        spread = 0.3 * np.sin(2.4 * np.arange(len(part)))
        y = [lengths.index(int(v)) for v in part["length"]] + spread if banded else part["length"]
        fig.add_scatter(
            x=part["depth"], y=y, mode="markers", name=name, showlegend=True,
            marker={
                "color": color, "symbol": symbol, "size": 0.6 * font, "opacity": 0.75 if kept else 1,
                "line": {"color": color, "width": 0 if kept else 1.6},
            },
            customdata=[[safe(r.example), number(r.depth_asked), int(r.length), number(r.recall)]
                        for r in part.itertuples()],
            hovertemplate="prompt %{customdata[0]}: %{customdata[2]} tokens<br>depth %{x:.3f}, asked "
            f"%{{customdata[1]}}<br>recall %{{customdata[3]}}, {name}<extra></extra>",
        )  # fmt: skip
    asked = sorted({round(float(v), 3) for v in told["depth_asked"].dropna()})
    few = len(asked) <= 11
    fig.update_xaxes(
        title_text="depth of the needle (0: first, 1: last)", range=[-0.03, 1.03], showgrid=True,
        tickvals=asked if few else None, ticktext=[f"{v:g}" for v in asked] if few else None,
    )  # fmt: skip
    fig.update_yaxes(title_text="length (tokens)")
    if banded:
        fig.update_yaxes(
            tickvals=list(range(len(lengths))),
            ticktext=[str(v) for v in lengths],
            range=[-0.6, len(lengths) - 0.4],
        )
    fig.update_layout(
        legend={
            "orientation": "h", "x": 0.5, "xanchor": "center", "xref": "container", "y": 0, "yref": "container",
            "yanchor": "bottom", "itemclick": False, "itemdoubleclick": False,
        }
    )  # fmt: skip
    return fig
