"""Needles: key-value sentences of several kinds, and pools of keys and values large enough that none is known.

Each template states a fact about a key in a plain sentence, asks for it, and begins the answer; no template, key or
value stands out from the prose around it, and values never occur in that prose. The pools lie in `data/needles.json`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np

from interp.models.tokens import Tokens
from interp.tasks.base import Ids, Piece, Redraw, continuations

KINDS = ("names", "words", "numbers", "phrases")

QUESTION = "\n\nQuestion: "
"""What parts the context from the question."""

_TRIES = 40
_HEX = "0123456789abcdef"
_KEPT = 100_000
"""Strings whose ids are remembered."""

_PARTS = 100
"""Lists of words whose lengths are remembered."""


@dataclass(frozen=True)
class Template:
    """A fact about a key, the question for it, and the stem of the answer, with `{key}` and `{value}` in them."""

    name: str
    kind: str
    about: str
    fact: str
    question: str
    stem: str

    def needle(self, key: str, value: str, item: int, gap: str = "") -> list[Piece]:
        """The fact as pieces: `key`, `value` and `evidence` for item 0, the `distractor` roles for others.

        A space belongs to the word after it, also the `gap` before the sentence: a tokenizer makes it the start of that
        word's first token, or a token of its own, and a twin has to have room for either.
        """
        prefix, whole = ("", "evidence") if item == 0 else ("distractor_", "distractor")
        out = []
        for part in _split(gap + self.fact):
            if part.endswith("{key}"):
                out.append(Piece(part.format(key=key), f"{prefix}key", item, whole))
            elif part.endswith("{value}"):
                out.append(Piece(part.format(value=value), f"{prefix}value", item, whole))
            else:
                out.append(Piece(part, None, item, whole))
        return out

    def sentence(self, key: str, value: str) -> str:
        """The fact as text."""
        return self.fact.format(key=key, value=value)

    def ask(self, key: str) -> list[Piece]:
        """The end of the prompt: `question` and stem, with the `query` wherever the key stands."""
        out = [Piece(QUESTION.rstrip())]
        for text, within in ((f" {self.question}", "question"), (f"\nAnswer: {self.stem}", None)):
            for part in _split(text):
                role = "query" if part.endswith("{key}") else None
                out.append(Piece(part.format(key=key), role, 0, within))
        return out


def _split(text: str) -> list[str]:
    """Text at its `{key}` and `{value}`, each with the space before it."""
    return [part for part in re.split(r"( ?\{(?:key|value)\})", text) if part]


@dataclass(frozen=True)
class Pool:
    """Strings put together from parts: one word of each list, a number of several digits, or groups of hex digits."""

    parts: tuple[tuple[str, ...], ...] = ()
    digits: tuple[int, ...] = ()
    groups: tuple[int, ...] = ()

    def draw(self, rng: np.random.Generator) -> str:
        """One string."""
        if self.digits:
            return self._number(rng, int(rng.choice(self.digits)))
        if self.groups:
            return "-".join("".join(_HEX[i] for i in rng.integers(16, size=size)) for size in self.groups)
        return " ".join(part[rng.integers(len(part))] for part in self.parts)

    @staticmethod
    def _number(rng: np.random.Generator, digits: int) -> str:
        return str(rng.integers(10 ** (digits - 1), 10**digits))

    def __len__(self) -> int:
        if self.digits:
            return sum(9 * 10 ** (d - 1) for d in self.digits)
        if self.groups:
            return int(16 ** sum(self.groups))
        return int(np.prod([len(part) for part in self.parts]))


@cache
def _data() -> dict[str, Any]:
    return json.loads((files("interp.tasks") / "data" / "needles.json").read_text("utf-8"))


@cache
def templates(kind: str) -> tuple[Template, ...]:
    """The templates of a kind."""
    return tuple(Template(kind=kind, **t) for t in _data()["templates"][kind])


@cache
def values(kind: str) -> Pool:
    """The values of a kind."""
    if kind == "numbers":
        return Pool(digits=tuple(_data()["digits"]))
    return Pool(tuple(tuple(part) for part in _data()["values"][kind]))


@cache
def keys(about: str) -> Pool:
    """The keys of a class: `person` or `place`."""
    return Pool(tuple(tuple(part) for part in _data()["keys"][about]))


class Drawer:
    """Draws strings that are as long, in tokens, as a given one; corrupt twins are aligned because of that."""

    def __init__(self, tokens: Tokens):
        self.tokens = tokens
        self._parts: dict[tuple[str, ...], np.ndarray] = {}
        self._known: dict[tuple[str, str], Ids] = {}

    def alike(self, pool: Pool, rng: np.random.Generator, model: str, n: int, before: str) -> dict[str, Ids]:
        """`model` and `n` other strings of `pool` that are as long in tokens behind `before`, with their ids.

        Raises:
            Redraw: there are not that many.
        """
        (own,) = self.ids(before, [model])
        out = {model: own}
        for _ in range(_TRIES):
            new = [t for t in dict.fromkeys(self._proposals(pool, rng, model)) if t not in out]
            new = new[: n + 1 - len(out)]
            for text, ids in zip(
                new, continuations(self.tokens, before, [" " + t for t in new]), strict=True
            ):
                if len(ids) == len(own):
                    out[text] = ids
            if len(out) == n + 1:
                return out
        raise Redraw(f"fewer than {n} keys or values are as long in tokens as '{model}'")

    def of_one_length(self, words: Sequence[str]) -> Pool:
        """Those words that have as many tokens as most of them."""
        part = tuple(words)
        lengths = self._lengths(part)
        usual = np.bincount(lengths).argmax()
        return Pool((tuple(w for w, n in zip(part, lengths, strict=True) if n == usual),))

    def ids(self, before: str, texts: Sequence[str]) -> list[Ids]:
        """Ids of each text behind a word and a space."""
        new = [t for t in texts if (before, t) not in self._known]
        if len(self._known) > _KEPT:
            self._known.clear()
            new = list(texts)
        for text, ids in zip(new, continuations(self.tokens, before, [" " + t for t in new]), strict=True):
            self._known[before, text] = ids
        return [self._known[before, t] for t in texts]

    def _proposals(self, pool: Pool, rng: np.random.Generator, model: str) -> Sequence[str]:
        """Strings that are likely as long: numbers of as many digits, parts whose lengths add up to the same."""
        if pool.digits:
            return [pool._number(rng, len(model)) for _ in range(16)]
        if pool.groups:
            # Another digit for every digit, and the letters as they are: many tokenizers have a token for each digit.
            return [re.sub(r"\d", lambda _: str(rng.integers(10)), model) for _ in range(16)]
        lengths = [self._lengths(part) for part in pool.parts]
        drawn = [rng.integers(len(part), size=256) for part in pool.parts]
        sums = sum(known[index] for known, index in zip(lengths, drawn, strict=True))
        wanted = self._length(pool, lengths, model)
        rows = np.flatnonzero(sums == wanted)[:16]
        return [" ".join(p[i[row]] for p, i in zip(pool.parts, drawn, strict=True)) for row in rows]

    def _length(self, pool: Pool, lengths: list[np.ndarray], model: str) -> int:
        total, rest = 0, model
        for part, known in zip(pool.parts, lengths, strict=True):
            # Longest first: one entry may begin another.
            index = max((i for i, p in enumerate(part) if rest.startswith(p)), key=lambda i: len(part[i]))
            total += int(known[index])
            rest = rest[len(part[index]) + 1 :]
        return total

    def _lengths(self, part: tuple[str, ...]) -> np.ndarray:
        if part not in self._parts:
            if len(self._parts) > _PARTS:
                self._parts.clear()
            self._parts[part] = np.array([len(ids) for ids in self.ids("is", part)])
        return self._parts[part]
