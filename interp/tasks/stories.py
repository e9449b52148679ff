"""Stories: people move about, take things along, put them down and send them on; a question about what is where.

After bAbI (Weston et al., arXiv 1502.05698), and Dyna-bAbI's controlled composition (Tamari et al., arXiv 2112.00086):
the kind of question, the number of supporting facts and the ways of telling are parameters. People, places, things and
wordings were written for this project. The world knows which sentences each answer follows from
(`interp.tasks.story_world`), so these are spans by construction.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from interp.errors import UsageError
from interp.models.tokens import Tokens
from interp.tasks.base import Example, Piece, Redraw, Task, whole_number
from interp.tasks.compose import Asked, compose
from interp.tasks.pairs import Alike, data, in_turn
from interp.tasks.recall import phrase
from interp.tasks.story_questions import ANSWERS, BY_FACTS, LEAST, MOST_FACTS, QUESTIONS, Ask, asks, options
from interp.tasks.story_world import STYLES, Cast, Event, Kind, Told, after, tell

MOST = (6, 6, 8)
"""People, places and things."""

MOST_SHOTS = 2

_TELLINGS = 80
_LEAST_THINGS = {("give", "people"): 3, ("count", "things"): 3, ("list", "things"): 4}
"""Sizes that a kind of question needs, where that is more than two."""

_WEIGHTS: dict[str, dict[Kind, float]] = {
    "where_person": {"move": 5, "take": 1, "drop": 0.5, "send": 0.5},
    "where_object": {"move": 4, "take": 3, "drop": 0.5, "send": 0.5},
    "where_was_object": {"move": 4, "take": 3, "drop": 0.5, "send": 0.5},
    "yes_no": {"move": 5, "take": 1, "drop": 0.5, "send": 0.5},
    "count": {"move": 1, "take": 4, "drop": 1, "send": 1},
    "list": {"move": 1, "take": 5, "drop": 0.3, "send": 0.7},
    "give": {"move": 1, "take": 3, "drop": 0.3, "send": 3},
}
"""How often each kind of event is tried in the stories of a question."""


@dataclass(frozen=True)
class Story:
    """A story, a question about it, and the closed set of answers."""

    cast: Cast
    opening: str
    told: Told
    ask: Ask
    options: tuple[str, ...]


class Stories(Task):
    """What is where, who has what, and where it was before, after a story of several sentences.

    Supporting sentences are `evidence` of item 0, with their order as the hop; all others are `distractor`. The word
    that the answer is read from is `value`, words of its kind elsewhere are `distractor_value`. Twins: `value_swap`
    changes the place of the last move that counts (in `give`, the receiver), `query_swap` asks about another person,
    thing or place, `key_swap` (in `count`) gives a thing to another person. Every twin is a story that can happen.

    Where the answer is a place, every place of the closed set stands in the story; in `give` every person does.

    Args:
        facts: supporting sentences of the answer; None for any number, as it comes.
        question: one of where_person, where_object, where_was_object, yes_no, count, list and give; by default the
            place of a person (one fact), of a thing (two) or of a thing before it was moved (three).
        sentences: of the story, behind its opening.
        people, places, things: how many there are.
        style: ways of telling, of `coreference` (pronouns; to resolve one takes a fact more), `conjunction` (two
            people at once), `company` (who joins another is where that one is) and `negation` (people who have left).
        shots: solved stories of the same sort in front, about others, 0 to 2.
    """

    name = "stories"
    source = "world and wordings written for this project; after bAbI (arXiv 1502.05698) and Dyna-bAbI (2112.00086)"

    def __init__(
        self,
        facts: int | None = 1,
        question: str | None = None,
        sentences: int = 8,
        people: int = 4,
        places: int = 4,
        things: int = 4,
        style: str | Sequence[str] = (),
        shots: int = 1,
        n: int = 64,
        seed: int = 0,
    ):
        self.style = [style] if isinstance(style, str) else list(style)
        self.facts, self.question = self._kind(facts, question)
        self.sentences = whole_number(self.name, "sentences", sentences, self._shortest(places))
        self.shots = whole_number(self.name, "shots", shots, 0)
        self.size = tuple(
            whole_number(self.name, name, value, _LEAST_THINGS.get((self.question, name), 2))
            for name, value in (("people", people), ("places", places), ("things", things))
        )
        if any(size > most for size, most in zip((*self.size, shots), (*MOST, MOST_SHOTS), strict=True)):
            raise UsageError(
                f"task stories: {people} people, {places} places, {things} things and {shots} shots; "
                f"take {MOST[0]}, {MOST[1]}, {MOST[2]} and {MOST_SHOTS} at most"
            )
        self.copies = self.question.startswith("where") or self.question == "give"  # type: ignore[misc]
        super().__init__(
            n=n,
            seed=seed,
            facts=facts,
            question=question,
            sentences=sentences,
            people=people,
            places=places,
            things=things,
            style=self.style,
            shots=shots,
        )
        self._pools: dict[str, tuple[Alike, Alike, Alike]] = {}

    def _kind(self, facts: int | None, question: str | None) -> tuple[int | None, str]:
        """Number of facts and kind of question.

        Raises:
            UsageError: there is no such kind, or none of so many facts.
        """
        for way in self.style:
            if way not in STYLES:
                raise UsageError(f"task stories: no style {way!r}; take of {', '.join(STYLES)}")
        if facts is not None:
            whole_number(self.name, "facts", facts, 1)
        if question is None:
            if facts not in BY_FACTS:
                raise UsageError(
                    f"task stories: facts is {facts}; take 1, 2 or 3, or name the question ({', '.join(QUESTIONS)})"
                )
            return facts, BY_FACTS[facts]
        if question not in QUESTIONS:
            raise UsageError(f"task stories: no question {question!r}; take of {', '.join(QUESTIONS)}")
        least = LEAST.get(question, 1)
        most = None if {"coreference", "company"} & set(self.style) else MOST_FACTS.get(question)
        if facts is not None and not (least <= facts and (most is None or facts <= most)):
            raise UsageError(
                f"task stories: question {question} takes {least} to {most or 'more'} facts, not {facts}; "
                "pronouns (style 'coreference') and company take more"
            )
        return facts, question

    def _shortest(self, places: int) -> int:
        """Sentences that a story needs: every place is gone to, and things are taken."""
        if self.question in ANSWERS:
            return 6
        least = max(self.facts or 1, LEAST.get(self.question, 1))
        return int(places) + (least > 1) + (least > 2)

    def make(self, index: int, rng: np.random.Generator, tokens: Tokens) -> Example:
        if tokens.fingerprint not in self._pools:
            self._pools[tokens.fingerprint] = (
                Alike(tokens, "names", self.size[0], self.name),
                Alike(tokens, "places", self.size[1], self.name),
                Alike(tokens, "objects", self.size[2], self.name),
            )
        pools = self._pools[tokens.fingerprint]
        cast = Cast(*(tuple(p.draw(rng, k)) for p, k in zip(pools, self.size, strict=True)))
        story, twins = self._story(rng, cast, index)
        lead = self._shots(rng, cast)

        def asked(story: Story) -> Asked:
            return Asked((*([Piece(lead)] if lead else []), *_pieces(story)), story.ask.answer, story.options)

        ask = story.ask
        position = ask.values[-1][0] if ask.values else ask.support[-1]
        return compose(
            self.name,
            tokens,
            asked(story),
            {kind: asked(twin) for kind, twin in twins.items()},
            cluster=f"{self.seed}:{index}",
            alternatives=_either_way(ask.answer) if self.question == "list" else (),
            copies=self.copies,
            meta={
                "question": self.question,
                "facts": len(ask.support),
                "support": [i + 1 for i in ask.support],
                "sentences": self.sentences,
                "position": position + 1,
                "recency": self.sentences - position,
                "asked": [name for _, name in ask.about],
                "ways": _ways([story.told[i] for i in ask.support]),
                "shots": self.shots,
            },
        )

    def _story(
        self, rng: np.random.Generator, cast: Cast, index: int | None = None
    ) -> tuple[Story, dict[str, Story]]:
        """A story with a question that meets the parameters, and its twins; without twins where there is no index."""
        wanted = self._wanted(rng, index)
        openings = data("stories")["openings"]
        opening = openings[rng.integers(len(openings))]
        weights = dict(_WEIGHTS[self.question])
        weights |= {"join": 4} if "company" in self.style else {}
        weights |= {"leave": 4} if "negation" in self.style else {}
        for _ in range(_TELLINGS):
            told = tell(
                rng, cast, self.sentences, weights, self.style, everywhere=self.question not in ANSWERS
            )
            known = self._fitting(told, cast, wanted)
            for i in rng.permutation(len(known)):
                story = Story(cast, opening, told, known[i], options(self.question, told, cast))
                twins = _twins(self.question, story, rng) if index is not None else {}
                if twins is not None:
                    return story, twins
        raise Redraw(f"no story of {self.sentences} sentences can be asked so")

    def _fitting(self, told: Told, cast: Cast, wanted: str | None) -> list[Ask]:
        """Questions of the number of facts and the answer wanted."""
        world = after(told)
        met = {p for e in told for p in (*e.who, e.to)}
        if world is None or (self.question == "give" and not met.issuperset(cast.people)):
            return []
        return [
            a
            for a in asks(self.question, told, world, cast)
            if self.facts in (None, len(a.support)) and wanted in (None, a.answer)
        ]

    def _wanted(self, rng: np.random.Generator, index: int | None) -> str | None:
        """The answer of questions whose answers are balanced."""
        known = {"yes_no": ("yes", "no"), "count": tuple(data("stories")["numbers"])}.get(self.question)
        if not known:
            return None
        if index is None:
            return str(rng.choice(known))
        return known[in_turn(index, len(known), self.name, self.seed, self.question)]

    def _shots(self, rng: np.random.Generator, cast: Cast) -> str:
        """Solved stories about other people, places and things."""
        taken = {*cast.people, *cast.places, *cast.things}
        out = ""
        for _ in range(self.shots):
            drawn = []
            for pool, k in zip(("names", "places", "objects"), self.size, strict=True):
                free = [w for w in data("words")[pool] if w not in taken]
                drawn.append(tuple(free[i] for i in rng.permutation(len(free))[:k].tolist()))
                taken.update(drawn[-1])
            story, _ = self._story(rng, Cast(*drawn))
            out += "".join(p.text for p in _pieces(story)) + f" {story.ask.answer}\n\n"
        return out


def _either_way(answer: str) -> tuple[str, ...]:
    """A list of two the other way round."""
    a, b = answer.split(" and the ")
    return (f"{b} and the {a}",)


def _ways(support: Sequence[Event]) -> list[str]:
    """Ways of telling that the supporting sentences use."""
    used = {
        "coreference": any(e.pronoun for e in support),
        "conjunction": any(len(e.who) > 1 for e in support),
        "company": any(e.kind == "join" for e in support),
    }
    return [way for way, there in used.items() if there]


def _twins(question: str, story: Story, rng: np.random.Generator) -> dict[str, Story] | None:
    """Twins of a story by kind; None where one of those that the question should have cannot be."""
    kinds = {"query_swap": _another_question(question, story, rng)}
    if question == "count":
        kinds["key_swap"] = _another_taker(story, rng)
    elif question != "list":
        kinds["value_swap"] = _another_value(question, story, rng)
    found = {kind: twin for kind, twin in kinds.items() if twin is not None}
    return found if len(found) == len(kinds) else None


def _another_question(question: str, story: Story, rng: np.random.Generator) -> Story | None:
    """The same story with a question in the same words whose answer is another one."""
    world = after(story.told)
    assert world is not None
    own = story.ask
    other = [
        a
        for a in asks(question, story.told, world, story.cast)
        if a.wording == own.wording and a.answer != own.answer and a.answer in story.options
    ]
    if question == "yes_no":
        other = [a for a in other if a.about[0] == own.about[0]]
    return replace(story, ask=other[rng.integers(len(other))]) if other else None


def _another_value(question: str, story: Story, rng: np.random.Generator) -> Story | None:
    """The story with another place (or receiver) where the answer is read, if it can happen so."""
    (at, _), name = story.ask.values[0], ANSWERS.get(question, "place")
    every = story.cast.people if name == "to" else story.cast.places
    for i in rng.permutation(len(every)):
        event = replace(story.told[at], **{name: every[i]})
        twin = _retold(story, at, event, question)
        if twin is not None and twin.ask.support == story.ask.support and twin.ask.values == story.ask.values:
            return twin
    return None


def _another_taker(story: Story, rng: np.random.Generator) -> Story | None:
    """The story with another person who takes a thing, so that the one asked about has one more or one less."""
    person = story.ask.about[0][1]
    takes = [i for i, e in enumerate(story.told) if e.kind == "take" and not e.pronoun]
    for i in rng.permutation(len(takes)):
        event = story.told[takes[i]]
        others = [p for p in story.cast.people if p not in event.who]
        who = others[rng.integers(len(others))] if person in event.who else person
        later = story.told[takes[i] + 1 :][:1]
        if later and later[0].pronoun:
            continue
        twin = _retold(story, takes[i], replace(event, who=(who,)), "count")
        if twin is not None:
            return twin
    return None


def _retold(story: Story, at: int, event: Event, question: str) -> Story | None:
    """The story with another event in one place, asked the same; None if it cannot happen or has the same answer."""
    told = (*story.told[:at], event, *story.told[at + 1 :])
    world = after(told)
    if world is None:
        return None
    for ask in asks(question, told, world, story.cast):
        same = (ask.wording, ask.about) == (story.ask.wording, story.ask.about)
        if same and ask.answer != story.ask.answer and ask.answer in story.options:
            return replace(story, told=told, ask=ask)
    return None


def _pieces(story: Story) -> list[Piece]:
    """Opening, sentences, question and the stem of the answer."""
    out = [Piece(story.opening)]
    for i, event in enumerate(story.told):
        out += _sentence(story, i, event)
    return [*out, *_question(story.ask)]


def _sentence(story: Story, number: int, event: Event) -> list[Piece]:
    """A sentence with its roles; the names in it are keys, and the word of the answer's kind is a value."""
    ask = story.ask
    own = number in ask.support
    item, hop = (0, ask.support.index(number)) if own else (number + 1, 0)
    within, prefix = ("evidence", "") if own else ("distractor", "distractor_")
    kind = ANSWERS.get(ask.wording, "place")

    def named(name: str, slot: str) -> Piece:
        value = (number, slot) in ask.values or (not own and slot == kind)
        return Piece(f" {name}", f"{prefix}{'value' if value else 'key'}", item, within, hop)

    def plain(text: str) -> Piece:
        return Piece(text, None, item, within, hop)

    wordings = data("stories")["events"][event.kind]
    out = _subject(event, named, plain)
    fields = {"{place}": event.place, "{thing}": event.thing, "{to}": event.to}
    for part in re.split(r" (\{\w+\})", f" {wordings[event.wording % len(wordings)]}"):
        if part in fields:
            out.append(named(fields[part], part.strip("{}")))
        elif part:
            out.append(plain(part))
    return [*out, plain(".")]


def _subject(event: Event, named: Callable[[str, str], Piece], plain: Callable[[str], Piece]) -> list[Piece]:
    """Who it is that does something: names, or a pronoun behind a word that goes on."""
    if not event.pronoun:
        first, *rest = event.who
        return [named(first, "who"), *(p for name in rest for p in (plain(" and"), named(name, "who")))]
    again = data("stories")["again"]
    before = again[event.wording % len(again)].removesuffix(" {who}")
    return [plain(f" {before}"), named(_pronoun(event.who), "who")]


def _pronoun(who: Sequence[str]) -> str:
    if len(who) > 1:
        return "they"
    return "she" if who[0] in data("stories")["women"] else "he"


def _question(ask: Ask) -> list[Piece]:
    question, stem = data("stories")["questions"][ask.wording]
    words: Mapping[str, tuple[str, str | None]] = {what: (name, "query") for what, name in ask.about}
    out = [Piece("\n\n"), *phrase(f"Question: {question}", words, 0, within="question")]
    return [*out, *phrase(f"\nAnswer: {stem}".rstrip(), words, 0)]
