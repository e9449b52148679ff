"""Multi-query recall: every answer is read off the sequence again, and batches hold what examples hold."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

import tests.tokenizers
from interp.errors import UsageError
from interp.models.tokens import Tokens
from interp.tasks import task
from interp.tasks.base import Example
from interp.tasks.mqar import MQAR
from interp.tasks.symbols import symbols

TOY = symbols(128)


def ask(source: Tokens = TOY, **params: Any) -> list[Example]:
    return task("mqar", **params).examples(source)


def read(ids: tuple[int, ...], head: int, statements: int, width: int, passes: int = 1) -> dict[Any, int]:
    """What the statements of a sequence say: the last value of each key."""
    out: dict[Any, int] = {}
    for s in range(statements * passes):
        at = head + s * (width + 1)
        out[ids[at : at + width]] = ids[at + width]
    return out


def shape(e: Example) -> dict[str, int]:
    """How the statements of an example are read."""
    return {
        "statements": e.meta["pairs"] + e.meta["updates"],
        "width": 2 if e.meta["variant"] == "compositional" else 1,
        "passes": e.meta["passes"],
    }


VARIANTS: list[dict[str, Any]] = [
    {},
    {"pairs": [2, 5], "filler": "random", "length": 48},
    {"passes": 3, "length": 70},
    {"variant": "forgetting", "updates": 3, "power": 1.0},
    {"variant": "forgetting", "filler": "random"},
    {"variant": "compositional", "pairs": 9},
    {"variant": "compositional", "pairs": 4, "passes": 2, "filler": "random"},
]


@pytest.mark.parametrize("params", VARIANTS)
@pytest.mark.parametrize("family", ["symbols", "llama"])
def test_the_sequence_says_what_the_answer_is(params: dict[str, Any], family: str) -> None:
    source = TOY if family == "symbols" else tests.tokenizers.tokens(family)
    head = int(family == "llama")
    for e in ask(source, n=40, **params):
        how = shape(e)
        width = how["width"]
        for kind, twin in {"clean": e, **e.corrupt}.items():
            said = read(twin.ids, head, **how)
            asked = twin.ids[-width:]
            if kind == "needle_drop":
                assert asked not in said and twin.answer_ids == e.answer_ids
                assert e.answer_ids[0] not in twin.ids, "nothing tells the answer any more"
                continue
            assert said[asked] == twin.answer_ids[0], kind
            keys = {s.hop: s for s in twin.spans_of("key", 0)}
            for value in twin.spans_of("value", 0):
                key = keys[value.hop]
                assert twin.ids[key.start : key.end] == asked and value.start == key.end
            (query,) = twin.spans_of("query")
            assert (query.start, query.end) == (len(twin.ids) - width, len(twin.ids))
            # All statements have their spans, and each names what stands there.
            roles = {s.start: s for r in ("key", "distractor_key") for s in twin.spans_of(r)}
            assert len(roles) == how["statements"] * how["passes"]
            for span in twin.spans_of("distractor_query"):
                same = [s for s in roles.values() if s.item == span.item]
                assert {twin.ids[s.start : s.end] for s in same} == {twin.ids[span.start : span.end]}
            values = [s for r in ("value", "distractor_value", "stale_value") for s in twin.spans_of(r)]
            assert {twin.ids[s.start] for s in values} == {c[0] for c in twin.candidates}
            assert twin.chance == 1 / how["statements"] == 1 / len(twin.candidates)
        assert e.foil_ids in e.candidates[1:]


@pytest.mark.parametrize("params", VARIANTS)
def test_twins_change_what_they_say(params: dict[str, Any]) -> None:
    for e in ask(n=40, **params):
        width, copies = shape(e)["width"], e.meta["passes"]

        def changed(kind: str, e: Example = e) -> list[int]:
            pairs = zip(e.ids, e.corrupt[kind].ids, strict=True)
            return [i for i, (a, b) in enumerate(pairs) if a != b]

        assert set(e.corrupt) == {"value_swap", "key_swap", "query_swap", "needle_drop"}
        assert changed("query_swap") == [len(e.ids) - 1] or (
            width == 2 and changed("query_swap") == [len(e.ids) - 2]
        )
        swaps = changed("value_swap")
        assert len(swaps) == 2 * copies
        assert sorted(e.corrupt["value_swap"].ids) == sorted(e.ids)
        if e.meta["variant"] != "forgetting":
            assert sorted(e.corrupt["key_swap"].ids) == sorted(e.ids)
        stated = {i for s in e.spans if "key" in s.role for i in range(s.start, s.end)}
        assert set(changed("key_swap")) <= stated
        declared = {i for i in changed("needle_drop")}
        mine = {
            i
            for r in ("key", "value", "stale_value")
            for s in e.spans_of(r, 0)
            for i in range(s.start, s.end)
        }
        assert declared == mine
        for kind in ("value_swap", "key_swap", "query_swap"):
            assert e.corrupt[kind].foil_ids == e.answer_ids


def test_examples_in_turn_ask_one_sequence() -> None:
    examples = ask(pairs=[3, 5], n=20, length=40)
    groups = [e.group for e in examples]
    assert groups == ["0:0"] * 3 + ["0:1"] * 5 + ["0:2"] * 3 + ["0:3"] * 5 + ["0:4"] * 3 + ["0:5"]
    assert [e.meta["asked"] for e in examples[:8]] == [1, 2, 3, 1, 2, 3, 4, 5]
    for a, b in pairwise(examples):
        if a.group == b.group:
            assert b.ids[: len(a.ids)] == a.ids, "prompts of one sequence are prefixes of one another"
    last = examples[2]
    assert len({last.ids[s.start] for r in ("query", "distractor_query") for s in last.spans_of(r)}) == 3
    for e in examples:
        assert e.meta["distance"] == len(e.ids) - 1 - e.spans_of("value", 0)[-1].start
        assert e.meta["position"] == e.spans_of("key", 0)[0].start // 2 + 1
        assert e.ids[2 * e.meta["pairs"] + 2 * (e.meta["gap"] - 1)] == e.ids[-1]


def test_an_update_changes_the_value_and_the_stale_one_is_the_foil() -> None:
    examples = ask(variant="forgetting", n=80)
    assert Counter(e.meta["updated"] for e in examples) == {True: 40, False: 40}
    for e in examples:
        stale = e.spans_of("stale_value", 0)
        assert bool(stale) == e.meta["updated"] and len(e.spans_of("stale_value")) == 4
        if stale:
            assert (e.ids[stale[0].start],) == e.foil_ids
            assert [s.hop for s in e.spans_of("key", 0)] == [0, 1]
            assert [s.hop for s in (*stale, *e.spans_of("value", 0))] == [0, 1]
        context = e.ids[:24]
        assert len(set(context[1::2])) == 12, "an update is a value that stands nowhere else"


def test_neither_token_of_a_key_in_a_grid_tells_the_value() -> None:
    for e in ask(variant="compositional", pairs=9, n=36):
        said = read(e.ids, 0, 9, 2)
        firsts, seconds = {a for a, _ in said}, {b for _, b in said}
        assert len(firsts) == len(seconds) == 3 and not firsts & seconds
        assert set(said) == {(a, b) for a in firsts for b in seconds} and len(set(said.values())) == 9
        first, second = e.ids[-2:]
        (foil_key,) = [k for k, v in said.items() if (v,) == e.foil_ids]
        assert (foil_key[0] == first) != (foil_key[1] == second), "the foil shares one token with the key"


@pytest.mark.parametrize("params", VARIANTS)
@pytest.mark.parametrize("family", ["symbols", "gemma"])
def test_batches_ask_every_key_once(params: dict[str, Any], family: str) -> None:
    source = TOY if family == "symbols" else tests.tokenizers.tokens(family)
    made = task("mqar", **params)
    assert isinstance(made, MQAR)
    head = int(family == "gemma")
    ids, labels = made.batch(np.random.default_rng(5), 64, source)
    length = head + made.config()["length"]
    assert ids.shape == labels.shape == (64, length) and ids.dtype == labels.dtype == np.int64
    again = made.batch(np.random.default_rng(5), 64, source)
    assert (again[0] == ids).all() and (again[1] == labels).all()
    seen: Counter[int] = Counter()
    for row, asked in zip(ids.tolist(), labels.tolist(), strict=True):
        at = [i for i, v in enumerate(asked) if v != -100]
        (layout,) = [x for x in made.layouts if x.pairs == len(at)]
        seen[len(at)] += 1
        said = read(tuple(row), head, layout.statements, layout.width, layout.passes)
        assert len(said) == len(at) and min(at) >= head + layout.context
        questions = {tuple(row[i - layout.width + 1 : i + 1]): asked[i] for i in at}
        assert questions == said
        # What is neither stated nor asked is filler, and tells nothing.
        used = {i - w for i in at for w in range(layout.width)}
        rest = [row[i] for i in range(head + layout.context, length) if i not in used]
        known = {t for key, value in said.items() for t in (*key, value)}
        assert not known & set(rest)
        assert params.get("filler") == "random" or len(set(rest)) <= 1
    assert set(seen) == {x.pairs for x in made.layouts}


def test_what_is_asked_soon_does_not_depend_on_its_place() -> None:
    made = MQAR(length=64, pairs=8)
    ids, labels = made.batch(np.random.default_rng(0), 4000, TOY)
    at = np.where(labels >= 0, np.arange(64), 0)
    gaps = np.zeros((4000, 8))
    for key in range(8):
        gaps[:, key] = (at * (ids == ids[:, 2 * key : 2 * key + 1])).max(axis=1)
    spread = gaps.std() / np.sqrt(4000)
    assert np.abs(gaps.mean(axis=0) - gaps.mean()).max() < 4 * spread
    first = np.bincount((gaps.min(axis=1).astype(int) - 16) // 2)
    assert first[0] > 0.9 * 4000, "the power law asks soon"
    even = MQAR(length=64, pairs=8, power=1).batch(np.random.default_rng(0), 4000, TOY)[1]
    share = (even >= 0).mean(axis=0)[16::2]
    assert np.abs(share - 8 / 24).max() < 4 * np.sqrt(1 / 3 * 2 / 3 / 4000)


def test_keys_and_values_are_drawn_evenly() -> None:
    ids, _ = MQAR(pairs=8).batch(np.random.default_rng(1), 4000, TOY)
    for columns, low in ((ids[:, 0:16:2], 2), (ids[:, 1:16:2], 65)):
        counts = np.bincount(columns.ravel(), minlength=128)[low : low + 63]
        assert counts.sum() == 32_000
        expected = 32_000 / 63
        assert ((counts - expected) ** 2 / expected).sum() < 62 + 4 * np.sqrt(2 * 62)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"pairs": 1}, "pairs is 1; take a whole number, 2 or more"),
        ({"pairs": []}, "pairs is"),
        ({"pairs": 17}, "17 pairs need a length of 68 or more, not 64"),
        ({"pairs": 8, "passes": 4}, "8 pairs need a length of 80 or more"),
        (
            {"variant": "continuous"},
            "no variant 'continuous'; take one of standard, forgetting, compositional",
        ),
        ({"filler": "zero"}, "no filler 'zero'; take one of pad, random"),
        ({"power": 0}, "power is 0; take a number above 0"),
        ({"updates": 2}, "updates are of the variant forgetting, not of standard"),
        ({"updates": 9, "variant": "forgetting"}, "updates is 9; there are 8 keys"),
        ({"passes": 2, "variant": "forgetting"}, "has no last value; take 1"),
        ({"pairs": 8, "variant": "compositional"}, "pairs is 8; .* takes a square number"),
    ],
)
def test_bad_parameters(params: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        task("mqar", **params)


def test_more_pairs_than_the_vocabulary_has() -> None:
    message = r"17 different keys, one of 2 kinds of ids, need 34 .* has 30; take fewer keys"
    with pytest.raises(UsageError, match=message):
        ask(symbols(32), pairs=16, n=1)
