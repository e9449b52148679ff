"""Consolidation: the fact with the highest number answers, recomputed from the text over one hop and two."""

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
from interp.tasks.consolidation import serials
from interp.tasks.pairs import data

WORDINGS = data("interference")["consolidation"]


def ask(family: str = "smollm", **params: Any) -> list[Example]:
    return task("consolidation", **params).examples(tests.tokenizers.tokens(family))


def word(tokens: Tokens, example: Example, span: Span) -> str:
    return tokens.decode(example.ids[span.start : span.end]).strip()


def read(example: Example) -> tuple[str, int, dict[str, dict[int, str]]]:
    """Key asked for, hops to its answer, and by key what is told of it under which number; all from the text."""
    assert example.text is not None
    wording = WORDINGS[example.cluster]

    def match(name: str, text: str) -> re.Match[str] | None:
        pattern = re.escape(wording[name])
        for slot in ("key", "value", "link"):
            pattern = pattern.replace(rf"\{{{slot}\}}", r"(\w+)")
        return re.fullmatch(pattern, text)

    body, end = example.text.split("\n\n")
    intro, *lines = body.split("\n")
    assert intro == wording["intro"]
    facts: dict[str, dict[int, str]] = {}
    for line in lines:
        number, said = re.fullmatch(r"Fact (\d\d): (.*)", line).groups()  # type: ignore[union-attr]
        found = match("fact", said) or match("link", said)
        assert found, said
        facts.setdefault(found[1], {})[int(number)] = found[2]
    question, stem = (part.split(": ")[1] for part in end.split("\n"))
    for hops, prefix in ((1, ""), (2, "far_")):
        found, again = match(f"{prefix}question", question), match(f"{prefix}stem", stem)
        if found and again:
            assert found[1] == again[1]
            return found[1], hops, facts
    raise AssertionError(question)


def newest(told: dict[int, str], back: int = 0) -> str:
    return told[sorted(told)[-1 - back]]


@pytest.mark.parametrize("family", list(tests.tokenizers.KINDS))
@pytest.mark.parametrize("hops", [1, 2])
def test_the_highest_number_answers(family: str, hops: int) -> None:
    tokens = tests.tokenizers.tokens(family)
    for e in ask(family, n=12, versions=2 + hops % 2, hops=hops):
        for twin in (e, *e.corrupt.values()):
            key, asked_hops, facts = read(twin)
            assert asked_hops == hops
            holder = key if hops == 1 else newest(facts[key])
            assert newest(facts[holder]) == tokens.decode(twin.answer_ids).strip()
            holders = [key] if hops == 1 else set(facts[key].values())
            held = [v for h in holders for v in facts[h].values()]
            assert {tokens.decode(c).strip() for c in twin.candidates} == set(held)
            assert len(held) == (2 + hops % 2) ** hops and twin.chance == 1 / len(held)
        assert tokens.decode(e.foil_ids).strip() == newest(facts_of(e, hops), 1)


def facts_of(example: Example, hops: int) -> dict[int, str]:
    key, _, facts = read(example)
    return facts[key] if hops == 1 else facts[newest(facts[key])]


def test_spans_are_the_facts_and_their_numbers() -> None:
    tokens = tests.tokenizers.tokens("llama3")
    for e in ask("llama3", n=16, facts=4, versions=3, hops=2):
        key, _, facts = read(e)
        holder = newest(facts[key])
        marks = e.spans_of("order_mark")
        assert len(marks) == 24 == len({word(tokens, e, m) for m in marks}) and e.meta["items"] == 24
        answer, lead = sorted(e.spans_of("evidence"), key=lambda s: s.hop)
        for step, hop, about, told in ((answer, 0, holder, "value"), (lead, 1, key, "link")):
            inside = {
                s.role: s for s in e.spans if s.hop == hop and step.start <= s.start < s.end <= step.end
            }
            assert word(tokens, e, inside["key"]) == about
            assert word(tokens, e, inside[told]) == newest(facts[about])
            assert facts[about][int(word(tokens, e, inside["order_mark"]))] == newest(facts[about])
        stale = {s.hop: word(tokens, e, s) for s in e.spans_of("stale_value")}
        assert stale == {back: newest(facts[holder], back) for back in (1, 2)}
        stale = {s.hop: word(tokens, e, s) for s in e.spans_of("stale_link")}
        assert stale == {back: newest(facts[key], back) for back in (1, 2)}
        assert len(e.spans_of("stale")) == len(e.spans_of("stale_step")) == 2
        assert len(e.spans_of("distractor")) == 24 - 6


def test_twins_swap_values_numbers_or_the_key_asked_for() -> None:
    for hops in (1, 2):
        for e in ask(n=16, hops=hops, versions=3):
            key, _, facts = read(e)
            value, order, query = (e.corrupt[k] for k in ("value_swap", "order_swap", "query_swap"))
            for twin in (value, order):
                assert Counter(twin.ids) == Counter(e.ids) and twin.foil_ids == e.answer_ids
                assert read(twin)[0] == key and set(twin.candidates) == set(e.candidates)
            changed = {i for i, (a, b) in enumerate(zip(e.ids, order.ids, strict=True)) if a != b}
            assert changed <= {i for s in e.spans_of("order_mark") for i in range(s.start, s.end)}
            assert value.answer_ids == e.foil_ids
            assert read(query)[0] != key and read(query)[2] == facts and query.group == e.group


def test_where_the_newest_stands_is_counterbalanced_or_last() -> None:
    examples = ask(n=48, versions=3)
    assert Counter(e.meta["newest_at"] for e in examples) == {1: 16, 2: 16, 3: 16}
    assert Counter(e.cluster for e in examples) == dict.fromkeys(WORDINGS, 3)
    assert Counter(e.meta["newest_at"] for e in ask(n=24, versions=2, hops=2)) == {1: 12, 2: 12}
    for e in ask(n=12, versions=3, order="ascending"):
        assert e.meta["newest_at"] == 3 and e.text is not None
        numbers = [int(i) for i in re.findall(r"Fact (\d+)", e.text)]
        assert numbers == sorted(numbers)
    shuffled = [[int(i) for i in re.findall(r"Fact (\d+)", e.text or "")] for e in examples]
    assert sum(n == sorted(n) for n in shuffled) < 3


def test_numbers_are_of_one_length() -> None:
    for family in tests.tokenizers.KINDS:
        tokens = tests.tokenizers.tokens(family)
        sizes = {len(tokens.encode(f"Fact {i}:").ids) for i in serials(tokens)}
        assert len(sizes) == 1 and len(serials(tokens)) >= 64


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"facts": 1}, "facts is 1; take a whole number, 2 or more"),
        ({"facts": 9}, "9 facts of 2 versions over 1 hops; take 8, 4 and 2 at most"),
        ({"facts": 2, "versions": 3, "hops": 2}, "over two hops no more versions than facts"),
        ({"order": "random"}, "order is 'random'; take of shuffled, ascending"),
    ],
)
def test_bad_parameters_are_named(params: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ask(**params)
