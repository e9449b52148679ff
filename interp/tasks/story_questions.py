"""Questions about a story: what may be asked, what the answer is, and which events it follows from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Literal, get_args

from interp.tasks.pairs import data
from interp.tasks.story_world import Cast, Event, Fact, Support, World

Question = Literal["where_person", "where_object", "where_was_object", "yes_no", "count", "list", "give"]
Slot = tuple[int, str]
"""Number of an event, and which of its fields: place, thing or to."""

QUESTIONS = get_args(Question)

BY_FACTS: dict[int, Question] = {1: "where_person", 2: "where_object", 3: "where_was_object"}
"""What is asked by default for so many supporting facts."""

LEAST: dict[str, int] = {"where_object": 2, "where_was_object": 3, "list": 2}
"""Supporting facts of a question, at least; 1 of the others."""

MOST_FACTS: dict[str, int] = {
    "where_person": 1,
    "where_object": 2,
    "where_was_object": 4,
    "yes_no": 2,
    "give": 1,
}
"""Supporting facts of a question, at most, where sentences neither refer to others nor tell who joins whom."""

ANSWERS: dict[str, str] = {"count": "thing", "list": "thing", "give": "to"}
"""Field of an event that may hold the answer; the place for the others."""


@dataclass(frozen=True)
class Ask:
    """A question with its answer.

    Attributes:
        wording: which of the question wordings.
        about: what fills it in: person, thing, place.
        support: events that the answer follows from, in the order of the story.
        values: where the answer stands, or what it is put together from.
    """

    wording: str
    about: tuple[tuple[str, str], ...]
    answer: str
    support: tuple[int, ...]
    values: tuple[Slot, ...]


def asks(question: str, told: Sequence[Event], world: World, cast: Cast) -> list[Ask]:
    """Every question of a kind that a story answers."""
    makers = {
        "where_person": _where_person,
        "where_object": _where_object,
        "where_was_object": _where_was,
        "yes_no": _yes_no,
        "count": _count,
        "list": _list,
        "give": _give,
    }
    return list(makers[question](told, world, cast))


def options(question: str, told: Sequence[Event], cast: Cast) -> tuple[str, ...]:
    """The closed set of answers of a kind of question."""
    if question == "yes_no":
        return ("yes", "no")
    if question == "count":
        return tuple(data("stories")["numbers"])
    if question == "list":
        return tuple(f"{a} and the {b}" for a, b in combinations(_by_mention(told), 2))
    return cast.people if question == "give" else cast.places


def _by_mention(told: Sequence[Event]) -> list[str]:
    """The things of a story in the order of their first mention; those that are never mentioned are left out."""
    return list(dict.fromkeys(e.thing for e in told if e.thing))


def _placed(told: Sequence[Event], fact: Fact) -> tuple[Slot, ...]:
    """The word for a place among the events that say who is there."""
    return ((max(i for i in fact.support if told[i].place == fact.what), "place"),)


def _where_person(told: Sequence[Event], world: World, cast: Cast) -> Iterator[Ask]:
    for person, fact in world.where.items():
        yield Ask("where_person", (("person", person),), fact.what, _order(fact.support), _placed(told, fact))


def _where_object(told: Sequence[Event], world: World, cast: Cast) -> Iterator[Ask]:
    for thing, trail in world.trail.items():
        fact = trail[-1]
        yield Ask("where_object", (("thing", thing),), fact.what, _order(fact.support), _placed(told, fact))


def _where_was(told: Sequence[Event], world: World, cast: Cast) -> Iterator[Ask]:
    for thing, trail in world.trail.items():
        been = [fact.what for fact in trail]
        for before, now in pairwise(trail):
            if been.count(now.what) == 1:
                yield Ask(
                    "where_was_object",
                    (("thing", thing), ("place", now.what)),
                    before.what,
                    _order(before.support | now.support),
                    _placed(told, before),
                )


def _yes_no(told: Sequence[Event], world: World, cast: Cast) -> Iterator[Ask]:
    known = [("person", p, f) for p, f in world.where.items()]
    known += [("thing", t, trail[-1]) for t, trail in world.trail.items()]
    for what, name, fact in known:
        wording = "is_person" if what == "person" else "is_object"
        for place in cast.places:
            answer = "yes" if place == fact.what else "no"
            about = ((what, name), ("place", place))
            yield Ask(wording, about, answer, _order(fact.support), _placed(told, fact))


def _handled(told: Sequence[Event], person: str) -> tuple[int, ...]:
    """Events by which a person got or gave away things, and those that say who is meant in them."""
    out: set[int] = set()
    named = 0
    for i, e in enumerate(told):
        named = named if e.pronoun else i
        if e.thing and person in (*e.who, e.to):
            out |= {i, named}
    return tuple(sorted(out))


def _things_of(told: Sequence[Event], world: World, person: str) -> dict[str, Slot]:
    """The things that a person has, each with the event by which they came to have it."""
    return {t: (max(world.holder[t].support), "thing") for t in world.held(person)}


def _count(told: Sequence[Event], world: World, cast: Cast) -> Iterator[Ask]:
    numbers = data("stories")["numbers"]
    for person in cast.people:
        support, things = _handled(told, person), _things_of(told, world, person)
        if support and len(things) < len(numbers):
            answer = numbers[len(things)]
            yield Ask("count", (("person", person),), answer, support, tuple(things.values()))


def _list(told: Sequence[Event], world: World, cast: Cast) -> Iterator[Ask]:
    for person in cast.people:
        things = _things_of(told, world, person)
        if len(things) == 2:
            a, b = sorted(things, key=_by_mention(told).index)
            support = _handled(told, person)
            yield Ask("list", (("person", person),), f"{a} and the {b}", support, tuple(things.values()))


def _give(told: Sequence[Event], world: World, cast: Cast) -> Iterator[Ask]:
    sent = [(e.who, e.thing) for e in told if e.kind == "send"]
    named = 0
    for i, e in enumerate(told):
        named = named if e.pronoun else i
        if e.kind == "send" and sent.count((e.who, e.thing)) == 1:
            about = (("person", e.who[0]), ("thing", e.thing))
            yield Ask("give", about, e.to, _order(frozenset((i, named))), ((i, "to"),))


def _order(support: Support) -> tuple[int, ...]:
    return tuple(sorted(support))
