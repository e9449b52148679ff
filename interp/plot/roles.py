"""Colours and names of the roles that tokens play, the same in figures and on the page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import plotly.graph_objects as go

from interp.plot import theme
from interp.plot.text import safe

COLORS = {
    "value": theme.VERMILLION,
    "key": theme.BLUE,
    "query": theme.SKY,
    "evidence": theme.ORANGE,
    "subject": theme.GREEN,
    "relation": theme.PURPLE,
    "distractor_key": "#8FA9C8",
    "distractor_value": "#D9A58A",
    "stale_value": "#B8A13C",
    "instruction": "#9A8FB5",
    "answer": "#7A4B9E",
    "last": "#7A4B9E",
    "filler": theme.RULE,
}
"""What is asked for and what answers it in full colours of Okabe and Ito, distractors in the same hues, paler."""

OTHER = "#8C8C8C"


def color(role: str) -> str:
    """Colour of a role; grey for one that is not among the toolkit's own."""
    return COLORS.get(role, OTHER)


def name(role: str) -> str:
    """A role in words."""
    return role.replace("_", " ")


def strip(
    fig: go.Figure, roles: Sequence[str | None], edges: Sequence[float], y0: float, y1: float, axis: str = ""
) -> None:
    """A band of coloured stretches under a map: column `i` spans `edges[i]` to `edges[i + 1]` and has `roles[i]`."""
    start = 0
    for i in range(1, len(roles) + 1):
        if i < len(roles) and roles[i] == roles[start]:
            continue
        role = roles[start]
        if role is not None:
            fig.add_shape(
                type="rect", xref=f"x{axis}", yref=f"y{axis}", x0=edges[start], x1=edges[i], y0=y0, y1=y1,
                fillcolor=color(role), line_width=0, name=role,
            )  # fmt: skip
        start = i


def legend(fig: go.Figure, roles: Iterable[str | None], font: float) -> None:
    """One legend entry a role, in order of first occurrence."""
    for role in dict.fromkeys(role for role in roles if role):
        fig.add_scatter(
            x=[None], y=[None], mode="markers", name=safe(name(role)), showlegend=True, hoverinfo="skip",
            marker={"symbol": "square", "size": 0.8 * font, "color": color(role)},
        )  # fmt: skip
    fig.update_layout(
        legend={
            "orientation": "h", "x": 0, "xanchor": "left", "xref": "container", "y": 0, "yref": "container",
            "yanchor": "bottom", "itemclick": False, "itemdoubleclick": False, "itemwidth": 30,
        }
    )  # fmt: skip


def legend_lines(roles: Iterable[str | None], room: float, font: float) -> int:
    """Lines that the legend of these roles takes in `room` pixels; plotly sets entries in columns of equal width."""
    names = {name(role) for role in roles if role}
    if not names:
        return 0
    widest = 0.56 * font * max(map(len, names)) + 52
    if sum(0.56 * font * len(n) + 52 for n in names) <= room - 12:
        return 1
    return -(-len(names) // max(1, int(room / widest)))
