"""The look of all figures: one plotly template, `interp`, with its sizes, fonts and colours.

Importing this module changes nothing in plotly. `figure` registers the template when the first figure is made,
`register` does it on its own; neither touches plotly's default template. Colours come from Okabe and Ito's set, which
survives the common colour-vision deficiencies; maps are Viridis (scores), Cividis (attention) and RdBu with its
middle at zero. `dark` re-colours a finished figure for a dark page.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Literal

import plotly.colors
import plotly.graph_objects as go
import plotly.io as pio

from interp.errors import UsageError
from interp.plot.text import safe, wrapped

NAME = "interp"

FONT = "Liberation Sans, Arial, Helvetica, DejaVu Sans, sans-serif"
"""Liberation Sans is what CI installs; Arial and Helvetica have the same widths."""

Width = Literal["single", "double", "page"] | int
WIDTHS: dict[str, int] = {"single": 312, "double": 648, "page": 880}
"""CSS pixels at 96 to the inch: one column (3.25 in), two columns (6.75 in), the report page."""

PAPER_FONT = 32 / 3
"""8 pt in pixels."""
PAGE_FONT = 13.0

INK, MUTED, RULE, PAPER, ABSENT = "#1F2933", "#5B6776", "#DCE1E7", "#FFFFFF", "#E9ECF0"
BLUE, VERMILLION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
ORANGE, SKY, YELLOW = "#E69F00", "#56B4E9", "#F0E442"
COLORWAY = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, INK, YELLOW)
CONTROL = "#768290"
CONTROL_BAND = "rgba(118,130,144,0.22)"
CLEAN_BAND = "rgba(31,41,51,0.09)"
CUT = VERMILLION

ON_DARK, ON_LIGHT = "rgb(255,255,255)", "rgb(17,17,17)"
"""Text on a coloured cell: written differently from PAPER and INK because it stays as it is on a dark page."""

VIRIDIS = plotly.colors.make_colorscale(plotly.colors.sequential.Viridis)
CIVIDIS = plotly.colors.make_colorscale(plotly.colors.sequential.Cividis)
RDBU = plotly.colors.make_colorscale(plotly.colors.diverging.RdBu)
RDBU_DARK = plotly.colors.make_colorscale(["#D4553B", "#8E3A33", "#1E242C", "#1F5482", "#3586C8"])

_DARK = {
    INK: "#E6EAF0", MUTED: "#A3AEBB", RULE: "#343D49", PAPER: "rgba(0,0,0,0)", ABSENT: "#2B323C",
    BLUE: "#4AA3E0", VERMILLION: "#F0803C", GREEN: "#2BC49B", PURPLE: "#DD93BD",
    CONTROL: "#9AA6B4", CONTROL_BAND: "rgba(154,166,180,0.25)", CLEAN_BAND: "rgba(230,234,240,0.13)",
}  # fmt: skip


def pixels(width: Width) -> int:
    """Width in CSS pixels of a named or given width.

    Raises:
        UsageError: an unknown name, or fewer than 120 pixels.
    """
    if isinstance(width, str):
        if width not in WIDTHS:
            raise UsageError(f"width {width!r} is unknown; use {', '.join(WIDTHS)} or a number of pixels")
        return WIDTHS[width]
    if not 120 <= width <= 8000:
        raise UsageError(f"width {width} px is out of range; use 120 to 8000, or {', '.join(WIDTHS)}")
    return int(width)


def font_px(width: Width) -> float:
    """Size of the text at a width: 8 pt in papers, larger on the page."""
    return PAPER_FONT if pixels(width) <= WIDTHS["double"] else PAGE_FONT


def template(font: float = PAPER_FONT) -> go.layout.Template:
    """A fresh copy of the template: simple_white with our fonts, colours and thin axes, text of `font` pixels."""
    base = go.layout.Template(pio.templates["simple_white"].to_plotly_json())
    axis = {
        "linecolor": MUTED, "tickcolor": MUTED, "gridcolor": RULE, "zerolinecolor": MUTED,
        "tickfont": {"color": INK}, "ticklen": 3, "linewidth": 1, "automargin": False,
        "title": {"standoff": 6, "font": {"size": font}},
    }  # fmt: skip
    base.layout.update(
        font={"family": FONT, "size": font, "color": INK},
        colorway=list(COLORWAY),
        colorscale={"sequential": VIRIDIS, "sequentialminus": VIRIDIS, "diverging": RDBU},
        paper_bgcolor=PAPER,
        plot_bgcolor="rgba(0,0,0,0)",
        hoverlabel={"align": "left", "font": {"family": FONT}},
        coloraxis={"colorbar": {"outlinewidth": 0, "ticks": "outside", "ticklen": 3, "tickcolor": MUTED}},
        annotationdefaults={"font": {"color": INK}, "showarrow": False},
        shapedefaults={"opacity": 1, "fillcolor": "rgba(0,0,0,0)"},
        legend={"font": {"size": font}, "title": {"font": {"size": font}}, "bgcolor": "rgba(0,0,0,0)"},
        modebar={"remove": ["select2d", "lasso2d", "autoScale2d"]},
    )
    base.layout.xaxis.update(axis)
    base.layout.yaxis.update(axis)
    return base


@cache
def _cached(font: float) -> go.layout.Template:
    """The template for figures, which plotly copies when it takes it."""
    return template(font)


def register() -> str:
    """Make the template known to plotly under the name `interp`; plotly's default stays what it was."""
    if NAME not in pio.templates:
        pio.templates[NAME] = template()
    return NAME


