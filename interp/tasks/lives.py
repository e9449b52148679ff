"""Short biographies as data: who is told of, what each sentence says, and how that becomes pieces of a prompt.

A `Scene` is the whole context of an example. Prompt, spans and twins follow from it, so that a twin is the same scene
with one thing changed. Sentences and words lie in `data/biographies.json` and were written for this project.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from interp.tasks.base import Piece
from interp.tasks.pairs import data
from interp.tasks.recall import phrase

ATTRIBUTES = ("birthplace", "job", "hobby", "subject", "pet", "language")
NOT_STATED = "not stated"


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
