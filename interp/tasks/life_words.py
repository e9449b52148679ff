"""Words that biographies are told with, under one tokenizer: of one length, so that one can take another's place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from interp.errors import UsageError
from interp.models.tokens import Tokens
from interp.tasks.base import Ids, Redraw, continuations
from interp.tasks.lives import ATTRIBUTES, Line
from interp.tasks.pairs import data

_ANCHOR = "So it is."
"""Text before a sentence that is measured."""


class OneLength:
    """Words of one length in tokens behind a space, so that one can stand in another's place.

    Those of one token, where at least `least` of them start differently; else those of the length that most have.

    Attributes:
        ids: ids of each word behind a space.

    Raises:
        UsageError: there are fewer than `least`.
    """

    def __init__(self, tokens: Tokens, words: Sequence[str], least: int, what: str):
        lengths: dict[int, dict[str, Ids]] = {}
        for word, ids in zip(words, continuations(tokens, "the", [f" {w}" for w in words]), strict=True):
            lengths.setdefault(len(ids), {})[word] = ids
        single = len({ids[0] for ids in lengths.get(1, {}).values()})
        size = 1 if single >= least else max(lengths, key=lambda size: (len(lengths[size]), -size))
        self.ids = lengths[size]
        if len(self.ids) < least:
            raise UsageError(
                f"task biographies: {least} {what} of one length are needed, and this tokenizer has "
                f"{len(self.ids)}; take fewer people or shots"
            )

    def draw(self, rng: np.random.Generator, n: int) -> list[str]:
        """`n` words, which start with different tokens as far as there are such."""
        words = list(self.ids)
        shuffled = [words[i] for i in rng.permutation(len(words)).tolist()]
        first: dict[int, str] = {}
        for word in shuffled:
            first.setdefault(self.ids[word][0], word)
            if len(first) == n:
                return list(first.values())
        # Those that start alike come last; none is told by its place.
        chosen = [*first.values(), *(w for w in shuffled if first[self.ids[w][0]] != w)][:n]
        return [chosen[i] for i in rng.permutation(n)]


class Words:
    """Names, values and neutral sentences under one tokenizer, and how long sentences are."""

    def __init__(self, tokens: Tokens, people: int, values: int):
        self.tokens = tokens
        table: dict[str, Any] = data("biographies")
        self.names = OneLength(tokens, data("words")["names"], people, "names")
        self.values = {
            name: OneLength(tokens, table["attributes"][name]["values"], values, f"values of the {name}")
            for name in ATTRIBUTES
        }
        self._anchor = len(tokens.encode(_ANCHOR))
        self._known: dict[tuple[str, str], int] = {}
        self._neutral = {told: [s[told] for s in table["neutral"]] for told in ("third", "first")}
        self._fills: dict[tuple[str, int], list[str]] = {}

    def cost(self, wording: str, attribute: str) -> int:
        """Tokens of a sentence behind another; names are of one length, and so are the values of an attribute."""
        known = self._known.get((wording, attribute))
        if known is None:
            name = next(iter(self.names.ids))
            value = next(iter(self.values[attribute].ids)) if attribute else ""
            text = f"{_ANCHOR} {wording.format(key=name, value=value)}"
            known = self._known[wording, attribute] = len(self.tokens.encode(text)) - self._anchor
        return known

    def neutral(self, rng: np.random.Generator, told: str, taken: set[str]) -> Line:
        """A sentence that says nothing of an attribute, and is not `taken`."""
        free = [wording for wording in self._neutral[told] if wording not in taken]
        return Line(free[rng.integers(len(free))])

    def instead(self, rng: np.random.Generator, told: str, total: int, taken: set[str]) -> Line:
        """A neutral sentence of so many tokens, or two together; none of them `taken`.

        Raises:
            Redraw: there is none.
        """
        if (told, total) not in self._fills:
            self._fills[told, total] = self._of_cost(told, total)
        free = [w for w in self._fills[told, total] if w not in taken]
        if not free:
            raise Redraw(f"no neutral sentence has {total} tokens")
        return Line(free[rng.integers(len(free))])

    def _of_cost(self, told: str, total: int) -> list[str]:
        """Neutral sentences of so many tokens; where there is none, such with a few more words, or two together."""
        plain = self._neutral[told]
        costs = {wording: self.cost(wording, "") for wording in plain}
        if single := [w for w in plain if costs[w] == total]:
            return single
        tails = data("biographies")["tails"]
        tailed = [f"{w[:-1]}{tail}." for w in plain for tail in tails if costs[w] < total]
        if longer := [w for w in tailed if self.cost(w, "") == total]:
            return longer
        return [
            f"{a} {b}"
            for a in plain
            for b in tailed
            if a[:-1] not in b and costs[a] + self.cost(b, "") == total
        ]


class Deck:
    """Names and values of one example, each dealt once."""

    def __init__(self, rng: np.random.Generator, words: Words, names: int, values: int):
        self._rng, self._words, self._most = rng, words, values
        self._names = words.names.draw(rng, names)
        self._values: dict[str, list[str]] = {}

    def name(self) -> str:
        """Another name."""
        return self._names.pop()

    def value(self, attribute: str) -> str:
        """Another value of an attribute."""
        if attribute not in self._values:
            self._values[attribute] = self._words.values[attribute].draw(self._rng, self._most)
        return self._values[attribute].pop()
