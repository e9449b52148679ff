"""Updates: a stream in which the values of a few keys change again and again, and the question for the last of one.

Proactive interference (after PI-LLM, Wang and Sun, arXiv 2506.08184): the right value is the easiest one to find in a
text, the last that stands behind the key, and every earlier one competes with it. The closed set of answers is what the
key has been, so chance is one over the number of updates, and a wrong choice says which update was read instead
(`interp.measure.staleness`).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import ClassVar, Literal, get_args

import numpy as np

from interp.errors import UsageError
from interp.models.tokens import Tokens
from interp.tasks.base import Example, Piece, Redraw, Task, whole_number
from interp.tasks.compose import Asked, compose
from interp.tasks.pairs import Alike, data, in_turn
from interp.tasks.recall import Words, asked

Order = Literal["interleaved", "blocks"]


@dataclass(frozen=True)
class Stream:
    """Lines of keys and values in the order of the text: line `i` says that key `keys[i]` becomes `values[i]`."""

    keys: tuple[str, ...]
    values: tuple[str, ...]

    def history(self, key: str) -> list[int]:
        """Numbers of the lines about a key."""
        return [i for i, k in enumerate(self.keys) if k == key]

    def exchanged(self, i: int, j: int) -> Stream:
        """The stream with the values of two lines in each other's place."""
        values = list(self.values)
        values[i], values[j] = values[j], values[i]
        return replace(self, values=tuple(values))


class Updates(Task):
    """What is a key's value now?

    Spans of the key asked for: `evidence` of its last line with `key` and `value`, and `stale` of every earlier line
    with `stale_key` and `stale_value`; all are item 0, and `hop` counts back: 0 is the last update, 1 the one before.
    Lines of other keys are `distractor`s with an item of their own. Twins: `value_swap` exchanges the last two values
    of the key, so that the foil, the previous value, is right; `query_swap` asks for another key (of two or more).

    Args:
        keys: keys that are updated, 1 to 8.
        updates: values that each of them has one after another, 2 or more.
        order: `interleaved` (rounds over all keys; no key twice in a row) or `blocks` (one key after the other).
    """

    name = "updates"
    source = "wordings written for this project; after PI-LLM (arXiv 2506.08184)"
    copies: ClassVar[bool] = True
    most_keys: ClassVar[int] = 8

    def __init__(
        self, keys: int = 3, updates: int = 4, order: Order = "interleaved", n: int = 64, seed: int = 0
    ):
        self.keys = whole_number(self.name, "keys", keys, 1)
        self.updates = whole_number(self.name, "updates", updates, 2)
        if keys > self.most_keys:
            raise UsageError(f"task updates: keys is {keys}; take {self.most_keys} at most")
        if order not in get_args(Order):
            raise UsageError(f"task updates: order is {order!r}; take of {', '.join(get_args(Order))}")
        self.order = order
        super().__init__(n=n, seed=seed, keys=keys, updates=updates, order=order)
        self._words: dict[str, tuple[Alike, Alike]] = {}

    def make(self, index: int, rng: np.random.Generator, tokens: Tokens) -> Example:
        if tokens.fingerprint not in self._words:
            needed = self.updates * min(self.keys, 2) + (self.keys > 2)
            goods = Alike(tokens, "goods", needed, self.name)
            self._words[tokens.fingerprint] = Alike(tokens, "names", 1, self.name), goods
        names, goods = self._words[tokens.fingerprint]
        wordings = data("interference")["updates"]
        template = list(wordings)[in_turn(index, len(wordings), self.name, self.seed, "template")]
        turn = in_turn(index, self.keys, self.name, self.seed, "turn")
        keys = some(rng, names, self.keys)
        own = goods.draw(rng, self.updates)
        stream = self._stream(rng, keys, own, goods, turn)
        *_, previous, last = stream.history(keys[0])

        def ask(stream: Stream, key: str, options: Sequence[str], foil: str = "") -> Asked:
            numbers = {k: i for i, k in enumerate([key, *(k for k in keys if k != key)])}
            pieces = lines(wordings[template], stream, numbers)
            end = asked(wordings[template]["question"], wordings[template]["stem"], {"key": (key, "query")})
            return Asked((*pieces, *end), stream.values[stream.history(key)[-1]], tuple(options), foil)

        options = own[::-1]
        twins = {"value_swap": ask(stream.exchanged(previous, last), keys[0], options, own[-1])}
        if self.keys > 1:
            others = [stream.values[i] for i in reversed(stream.history(keys[1]))]
            twins["query_swap"] = ask(stream, keys[1], others)
        return compose(
            self.name,
            tokens,
            ask(stream, keys[0], options, own[-2]),
            twins,
            cluster=template,
            meta={
                "template": template,
                "updates": self.updates,
                "keys": self.keys,
                "items": self.keys * self.updates,
                "position": turn + 1,
                "since": len(stream.keys) - 1 - last,
                "asked": keys[0],
                "history": own,
                "word_tokens": goods.size,
            },
            copies=True,
        )

    def _stream(
        self, rng: np.random.Generator, keys: Sequence[str], own: Sequence[str], goods: Alike, turn: int
    ) -> Stream:
        values = {keys[0]: list(own)}
        # What is asked for, also by the twin, is said of one key only.
        besides = list(own)
        for key in keys[1:]:
            values[key] = goods.draw(rng, self.updates, besides=besides)
            besides = [*own, values[keys[1]][-1]]
        if self.order == "blocks":
            others = [str(k) for k in rng.permutation(keys[1:])]
            sequence = [k for k in (*others[:turn], keys[0], *others[turn:]) for _ in range(self.updates)]
        else:
            sequence = rounds(rng, keys, self.updates, turn)
        said = {key: iter(values[key]) for key in keys}
        return Stream(tuple(sequence), tuple(next(said[key]) for key in sequence))


