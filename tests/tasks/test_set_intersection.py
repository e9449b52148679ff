"""Set intersection: the answer is read off the two lists again, for both orders, twins and batches."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tests.tokenizers
from interp.errors import UsageError
from interp.models.tokens import Tokens
from interp.tasks import task
from interp.tasks.bare import UNASKED
from interp.tasks.base import Example
from interp.tasks.set_intersection import SetIntersection
from interp.tasks.symbols import symbols

TOY = symbols(64)


def shared(ids: tuple[int, ...], marks: tuple[int, ...]) -> tuple[set[int], list[int], list[int]]:
    """What two lists have in common, and the lists."""
    first, second = ids.index(marks[0]), ids.index(marks[1])
    assert ids[-1] == marks[2]
    a, b = list(ids[first + 1 : second]), list(ids[second + 1 : -1])
    return set(a) & set(b), a, b


def marks_of(e: Example) -> tuple[int, ...]:
    return tuple(e.ids[s.start] for s in sorted(e.spans_of("separator"), key=lambda s: s.hop))


@pytest.mark.parametrize("source", ["symbols", "llama3"])
@pytest.mark.parametrize(
    "params", [{}, {"short": 2, "long": 2}, {"short": 3, "long": 20, "order": "long_first"}]
)
def test_the_answer_is_what_both_lists_have(source: str, params: dict[str, Any]) -> None:
    tokens: Tokens = TOY if source == "symbols" else tests.tokenizers.tokens(source)
    made = task("set_intersection", n=40, **params)
    short, long = made.params["short"], made.params["long"]
    for e in made.examples(tokens):
        marks = marks_of(e)
        for kind, twin in {"clean": e, **e.corrupt}.items():
            common, a, b = shared(twin.ids, marks)
            assert len(set(a)) == len(a) and len(set(b)) == len(b) and not {*a, *b} & set(marks)
            assert common == (set() if kind == "needle_drop" else {twin.answer_ids[0]})
            assert {len(a), len(b)} == {short, long}
            assert (len(a) == short) == e.meta["short_first"] or short == long
        assert {e.ids[s.start] for s in e.spans_of("value", 0)} == {e.answer_ids[0]}
        assert [s.hop for s in e.spans_of("value", 0)] == [0, 1]
        small = min(shared(e.ids, marks)[1:], key=len)
        assert {c[0] for c in e.candidates} == set(small) or short == long
        assert e.chance == 1 / short and len(e.candidates) == short
        assert e.corrupt["value_swap"].foil_ids == e.answer_ids
        for kind, twin in e.corrupt.items():
            changed = [i for i, (x, y) in enumerate(zip(e.ids, twin.ids, strict=True)) if x != y]
            assert changed == [e.spans_of("value", 0)[1].start], kind


def test_both_orders_come_as_often_and_the_answer_stands_everywhere() -> None:
    examples = task("set_intersection", short=4, long=8, n=400).examples(TOY)
    assert sum(e.meta["short_first"] for e in examples) == 200
    for first in (True, False):
        places = np.bincount([e.meta["position"] for e in examples if e.meta["short_first"] == first])
        size = 4 if first else 8
        assert len(places) == size + 1 and places[0] == 0
        # Each place is as likely: within four standard deviations.
        assert abs(places[1:] - 200 / size).max() < 4 * np.sqrt(200 / size)


@pytest.mark.parametrize("order", ["short_first", "long_first", "both"])
def test_batches_ask_what_examples_ask(order: str) -> None:
    made = SetIntersection(short=3, long=9, order=order)  # type: ignore[arg-type]
    ids, labels = made.batch(np.random.default_rng(0), 64, TOY)
    assert ids.shape == labels.shape == (64, 3 + 9 + 3 + 1)
    marks = marks_of(made.examples(TOY)[0])
    firsts = []
    for row, told in zip(ids.tolist(), labels.tolist(), strict=True):
        common, a, _ = shared(tuple(row[:-1]), marks)
        assert common == {row[-1]} and told[-2] == row[-1]
        assert set(told[:-2]) | {told[-1]} == {UNASKED}
        firsts.append(len(a) == 3)
    assert np.mean(firsts) == {"short_first": 1, "long_first": 0, "both": 0.5}[order]
    with_bos = made.batch(np.random.default_rng(0), 4, tests.tokenizers.tokens("llama3"))[0]
    assert with_bos.shape[1] == ids.shape[1] + 1 and len(set(with_bos[:, 0].tolist())) == 1


@pytest.mark.parametrize(
    ("params", "says"),
    [
        ({"short": 1}, "short is 1; take a whole number, 2 or more"),
        ({"short": 8, "long": 7}, "long is 7; take a whole number, 8 or more"),
        ({"order": "random"}, "no order 'random'; take one of short_first, long_first, both"),
    ],
)
def test_bad_sizes_are_named(params: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        task("set_intersection", **params)


def test_a_small_vocabulary_is_told() -> None:
    with pytest.raises(UsageError, match="take fewer tokens"):
        task("set_intersection", short=4, long=200).examples(TOY)
