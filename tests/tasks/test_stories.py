"""Stories: every answer is worked out again from the text, by a reader that knows nothing of the generator's world."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import pytest

import tests.tokenizers
from interp.errors import UsageError
from interp.models.tokens import Tokens
from interp.tasks import task
from interp.tasks.base import Example, Span
from interp.tasks.pairs import data
from interp.tasks.story_world import STYLES, Event, after

TOKENS = tests.tokenizers.tokens("smollm")
KINDS = ("where_person", "where_object", "where_was_object", "yes_no", "count", "list", "give")
EVENTS = {
    r"(?:went|walked over|came|hurried) to the (\w+)": "move",
    r"(?:picked up|took|got hold of) the (\w+)": "take",
    r"(?:put the (\w+) down|set down the (\w+))": "drop",
    r"(?:sent the (\w+) to|had the (\w+) brought to) (\w+)": "send",
    r"(?:joined|went to be with) (\w+)": "join",
    r"(?:has left|did not stay in) the (\w+)": "leave",
}


def ask(family: str = "smollm", **params: Any) -> list[Example]:
    if "question" in params:
        params = {"facts": None, **params}
    return task("stories", **params).examples(tests.tokenizers.tokens(family))


def text_of(example: Example, span: Span, tokens: Tokens = TOKENS) -> str:
    return tokens.decode(example.ids[span.start : span.end]).strip()


class Reader:
    """Reads sentences and keeps what is where; things have a list of the places that they have been in.

    A whole story has to be possible; of an extract (`strict=False`) what is left out is not asked for.
    """

    def __init__(self, sentences: list[str], strict: bool = True):
        self.strict = strict
        self.at: dict[str, str | None] = {}
        self.has: dict[str, str] = {}
        self.been: dict[str, list[str]] = {}
        self.sent: list[tuple[str, str, str]] = []
        self.who: list[str] = []
        for sentence in sentences:
            self.read(sentence)

    def read(self, sentence: str) -> None:
        subject = r"(?:(?:Then|After that|Later) )?(\w+)(?: and (\w+))?"
        read = {kind: re.fullmatch(rf"{subject} {pattern}\.", sentence) for pattern, kind in EVENTS.items()}
        ((kind, found),) = [(kind, found) for kind, found in read.items() if found]
        one, other, *slots = found.groups()
        rest = [word for word in slots if word]
        if one in ("he", "she", "they"):
            assert (len(self.who) > 1) == (one == "they")
            if one != "they":
                assert (self.who[0] in data("stories")["women"]) == (one == "she")
        else:
            self.who = [one, other] if other else [one]
        person = self.who[0]
        if kind == "move":
            for p in self.who:
                assert self.at.get(p) != rest[0] or not self.strict
                self.go(p, rest[0])
        elif kind == "join":
            self.go(person, self.at.get(rest[0]))
        elif kind == "leave":
            assert self.at.get(person) == rest[0]
            self.at[person] = None
        elif kind == "take":
            assert rest[0] not in self.has or not self.strict
            self.has[rest[0]] = person
            self.go(person, self.at.get(person))
        elif kind == "drop":
            assert self.has.get(rest[0]) == person or not self.strict
            self.has[rest[0]] = person
            self.go(person, self.at.get(person))
            del self.has[rest[0]]
        else:
            assert self.has.get(rest[0]) == person or not self.strict
            assert person != rest[1]
            self.has[rest[0]] = rest[1]
            self.sent.append((person, rest[0], rest[1]))
            self.go(rest[1], self.at.get(rest[1]))

    def go(self, person: str, place: str | None) -> None:
        self.at[person] = place
        for thing in [t for t, p in self.has.items() if p == person and place]:
            been = self.been.setdefault(thing, [])
            if been[-1:] != [place]:
                been.append(str(place))

    def last(self, thing: str) -> str | None:
        been = self.been.get(thing)
        return been[-1] if been else None

    def answer(self, question: str) -> str | None:
        things = lambda p: [t for t, holder in self.has.items() if holder == p]  # noqa: E731
        if found := re.fullmatch(r"Where is (the )?(\w+)\?", question):
            the, name = found.groups()
            return self.last(name) if the else self.at.get(name)
        if found := re.fullmatch(r"Where was the (\w+) before it was in the (\w+)\?", question):
            been = self.been.get(found[1], [])
            at = [i for i, place in enumerate(been) if place == found[2]]
            return been[at[0] - 1] if len(at) == 1 and at[0] else None
        if found := re.fullmatch(r"Is (the )?(\w+) in the (\w+)\?", question):
            where = self.last(found[2]) if found[1] else self.at.get(found[2])
            return where and ("yes" if where == found[3] else "no")
        if found := re.fullmatch(r"How many things does (\w+) have\?", question):
            return ["none", "one", "two", "three", "four"][len(things(found[1]))]
        if found := re.fullmatch(r"Which two things does (\w+) have\?", question):
            return " and the ".join(sorted(things(found[1])))
        found = re.fullmatch(r"Who did (\w+) send the (\w+) to\?", question)
        assert found, question
        to = [r for p, t, r in self.sent if (p, t) == found.groups()]
        return to[0] if len(to) == 1 else None


def blocks(text: str) -> list[tuple[list[str], str, str]]:
    """Sentences, question and answer of each story of a prompt; the last one has no answer."""
    out = []
    for story, question, rest in re.findall(
        r"(?s)(?:^|\n\n)([^\n]+)\n\nQuestion: ([^\n]+)\nAnswer:([^\n]*)", text
    ):
        sentences = re.findall(r"[^.]+\.", story)
        assert sentences[0] in data("stories")["openings"]
        out.append(([s.strip() for s in sentences[1:]], question, rest))
    return out


def given(answer: str | None) -> str | None:
    """An answer with the things of a list in order."""
    return answer if answer is None else " and the ".join(sorted(answer.split(" and the ")))


@pytest.mark.parametrize("question", KINDS)
@pytest.mark.parametrize("style", [(), STYLES])
def test_the_story_answers_the_question(question: str, style: tuple[str, ...]) -> None:
    family = "llama" if style else "smollm"
    tokens = tests.tokenizers.tokens(family)
    for e in ask(family, question=question, style=style, n=6, sentences=9):
        for one in (e, *e.corrupt.values()):
            assert one.text is not None
            told, asked, _ = blocks(one.text)[-1]
            assert len(told) == 9
            right = tokens.decode(one.answer_ids).strip()
            assert Reader(told).answer(asked) == given(right)
            others = {tokens.decode(c).strip() for c in one.candidates[1:]}
            assert given(Reader(told).answer(asked)) not in {given(o) for o in others}


@pytest.mark.parametrize("question", KINDS)
@pytest.mark.parametrize("style", [(), ("coreference", "company")])
def test_the_evidence_is_enough_and_all_of_it_is_needed(question: str, style: tuple[str, ...]) -> None:
    for e in ask(question=question, style=style, n=6):
        assert e.text is not None
        told, asked, _ = blocks(e.text)[-1]
        evidence = e.spans_of("evidence")
        assert [(s.item, s.hop) for s in evidence] == [(0, hop) for hop in range(e.meta["facts"])]
        own = [text_of(e, s) for s in evidence]
        assert own == [told[i - 1] for i in e.meta["support"]]
        assert len(own) + len(e.spans_of("distractor")) == len(told) == 8
        right = given(TOKENS.decode(e.answer_ids).strip())
        assert given(Reader(own, strict=False).answer(asked)) == right
        if question.startswith("where") and not style:
            for i in range(len(own)):
                assert Reader(own[:i] + own[i + 1 :], strict=False).answer(asked) != right


@pytest.mark.parametrize("facts", [1, 2, 3])
def test_facts_are_as_many_as_asked_for(facts: int) -> None:
    for e in ask(facts=facts, n=12):
        assert e.meta["facts"] == facts == len(e.spans_of("evidence"))
        (value,) = e.spans_of("value", 0)
        assert e.ids[value.start : value.end] == e.answer_ids
        (sentence,) = [s for s in e.spans_of("evidence") if s.start <= value.start < s.end]
        assert text_of(e, sentence) == blocks(str(e.text))[-1][0][e.meta["position"] - 1]
        assert e.meta["recency"] == 9 - e.meta["position"]


def test_every_place_of_the_closed_set_stands_in_the_story() -> None:
    for e in ask(facts=2, n=24, places=5):
        told, _, _ = blocks(str(e.text))[-1]
        places = {TOKENS.decode(c).strip() for c in e.candidates}
        assert len(places) == 5 and e.chance == 1 / 5
        assert all(any(f"the {place}." in s for s in told) for place in places)


@pytest.mark.parametrize("question", KINDS)
def test_twins_change_one_word(question: str) -> None:
    for e in ask(question=question, n=8):
        kinds = {"count": {"query_swap", "key_swap"}, "list": {"query_swap"}}
        assert set(e.corrupt) == kinds.get(question, {"query_swap", "value_swap"})
        for kind, twin in e.corrupt.items():
            changed = {i for i, (a, b) in enumerate(zip(e.ids, twin.ids, strict=True)) if a != b}
            if kind == "query_swap":
                inside = e.spans_of("query")
                assert twin.group == e.group
            else:
                inside = (
                    e.spans_of("value", 0)
                    if kind == "value_swap"
                    else (*e.spans_of("key"), *e.spans_of("distractor_key"))
                )
            assert changed <= {i for s in inside for i in range(s.start, s.end)}
            assert twin.answer_ids != e.answer_ids
            if kind == "value_swap":
                assert twin.foil_ids == e.answer_ids and twin.meta == {}
                assert [s for s in twin.spans if s.role == "evidence"] == list(e.spans_of("evidence"))


def test_answers_are_balanced_and_do_not_stand_last() -> None:
    yes = Counter(TOKENS.decode(e.answer_ids) for e in ask(question="yes_no", n=24))
    assert yes == {" yes": 12, " no": 12}
    numbers = Counter(TOKENS.decode(e.answer_ids) for e in ask(question="count", n=24))
    assert set(numbers.values()) == {6} and len(numbers) == 4
    last = []
    for e in ask(n=40, shots=0):
        told, _, _ = blocks(str(e.text))[-1]
        places = re.findall(r"to the (\w+)\.", " ".join(told))
        last.append(places[-1] == TOKENS.decode(e.answer_ids).strip())
    assert sum(last) / 40 < 0.55


def test_ways_of_telling() -> None:
    for style, pattern in {
        "coreference": r"\b(he|she)\b",
        "conjunction": r"\w+ and \w+ (went|walked|came|hurried)",
        "company": r"(joined|went to be with) \w+",
        "negation": r"(has left|did not stay in)",
    }.items():
        there = [bool(re.search(pattern, str(e.text))) for e in ask(n=12, style=style, sentences=10, shots=0)]
        assert sum(there) >= 8, style
        assert not any(re.search(pattern, str(e.text)) for e in ask(n=8, sentences=10, shots=0))
    for e in ask(question="where_person", facts=2, style="coreference", n=12):
        assert e.meta["ways"] == ["coreference"] and len(e.spans_of("evidence")) == 2
    for e in ask(question="where_person", facts=2, style="company", n=12):
        assert e.meta["ways"] == ["company"]


def test_shots_are_solved_and_about_others() -> None:
    for question in ("where_object", "list", "yes_no"):
        for e in ask(question=question, n=8, shots=2):
            one, other, own = blocks(str(e.text))
            words = [set(re.findall(r"\w+", " ".join(told))) for told, _, _ in (one, other, own)]
            pools = {w for pool in ("names", "places", "objects") for w in data("words")[pool]}
            assert not words[0] & words[2] & pools and not words[1] & words[2] & pools
            for told, asked, rest in (one, other):
                right = Reader(told).answer(asked)
                assert right is not None
                assert given(rest.strip().rsplit(" has the ")[-1]).endswith(right)  # type: ignore[union-attr]


def test_a_world_refuses_what_cannot_happen() -> None:
    def told(*events: Event) -> bool:
        return after(events) is not None

    go, take = Event("move", ("Ann",), place="hall"), Event("take", ("Ann",), thing="cup")
    assert told(go, take, Event("drop", ("Ann",), thing="cup"))
    assert not told(go, go) and not told(take, take)
    assert not told(take, Event("drop", ("Ann",), thing="cup")), "nobody knows where"
    assert not told(Event("join", ("Bob",), to="Ann")) and told(go, Event("join", ("Bob",), to="Ann"))
    assert not told(go, take, Event("leave", ("Ann",), place="hall")), "the cup would be nowhere"
    assert not told(go, Event("leave", ("Ann",), place="yard"))
    assert not told(take, Event("send", ("Ann",), thing="cup", to="Ann"))
    drop = (go, take, Event("drop", ("Ann",), thing="cup"))
    assert not told(*drop, Event("take", ("Bob",), thing="cup"))
    assert told(*drop, Event("move", ("Bob",), place="hall"), Event("take", ("Bob",), thing="cup"))


def test_lists_are_right_either_way_round() -> None:
    for e in ask(question="list", n=6):
        (other,) = e.alternatives
        assert sorted(TOKENS.decode(other).split()) == sorted(TOKENS.decode(e.answer_ids).split())
        assert other not in e.candidates and len(e.candidates) == 6


def test_single_tokens_with_the_default_model(smollm2_tokens: Tokens) -> None:
    made = task("stories", n=24)
    assert all(len(c) == 1 for e in made.examples(smollm2_tokens) for c in e.candidates)
    assert not made.redraws


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"facts": 4}, "facts is 4; take 1, 2 or 3, or name the question"),
        ({"facts": 0}, "facts is 0; take a whole number, 1 or more"),
        ({"question": "why"}, "no question 'why'; take of where_person"),
        ({"question": "where_object", "facts": 1}, "question where_object takes 2 to 2 facts, not 1"),
        ({"question": "where_person", "facts": 2}, "takes 1 to 1 facts, not 2; pronouns"),
        ({"style": "rhyme"}, "no style 'rhyme'; take of coreference"),
        ({"sentences": 3}, "sentences is 3; take a whole number, 4 or more"),
        ({"facts": 3, "sentences": 5}, "sentences is 5; take a whole number, 6 or more"),
        ({"people": 7}, "7 people, 4 places, 4 things and 1 shots; take 6, 6, 8 and 2 at most"),
        ({"question": "list", "facts": None, "things": 3}, "things is 3; take a whole number, 4 or more"),
        ({"shots": 3}, "3 shots"),
    ],
)
def test_bad_parameters(params: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        task("stories", **params)
