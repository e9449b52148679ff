"""Working memory: every answer is recomputed from the text, and what is asked for goes evenly over all places."""

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
from interp.tasks.complex_span import judged
from interp.tasks.pairs import data
from interp.tasks.working_memory import ORDINALS

FAMILIES = list(tests.tokenizers.KINDS)


def ask(name: str, family: str = "smollm", **params: Any) -> list[Example]:
    return task(name, **params).examples(tests.tokenizers.tokens(family))


def word(tokens: Tokens, example: Example, span: Span) -> str:
    return tokens.decode(example.ids[span.start : span.end]).strip()


def match(pattern: str, text: str) -> tuple[str, ...]:
    """What stands for the `{names}` of a wording; the text must be worded so."""
    found = re.fullmatch(re.sub(r"\\\{\w+\\\}", r"(\\w+)", re.escape(pattern)), text)
    assert found, (pattern, text)
    return found.groups()


def parts(example: Example) -> tuple[dict[str, Any], str, str, str]:
    """Wording, context, question and stem of the last question of the text."""
    assert example.text is not None
    context, end = example.text.split("\n\n")[-2:]
    question, stem = end.split("\n")
    assert question.startswith("Question: ") and stem.startswith("Answer:")
    wording = data("working_memory")[example.task][example.cluster]
    return wording, context, question.removeprefix("Question: "), stem.removeprefix("Answer:").strip()


def both_ways(example: Example) -> list[Example]:
    return [example, *example.corrupt.values()]


def recalled(e: Example) -> tuple[list[str], int]:
    """Words of a list and the place (from 0) of the one that is asked for."""
    wording, context, question, stem = parts(e)
    assert context.startswith(wording["intro"]) and context.endswith(".")
    words = context[len(wording["intro"]) : -1].strip().split(", ")
    (probe,) = (
        p for p in ("position", "after") if _fits(wording[p][0], question) and _fits(wording[p][1], stem)
    )
    asked, *_ = match(wording[probe][0], question)
    assert match(wording[probe][1], stem) == (asked,)
    return words, ORDINALS.index(asked) if probe == "position" else words.index(asked) + 1


def _fits(wording: str, text: str) -> bool:
    return bool(re.fullmatch(re.sub(r"\\\{\w+\\\}", r"(\\w+)", re.escape(wording)), text))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("probe", ["position", "after"])
def test_serial_recall_asks_for_a_place(family: str, probe: str) -> None:
    tokens = tests.tokenizers.tokens(family)
    for e in ask("serial_recall", family, n=16, items=5, probe=probe):
        for twin in both_ways(e):
            words, place = recalled(twin)
            assert len(set(words)) == 5
            assert words[place] == tokens.decode(twin.answer_ids).strip()
            (value,) = twin.spans_of("value")
            assert word(tokens, twin, value) == words[place]
            named = {words[place - 1]} if probe == "after" else set()
            assert {tokens.decode(c).strip() for c in twin.candidates} == set(words) - named
            assert twin.chance == 1 / (5 - len(named))
            others = {word(tokens, twin, s) for s in twin.spans_of("distractor_value")}
            assert others == {*words} - named - {words[place]}
            assert {word(tokens, twin, s) for s in twin.spans_of("key")} == named
        words, place = recalled(e)
        assert e.meta["position"] == place + 1 and e.meta["words"] == words
        away = abs(words.index(tokens.decode(e.foil_ids).strip()) - place)
        assert away == 1 or (probe == "after" and place == 4), (
            "a neighbour, but for the last word behind its key"
        )
        swap = e.corrupt["value_swap"]
        assert swap.answer_ids == e.foil_ids and Counter(swap.ids) == Counter(e.ids)
        if probe == "after":
            assert "query_swap" in e.corrupt and recalled(e.corrupt["query_swap"])[0] == words


