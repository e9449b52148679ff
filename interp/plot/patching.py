"""Activation patching as maps: what one patch changes, by layer and token position, span role, or head.

Cells show the change from the run that was patched, as a share of the gap between the clean and the corrupt run. For
`denoise` that is the recovery itself: +1 brings the clean answer back. For `noise`, which starts from the clean run,
it is recovery - 1: -1 destroys the answer. So 0 always means that the patch did nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from interp.errors import UsageError
from interp.plot import roles as roles_of_tokens
from interp.plot import theme
from interp.plot.check import PATCH, integers, need
from interp.plot.text import number, safe, shown_length, signed, token_label, token_quote
from interp.plot.theme import Width

KINDS = {
    "resid_pre": "residual stream (pre)", "resid_mid": "residual stream (mid)",
    "resid_post": "residual stream (post)", "attn_out": "attention output", "mlp_out": "MLP output",
    "z": "head output z", "head_out": "head output", "neurons": "neurons",
}  # fmt: skip
"""Site kinds in words."""

LIMIT = 1.5
"""Changes beyond this share one colour, so that a single wild cell does not pale all others."""


@dataclass(frozen=True)
class Facet:
    """One map: rows of one kind and direction, as a grid with its columns' labels."""

    kind: str
    direction: str
    over: str
    """What a column is: `position`, `role` or `head`; heads run along y, the other two along x."""
    grid: np.ndarray
    """Change: layers x positions, layers x roles, or heads x layers."""
    hover: np.ndarray
    layers: list[int]
    tokens: list[str]
    roles: list[str | None]
    jumps: list[int]
    """Columns whose left neighbour is not the token before."""


def patch_map(frame: pd.DataFrame, *, width: Width = "double") -> go.Figure:
    """What patching changes: one map for each site kind and direction, layer x position, x span role, or x head.

    The colours are centred on 0, where the patch did nothing; see the module for what +1 and -1 mean.

    Args:
        frame: `kind direction layer position token role head recovery n`; `head` and `position` are -1 where a cell is
            none of these.
        width: `single`, `double`, `page` or pixels.

    Raises:
        UsageError: missing columns, a site that occurs twice, or more than 12 maps.
    """
    need(frame, PATCH, "patch_map", numeric=("layer", "position", "head", "recovery", "n"))
    integers(frame, ("layer", "position", "head"), "patch_map")
    keys = list(frame[["kind", "direction"]].drop_duplicates().itertuples(index=False, name=None))
    if len(keys) > 12:
        raise UsageError(f"patch_map: {len(keys)} maps (kind x direction) do not fit; filter the frame to 12")
    facets = [_facet(frame[(frame["kind"] == k) & (frame["direction"] == d)], k, d) for k, d in keys]
    font, total = theme.font_px(width), theme.pixels(width)
    left, right, gap_x = 3.8 * font, 6.2 * font, 4.2 * font
    across = total - left - right
    # Two maps side by side where the token labels of each still fit.
    most = max((len(f.tokens) for f in facets), default=0)
    columns = 2 if len(facets) > 1 and (across - gap_x) / 2 >= max(most * 1.1 * font, 17 * font) else 1
    lines = [facets[i : i + columns] for i in range(0, len(facets), columns)]
    cell = (across - (columns - 1) * gap_x) / columns
    heights = [max(_height(f, cell, font) for f in line) for line in lines]
    below = [max(_below(f, cell, font) for f in line) for line in lines]
    heading = 1.9 * font
    tall = sum(heights) + sum(below[:-1]) + heading * (len(lines) - 1)
    shown_roles = [role for f in facets if f.over == "position" for role in f.roles]
    legend_lines = roles_of_tokens.legend_lines(shown_roles, total, font)
    reach, clipped = _reach(facets)
    fig = theme.figure(
        "Which activations carry the answer", _note(facets, clipped), width=width, plot_height=tall, left=left,
        right=right, top=heading, bottom=below[-1] + (1.9 * legend_lines + 0.4) * font, alt=_alt(facets),
    )  # fmt: skip
    top = 0.0
    for i, (line, height) in enumerate(zip(lines, heights, strict=True)):
        for j, facet in enumerate(line):
            axis = "" if i == j == 0 else str(i * columns + j + 1)
            x0 = j * (cell + gap_x) / across
            fig.update_layout({
                f"xaxis{axis}": {"domain": [x0, min(1.0, x0 + cell / across)], "anchor": f"y{axis}"},
                f"yaxis{axis}": {
                    "domain": [max(0.0, 1 - (top + height) / tall), 1 - top / tall], "anchor": f"x{axis}",
                },
            })  # fmt: skip
            _draw(fig, facet, axis, cell, height, font)
        top += height + below[i] + heading
    roles_of_tokens.legend(fig, shown_roles, font)
    fig.update_layout(
        coloraxis={
            "cmin": -reach, "cmax": reach, "cmid": 0, "colorscale": theme.RDBU,
            "colorbar": theme.colorbar("change by the patch", min(tall, 18 * font), font, y=1, yanchor="top"),
        }
    )  # fmt: skip
    return fig


