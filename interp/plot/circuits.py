"""A circuit by its heads and edges: path-patching effects with classes, and what the weights say of its edges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from interp.errors import UsageError
from interp.plot import theme
from interp.plot.channels import CLASSES
from interp.plot.check import integers, need
from interp.plot.sheet import Sheet
from interp.plot.text import count, joined, number, percent, safe, signed
from interp.plot.theme import Width

HEADS = ("sender", "layer", "head", "receivers", "effect")
"""What path patching tells of one sender and set of receivers; `ci_lo` and `ci_hi` are drawn where they are there."""

EDGES = ("writer", "reader", "mode", "score", "effect")
"""An edge with its score by the weights and its effect by path patching."""

_SHOWN = 24


def circuit_heads(
    effects: pd.DataFrame, classes: Mapping[str, str] | None = None, *, width: Width = "double"
) -> go.Figure:
    """Layer x head maps of path-patching effects, one for each set of receivers, and the heads of each class in order.

    Args:
        effects: `sender layer head receivers effect` (fraction of the gap between clean and corrupt), with `ci_lo` and
            `ci_hi`; rows of MLPs, without a head, are left out.
        classes: class of each head of the circuit, in the order of the classes. A head is ranked by its effect on the
            receivers that it moves most.
        width: `single`, `double`, `page` or pixels.

    Raises:
        UsageError: missing columns, no head, a head twice for one set of receivers, or more than 8 classes.
    """
    need(effects, HEADS, "circuit_heads", numeric=("layer", "effect"))
    rows = effects[effects["head"].notna()]
    rows = rows[rows["head"].astype(float) >= 0]
    if rows.empty:
        raise UsageError("circuit_heads: no row is of a head")
    integers(rows, ("layer", "head"), "circuit_heads")
    twice = rows[rows.duplicated(["sender", "receivers"])]
    if len(twice):
        raise UsageError(
            f"circuit_heads: {twice['sender'].iloc[0]} occurs twice for receivers {twice['receivers'].iloc[0]!r}; "
            "filter the table to one task and run"
        )
    marks = _marks(classes or {}, "circuit_heads")
    receivers = list(dict.fromkeys(rows["receivers"].astype(str)))
    best = _by_class(rows, classes or {})
    captions = [f"to {name}" for name in receivers] + (["heads by class"] if len(best) else [])
    layers, heads = int(rows["layer"].max()) + 1, int(rows["head"].max()) + 1
    sheet = Sheet.of(
        "Which heads move the answer, and through whom", _note(rows, receivers), captions, width,
        alt=_alt(rows, receivers, best), tall=max(10.0, min(18.0, 1.35 * heads)), least=26,
    )  # fmt: skip
    reach = float(rows["effect"].abs().max()) or 1.0
    for i, receiver in enumerate(receivers):
        own = rows[rows["receivers"].astype(str) == receiver]
        z = np.full((heads, layers), np.nan)
        hover = np.full((heads, layers), "", dtype=object)
        at = (own["head"].to_numpy(int), own["layer"].to_numpy(int))
        z[at] = own["effect"].to_numpy(float)
        hover[at] = [_hover(r, (classes or {}).get(str(r.sender), "")) for r in own.itertuples()]
        sheet.fig.add_heatmap(
            z=z, x=list(range(layers)), y=list(range(heads)), coloraxis="coloraxis", customdata=hover,
            hovertemplate="%{customdata}<extra></extra>", hoverongaps=False, name=receiver, showlegend=False,
            **sheet.at(i),
        )  # fmt: skip
        for kind, (color, symbol) in marks.items():
            mine = own[own["sender"].map(classes or {}) == kind]
            sheet.fig.add_scatter(
                x=mine["layer"], y=mine["head"], mode="markers", name=safe(kind), legendgroup=kind, hoverinfo="skip",
                showlegend=i == 0,
                marker={
                    "symbol": symbol, "size": 0.55 * sheet.font, "color": color,
                    "line": {"color": theme.ON_LIGHT, "width": 1},
                },
                **sheet.at(i),
            )  # fmt: skip
        sheet.axes(
            i, "layer", "head" if i % sheet.columns == 0 else "", (-0.5, layers - 0.5), (-0.5, heads - 0.5)
        )
        sheet.fig.update_layout({
            f"xaxis{sheet.axis(i)}": {"showline": False, "nticks": 8},
            f"yaxis{sheet.axis(i)}": {"showgrid": False, "showline": False},
        })  # fmt: skip
    if len(best):
        _ranking(sheet, len(receivers), best, marks)
    scale = {"colorscale": theme.RDBU, "cmin": -reach, "cmax": reach, "showscale": False}
    sheet.fig.update_layout(coloraxis=scale)
    return sheet.done()


def _marks(classes: Mapping[str, str], what: str) -> dict[str, tuple[str, str]]:
    kinds = list(dict.fromkeys(classes.values()))
    if len(kinds) > len(CLASSES):
        raise UsageError(f"{what}: {len(kinds)} classes; at most {len(CLASSES)} can be told apart, join some")
    return {kind: CLASSES[i] for i, kind in enumerate(kinds)}


def _by_class(rows: pd.DataFrame, classes: Mapping[str, str]) -> pd.DataFrame:
    """The largest effect of each classed head, class by class."""
    own = rows[rows["sender"].isin(list(classes))]
    if own.empty:
        return own
    own = own.loc[own["effect"].abs().groupby(own["sender"]).idxmax()]
    order = list(dict.fromkeys(classes.values()))
    own = own.assign(kind=own["sender"].map(classes))
    own = own.assign(place=own["kind"].map(order.index), size=own["effect"].abs())
    return own.sort_values(["place", "size"], ascending=[True, False]).head(_SHOWN)


def _ranking(sheet: Sheet, panel: int, best: pd.DataFrame, marks: Mapping[str, tuple[str, str]]) -> None:
    for x, row in enumerate(best.itertuples()):
        color, symbol = marks[row.kind]
        ends = (
            {
                "array": [row.ci_hi - row.effect],
                "arrayminus": [row.effect - row.ci_lo],
                "thickness": 1.1,
                "width": 0,
            }
            if {"ci_lo", "ci_hi"} <= set(best.columns)
            else None
        )
        sheet.fig.add_scatter(
            x=[x], y=[row.effect], mode="markers", showlegend=False, name=safe(row.sender),
            error_y=ends and ends | {"color": theme.MUTED},
            marker={
                "symbol": symbol, "size": 0.7 * sheet.font, "color": color,
                "line": {"color": theme.ON_LIGHT, "width": 1},
            },
            customdata=[_hover(row, row.kind)], hovertemplate="%{customdata}<extra></extra>", **sheet.at(panel),
        )  # fmt: skip
    seen = [*best["effect"], *best.get("ci_lo", ()), *best.get("ci_hi", ())]
    low, high = min(0.0, *seen), max(0.0, *seen)
    pad = 0.08 * (high - low or 1.0)
    sheet.axes(panel, "", "largest effect", (-0.7, len(best) - 0.3), (low - pad, high + pad))
    sheet.fig.update_layout({f"yaxis{sheet.axis(panel)}": {"tickformat": "+.0%", "zeroline": True}})
    sheet.names(panel, [safe(name) for name in best["sender"]])


def _hover(row: Any, kind: str) -> str:
    lines = [
        f"<b>{safe(row.sender)}</b> to {safe(row.receivers)}",
        f"effect {percent(float(row.effect))} of the gap",
    ]
    if hasattr(row, "ci_lo") and np.isfinite(row.ci_lo):
        lines.append(f"95% interval {percent(float(row.ci_lo))} to {percent(float(row.ci_hi))}")
    return "<br>".join([*lines, *([safe(kind)] if kind else [])])


def _note(rows: pd.DataFrame, receivers: Sequence[str]) -> str:
    first = rows[rows["receivers"].astype(str) == receivers[0]]
    top = first.loc[first["effect"].abs().nlargest(3).index]
    told = ", ".join(f"{r.sender} {percent(float(r.effect), digits=0)}" for r in top.itertuples())
    return joined([
        "blue: patching the path moves the answer this far to the corrupt one, red: away from it; darkest: "
        + percent(float(rows["effect"].abs().max()), digits=0),
        f"largest to {receivers[0]}: {told}",
    ])  # fmt: skip


def _alt(rows: pd.DataFrame, receivers: Sequence[str], best: pd.DataFrame) -> str:
    parts = []
    for receiver in receivers:
        own = rows[rows["receivers"].astype(str) == receiver]
        top = own.loc[own["effect"].abs().nlargest(5).index]
        parts.append(
            f"To {receiver}: {', '.join(f'{r.sender} {signed(float(r.effect))}' for r in top.itertuples())}."
        )
    for kind, own in best.groupby("kind", sort=False) if len(best) else ():
        parts.append(f"{kind}: {', '.join(own['sender'])}.")
    return "Maps of path-patching effects by layer and head. " + " ".join(parts)


def edge_matrix(edges: pd.DataFrame, *, threshold: float | None = None, width: Width = "double") -> go.Figure:
    """Do the weights find the edges of a circuit? Writer x reader, and the ROC curve of each mode.

    On the left the colour is the effect by path patching, a dot the score by the weights (larger: higher rank in its
    mode). On the right the share of the circuit's edges that the first edges by score hold, against that of the others.

    Args:
        edges: `writer reader mode score effect`: score by the weights and effect by path patching; `in_circuit` says
            which edges are of the circuit, else `threshold` does. `p` (one value a mode) is told if there.
        threshold: absolute effect from which an edge is of the circuit; None takes half of the largest of each mode.
        width: `single`, `double`, `page` or pixels.

    Raises:
        UsageError: missing columns, no row, an edge twice in a mode, or no mode with edges in and out of the circuit.
    """
    need(edges, EDGES, "edge_matrix", numeric=("score", "effect"))
    twice = edges[edges.duplicated(["writer", "reader", "mode"])]
    if len(twice):
        raise UsageError(
            f"edge_matrix: {twice['writer'].iloc[0]} to {twice['reader'].iloc[0]} occurs twice in a mode"
        )
    rows = edges.assign(mode=edges["mode"].astype(str), inside=_inside(edges, threshold))
    rows["rank"] = rows.groupby("mode")["score"].rank(pct=True)
    curves = {m: _roc(own) for m, own in rows.groupby("mode", sort=False) if own["inside"].nunique() == 2}
    if not curves:
        raise UsageError(
            "edge_matrix: no mode has edges in the circuit and others; lower threshold, or give in_circuit"
        )
    strong = rows[rows["writer"].isin(_first(rows, "writer")) & rows["reader"].isin(_first(rows, "reader"))]
    # An edge with several modes stands in one cell by its largest effect.
    strong = strong.loc[strong["effect"].abs().groupby([strong["writer"], strong["reader"]]).idxmax()]
    writers, readers = (sorted(set(strong[c]), key=_order) for c in ("writer", "reader"))
    sheet = Sheet.of(
        "Do the weights find the circuit's edges?", _edge_note(rows, curves), ["writers and readers", "found by score"],
        width, alt=_edge_alt(rows, curves), tall=max(16.0, 1.15 * len(writers)), least=26,
    )  # fmt: skip
    reach = float(rows["effect"].abs().max()) or 1.0
    z = np.full((len(writers), len(readers)), np.nan)
    for r in strong.itertuples():
        z[writers.index(r.writer), readers.index(r.reader)] = r.effect
    font = sheet.font
    sheet.fig.add_heatmap(
        z=z, x=list(range(len(readers))), y=list(range(len(writers))), colorscale=theme.RDBU, zmin=-reach, zmax=reach,
        zmid=0, hoverinfo="skip", showscale=False, name="effect", showlegend=False, xgap=1, ygap=1, **sheet.at(0),
    )  # fmt: skip
    sheet.fig.add_scatter(
        x=[readers.index(r) for r in strong["reader"]], y=[writers.index(w) for w in strong["writer"]], mode="markers",
        marker={
            "size": (0.15 + 0.55 * strong["rank"].to_numpy() ** 3) * font, "opacity": 1, "color": theme.ORANGE,
            "line": {"width": [1.6 if i else 0.4 for i in strong["inside"]], "color": theme.ON_LIGHT},
        },
        customdata=[
            f"<b>{safe(r.writer)} \u2192 {safe(r.reader)}</b> ({safe(r.mode)})<br>effect {signed(r.effect, 3)}<br>"
            f"score {number(r.score, 3)}, higher than {percent(r.rank, digits=0)} of its mode"
            f"{'<br>in the circuit' if r.inside else ''}"
            for r in strong.itertuples()
        ],
        hovertemplate="%{customdata}<extra></extra>", showlegend=True, name="score by the weights", **sheet.at(0),
    )  # fmt: skip
    sheet.axes(0, "", "writer", (-0.5, len(readers) - 0.5), (len(writers) - 0.5, -0.5))
    sheet.names(0, [safe(name) for name in readers])
    step = max(1, -(-len(writers) * 115 // 100 // int(max(16.0, 1.15 * len(writers)))))
    sheet.fig.update_layout(
        yaxis={
            "tickvals": list(range(0, len(writers), step)), "ticktext": [safe(w) for w in writers[::step]],
            "showgrid": False, "title": {"text": ""},
        }
    )  # fmt: skip
    sheet.level(1, 0.0, "chance", (0.0, 0.0))
    sheet.fig.data[-1].update(x=[0, 1], y=[0, 1])
    dashes = {"Q": "solid", "K": "dash", "V": "dashdot"}
    colors = dict(zip(("Q", "K", "V"), (theme.BLUE, theme.VERMILLION, theme.GREEN), strict=True))
    for mode, (x, y, area) in curves.items():
        sheet.fig.add_scatter(
            x=x, y=y, mode="lines", name=f"{safe(mode)}: AUROC {number(area)}", showlegend=True,
            line={"color": colors.get(mode, theme.PURPLE), "dash": dashes.get(mode, "dot"), "width": 1.8},
            hovertemplate=f"{safe(mode)}: %{{y:.0%}} of the circuit's edges among the first %{{x:.0%}} of others"
            "<extra></extra>", **sheet.at(1),
        )  # fmt: skip
    sheet.axes(1, "share of other edges", "share of the circuit's edges", (-0.02, 1.02), (-0.02, 1.02))
    return sheet.done()


def _inside(edges: pd.DataFrame, threshold: float | None) -> pd.Series:
    if "in_circuit" in edges and threshold is None:
        return edges["in_circuit"].astype(bool)
    size = edges["effect"].abs()
    least = (
        edges.groupby("mode")["effect"].transform(lambda e: e.abs().max() / 2)
        if threshold is None
        else threshold
    )
    return (size >= least) & (size > 0)


def _first(rows: pd.DataFrame, column: str, most: int = 18) -> list[str]:
    """The writers or readers with the largest effects."""
    size = rows["effect"].abs().groupby(rows[column]).max().sort_values(ascending=False, kind="stable")
    return size.index[:most].tolist()


def _order(name: str) -> tuple[int, str]:
    digits = "".join(ch if ch.isdigit() else " " for ch in str(name)).split()
    return (int(digits[0]) if digits else (-1 if str(name) == "embed" else 10**6)), str(name)


def _roc(own: pd.DataFrame) -> tuple[list[float], list[float], float]:
    """The ROC curve of the scores of a mode and the area under it; ties count half."""
    told = own.groupby("score")["inside"].agg(["sum", "size"]).sort_index(ascending=False)
    hits = told["sum"].cumsum() / told["sum"].sum()
    rest = (told["size"] - told["sum"]).cumsum() / (told["size"] - told["sum"]).sum()
    x, y = [0.0, *rest], [0.0, *hits]
    return x, y, float(np.trapezoid(y, x))


def _edge_note(rows: pd.DataFrame, curves: Mapping[str, tuple[list[float], list[float], float]]) -> str:
    p = rows.groupby("mode")["p"].first() if "p" in rows else {}
    told = [
        f"{m}: {count(int(own['inside'].sum()), 'edge')} of {len(own):,}, AUROC {number(curves[m][2])}"
        + (f" (p = {number(float(p[m]), 3)})" if m in p and np.isfinite(p[m]) else "")
        for m, own in rows.groupby("mode", sort=False)
        if m in curves
    ]
    return joined([*told, "colour: effect; dot: rank by the weights, framed if in the circuit"])


def _edge_alt(rows: pd.DataFrame, curves: Mapping[str, tuple[list[float], list[float], float]]) -> str:
    return f"Matrix of path-patching effects with scores by the weights, and ROC curves. {_edge_note(rows, curves)}."