def figure(
    title: str,
    subtitle: str = "",
    *,
    width: Width = "double",
    plot_height: float,
    left: float,
    right: float,
    bottom: float,
    top: float = 0.0,
    alt: str = "",
) -> go.Figure:
    """An empty figure with its frame: title lines wrapped to the width, and margins that leave the rest to the plot.

    Args:
        title: plain text, escaped here.
        subtitle: plain text below it, escaped here.
        width: outer width.
        plot_height: height of the plotting area in pixels.
        left: margin in pixels; likewise `right`, `bottom`, and `top`, which comes below the title.
        alt: what the figure shows, for those who cannot see it; kept in `layout.meta`.
    """
    w, font = pixels(width), font_px(width)
    head = wrapped(title, w - 16, font * 1.22)
    sub = wrapped(subtitle, w - 16, font) if subtitle else []
    line, lead = 1.3 * font, 1.3 * 1.22 * font
    # What stands above the plot, from the top edge: the title's lines, the subtitle's lines, the caller's own room.
    high = 8 + len(head) * lead + len(sub) * line + 0.8 * font + top
    register()
    fig = go.Figure()
    fig.update_layout(
        template=_cached(font),
        width=w,
        height=round(high + plot_height + bottom),
        margin={"l": left, "r": right, "t": high, "b": bottom, "autoexpand": False},
        title={
            "text": "<br>".join(safe(text) for text in head),
            "font": {"size": font * 1.22, "color": INK, "weight": 600},
            "x": 0, "xref": "container", "xanchor": "left", "y": 1, "yref": "container", "yanchor": "top",
            # Plotly hangs one line from its top, but the first of several from its base.
            "pad": {"l": 8, "t": 8 if len(head) == 1 else 8 + 0.7 * 1.22 * font},
        },
        meta={"alt": alt or title, "headings": high - top - 0.8 * font},
    )  # fmt: skip
    if sub:
        fig.add_annotation(
            text="<br>".join(safe(text) for text in sub), align="left", font={"color": MUTED}, name="subtitle",
            x=0, xref="paper", xanchor="left", xshift=7 - left,
            y=1, yref="paper", yanchor="bottom", yshift=top + 0.45 * font, borderpad=0,
        )  # fmt: skip
    return fig


