"""Who talks to whom through which channel: the graph of the strongest, over the layers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from interp.errors import UsageError
from interp.plot import theme
from interp.plot.check import integers, need
from interp.plot.sheet import Sheet
from interp.plot.text import count, joined, listed, number, safe
from interp.plot.theme import Width

EDGES = ("writer", "reader", "writer_layer", "reader_layer", "mode", "value")
"""What a table of channels has at least; `component`, `q` and `q_null` are told where they are there."""

MODES = {"Q": ("query", theme.BLUE), "K": ("key", theme.VERMILLION), "V": ("value", theme.GREEN)}
"""What is read through, and the colour of its edges."""

CLASSES = (
    (theme.ORANGE, "square"), (theme.PURPLE, "diamond"), (theme.SKY, "triangle-up"), (theme.INK, "star"),
    (theme.YELLOW, "pentagon"), (theme.BLUE, "hexagon"), (theme.VERMILLION, "triangle-down"), (theme.GREEN, "cross"),
)  # fmt: skip
"""Colour and symbol of each class of heads, in order of appearance: told apart by either."""

_NODE = re.compile(r"^L(?P<layer>\d+)(?P<kind>H|KV|N)(?P<unit>\d+)$|^M(?P<mlp>\d+)$|^(?P<end>\w+)$")
_WIDTHS = (0.6, 1.1, 1.8, 2.8)
"""Widths of edges, from the weakest to the strongest quarter of the range."""


@dataclass(frozen=True)
class _Nodes:
    """Where a node stands: its layer, and a line of heads; MLPs stand above them."""

    layers: int
    heads: int
    share: int

    @classmethod
    def of(
        cls, frame: pd.DataFrame, layers: int | None, heads: int | None, kv_heads: int | None, what: str
    ) -> _Nodes:
        names = pd.unique(frame[["writer", "reader"]].to_numpy().ravel())
        seen: dict[str, int] = {"H": 0, "KV": 0}
        for name in names:
            match = _NODE.match(str(name))
            if match is None:
                raise UsageError(f"{what}: node {name!r} is no component; write L5H3, L5KV1, M7 or embed")
            if match["kind"] in seen:
                seen[match["kind"]] = max(seen[match["kind"]], int(match["unit"]) + 1)
        own = max(1, heads or seen["H"])
        groups = kv_heads or seen["KV"] or own
        deep = int(frame["reader_layer"].max()) + 1
        return cls(max(layers or 0, deep), max(own, groups), max(1, round(own / groups)))

    def place(self, name: str, layer: float) -> tuple[float, float]:
        match = _NODE.match(name)
        assert match is not None
        if match["kind"] == "H":
            return layer, float(match["unit"])
        if match["kind"] == "KV":
            return layer, self.share * (int(match["unit"]) + 0.5) - 0.5
        return layer, float(self.heads)


def channel_graph(
    edges: pd.DataFrame,
    classes: Mapping[str, str] | None = None,
    *,
    top: int = 20,
    by: str = "value",
    layers: int | None = None,
    heads: int | None = None,
    kv_heads: int | None = None,
    width: Width = "double",
) -> go.Figure:
    """Graph of the strongest channels: writers to readers over the layers, coloured by what is read through.

    Args:
        edges: `writer reader writer_layer reader_layer mode value`, as `ComponentScores.readers`; of several components
            of one writer that a reader reads, the strongest counts, and how many there are is told.
        classes: class of a head by its name, such as `{"L17H3": "retrieval"}`; marked by colour and symbol.
        top: edges of each mode, the strongest.
        by: column of the strength: `value`, or `apart`, which leaves out what hubs score with all.
        layers: of the model; likewise `heads` and `kv_heads`. None takes what the table shows.
        width: `single`, `double`, `page` or pixels.

    Raises:
        UsageError: missing columns, no row, a name that is no component, more than 8 classes, or `top` below 1.
    """
    need(edges, (*EDGES, by), "channel_graph", numeric=("writer_layer", "reader_layer", by))
    integers(edges, ("writer_layer", "reader_layer"), "channel_graph")
    if top < 1:
        raise UsageError(f"channel_graph: top is {top}; show at least one edge")
    marks = {
        name: CLASSES[i % len(CLASSES)] for i, name in enumerate(dict.fromkeys((classes or {}).values()))
    }
    if len(marks) > len(CLASSES):
        raise UsageError(
            f"channel_graph: {len(marks)} classes; at most {len(CLASSES)} can be told apart, join some"
        )
    edges = edges.assign(strength=edges[by])
    nodes = _Nodes.of(edges, layers, heads, kv_heads, "channel_graph")
    shown = _strongest(edges, top)
    lines = nodes.heads + int(shown["writer"].str.match(r"^(?!L\d+(H|KV)\d+$)").any())
    sheet = Sheet.of(
        "Which heads talk to which, by their weights", _told(edges, shown), [""], width, alt=_alt(shown),
        tall=max(12.0, min(34.0, 2.6 * lines)),
    )  # fmt: skip
    fig, font = sheet.fig, sheet.font
    _grid(fig, nodes, font)
    for mode in [m for m in MODES if m in set(shown["mode"])]:
        _edges(fig, shown[shown["mode"] == mode], mode, nodes)
    _groups(fig, shown, nodes)
    _nodes(fig, shown, nodes, classes or {}, marks, font)
    ticks = {"showline": False, "showgrid": False}
    step = next(s for s in (1, 2, 5, 10, 20, 50) if s * sheet.room / nodes.layers >= 2.0 * font)
    fig.update_xaxes(
        title_text="layer: what is written on the left is read on the right", dtick=step, tick0=0, ticks="",
        range=[-0.8, nodes.layers - 0.2], **ticks,
    )  # fmt: skip
    skip = next(s for s in (1, 2, 4, 8, 16, 32, 64) if s * 2.6 * font * 12 / max(12, lines) >= 1.2 * font)
    at = list(range(0, nodes.heads, skip))
    more = lines > nodes.heads
    fig.update_yaxes(
        title_text="query head", tickvals=[*at, *([nodes.heads] if more else [])],
        ticktext=[*map(str, at), *(["MLP"] if more else [])], range=[-0.7, lines - 0.3], ticks="", **ticks,
    )  # fmt: skip
    return sheet.done()


def _strongest(edges: pd.DataFrame, top: int) -> pd.DataFrame:
    """One row a writer, reader and mode: its strongest component, and how many components of it are in the table."""
    by = ["writer", "reader", "mode"]
    best = edges.sort_values("strength", ascending=False, kind="stable").drop_duplicates(by)
    many = edges.groupby(by).size().rename("components")
    best = best.drop(columns="components", errors="ignore").merge(many, left_on=by, right_index=True)
    return best.groupby("mode", sort=False).head(top)


def _grid(fig: go.Figure, nodes: _Nodes, font: float) -> None:
    """A faint dot for every head, so that the empty places show."""
    x, y = np.meshgrid(np.arange(nodes.layers), np.arange(nodes.heads))
    fig.add_scatter(
        x=x.ravel(), y=y.ravel(), mode="markers", hoverinfo="skip", showlegend=False, name="heads",
        marker={"size": 0.24 * font, "color": theme.RULE},
    )  # fmt: skip


def _edges(fig: go.Figure, rows: pd.DataFrame, mode: str, nodes: _Nodes) -> None:
    """Bent lines, the wider the stronger among those of the mode, and in their middles points that tell of them."""
    name, color = MODES[mode]
    low, high = float(rows["strength"].min()), float(rows["strength"].max())
    middles: list[tuple[float, float, str]] = []
    bins: list[list[list[float | None]]] = [[[], []] for _ in _WIDTHS]
    for row in rows.itertuples():
        a = nodes.place(str(row.writer), float(row.writer_layer))
        b = nodes.place(str(row.reader), float(row.reader_layer))
        x, y = _bent(a, b)
        at = 0 if high == low else int((float(row.strength) - low) / (high - low) * len(_WIDTHS))
        part = bins[min(at, len(_WIDTHS) - 1)]
        part[0] += [*x, None]
        part[1] += [*y, None]
        middles.append((x[len(x) // 2], y[len(y) // 2], _hover(row, name)))
    legend = True
    for line, (xs, ys) in reversed(list(zip(_WIDTHS, bins, strict=True))):
        if xs:
            fig.add_scatter(
                x=xs, y=ys, mode="lines", line={"color": color, "width": line}, opacity=0.75, hoverinfo="skip",
                name=f"read as {name}", legendgroup=mode, showlegend=legend,
            )  # fmt: skip
            legend = False
    fig.add_scatter(
        x=[m[0] for m in middles], y=[m[1] for m in middles], customdata=[m[2] for m in middles], mode="markers",
        marker={"size": 9, "color": color, "opacity": 0}, showlegend=False, legendgroup=mode, name=f"{mode} edges",
        hovertemplate="%{customdata}<extra></extra>",
    )  # fmt: skip


def _bent(
    a: tuple[float, float], b: tuple[float, float], points: int = 17
) -> tuple[list[float], list[float]]:
    """A line from one place to another, bent upwards so that it passes the heads between them."""
    t = np.linspace(0, 1, points)
    bend = 0.18 * np.sqrt(b[0] - a[0]) * 4 * t * (1 - t)
    # It leaves and arrives along the layers, as a stream does.
    smooth = t * t * (3 - 2 * t)
    return (a[0] + (b[0] - a[0]) * t).tolist(), (a[1] + (b[1] - a[1]) * smooth + bend).tolist()


def _hover(row: object, name: str) -> str:
    def has(column: str) -> bool:
        return pd.notna(getattr(row, column, None))

    writer, reader = safe(row.writer), safe(row.reader)  # type: ignore[attr-defined]
    lines = [
        f"<b>{writer} \u2192 {reader}</b>, read as {name}",
        f"strongest component: {number(float(row.strength), 3)}",  # type: ignore[attr-defined]
        count(int(row.components), "component") + " in the table",  # type: ignore[attr-defined]
    ]
    if has("q"):
        lines.append(f"q of random directions: {row.q:.1e}")  # type: ignore[attr-defined]
    if has("q_apart"):
        lines.append(f"q without hubs: {number(float(row.q_apart), 3)}")  # type: ignore[attr-defined]
    if has("q_null"):
        lines.append(f"q of anti-causal pairs: {number(float(row.q_null), 3)}")  # type: ignore[attr-defined]
    return "<br>".join(lines)


def _groups(fig: go.Figure, shown: pd.DataFrame, nodes: _Nodes) -> None:
    """A frame around the query heads of each KV group that reads."""
    own = shown[shown["reader"].str.contains("KV")]
    for name, layer in dict.fromkeys(zip(own["reader"], own["reader_layer"], strict=True)):
        x, y = nodes.place(name, float(layer))
        half = nodes.share / 2 - 0.12
        fig.add_shape(
            type="rect", x0=x - 0.34, x1=x + 0.34, y0=y - half, y1=y + half, name=name, layer="below",
            line={"color": theme.CONTROL, "width": 1}, fillcolor=theme.ABSENT,
        )  # fmt: skip
    if len(own):
        fig.add_scatter(
            x=[None], y=[None], mode="markers", name="KV group", showlegend=True, hoverinfo="skip",
            marker={"symbol": "square", "size": 9, "color": theme.ABSENT, "line": {"color": theme.CONTROL, "width": 1}},
        )  # fmt: skip


def _nodes(
    fig: go.Figure,
    shown: pd.DataFrame,
    nodes: _Nodes,
    classes: Mapping[str, str],
    marks: dict[str, tuple[str, str]],
    font: float,
) -> None:
    """The nodes with edges, larger with more of them; those of a class in its colour and symbol."""
    ends = pd.concat([
        shown[["writer", "writer_layer"]].set_axis(["name", "layer"], axis=1).assign(out=1, into=0),
        shown[["reader", "reader_layer"]].set_axis(["name", "layer"], axis=1).assign(out=0, into=1),
    ])  # fmt: skip
    told = ends.groupby(["name", "layer"], sort=True)[["out", "into"]].sum().reset_index()
    told["class"] = [classes.get(name, "") for name in told["name"]]
    # Classed heads show where they are, with edges or without.
    rest = [
        {"name": name, "layer": int(str(name).lstrip("L").split("H")[0]), "out": 0, "into": 0, "class": kind}
        for name, kind in classes.items()
        if name not in set(told["name"]) and re.match(r"^L\d+H\d+$", name)
    ]
    if rest:
        told = pd.concat([told, pd.DataFrame(rest, columns=list(told.columns))], ignore_index=True)
    told.loc[told["name"].str.contains("KV"), "class"] = "KV"
    for kind in ["KV", "", *marks]:
        own = told[told["class"] == kind]
        if own.empty:
            continue
        color, symbol = ({"KV": (theme.CONTROL, "square"), "": (theme.PAPER, "circle")} | marks)[kind]
        at = [nodes.place(name, float(x)) for name, x in zip(own["name"], own["layer"], strict=True)]
        degree = (own["out"] + own["into"]).to_numpy(float)
        size = (0.5 + 0.16 * np.sqrt(degree)).clip(max=1.2) * font * (1.25 if kind in marks else 1)
        fig.add_scatter(
            x=[p[0] for p in at], y=[p[1] for p in at], mode="markers", name=safe(kind) or "heads with channels",
            showlegend=kind in marks,
            marker={
                "size": size, "color": color, "symbol": symbol, "opacity": 1, "line": {"width": 1, "color": theme.INK},
            },
            customdata=[
                [safe(name), joined([safe(classes.get(name, "")), f"{out} out, {into} in"])]
                for name, out, into in zip(own["name"], own["out"], own["into"], strict=True)
            ],
            hovertemplate="<b>%{customdata[0]}</b><br>%{customdata[1]}<extra></extra>",
        )  # fmt: skip


def _told(edges: pd.DataFrame, shown: pd.DataFrame) -> str:
    first = shown.sort_values("strength", ascending=False).iloc[0]
    many = [(m, int((shown["mode"] == m).sum())) for m in MODES if m in set(shown["mode"])]
    parts = [
        f"the strongest of each kind: {listed(f'{n} through {MODES[m][0]}' for m, n in many)}",
        f"strongest: {first['writer']} to {first['reader']} ({first['mode']}) at {number(float(first['strength']))}",
    ]
    if "q_null" in edges and edges["q_null"].notna().any():
        sure = int((shown["q_null"] <= 0.05).sum())
        parts.append(f"{sure} of {len(shown)} beat anti-causal pairs (q at most 0.05)")
    return joined(parts)


def _alt(shown: pd.DataFrame) -> str:
    told = [
        f"{r.writer} to {r.reader} ({r.mode}) {number(float(r.strength))}"
        for r in shown.sort_values("strength", ascending=False).head(20).itertuples()
    ]
    return (
        f"Graph of {count(len(shown), 'edge')} between heads over the layers. Strongest: {', '.join(told)}."
    )
