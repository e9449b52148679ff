"""Order: what stands first in the text is what the answer says, whatever letter, mark or place it has."""

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
from interp.tasks.haystack import pieces
from interp.tasks.pairs import data

TOKENS = tests.tokenizers.tokens("smollm")
SWAPS = {"query_swap", "order_swap", "context_swap"}


def ask(family: str = "smollm", **params: Any) -> list[Example]:
    return task("order", **params).examples(tests.tokenizers.tokens(family))


def text_of(example: Example, span: Span, tokens: Tokens = TOKENS) -> str:
    return tokens.decode(example.ids[span.start : span.end]).strip()


def parts(example: Example) -> tuple[str, str]:
    """Context and question of the last block of a prompt."""
    assert example.text is not None
    context, question = example.text.rsplit("\n\nQuestion: ", 1)
    return context, question


def solve(context: str, question: str) -> str:
    """The answer, from the text alone."""
    (mark,) = re.findall(r"^.*Which .*\b(first|last)\b.*\?", question, re.MULTILINE)
    shown = dict(re.findall(r"^([AB]): (.+)$", question, re.MULTILINE))
    if not shown:
        (two,) = re.findall(r"the (\w+) or the (\w+)\?", question)
        shown = {thing: thing for thing in two}
    at = {}
    for name, words in shown.items():
        (at[name],) = [m.start() for m in re.finditer(rf"(?<!\w){re.escape(words)}(?!\w)", context)]
    return (min if mark == "first" else max)(at, key=lambda name: at[name])


FORMS: list[dict[str, Any]] = [{}, {"form": "words"}, {"form": "words", "answer": "word"}]


@pytest.mark.parametrize("params", FORMS)
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_text_gives_the_answer(family: str, params: dict[str, Any]) -> None:
    tokens = tests.tokenizers.tokens(family)
    for e in ask(family, n=24, items=6, **params):
        for kind, one in {"clean": e, **e.corrupt}.items():
            context, question = parts(one)
            if kind == "needle_drop":
                _, own = parts(e)
                assert question == own and one.answer_ids == e.answer_ids
                assert not any(text_of(e, s, tokens) in context for s in e.spans_of("evidence"))
                continue
            assert solve(context, question) == tokens.decode(one.answer_ids).strip()
            (right,), (other,) = one.spans_of("evidence", 0), one.spans_of("evidence", 1)
            assert (right.start < other.start) == (
                text_of(one, one.spans_of("order_mark")[0], tokens) == "first"
            )
            assert len(one.spans_of("query", 0)[0]) == len(one.spans_of("query", 1)[0])
            assert len(right) == len(other) or not params
            for item, span in enumerate((right, other)):
                (query,) = one.spans_of("query", item)
                assert text_of(one, query, tokens) == text_of(one, span, tokens)
                for label in one.spans_of("label", item):
                    letter = text_of(one, label, tokens)
                    assert (letter == tokens.decode(one.answer_ids).strip()) == (item == 0)
                    assert f"\n{letter}: {text_of(one, query, tokens)}\n" in question
            (mark,) = one.spans_of("order_mark")
            assert text_of(one, mark, tokens) in ("first", "last")
            assert len(one.spans_of("question")) == 1


@pytest.mark.parametrize("params", FORMS)
def test_each_twin_changes_one_thing(params: dict[str, Any]) -> None:
    for e in ask(n=24, items=6, **params):
        inside = {
            "query_swap": ("order_mark",),
            "order_swap": ("query",),
            "context_swap": ("evidence",),
            "needle_drop": ("evidence",),
        }
        own = {"query_swap"} | ({"order_swap"} if e.meta["label"] and "answer" not in params else set())
        own |= {"context_swap", "needle_drop"} if params else set()
        assert set(e.corrupt) == own
        for kind, twin in e.corrupt.items():
            changed = {i for i, (a, b) in enumerate(zip(e.ids, twin.ids, strict=True)) if a != b}
            where = {i for role in inside[kind] for s in e.spans_of(role) for i in range(s.start, s.end)}
            assert changed <= where
            if kind in SWAPS:
                assert (twin.answer_ids, twin.foil_ids) == (e.foil_ids, e.answer_ids)
            assert (twin.group == e.group) == (kind in ("query_swap", "order_swap"))
        if params:
            # The two things have changed places: the list is made of the same words.
            (one, _), (other, _) = parts(e), parts(e.corrupt["context_swap"])
            assert one != other and Counter(re.findall(r"\w+", one)) == Counter(re.findall(r"\w+", other))


