"""Set intersection: two lists that share exactly one token, which is the answer.

Whoever keeps the first list can look each token of the second one up in it, so a memory that is small does better with
the short list first ("Just read twice", Arora et al., arXiv 2407.05483); attention does not care. A mark stands before
each list and a third one before the answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal, get_args

import numpy as np
from jaxtyping import Int64

from interp.models.tokens import Tokens
from interp.tasks.bare import UNASKED, Bare, distinct, in_order, one_of
from interp.tasks.base import Example, Span, Task, whole_number
from interp.tasks.pairs import in_turn

Order = Literal["short_first", "long_first", "both"]
MARKS = 3
"""Tokens that stand before the first list, before the second one and at the end."""

Rows = Int64[np.ndarray, "rows _"]


class SetIntersection(Task):
    """The one token that stands in both of two lists.

    The tokens of the lists are otherwise all different. Candidates are the tokens of the short list, since one of them
    it must be: a guess that has read it scores one over `short`, one that has read the long list alone less.

    Args:
        short: tokens of the short list.
        long: tokens of the long one; at least as many.
        order: `short_first`, `long_first`, or `both` in turn.
    """

    name = "set_intersection"
    source = "set intersection, Arora et al. (arXiv 2407.05483)"
    copies: ClassVar[bool] = True

    def __init__(self, short: int = 4, long: int = 16, order: Order = "both", n: int = 64, seed: int = 0):
        self.short = whole_number(self.name, "short", short, 2)
        self.long = whole_number(self.name, "long", long, self.short)
        one_of(self.name, "order", order, get_args(Order))
        self.order = order
        super().__init__(n=n, seed=seed, short=short, long=long, order=order)
        self._known: dict[str, Bare] = {}

    def batch(self, rng: np.random.Generator, n: int, tokens: Tokens) -> tuple[Rows, Rows]:
        """Sequences to train on, each with its answer behind it.

        Returns:
            ids; and labels: the answer at the last mark, `UNASKED` elsewhere.
        """
        bare = self._bare(tokens)
        first = self._first(np.arange(n)) if self.order == "both" else np.full(n, self.order == "short_first")
        out = np.empty((n, MARKS + self.short + self.long + 1), dtype=np.int64)
        for short_first in (True, False):
            rows = np.flatnonzero(first == short_first)
            if len(rows):
                ids, _, answers = self._draw_rows(rng, len(rows), bare, short_first)
                out[rows] = np.hstack([ids, answers[:, None]])
        labels = np.full_like(out, UNASKED)
        labels[:, -2] = out[:, -1]
        return np.hstack([np.tile(bare.head, (n, 1)).astype(np.int64), out]), np.hstack(
            [np.full((n, len(bare.head)), UNASKED), labels]
        )

    @staticmethod
    def _first(rows: Int64[np.ndarray, " n"]) -> np.ndarray:
        return rows % 2 == 0

    def _bare(self, tokens: Tokens) -> Bare:
        if tokens.fingerprint not in self._known:
            bare = Bare.of(tokens)
            bare.parts(self.name, tokens=self.short + self.long + MARKS + 1)
            self._known[tokens.fingerprint] = bare
        return self._known[tokens.fingerprint]

    def _draw_rows(
        self, rng: np.random.Generator, rows: int, bare: Bare, short_first: bool
    ) -> tuple[Rows, Rows, Int64[np.ndarray, " rows"]]:
        """Sequences up to the last mark, the places of the shared token in both lists, and the shared token."""
        marks, pool = bare.pool[:MARKS], bare.pool[MARKS:]
        sizes = (self.short, self.long) if short_first else (self.long, self.short)
        drawn = pool[distinct(rng, rows, sum(sizes) - 1, len(pool))]
        # The first token drawn stands in both lists, at a place of its own in each.
        lists, places = [], []
        at = 1
        for size in sizes:
            own = np.hstack([drawn[:, :1], drawn[:, at : at + size - 1]])
            order = in_order(rng, rows, size)
            lists.append(np.take_along_axis(own, order, axis=1))
            places.append((order == 0).argmax(axis=1))
            at += size - 1
        column = [np.full((rows, 1), mark) for mark in marks]
        ids = np.hstack([column[0], lists[0], column[1], lists[1], column[2]])
        return ids, np.stack([1 + places[0], 2 + sizes[0] + places[1]], axis=1), drawn[:, 0]

    def make(self, index: int, rng: np.random.Generator, tokens: Tokens) -> Example:
        bare = self._bare(tokens)
        short_first = self.order == "short_first" or (
            self.order == "both" and in_turn(index, 2, self.name, self.seed) == 0
        )
        ids, places, shared = self._draw_rows(rng, 1, bare, short_first)
        sequence, at, answer = ids[0].tolist(), places[0].tolist(), int(shared[0])
        clean = self._example(bare, sequence, at, answer, short_first, f"{self.seed}:{index}")
        return replace(clean, corrupt=self._twins(clean, bare, sequence, at, short_first, rng))

    def _twins(
        self,
        clean: Example,
        bare: Bare,
        sequence: Sequence[int],
        at: Sequence[int],
        short_first: bool,
        rng: np.random.Generator,
    ) -> dict[str, Example]:
        """Another token of the first list in the second one (`value_swap`), or one of neither (`needle_drop`)."""
        first = self.short if short_first else self.long
        others = [i for i in range(1, 1 + first) if i != at[0]]
        place = int(rng.choice(others))
        swapped = list(sequence)
        swapped[at[1]] = sequence[place]
        twin = self._example(bare, swapped, (place, at[1]), sequence[place], short_first, clean.cluster)
        dropped = list(clean.ids)
        fresh = bare.pool[MARKS:][~np.isin(bare.pool[MARKS:], sequence)]
        dropped[len(bare.head) + at[1]] = int(rng.choice(fresh))
        if clean.answer_ids not in twin.candidates:
            # With the long list first, the twin's short list has lost the clean answer: it is a candidate by itself.
            twin = replace(
                twin, candidates=(*twin.candidates, clean.answer_ids), chance=1 / (1 + len(twin.candidates))
            )
        return {
            "value_swap": replace(twin, foil_ids=clean.answer_ids),
            "needle_drop": replace(clean, ids=tuple(dropped)),
        }

    def _example(
        self,
        bare: Bare,
        sequence: Sequence[int],
        at: Sequence[int],
        answer: int,
        short_first: bool,
        cluster: str,
    ) -> Example:
        head, n = len(bare.head), len(sequence)
        first = self.short if short_first else self.long
        short = sequence[1 : 1 + first] if short_first else sequence[2 + first : -1]
        others = [t for t in short if t != answer]
        spans = [
            Span(head + i, head + i + 1, "separator", hop=hop) for hop, i in enumerate((0, 1 + first, n - 1))
        ]
        spans += [Span(head + i, head + i + 1, "value", 0, hop) for hop, i in enumerate(at)]
        rest = [i for i in range(1, n - 1) if i not in (*at, 1 + first)]
        spans += [
            Span(head + i, head + i + 1, "distractor_value", 1 + k, int(i > first))
            for k, i in enumerate(rest)
        ]
        meta: dict[str, Any] = {
            "length": head + n,
            "short": self.short,
            "long": self.long,
            "short_first": short_first,
            "position": at[0],
            "distance": n - 1 - at[0],
            "apart": at[1] - at[0],
        }
        return Example(
            task=self.name,
            ids=(*bare.head, *sequence),
            answer_ids=(answer,),
            spans=tuple(sorted(spans)),
            foil_ids=(others[0],),
            candidates=((answer,), *((t,) for t in others)),
            chance=1 / self.short,
            cluster=cluster,
            group=cluster,
            meta=meta,
        )
