"""Short biographies as data: who is told of, what each sentence says, and how that becomes pieces of a prompt.

A `Scene` is the whole context of an example. Prompt, spans and twins follow from it, so that a twin is the same scene
with one thing changed. Sentences and words lie in `data/biographies.json` and were written for this project.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from interp.errors import UsageError
from interp.models.tokens import Tokens
from interp.tasks.base import Ids, Piece, Redraw, continuations
from interp.tasks.pairs import data
from interp.tasks.recall import phrase

ATTRIBUTES = ("birthplace", "job", "hobby", "subject", "pet", "language")
NOT_STATED = "not stated"

_ANCHOR = "So it is."
"""Text before a sentence that is measured."""


@dataclass(frozen=True)
class Line:
    """A sentence of a biography.

    Attributes:
        wording: with `{key}` for the person's own name (if it is named), and `{value}` or `{link}`.
        value: what the attribute is.
        link: name of the person whose attribute it is too.
    """

    wording: str
    value: str = ""
    link: str = ""

    def text(self, name: str) -> str:
        """The sentence about a person."""
        return self.wording.format(key=name, value=self.value, link=self.link)


@dataclass(frozen=True)
class Person:
    """A biography.

    Attributes:
        lines: its sentences.
        at: number of the one about the attribute that is asked for (a neutral one stands there if nothing says it).
        chain: number of the chain that it belongs to; each person is one alone, but where one links to another.
        hop: 1 for a person whose attribute is said by a link, else 0.
    """

    name: str
    lines: tuple[Line, ...]
    at: int
    chain: int
    hop: int = 0

    @property
    def asked(self) -> Line:
        """The sentence about the attribute that is asked for."""
        return self.lines[self.at]

    def saying(self, line: Line) -> Person:
        """The same biography with another sentence about that attribute."""
        return replace(self, lines=(*self.lines[: self.at], line, *self.lines[self.at + 1 :]))


@dataclass(frozen=True)
class Scene:
    """Biographies in the order of the text; `told` is `third` or `first` person."""

    people: tuple[Person, ...]
    told: str

    def changed(self, changes: Mapping[int, Person]) -> Scene:
        """The scene with other biographies in some places."""
        return replace(self, people=tuple(changes.get(i, p) for i, p in enumerate(self.people)))

    def holder(self, asked: int) -> int:
        """Place of the person whose biography holds the value of the person at `asked`."""
        link = self.people[asked].asked.link
        return next(i for i, p in enumerate(self.people) if p.name == link) if link else asked

    def value(self, asked: int) -> str:
        """What the scene says about the person at a place; empty where it does not say."""
        return self.people[self.holder(asked)].asked.value

    def items(self, asked: int) -> list[int]:
        """The item of each person's spans: 0 for the chain that is asked for, the others by their number."""
        own = self.people[asked].chain
        return [{own: 0, 0: own}.get(p.chain, p.chain) for p in self.people]

    def pieces(self, asked: int) -> list[Piece]:
        """The biographies with their roles where the person at `asked` is asked about."""
        out: list[Piece] = []
        for place, (person, item) in enumerate(zip(self.people, self.items(asked), strict=True)):
            prefix = "distractor_" if item else ""
            before, after = data("biographies")["heading"][self.told].split(" {name}")
            role = f"{prefix}key" if self.told == "first" else "subject"
            out += [
                Piece(("\n\n" if place else "") + before),
                Piece(f" {person.name}", role, item, hop=person.hop),
                Piece(after),
            ]
            for number, line in enumerate(person.lines):
                if number == person.at:
                    out += _marked(line, person, item, prefix)
                else:
                    out.append(Piece(f" {line.text(person.name)}"))
        return out


def _marked(line: Line, person: Person, item: int, prefix: str) -> list[Piece]:
    """The sentence about the attribute that is asked for: evidence, a distractor, or a filler that says nothing."""
    if not line.value and not line.link:
        return [Piece(f" {line.text(person.name)}", within="filler", item=item, hop=person.hop)]
    words = {
        "key": (person.name, f"{prefix}key"),
        "value": (line.value, f"{prefix}value"),
        "link": (line.link, f"{prefix}link"),
    }
    whole = "distractor" if item else "evidence"
    pieces = phrase(f" {line.wording}", words, item, whole)
    return [replace(p, hop=person.hop) for p in pieces] if person.hop else pieces


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