def test_sentences_are_consecutive_prose_in_its_own_order() -> None:
    whole = {name: " ".join(s.text for s in piece) for name, piece in pieces().items()}
    for e in ask(n=24, items=7):
        context, question = parts(e)
        assert re.sub(r"\s+", " ", context) in whole[e.cluster]
        sentences = [s.text for s in pieces()[e.cluster] if s.text in context]
        assert len(sentences) >= 7
        starts = re.findall(r"^[AB]: (.+)$", question, re.MULTILINE)
        at = sorted(i for i, s in enumerate(sentences) for start in starts if s.startswith(start))
        assert len(at) == 2 and at[1] - at[0] == e.meta["gap"]
        assert all(abs(len(s.split()) - 8) <= 2 and s[-1].isalnum() for s in starts)


def test_lists_hold_as_many_things_as_asked_for() -> None:
    for e in ask(n=24, items=9, form="words"):
        context, _ = parts(e)
        assert context.count(",") >= 7
        position, other = (
            len(re.findall(r", | and ", context[: context.index(text_of(e, s))]))
            for s in e.spans_of("evidence")
        )
        assert abs(position - other) == e.meta["gap"]


@pytest.mark.parametrize("params", FORMS)
def test_letters_marks_and_distances_are_balanced(params: dict[str, Any]) -> None:
    examples = ask(n=40, items=6, **params)
    assert set(Counter((e.meta["label"], e.meta["asked"]) for e in examples).values()) == {10}
    assert Counter(e.meta["gap"] for e in examples) == {gap: 8 for gap in range(1, 6)}
    if "answer" not in params:
        assert Counter(TOKENS.decode(e.answer_ids) for e in examples) == {" A": 20, " B": 20}
    firsts = [parts(e)[1] for e in examples]
    assert len(set(firsts)) == 40


def test_what_curves_are_drawn_over() -> None:
    for e in ask(n=12, items=8, form="words"):
        (right,), (other,) = e.spans_of("evidence", 0), e.spans_of("evidence", 1)
        assert e.meta["distance"] == len(e.ids) - 1 - right.start
        assert e.meta["tokens_between"] == abs(right.start - other.start)
        assert e.meta["length"] == len(e.ids) and e.meta["items"] == 8
        assert 1 <= e.meta["position"] <= 8
        assert (e.meta["position"] > e.meta["gap"]) == (e.meta["asked"] == "last") or e.meta["gap"] < 7


@pytest.mark.parametrize("params", FORMS)
def test_shots_are_solved_and_about_other_things(params: dict[str, Any]) -> None:
    for e in ask(n=12, items=5, shots=2, **params):
        assert e.text is not None
        blocks = re.findall(r"(?s)(.+?)\n\nQuestion: (.+?)\nAnswer:(?: the)?(?: (\w+)\n\n)?", e.text)
        assert len(blocks) == 3 and blocks[-1][2] == ""
        for context, question, answer in blocks[:-1]:
            assert solve(context, question) == answer
        if params:
            goods = set(data("words")["goods"])
            one, other, own = (goods & set(re.findall(r"\w+", context)) for context, _, _ in blocks)
            assert len(one) == len(other) == len(own) == 5 and not own & (one | other)


def test_single_tokens_with_the_default_model(smollm2_tokens: Tokens) -> None:
    made = task("order", n=24, form="words", answer="word")
    for e in made.examples(smollm2_tokens):
        assert all(len(c) == 1 for c in e.candidates)
        (value,) = e.spans_of("value", 0)
        assert e.ids[value.start : value.end] == e.answer_ids and e.meta["distance"] > 0
    assert not made.redraws


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"form": "books"}, "form is 'books'; take of sentences, words"),
        ({"answer": "word"}, "sentences are answered by a letter; take answer 'label'"),
        ({"answer": "both"}, "answer is 'both'; take of label, word"),
        ({"items": 1}, "items is 1; take a whole number, 2 or more"),
        ({"items": 25}, "25 items and 0 shots; take 24 and 4 at most"),
        ({"shots": 5}, "8 items and 5 shots"),
        ({"segment": 4}, "segment is 4; take a whole number, 5 or more"),
        ({"haystack": "lakes"}, "no haystack 'lakes'"),
    ],
)
def test_bad_parameters(params: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        task("order", **params)


def test_more_things_than_there_are() -> None:
    with pytest.raises(UsageError, match="4 shots of 24 things are more than there are"):
        ask(form="words", items=24, shots=4, n=1)