def some(rng: np.random.Generator, words: Alike, n: int, besides: Collection[str] = ()) -> list[str]:
    """`n` different words of one length; unlike those of `Alike.draw` they may start with the same token.

    Raises:
        Redraw: there are not so many.
    """
    left = [w for w in words.ids if w not in besides]
    if len(left) < n:
        raise Redraw(f"fewer than {n} words are of one length")
    return [str(w) for w in rng.permutation(left)[:n]]


def rounds(rng: np.random.Generator, keys: Sequence[str], n: int, turn: int) -> list[str]:
    """`n` rounds over all keys, each in an order of its own, with no key twice in a row (where there are several).

    Args:
        turn: turn of `keys[0]` in the last round.
    """
    others = [str(k) for k in rng.permutation(keys[1:])]
    out = [*others[:turn], keys[0], *others[turn:]]
    for _ in range(n - 1):
        earlier = [str(k) for k in rng.permutation(keys)]
        while len(keys) > 1 and earlier[-1] == out[0]:
            earlier = [str(k) for k in rng.permutation(keys)]
        out = earlier + out
    return out


def lines(wording: dict[str, str], stream: Stream, numbers: dict[str, int]) -> list[Piece]:
    """Introduction and lines of a stream; `numbers` gives each key's item, 0 is the one asked for."""
    out = []
    ages = dict.fromkeys(numbers, 0)
    for key, value in zip(reversed(stream.keys), reversed(stream.values), strict=True):
        age, item = ages[key], numbers[key]
        prefix, whole = (
            ("distractor_", "distractor") if item else ("stale_", "stale") if age else ("", "evidence")
        )
        words = {"key": (key, f"{prefix}key"), "value": (value, f"{prefix}value")}
        out.append(said(f" {wording['line']}", words, item, whole, age))
        ages[key] += 1
    return [Piece(wording["intro"]), *(piece for line in reversed(out) for piece in line)]


def said(wording: str, words: Words, item: int, within: str, hop: int) -> list[Piece]:
    """Like `phrase`, for the many lines of a stream: every piece has a hop."""
    out = []
    for text, name in _parts(wording):
        word, role = words[name] if name else ("", None)
        out.append(Piece(text + word, role, item, within, hop))
    return out


@cache
def _parts(wording: str) -> list[tuple[str, str]]:
    """What stands between the `{names}` of a wording, and each name with the space before it."""
    parts = re.split(r"( ?\{\w+\})", wording)
    return [(p[: p.index("{")], p.strip(" {}")) if p.endswith("}") else (p, "") for p in parts if p]
