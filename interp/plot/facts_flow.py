"""The flow of information to the answer of a fact: attention knockout, extraction rates, attributes of the subject."""

from __future__ import annotations

from typing import Any

import pandas as pd
import plotly.graph_objects as go

from interp.plot import theme
from interp.plot.by_layer import SCENARIOS, by_layer, ends_of, inks, peaks
from interp.plot.check import integers, need
from interp.plot.text import count, joined, percent, signed
from interp.plot.theme import Width

CUTS = ("source", "layer", "relative", "lo", "hi", "n")
"""What each row of knockout curves says: tokens that are hidden, middle of the window, change with its ends."""

RATES = ("kind", "layer", "rate", "lo", "hi", "n")
"""Columns of `interp.locate.facts.lens.extraction`; rows of layer -1 count any layer."""

SOURCES = {
    "subject": "the subject", "first": "the first token", "other": "all other tokens", "last": "the last token itself",
}  # fmt: skip
_SOURCE_COLORS = {"subject": theme.GREEN, "first": theme.ORANGE, "other": theme.PURPLE, "last": theme.CONTROL}
_SUBLAYERS = {"attn_out": "attention", "mlp_out": "MLP"}


def knockout_curves(
    averages: pd.DataFrame,
    panel: str | None = "scenario",
    *,
    width: Width = "double",
) -> go.Figure:
    """What the answer loses when the last token cannot look at a group of tokens, by the middle of the cut window.

    Args:
        averages: `source layer relative lo hi n` (in per cent of the intact probability), the column of the panels,
            and `window` where it is to be told.
        panel: column with a value a panel; None is one panel.
        width: `single`, `double`, `page` or pixels.

    Raises:
        UsageError: missing columns, no row, or two rows for one point.
    """
    more = [panel] if panel else []
    need(averages, (*CUTS, *more), "knockout_curves", numeric=("layer", *CUTS[2:]))
    integers(averages, ("layer",), "knockout_curves")
    names = list(dict.fromkeys(averages["source"].astype(str)))
    styles = inks([SOURCES.get(n, n) for n in names], {SOURCES[k]: v for k, v in _SOURCE_COLORS.items()})
    rows = averages.assign(
        panel=averages[panel].astype(str) if panel else "", line=[SOURCES.get(s, s) for s in averages["source"]],
        value=averages["relative"],
        hover=[
            joined([f"{signed(r.relative, 1)}%", ends_of(r.lo, r.hi, 1, "%"), f"n = {int(r.n)}"], "<br>")
            for r in averages.itertuples()
        ],
    )  # fmt: skip
    most = {p: int(own["n"].max()) for p, own in rows.groupby("panel", sort=False)}
    windows = sorted({int(w) for w in averages["window"]}) if "window" in averages else []
    layers = f"in {windows[0]} layers around each" if len(windows) == 1 else "around each layer"
    note = joined([
        f"attention cut {layers}; lines: what the last token cannot look at", "bands: 95% intervals",
        "prompts: " + ", ".join(f"{p + ' ' if p else ''}{n}" for p, n in most.items()),
    ])  # fmt: skip
    return by_layer(
        rows, styles, title="What the answer loses when the last token cannot look at some tokens", note=note,
        y="change of probability (%)",
        alt="Line charts of the change when attention is knocked out. " + peaks(rows), width=width,
        least=22 if rows["panel"].nunique() > 2 else 24,
    )  # fmt: skip


def extraction_rates(
    rates: pd.DataFrame, line: str | None = "scenario", *, width: Width = "double"
) -> go.Figure:
    """How often attention or the MLP alone names, at the last token, what the model then says: a panel a sublayer.

    Args:
        rates: `kind layer rate lo hi n`, and the column of the lines; shares in any layer (layer -1) are told in the
            note.
        line: column with a value a line; None is one line.
        width: `single`, `double`, `page` or pixels.

    Raises:
        UsageError: missing columns, no row, or two rows for one point.
    """
    need(rates, (*RATES, *([line] if line else [])), "extraction_rates", numeric=("layer", *RATES[2:]))
    integers(rates, ("layer",), "extraction_rates")
    told = rates.assign(
        line=rates[line].astype(str) if line else "prompts", value=rates["rate"],
        panel=[_SUBLAYERS.get(k, k) for k in rates["kind"]],
        hover=[_rate(r) for r in rates.itertuples()],
    )  # fmt: skip
    found = list(dict.fromkeys(told["line"]))
    order = [n for n in SCENARIOS if n in found] + [n for n in found if n not in SCENARIOS]
    whole = told[told["layer"] < 0]
    parts = []
    for kind, own in whole.groupby("panel", sort=False):
        by = own.set_index("line")["value"]
        parts.append(f"{kind} {', '.join(f'{percent(by[n], digits=0)}' for n in order if n in by)}")
    anywhere = f"in any layer ({', '.join(order)}): {'; '.join(parts)}" if len(order) > 1 else ""
    if not anywhere and parts:
        anywhere = f"in any layer: {'; '.join(parts)}"
    rows = told[told["layer"] >= 0]
    return by_layer(
        rows, inks(order, SCENARIOS), title="Which layer names the answer at the last token",
        note=joined(["share of prompts whose first predicted token the sublayer alone names", anywhere]),
        y="extraction rate", alt="Line charts of the extraction rate. " + peaks(rows), width=width, level=None,
        y_format=".0%", floor=0.0,
    )  # fmt: skip


def _rate(r: Any) -> str:
    return f"{percent(r.rate)} of {count(int(r.n), 'prompt')}<br>{ends_of(100 * r.lo, 100 * r.hi, 1, '%')}"
