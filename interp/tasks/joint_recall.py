"""Joint recall: what a key's value is depends on the context that it stands in.

A sequence lists contexts, each with the same keys and a value for each of them; behind a separator all stand again in
another order, and each value is to be told from what was listed. Whoever matches the key alone answers with its value
in some context: the foil is such a value, and `key_only_accuracy` says how often it happens to be right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Int64

from interp.models.tokens import Tokens
from interp.tasks.bare import UNASKED, Bare, distinct, in_order
from interp.tasks.base import Example, Span, Task, listed, stable_seed, whole_number

Rows = Int64[np.ndarray, "rows _"]


def key_only_accuracy(contexts: int = 4, values: int = 16) -> float:
    """Accuracy of answering with the value of the right key in a random context.

    It is one context in `contexts`, and any other one holds the same value by chance. Examples leave out sequences in
    which a key has one value everywhere, so that there the figure is lower by less than `values ** (1 - contexts)`.

    >>> round(key_only_accuracy(contexts=4, values=16), 3)
    0.297
    """
    return 1 / contexts + (1 - 1 / contexts) / values


@dataclass(frozen=True)
class Layout:
    """Sizes of a sequence: two halves of one block a context, each block a context and its keys with their values."""

    contexts: int
    keys: int

    @property
    def block(self) -> int:
        """Tokens of a context and its pairs."""
        return 1 + 2 * self.keys

    @property
    def half(self) -> int:
        """Tokens of all contexts."""
        return self.contexts * self.block

    @property
    def length(self) -> int:
        """Tokens of both halves and of the separator between them; the last value is told too."""
        return 2 * self.half + 1


@dataclass(frozen=True)
class Draw:
    """Sequences of one layout, without special tokens.

    Attributes:
        contexts: id of each context.
        keys: id of each key.
        table: id of the value of each key in each context; values may be the same.
        order: which context stands in each block, for both halves.
        within: which key stands at each place of each block, for both halves.
    """

    contexts: Int64[np.ndarray, "rows contexts"]
    keys: Int64[np.ndarray, "rows keys"]
    table: Int64[np.ndarray, "rows contexts keys"]
    order: Int64[np.ndarray, "rows 2 contexts"]
    within: Int64[np.ndarray, "rows 2 contexts keys"]

    def sequences(self, separator: int) -> tuple[Rows, Rows]:
        """Ids, and labels at the keys of the second half."""
        rows = len(self.keys)
        row = np.arange(rows)[:, None, None, None]
        keys = self.keys[row, self.within]
        values = self.table[row, self.order[..., None], self.within]
        pairs = np.stack([keys, values], axis=-1).reshape(*keys.shape[:3], -1)
        contexts = self.contexts[row[..., 0], self.order]
        blocks = np.concatenate([contexts[..., None], pairs], axis=-1)
        told = np.full_like(blocks, UNASKED)
        told[:, 1, :, 1::2] = values[:, 1]
        halves, labels = blocks.reshape(rows, 2, -1), told.reshape(rows, 2, -1)
        ids = np.hstack([halves[:, 0], np.full((rows, 1), separator), halves[:, 1]])
        return ids, np.hstack([labels[:, 0], np.full((rows, 1), UNASKED), labels[:, 1]])


class JointRecall(Task):
    """Recall by key and context. One example asks one key; examples in turn ask those of one sequence.

    Chance is one over `values`. `meta` tells what a circuit would answer that matches the key alone (`key_only`, the
    key's values in all contexts) or the context alone (`context_only`), and how often that is right by luck.

    Args:
        contexts: contexts of a sequence, or several numbers that sequences take in turn.
        keys: keys of each context, or several numbers.
        values: different values there are, the same ones in all sequences.
    """

    name = "joint_recall"
    source = "joint recall, Zhan et al. (HAX, arXiv 2507.00449)"
    copies: ClassVar[bool] = True

    def __init__(
        self,
        contexts: int | Sequence[int] = 4,
        keys: int | Sequence[int] = 4,
        values: int = 16,
        n: int = 64,
        seed: int = 0,
    ):
        counts: dict[str, Any] = {}
        for name, given in (("contexts", contexts), ("keys", keys)):
            found = [whole_number(self.name, name, c, 2) for c in listed(self.name, name, given)]
            counts[name] = found if len(found) > 1 else found[0]
        whole_number(self.name, "values", values, 2)
        self.values = values
        self.layouts = [
            Layout(c, k) for c, k in product(*(listed(self.name, name, v) for name, v in counts.items()))
        ]
        super().__init__(n=n, seed=seed, values=values, **counts)
        self._known: dict[str, Bare] = {}

    def batch(self, rng: np.random.Generator, n: int, tokens: Tokens) -> tuple[Rows, Rows]:
        """Fresh sequences to train on, of all sizes that the task mixes.

        Args:
            rng: all is drawn from it.
            n: rows.
            tokens: the tokenizer, as for `examples`.

        Returns:
            ids `[n, L]`, shorter ones filled on the right, and labels `[n, L]`: what the logits at that same position
            should tell (the labels are not shifted), or -100 where nothing is asked.
        """
        bare = self._bare(tokens)
        which = rng.integers(len(self.layouts), size=n)
        longest = max(layout.length for layout in self.layouts)
        ids = np.full((n, longest), bare.pad, dtype=np.int64)
        labels = np.full_like(ids, UNASKED)
        for number, layout in enumerate(self.layouts):
            rows = np.flatnonzero(which == number)
            drawn = self._draw_rows(rng, len(rows), layout, bare)
            ids[rows, : layout.length], labels[rows, : layout.length] = drawn.sequences(bare.pad)
        head = np.tile(np.array(bare.head, dtype=np.int64), (n, 1))
        return np.hstack([head, ids]), np.hstack([np.full_like(head, UNASKED), labels])

    def _bare(self, tokens: Tokens) -> Bare:
        if tokens.fingerprint not in self._known:
            bare = Bare.of(tokens)
            contexts, keys = (max(getattr(x, kind) for x in self.layouts) for kind in ("contexts", "keys"))
            # One key more: it takes the place of a dropped one.
            bare.parts(self.name, contexts=contexts, keys=keys + 1, values=self.values)
            self._known[tokens.fingerprint] = bare
        return self._known[tokens.fingerprint]

    def _draw_rows(self, rng: np.random.Generator, rows: int, layout: Layout, bare: Bare) -> Draw:
        c, k = layout.contexts, layout.keys
        contexts, keys, values = bare.parts(self.name, contexts=c, keys=k, values=self.values)
        return Draw(
            contexts=contexts[distinct(rng, rows, c, len(contexts))],
            keys=keys[distinct(rng, rows, k, len(keys))],
            table=values[rng.integers(self.values, size=(rows, c, k))],
            order=in_order(rng, 2 * rows, c).reshape(rows, 2, c),
            within=in_order(rng, 2 * rows * c, k).reshape(rows, 2, c, k),
        )

    def make(self, index: int, rng: np.random.Generator, tokens: Tokens) -> Example:
        bare = self._bare(tokens)
        rounds, at = divmod(index, sum(x.contexts * x.keys for x in self.layouts))
        number = 0
        while at >= (queries := self.layouts[number].contexts * self.layouts[number].keys):
            at -= queries
            number += 1
        layout = self.layouts[number]
        sequence = rounds * len(self.layouts) + number
        shared = np.random.default_rng(stable_seed(self.name, self.params, self.seed, "sequence", sequence))
        drawn = self._draw_rows(shared, 1, layout, bare)
        while not _tells_apart(drawn.table[0]):
            drawn = self._draw_rows(shared, 1, layout, bare)
        _, keys, values = bare.parts(self.name, contexts=1, keys=1, values=1)
        asked = _Asked(drawn, layout, bare, divmod(at, layout.keys), f"{self.seed}:{sequence}")
        return asked.example(rng, keys, values[: self.values])


def _tells_apart(table: Int64[np.ndarray, "contexts keys"]) -> bool:
    """Whether each key has several values, and each context too, so that there is a foil and every twin."""
    return bool((table != table[:1]).any(axis=0).all() and (table != table[:, :1]).any(axis=1).all())


class _Asked:
    """The question at one place of the second half, as an Example with its twins."""

    def __init__(self, drawn: Draw, layout: Layout, bare: Bare, place: tuple[int, int], group: str):
        self.drawn, self.layout, self.bare, self.group = drawn, layout, bare, group
        self.block, self.at = place
        self.end = layout.half + 1 + self.block * layout.block + 1 + 2 * self.at

    def example(
        self, rng: np.random.Generator, keys: Int64[np.ndarray, " k"], values: Int64[np.ndarray, " v"]
    ) -> Example:
        """The example; `rng` draws the other context and key, with which the twins exchange, and the dropped pair."""
        context, key = self._asked(self.drawn)
        there, other = self._other_context(rng), self._other_key(rng)
        table = self.drawn.table[0]
        answer = int(table[context, key])
        clean = self._one(self.drawn, int(table[there, key]), values)
        listed = self._place(context)
        twins = {
            "value_swap": _with(self.drawn, table=[(context, key), (there, key)]),
            "key_swap": _with(
                self.drawn, table=[(context, key), (context, other)], within=(0, listed, key, other)
            ),
            "query_swap": _with(self.drawn, within=(1, self.block, key, other)),
            "context_swap": _with(self.drawn, order=(context, there)),
        }
        corrupt = {kind: self._one(twin, answer, values) for kind, twin in twins.items()}
        evidence = clean.spans_of("evidence", 0)[0].start
        fresh = keys[~np.isin(keys, self.drawn.keys[0])]
        ids = list(clean.ids)
        ids[evidence : evidence + 2] = [int(rng.choice(fresh)), int(rng.choice(values[values != answer]))]
        return replace(clean, corrupt={**corrupt, "needle_drop": replace(clean, ids=tuple(ids))})

    def _asked(self, drawn: Draw) -> tuple[int, int]:
        """Numbers of the context and of the key that stand where it is asked."""
        return int(drawn.order[0, 1, self.block]), int(drawn.within[0, 1, self.block, self.at])

    def _place(self, context: int) -> int:
        """The block of the first half that lists a context."""
        return self.drawn.order[0, 0].tolist().index(context)

    def _other_context(self, rng: np.random.Generator) -> int:
        """A context in which the key has another value; one that is not asked yet if there is."""
        context, key = self._asked(self.drawn)
        table = self.drawn.table[0]
        others = [c for c in range(self.layout.contexts) if table[c, key] != table[context, key]]
        later = set(self.drawn.order[0, 1, self.block + 1 :].tolist())
        return int(rng.choice([c for c in others if c in later] or others))

    def _other_key(self, rng: np.random.Generator) -> int:
        """A key with another value in the context; one that is not asked there yet if there is."""
        context, key = self._asked(self.drawn)
        table = self.drawn.table[0]
        others = [k for k in range(self.layout.keys) if table[context, k] != table[context, key]]
        later = set(self.drawn.within[0, 1, self.block, self.at + 1 :].tolist())
        return int(rng.choice([k for k in others if k in later] or others))

    def _one(self, drawn: Draw, foil: int, values: Int64[np.ndarray, " v"]) -> Example:
        ids = (*self.bare.head, *drawn.sequences(self.bare.pad)[0][0, : self.end + 1].tolist())
        context, key = self._asked(drawn)
        table = drawn.table[0].tolist()
        answer = table[context][key]
        spans = self._spans(drawn, context, key)
        listed = next(s for s in spans if s.role == "value").start
        keys_values, context_values = [row[key] for row in table], table[context]
        meta = {
            "length": len(ids),
            "distance": len(ids) - 1 - listed,
            "position": (listed - len(self.bare.head)) // self.layout.block + 1,
            "asked": self.block * self.layout.keys + self.at + 1,
            "contexts": self.layout.contexts,
            "keys": self.layout.keys,
            "items": self.layout.contexts * self.layout.keys,
            "key_only": keys_values,
            "key_only_right": keys_values.count(answer) / len(keys_values),
            "context_only": context_values,
            "context_only_right": context_values.count(answer) / len(context_values),
        }
        return Example(
            task=JointRecall.name,
            ids=ids,
            answer_ids=(answer,),
            spans=spans,
            foil_ids=(foil,),
            candidates=((answer,), *((v,) for v in values.tolist() if v != answer)),
            chance=1 / len(values),
            cluster=self.group,
            group=self.group,
            meta=meta,
        )

    def _spans(self, drawn: Draw, context: int, key: int) -> tuple[Span, ...]:
        """Item 0 is the pair or context that is asked for, `hop` the half.

        The query is two spans: its context (hop 0) and its key (hop 1).
        """
        head, layout = len(self.bare.head), self.layout
        asked, pair = head + self.end, context * layout.keys + key
        order, within = drawn.order[0].tolist(), drawn.within[0].tolist()
        out = []
        for half, block in product(range(2), range(layout.contexts)):
            at = head + half * (layout.half + 1) + block * layout.block
            if at >= asked:
                break
            c = order[half][block]
            out.append(Span(at, at + 1, "context_id", _item(c, context), half))
            if half and block == self.block:
                out.append(Span(at, at + 1, "query", 0, 0))
            for k in within[half][block][: self.at if half and block == self.block else None]:
                at += 2
                item = _item(c * layout.keys + k, pair)
                asks = "distractor_query" if half else "distractor_key"
                out.append(Span(at - 1, at, asks if item else "key", item, half))
                out.append(Span(at, at + 1, "distractor_value" if item else "value", item, half))
                if not item:
                    out.append(Span(at - 1, at + 1, "evidence", 0))
        between = head + layout.half
        out += [Span(between, between + 1, "separator"), Span(asked, asked + 1, "query", 0, 1)]
        return tuple(sorted(out, key=lambda s: (s.start, s.end)))


def _item(number: int, asked: int) -> int:
    """Number of a thing: 0 for the one that is asked, the others from 1 on in order."""
    return 0 if number == asked else number + (number < asked)


def _with(
    drawn: Draw,
    *,
    table: Sequence[tuple[int, int]] = (),
    within: tuple[int, int, int, int] | None = None,
    order: tuple[int, int] | None = None,
) -> Draw:
    """A sequence with two things exchanged.

    Args:
        table: two cells, each a context and a key: their values are exchanged wherever they are told.
        within: half, block and two keys, which exchange their places there.
        order: two contexts, which exchange their blocks in the second half; keys keep their places.
    """
    values, orders, places = drawn.table.copy(), drawn.order.copy(), drawn.within.copy()
    if table:
        (a, b), (c, d) = table
        values[0, a, b], values[0, c, d] = drawn.table[0, c, d], drawn.table[0, a, b]
    if within is not None:
        half, block, first, second = within
        places[0, half, block] = _exchanged(places[0, half, block], first, second)
    if order is not None:
        orders[0, 1] = _exchanged(orders[0, 1], *order)
    return replace(drawn, table=values, order=orders, within=places)


def _exchanged(numbers: Int64[np.ndarray, " n"], first: int, second: int) -> Int64[np.ndarray, " n"]:
    """Numbers with `first` and `second` in each other's place."""
    return np.where(numbers == first, second, np.where(numbers == second, first, numbers))
