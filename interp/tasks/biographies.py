"""Biographies: short lives of several people, and a question for one attribute of one of them.

After LongBioBench (Yang et al., arXiv 2506.02921), with its ladder from literal to understood: `standard` (the
question's own words), `paraphrase` (each sentence worded in its own way), `pronoun` (told in the first person, so that
only the heading names who), `multihop` (one biography refers to another), `unstated` (the answer may be missing).
Biographies, people and attributes are our own, and as short as small models need.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, get_args

import numpy as np

from interp.errors import UsageError
from interp.models.tokens import Tokens
from interp.tasks.base import Example, Ids, Piece, Redraw, Task, whole_number
from interp.tasks.compose import Asked, compose
from interp.tasks.life_words import Deck, Words
from interp.tasks.lives import ATTRIBUTES, NOT_STATED, Line, Person, Scene
from interp.tasks.pairs import data, in_turn
from interp.tasks.recall import asked as question_about
from interp.tasks.recall import phrase

Form = Literal["standard", "paraphrase", "pronoun", "multihop", "unstated"]

MOST_PEOPLE, MOST_SHOTS = 8, 2
_INSTRUCTION = "If the text below does not answer the question, the answer is"
_LINKS = 2
"""People of a `multihop` scene whose attribute is said by a link."""


@dataclass(frozen=True)
class Topic:
    """The attribute that is asked for, and how: the number of its wording."""

    attribute: str
    number: int

    @property
    def table(self) -> dict[str, Any]:
        """Values and wordings of the attribute."""
        return dict(data("biographies")["attributes"][self.attribute])

    @property
    def wording(self) -> dict[str, str]:
        """Sentence, question and stem."""
        return dict(self.table["wordings"][self.number])


@dataclass(frozen=True)
class Plan:
    """Who says what, by place in the text: `links` of the places that refer to others, the places that say a value."""

    asked: int
    foil: int
    links: dict[int, int]
    saying: frozenset[int]


class Biographies(Task):
    """What is said of one person among several?

    Candidates are the values of that attribute in the text (and `not stated`, where that may be right); the foil is the
    value of the person whom the twin `query_swap` asks about. Places in the text are asked about equally often, as is
    every attribute in every wording. Spans: `item` 0 is the person asked for, others follow in the order of the text;
    the name in a heading is a `subject`, or the `key` where the sentences say "I".

    Twins: `value_swap` exchanges two people's values, `query_swap` asks about another person, `needle_drop` puts a
    sentence that says nothing in the place of the evidence; of `pronoun`, `key_swap` exchanges the names of two
    headings; of `multihop`, `link_swap` exchanges whom two people refer to (hop 0 is the value, hop 1 the link).

    Of `unstated`, `query_swap` asks about someone of whom it is not said where it is said of the first, and the
    reverse; the other twin is `evidence_drop`, after which the answer is "not stated", or `evidence_add`, after which
    it no longer is. "Not stated" is right as often as any other candidate, so that who always says so scores chance;
    its words stand in an instruction in front.

    Args:
        form: standard, paraphrase, pronoun, multihop or unstated.
        people: biographies, 2 to 8 (4 at least for multihop).
        attributes: sentences in each, 1 to 6.
        density: share of the other people whose biographies state the attribute that is asked for, 0 to 1; one at
            least does. In the others a sentence that says nothing of the kind stands there.
        shots: solved questions about other people in front, 0 to 2; two people each (multihop: four).
    """

    name = "biographies"
    source = "biographies written for this project; after LongBioBench (arXiv 2506.02921)"
    copies: ClassVar[bool] = True

    def __init__(
        self,
        form: Form = "standard",
        people: int = 4,
        attributes: int = 4,
        density: float = 1.0,
        shots: int = 0,
        n: int = 64,
        seed: int = 0,
    ):
        if form not in get_args(Form):
            raise UsageError(f"task biographies: form is {form!r}; take of {', '.join(get_args(Form))}")
        if isinstance(density, bool) or not isinstance(density, int | float) or not 0 <= density <= 1:
            raise UsageError(f"task biographies: density is {density!r}; take a number from 0 to 1")
        self.form, self.density = form, float(density)
        self.people = whole_number(self.name, "people", people, 2 * _LINKS if form == "multihop" else 2)
        self.attributes = whole_number(self.name, "attributes", attributes, 1)
        self.shots = whole_number(self.name, "shots", shots, 0)
        for name, value, most in (
            ("people", people, MOST_PEOPLE),
            ("attributes", attributes, len(ATTRIBUTES)),
            ("shots", shots, MOST_SHOTS),
        ):
            if value > most:
                raise UsageError(f"task biographies: {name} is {value}; take {most} at most")
        super().__init__(
            n=n,
            seed=seed,
            form=form,
            people=people,
            attributes=attributes,
            density=self.density,
            shots=shots,
        )
        self._few = 2 * _LINKS if form == "multihop" else 2
        self._words: dict[str, Words] = {}

    def make(self, index: int, rng: np.random.Generator, tokens: Tokens) -> Example:
        # A solved question has values of two people; one more takes the place of what is not stated.
        names, values = self.people + self.shots * self._few, self.people + 2 * self.shots + 1
        if tokens.fingerprint not in self._words:
            self._words[tokens.fingerprint] = Words(tokens, names, values)
        words = self._words[tokens.fingerprint]
        deck = Deck(rng, words, names, values)
        turn = self._turn(index, len(ATTRIBUTES) * 2, "topic")
        topic = Topic(ATTRIBUTES[turn // 2], turn % 2)
        lead = self._lead(rng, words, deck, topic)
        others = [str(a) for a in rng.permutation([a for a in ATTRIBUTES if a != topic.attribute])]
        others = others[: self.attributes - 1]
        position = self._turn(index, self.people, "position")
        if self.form == "unstated":
            stated = self._turn(index, self._n_saying(self.people) + 1, "stated") > 0
            plan = self._plan_unstated(rng, self.people, position, stated)
        else:
            plan = self._plan(rng, self.people, position)
        scene = self._scene(rng, words, deck, topic, others, plan)
        clean, twins = self._twins(rng, words, deck, topic, plan, scene, lead)
        example = compose(
            self.name,
            tokens,
            clean,
            twins,
            cluster=f"{topic.attribute}-{topic.number}",
            meta=self._meta(topic, plan, scene),
            copies=True,
        )
        _parts_from_its_foil(example)
        return example

    def _turn(self, index: int, size: int, what: str) -> int:
        return in_turn(index, size, self.name, self.seed, what)

    def _n_saying(self, people: int) -> int:
        """Of how many people the text says the attribute."""
        if self.form == "multihop":
            return _LINKS + round(self.density * (people - 2 * _LINKS))
        stating = 1 + max(1, round(self.density * (people - 1)))
        return min(stating, people - 1) if self.form == "unstated" else stating

    def _plan(self, rng: np.random.Generator, people: int, asked: int) -> Plan:
        rest = [int(p) for p in rng.permutation([p for p in range(people) if p != asked])]
        saying = self._n_saying(people)
        if self.form == "multihop":
            foil, mine, theirs, *more = rest
            known = frozenset((mine, theirs, *more[: saying - _LINKS]))
            return Plan(asked, foil, {asked: mine, foil: theirs}, known)
        return Plan(asked, rest[0], {}, frozenset((asked, *rest[: saying - 1])))

    def _plan_unstated(self, rng: np.random.Generator, people: int, asked: int, stated: bool) -> Plan:
        """Who is asked about besides is one of whom it is said if it is not said of the first, and the reverse."""
        rest = [int(p) for p in rng.permutation([p for p in range(people) if p != asked])]
        saying = self._n_saying(people)
        if stated:
            return Plan(asked, rest[-1], {}, frozenset((asked, *rest[: saying - 1])))
        return Plan(asked, rest[0], {}, frozenset(rest[:saying]))

    def _scene(
        self,
        rng: np.random.Generator,
        words: Words,
        deck: Deck,
        topic: Topic,
        others: Sequence[str],
        plan: Plan,
        people: int | None = None,
    ) -> Scene:
        """Biographies with an own order of attributes each. What nobody says is put in by `instead` where asked for."""
        count = people or self.people
        told = "first" if self.form == "pronoun" else "third"
        names = [deck.name() for _ in range(count)]
        numbers = {a: int(rng.integers(2)) for a in others} | {topic.attribute: topic.number}
        holders = {holder: link for link, holder in plan.links.items()}
        own = _chains(count, plan, holders)
        ways = {a: rng.permutation(len(Topic(a, 0).table["paraphrases"])) for a in numbers}
        taken: set[str] = set()
        out = []
        for place in range(count):
            lines = {}
            for attribute, number in numbers.items():
                wording = self._sentence(Topic(attribute, number), ways[attribute], place)
                if attribute != topic.attribute or place in plan.saying:
                    lines[attribute] = Line(wording, value=deck.value(attribute))
                elif place in plan.links:
                    lines[attribute] = Line(topic.table["link"], link=names[plan.links[place]])
                elif place == plan.asked:
                    lines[attribute] = self._instead(rng, words, topic, wording, told, taken)
                else:
                    lines[attribute] = words.neutral(rng, told, taken)
                if not lines[attribute].value:
                    taken.add(lines[attribute].wording)
            order = [list(lines)[i] for i in rng.permutation(len(lines))]
            out.append(
                Person(
                    names[place],
                    tuple(lines[a] for a in order),
                    order.index(topic.attribute),
                    own[place],
                    int(place in plan.links),
                )
            )
        return Scene(tuple(out), told)

    def _sentence(self, topic: Topic, ways: np.ndarray, place: int) -> str:
        if self.form == "paraphrase":
            return str(topic.table["paraphrases"][ways[place % len(ways)]])
        return topic.wording["first" if self.form == "pronoun" else "third"]

    def _instead(
        self, rng: np.random.Generator, words: Words, topic: Topic, wording: str, told: str, taken: set[str]
    ) -> Line:
        return words.instead(rng, told, words.cost(wording, topic.attribute), taken)

    def _twins(
        self,
        rng: np.random.Generator,
        words: Words,
        deck: Deck,
        topic: Topic,
        plan: Plan,
        scene: Scene,
        lead: Sequence[Piece],
    ) -> tuple[Asked, dict[str, Asked]]:
        """The clean prompt and its twins."""
        options = tuple(dict.fromkeys(scene.people[p].asked.value for p in sorted(plan.saying)))
        if self.form == "unstated":
            options += (NOT_STATED,)
        asked, foil = plan.asked, plan.foil
        here, there = scene.people[scene.holder(asked)], scene.people[scene.holder(foil)]
        places = scene.holder(asked), scene.holder(foil)

        def ask(scene: Scene, place: int, options: tuple[str, ...] = options) -> Asked:
            answer = scene.value(place) or NOT_STATED
            front = (*self._instruction(answer), *lead)
            return Asked((*front, *self._pieces(scene, place, topic)), answer, options)

        clean = replace(ask(scene, asked), foil=scene.value(foil) or NOT_STATED)
        twins = {"query_swap": ask(scene, foil)}
        taken = {line.wording for person in scene.people for line in person.lines}
        wording = here.asked.wording
        if self.form == "unstated" and not here.asked.value:
            new = Line(topic.wording["third"], value=deck.value(topic.attribute))
            changed = scene.changed({asked: here.saying(new)})
            return clean, {**twins, "evidence_add": ask(changed, asked, (*options, new.value))}
        dropped = here.saying(self._instead(rng, words, topic, wording, scene.told, taken))
        without = scene.changed({places[0]: dropped})
        if self.form == "unstated":
            return clean, {**twins, "evidence_drop": ask(without, asked)}
        swapped = {
            places[0]: here.saying(replace(here.asked, value=there.asked.value)),
            places[1]: there.saying(replace(there.asked, value=here.asked.value)),
        }
        twins["value_swap"] = ask(scene.changed(swapped), asked)
        if self.form == "pronoun":
            names = {asked: replace(here, name=there.name), foil: replace(there, name=here.name)}
            twins["key_swap"] = ask(scene.changed(names), foil)
        if self.form == "multihop":
            a, b = scene.people[asked], scene.people[foil]
            links = {asked: a.saying(b.asked), foil: b.saying(a.asked)}
            twins["link_swap"] = ask(scene.changed(links), asked)
        twins["needle_drop"] = replace(clean, pieces=(*lead, *self._pieces(without, asked, topic)))
        return clean, twins

    def _pieces(self, scene: Scene, asked: int, topic: Topic) -> list[Piece]:
        """Biographies, question and the stem of the answer."""
        wording, name = topic.wording, {"asked": (scene.people[asked].name, "query")}
        if self.form != "unstated":
            return [*scene.pieces(asked), *question_about(wording["question"], wording["stem"], name)]
        question = phrase(f"Question: {wording['question']}", name, 0, within="question")
        return [*scene.pieces(asked), Piece("\n\n"), *question, Piece("\nAnswer:")]

    def _instruction(self, answer: str) -> list[Piece]:
        """What to say where the text does not; its words are item 0 where that is right, else one more distractor."""
        if self.form != "unstated":
            return []
        role, item = ("value", 0) if answer == NOT_STATED else ("distractor_value", self.people)
        return [Piece(_INSTRUCTION, "instruction"), Piece(f" {NOT_STATED}", role, item), Piece(".\n\n")]

    def _lead(self, rng: np.random.Generator, words: Words, deck: Deck, topic: Topic) -> list[Piece]:
        """Solved questions about other people, for the same attribute."""
        out: list[Piece] = []
        first = int(rng.integers(2))
        for shot in range(self.shots):
            asked = int(rng.integers(self._few))
            if self.form == "unstated":
                plan = self._plan_unstated(rng, self._few, asked, stated=(first + shot) % 2 == 0)
            else:
                plan = self._plan(rng, self._few, asked)
            scene = self._scene(rng, words, deck, topic, [], plan, self._few)
            answer = scene.value(asked) or NOT_STATED
            text = "".join(p.text for p in self._pieces(scene, asked, topic))
            role = "distractor_value" if answer == NOT_STATED else None
            out += [Piece(text), Piece(f" {answer}", role, self.people + 1 + shot), Piece("\n\n")]
        return out

    def _meta(self, topic: Topic, plan: Plan, scene: Scene) -> dict[str, Any]:
        return {
            "form": self.form,
            "attribute": topic.attribute,
            "wording": topic.number,
            "items": self.people,
            "names": [p.name for p in scene.people],
            "values": [p.asked.value or None for p in scene.people],
            "stating": len(plan.saying),
            "attributes": self.attributes,
            "shots": self.shots,
            "asked": scene.people[plan.asked].name,
            "position": plan.asked + 1,
            "foil_position": plan.foil + 1,
            "line": scene.people[scene.holder(plan.asked)].at + 1,
            "value_position": scene.holder(plan.asked) + 1,
            "hops": int(bool(plan.links)),
            "stated": bool(scene.value(plan.asked)),
        }


def _chains(people: int, plan: Plan, holders: dict[int, int]) -> list[int]:
    """Number of each person's chain: 0 for that which is asked for, the others in the order of the text."""
    first = {place: holders.get(place, place) for place in range(people)}
    order = [plan.asked, *(p for p in range(people) if first[p] == p and p != plan.asked)]
    return [order.index(first[place]) for place in range(people)]


def _parts_from_its_foil(example: Example) -> None:
    """Raise `Redraw` unless answer and foil differ at the token where the candidates part ways."""
    columns = zip(*example.candidates, strict=False)
    at = next((i for i, column in enumerate(columns) if len(set(column)) > 1), None)
    own: Ids = example.answer_ids
    if at is None or own[at] == example.foil_ids[at]:
        raise Redraw("answer and foil start alike")
