"""How far scores of heads agree: shared top heads, rank correlation, and how reliable each score is by itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from interp.errors import UsageError
from interp.plot import theme
from interp.plot.check import need
from interp.plot.text import count, joined, number, safe
from interp.plot.theme import Width

PAIRS = ("a", "b", "set", "overlap", "p", "spearman", "ceiling")
"""What each row says of two scores, as `compare_methods` gives it."""

LEVEL = 0.05


def score_agreement(pairs: pd.DataFrame, *, width: Width = "double") -> go.Figure:
    """Score x score: below the diagonal the share of common top heads, above it the rank correlation.

    On the diagonal stands how far a score agrees with itself between two halves of its instances: the ceiling of what
    agreement with another can be. Bold: more common heads than chance gives (p below 0.05).

    Args:
        pairs: one row an ordered pair, `a b set overlap p spearman ceiling`, as `compare_methods` gives them; rows with
            `a` equal to `b` hold the ceiling of one score.
        width: `single`, `double`, `page` or pixels.

    Raises:
        UsageError: missing columns, or several sets.
    """
    need(pairs, PAIRS, "score_agreement", numeric=PAIRS[3:])
    sets = list(dict.fromkeys(pairs["set"].astype(str)))
    if len(sets) > 1:
        raise UsageError(f"score_agreement: sets are {', '.join(sets)}; filter the table to one")
    names = list(dict.fromkeys(pairs["a"]))
    told = {(r.a, r.b): r for r in pairs.itertuples()}
    n = len(names)
    font, total = theme.font_px(width), theme.pixels(width)
    left = (0.56 * max(map(len, names)) + 1.0) * font
    bar = 0.0 if total < 400 else 6.0 * font
    cell = min((total - left - bar - 0.6 * font) / n, 3.4 * font)
    right = total - left - cell * n
    tall_cell = max(1.5 * font, min(cell, 2.2 * font))
    above = 0.52 * font * max(map(len, names))
    fig = theme.figure(
        "How far the scores agree on the heads", _summary(pairs, sets[0]), width=width, plot_height=tall_cell * n,
        left=left, right=right, bottom=0.8 * font, top=above + 0.8 * font, alt=_alt(pairs, sets[0]),
    )  # fmt: skip
    z = np.full((n, n), np.nan)
    hover = np.full((n, n), "", dtype=object)
    small = cell < 2.3 * font
    for y, row in enumerate(names):
        for x, column in enumerate(names):
            pair = told.get((row, column))
            if pair is None:
                continue
            value = float(pair.ceiling if x == y else pair.spearman if x > y else pair.overlap)
            z[y, x] = value
            hover[y, x] = _hover(pair)
            if np.isfinite(value):
                above_chance = x < y and float(pair.p) < LEVEL
                text = number(value, 1 if small and value < 0 else 2)
                fig.add_annotation(
                    x=x, y=y, text=text.replace("0.", ".", 1) if small else text,
                    font={
                        "color": theme.on((value + 1) / 2, theme.RDBU), "size": (0.72 if small else 0.82) * font,
                        "weight": 700 if above_chance else 400,
                    },
                )  # fmt: skip
    fig.add_heatmap(
        z=z, x=list(range(n)), y=list(range(n)), zmin=-1, zmax=1, zmid=0, colorscale=theme.RDBU, xgap=1.5, ygap=1.5,
        customdata=hover, hovertemplate="%{customdata}<extra></extra>", hoverongaps=False, showscale=bar > 0,
        colorbar=theme.colorbar("agreement", min(tall_cell * n, 20 * font), font),
    )  # fmt: skip
    for i in range(n):
        fig.add_shape(
            type="rect",
            x0=i - 0.5,
            x1=i + 0.5,
            y0=i - 0.5,
            y1=i + 0.5,
            line={"color": theme.MUTED, "width": 1},
        )
    ticks = {
        "tickvals": list(range(n)),
        "ticktext": [safe(name) for name in names],
        "ticks": "",
        "showline": False,
    }
    fig.update_xaxes(**ticks, side="top", range=[-0.5, n - 0.5], tickangle=-90)
    fig.update_yaxes(**ticks, range=[n - 0.5, -0.5])
    return fig


def _hover(pair: Any) -> str:
    ceiling = number(float(pair.ceiling), 3)
    if pair.a == pair.b:
        return f"<b>{safe(pair.a)}</b>, two halves of its instances<br>common {safe(pair.set)}: {ceiling}"
    return (
        f"<b>{safe(pair.a)} and {safe(pair.b)}</b><br>common {safe(pair.set)}: {number(float(pair.overlap), 3)} "
        f"(p = {number(float(pair.p), 4)}; ceiling {ceiling})<br>rank correlation {number(float(pair.spearman), 3)}"
    )


def _summary(pairs: pd.DataFrame, name: str) -> str:
    return joined([
        f"below: share of common heads, {name} (bold: more than chance, p below {LEVEL})",
        "above: rank correlation",
        *(["diagonal: two halves of one score's instances"] if pairs["ceiling"].notna().any() else []),
    ])  # fmt: skip


def _alt(pairs: pd.DataFrame, name: str) -> str:
    told = [
        f"{r.a} and {r.b}: {number(float(r.overlap))}, rho {number(float(r.spearman))}."
        for r in pairs[pairs["a"] < pairs["b"]].itertuples()
    ]
    return f"Matrix of agreement of {count(pairs['a'].nunique(), 'score')}, {name}. " + " ".join(told)
