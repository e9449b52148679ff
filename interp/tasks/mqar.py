"""Multi-query associative recall: pairs of a key and a value, then the keys again, each to be answered by its value.

A sequence states `k1 v1 k2 v2 ...` and asks all keys in the rest of it; what follows a question is filler and never
its answer, so that each question is answered from the context alone. In the variant `forgetting` some keys get a new
value and the last one counts; in `compositional` a key is two tokens out of a grid, and neither alone tells the value.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import isqrt
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Int64

from interp.errors import UsageError
from interp.models.tokens import Tokens
from interp.tasks.bare import UNASKED, Bare, distinct, in_order, one_of, unused, weighted
from interp.tasks.base import Example, Span, Task, listed, stable_seed, whole_number

VARIANTS = ("standard", "forgetting", "compositional")
FILLERS = ("pad", "random")

Rows = Int64[np.ndarray, "rows _"]


@dataclass(frozen=True)
class Layout:
    """Where things stand in a sequence of some number of pairs.

    Attributes:
        pairs: different keys.
        width: tokens of a key.
        updates: keys that are stated again with another value.
        passes: copies of the statements.
        length: tokens of the sequence.
    """

    pairs: int
    width: int
    updates: int
    passes: int
    length: int

    @property
    def statements(self) -> int:
        """Statements of one copy."""
        return self.pairs + self.updates

    @property
    def context(self) -> int:
        """Tokens before the part that asks."""
        return self.statements * self.passes * (self.width + 1)

    @property
    def slots(self) -> int:
        """Places for a question: a key and a token of filler."""
        return (self.length - self.context) // (self.width + 1)

    def stated_at(self, copy: int, statement: int) -> int:
        """First token of a statement."""
        return (copy * self.statements + statement) * (self.width + 1)


@dataclass(frozen=True)
class Sequences:
    """Sequences of one layout, without special tokens; `about` and `values` go by statement, the others by key.

    Attributes:
        ids: the tokens.
        keys: ids of each key.
        values: ids of the value of each statement.
        about: the key of each statement.
        asked_at: position of the last token of the question about each key.
    """

    ids: Rows
    keys: Int64[np.ndarray, "rows pairs width"]
    values: Rows
    about: Rows
    asked_at: Rows

    @property
    def current(self) -> Rows:
        """The last statement about each key."""
        out = np.zeros(self.asked_at.shape, dtype=np.int64)
        for statement in range(self.about.shape[1]):
            np.put_along_axis(out, self.about[:, statement : statement + 1], statement, axis=1)
        return out

    @property
    def labels(self) -> Rows:
        """The value of each key where its question ends, `UNASKED` elsewhere."""
        out = np.full(self.ids.shape, UNASKED, dtype=np.int64)
        np.put_along_axis(out, self.asked_at, np.take_along_axis(self.values, self.current, axis=1), axis=1)
        return out


class MQAR(Task):
    """Recall of several values by their keys. One example asks one key; examples in turn ask those of one sequence.

    Against the published generator: all is drawn with a local generator, filler never repeats a key or value of its
    sequence, an update always changes the value, and which key is asked soon does not depend on its place.

    Args:
        length: tokens of a sequence, special ones not counted; a prompt ends at its question.
        pairs: keys of a sequence, or several numbers that sequences take in turn.
        variant: `standard`, `forgetting` (some keys get another value later, which counts), or `compositional` (a key
            is one of `m` tokens and one of `m` others, with `m * m` pairs).
        updates: keys that get another value (`forgetting` only); None for half of them.
        passes: so often all statements are made, in the same order.
        filler: `pad`, one token that is nothing else, or `random` tokens that are no key or value of the sequence.
        power: gaps before questions have weights `gap ** (power - 1)`: 1 is uniform, less asks sooner.
    """

    name = "mqar"
    source = "Zoology's multi-query associative recall, Arora et al. (arXiv 2312.04927)"
    copies: ClassVar[bool] = True

    def __init__(
        self,
        length: int = 64,
        pairs: int | Sequence[int] = 8,
        variant: str = "standard",
        updates: int | None = None,
        passes: int = 1,
        filler: str = "pad",
        power: float = 0.01,
        n: int = 64,
        seed: int = 0,
    ):
        one_of(self.name, "variant", variant, VARIANTS)
        one_of(self.name, "filler", filler, FILLERS)
        if isinstance(power, bool) or not isinstance(power, int | float) or not power > 0:
            raise UsageError(f"task {self.name}: power is {power!r}; take a number above 0")
        self.filler, self.power, self.variant = filler, float(power), variant
        counts = [whole_number(self.name, "pairs", p, 2) for p in listed(self.name, "pairs", pairs)]
        self.layouts = [self._layout(length, p, updates, passes) for p in counts]
        params: dict[str, Any] = {"pairs": counts if len(counts) > 1 else counts[0], "variant": variant}
        params |= {"updates": updates, "passes": passes, "filler": filler, "power": self.power}
        self.length = length
        super().__init__(n=n, seed=seed, length=length, **params)
        self._known: dict[str, Bare] = {}

    def _layout(self, length: int, pairs: int, updates: int | None, passes: int) -> Layout:
        whole_number(self.name, "length", length, 1)
        whole_number(self.name, "passes", passes, 1)
        forgets = self.variant == "forgetting"
        if updates is not None and not forgets:
            raise UsageError(
                f"task {self.name}: updates are of the variant forgetting, not of {self.variant}"
            )
        if forgets and passes > 1:
            raise UsageError(
                f"task {self.name}: with a second pass the variant forgetting has no last value; take 1"
            )
        if self.variant == "compositional" and isqrt(pairs) ** 2 != pairs:
            raise UsageError(
                f"task {self.name}: pairs is {pairs}; the variant compositional takes a square number"
            )
        again = (pairs // 2 if updates is None else whole_number(self.name, "updates", updates, 1)) * forgets
        if again > pairs:
            raise UsageError(f"task {self.name}: updates is {again}; there are {pairs} keys")
        layout = Layout(pairs, 2 if self.variant == "compositional" else 1, again, passes, length)
        if layout.slots < pairs:
            need = layout.context + pairs * (layout.width + 1)
            raise UsageError(f"task {self.name}: {pairs} pairs need a length of {need} or more, not {length}")
        return layout

    def batch(self, rng: np.random.Generator, n: int, tokens: Tokens) -> tuple[Rows, Rows]:
        """Fresh sequences to train on, with any number of pairs that the task mixes.

        Args:
            rng: all is drawn from it.
            n: rows.
            tokens: the tokenizer, as for `examples`.

        Returns:
            ids `[n, L]` and labels `[n, L]`: what the logits at that same position should tell (the labels are not
            shifted), or -100 where nothing is asked.
        """
        bare = self._bare(tokens)
        which = rng.integers(len(self.layouts), size=n)
        ids = np.empty((n, self.length), dtype=np.int64)
        labels = np.empty_like(ids)
        for number, layout in enumerate(self.layouts):
            rows = np.flatnonzero(which == number)
            if not len(rows):
                continue
            drawn = self._draw_rows(rng, len(rows), layout, bare)
            ids[rows], labels[rows] = drawn.ids, drawn.labels
        head = np.tile(np.array(bare.head, dtype=np.int64), (n, 1))
        return np.hstack([head, ids]), np.hstack([np.full_like(head, UNASKED), labels])

    def _bare(self, tokens: Tokens) -> Bare:
        if tokens.fingerprint not in self._known:
            bare = Bare.of(tokens)
            for layout in self.layouts:
                bare.parts(self.name, keys=_key_tokens(layout) + layout.width, values=layout.statements + 1)
            self._known[tokens.fingerprint] = bare
        return self._known[tokens.fingerprint]

    def _draw_rows(self, rng: np.random.Generator, rows: int, layout: Layout, bare: Bare) -> Sequences:
        """Sequences of one layout; everything that is drawn at random about them is drawn here."""
        pairs, width, size = layout.pairs, layout.width, layout.statements
        key_pool, value_pool = bare.parts(self.name, keys=_key_tokens(layout), values=size)
        parts = key_pool[distinct(rng, rows, _key_tokens(layout), len(key_pool))]
        values = value_pool[distinct(rng, rows, size, len(value_pool))]
        if width == 1:
            keys = parts[:, :, None]
            again = in_order(rng, rows, pairs)[:, : layout.updates]
            about = np.hstack([np.tile(np.arange(pairs), (rows, 1)), again])
        else:
            side = isqrt(pairs)
            first, second = np.divmod(np.arange(pairs), side)
            keys = np.stack([parts[:, first], parts[:, side + second]], axis=2)
            about = in_order(rng, rows, pairs)
        weights = np.arange(1, layout.slots + 1) ** (self.power - 1)
        gaps = rng.permuted(weighted(rng, rows, pairs, weights), axis=1)
        asked_at = layout.context + gaps * (width + 1) + width - 1
        stated = np.concatenate([keys[np.arange(rows)[:, None], about], values[:, :, None]], axis=2)
        context = np.tile(stated.reshape(rows, -1), (1, layout.passes))
        if self.filler == "pad":
            rest = np.full((rows, layout.length - layout.context), bare.pad, dtype=np.int64)
        else:
            rest = unused(rng, bare.pool, np.hstack([parts, values]), layout.length - layout.context)
        ids = np.hstack([context, rest])
        for part in range(width):
            np.put_along_axis(ids, asked_at - width + 1 + part, keys[:, :, part], axis=1)
        return Sequences(ids, keys, values, about, asked_at)

    def make(self, index: int, rng: np.random.Generator, tokens: Tokens) -> Example:
        bare = self._bare(tokens)
        rounds, at = divmod(index, sum(layout.pairs for layout in self.layouts))
        number = 0
        while at >= self.layouts[number].pairs:
            at -= self.layouts[number].pairs
            number += 1
        sequence = rounds * len(self.layouts) + number
        shared = np.random.default_rng(stable_seed(self.name, self.params, self.seed, "sequence", sequence))
        drawn = self._draw_rows(shared, 1, self.layouts[number], bare)
        meta = {"variant": self.variant, "filler": self.filler, "sequence": sequence}
        return _Asked(drawn, self.layouts[number], bare, at, f"{self.seed}:{sequence}", meta).example(rng)


class _Asked:
    """Question number `at` of a sequence, in the order of the text, as an Example with its twins."""

    def __init__(
        self, drawn: Sequences, layout: Layout, bare: Bare, at: int, group: str, meta: dict[str, Any]
    ):
        self.layout, self.bare, self.group = layout, bare, group
        self.about: list[int] = drawn.about[0].tolist()
        self.values: list[int] = drawn.values[0].tolist()
        self.keys: list[list[int]] = drawn.keys[0].tolist()
        self.asked_at: list[int] = drawn.asked_at[0].tolist()
        self.order: list[int] = drawn.asked_at[0].argsort().tolist()
        self.key = self.order[at]
        self.before = self.order[:at]
        self.end = self.asked_at[self.key]
        self.ids: list[int] = drawn.ids[0, : self.end + 1].tolist()
        self.meta = {"asked": at + 1, "gap": (self.end - layout.context) // (layout.width + 1) + 1, **meta}

    def example(self, rng: np.random.Generator) -> Example:
        """The example; `rng` draws the other key, with which the twins exchange, and what a dropped pair becomes."""
        key, other = self.key, self._other(rng)
        current = self._current(self.about)
        mine, yours = current[key], current[other]
        stale = [s for s, about in enumerate(self.about) if about == key and s != mine]
        foil = self.values[stale[-1] if stale else yours]
        clean = self._one(self.about, self.values, key, foil)
        values = list(self.values)
        values[mine], values[yours] = values[yours], values[mine]
        exchanged = {key: other, other: key}
        about = [exchanged.get(k, k) for k in self.about]
        answer = self.values[mine]
        spare = self._spare(rng)
        dropped = list(clean.ids)
        for copy in range(self.layout.passes):
            for statement in (*stale, mine):
                at = len(self.bare.head) + self.layout.stated_at(copy, statement)
                dropped[at : at + len(spare)] = spare
        return replace(
            clean,
            corrupt={
                "value_swap": self._one(self.about, values, key, answer),
                "key_swap": self._one(about, self.values, key, answer),
                "query_swap": self._one(self.about, self.values, other, answer),
                "needle_drop": replace(clean, ids=tuple(dropped)),
            },
        )

    def _one(self, about: list[int], values: list[int], key: int, foil: int) -> Example:
        """The question about a key, where statements are about these keys and tell these values."""
        stated = [t for k, value in zip(about, values, strict=True) for t in (*self.keys[k], value)]
        asks = self.ids[self.layout.context : len(self.ids) - self.layout.width]
        ids = (*self.bare.head, *stated * self.layout.passes, *asks, *self.keys[key])
        statement = self._current(about)[key]
        last = len(self.bare.head) + self.layout.stated_at(self.layout.passes - 1, statement)
        meta = {
            "length": len(ids),
            "distance": len(ids) - 1 - (last + self.layout.width),
            "position": statement + 1,
            "pairs": self.layout.pairs,
            "passes": self.layout.passes,
            "updates": self.layout.updates,
            "updated": about.count(key) > 1,
            **self.meta,
        }
        answer = values[statement]
        return Example(
            task=MQAR.name,
            ids=ids,
            answer_ids=(answer,),
            spans=self._spans(about, key),
            foil_ids=(foil,),
            candidates=((answer,), *((v,) for v in values if v != answer)),
            chance=1 / len(values),
            cluster=self.group,
            group=self.group,
            meta=meta,
        )

    def _spans(self, about: list[int], key: int) -> tuple[Span, ...]:
        """Item 0 is the key asked for; `hop` counts copies, or the values that a key is given one after the other."""
        head, width = len(self.bare.head), self.layout.width
        current = self._current(about)
        out = []
        for copy in range(self.layout.passes):
            for statement, k in enumerate(about):
                at = head + self.layout.stated_at(copy, statement)
                hop = copy + (statement >= self.layout.pairs)
                item = _item(k, key)
                out.append(Span(at, at + width, "distractor_key" if item else "key", item, hop))
                role = "distractor_value" if item else "value"
                if statement != current[k]:
                    role = "stale_value"
                out.append(Span(at + width, at + width + 1, role, item, hop))
                if role == "value":
                    out.append(Span(at, at + width + 1, "evidence", 0, hop))
        for k in self.before:
            at = head + self.asked_at[k] + 1
            out.append(Span(at - width, at, "distractor_query", _item(k, key)))
        out.append(Span(head + self.end + 1 - width, head + self.end + 1, "query", 0))
        return tuple(sorted(out))

    def _current(self, about: list[int]) -> dict[int, int]:
        """The last statement about each key."""
        return {k: statement for statement, k in enumerate(about)}

    def _other(self, rng: np.random.Generator) -> int:
        """Another key, one that is not asked yet if there is; in a grid, one that shares a token with the key."""
        mine = self.keys[self.key]
        shares = self.layout.width - 1
        others = [
            k
            for k, parts in enumerate(self.keys)
            if k != self.key and sum(a == b for a, b in zip(parts, mine, strict=True)) == shares
        ]
        fresh = [k for k in others if k not in self.before]
        return int(rng.choice(fresh or others))

    def _spare(self, rng: np.random.Generator) -> list[int]:
        """A key and a value that the sequence does not hold."""
        used = [t for key in self.keys for t in key]
        keys, values = self.bare.parts(MQAR.name, keys=1, values=1)
        free = [
            pool[~np.isin(pool, there, kind="table")] for pool, there in ((keys, used), (values, self.values))
        ]
        drawn = rng.choice(free[0], size=self.layout.width, replace=False)
        return [*drawn.tolist(), int(rng.choice(free[1]))]


def _item(key: int, asked: int) -> int:
    """Number of a key: 0 for the one that is asked, the others from 1 on in order."""
    return 0 if key == asked else key + (key < asked)


def _key_tokens(layout: Layout) -> int:
    """Different tokens that the keys of a sequence are made of."""
    return layout.pairs if layout.width == 1 else 2 * isqrt(layout.pairs)
