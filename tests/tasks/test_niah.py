"""Needles: the text they stand in, where they stand, what is known about them, and what their twins change."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import numpy as np
import pytest

import tests.tokenizers
from interp.errors import BrokenData, UsageError
from interp.models.subject import CausalLM
from interp.models.tokens import Tokens
from interp.tasks import task
from interp.tasks.base import Example
from interp.tasks.haystack import TEST, Ruler, fillers, pieces, select
from interp.tasks.needles import KINDS, keys, templates, values

FAMILIES = list(tests.tokenizers.KINDS)


def ask(family: str = "smollm", **params: Any) -> list[Example]:
    return task("niah", **params).examples(tests.tokenizers.tokens(family))


def text_of(example: Example, role: str, item: int = 0) -> list[str]:
    assert example.text is not None and example.offsets is not None
    return [
        example.text[example.offsets[s.start][0] : example.offsets[s.end - 1][1]].strip()
        for s in example.spans_of(role, item)
    ]


def changed(example: Example, kind: str) -> set[int]:
    twin = example.corrupt[kind]
    return {i for i, (a, b) in enumerate(zip(example.ids, twin.ids, strict=True)) if a != b}


def covered(example: Example, *roles: str) -> set[int]:
    return {i for role in roles for s in example.spans_of(role, 0) for i in range(s.start, s.end)}


# Prose.


def test_prose_is_ample_and_clean() -> None:
    texts = {name: [s.text for s in piece] for name, piece in pieces().items()}
    every = [line for lines in texts.values() for line in lines] + list(fillers())
    assert len(texts) >= 12
    assert sum(len(line.split()) for lines in texts.values() for line in lines) >= 10_000
    assert len(set(every)) == len(every), "a line occurs twice"
    for line in every:
        assert not re.search(r"\d", line), line
        assert re.search(r"[.!?]$", line), line
        assert line == line.strip() and "  " not in line
        assert not re.search(r"[.!?] [A-Z]", line), f"two sentences in one line: {line}"


def test_halves_share_no_piece() -> None:
    train, test = select("train"), select("test")
    assert not set(train) & set(test)
    assert set(train) | set(test) == set(pieces())
    words = {
        half: sum(len(s.text.split()) for name in names for s in pieces()[name])
        for half, names in (("train", train), ("test", test))
    }
    assert min(words.values()) > 6000, "each half fills a context of 4096 tokens"
    assert set(TEST) == set(test)


# Needles.


@pytest.mark.parametrize("kind", KINDS)
def test_there_are_many_templates_keys_and_values(kind: str) -> None:
    assert len(templates(kind)) >= 12
    assert len(values(kind)) >= (60 if kind == "names" else 1000)
    assert len({t.stem for t in templates(kind)}) == len(templates(kind))
    for template in templates(kind):
        assert len(keys(template.about)) >= 60
        for text, fields in ((template.fact, 2), (template.question, 1), (template.stem, 1)):
            assert text.count("{key}") == 1 and text.count("{") == fields, text
        assert template.fact.index("{key}") < template.fact.index("{value}"), "the key leads to the value"
        assert " {value}" in template.fact and not template.stem.endswith(" ")


def test_kinds_share_no_template_or_value() -> None:
    facts = [t.fact for kind in KINDS for t in templates(kind)]
    assert len(set(facts)) == len(facts)
    words = {kind: {w for part in values(kind).parts for w in part} for kind in KINDS}
    assert not words["names"] & (words["words"] | words["phrases"])


def test_no_value_and_no_key_occurs_in_the_prose() -> None:
    prose = " ".join([*(s.text for piece in pieces().values() for s in piece), *fillers()])
    prose += " ".join(f"{t.fact} {t.question} {t.stem}" for kind in KINDS for t in templates(kind))
    for kind in ("names", "words"):
        for part in values(kind).parts:
            found = [w for w in part if re.search(rf"\b{re.escape(w)}\b", prose, re.IGNORECASE)]
            assert not found, found
    people = [name for name in keys("person").parts[0] if re.search(rf"\b{name}\b", prose)]
    places = [name for name in keys("place").parts[1] if name.removeprefix("at ") in prose]
    assert not people and not places
    assert not set(keys("person").parts[0]) & {w for part in values("names").parts for w in part}


@pytest.mark.parametrize("kind", KINDS)
def test_spans_say_what_is_where(kind: str) -> None:
    for e in ask(length=300, kinds=kind, needles=3, n=8):
        template = next(t for t in templates(kind) if t.name == e.meta["template"])
        key, value = e.meta["key"], e.meta["value"]
        assert text_of(e, "key") == [key]
        assert text_of(e, "value") == [value]
        assert text_of(e, "query") == [key, key]
        assert text_of(e, "question") == [template.question.format(key=key)]
        assert text_of(e, "evidence") == [template.fact.format(key=key, value=value)]
        assert e.text is not None and e.text.endswith("\nAnswer: " + template.stem.format(key=key))
        for item in (1, 2):
            (other_key,), (other,) = (
                text_of(e, "distractor_key", item),
                text_of(e, "distractor_value", item),
            )
            assert text_of(e, "distractor", item) == [template.fact.format(key=other_key, value=other)]
            assert other_key != key and other != value
        assert re.search(rf"(^|[.!?]\s){re.escape(text_of(e, 'evidence')[0])}\s", e.text), (
            "a sentence of its own"
        )
        assert e.text.count(key) == 3
        assert len(re.findall(rf"\b{re.escape(value)}\b", e.text)) == 1
        assert e.meta["distance"] == len(e.ids) - 1 - e.spans_of("value", 0)[0].start


@pytest.mark.parametrize("needles", [1, 3, 12])
def test_candidates_are_the_needles_values_and_others_to_ten(needles: int) -> None:
    tokens = tests.tokenizers.tokens("smollm")
    for e in ask(length=700, kinds=["words", "numbers"], needles=needles, n=6):
        assert len(e.candidates) == max(10, needles + 1)
        assert e.chance == 1 / len(e.candidates)
        present = {tokens.decode(e.ids[s.start : s.end]) for s in e.spans_of("distractor_value")}
        assert {tokens.decode(c) for c in e.candidates[1:needles]} == present
        assert len(present) == needles - 1
        assert all(tokens.decode(c) not in str(e.text) for c in e.candidates[needles:])
        if needles > 1:
            assert tokens.decode(e.foil_ids) in present


@pytest.mark.parametrize("kind", KINDS)
def test_twins_change_what_they_say(kind: str) -> None:
    for e in ask(length=256, kinds=kind, needles=2, n=8, depth=[0, 0.3, 1]):
        assert set(e.corrupt) == {"value_swap", "needle_drop", "query_swap"}
        swap, drop, query = (e.corrupt[k] for k in ("value_swap", "needle_drop", "query_swap"))
        assert changed(e, "value_swap") <= covered(e, "value")
        assert swap.answer_ids not in (e.answer_ids, *e.candidates[1:2]), "the value is new to the prompt"
        (at,) = swap.spans_of("value", 0)
        assert swap.ids[at.start : at.end] == swap.answer_ids
        assert swap.foil_ids == e.answer_ids
        assert changed(e, "needle_drop") <= covered(e, "evidence")
        assert drop.answer_ids == e.answer_ids
        assert not drop.spans_of("evidence") and len(drop.spans_of("filler")) == 1
        assert e.meta["value"] not in str(drop.text) and str(drop.text).count(e.meta["key"]) == 2
        lines = re.split(r"(?<=[.!?])\s+", str(drop.text))
        assert max(Counter(lines).values()) == 1, "no line is repeated"
        assert changed(e, "query_swap") <= covered(e, "query")
        assert query.answer_ids == e.candidates[1]
        (at,) = query.spans_of("value", 0)
        assert query.ids[at.start : at.end] == query.answer_ids
        assert text_of(query, "query") == text_of(query, "key") * 2 == text_of(e, "distractor_key", 1) * 2


def test_a_swapped_value_is_the_foil_where_there_is_one_needle() -> None:
    for e in ask(length=200, n=12):
        assert e.corrupt["value_swap"].answer_ids == e.foil_ids
        assert set(e.corrupt) == {"value_swap", "needle_drop"}


# Length and depth.


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("length", [150, 257, 1000])
def test_length_is_met_and_never_exceeded(family: str, length: int) -> None:
    for e in ask(family, length=length, n=24 if length < 300 else 5, seed=length, depth=[0, 0.5]):
        assert length - 2 <= len(e.ids) <= length
        assert e.meta["length"] == len(e.ids)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("needles", [1, 3])
def test_depth_is_within_half_a_sentence(family: str, needles: int) -> None:
    """Measured from the text alone: sentences are split again, and the needle is taken out of it."""
    tokens = tests.tokenizers.tokens(family)
    depths = [0.0, 0.1, 0.37, 0.5, 0.75, 0.99, 1.0]
    for e in ask(family, length=600, n=len(depths), depth=depths, needles=needles):
        assert e.text is not None and e.offsets is not None
        (evidence,) = e.spans_of("evidence")
        body = e.text.index("\n\nQuestion: ")
        special = sum(1 for a, b in e.offsets[:1] if a == b)
        end = next(i for i, (a, _) in enumerate(e.offsets) if a >= body)
        inside = [i for i in range(special, end) if not evidence.start <= i < evidence.end]
        asked = e.meta["depth_asked"] * len(inside)
        realised = inside.index(evidence.start - 1) + 1 if evidence.start > special else 0
        assert e.meta["depth"] == pytest.approx(realised / len(inside))
        # Token positions, without the needle's own, at which a sentence starts.
        starts = {
            next(k for k, i in enumerate(inside) if e.offsets[i][1] > m.end())
            for m in re.finditer(r"(?<=[.!?])\s+(?=[A-Z])", e.text[:body])
            if e.offsets[inside[-1]][1] > m.end()
        }
        bounds = np.array(sorted({0, *starts, len(inside)}))
        at = int(np.searchsorted(bounds, asked, side="right"))
        before, after = bounds[max(0, at - 1)], bounds[min(at, len(bounds) - 1)]
        assert abs(realised - asked) <= (after - before) / 2 + 1.5, (e.meta, tokens.decode(e.ids))
        if asked == 0:
            assert e.text.startswith(text_of(e, "evidence")[0])
        if e.meta["depth_asked"] == 1:
            assert e.text[:body].endswith(text_of(e, "evidence")[0])


def test_uniform_depths_spread_evenly() -> None:
    asked = sorted(e.meta["depth_asked"] for e in ask(length=150, n=32))
    assert asked[0] < 0.06 and asked[-1] > 0.94
    assert max(np.diff(asked)) < 3 / 32


def test_depths_and_kinds_take_turns() -> None:
    examples = ask(length=150, n=8, depth=[0, 1], kinds=["names", "words"])
    assert [e.meta["depth_asked"] for e in examples] == [0, 1] * 4
    assert [e.meta["kind"] for e in examples] == ["names", "names", "words", "words"] * 2


@pytest.mark.parametrize("haystack", ["train", "test", "soup"])
def test_haystack_holds_what_was_asked(haystack: str) -> None:
    for e in ask(length=300, n=8, haystack=haystack):
        assert set(e.meta["haystack"]) <= set(select(haystack))
        assert e.cluster == e.meta["haystack"][0]


def test_contexts_differ_between_seeds_and_kinds() -> None:
    clusters = [
        [e.cluster for e in ask(length=150, n=12, seed=s, kinds=k)] for s in (0, 1) for k in KINDS[:2]
    ]
    assert all(a != b for i, a in enumerate(clusters) for b in clusters[:i])
    assert len({e.group for s in (0, 1) for e in ask(length=150, n=12, seed=s)}) == 24


@pytest.mark.parametrize("half", ["train", "test"])
def test_a_long_context_repeats_no_line(half: str, smollm2_tokens: Tokens) -> None:
    for e in task("niah", length=4096, n=2, haystack=half).examples(smollm2_tokens):
        assert 4094 <= len(e.ids) <= 4096
        lines = re.split(r"(?<=[.!?])\s+", str(e.text))
        assert max(Counter(lines).values()) == 1
        assert len(e.meta["haystack"]) > 3


def test_short_prompts_are_made_where_they_can_be(smollm2_tokens: Tokens) -> None:
    for e in task("niah", length=80, n=8, kinds=["names", "phrases"]).examples(smollm2_tokens):
        assert len(e.ids) <= 80


def test_too_little_prose() -> None:
    with pytest.raises(UsageError, match=r"the haystack holds \d+ tokens of prose, and \d+ are asked for"):
        ask(length=5000, haystack="soup", n=1)


def test_too_many_needles() -> None:
    with pytest.raises(BrokenData, match="200 tokens leave no room for a haystack"):
        ask(length=200, needles=12, n=1)


def test_fillers_reach_every_total() -> None:
    """Whatever a needle or the rest of a context takes, some fillers are exactly as long."""
    rng = np.random.default_rng(0)
    for family in FAMILIES:
        ruler = Ruler(tests.tokenizers.tokens(family))
        for total in range(5, 90):
            texts = ruler.fill(total, rng)
            assert texts is not None and sum(map(ruler.cost, texts)) == total


def test_fillers_are_never_used_twice() -> None:
    rng = np.random.default_rng(0)
    ruler = Ruler(tests.tokenizers.tokens("smollm"))
    used: list[str] = []
    for _ in range(60):
        used += ruler.fill(30, rng, used) or []
    assert len(used) > 40
    assert len(set(used)) == len(used) and set(used) <= set(fillers())


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"length": 63}, "length is 63; take a whole number, 64 or more"),
        ({"length": "long"}, "length is 'long'"),
        ({"n": 0}, "n is 0"),
        ({"needles": 0}, "needles is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"depth": 1.5}, "depth is 1.5; take a number from 0 to 1"),
        ({"depth": []}, "depth is"),
        ({"depth": "middle"}, "depth is 'middle'"),
        ({"kinds": ["words", "nmbers"]}, r"no kind of needle 'nmbers' \(did you mean 'numbers'\?\)"),
        ({"haystack": "soap"}, "no haystack 'soap'; take all, train, test, or of bees"),
        ({"haystack": 3}, "no haystack '3'"),
    ],
)
def test_bad_parameters(params: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        task("niah", **params)


def test_the_default_model_follows_the_questions(smollm2: CausalLM) -> None:
    """Wording that a small model can follow: without it there would be nothing to cut."""
    from interp.measure.outcomes import evaluate

    examples = task("niah", length=200, n=12, seed=5).examples(smollm2)
    right = evaluate(smollm2, examples, {"clean": None}).values["clean"]["accuracy"]
    assert right.mean() >= 0.75
