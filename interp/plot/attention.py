"""Where heads look: the attention rows that predict an answer, over the tokens of one prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import plotly.graph_objects as go

from interp.errors import UsageError
from interp.plot import roles as roles_of_tokens
from interp.plot import theme
from interp.plot.text import count, number, safe, shown_length, token_label, token_quote
from interp.plot.theme import Width

GAP_WIDTH = 2.3
"""Width of a left-out stretch in token columns: room for its mass as a number."""

STRONG = 0.02
"""Share of a line's attention from which a token is shown wherever there is room."""


@dataclass(frozen=True)
class Stretch:
    """Half-open range of tokens that is shown token by token, or left out as one column."""

    start: int
    stop: int
    shown: bool

    def __len__(self) -> int:
        return self.stop - self.start


def attention_rows(
    tokens: Sequence[str],
    rows: Mapping[str, Sequence[Sequence[float]]],
    roles: Sequence[str | None] | None = None,
    *,
    answer: Sequence[str] = (),
    head: str | None = None,
    width: Width = "double",
) -> go.Figure:
    """Attention over the tokens of a prompt: a line for each head, or for each answer token of one head.

    Tokens far from every span and every peak are left out in stretches; each stretch is one grey column that says how
    many tokens it stands for and how much attention they get together, so every line still adds up.

    Args:
        tokens: the prompt's tokens as text.
        rows: for each head, one attention row per answer token, over the keys up to the position that predicts it.
            A row may run on over the answer's own tokens.
        roles: the role of each token, or None; they are drawn as a band of colours below the map.
        answer: the answer's tokens, to name the lines of one head and the keys after the prompt.
        head: a key of `rows`, to show its rows one by one; None shows the mean row of every head.
        width: `single`, `double`, `page` or pixels.

    Raises:
        UsageError: no rows, an unknown head, or lengths that do not fit.
    """
    labels, keys, grid, kinds = _table(tokens, rows, roles, answer, head)
    font, total = theme.font_px(width), theme.pixels(width)
    left = min(0.3 * total, (0.56 * max(len(label) for label in labels) + 2.6) * font)
    right, narrow = 6.2 * font, total < 400
    budget = max(8, int((total - left - right) / (1.12 * font)))
    plan = stretches(grid, kinds, budget)
    edges = np.concatenate([[0.0], np.cumsum([w for s in plan for w in _widths(s)])])
    shown_roles = [
        kinds[i] if s.shown else None for s in plan for i in (range(s.start, s.stop) if s.shown else (0,))
    ]
    wide = len(labels)
    tall = wide * (1.75 * font)
    band = 0.62 * font / (1.75 * font)
    legend_lines = roles_of_tokens.legend_lines(shown_roles, total, font)
    ticks, names = _ticks(plan, edges, keys)
    bottom = (0.54 * max(map(shown_length, names)) + 1.2 + 1.9 * legend_lines) * font
    mass, left_out, hover, gap_hover = _columns(plan, keys, kinds, grid)
    high, saturated = _scale(mass)
    fig = theme.figure(
        f"What {head} attends to" if head else "Where the heads look when they answer",
        _note(head, narrow, high if saturated else None),
        width=width, plot_height=tall + 0.9 * font, left=left, right=right, bottom=bottom,
        alt=_alt(labels, grid, kinds, head),
    )  # fmt: skip
    y = list(range(wide))
    y_edges = [i - 0.5 for i in range(wide + 1)]
    fig.add_heatmap(
        z=mass, x=edges, y=y_edges, zmin=0, zmax=high, colorscale=theme.CIVIDIS, hoverongaps=False,
        customdata=np.broadcast_to(hover, (*mass.shape, 2)), name="attention",
        hovertemplate="%{customdata[0]}<br>%{customdata[1]}<br>attention %{z:.3f}<extra></extra>",
        colorbar=theme.colorbar("attention", max(tall, 7.5 * font), font, y=1, yanchor="top"),
    )  # fmt: skip
    if np.isfinite(left_out).any():
        fig.add_heatmap(
            z=left_out, x=edges, y=y_edges, colorscale=[[0, theme.ABSENT], [1, theme.ABSENT]], showscale=False,
            hoverongaps=False, customdata=np.broadcast_to(gap_hover, left_out.shape), name="left out",
            texttemplate="%{z:.2f}", textfont={"size": 0.8 * font, "color": theme.MUTED},
            hovertemplate="%{customdata}<br>attention together %{z:.3f}<extra></extra>",
        )  # fmt: skip
    roles_of_tokens.strip(fig, shown_roles, edges.tolist(), wide - 0.5 + 0.12, wide - 0.5 + 0.12 + band)
    roles_of_tokens.legend(fig, shown_roles, font)
    fig.update_xaxes(
        tickvals=ticks, ticktext=names, tickangle=-90, range=[0, float(edges[-1])], showline=False, ticks="",
        tickfont={"size": 0.92 * font},
    )  # fmt: skip
    fig.update_yaxes(
        tickvals=y, ticktext=[safe(label) for label in labels], range=[wide - 0.5 + 0.9 / 1.75, -0.5],
        showline=False, ticks="", title_text="predicts" if head else "head",
    )  # fmt: skip
    return fig


