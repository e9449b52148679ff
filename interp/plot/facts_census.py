"""What a model knows of each relation, and what its right answers may rest on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from interp.errors import UsageError
from interp.plot import theme
from interp.plot.check import need
from interp.plot.text import count, joined, number, percent, safe
from interp.plot.theme import Width

KNOWN = ("shots", "relation", "asked", "known", "accuracy", "lo", "hi", "chance")
"""One row a number of solved examples and relation; the relation `all` counts all of them."""

KINDS = ("relation", "known", "biased", "pure")
"""Of the right predictions of a relation: their number, the share with a bias flag, the share of exact recall."""

ALL = "all"
_SHOTS = ((theme.BLUE, "circle"), (theme.ORANGE, "square"), (theme.GREEN, "diamond"), (theme.PURPLE, "cross"))
_SORTS = (
    ("exact recall", theme.BLUE), ("neither", theme.ABSENT), ("may rest on a heuristic", theme.VERMILLION),
)  # fmt: skip


def fact_census(
    known: pd.DataFrame, kinds: pd.DataFrame | None = None, *, width: Width = "double"
) -> go.Figure:
    """Share of each relation's questions that are answered right, and of the right answers that are recalled as facts.

    Args:
        known: `shots relation asked known accuracy lo hi chance`.
        kinds: `relation known biased pure`, of scenarios; without it the second panel is left out.
        width: `single`, `double`, `page` or pixels.

    Raises:
        UsageError: missing columns, no row, more than four numbers of shots, or a relation twice.
    """
    need(known, KNOWN, "fact_census", numeric=("shots", *KNOWN[2:]))
    shots = list(dict.fromkeys(int(s) for s in known["shots"]))
    if len(shots) > len(_SHOTS):
        raise UsageError(f"fact_census: {len(shots)} numbers of shots do not fit; filter to {len(_SHOTS)}")
    if known.duplicated(["shots", "relation"]).any():
        twice = known[known.duplicated(["shots", "relation"])]["relation"].iloc[0]
        raise UsageError(f"fact_census: relation {twice!r} occurs twice for one number of shots")
    first = known[(known["shots"] == shots[0]) & (known["relation"] != ALL)]
    order = list(first.sort_values("accuracy", ascending=False, kind="stable")["relation"].astype(str))
    order += [r for r in dict.fromkeys(known["relation"].astype(str)) if r not in (*order, ALL)]
    order += [ALL] * bool((known["relation"] == ALL).any())
    if kinds is not None:
        need(kinds, KINDS, "fact_census kinds", numeric=KINDS[1:])
    font, total = theme.font_px(width), theme.pixels(width)
    names = [_name(r) for r in order]
    left, right = (0.54 * max(map(len, names)) + 1.2) * font, (1.4 if kinds is None else 4.0) * font
    stacked, gap = kinds is not None and total < 45 * font, 2.2 * font
    rows_h = (1.35 if len(shots) < 3 else 1.7) * font * len(order)
    apart = 5.4 * font
    tall = 2 * rows_h + apart if stacked else rows_h
    fig = theme.figure(
        "What the model knows, and what that may rest on" if kinds is not None else "What the model knows",
        _note(known, shots, kinds), width=width, plot_height=tall, left=left, right=right, top=1.7 * font,
        bottom=6.2 * font, alt=_alt(known, kinds),
    )  # fmt: skip
    across = total - left - right
    split = 1.0 if kinds is None or stacked else 0.52
    low = (rows_h + apart) / tall if stacked else 0.0
    ticks: dict[str, Any] = {
        "tickvals": list(range(len(order))), "ticktext": [safe(n) for n in names], "ticks": "", "showline": False,
        "range": [len(order) - 0.4, -0.6],
    }  # fmt: skip
    grid: dict[str, Any] = {"range": [-0.02, 1.02], "tickformat": ".0%", "nticks": 6, "tickangle": 0}
    end = split - gap / across if split < 1 else 1.0
    fig.update_layout({
        "xaxis": {"domain": [0, end], "anchor": "y", "showgrid": True, "title": {"text": "answered right"}, **grid},
        "yaxis": {"domain": [low, 1], "anchor": "x", **ticks},
    })  # fmt: skip
    _known(fig, known, shots, order, font)
    _caption(fig, "Questions answered right", "", font)
    if kinds is not None:
        fig.update_layout({
            "xaxis2": {
                "domain": [0, 1] if stacked else [split, 1], "anchor": "y2",
                "title": {"text": "of the right predictions"}, **grid,
            },
            "yaxis2": {
                "domain": [0, rows_h / tall] if stacked else [0, 1], "anchor": "x2", **ticks, "showticklabels": stacked,
            },
            "barmode": "stack",
        })  # fmt: skip
        _kinds(fig, kinds, order, font)
        _caption(fig, "What they may rest on", "2", font)
    return theme.legend_below(fig, font)


def _name(relation: str) -> str:
    return relation.replace("_", " ")


def _shots(n: int) -> str:
    return "no examples" if n == 0 else f"{count(n, 'solved example')} before"


def _caption(fig: go.Figure, text: str, axis: str, font: float) -> None:
    fig.add_annotation(
        text=text, x=0, xref=f"x{axis} domain", xanchor="left", xshift=-1, y=1, yref=f"y{axis} domain",
        yanchor="bottom", yshift=1, font={"weight": 600, "size": font},
    )  # fmt: skip


def _known(
    fig: go.Figure, known: pd.DataFrame, shots: Sequence[int], order: Sequence[str], font: float
) -> None:
    at = {r: i for i, r in enumerate(order)}
    offsets = np.linspace(-0.17, 0.17, len(shots)) if len(shots) > 1 else [0.0]
    chance = known.drop_duplicates("relation").dropna(subset="chance")
    fig.add_scatter(
        x=chance["chance"], y=[at[r] for r in chance["relation"]], mode="markers", name="uniform guess",
        marker={"symbol": "line-ns-open", "size": 0.85 * font, "color": theme.MUTED, "line": {"width": 1}},
        hovertemplate="uniform guess %{x:.1%}<extra></extra>",
    )  # fmt: skip
    for i, n in enumerate(shots):
        own = known[known["shots"] == n]
        color, symbol = _SHOTS[i]
        fig.add_scatter(
            x=own["accuracy"], y=[at[r] + offsets[i] for r in own["relation"]], mode="markers", name=_shots(n),
            marker={"symbol": symbol, "size": 0.55 * font, "color": color},
            error_x={
                "array": own["hi"] - own["accuracy"], "arrayminus": own["accuracy"] - own["lo"], "color": color,
                "thickness": 1.2, "width": 0,
            },
            customdata=[
                f"<b>{safe(_name(str(r.relation)))}</b>, {_shots(n)}: {int(r.known)} of {int(r.asked)} "
                f"({percent(r.accuracy)})<br>95% interval {percent(r.lo)} to {percent(r.hi)}"
                for r in own.itertuples()
            ],
            hovertemplate="%{customdata}<extra></extra>",
        )  # fmt: skip


def _kinds(fig: go.Figure, kinds: pd.DataFrame, order: Sequence[str], font: float) -> None:
    own = kinds[kinds["relation"].isin(list(order))].drop_duplicates("relation")
    own = own.assign(y=[order.index(r) for r in own["relation"]])
    told = own[own["known"] > 0]
    parts = {"exact recall": told["pure"], "may rest on a heuristic": told["biased"]}
    parts["neither"] = 1 - told["pure"] - told["biased"]
    for name, color in _SORTS:
        fig.add_bar(
            x=parts[name], y=told["y"], orientation="h", name=name, marker={"color": color, "line": {"width": 0}},
            width=0.72, xaxis="x2", yaxis="y2", customdata=[_name(r) for r in told["relation"]],
            hovertemplate=f"%{{customdata}}: {name} %{{x:.1%}}<extra></extra>",
        )  # fmt: skip
    for r in own.itertuples():
        fig.add_annotation(
            text=str(int(r.known)), x=1, xref="x2 domain", xanchor="left", xshift=4, y=r.y, yref="y2",
            font={"color": theme.MUTED, "size": 0.92 * font},
        )  # fmt: skip


def _note(known: pd.DataFrame, shots: Sequence[int], kinds: pd.DataFrame | None) -> str:
    parts = []
    for n in shots:
        own = known[(known["shots"] == n) & (known["relation"] != ALL)]
        asked, right = int(own["asked"].sum()), int(own["known"].sum())
        parts.append(f"{_shots(n)}: {right:,} of {asked:,} questions right ({percent(right, asked, 0)})")
    parts.append("exact 95% intervals, over facts")
    if kinds is not None:
        own = kinds[(kinds["relation"] != ALL) & (kinds["known"] > 0)]
        whole = own["known"].sum()
        shares = [percent(float((own[c] * own["known"]).sum()), whole, 0) for c in ("pure", "biased")]
        parts.append(
            f"of {int(whole):,} right predictions {shares[0]} are exact recall, {shares[1]} may rest on a heuristic "
            "(beside the bars: their number)"
        )
    return joined(parts)


def _alt(known: pd.DataFrame, kinds: pd.DataFrame | None) -> str:
    parts = []
    for r in known.itertuples():
        parts.append(f"{_name(str(r.relation))}, {_shots(int(r.shots))}: {percent(float(r.accuracy))}.")
    if kinds is not None:
        for r in kinds[kinds["known"] > 0].itertuples():
            parts.append(
                f"{_name(str(r.relation))}: {number(100 * float(r.pure), 0)}% exact recall, "
                f"{number(100 * float(r.biased), 0)}% with a bias."
            )
    return "Share of questions answered right by relation, and what right answers may rest on. " + " ".join(
        parts
    )