def test_places_and_wordings_are_counterbalanced() -> None:
    for name, params, places in (
        ("serial_recall", {"items": 6}, range(1, 7)),
        ("serial_recall", {"items": 6, "probe": "after"}, range(2, 7)),
        ("complex_span", {"items": 4}, range(1, 5)),
        ("updating", {"items": 4}, range(1, 5)),
        ("change_detection", {"items": 4}, range(1, 5)),
    ):
        n = 16 * len(places)
        examples = ask(name, n=n, **params)
        assert Counter(e.meta["position"] for e in examples) == dict.fromkeys(places, 16)
        assert Counter(e.cluster for e in examples) == dict.fromkeys(data("working_memory")[name], n // 16)


def test_the_twin_asks_for_another_place_where_ordinals_are_alike() -> None:
    tokens = tests.tokenizers.tokens("smollm")
    examples = ask("serial_recall", n=48, items=8)
    sizes = [len(tokens.encode(f"the {o}").ids) for o in ORDINALS[:8]]
    for e in examples:
        place = e.meta["position"] - 1
        assert ("query_swap" in e.corrupt) == (sizes.count(sizes[place]) > 1)
    assert 24 < sum("query_swap" in e.corrupt for e in examples) < 48


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("judgement", ["parity", "size", "sum"])
def test_complex_span_asks_for_a_word_behind_right_judgements(family: str, judgement: str) -> None:
    tokens = tests.tokenizers.tokens(family)
    for e in ask("complex_span", family, n=8, items=3, load=2, judgement=judgement):
        for twin in both_ways(e):
            wording, context, question, stem = parts(twin)
            sentences = re.split(r"(?<=\.) ", context)
            words = [match(wording["store"], s)[0] for s in sentences[::3]]
            assert len(sentences) == 9 and all(right(s) for i, s in enumerate(sentences) if i % 3)
            (ordinal,) = match(wording["question"], question)
            assert match(wording["stem"], stem) == (ordinal,)
            assert words[ORDINALS.index(ordinal)] == tokens.decode(twin.answer_ids).strip()
            assert {tokens.decode(c).strip() for c in twin.candidates} == set(words)
            (evidence,) = twin.spans_of("evidence")
            assert word(tokens, twin, evidence) == sentences[3 * ORDINALS.index(ordinal)]
            fillers = [word(tokens, twin, s) for s in twin.spans_of("filler")]
            assert fillers == [s for i, s in enumerate(sentences) if i % 3]
            assert [s.item for s in twin.spans_of("filler")] == list(range(6))
        assert Counter(e.corrupt["value_swap"].ids) == Counter(e.ids)


def right(sentence: str) -> bool:
    """Whether a judgement about numbers is answered as it should be."""
    numbers = [int(i) for i in re.findall(r"\d+", sentence)]
    truth = {
        "even": lambda: numbers[0] % 2 == 0,
        "larger": lambda: numbers[0] > numbers[1],
        "equal": lambda: numbers[0] + numbers[1] == numbers[2],
    }
    (kind,) = (k for k in truth if k in sentence)
    return sentence.endswith("Yes." if truth[kind]() else "No.")


@pytest.mark.parametrize("kind", ["parity", "size", "sum"])
def test_judgements_are_right_and_yes_as_often_as_no(kind: Any, rng_untouched: None) -> None:
    rng = np.random.default_rng(0)
    made = [judged(rng, kind) for _ in range(400)]
    assert all(right(s) for s in made) and len(set(made)) > 60
    assert 160 < sum(s.endswith("Yes.") for s in made) < 240


def kept_up(e: Example) -> tuple[str, dict[str, list[int]]]:
    """Slot asked for, and what each slot holds from its start on; all from the text."""
    wording, context, question, stem = parts(e)
    held: dict[str, list[int]] = {}
    for sentence in re.split(r"(?<=\.) ", context):
        for name, sign in (("start", 0), ("up", 1), ("down", -1)):
            found = re.fullmatch(re.sub(r"\\\{\w+\\\}", r"(\\w+)", re.escape(wording[name])), sentence)
            if found and not sign:
                assert found[1] not in held
                held[found[1]] = [int(found[2])]
            elif found:
                held[found[1]].append(held[found[1]][-1] + sign * int(found[2]))
            if found:
                break
        else:
            raise AssertionError(sentence)
    (key,) = match(wording["question"], question)
    assert match(wording["stem"], stem) == (key,)
    return key, held


@pytest.mark.parametrize("family", FAMILIES)
def test_updating_asks_for_what_is_left(family: str) -> None:
    tokens = tests.tokenizers.tokens(family)
    for e in ask("updating", family, n=12, items=3, updates=3):
        for twin in both_ways(e):
            key, held = kept_up(twin)
            assert str(held[key][-1]) == tokens.decode(twin.answer_ids).strip()
            assert all(0 <= a <= 9 for amounts in held.values() for a in amounts) and len(held) == 3
            assert sorted(tokens.decode(c).strip() for c in twin.candidates) == list("0123456789")
            assert twin.chance == 0.1
        key, held = kept_up(e)
        assert e.meta["amounts"] == held[key] and len(held[key]) == 4 and e.meta["asked"] == key
        assert tokens.decode(e.foil_ids).strip() == str(held[key][-2])
        assert [s.hop for s in e.spans_of("stale")] == [3, 2, 1]
        assert word(tokens, e, e.spans_of("stale_value", 0)[0]) == str(held[key][0])
        (change,) = e.spans_of("change")
        assert int(word(tokens, e, change)) == abs(held[key][-1] - held[key][-2])
        start, moved, other = (e.corrupt[k] for k in ("value_swap", "key_swap", "query_swap"))
        assert kept_up(start)[1][key][0] != held[key][0] and kept_up(start)[0] == key
        assert kept_up(moved)[1][key] == held[key][:-1] and moved.answer_ids == e.foil_ids
        assert kept_up(other)[0] != key and kept_up(other)[1] == held and other.group == e.group
        assert all(t.foil_ids == e.answer_ids for t in e.corrupt.values())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("change", ["item", "order"])
def test_change_detection_compares_the_lists(family: str, change: str) -> None:
    tokens = tests.tokenizers.tokens(family)
    for e in ask("change_detection", family, n=12, items=5, change=change):
        for twin in both_ways(e):
            wording, context, question, stem = parts(twin)
            assert (
                stem == "" and context.startswith(wording["first"]) and question.startswith(wording["second"])
            )
            assert question.endswith(f". {wording['question']}")
            first = context[len(wording["first"]) : -1].strip().split(", ")
            second = question[len(wording["second"]) : -len(wording["question"]) - 2].strip().split(", ")
            differ = [i for i, (a, b) in enumerate(zip(first, second, strict=True)) if a != b]
            assert len(differ) in (0, 1 if change == "item" else 2)
            told = wording["same"] if not differ else {"Yes": "No", "No": "Yes"}[wording["same"]]
            assert told == tokens.decode(twin.answer_ids).strip()
            assert twin.chance == 0.5 and len(twin.candidates) == 2 and twin.foil_ids == twin.candidates[1]
            assert [word(tokens, twin, s) for s in twin.spans_of("query")] == second
            (question_span,) = twin.spans_of("question")
            assert all(
                question_span.start <= s.start < s.end <= question_span.end for s in twin.spans_of("query")
            )
            places = {s.item == 0 for s in twin.spans_of("query") if s.item == 0}
            assert places == {True} and len(twin.spans_of("evidence", 0)) == (1 if change == "item" else 2)
            if differ:
                assert [word(tokens, twin, s) for s in twin.spans_of("query", 0)] == [
                    second[i] for i in differ
                ]
        assert e.corrupt["query_swap"].group == e.group != e.corrupt["value_swap"].group


def test_yes_and_no_are_balanced_within_places() -> None:
    examples = ask("change_detection", n=64, items=4)
    assert Counter((e.meta["position"], e.meta["differs"]) for e in examples) == {
        (p, d): 8 for p in range(1, 5) for d in (False, True)
    }
    tokens = tests.tokenizers.tokens("smollm")
    yes = sum(tokens.decode(e.answer_ids).strip() == "Yes" for e in examples)
    assert 22 <= yes <= 42
    for e in examples:
        assert e.text is not None
        shown = re.findall(r"Answer: (Yes|No)\n", e.text)
        assert sorted(shown) == ["No", "Yes"], "two solved questions show both answers"


@pytest.mark.parametrize("name", ["serial_recall", "complex_span"])
def test_solved_questions_are_about_other_words(name: str) -> None:
    for e in ask(name, n=16, items=4, shots=2):
        assert e.text is not None
        *shown, own = re.split(r"\n\n(?!Question)", e.text)
        assert len(shown) == 2
        for scene in shown:
            answer = scene.rsplit(" ", 1)[1]
            assert answer in scene.split("\n\n")[0]
            assert not set(e.meta["words"]) & set(re.findall(r"\w+", scene))
        assert all(w in own for w in e.meta["words"])


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("serial_recall", {"items": 13}, "13 items and 0 shots; take 12 and 4 at most"),
        ("serial_recall", {"probe": "before"}, "probe is 'before'; take of position, after"),
        ("serial_recall", {"items": 2, "probe": "after"}, "needs 3 items or more"),
        ("complex_span", {"judgement": "color"}, "judgement is 'color'; take of parity, size, sum"),
        ("complex_span", {"load": -1}, "load is -1; take a whole number, 0 or more"),
        ("updating", {"items": 7}, "7 items and 0 shots; take 6 and 4 at most"),
        ("updating", {"updates": 0}, "updates is 0; take a whole number, 1 or more"),
        ("change_detection", {"change": "color"}, "change is 'color'; take of item, order"),
        ("change_detection", {"items": 1}, "items is 1; take a whole number, 2 or more"),
    ],
)
def test_bad_parameters_are_named(name: str, params: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ask(name, **params)