def stretches(grid: np.ndarray, roles: Sequence[str | None], budget: int) -> list[Stretch]:
    """Which tokens to show in at most about `budget` columns, and which stretches to leave out.

    In order of importance: the first and last tokens and every line's peak; tokens with a role; what else gets 2 % of
    a line or more; then the neighbours of all these, near ones first. One or two tokens are not worth leaving out.

    Args:
        grid: attention, lines x tokens.
        roles: role of each token, or None.
        budget: columns there is room for.
    """
    n = grid.shape[1]
    if n <= budget:
        return [Stretch(0, n, True)]
    peak = grid.max(axis=0)
    firsts = dict.fromkeys([0, n - 1, n - 2, *grid.argmax(axis=1).tolist()])
    bulk = {"evidence", "filler", "instruction"}
    ranked = sorted(range(n), key=lambda i: (-peak[i], i))
    marked = [i for i in ranked if roles[i] and roles[i] not in bulk]
    order = dict.fromkeys([*firsts, *marked, *(i for i in ranked if roles[i] == "evidence")])
    strong = [i for i in ranked if peak[i] >= STRONG]
    core = list(dict.fromkeys([*order, *strong]))
    near = [i + side * step for step in (1, 2, 3, 4) for i in core for side in (-1, 1)]
    kept: set[int] = set()
    for i in [*core, *near]:
        if 0 <= i < n and i not in kept:
            if _cost(kept | {i}, n) > budget and kept:
                break
            kept.add(i)
    flags = np.zeros(n, bool)
    flags[sorted(kept)] = True
    runs = _runs(flags)
    shown = [(a, b, on or b - a < 3) for a, b, on in runs]
    merged: list[Stretch] = []
    for a, b, on in shown:
        if merged and merged[-1].shown == on:
            merged[-1] = Stretch(merged[-1].start, b, on)
        else:
            merged.append(Stretch(a, b, on))
    return merged


def _cost(kept: set[int], n: int) -> float:
    """Columns that these tokens and the stretches between them take."""
    at = [-1, *sorted(kept), n]
    gaps = sum(b - a > 1 for a, b in pairwise(at))
    return len(kept) + GAP_WIDTH * gaps


def _runs(flags: np.ndarray) -> list[tuple[int, int, bool]]:
    edges = [0, *(np.flatnonzero(np.diff(flags)) + 1).tolist(), len(flags)]
    return [(a, b, bool(flags[a])) for a, b in pairwise(edges)]


def _table(
    tokens: Sequence[str],
    rows: Mapping[str, Sequence[Sequence[float]]],
    roles: Sequence[str | None] | None,
    answer: Sequence[str],
    head: str | None,
) -> tuple[list[str], list[str], np.ndarray, list[str | None]]:
    """Labels of the lines, all keys, attention (lines x keys), and the role of each key."""
    if not tokens or not rows:
        raise UsageError("attention_rows: there are no tokens or no rows to draw")
    if head is not None and head not in rows:
        raise UsageError(f"attention_rows: no rows of head {head!r}; there are {', '.join(rows)}")
    if roles is not None and len(roles) != len(tokens):
        raise UsageError(
            f"attention_rows: {len(roles)} roles for {len(tokens)} tokens; give one for each, or None"
        )
    longest = max((len(row) for several in rows.values() for row in several), default=0)
    if longest == 0:
        raise UsageError("attention_rows: every row is empty")
    keys = [*tokens, *answer][: max(longest, len(tokens))]
    if longest > len(keys):
        raise UsageError(
            f"attention_rows: a row has {longest} keys; there are {len(tokens)} tokens and {len(answer)} of the answer"
        )
    kinds: list[str | None] = [*(roles or [None] * len(tokens)), *["answer"] * (len(keys) - len(tokens))]
    if head is None:
        lines = {
            name: _padded(several, len(keys)).mean(axis=0) for name, several in rows.items() if len(several)
        }
    else:
        named = [token_quote(t) for t in answer] + [
            f"step {i + 1}" for i in range(len(answer), len(rows[head]))
        ]
        return named[: len(rows[head])], keys, _padded(rows[head], len(keys)), kinds
    return list(lines), keys, np.stack(list(lines.values())), kinds


