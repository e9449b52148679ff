"""Updates: the last line about a key answers, recomputed from the text; every earlier one is stale."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from itertools import pairwise
from typing import Any

import pytest

import tests.tokenizers
from interp.errors import UsageError
from interp.models.tokens import Tokens
from interp.tasks import task
from interp.tasks.base import Example, Span
from interp.tasks.pairs import data

WORDINGS = data("interference")["updates"]


def ask(family: str = "smollm", **params: Any) -> list[Example]:
    return task("updates", **params).examples(tests.tokenizers.tokens(family))


def word(tokens: Tokens, example: Example, span: Span) -> str:
    return tokens.decode(example.ids[span.start : span.end]).strip()


def read(example: Example) -> tuple[str, list[tuple[str, str]]]:
    """Key asked for, and all lines of the stream as keys and values, from nothing but the text."""
    assert example.text is not None
    wording = WORDINGS[example.cluster]

    def pattern(name: str) -> str:
        return re.escape(wording[name]).replace(r"\{key\}", r"(\w+)").replace(r"\{value\}", r"(\w+)")

    stream, end = example.text.split("\n\n")
    assert stream.startswith(wording["intro"])
    found = re.fullmatch(f"Question: {pattern('question')}\nAnswer: {pattern('stem')}", end)
    assert found and found[1] == found[2]
    body = stream[len(wording["intro"]) :]
    lines = re.findall(f" {pattern('line')}", body)
    assert "".join(f" {wording['line'].format(key=k, value=v)}" for k, v in lines) == body
    return found[1], lines


@pytest.mark.parametrize("family", list(tests.tokenizers.KINDS))
@pytest.mark.parametrize("order", ["interleaved", "blocks"])
def test_the_text_answers_the_question(family: str, order: str) -> None:
    tokens = tests.tokenizers.tokens(family)
    for e in ask(family, n=16, keys=3, updates=4, order=order):
        for twin in (e, *e.corrupt.values()):
            key, lines = read(twin)
            own = [v for k, v in lines if k == key]
            assert own[-1] == tokens.decode(twin.answer_ids).strip()
            assert (
                Counter(k for k, _ in lines) == dict.fromkeys({k for k, _ in lines}, 4) and len(lines) == 12
            )
            assert len(set(own)) == 4 and own[-1] not in [v for k, v in lines if k != key]
            assert {tokens.decode(c).strip() for c in twin.candidates} == set(own)
            assert twin.chance == 1 / 4
            # The foil is the value before.
            assert tokens.decode(twin.foil_ids).strip() == own[-2]


def test_spans_count_back_from_the_last_update() -> None:
    tokens = tests.tokenizers.tokens("llama")
    for e in ask("llama", n=16, keys=2, updates=5):
        key, lines = read(e)
        own = [v for k, v in lines if k == key]
        (value,) = e.spans_of("value")
        (evidence,) = e.spans_of("evidence")
        assert word(tokens, e, value) == own[-1] and (value.item, value.hop) == (0, 0)
        assert evidence.start <= e.spans_of("key")[0].start < value.start < value.end <= evidence.end
        stale = e.spans_of("stale_value", 0)
        assert [s.hop for s in stale] == [4, 3, 2, 1]
        assert [word(tokens, e, s) for s in stale] == own[:-1]
        assert {word(tokens, e, s) for s in e.spans_of("stale_key")} == {key}
        assert len(e.spans_of("stale")) == 4 and len(e.spans_of("distractor")) == 5
        assert [word(tokens, e, s) for s in e.spans_of("distractor_value")] == [
            v for k, v in lines if k != key
        ]
        assert [word(tokens, e, s) for s in e.spans_of("query")] == [key, key]
        assert e.meta["history"] == own and e.meta["asked"] == key


def test_twins_change_the_value_or_the_key_asked_for() -> None:
    tokens = tests.tokenizers.tokens("smollm")
    for e in ask(n=24):
        swap, query = e.corrupt["value_swap"], e.corrupt["query_swap"]
        key, lines = read(e)
        assert Counter(swap.ids) == Counter(e.ids), "the two values have changed places, no more"
        assert swap.answer_ids == e.foil_ids and swap.foil_ids == e.answer_ids
        assert read(swap)[0] == key and read(query)[1] == lines and read(query)[0] != key
        assert query.group == e.group != swap.group
        assert tokens.decode(query.answer_ids).strip() not in e.meta["history"]


def test_orders_are_what_they_say() -> None:
    for e in ask(n=30, keys=4, updates=3, order="blocks"):
        keys = [k for k, _ in read(e)[1]]
        assert [k for i, k in enumerate(keys) if not i or keys[i - 1] != k] == list(dict.fromkeys(keys))
        assert e.meta["since"] == 3 * (4 - e.meta["position"])
    for e in ask(n=30, keys=4, updates=3):
        key, lines = read(e)
        keys = [k for k, _ in lines]
        assert all(a != b for a, b in pairwise(keys))
        assert all(len(set(keys[i : i + 4])) == 4 for i in (0, 4, 8)), "each round is over all keys"
        assert e.meta["since"] == 4 - e.meta["position"] == keys[::-1].index(key)


def test_turns_and_wordings_are_counterbalanced() -> None:
    examples = ask(n=96, keys=3)
    assert Counter(e.meta["position"] for e in examples) == {1: 32, 2: 32, 3: 32}
    assert Counter(e.cluster for e in examples) == dict.fromkeys(WORDINGS, 6)
    places = defaultdict(set)
    for e in examples:
        places[e.cluster].add(e.meta["position"])
    assert all(len(p) > 1 for p in places.values())


def test_one_key_has_no_other_to_ask_for() -> None:
    for e in ask(n=8, keys=1, updates=2):
        assert set(e.corrupt) == {"value_swap"} and not e.spans_of("distractor") and e.chance == 0.5


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"keys": 9}, "keys is 9; take 8 at most"),
        ({"updates": 1}, "updates is 1; take a whole number, 2 or more"),
        ({"order": "random"}, "order is 'random'; take of interleaved, blocks"),
        ({"updates": 60}, "121 goods of one length are needed, and this tokenizer has"),
    ],
)
def test_bad_parameters_are_named(params: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ask(**params)
