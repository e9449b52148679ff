"""The example prompt as a page shows it: tokens with roles, long stretches folded, attention by token for each head."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from interp.errors import BrokenData
from interp.plot import roles as roles_of_tokens
from interp.plot.attention import STRONG
from interp.plot.text import visible

AROUND = 16
"""Tokens of context that stay open around what matters."""

SHORTEST = 24
"""A shorter stretch is not worth folding."""


@dataclass(frozen=True)
class Token:
    """One token: its place, its text with nothing hidden, its role, and whether a line ends after it."""

    index: int
    text: str
    role: str
    ends_line: bool


@dataclass(frozen=True)
class Part:
    """A stretch of tokens, open or folded."""

    tokens: list[Token]
    folded: bool

    @property
    def start(self) -> int:
        """Index of the first token."""
        return self.tokens[0].index

    @property
    def stop(self) -> int:
        """Index after the last token."""
        return self.tokens[-1].index + 1


def parts(rows: dict[str, Any]) -> list[Part]:
    """The prompt of `rows.json` in stretches.

    Raises:
        BrokenData: tokens, roles and rows do not fit together.
    """
    tokens, roles = rows.get("tokens"), rows.get("roles")
    if (
        not isinstance(tokens, list)
        or not tokens
        or not isinstance(rows.get("heads"), dict)
        or not rows["heads"]
    ):
        raise BrokenData("rows.json: it must hold 'tokens' and 'heads', both not empty; run again")
    roles = roles if isinstance(roles, list) and len(roles) == len(tokens) else [None] * len(tokens)
    out: list[Part] = []
    for start, stop, folded in _stretches(_matters(rows, roles)):
        inside = [
            Token(i, visible(str(tokens[i])), roles[i] or "", str(tokens[i]).endswith("\n"))
            for i in range(start, stop)
        ]
        out.append(Part(inside, folded))
    return out


def _matters(rows: dict[str, Any], roles: list[str | None]) -> np.ndarray:
    """Tokens that have a role, get attention, or begin or end the prompt."""
    out = np.array([role is not None for role in roles])
    out[[0, -1]] = True
    for several in rows["heads"].values():
        for row in several:
            seen = np.flatnonzero(np.asarray(row, float)[: len(roles)] >= STRONG)
            out[seen] = True
    return out


def _stretches(matters: np.ndarray) -> list[tuple[int, int, bool]]:
    """Half-open stretches in order: open ones around what matters, and the folded ones between them."""
    open_ = np.convolve(matters, np.ones(2 * AROUND + 1), mode="same") > 0
    edges = [0, *(np.flatnonzero(np.diff(open_)) + 1).tolist(), len(open_)]
    out: list[tuple[int, int, bool]] = []
    for start, stop in pairwise(edges):
        folded = not open_[start] and stop - start >= SHORTEST
        if out and out[-1][2] == folded:
            out[-1] = (out[-1][0], stop, folded)
        else:
            out.append((start, stop, folded))
    return out


def legend(rows: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Role, its words and its colour, in order of first occurrence."""
    present = dict.fromkeys(role for role in rows.get("roles") or [] if role)
    return [(role, roles_of_tokens.name(role), roles_of_tokens.color(role)) for role in present]


def weights(rows: dict[str, Any]) -> dict[str, Any]:
    """Attention for the page's script: per head the rows, rounded, and the names of the answer's tokens."""
    return {
        "answer": [visible(str(token)).strip() for token in rows.get("answer") or []],
        "heads": {
            str(head): [[round(float(v), 4) for v in row] for row in several]
            for head, several in rows["heads"].items()
        },
    }
