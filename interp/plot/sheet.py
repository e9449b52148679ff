"""A figure of a few panels that stand abreast where the width allows it, and one below the other where not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import plotly.graph_objects as go

from interp.plot import theme
from interp.plot.text import safe
from interp.plot.theme import Width


@dataclass
class Sheet:
    """A figure of panels, abreast where the width allows it, else one below the other."""

    fig: go.Figure
    font: float
    columns: int
    room: float
    """Width of a panel in pixels."""
    below: float = 0.0
    """Pixels that long names need below the panels."""

    @classmethod
    def of(
        cls,
        title: str,
        note: str,
        captions: Sequence[str],
        width: Width,
        *,
        alt: str,
        tall: float = 15,
        least: float = 28,
        gap: float = 8.2,
    ) -> Sheet:
        """Empty panels with their captions.

        In characters: `tall` is a panel's height, `least` its least width, `gap` the room between lines of panels.
        """
        font, total = theme.font_px(width), theme.pixels(width)
        columns = max(1, min(len(captions), int(total / (least * font))))
        lines = -(-len(captions) // columns)
        left, gap_x, gap_y = 4.6 * font, 5.2 * font, gap * font
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
        """Names along the x axis, in two lines at `<br>`; upright and in one line where they do not fit abreast."""
        longest = max(len(part) for name in names for part in name.split("<br>"))
        upright = (0.56 * longest + 1) * self.font * len(names) > self.room
        if upright:
            names = [name.replace("<br>", " ") for name in names]
            self.below = max(self.below, (0.56 * max(map(len, names)) - 4.4) * self.font)
        self.fig.update_layout({
            f"xaxis{self.axis(panel)}": {
                "tickvals": list(range(len(names))), "ticktext": list(names), "tickangle": -90 if upright else 0,
            }
        })  # fmt: skip

    def level(self, panel: int, y: float, name: str, x_range: tuple[float, float]) -> None:
        """A dashed line across a panel, named in the legend."""
        self.fig.add_scatter(
            x=list(x_range), y=[y, y], mode="lines", name=name, hoverinfo="skip", showlegend=True,
            line={"color": theme.MUTED, "dash": "dot", "width": 1}, **self.at(panel),
        )  # fmt: skip

    def band(
        self,
        panel: int,
        x: Sequence[float],
        low: Sequence[float],
        high: Sequence[float],
        color: str = theme.CONTROL_BAND,
    ) -> None:
        """A band, grey if nothing else is asked for."""
        self.fig.add_scatter(
            x=[*x, *list(x)[::-1]], y=[*low, *list(high)[::-1]], fill="toself", mode="none", showlegend=False,
            fillcolor=color, hoverinfo="skip", name="band", **self.at(panel),
        )  # fmt: skip

    def done(self) -> go.Figure:
        """The figure, with its legend below: in one line, or in columns where they do not fit abreast."""
        return theme.legend_below(self.fig, self.font, self.below)
