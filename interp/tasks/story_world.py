"""A small world of people, places and things: what happens in it, what is where afterwards, and which events say so.

After the simulation behind bAbI (Weston et al., arXiv 1502.05698): each fact of the state carries the events that it
follows from, so that the supporting sentences of an answer are known by construction. Things go where their holder
goes; who joins another is where the other one is; who has left a place is nowhere that is known.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

Kind = Literal["move", "take", "drop", "send", "join", "leave"]
Support = frozenset[int]
Told = tuple["Event", ...]

STYLES = ("coreference", "conjunction", "company", "negation")
"""How stories may be told: by pronouns, about two people at once, with people who join others or have left."""

_PRONOUN = 0.9
_SAME_ACTOR = 0.6
_TWO_ACTORS = 0.4
_NEW_PLACE = 0.5


@dataclass(frozen=True)
class Event:
    """Something that people do. `to` is who is sent a thing or joined; `pronoun`: the same people as just before."""

    kind: Kind
    who: tuple[str, ...]
    thing: str = ""
    place: str = ""
    to: str = ""
    wording: int = 0
    pronoun: bool = False


@dataclass(frozen=True)
class Cast:
    """Who and what a story is about."""

    people: tuple[str, ...]
    places: tuple[str, ...]
    things: tuple[str, ...]


@dataclass(frozen=True)
class Fact:
    """Something that is so, and the numbers of the events that it follows from."""

    what: str
    support: Support


@dataclass
class World:
    """The state after some events.

    Attributes:
        where: place of each person, where it is known.
        holder: who has each thing.
        trail: places where each thing has been, the last one where it is.
        named: number of the last event that names who it is about.
    """

    where: dict[str, Fact] = field(default_factory=dict)
    holder: dict[str, Fact] = field(default_factory=dict)
    trail: dict[str, list[Fact]] = field(default_factory=dict)
    named: int = 0

    def happen(self, number: int, event: Event) -> bool:
        """Let an event happen; False, and nothing has, where it cannot."""
        if not getattr(self, f"_can_{event.kind}")(event):
            return False
        if not event.pronoun:
            self.named = number
        getattr(self, f"_{event.kind}")(event, frozenset((self.named, number)))
        return True

    def held(self, person: str) -> list[str]:
        """Things that a person has."""
        return [thing for thing, fact in self.holder.items() if fact.what == person]

    def _at(self, person: str) -> str:
        return self.where[person].what if person in self.where else ""

    def _can_move(self, e: Event) -> bool:
        return all(self._at(p) != e.place for p in e.who)

    def _can_take(self, e: Event) -> bool:
        trail = self.trail.get(e.thing)
        return e.thing not in self.holder and (not trail or trail[-1].what == self._at(e.who[0]))

    def _can_drop(self, e: Event) -> bool:
        return e.thing in self.held(e.who[0]) and bool(self._at(e.who[0]))

    def _can_send(self, e: Event) -> bool:
        known = self._at(e.to) or not self.trail.get(e.thing)
        return e.to not in e.who and e.thing in self.held(e.who[0]) and bool(known)

    def _can_join(self, e: Event) -> bool:
        return e.to not in e.who and bool(self._at(e.to)) and self._at(e.to) != self._at(e.who[0])

    def _can_leave(self, e: Event) -> bool:
        return self._at(e.who[0]) == e.place and not self.held(e.who[0])

    def _move(self, e: Event, said: Support) -> None:
        for person in e.who:
            self._arrive(person, Fact(e.place, said))

    def _join(self, e: Event, said: Support) -> None:
        at = self.where[e.to]
        self._arrive(e.who[0], Fact(at.what, said | at.support))

    def _arrive(self, person: str, at: Fact) -> None:
        self.where[person] = at
        for thing in self.held(person):
            self._thing_at(thing, at, self.holder[thing].support)

    def _take(self, e: Event, said: Support) -> None:
        self._hold(e.who[0], e.thing, said)

    def _send(self, e: Event, said: Support) -> None:
        self._hold(e.to, e.thing, said)

    def _hold(self, person: str, thing: str, said: Support) -> None:
        self.holder[thing] = Fact(person, said)
        if person in self.where:
            self._thing_at(thing, self.where[person], said)

    def _drop(self, e: Event, said: Support) -> None:
        self._thing_at(e.thing, self.where[e.who[0]], said)
        del self.holder[e.thing]

    def _leave(self, e: Event, said: Support) -> None:
        del self.where[e.who[0]]

    def _thing_at(self, thing: str, at: Fact, also: Support) -> None:
        """A thing is where somebody is; of two reasons why it is where it was, the later one counts."""
        trail = self.trail.setdefault(thing, [])
        if trail and trail[-1].what == at.what:
            trail.pop()
        trail.append(Fact(at.what, at.support | also))


def after(told: Sequence[Event]) -> World | None:
    """The world after a story; None where one of its events cannot happen."""
    world = World()
    return world if all(world.happen(i, e) for i, e in enumerate(told)) else None


def tell(
    rng: np.random.Generator,
    cast: Cast,
    sentences: int,
    weights: Mapping[Kind, float],
    styles: Sequence[str],
    *,
    everywhere: bool,
) -> Told:
    """A story of so many events.

    Args:
        weights: how often each kind of event is tried.
        styles: of `STYLES`.
        everywhere: every place has to be gone to.
    """
    dice = _dice(rng)
    world, told, missing = World(), list[Event](), list(cast.places) if everywhere else []
    while len(told) < sentences:
        forced = len(missing) >= sentences - len(told)
        kind = "move" if forced else _weighted(weights, next(dice))
        event = _propose(kind, cast, world, told, missing, styles, forced, dice)
        if event is not None and world.happen(len(told), event):
            told.append(event)
            if event.place in missing:
                missing.remove(event.place)
    return tuple(told)


def _propose(
    kind: Kind,
    cast: Cast,
    world: World,
    told: Sequence[Event],
    missing: Sequence[str],
    styles: Sequence[str],
    forced: bool,
    dice: Iterator[float],
) -> Event | None:
    who, pronoun = _actors(kind, cast, told, styles, dice)
    wording = int(next(dice) * 12)
    if kind == "move":
        unseen = bool(missing) and (forced or next(dice) < _NEW_PLACE)
        place = _pick(missing if unseen else cast.places, dice)
        return Event(kind, who, place=place, wording=wording, pronoun=pronoun)
    if len(who) > 1:
        return None
    if kind == "leave":
        at = world.where.get(who[0])
        return Event(kind, who, place=at.what, wording=wording, pronoun=pronoun) if at else None
    to = _pick(cast.people, dice) if kind in ("join", "send") else ""
    if kind == "join":
        return Event(kind, who, to=to, wording=wording, pronoun=pronoun)
    things = cast.things if kind == "take" else world.held(who[0])
    return Event(kind, who, _pick(things, dice), "", to, wording, pronoun) if things else None


def _actors(
    kind: Kind, cast: Cast, told: Sequence[Event], styles: Sequence[str], dice: Iterator[float]
) -> tuple[tuple[str, ...], bool]:
    """Who does something next, and whether a pronoun says so: those of the event before, if it was about no other."""
    again = "coreference" in styles and bool(told) and not told[-1].to
    if again and next(dice) < _SAME_ACTOR:
        who = told[-1].who
    else:
        who = (_pick(cast.people, dice),)
        if kind == "move" and "conjunction" in styles and next(dice) < _TWO_ACTORS:
            who = (*who, _pick([p for p in cast.people if p not in who], dice))
    return who, again and who == told[-1].who and next(dice) < _PRONOUN


def _dice(rng: np.random.Generator) -> Iterator[float]:
    """Uniform numbers below one, drawn many at a time."""
    while True:
        yield from rng.random(128).tolist()


def _pick(options: Sequence[str], dice: Iterator[float]) -> str:
    return options[int(next(dice) * len(options))]


def _weighted(weights: Mapping[Kind, float], at: float) -> Kind:
    at *= sum(weights.values())
    for kind, weight in weights.items():
        at -= weight
        if at < 0:
            return kind
    return kind
