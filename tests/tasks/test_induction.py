"""Induction: what repeats, what the answer is, and what the twins change."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

import tests.tokenizers
from interp.errors import UsageError
from interp.models.tokens import Tokens
from interp.tasks import task
from interp.tasks.base import Example
from interp.tasks.induction import ordinary_ids


def ask(family: str = "llama", **params: Any) -> list[Example]:
    return task("induction", **params).examples(tests.tokenizers.tokens(family))


@pytest.mark.parametrize("n_answer", [1, 3])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_segment_repeats(family: str, n_answer: int) -> None:
    tokens = tests.tokenizers.tokens(family)
    for e in ask(family, length=16, n_answer=n_answer, n=40):
        (key,), (value,), (query,) = (e.spans_of(r) for r in ("key", "value", "query"))
        assert query.start == len(e.ids) - 1 and len(query) == len(key) == 1
        assert e.ids[key.start] == e.ids[query.start] and value.start == key.end
        assert e.ids[value.start : value.end] == e.answer_ids and len(value) == n_answer
        # What stands before the query stands before the key too, as far as the segment goes.
        period = query.start - key.start
        assert period == 16
        start = key.start
        while start and e.ids[start - 1] == e.ids[start - 1 + period]:
            start -= 1
        segment = e.ids[start : start + 16]
        assert len(set(segment)) == 16
        assert e.ids[start + 16 :] == segment[: len(e.ids) - start - 16]
        lead = e.ids[:start]
        assert len(lead) <= 8 + (family == "llama")
        assert lead[:1] == (tokens.encode("a").ids[:1] if family == "llama" else lead[:1])
        text = e.ids[1:] if family == "llama" else e.ids
        assert set(text) <= set(ordinary_ids(tokens))


def test_positions_vary() -> None:
    examples = ask(n=64)
    assert len({len(e.ids) for e in examples}) > 20
    assert len({e.spans_of("key")[0].start for e in examples}) > 15
    assert {len(e.ids) for e in ask(n=20, length=5, lead=0)} == {1 + 5 + 2, 1 + 5 + 3}


def test_candidates_are_the_values_of_the_segment() -> None:
    for e in ask(length=16, n_answer=2, n=20):
        assert len(e.candidates) == 14 and e.chance == 1 / 14
        pairs = set(pairwise(e.ids))
        assert set(e.candidates) <= pairs
        assert e.foil_ids in e.candidates[1:] and e.foil_ids[0] != e.answer_ids[0]


def test_twins() -> None:
    for e in ask(length=12, n_answer=2, n=40):
        value, query = e.corrupt["value_swap"], e.corrupt["query_swap"]
        (at,) = e.spans_of("value")
        assert [i for i, (a, b) in enumerate(zip(e.ids, value.ids, strict=True)) if a != b] == [
            at.start,
            at.start + 1,
        ]
        assert not set(value.answer_ids) & set(e.ids)
        assert [i for i, (a, b) in enumerate(zip(e.ids, query.ids, strict=True)) if a != b] == [
            len(e.ids) - 1
        ]
        assert query.answer_ids == e.foil_ids and query.foil_ids == e.answer_ids
        (key,), (at,) = query.spans_of("key"), query.spans_of("value")
        assert query.ids[key.start] == query.ids[-1] and query.ids[at.start : at.end] == query.answer_ids
        assert query.ids.count(query.ids[-1]) == 2, "one earlier copy to read from"


def test_no_special_byte_or_added_token(smollm2_tokens: Tokens) -> None:
    plain = ordinary_ids(smollm2_tokens)
    assert len(plain) > 30_000
    pieces = smollm2_tokens.pieces(plain[:2000])
    assert all(p.strip().isalnum() and p.isascii() for p in pieces)
    llama = tests.tokenizers.tokens("llama")
    names = llama.hf.convert_ids_to_tokens(ordinary_ids(llama))
    assert not [n for n in names if n.startswith("<")] and names


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"length": 4}, "length is 4; take a whole number, 5 or more"),
        ({"length": 6, "n_answer": 3}, "length is 6; take a whole number, 7 or more"),
        ({"n_answer": 0}, "n_answer is 0"),
        ({"lead": -1}, "lead is -1"),
    ],
)
def test_bad_parameters(params: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        task("induction", **params)


def test_more_tokens_than_there_are() -> None:
    with pytest.raises(UsageError, match=r"length 5000 needs 5009 different ordinary tokens, and .* has \d+"):
        ask(length=5000, n=1)
