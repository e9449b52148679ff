"""Joint recall: every answer is read off the first half again, and what a key alone tells is what it should be."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tests.tokenizers
from interp.errors import UsageError
from interp.models.tokens import Tokens
from interp.tasks import task
from interp.tasks.base import Example
from interp.tasks.joint_recall import JointRecall, key_only_accuracy
from interp.tasks.symbols import symbols

TOY = symbols(50)
Table = dict[int, dict[int, int]]
SIZES: list[dict[str, Any]] = [{}, {"contexts": 2, "keys": 3, "values": 2}, {"contexts": [3, 5], "keys": 2}]


def ask(source: Tokens = TOY, **params: Any) -> list[Example]:
    return task("joint_recall", **params).examples(source)


def blocks(ids: list[int], contexts: int, keys: int) -> Table:
    """What a half lists: for each context, the value of each key."""
    out: Table = {}
    for start in range(0, min(len(ids), contexts * (1 + 2 * keys)), 1 + 2 * keys):
        context, *pairs = ids[start : start + 1 + 2 * keys]
        out[context] = dict(zip(pairs[::2], pairs[1::2], strict=True))
    return out


def read(e: Example, ids: tuple[int, ...], head: int) -> tuple[Table, int, int]:
    """What the first half of a prompt lists, and the context and key that it asks for."""
    contexts, keys = e.meta["contexts"], e.meta["keys"]
    half = contexts * (1 + 2 * keys)
    body = list(ids[head:])
    said = blocks(body[:half], contexts, keys)
    again = body[half + 1 :]
    place = (len(again) - 2) // (1 + 2 * keys)
    # What is told again before the question is what was said.
    for context, pairs in blocks(again[:-1], contexts, keys).items():
        assert all(said[context][k] == v for k, v in pairs.items())
    return said, again[place * (1 + 2 * keys)], again[-1]


@pytest.mark.parametrize("params", SIZES)
@pytest.mark.parametrize("family", ["symbols", "llama3"])
def test_the_first_half_says_what_the_answer_is(params: dict[str, Any], family: str) -> None:
    source = TOY if family == "symbols" else tests.tokenizers.tokens(family)
    head = int(family == "llama3")
    for e in ask(source, n=48, **params):
        assert set(e.corrupt) == {"value_swap", "key_swap", "query_swap", "context_swap", "needle_drop"}
        for kind, twin in {"clean": e, **e.corrupt}.items():
            if kind == "needle_drop":
                continue
            said, context, key = read(e, twin.ids, head)
            assert len(said) == e.meta["contexts"] and {len(p) for p in said.values()} == {e.meta["keys"]}
            assert len({frozenset(p) for p in said.values()}) == 1, "all contexts have the same keys"
            assert said[context][key] == twin.answer_ids[0], kind
            asked = [twin.ids[s.start] for s in sorted(twin.spans_of("query"), key=lambda s: s.hop)]
            assert asked == [context, key]
            (at,), (value,) = twin.spans_of("key", 0), twin.spans_of("value", 0)
            assert twin.ids[at.start] == key and value.start == at.end
            assert twin.spans_of("evidence")[0].start == at.start
            assert {twin.ids[s.start] for s in twin.spans_of("context_id", 0)} == {context}
            assert sorted(twin.meta["key_only"]) == sorted(p[key] for p in said.values())
            assert sorted(twin.meta["context_only"]) == sorted(said[context].values())
            same = [p[key] == said[context][key] for p in said.values()]
            assert twin.meta["key_only_right"] == pytest.approx(np.mean(same))
            if kind == "clean":
                assert e.foil_ids[0] in {p[key] for c, p in said.items() if c != context}
            else:
                assert twin.foil_ids == e.answer_ids
            assert len(twin.candidates) == params.get("values", 16) and twin.chance == 1 / len(
                twin.candidates
            )


@pytest.mark.parametrize("params", SIZES)
def test_twins_change_what_they_say(params: dict[str, Any]) -> None:
    for e in ask(n=64, **params):
        said, context, key = read(e, e.ids, 0)
        others = {kind: read(e, twin.ids, 0) for kind, twin in e.corrupt.items() if kind != "needle_drop"}
        assert others["context_swap"][0] == said and others["query_swap"][0] == said
        assert others["context_swap"][1] != context and others["context_swap"][2] == key
        assert others["query_swap"][1] == context and others["query_swap"][2] != key
        for kind in ("value_swap", "key_swap"):
            assert others[kind][1:] == (context, key)
            cells = {(c, k) for c in said for k in said[c] if others[kind][0][c][k] != said[c][k]}
            (away,) = cells - {(context, key)}
            assert (away[0] != context, away[1] != key) == (
                (True, False) if kind == "value_swap" else (False, True)
            )
            assert others[kind][0][away[0]][away[1]] == said[context][key]
        dropped = e.corrupt["needle_drop"]
        (evidence,) = e.spans_of("evidence")
        changed = [i for i, (a, b) in enumerate(zip(e.ids, dropped.ids, strict=True)) if a != b]
        assert changed == [evidence.start, evidence.start + 1] and dropped.answer_ids == e.answer_ids
        assert dropped.ids[evidence.start] not in e.ids and dropped.ids[evidence.start + 1] != e.answer_ids[0]


def test_every_token_has_its_span() -> None:
    for e in ask(n=32):
        covered = {i for s in e.spans for i in range(s.start, s.end)}
        assert covered == set(range(len(e.ids)))
        (separator,) = e.spans_of("separator")
        assert separator.start == 36 and e.ids[36] == 0
        told = e.spans_of("distractor_query")
        assert len(told) == e.meta["asked"] - 1
        items = {s.item: e.ids[s.start] for s in e.spans_of("distractor_key")}
        assert len(items) == 15 and all(items[s.item] == e.ids[s.start] for s in told)
        values = {s.item: e.ids[s.start] for s in e.spans_of("distractor_value") if s.hop == 0}
        again = {s.item: e.ids[s.start] for s in e.spans_of("distractor_value") if s.hop == 1}
        assert again.items() <= values.items()


def test_examples_in_turn_ask_one_sequence() -> None:
    examples = ask(n=40)
    assert [e.group for e in examples] == ["0:0"] * 16 + ["0:1"] * 16 + ["0:2"] * 8
    assert [e.meta["asked"] for e in examples[:16]] == list(range(1, 17))
    for e in examples[:16]:
        assert e.ids == examples[15].ids[: len(e.ids)]
    assert len(examples[15].ids) == 2 * 36 + 1 - 1


@pytest.mark.parametrize("params", SIZES)
def test_batches_ask_all_of_the_second_half(params: dict[str, Any]) -> None:
    made = task("joint_recall", **params)
    assert isinstance(made, JointRecall)
    tokens = tests.tokenizers.tokens("gemma")
    ids, labels = made.batch(np.random.default_rng(2), 40, tokens)
    again = made.batch(np.random.default_rng(2), 40, tokens)
    assert (ids == again[0]).all() and (labels == again[1]).all()
    assert ids.dtype == labels.dtype == np.int64
    assert ids.shape == labels.shape == (40, 1 + max(x.length for x in made.layouts))
    for row, told in zip(ids.tolist(), labels.tolist(), strict=True):
        at = [i for i, v in enumerate(told) if v != -100]
        (layout,) = [x for x in made.layouts if x.contexts * x.keys == len(at)]
        said = blocks(row[1 : 1 + layout.half], layout.contexts, layout.keys)
        rest = row[2 + layout.half : 1 + layout.length]
        assert blocks(rest, layout.contexts, layout.keys) == said
        assert [row[i + 1] for i in at] == [told[i] for i in at], "the value is told behind its key"
        assert {row[i] for i in at} == {k for pairs in said.values() for k in pairs}
        assert set(row[1 + layout.length :]) <= {row[1 + layout.half]}, "the rest is filled"


def test_a_circuit_of_keys_alone_scores_as_the_formula_says() -> None:
    """The value of the right key in a random context, read off the tokens of batches."""
    assert key_only_accuracy() == 1 / 4 + 3 / 4 / 16 == 0.296875
    for contexts, values in ((4, 16), (2, 4), (3, 16)):
        made = JointRecall(contexts=contexts, keys=3, values=values)
        rng = np.random.default_rng(contexts)
        ids, labels = made.batch(rng, 3000, TOY)
        half = contexts * 7
        hits = []
        for row, told in zip(ids.tolist(), labels.tolist(), strict=True):
            said = list(blocks(row[:half], contexts, 3).values())
            hits += [said[rng.integers(contexts)][row[i]] == v for i, v in enumerate(told) if v != -100]
        p = key_only_accuracy(contexts, values)
        assert abs(np.mean(hits) - p) < 4 * np.sqrt(p * (1 - p) / len(hits))


def test_what_meta_says_of_keys_alone_is_about_the_formula() -> None:
    right = [e.meta["key_only_right"] for e in ask(n=40, contexts=2, keys=2)]
    # Two contexts never agree on a key here: the right one of two is all that is left.
    assert right == [0.5] * 40
    right = [e.meta["key_only_right"] for e in ask(n=320)]
    # Sequences, not questions, are independent.
    assert abs(np.mean(right) - 0.296875) < 4 * np.std(right) / np.sqrt(320 / 16)


def test_orders_of_the_halves_know_nothing_of_one_another() -> None:
    ids, _ = JointRecall(contexts=2, keys=2).batch(np.random.default_rng(0), 8000, TOY)
    same_order = ids[:, 0] == ids[:, 11]
    same_keys = ids[:, 1] == ids[:, 12]
    for share in (same_order.mean(), same_keys.mean(), (same_order & same_keys).mean() * 2):
        assert abs(share - 0.5) < 4 * 0.5 / np.sqrt(4000)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"contexts": 1}, "contexts is 1; take a whole number, 2 or more"),
        ({"keys": [3, 1]}, "keys is 1; take a whole number, 2 or more"),
        ({"keys": "many"}, "keys is 'many'"),
        ({"values": 1}, "values is 1"),
    ],
)
def test_bad_parameters(params: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        task("joint_recall", **params)


def test_more_than_the_vocabulary_has() -> None:
    with pytest.raises(UsageError, match=r"17 different values, one of 3 kinds .* need 51 .* has 48"):
        ask(values=17, n=1)
