"""Pictures beside each other: originals, and what a pipeline draws before an edit, after it, and under attack."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from interp.errors import UsageError
from interp.plot import theme
from interp.plot.check import need
from interp.plot.text import count, joined, listed, number, safe
from interp.plot.theme import Width

GRID = ("item", "state", "image")
"""A row of a grid: an item, the state it was drawn in, and the picture (c, h, w) or (h, w), in [0, 1]."""

_HALF = 0.46


def image_grid(
    images: pd.DataFrame, *, states: Sequence[str] | None = None, note: str = "", width: Width = "double"
) -> go.Figure:
    """A line of pictures for each state, a column for each item; framed where the item was replicated.

    Args:
        images: `item state image`, in the order of columns and lines. `replicated` (bool) frames a picture, `distance`
            (to the original) is written below it where there is room.
        states: the lines, in this order; default those of the table.
        note: below the title.
        width: `single`, `double`, `page` or pixels.

    Raises:
        UsageError: missing columns, no such state, two pictures of an item and state, or what is not a picture.
    """
    need(images, GRID, "image_grid")
    have = list(dict.fromkeys(images["state"].astype(str)))
    lines = list(states or have)
    if absent := [s for s in lines if s not in have]:
        raise UsageError(f"image_grid: no state {absent[0]!r}; the table has {', '.join(have)}")
    rows = images.assign(item=images["item"].astype(str), state=images["state"].astype(str))
    if rows.duplicated(["item", "state"]).any():
        raise UsageError("image_grid: an item has two pictures in one state; filter the table to one seed")
    items = list(dict.fromkeys(rows["item"]))
    cells = {(r["item"], r["state"]): r for r in rows.to_dict("records")}
    font, total = theme.font_px(width), theme.pixels(width)
    left = (0.56 * max(map(len, lines)) + 1.0) * font
    columns, cell = _columns(len(items), total - left - 0.8 * font, font)
    bands = -(-len(items) // columns)
    written = "distance" in rows and cell >= 2.7 * font
    tall = cell + (1.2 * font if written else 0.0)
    heads = 0.56 * font * max(map(len, items)) + 0.9 * font
    flat = 0.56 * font * max(map(len, items)) + 4 <= cell
    heads = 1.9 * font if flat else heads
    high = bands * (len(lines) * tall + heads) - heads
    fig = theme.figure(
        "What the pipeline draws", _note(rows, lines, note, written), width=width, plot_height=high, left=left,
        right=total - left - columns * cell, bottom=0.8 * font, top=heads, alt=_alt(rows, lines),
    )  # fmt: skip
    ticks: dict[float, str] = {}
    for number_, item in enumerate(items):
        band, column = divmod(number_, columns)
        top = band * (len(lines) * tall + heads)
        fig.add_annotation(
            x=(column + 0.5) * cell, y=top, text=safe(item), yanchor="bottom", yshift=0.2 * font,
            font={"size": 0.94 * font}, textangle=0 if flat else -90,
        )  # fmt: skip
        for i, state in enumerate(lines):
            y = top + i * tall
            ticks[y + cell / 2] = safe(state)
            found = cells.get((item, state))
            if found is not None:
                _picture(fig, found, column * cell, y, cell)
                if written and np.isfinite(found["distance"]):
                    fig.add_annotation(
                        x=(column + 0.5) * cell, y=y + cell, text=number(found["distance"]), yanchor="top",
                        font={"size": 0.82 * font, "color": theme.MUTED}, borderpad=0,
                    )  # fmt: skip
    fig.update_xaxes(range=[0, columns * cell], visible=False, constrain="range", scaleanchor=False)
    fig.update_yaxes(
        range=[high, 0], tickvals=list(ticks), ticktext=list(ticks.values()), ticks="", showline=False,
        constrain="range", scaleanchor=False,
    )  # fmt: skip
    return fig


def _columns(items: int, room: float, font: float) -> tuple[int, float]:
    """How many pictures stand abreast, and their size in pixels: all of them, or as many as can still be seen."""
    columns = items
    while columns > 1 and room / columns < 2.2 * font:
        columns = -(-columns // 2)
    return columns, min(room / columns, 6.5 * font)


def _picture(fig: go.Figure, row: Mapping[str, Any], x: float, y: float, cell: float) -> None:
    pixels = _pixels(row["image"], row["item"])
    h, w = pixels.shape[:2]
    step = 2 * _HALF * cell / max(h, w)
    x0, y0 = x + (cell - w * step) / 2, y + (cell - h * step) / 2
    said = [f"<b>{safe(row['item'])}</b>, {safe(row['state'])}"]
    if np.isfinite(row.get("distance", np.nan)):
        said.append(f"distance {number(row['distance'], 3)} to the original")
    if row.get("replicated") is True:
        said.append("replicated")
    fig.add_image(
        source=_png(pixels), x0=x0 + step / 2, dx=step, y0=y0 + step / 2, dy=step, name=safe(row["item"]),
        hovertemplate="<br>".join(said) + "<extra></extra>",
    )  # fmt: skip
    if row.get("replicated") is True:
        fig.add_shape(
            type="rect", x0=x0, x1=x0 + w * step, y0=y0, y1=y0 + h * step, name="replicated",
            line={"color": theme.VERMILLION, "width": 2},
        )  # fmt: skip


def _pixels(image: Any, item: str) -> np.ndarray:
    """A picture as bytes, h w 3."""
    found = np.array(image.tolist() if hasattr(image, "tolist") else image, dtype=float)
    if found.ndim == 3 and found.shape[0] in (1, 3):
        found = np.moveaxis(found, 0, -1)
    elif found.ndim == 2:
        found = found[..., None]
    if found.ndim != 3 or found.shape[-1] not in (1, 3) or not found.size or not np.isfinite(found).all():
        raise UsageError(
            f"image_grid: the picture of {item!r} is {found.shape}, not (h, w) or (1 or 3, h, w) in [0, 1]"
        )
    return np.broadcast_to(np.rint(found.clip(0, 1) * 255), (*found.shape[:2], 3)).astype(np.uint8)


def _png(pixels: np.ndarray) -> str:
    """The picture as a data address."""
    import plotly.express as px

    return str(px.imshow(pixels, binary_string=True).data[0].source)


def _note(rows: pd.DataFrame, lines: Sequence[str], note: str, written: bool) -> str:
    parts = [note]
    if "replicated" in rows:
        shares = []
        for state in lines:
            own = rows[(rows["state"] == state) & rows["replicated"].notna()]
            if len(own):
                shares.append(f"{state} {int(own['replicated'].astype(bool).sum())} of {len(own)}")
        # Of many lines the frames themselves say it shorter.
        parts.append("framed: replicated" + (f" ({listed(shares)})" if 0 < len(shares) <= 5 else ""))
    if written:
        parts.append("number: distance to the original")
    return joined(parts)


def _alt(rows: pd.DataFrame, lines: Sequence[str]) -> str:
    items = list(dict.fromkeys(rows["item"]))
    said = f"Pictures, one row a state, of {count(len(items), 'item')}, {listed(lines)}."
    if "replicated" in rows:
        for state in lines:
            own = rows[(rows["state"] == state) & (rows["replicated"] == True)]  # noqa: E712
            said += f" {state}: {listed(own['item']) or 'none'} replicated."
    return said