def _facet(rows: pd.DataFrame, kind: str, direction: str) -> Facet:
    over = "head" if (rows["head"] >= 0).any() else "position" if (rows["position"] >= 0).any() else "role"
    if over != "role":
        rows = rows[rows[over] >= 0]
    rows = rows.assign(role=rows["role"].fillna("").astype(str), token=rows["token"].fillna("").astype(str))
    twice = rows[rows.duplicated(["layer", over])]
    if not twice.empty:
        where = f"layer {int(twice['layer'].iloc[0])}, {over} {twice[over].iloc[0]}"
        raise UsageError(
            f"patch_map: kind {kind!r}, direction {direction!r} holds {where} more than once; "
            "average over examples first, or filter"
        )
    layers = list(range(int(rows["layer"].max()) + 1))
    if over == "head":
        columns: list[int] | list[str] = list(range(int(rows["head"].max()) + 1))
    else:
        columns = sorted(set(rows["position"])) if over == "position" else list(dict.fromkeys(rows["role"]))
    at = {value: i for i, value in enumerate(columns)}
    grid = np.full((len(layers), len(columns)), np.nan)
    hover = np.full(grid.shape, "", dtype=object)
    labels = [""] * len(columns)
    roles: list[str | None] = [None] * len(columns)
    for row in rows.itertuples():
        y, x = int(row.layer), at[getattr(row, over)]
        grid[y, x] = float(row.recovery) - (direction == "noise")
        words = roles_of_tokens.name(row.role)
        place = {
            "head": f"head {row.head}", "role": f"tokens: {safe(words)}",
            "position": f"token {row.position}: {token_quote(row.token)}" + (f"<br>{safe(words)}" if row.role else ""),
        }[over]  # fmt: skip
        hover[y, x] = f"layer {y}, {place}<br>recovery {number(float(row.recovery), 3)}, n = {int(row.n)}"
        labels[x], roles[x] = (row.token if over == "position" else words), (row.role or None)
    if over == "head":
        # As in the head map: layers along x, heads along y.
        return Facet(kind, direction, over, grid.T, hover.T, layers, [], [], [])
    jumps = [i for i in range(1, len(columns)) if over == "position" and columns[i] != columns[i - 1] + 1]  # type: ignore[operator]
    return Facet(kind, direction, over, grid, hover, layers, labels, roles, jumps)


def _height(facet: Facet, cell: float, font: float) -> float:
    rows = len(facet.grid)
    if facet.over == "head":
        return rows * min(max(cell / len(facet.layers), 1.1 * font if rows <= 16 else 4.0), 1.8 * font)
    return min(max(6.0 * rows, 9 * font), 24 * font)


def _below(facet: Facet, cell: float, font: float) -> float:
    """Room under a map: token labels, or layer numbers and the axis title."""
    if facet.over == "head":
        return 3.6 * font
    if _level(facet, cell, font):
        return 2.4 * font
    return (0.52 * max(shown_length(token_label(t)) for t in facet.tokens) + 1.4) * font


def _level(facet: Facet, cell: float, font: float) -> bool:
    """Whether the column labels fit beside each other unturned."""
    longest = max(shown_length(token_label(t)) for t in facet.tokens)
    return 0.55 * font * longest + 4 <= cell / len(facet.tokens)


