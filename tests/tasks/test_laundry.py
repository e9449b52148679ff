"""The laundry list: what is listed, what is left over, and that its place gives nothing away."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

import tests.tokenizers
from interp.errors import UsageError
from interp.models.tokens import Tokens
from interp.tasks import task
from interp.tasks.base import Example, Span


def ask(family: str = "smollm", **params: Any) -> list[Example]:
    return task("laundry", **params).examples(tests.tokenizers.tokens(family))


def word(tokens: Tokens, example: Example, span: Span) -> str:
    return tokens.decode(example.ids[span.start : span.end]).strip()


def read(tokens: Tokens, e: Example) -> tuple[list[str], list[str]]:
    """The things of the list, and those that are mentioned again, in the order of the text."""
    first = sorted([*e.spans_of("value"), *e.spans_of("distractor_value")])
    again = e.spans_of("again")
    assert first[-1].end <= again[0].start
    return [word(tokens, e, s) for s in first], [word(tokens, e, s) for s in again]


@pytest.mark.parametrize("family", list(tests.tokenizers.KINDS))
def test_all_but_the_answer_are_mentioned_again(family: str) -> None:
    tokens = tests.tokenizers.tokens(family)
    for e in ask(family, n=40):
        for twin in (e, *e.corrupt.values()):
            listed, again = read(tokens, twin)
            assert listed == twin.meta["listed"] and again == twin.meta["again"]
            assert len(set(listed)) == len(listed) == twin.meta["items"] == len(again) + 1
            (left,) = set(listed) - set(again)
            assert left == tokens.decode(twin.answer_ids).strip() == listed[twin.meta["position"] - 1]
            assert {tokens.decode(c).strip() for c in twin.candidates} == set(listed)
            assert twin.chance == 1 / len(listed) and twin.foil_ids in twin.candidates[1:]
            # Both mentions of a thing carry its number.
            by_item = {s.item: word(tokens, twin, s) for s in twin.spans_of("again")}
            found = {s.item: word(tokens, twin, s) for s in twin.spans_of("distractor_value")}
            assert by_item == found and 0 not in found
            assert {word(tokens, twin, s) for s in twin.spans_of("subject")} <= {
                word(tokens, e, e.spans_of("subject")[0])
            }
            assert len({c[0] for c in twin.candidates}) == len(listed), "told apart by their first token"
            assert twin.text is not None and not any(
                f" {a} {w}" in twin.text for a in ("a", "an") for w in listed
            )


def test_the_twin_leaves_the_foil_over() -> None:
    tokens = tests.tokenizers.tokens("smollm")
    for e in ask(n=40):
        twin = e.corrupt["left_swap"]
        assert twin.answer_ids == e.foil_ids and twin.foil_ids == e.answer_ids
        (listed, again), (same, other) = read(tokens, e), read(tokens, twin)
        assert listed == same
        assert [(a, b) for a, b in zip(again, other, strict=True) if a != b] == [
            (tokens.decode(e.foil_ids).strip(), tokens.decode(e.answer_ids).strip())
        ]


def test_families_are_worded_differently() -> None:
    for e in ask(n=40, items=5):
        # One sentence lists all again in A; in B each has a sentence.
        again = e.spans_of("again")
        assert e.text is not None and e.offsets is not None
        between = e.text[e.offsets[again[0].end][0] : e.offsets[again[-1].start][0]]
        assert ("." in between) == (e.meta["family"] == "B")


def test_items_families_and_positions_are_balanced() -> None:
    examples = ask(n=240, items=[2, 4])
    assert Counter(e.meta["items"] for e in examples) == {2: 120, 4: 120}
    cells = Counter((e.meta["items"], e.meta["family"], e.meta["position"]) for e in examples)
    assert cells == {
        **{(2, f, p): 30 for f in "AB" for p in (1, 2)},
        **{(4, f, p): 15 for f in "AB" for p in (1, 2, 3, 4)},
    }
    templates = Counter(e.cluster for e in examples)
    assert len(templates) == 16 and max(templates.values()) - min(templates.values()) <= 2


def test_the_second_order_knows_nothing_of_the_first() -> None:
    """Ranks in the first and second mention do not go together, nor does the foil's place with the target's."""
    ranks, orders = [], Counter()
    for e in ask(n=300, items=4):
        others = [w for w in e.meta["listed"] if w in e.meta["again"]]
        order = tuple(others.index(w) for w in e.meta["again"])
        orders[order] += 1
        ranks += [(i, r) for i, r in enumerate(order)]
    assert len(orders) == 6 and all(25 < count < 75 for count in orders.values())
    a, b = np.array(ranks).T
    assert abs(np.corrcoef(a, b)[0, 1]) < 4 / np.sqrt(len(a))


def test_a_uniform_guesser_scores_chance() -> None:
    rng = np.random.default_rng(0)
    examples = ask(n=300)
    hits = [e.candidates[rng.integers(len(e.candidates))] == e.answer_ids for e in examples]
    chance = np.mean([e.chance for e in examples])
    assert chance == pytest.approx(np.mean([1 / 2, 1 / 3, 1 / 4, 1 / 5, 1 / 6]))
    assert abs(np.mean(hits) - chance) < 4 * np.sqrt(chance * (1 - chance) / 300)


def test_long_lists_of_single_tokens_with_the_default_model(smollm2_tokens: Tokens) -> None:
    for e in task("laundry", items=20, n=6).examples(smollm2_tokens):
        assert len(e.candidates) == 20 and e.meta["word_tokens"] == 1
        assert all(len(c) == 1 for c in e.candidates)
        assert len(e.spans_of("again")) == 19


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"items": 1}, "items is 1; take a whole number, 2 or more"),
        ({"items": [3, 21]}, "items is 21; take 2 to 20"),
        ({"items": [2, 2.5]}, "items is 2.5"),
        ({"items": []}, "items is"),
        ({"families": "C"}, "no family 'C'; take of A, B"),
    ],
)
def test_bad_parameters(params: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        task("laundry", **params)
