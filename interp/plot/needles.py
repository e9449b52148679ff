"""Where in the context needles are found, intact and cut: accuracy over length and depth, side by side."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from interp.errors import UsageError
from interp.plot import theme
from interp.plot.check import need
from interp.plot.conditions import metric_label
from interp.plot.text import count, joined, number, safe
from interp.plot.theme import Width

CELLS = ("condition", "mode", "k", "draw", "length_asked", "depth_asked", "depth")
"""What each row says beside its metrics; one row is one example under one condition."""

MAX_PANELS = 12
_ORDER = {"clean": 0, "cut": 1, "control": 2}


@dataclass(frozen=True)
class _Panel:
    """The rows of one map, and what stands above it."""

    condition: str
    mode: str
    rows: pd.DataFrame

    @property
    def k(self) -> int:
        return int(self.rows["k"].iloc[0])

    @property
    def draws(self) -> int:
        return int(self.rows["draw"].nunique())

    def name(self, modes: int) -> str:
        """What was done, in words; the mode where there are several."""
        if self.condition == "clean":
            return "uncut"
        who = f"top {count(self.k, 'head')}" if self.condition == "cut" else f"{self.k} matched others"
        return f"{who}: {self.mode}" if modes > 1 else f"{who} cut"


def needle_map(outcomes: pd.DataFrame, metric: str = "accuracy", *, width: Width = "double") -> go.Figure:
    """Length x depth maps of one metric: uncut, the top heads cut, matched others cut; one colour scale for all.

    One map for the uncut model and two for each mode of cutting, the mean over examples (and over control draws) in
    each cell. Accuracies are written into the cells as per cent where they fit.

    Args:
        outcomes: one row an example and condition: `condition` (clean, cut, control), `mode`, `k`, `draw`,
            `length_asked`, `depth_asked`, `depth` (realised), and the metric in a column of its name.
        metric: the column to draw.
        width: `single` (maps below each other), `double`, `page` or pixels.

    Raises:
        UsageError: missing columns, no uncut row, several sizes of cut in one mode, or more than 12 maps.
    """
    told = need(
        outcomes, (*CELLS, metric), "needle_map", numeric=("k", "draw", "depth_asked", "depth", metric)
    )
    told = told.dropna(subset=["length_asked", "depth_asked"]).assign(
        mode=lambda f: f["mode"].fillna("").astype(str)
    )
    panels = _panels(told)
    lengths = sorted({int(v) for v in told["length_asked"]})
    depths = sorted({round(float(v), 6) for v in told["depth_asked"]})
    modes = list(dict.fromkeys(p.mode for p in panels if p.condition != "clean"))
    font, total = theme.font_px(width), theme.pixels(width)
    abreast = 1 if total < 400 else min(3, len(panels))
    lines = _lines(panels, modes, abreast)
    left, right, gap_x = 4.4 * font, 0.8 * font, 1.6 * font
    across = total - left - right
    cell_w = (across - (abreast - 1) * gap_x) / abreast / len(lengths)
    cell_h = min(2.0 * font, max(1.35 * font, 0.8 * cell_w))
    panel_h, gap_y = cell_h * len(depths), (3.4 if abreast > 1 else 2.2) * font
    # In one column the lengths stand below the last map only.
    tall = len(lines) * panel_h + (len(lines) - 1) * gap_y
    grids = [_grid(p, metric, lengths, depths) for p in panels]
    zmin, zmax = _span(grids, metric)
    slanted = 0.58 * font * len(str(lengths[-1])) + 3 > cell_w
    below = (0.58 * font * len(str(lengths[-1])) if slanted else 1.0 * font) + 2.6 * font
    fig = theme.figure(
        f"{metric_label(metric, unit=False).capitalize()} by length of the context and depth of the needle",
        _summary(panels, told), width=width, plot_height=tall, left=left, right=right,
        top=(2.8 if abreast > 1 else 1.6) * font,
        bottom=below + 4.4 * font, alt=_alt(panels, metric, len(modes)),
    )  # fmt: skip
    at = {id(p): i for i, p in enumerate(panels)}
    shown = 0
    for line, here in enumerate(lines):
        for column, panel in enumerate(here):
            if panel is None:
                continue
            shown += 1
            axis = "" if shown == 1 else str(shown)
            x0 = column * (cell_w * len(lengths) + gap_x) / across
            y1 = 1 - line * (panel_h + gap_y) / tall
            lowest = line == len(lines) - 1 or (abreast > 1 and _nothing_below(lines, line, column))
            begins = not any(here[:column])
            fig.update_layout({
                f"xaxis{axis}": {
                    "domain": [x0, min(1.0, x0 + cell_w * len(lengths) / across)], "anchor": f"y{axis}",
                    "tickvals": list(range(len(lengths))), "ticktext": [str(v) for v in lengths],
                    "range": [-0.5, len(lengths) - 0.5], "showline": False, "ticks": "",
                    "tickangle": -90 if slanted else 0, "showticklabels": lowest,
                    "title": {"text": "length (tokens)" if lowest else ""},
                },
                f"yaxis{axis}": {
                    "domain": [max(0.0, y1 - panel_h / tall), y1], "anchor": f"x{axis}",
                    "tickvals": list(range(len(depths))), "ticktext": [f"{v:.2g}" for v in depths],
                    "range": [len(depths) - 0.5, -0.5], "showline": False, "ticks": "", "showticklabels": begins,
                    "title": {"text": "depth" if begins else ""},
                },
            })  # fmt: skip
            z, hover = grids[at[id(panel)]]
            fits = 0.58 * font * (4 if metric != "accuracy" else 3) + 2 <= cell_w
            fig.add_heatmap(
                z=z, x=list(range(len(lengths))), y=list(range(len(depths))), customdata=hover, coloraxis="coloraxis",
                xaxis=f"x{axis}", yaxis=f"y{axis}", xgap=1, ygap=1, hoverongaps=False,
                text=_written(z, metric) if fits else None, texttemplate="%{text}" if fits else None,
                textfont={"size": 0.84 * font}, name=panel.name(len(modes)),
                hovertemplate="%{customdata}<extra></extra>",
            )  # fmt: skip
            _caption(fig, panel, metric, axis, len(modes), abreast == 1, font)
    # The scale stands below the map, its name above it: a bar of plotly's own writes the name across itself.
    fig.add_annotation(
        text=safe(metric_label(metric)), x=0.5, xref="paper", y=0, yref="paper", yanchor="top",
        yshift=-(below + 0.2 * font), font={"size": font},
    )  # fmt: skip
    fig.update_layout(
        coloraxis={
            "cmin": zmin, "cmax": zmax, "colorscale": theme.VIRIDIS,
            "colorbar": theme.colorbar(
                "", min(across, 24 * font), font, orientation="h", x=0.5, xanchor="center", nticks=6,
                y=-(below + 1.7 * font) / tall, yanchor="top",
            ),
        }
    )  # fmt: skip
    return fig


def _panels(told: pd.DataFrame) -> list[_Panel]:
    unknown = sorted(set(told["condition"]) - set(_ORDER))
    if unknown:
        raise UsageError(
            f"needle_map: condition {unknown[0]!r} is none of {', '.join(_ORDER)}; draw other rows apart"
        )
    if not (told["condition"] == "clean").any():
        raise UsageError("needle_map: no row has condition 'clean', so there is no uncut map to compare with")
    out = [_Panel("clean", "", told[told["condition"] == "clean"])]
    cut = told[told["condition"] != "clean"]
    for mode in dict.fromkeys(cut["mode"]):
        for condition in ("cut", "control"):
            rows = cut[(cut["mode"] == mode) & (cut["condition"] == condition)]
            if rows.empty:
                continue
            sizes = sorted({int(k) for k in rows["k"]})
            if len(sizes) > 1:
                raise UsageError(
                    f"needle_map: mode {mode!r} has cuts of {', '.join(map(str, sizes))} heads; filter to one"
                )
            out.append(_Panel(condition, mode, rows))
    if len(out) > MAX_PANELS:
        raise UsageError(f"needle_map: {len(out)} maps do not fit; filter the table to {MAX_PANELS}")
    return out


def _lines(panels: list[_Panel], modes: list[str], abreast: int) -> list[list[_Panel | None]]:
    """Maps in lines: all below each other, or a line for each mode with the uncut map in front of the first."""
    if abreast == 1:
        return [[p] for p in panels]
    if len(modes) < 2:
        return [[*panels]]
    out: list[list[_Panel | None]] = []
    for i, mode in enumerate(modes):
        out.append(
            [panels[0] if i == 0 else None, *(p for p in panels if p.mode == mode and p is not panels[0])]
        )
    return out


def _nothing_below(lines: list[list[_Panel | None]], line: int, column: int) -> bool:
    return all(column >= len(later) or later[column] is None for later in lines[line + 1 :])


def _grid(
    panel: _Panel, metric: str, lengths: list[int], depths: list[float]
) -> tuple[np.ndarray, np.ndarray]:
    """Means by depth and length, and what each cell says of itself."""
    z = np.full((len(depths), len(lengths)), np.nan)
    hover = np.full(z.shape, "", dtype=object)
    rows = panel.rows.assign(_d=panel.rows["depth_asked"].round(6), _l=panel.rows["length_asked"].astype(int))
    for (depth, length), cell in rows.groupby(["_d", "_l"], sort=False):
        at = depths.index(float(depth)), lengths.index(int(length))
        z[at] = float(cell[metric].mean())
        real = cell["depth"]
        draws = f", {count(panel.draws, 'draw')}" if panel.condition == "control" else ""
        per = len(cell) // max(1, panel.draws)
        hover[at] = "<br>".join([
            f"<b>{int(length)} tokens, depth {float(depth):.2g} asked</b>",
            f"{safe(metric_label(metric))} {number(z[at], 3)}",
            f"realised depth {number(float(real.mean()), 3)} ({number(float(real.min()), 3)} to "
            f"{number(float(real.max()), 3)})",
            f"n = {per}{draws}",
        ])  # fmt: skip
    return z, hover


def _span(grids: list[tuple[np.ndarray, np.ndarray]], metric: str) -> tuple[float, float]:
    if metric == "accuracy":
        return 0.0, 1.0
    every = np.concatenate([z.reshape(-1) for z, _ in grids])
    low, high = float(np.nanmin(every)), float(np.nanmax(every))
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _written(z: np.ndarray, metric: str) -> list[list[str]]:
    """Numbers for the cells: per cent for accuracies."""
    return [
        [
            "" if np.isnan(v) else number(100 * v, 0) if metric == "accuracy" else number(float(v), 1)
            for v in row
        ]
        for row in z
    ]


def _caption(
    fig: go.Figure, panel: _Panel, metric: str, axis: str, modes: int, alone: bool, font: float
) -> None:
    mean = number(float(panel.rows[metric].mean()))
    name, note = panel.name(modes), f"mean {mean}"
    if panel.condition == "control":
        note += f", {count(panel.draws, 'draw')}"
    # In one line below each other, in two side by side.
    lines = [(name, theme.INK, 600, 0.0)] if alone else [(name, theme.INK, 600, 1.35 * font)]
    lines.append((note, theme.MUTED, 400, 0.0))
    for text, color, weight, lift in lines:
        right = alone and text is note
        fig.add_annotation(
            text=safe(text), x=float(right), xref=f"x{axis} domain", xanchor="right" if right else "left",
            xshift=1 if right else -1, y=1, yref=f"y{axis} domain", yanchor="bottom", yshift=lift,
            font={"color": color, "weight": weight},
        )  # fmt: skip


def _means(panels: list[_Panel], metric: str, modes: int) -> list[str]:
    return [f"{p.name(modes)} {number(float(p.rows[metric].mean()))}" for p in panels]


def _summary(panels: list[_Panel], told: pd.DataFrame) -> str:
    clean = panels[0].rows
    off = (clean["depth"] - clean["depth_asked"]).abs().max()
    per = clean.groupby(["length_asked", "depth_asked"]).size()
    each = f"{per.min()}" if per.min() == per.max() else f"{per.min()} to {per.max()}"
    modes = list(dict.fromkeys(p.mode for p in panels if p.mode))
    how = f"{modes[0]} ablation" if len(modes) == 1 else ""
    return joined([
        how, f"{count(len(per), 'cell')} of {each} needles",
        f"largest distance from the depth asked for: {number(float(off), 3)}",
    ])  # fmt: skip


def _alt(panels: list[_Panel], metric: str, modes: int) -> str:
    return (
        f"Heat maps of {metric_label(metric)} by length and depth, one for each condition. "
        f"Means: {', '.join(_means(panels, metric, modes))}."
    )
