"""Colored objects: the scene says the color of the object asked for, and of no other."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import numpy as np
import pytest

import tests.tokenizers
from interp.errors import UsageError
from interp.models.tokens import Tokens
from interp.tasks import task
from interp.tasks.base import Example, Span
from interp.tasks.pairs import data


def ask(family: str = "smollm", **params: Any) -> list[Example]:
    return task("colored_objects", **params).examples(tests.tokenizers.tokens(family))


def word(tokens: Tokens, example: Example, span: Span) -> str:
    return tokens.decode(example.ids[span.start : span.end]).strip()


@pytest.mark.parametrize("family", list(tests.tokenizers.KINDS))
def test_the_scene_answers_the_question(family: str) -> None:
    tokens = tests.tokenizers.tokens(family)
    for e in ask(family, n=24):
        for twin in (e, *e.corrupt.values()):
            things = {}
            for prefix in ("", "distractor_"):
                values = twin.spans_of(f"{prefix}value")
                for value, key in zip(values, twin.spans_of(f"{prefix}key"), strict=True):
                    assert value.end == key.start and value.item == key.item
                    things[word(tokens, twin, key)] = word(tokens, twin, value)
            assert things == dict(zip(twin.meta["objects"], twin.meta["colors"], strict=True))
            assert len(set(things.values())) == len(things) == 3
            (query,) = twin.spans_of("query")
            (question,) = twin.spans_of("question")
            assert question.start < query.start < query.end <= question.end
            asked = word(tokens, twin, query)
            assert asked == twin.meta["asked"] == twin.meta["objects"][twin.meta["position"] - 1]
            assert things[asked] == tokens.decode(twin.answer_ids).strip()
            assert {tokens.decode(c).strip() for c in twin.candidates} == set(things.values())
            assert twin.foil_ids in twin.candidates[1:] and twin.chance == 1 / 3
            assert twin.spans_of("end") == (Span(len(twin.ids) - 1, len(twin.ids), "end", 0),)


def test_the_twin_asks_for_another_object() -> None:
    for e in ask(n=32):
        twin = e.corrupt["query_swap"]
        (query,) = e.spans_of("query")
        changed = {i for i, (a, b) in enumerate(zip(e.ids, twin.ids, strict=True)) if a != b}
        assert changed <= set(range(query.start, query.end))
        assert twin.answer_ids == e.foil_ids and twin.foil_ids == e.answer_ids
        assert twin.group == e.group and twin.meta["asked"] != e.meta["asked"]
        assert twin.meta["colors"] == e.meta["colors"]


@pytest.mark.parametrize("shots", [0, 1, 3])
def test_shots_are_solved_and_about_other_things(shots: int) -> None:
    for e in ask(n=24, shots=shots):
        assert e.text is not None
        *shown, own = e.text.split("\n\n")
        assert len(shown) == shots and own.endswith("Answer:")
        seen: list[str] = []
        for scene in shown:
            things = {o: c for c, o in re.findall(r" a (\w+) (\w+)", scene.split("\n")[0])}
            assert len(things) == 3
            question, answer = scene.split("\nQuestion: ")[1].split("\nAnswer: ")
            (asked,) = [o for o in things if re.search(rf"\bthe {o}\b", question, re.IGNORECASE)]
            assert things[asked] == answer
            assert not set(things) & set(e.meta["objects"])
            assert not set(things.values()) & set(e.meta["colors"])
            seen += things
        assert len(set(seen)) == len(seen)


def test_places_and_templates_are_balanced() -> None:
    examples = ask(n=48)
    assert Counter(e.meta["position"] for e in examples) == {1: 16, 2: 16, 3: 16}
    assert set(Counter(e.cluster for e in examples).values()) == {6}
    assert {e.cluster for e in examples} == set(data("colored_objects")["templates"])
    foils = Counter((e.meta["position"], e.corrupt["query_swap"].meta["position"]) for e in examples)
    assert len(foils) == 6


def test_a_uniform_guesser_scores_chance() -> None:
    rng = np.random.default_rng(0)
    hits = [e.candidates[rng.integers(3)] == e.answer_ids for e in ask(n=300)]
    assert abs(np.mean(hits) - 1 / 3) < 4 * np.sqrt(2 / 9 / 300)


def test_single_tokens_with_the_default_model(smollm2_tokens: Tokens) -> None:
    for e in task("colored_objects", n=24).examples(smollm2_tokens):
        assert e.meta["word_tokens"] == 1 and all(len(c) == 1 for c in e.candidates)
        assert len(e.spans_of("query")[0]) == 1
    assert not [c for c in data("words")["colors"] if c[0] in "aeiou"], "all of them take 'a'"


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"shots": -1}, "shots is -1"),
        ({"shots": 7}, "7 shots of 3 objects; take 6 and 4 at most"),
        ({"objects": 1}, "objects is 1; take a whole number, 2 or more"),
        ({"objects": 5}, "1 shots of 5 objects"),
    ],
)
def test_bad_parameters(params: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        task("colored_objects", **params)
