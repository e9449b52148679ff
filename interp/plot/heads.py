"""Where the heads are that score: a layer x head map, and the ranking with its threshold."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from interp.errors import UsageError
from interp.plot import theme
from interp.plot.check import SCORES, choose, integers, need
from interp.plot.text import count, joined, number, percent, safe
from interp.plot.theme import Width

THRESHOLD = 0.1
"""Mean copy score from which Wu et al. (2024, arXiv 2404.15574) call a head a retrieval head."""


def head_map(
    scores: pd.DataFrame,
    method: str | None = None,
    top: int | None = None,
    highlight: Collection[str] | None = None,
    *,
    threshold: float | None = THRESHOLD,
    width: Width = "double",
) -> go.Figure:
    """Layer x head heat map of one score, with the best heads outlined and numbered by rank.

    Args:
        scores: one row per component and method: `component method layer head kv_head score se n`.
        method: which score to draw; None draws the first in the frame.
        top: how many of the best heads to outline; None outlines those at or above `threshold`, at most 10.
        highlight: components to outline in the colour of a cut, such as `["L17H3"]`.
        threshold: score that counts as a hit in the subtitle; None leaves the sentence out.
        width: `single`, `double`, `page` or pixels.

    Raises:
        UsageError: missing columns, an unknown method or component, or a head that occurs twice.

    >>> frame = pd.DataFrame({"component": ["L0H0", "L0H1"], "method": "copy", "layer": 0, "head": [0, 1],
    ...                       "kv_head": 0, "score": [0.0, 0.9], "se": 0.01, "n": 64})
    >>> head_map(frame).data[0].z.tolist()
    [[0.0], [0.9]]
    """
    chosen, method = _one_method(scores, method, "head_map")
    layers, heads = int(chosen["layer"].max()) + 1, int(chosen["head"].max()) + 1
    grid = np.full((heads, layers), np.nan)
    hover = np.full((heads, layers, 4), "\u2013", dtype=object)
    at = (chosen["head"].to_numpy(int), chosen["layer"].to_numpy(int))
    grid[at] = chosen["score"].to_numpy(float)
    for i, name in enumerate(("component", "se", "n", "kv_head")):
        hover[(*at, i)] = [number(v, 3) if name == "se" else safe(v) for v in chosen[name]]

    low, high = float(np.nanmin(grid)), float(np.nanmax(grid))
    signed = low < 0
    reach = max(abs(low), abs(high)) or 1.0
    zmin, zmax = (-reach, reach) if signed else (0.0, high or 1.0)
    scale = theme.RDBU if signed else theme.VIRIDIS

    best = _best(chosen, top, threshold)
    font = theme.font_px(width)
    left, right, bottom = 4.2 * font, 7.4 * font, 3.8 * font
    cell = (theme.pixels(width) - left - right) / layers
    tall = heads * min(max(cell, 1.15 * font if heads <= 16 else 4.0), 2.4 * font)
    title = f"Which heads score on {method}" if method != "copy" else "Which heads copy from the context"
    fig = theme.figure(
        title, _summary(chosen, threshold), width=width, plot_height=tall, left=left, right=right, bottom=bottom,
        alt=_alt(chosen, method, layers, heads, best, threshold),
    )  # fmt: skip
    fig.add_heatmap(
        z=grid, x=list(range(layers)), y=list(range(heads)), customdata=hover,
        zmin=zmin, zmax=zmax, colorscale=scale, hoverongaps=False,
        zmid=0 if signed else None,
        colorbar=theme.colorbar(f"{safe(method)} score", tall, font, x=1, xanchor="left", xpad=3.1 * font),
        hovertemplate="<b>%{customdata[0]}</b>  layer %{x}, head %{y}<br>score %{z:.3f} \u00b1 %{customdata[1]}"
        "<br>n = %{customdata[2]}<br>KV group %{customdata[3]}<extra></extra>",
    )  # fmt: skip
    _kv_groups(fig, chosen, layers, heads, tall, font)
    fig.add_shape(
        type="rect", xref="paper", yref="paper", x0=0, x1=1, y0=0, y1=1, fillcolor=theme.ABSENT, line_width=0,
        layer="below",
    )  # fmt: skip
    roomy = cell >= 1.1 * font and tall / heads >= font
    for rank, row in enumerate(best.itertuples(), 1):
        _outline(fig, int(row.layer), int(row.head), theme.ON_DARK, 1.4)
        if roomy:
            color = theme.on((float(row.score) - zmin) / (zmax - zmin), scale)
            fig.add_annotation(
                x=row.layer, y=row.head, text=str(rank), font={"size": 0.82 * font, "color": color}
            )
    for row in _named(chosen, highlight).itertuples():
        _outline(fig, int(row.layer), int(row.head), "#FF6A2B", 2.0)
    step = next(s for s in (1, 2, 5, 10, 20, 50) if s * cell >= 2.0 * font)
    y_step = next(s for s in (1, 2, 4, 8, 16, 32, 64) if s * tall / heads >= 1.1 * font)
    fig.update_xaxes(title_text="layer", tick0=0, dtick=step, range=[-0.5, layers - 0.5], showline=False)
    fig.update_yaxes(
        title_text="query head", tick0=0, dtick=y_step, range=[-0.5, heads - 0.5], showline=False
    )
    return fig


def score_ranking(
    scores: pd.DataFrame,
    method: str | None = None,
    top: int = 30,
    *,
    threshold: float | None = THRESHOLD,
    width: Width = "double",
) -> go.Figure:
    """The best heads in order of their score, with standard errors and the threshold of a retrieval head.

    Args:
        scores: as for `head_map`.
        method: which score to draw; None draws the first in the frame.
        top: how many heads to show.
        threshold: drawn as a line, 0.1 in Wu et al. (2024); None draws none.
        width: `single`, `double`, `page` or pixels.

    Raises:
        UsageError: missing columns, an unknown method, or `top` below 1.
    """
    if top < 1:
        raise UsageError(f"score_ranking: top is {top}; show at least one head")
    chosen, method = _one_method(scores, method, "score_ranking")
    font = theme.font_px(width)
    room = theme.pixels(width) - 4.6 * font - 8
    shown = chosen.head(min(top, max(1, int(room / (1.25 * font)))))
    hit = np.ones(len(shown), bool) if threshold is None else shown["score"].to_numpy(float) >= threshold
    fig = theme.figure(
        f"The {count(len(shown), 'head')} with the highest {method} score", _summary(chosen, threshold),
        width=width, plot_height=14 * font, left=4.6 * font, right=8, bottom=5.6 * font,
        alt=f"Heads in order of their {method} score with standard errors. {_summary(chosen, threshold)}",
    )  # fmt: skip
    if threshold is not None:
        # In the corner that a falling curve leaves free.
        known = threshold == THRESHOLD
        named = f"{threshold:g}: retrieval head (Wu et al. 2024)" if known else f"threshold {threshold:g}"
        fig.add_scatter(
            x=[-0.7, len(shown) - 0.3], y=[threshold] * 2, mode="lines", name=named, hoverinfo="skip",
            line={"color": theme.MUTED, "dash": "dash", "width": 1},
        )  # fmt: skip
        fig.update_layout(
            showlegend=True, legend={"x": 1, "xanchor": "right", "y": 1, "yanchor": "top", "itemclick": False}
        )
    for mask, color, symbol in ((hit, theme.BLUE, "circle"), (~hit, theme.CONTROL, "circle-open")):
        part, rank = shown[mask], np.flatnonzero(mask)
        if part.empty:
            continue
        fig.add_scatter(
            x=rank, y=part["score"], mode="markers", showlegend=False,
            error_y={"array": part["se"], "thickness": 1.1, "width": 0, "color": color},
            marker={"color": color, "symbol": symbol, "size": 0.62 * font, "line": {"width": 1.2, "color": color}},
            customdata=[[safe(r.component), int(r.n), safe(r.kv_head)] for r in part.itertuples()],
            hovertemplate="<b>%{customdata[0]}</b><br>score %{y:.3f} \u00b1 %{error_y.array:.3f}"
            "<br>n = %{customdata[1]}<br>KV group %{customdata[2]}<extra></extra>",
        )  # fmt: skip
    fig.update_xaxes(
        tickvals=list(range(len(shown))), ticktext=[safe(c) for c in shown["component"]], tickangle=-90,
        range=[-0.7, len(shown) - 0.3], title_text="head, best first",
    )  # fmt: skip
    spread = shown["se"].fillna(0)
    low = min(0.0, float((shown["score"] - spread).min()))
    high = max(float((shown["score"] + spread).max()), 1.4 * (threshold or 0.0))
    fig.update_yaxes(
        title_text=f"{safe(method)} score (mean \u00b1 SE)",
        range=[low - 0.03 * high, 1.05 * high],
        showgrid=True,
        nticks=7,
    )
    return fig


def _one_method(scores: pd.DataFrame, method: str | None, what: str) -> tuple[pd.DataFrame, str]:
    need(scores, SCORES, what, numeric=("layer", "head", "score", "se", "n"))
    chosen, method = choose(scores, "method", method, what)
    integers(chosen, ("layer", "head"), what)
    twice = chosen[chosen.duplicated(["layer", "head"])]
    if not twice.empty:
        raise UsageError(
            f"{what}: head {twice['component'].iloc[0]} occurs more than once for method {method!r}; "
            "pass the scores of one model and one run"
        )
    # By score, then by place, so that ties have one order.
    return chosen.sort_values(["score", "layer", "head"], ascending=[False, True, True]), method


def _best(chosen: pd.DataFrame, top: int | None, threshold: float | None) -> pd.DataFrame:
    if top is None:
        hits = chosen if threshold is None else chosen[chosen["score"] >= threshold]
        return hits.head(10)
    if top < 0:
        raise UsageError(f"head_map: top is {top}; outline no head (0) or more")
    return chosen.head(top)


def _named(chosen: pd.DataFrame, components: Collection[str] | None) -> pd.DataFrame:
    wanted = list(components or ())
    unknown = sorted(set(wanted) - set(chosen["component"]))
    if unknown:
        raise UsageError(f"head_map: no component {unknown[0]!r}; write it as {chosen['component'].iloc[0]}")
    return chosen[chosen["component"].isin(wanted)]


def _summary(chosen: pd.DataFrame, threshold: float | None) -> str:
    first = chosen.iloc[0]
    best = f"best: {first['component']} at {number(first['score'])} \u00b1 {number(first['se'])}"
    if threshold is None:
        return best
    hits = int((chosen["score"] >= threshold).sum())
    return joined(
        [
            f"{hits} of {count(len(chosen), 'head')} ({percent(hits, len(chosen))}) score {threshold:g} or more",
            best,
        ]
    )


def _alt(
    chosen: pd.DataFrame, method: str, layers: int, heads: int, best: pd.DataFrame, threshold: float | None
) -> str:
    names: Sequence[str] = [f"{r.component} {number(r.score)}" for r in best.itertuples()]
    outlined = f" Outlined, best first: {', '.join(names)}." if names else ""
    return (
        f"Heat map of the {method} score of {layers} layers by {heads} heads. "
        f"{_summary(chosen, threshold)}.{outlined}"
    )


def _outline(fig: go.Figure, layer: int, head: int, color: str, line: float) -> None:
    fig.add_shape(
        type="rect", x0=layer - 0.5, x1=layer + 0.5, y0=head - 0.5, y1=head + 0.5,
        line={"color": color, "width": line}, fillcolor="rgba(0,0,0,0)",
    )  # fmt: skip


def _kv_groups(
    fig: go.Figure, chosen: pd.DataFrame, layers: int, heads: int, tall: float, font: float
) -> None:
    """Lines between the KV groups, and their names at the right edge; none where groups have one head or are one."""
    per_head: Any = chosen.dropna(subset=["kv_head"]).groupby("head")["kv_head"].agg(["nunique", "first"])
    if len(per_head) != heads or (per_head["nunique"] > 1).any():
        return
    groups = per_head["first"].to_numpy()
    edges = np.flatnonzero(groups[1:] != groups[:-1]) + 1
    if not len(edges) or len(edges) == heads - 1:
        return
    for edge in edges:
        fig.add_shape(
            type="line", x0=-0.5, x1=layers - 0.5, y0=edge - 0.5, y1=edge - 0.5,
            line={"color": theme.ON_DARK, "width": 0.9, "dash": "dot"},
        )  # fmt: skip
    bounds = [0, *edges.tolist(), heads]
    if tall * min(np.diff(bounds)) / heads < 1.2 * font:
        return
    for start, stop in pairwise(bounds):
        fig.add_annotation(
            x=1, xref="paper", xanchor="left", xshift=4, y=(start + stop - 1) / 2, text=f"KV {int(groups[start])}",
            font={"color": theme.MUTED, "size": 0.9 * font},
        )  # fmt: skip