def colorbar(title: str, height: float, font: float, **more: Any) -> dict[str, Any]:
    """A slim colour bar of `height` pixels, text of `font` pixels; its title runs along it, clear of the plot's."""
    return {
        "title": {"text": title, "side": "right", "font": {"size": font}}, "thickness": 9,
        "lenmode": "pixels", "len": height,
        "outlinewidth": 0, "ticks": "outside", "ticklen": 3, "tickcolor": MUTED, "xpad": 6, "ypad": 0, **more,
    }  # fmt: skip


def legend_below(fig: go.Figure, font: float, more: float = 0.0) -> go.Figure:
    """The figure with its legend at the lower edge, one line of which the bottom margin has room for already.

    Names that do not fit in one line stand in columns as wide as the longest, for which the figure grows, and by `more`
    pixels. Entries hide nothing when they are clicked.
    """
    names = [str(trace.name) for trace in fig.data if trace.name and trace.showlegend is not False]
    room = fig.layout.width - fig.layout.margin.l - fig.layout.margin.r
    long = sum(0.47 * len(name) + 4 for name in names) * font > room
    column = (0.47 * max(map(len, names), default=1) + 6) * font
    lines = -(-len(names) // max(1, int(room / column))) if long else 1
    more += 1.8 * font * (lines - 1)
    return fig.update_layout(
        height=round(fig.layout.height + more),
        margin_b=fig.layout.margin.b + more,
        legend={
            "orientation": "h", "x": 0.5, "xanchor": "center", "xref": "container", "y": 0, "yref": "container",
            "yanchor": "bottom", "itemclick": False, "itemdoubleclick": False, "traceorder": "normal",
        },
    )  # fmt: skip


def faint(color: str, opacity: float = 0.16) -> str:
    """A colour `#rrggbb` as one that lets through what lies below, for bands."""
    red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity:g})"


def on(color_position: float, scale: list[Any]) -> str:
    """Colour of text that is read on a cell at `color_position` (0 to 1) of a colour scale."""
    rgb = plotly.colors.sample_colorscale(scale, [min(1.0, max(0.0, color_position))])[0]
    red, green, blue = plotly.colors.unlabel_rgb(rgb)
    return ON_DARK if 0.299 * red + 0.587 * green + 0.114 * blue < 140 else ON_LIGHT


def without_headings(fig: go.Figure) -> go.Figure:
    """A copy without title and subtitle and the room they took, for a caption or a page that says it instead."""
    return go.Figure(bare(fig.to_plotly_json()))


def dark(fig: go.Figure) -> go.Figure:
    """A copy of a figure of this package re-coloured for a dark page; data and layout are the same."""
    return go.Figure(recolored(fig.to_plotly_json()))


def bare(node: dict[str, Any]) -> dict[str, Any]:
    """`without_headings` of a figure as plain data."""
    layout = {key: value for key, value in node["layout"].items() if key != "title"}
    room = float(layout.get("meta", {}).get("headings", 0.0))
    layout["annotations"] = [a for a in layout.get("annotations", ()) if a.get("name") != "subtitle"]
    layout["height"] = round(layout["height"] - room)
    layout["margin"] = {**layout["margin"], "t": layout["margin"]["t"] - room}
    layout["meta"] = {**layout["meta"], "headings": 0.0}
    return {**node, "layout": layout}


def recolored(node: Any, key: str = "") -> Any:
    """`dark` of a figure as plain data, or of a part of one that stands under `key`."""
    if isinstance(node, dict):
        return {name: recolored(value, name) for name, value in node.items()}
    if key == "colorscale" and isinstance(node, (list, tuple)):
        stops = [list(stop) for stop in node]
        known = [list(stop) for stop in RDBU]
        return RDBU_DARK if stops == known else [[at, _DARK.get(color, color)] for at, color in stops]
    if isinstance(node, (list, tuple)):
        return [recolored(item, key) for item in node]
    # Only colours are touched: a token that reads like one stays text.
    return _DARK.get(node, node) if isinstance(node, str) and key.endswith("color") else node