def _padded(several: Sequence[Sequence[float]], n: int) -> np.ndarray:
    """Rows of one head filled with zeros to `n` keys: a later key is invisible, so it gets no attention."""
    out = np.zeros((len(several), n))
    for i, row in enumerate(several):
        out[i, : len(row)] = row
    return out


def _widths(stretch: Stretch) -> list[float]:
    return [1.0] * len(stretch) if stretch.shown else [GAP_WIDTH]


def _ticks(plan: Sequence[Stretch], edges: np.ndarray, keys: Sequence[str]) -> tuple[list[float], list[str]]:
    names: list[str] = []
    for s in plan:
        if s.shown:
            names += [token_label(keys[i]) for i in range(s.start, s.stop)]
        else:
            names.append(f"\u2026 {count(len(s), 'token')} \u2026")
    return ((edges[:-1] + edges[1:]) / 2).tolist(), names


def _columns(
    plan: Sequence[Stretch], keys: Sequence[str], kinds: Sequence[str | None], grid: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Attention of the shown tokens, mass of the left-out stretches, and the hover texts of both; NaN elsewhere."""
    n = sum(len(s) if s.shown else 1 for s in plan)
    mass, left_out = np.full((len(grid), n), np.nan), np.full((len(grid), n), np.nan)
    hover, gap_hover = np.full((n, 2), "", dtype=object), np.full(n, "", dtype=object)
    at = 0
    for s in plan:
        if s.shown:
            mass[:, at : at + len(s)] = grid[:, s.start : s.stop]
            for i in range(s.start, s.stop):
                role = kinds[i]
                hover[at + i - s.start] = (
                    f"token {i}: {token_quote(keys[i])}", safe(roles_of_tokens.name(role)) if role else "no role",
                )  # fmt: skip
            at += len(s)
        else:
            left_out[:, at] = grid[:, s.start : s.stop].sum(axis=1)
            gap_hover[at] = f"tokens {s.start} to {s.stop - 1}, left out"
            at += 1
    return mass, left_out, hover, gap_hover


def _scale(mass: np.ndarray) -> tuple[float, bool]:
    """Where the colours end, and whether the first token lies beyond: as a rest place of attention it outshines all."""
    rest = mass[:, 1:]
    top = float(np.nanmax(rest)) if np.isfinite(rest).any() else 0.0
    first = float(np.nanmax(mass[:, 0])) if np.isfinite(mass[:, 0]).any() else 0.0
    return (top, first > top) if top > 0 else (first or 1.0, False)


def _note(head: str | None, narrow: bool, saturated: float | None) -> str:
    note = (
        "One line for each answer token it predicts" if head else "Mean over the rows that predict the answer"
    )
    if not narrow:
        note += "; grey: tokens left out, with their summed attention"
    return note + (f"; colours end at {number(saturated)}, the first token gets more" if saturated else "")


def _alt(labels: Sequence[str], grid: np.ndarray, kinds: Sequence[str | None], head: str | None) -> str:
    present = list(dict.fromkeys(kind for kind in kinds if kind))
    parts = []
    for label, line in zip(labels, grid, strict=True):
        sums = {role: float(line[[k == role for k in kinds]].sum()) for role in present}
        told = ", ".join(
            f"{roles_of_tokens.name(role)} {number(v)}" for role, v in sums.items() if v >= 0.005
        )
        parts.append(f"{label}: {told or 'no token with a role'}")
    return f"Attention {'of ' + head if head else 'of each head'} summed by the role of the tokens. {'. '.join(parts)}."