def _draw(fig: go.Figure, facet: Facet, axis: str, cell: float, height: float, font: float) -> None:
    rows, columns = facet.grid.shape
    fig.add_heatmap(
        z=facet.grid, x=list(range(columns)), y=list(range(rows)), coloraxis="coloraxis", hoverongaps=False,
        customdata=facet.hover, xaxis=f"x{axis}", yaxis=f"y{axis}", name=f"{facet.kind} {facet.direction}",
        hovertemplate="%{customdata}<br>change by the patch %{z:+.3f}<extra></extra>",
    )  # fmt: skip
    fig.add_shape(
        type="rect", xref=f"x{axis} domain", yref=f"y{axis}", x0=0, x1=1, y0=-0.5, y1=rows - 0.5,
        fillcolor=theme.ABSENT, line_width=0, layer="below",
    )  # fmt: skip
    title = f"{KINDS.get(facet.kind, facet.kind)} \u00b7 {facet.direction}"
    fig.add_annotation(
        text=safe(title), x=0, xref=f"x{axis} domain", xanchor="left", xshift=-1, y=1, yref=f"y{axis} domain",
        yanchor="bottom", yshift=2, font={"weight": 600, "color": theme.INK},
    )  # fmt: skip
    steps = (1, 2, 5, 10, 20, 50)
    down = next(s for s in steps if s * height / rows >= 1.25 * font)
    x_axis, y_axis = f"xaxis{axis}", f"yaxis{axis}"
    if facet.over == "head":
        along = next(s for s in steps if s * cell / columns >= 2.0 * font)
        fig.layout[x_axis].update(
            tick0=0, dtick=along, range=[-0.5, columns - 0.5], showline=False, title_text="layer"
        )
        fig.layout[y_axis].update(
            tick0=0, dtick=down, range=[-0.5, rows - 0.5], showline=False, title_text="query head"
        )
        return
    every = max(1, int(np.ceil(1.02 * font * columns / cell)))
    shown = range(0, columns, every)
    band = 0.55 * font / height * rows
    floor = -0.5 - 1.35 * band
    fig.layout[x_axis].update(
        tickvals=list(shown), ticktext=[token_label(facet.tokens[i]) for i in shown],
        tickangle=0 if _level(facet, cell, font) else -90,
        range=[-0.5, columns - 0.5], showline=False, ticks="", tickfont={"size": 0.92 * font},
    )  # fmt: skip
    fig.layout[y_axis].update(
        tickvals=list(range(0, rows, down)), range=[floor, rows - 0.5], showline=False, title_text="layer"
    )
    edges = [i - 0.5 for i in range(columns + 1)]
    roles_of_tokens.strip(fig, facet.roles, edges, floor, floor + band, axis)
    for jump in facet.jumps:
        fig.add_shape(
            type="line", xref=f"x{axis}", yref=f"y{axis}", x0=jump - 0.5, x1=jump - 0.5, y0=floor, y1=rows - 0.5,
            line={"color": theme.MUTED, "width": 1, "dash": "dot"}, name="positions left out",
        )  # fmt: skip


def _reach(facets: Sequence[Facet]) -> tuple[float, bool]:
    finite = np.concatenate([np.abs(f.grid[np.isfinite(f.grid)]) for f in facets])
    top = float(finite.max()) if finite.size else 1.0
    return min(top or 1.0, LIMIT), top > LIMIT


def _largest(facet: Facet) -> str:
    if not np.isfinite(facet.grid).any():
        return "nothing finite"
    y, x = np.unravel_index(int(np.nanargmax(np.abs(facet.grid))), facet.grid.shape)
    place = (
        f"layer {x}, head {y}"
        if facet.over == "head"
        else f"layer {y}, {facet.over} {facet.tokens[x].strip()!r}"
    )
    return f"{signed(float(facet.grid[y, x]))} at {place}"


def _note(facets: Sequence[Facet], clipped: bool) -> str:
    said = {
        "denoise": "denoise: clean activations into the corrupt prompt, +1 brings the answer back",
        "noise": "noise: corrupt activations into the clean prompt, \u22121 destroys it",
    }
    parts = [said[d] for d in dict.fromkeys(f.direction for f in facets) if d in said]
    return "; ".join([*parts, *([f"colours end at {LIMIT:g}"] if clipped else [])])


def _alt(facets: Sequence[Facet]) -> str:
    parts = [f"{KINDS.get(f.kind, f.kind)}, {f.direction}: largest change {_largest(f)}." for f in facets]
    return "Heat maps of the change under activation patching. " + " ".join(parts)
