"""How far the heads of a model fit each other beyond chance: spectra of components, and maps of composition scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from interp.errors import UsageError
from interp.plot import theme
from interp.plot.channels import MODES
from interp.plot.check import integers, need
from interp.plot.sheet import Sheet
from interp.plot.text import joined, number, safe
from interp.plot.theme import Width

SPECTRUM = ("low", "high", "causal", "expected")
"""Columns of `ComponentScores.spectrum`; `anticausal` and `mode` may be there too."""

COMPOSITION = ("writer", "reader", "writer_layer", "reader_layer", "mode", "value")
"""Columns of `composition`; with anti-causal pairs the map has a lower half."""


def component_spectrum(spectrum: pd.DataFrame, *, width: Width = "double") -> go.Figure:
    """Share of pairs of components that meet at a cosine or above, beside both nulls, one panel a mode.

    Args:
        spectrum: of `ComponentScores.spectrum`: `low high causal expected`, `anticausal` and `mode` if there.
        width: `single`, `double`, `page` or pixels.

    Raises:
        UsageError: missing columns, no row, or no causal pair counted.
    """
    need(spectrum, SPECTRUM, "component_spectrum", numeric=SPECTRUM)
    rows = spectrum if "mode" in spectrum else spectrum.assign(mode="")
    if rows["causal"].sum() == 0:
        raise UsageError("component_spectrum: no causal pair was counted")
    modes = list(dict.fromkeys(rows["mode"].astype(str)))
    captions = [f"read as {MODES[m][0]} ({m})" if m in MODES else m for m in modes]
    tails = {mode: _tails(rows[rows["mode"].astype(str) == mode]) for mode in modes}
    floor = min(float(t["causal"][t["causal"] > 0].min()) for t in tails.values())
    most = max(
        float(t["low"][(t["causal"] > 0) | (t.get("anticausal", t["causal"]) > 0)].max())
        for t in tails.values()
    )
    sheet = Sheet.of(
        "How closely components of heads meet", _spectrum_note(tails), captions, width, alt=_spectrum_alt(tails),
        least=19,
    )  # fmt: skip
    ends = (0.0, min(1.0, most + 0.04))
    for i, mode in enumerate(modes):
        tail = tails[mode]
        for column, name, color, dash in (
            ("expected", "random directions (exact)", theme.MUTED, "dot"),
            ("anticausal", "anti-causal pairs (nothing can flow)", theme.CONTROL, "dash"),
            ("causal", "causal pairs", theme.BLUE, "solid"),
        ):
            if column not in tail:
                continue
            own = tail[tail[column] > floor / 30]
            sheet.fig.add_scatter(
                x=own["low"], y=own[column], mode="lines", name=name, legendgroup=column, showlegend=i == 0,
                line={"color": color, "dash": dash, "width": 2 if column == "causal" else 1.5},
                hovertemplate=f"<b>{name}</b><br>cosine %{{x:.3f}} or more: %{{y:.2e}} of all<extra></extra>",
                **sheet.at(i),
            )  # fmt: skip
        low = float(np.log10(floor)) - 0.4
        share = "share of pairs at or above" if i % sheet.columns == 0 else ""
        sheet.axes(i, "cosine of two components", share, ends, (low, 0.3))
        powers = range(0, int(np.floor(low)), -2)
        sheet.fig.update_layout({
            f"yaxis{sheet.axis(i)}": {
                "type": "log", "tickvals": [10.0**n for n in powers], "ticktext": [_power(n) for n in powers],
                "minor": {"ticks": ""},
            }
        })  # fmt: skip
    return sheet.done()


def _power(n: int) -> str:
    """A power of ten as a tick: 1, 0.1, 0.01, then with an exponent."""
    if n >= -2:
        return f"{10.0**n:g}"
    return "10" + str(n).translate(
        str.maketrans("-0123456789", "\u207b\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079")
    )


def _tails(rows: pd.DataFrame) -> pd.DataFrame:
    """Share of all pairs at or above the lower end of each bin."""
    rows = rows.sort_values("low")
    out = {"low": rows["low"].to_numpy(float)}
    for column in ("causal", "anticausal", "expected"):
        if column in rows and rows[column].sum() > 0:
            counts = rows[column].to_numpy(float)
            out[column] = counts[::-1].cumsum()[::-1] / counts.sum()
    return pd.DataFrame(out)


def _at_one(tail: pd.DataFrame, column: str, rate: float) -> float:
    """The cosine that a share `rate` of the pairs reaches."""
    return float(tail["low"][tail[column] >= rate].max())


_RATE = 1e-5


def _spectrum_note(tails: Mapping[str, pd.DataFrame]) -> str:
    parts = []
    for mode, tail in tails.items():
        columns: Sequence[str] = [c for c in ("causal", "anticausal", "expected") if c in tail]
        told = " / ".join(number(_at_one(tail, c, _RATE)) for c in columns)
        parts.append(joined([mode, told], " "))
    return f"cosine of the best pair in 100,000, causal / anti-causal / random: {joined(parts)}"


def _spectrum_alt(tails: Mapping[str, pd.DataFrame]) -> str:
    return f"Line charts of the share of pairs at or above each cosine on a logarithmic axis. {_spectrum_note(tails)}."


def composition_map(scores: pd.DataFrame, column: str = "value", *, width: Width = "double") -> go.Figure:
    """Layer x layer: the highest score of any two heads of two layers, one panel a mode.

    Above the line the reader stands behind the writer. Below it nothing can flow, so that what is there is what the
    same weights score by chance.

    Args:
        scores: of `composition` or the projection kernels of `ComponentScores`.
        column: what is drawn: `value`, `z`, `alignment`, or `corrected` of `without_hubs`.
        width: `single`, `double`, `page` or pixels.

    Raises:
        UsageError: missing columns, or no row.
    """
    need(scores, (*COMPOSITION, column), "composition_map", numeric=("writer_layer", "reader_layer", column))
    integers(scores, ("writer_layer", "reader_layer"), "composition_map")
    modes = list(dict.fromkeys(scores["mode"].astype(str)))
    layers = int(scores[["writer_layer", "reader_layer"]].max().max()) + 1
    captions = [f"read as {MODES[m][0]} ({m})" if m in MODES else m for m in modes]
    font = theme.font_px(width)
    # Square panels: as high as they come out wide.
    columns = max(1, min(len(captions), int(theme.pixels(width) / (19 * font))))
    tall = ((theme.pixels(width) - 5.8 * font) - (columns - 1) * 5.2 * font) / columns / font
    causal = scores[scores["reader_layer"] > scores["writer_layer"]]
    low, high = np.nanquantile(causal[column], [0.5, 1.0]) if len(causal) else (0.0, 1.0)
    sheet = Sheet.of(
        "Where heads compose", _composition_note(scores, column), captions, width,
        alt=_composition_alt(scores, column), least=19, tall=min(tall, 26.0),
    )  # fmt: skip
    for i, mode in enumerate(modes):
        own = scores[scores["mode"].astype(str) == mode]
        best = own.loc[own.groupby(["writer_layer", "reader_layer"])[column].idxmax().dropna()]
        z = np.full((layers, layers), np.nan)
        hover = np.full((layers, layers), "", dtype=object)
        for r in best.itertuples():
            at = int(r.reader_layer), int(r.writer_layer)
            z[at] = getattr(r, column)
            hover[at] = (
                f"<b>{safe(r.writer)} \u2192 {safe(r.reader)}</b> ({mode})<br>{safe(column)} {number(z[at], 3)}, the "
                f"highest from layer {at[1]} to layer {at[0]}{'' if at[0] > at[1] else '<br>nothing can flow this way'}"
            )
        sheet.fig.add_heatmap(
            z=z, x=list(range(layers)), y=list(range(layers)), coloraxis="coloraxis", customdata=hover,
            hovertemplate="%{customdata}<extra></extra>", hoverongaps=False, name=mode, showlegend=False, **sheet.at(i),
        )  # fmt: skip
        sheet.fig.add_scatter(
            x=[k + d for k in range(layers) for d in (-0.5, 0.5)], y=[k + 0.5 for k in range(layers) for _ in (0, 1)],
            mode="lines", line={"color": theme.VERMILLION, "width": 1.2}, hoverinfo="skip", showlegend=False,
            name="causal from here on", **sheet.at(i),
        )  # fmt: skip
        side = (-0.5, layers - 0.5)
        sheet.axes(
            i, "layer of the writer", "layer of the reader" if i % sheet.columns == 0 else "", side, side
        )
        sheet.fig.update_layout({
            f"xaxis{sheet.axis(i)}": {"showline": False, "nticks": 7},
            f"yaxis{sheet.axis(i)}": {"showgrid": False, "showline": False},
        })  # fmt: skip
    bar = {
        "orientation": "h", "x": 0.5, "xref": "container", "xanchor": "center", "y": 0, "yref": "container",
        "yanchor": "bottom", "thickness": 9, "lenmode": "pixels", "len": 20 * font, "outlinewidth": 0, "nticks": 6,
    }  # fmt: skip
    sheet.fig.update_layout(
        coloraxis={"colorscale": theme.VIRIDIS, "cmin": low, "cmax": high, "colorbar": bar}
    )
    return sheet.done()


def _composition_note(scores: pd.DataFrame, column: str) -> str:
    causal = scores[scores["reader_layer"] > scores["writer_layer"]]
    parts = [
        f"colour: {column} of the highest two heads",
        "above the line the reader stands behind the writer, below it nothing can flow",
    ]
    if len(causal):
        best = causal.loc[causal[column].idxmax()]
        parts.insert(
            0, f"highest: {best['writer']} to {best['reader']} ({best['mode']}) {number(best[column])}"
        )
    return joined(parts)


def _composition_alt(scores: pd.DataFrame, column: str) -> str:
    return (
        f"Maps of the highest {column} of two heads by the layers of writer and reader. "
        f"{_composition_note(scores, column)}."
    )
