"""Indirect object identification: who stands where, what is balanced, what the twins change."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

import tests.tokenizers
from interp.errors import UsageError
from interp.models.tokens import Tokens
from interp.tasks import task
from interp.tasks.base import Example, Redraw, Span
from interp.tasks.pairs import Alike, data, in_turn, joints


def ask(family: str = "llama", **params: Any) -> list[Example]:
    return task("ioi", **params).examples(tests.tokenizers.tokens(family))


def word(tokens: Tokens, example: Example, span: Span) -> str:
    return tokens.decode(example.ids[span.start : span.end]).strip()


@pytest.mark.parametrize("family", list(tests.tokenizers.KINDS))
def test_spans_are_the_names(family: str) -> None:
    tokens = tests.tokenizers.tokens(family)
    for e in ask(family, n=32):
        for twin in (e, *e.corrupt.values()):
            (io,), (s1,), (s2,), (end,) = (twin.spans_of(role) for role in ("io", "s1", "s2", "end"))
            names = twin.meta["names"]
            assert {k: word(tokens, twin, s) for k, s in (("io", io), ("s1", s1), ("s2", s2))} == names
            assert end.start == len(twin.ids) - 1 and word(tokens, twin, end)
            assert twin.ids[io.start : io.end] == twin.answer_ids
            assert twin.ids[s1.start : s1.end] == twin.foil_ids
            assert twin.candidates == (twin.answer_ids, twin.foil_ids) and twin.chance == 1 / 2
            assert (io < s1) == (twin.meta["order"] == "ABBA") and max(io, s1).end <= s2.start
            assert names["s1"] == names["s2"] or twin is e.corrupt["abc"]
            assert twin.text is not None and twin.text.count(f" {names['io']}") == 1


def test_twins() -> None:
    for e in ask(n=32):
        s2_io, abc = e.corrupt["s2_io"], e.corrupt["abc"]
        (s2,) = e.spans_of("s2")
        changed = {i for i, (a, b) in enumerate(zip(e.ids, s2_io.ids, strict=True)) if a != b}
        assert changed <= set(range(s2.start, s2.end))
        assert s2_io.answer_ids == e.foil_ids and s2_io.foil_ids == e.answer_ids
        assert s2_io.meta["order"] != e.meta["order"]
        three = set(abc.meta["names"].values())
        assert len(three) == 3 and not three & set(e.meta["names"].values())
        assert abc.meta["order"] == e.meta["order"] and abc.meta["template"] == e.meta["template"]


def test_orders_and_templates_are_balanced() -> None:
    examples = ask(n=64)
    cells = Counter((e.meta["template"], e.meta["order"]) for e in examples)
    assert len(cells) == 32 and set(cells.values()) == {2}
    assert len({e.cluster for e in examples}) == 16
    assert {e.cluster.split("/")[0] for e in examples} == set(data("ioi")["templates"])
    assert Counter(e.meta["order"] for e in ask(n=10)) == {"ABBA": 5, "BABA": 5}
    assert {e.meta["order"] for e in ask(n=8, order="BABA")} == {"BABA"}
    few = ask(n=8, families=["sending"], order="ABBA")
    assert set(Counter(e.cluster for e in few).values()) == {2}
    assert {e.meta["family"] for e in few} == {"sending"}


def test_names_vary_and_the_order_does_not_give_them_away() -> None:
    """No name is the answer more often than chance would have it, and the first name is it half of the time."""
    examples = ask("smollm", n=400)
    answers = Counter(e.meta["names"]["io"] for e in examples)
    assert len(answers) > 20 and max(answers.values()) < 400 / 4
    assert np.mean([e.spans_of("io") < e.spans_of("s1") for e in examples]) == 0.5


def test_a_uniform_guesser_scores_chance() -> None:
    rng = np.random.default_rng(0)
    hits = [e.candidates[rng.integers(2)] == e.answer_ids for e in ask(n=300)]
    assert abs(np.mean(hits) - 0.5) < 4 * np.sqrt(0.25 / 300)


def test_single_tokens_with_the_default_model(smollm2_tokens: Tokens) -> None:
    for e in task("ioi", n=32).examples(smollm2_tokens):
        assert e.meta["word_tokens"] == 1
        assert all(len(c) == 1 for twin in (e, *e.corrupt.values()) for c in twin.candidates)
        assert all(len(s) == 1 for role in ("io", "s1", "s2") for s in e.spans_of(role))
    names = Alike(smollm2_tokens, "names", 3, "ioi")
    assert len(names.ids) == len(data("words")["names"]), "all of our names are single tokens here"


def test_words_of_one_length() -> None:
    tokens = tests.tokenizers.tokens("smollm")
    single = Alike(tokens, "goods", 10, "laundry")
    assert single.size == 1 and all(len(ids) == 1 for ids in single.ids.values())
    # The small vocabulary has no name of one token; those of one length that start most differently are taken.
    names = Alike(tokens, "names", 3, "ioi")
    assert names.size > 1 and {len(ids) for ids in names.ids.values()} == {names.size}
    rng = np.random.default_rng(0)
    drawn = names.draw(rng, 3)
    assert len({names.ids[w][0] for w in drawn}) == 3
    assert not set(drawn) & set(names.draw(rng, 3, besides=drawn))
    with pytest.raises(Redraw, match="fewer than 50 words start differently"):
        names.draw(rng, 50)
    with pytest.raises(UsageError, match=r"task ioi: 90 names of one length are needed, and .* has \d+"):
        Alike(tokens, "names", 90, "ioi")


def test_every_block_of_a_turn_holds_each_number() -> None:
    turns = [in_turn(i, 5, "seed") for i in range(50)]
    assert all(sorted(turns[i : i + 5]) == [0, 1, 2, 3, 4] for i in range(0, 50, 5))
    assert len({tuple(turns[i : i + 5]) for i in range(0, 50, 5)}) > 5
    assert turns != [in_turn(i, 5, "other") for i in range(50)]
    assert [joints(n) for n in (1, 2, 4)] == [[""], ["", " and"], ["", ",", ",", " and"]]


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"families": "selling"}, "no family 'selling'; take of giving, telling, sending, trading"),
        ({"families": []}, "families is"),
        ({"order": "ABAB"}, "order is 'ABAB'; take of ABBA, BABA, both"),
        ({"n": 0}, "n is 0"),
    ],
)
def test_bad_parameters(params: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        task("ioi", **params)
