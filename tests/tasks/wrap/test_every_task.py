"""Every wrapper around every task: the contract holds again, nothing known is lost, and what is left out is refused."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from functools import cache

import pytest

import tests.tokenizers
from interp.errors import BrokenData, UsageError
from interp.models.tokens import Tokens
from interp.tasks import NAMES, task
from interp.tasks.base import Example, FixedTask, Task, check_example
from interp.tasks.wrap import copy_stride, distracted, pause, read_twice, repeated, reworded

WRAPPERS: dict[str, Callable[[Task], Task]] = {
    "read_twice": read_twice,
    "read_twice, cue": lambda base: read_twice(base, cue=True),
    "repeated": lambda base: repeated(base, 3),
    "distracted before": lambda base: distracted(base, 24),
    "distracted after": lambda base: distracted(base, 24, "after"),
    "distracted between": lambda base: distracted(base, 40, "between"),
    "pause": lambda base: pause(base, 3),
    "pause, stem": lambda base: pause(base, 3, at="stem"),
    "reworded": reworded,
    "composed": lambda base: read_twice(pause(distracted(base, 16), 2)),
}
KINDS = list(tests.tokenizers.KINDS)
LENGTHS = (160, 480)
"""Tokens of prompts whose length is a parameter: the first that has room for what a task states."""

REWORDED = set(NAMES) - {"passkey", "reading", "arithmetic"}
"""Tasks whose questions can all be put in other words, as far as they have any."""

LONG = {"multi_value", "multi_hop", "paraphrase", "variable_tracking"}
"""Tasks that have no room in the first of them."""


@cache
def base(name: str, kind: str) -> FixedTask:
    """Two examples of a task, so that all wrappers share them."""
    tokens, sized = tests.tokenizers.tokens(kind), NAMES[name].params.get("length") in (256, 512)
    for length in LENGTHS[name in LONG :]:
        made = task(name, n=2, **({"length": length} if sized else {}))
        try:
            return FixedTask(made.examples(tokens), name=name, copies=made.copies)
        except BrokenData:
            continue
    raise AssertionError(f"{name} has no room in {LENGTHS[-1]} tokens")


def told(example: Example, span, tokens: Tokens) -> str:
    """What a span covers, without white space around it."""
    if example.text is None:
        return tokens.decode(example.ids[span.start : span.end])
    return example.text[example.offsets[span.start][0] : example.offsets[span.end - 1][1]].strip()


def squeezed(text: str) -> str:
    return re.sub(r"\s+", "", text)


def without(example: Example, roles: tuple[str, ...]) -> str:
    """The text without the spans of some roles and without white space."""
    gone = {i for s in example.spans if s.role in roles for i in range(s.start, s.end)}
    marks = sorted({example.offsets[i] for i in range(len(example.ids)) if i in gone})
    text = list(example.text)
    for a, b in marks:
        text[a:b] = " " * (b - a)
    return squeezed("".join(text))


def expected(example: Example, wrapper: str) -> str | None:
    """Why a wrapper has to refuse an example; None where it must not."""
    question = bool(example.spans_of("question"))
    apart = question or any(s.start > 1 for s in example.spans_of("query", 0))
    if wrapper in ("read_twice, cue", "pause, stem", "reworded") and (not question or example.text is None):
        in_ids = example.text is None and apart and wrapper == "pause, stem"
        return None if in_ids else "has no question"
    if wrapper == "distracted between" and example.text is None and apart:
        return "no sentences"
    if wrapper.startswith("distracted ") and wrapper != "distracted before" and not apart:
        return "has no question apart"
    return None


def kept(example: Example, old: Example, tokens: Tokens, copies: int, stride: int, replaced: bool) -> None:
    """All spans of the old example stand in the new one, those of the context as often as it does."""
    before = Counter((s.role, s.item, s.hop, told(old, s, tokens)) for s in old.spans)
    after = Counter((s.role, s.item, s.hop % stride, told(example, s, tokens)) for s in example.spans)
    for key, count in before.items():
        if replaced and key[0] == "question":
            continue
        # With a cue the question stands twice, and the stem of the answer, which may name what is asked too, once.
        known = range(count, copies * count + 1) if key[0] == "query" else (count, copies * count)
        assert after[key] in known, key
    for role in ("value", "evidence", "counter_value"):
        for span in old.spans_of(role):
            found = [
                t
                for t in example.spans_of(role, span.item)
                if told(example, t, tokens) == told(old, span, tokens)
            ]
            assert {t.hop // stride for t in found if t.hop % stride == span.hop} == set(range(copies))


def lone(example: Example, tokens: Tokens) -> bool:
    """Whether what is asked for, told from its end, begins with a space that is a token of its own: first of a text."""
    start = len(example.ids) - 1 - example.meta["distance"]
    return example.text is not None and not tokens.decode(example.ids[start : start + 1])


@pytest.mark.parametrize("again", [0, 3, *(pytest.param(i, marks=pytest.mark.slow) for i in (1, 2, 4, 5))])
@pytest.mark.parametrize("name", NAMES)
def test_the_contract_holds_again(name: str, again: int) -> None:
    # Tokenizers take turns over the tasks, so that each wrapper meets all of them; the slow tests are the other pairs.
    kind = KINDS[(list(NAMES).index(name) + again) % len(KINDS)]
    tokens, given = tests.tokenizers.tokens(kind), base(name, kind)
    olds = given.examples(tokens)
    for wrapper, around in WRAPPERS.items():
        made = around(given)
        if any(expected(e, wrapper) for e in olds):
            with pytest.raises(UsageError, match="does not go with task"):
                made.examples(tokens)
            continue
        try:
            news = made.examples(tokens)
        except UsageError as why:
            assert wrapper in ("reworded", "distracted between"), why
            assert re.search("no rewording of the question|its context is one sentence", str(why))
            assert wrapper != "reworded" or name not in REWORDED
            continue
        copies = {"repeated": 3, "read_twice": 2, "read_twice, cue": 2, "composed": 2}.get(wrapper, 1)
        for new, old in zip(news, olds, strict=True):
            check_example(new, tokens, copies=made.copies)
            assert new.task == made.name != name and made.copies == given.copies
            assert new.corrupt.keys() == old.corrupt.keys()
            assert (new.cluster, new.group, new.chance) == (old.cluster, old.group, old.chance)
            pairs = [(new, old), *((new.corrupt[k], old.corrupt[k]) for k in old.corrupt)]
            for fresh, source in pairs:
                assert fresh.answer_ids == source.answer_ids and fresh.foil_ids == source.foil_ids
                assert fresh.candidates == source.candidates
                kept(fresh, source, tokens, copies, copy_stride(old), wrapper == "reworded")
                if copies == 1 and old.text is not None and wrapper != "reworded":
                    assert without(fresh, ("added", "pause")) == squeezed(source.text)
            if "length" in old.meta:
                assert new.meta["length"] == len(new.ids)
            if "distance" in old.meta and wrapper != "pause, stem":
                # What stands behind the last copy of the value: pauses alone.
                behind = len(new.spans_of("pause")[-1]) if wrapper in ("pause", "composed") else 0
                if wrapper not in ("distracted after", "distracted between", "reworded"):
                    moved = behind - lone(old, tokens) + lone(new, tokens)
                    assert new.meta["distance"] - old.meta["distance"] == moved


@pytest.mark.parametrize("name", ["niah", "induction", "conflict"])
def test_example_i_is_the_bases_and_more_keep_the_first_ones(name: str) -> None:
    tokens = tests.tokenizers.tokens("llama")
    few, more = (distracted(task(name, n=n, seed=5), 24).examples(tokens) for n in (2, 4))
    assert [(e.ids, e.spans, e.meta) for e in few] == [(e.ids, e.spans, e.meta) for e in more[:2]]
    for new, old in zip(more, task(name, n=4, seed=5).examples(tokens), strict=True):
        if old.text is not None:
            assert new.text.endswith(old.text)
        else:
            assert new.ids[-len(old.ids) + 1 :] == old.ids[1:] and new.ids[0] == old.ids[0]
    other = distracted(task(name, n=2, seed=6), 24).examples(tokens)
    assert [e.ids for e in few] != [e.ids for e in other]


def test_global_random_state_is_left_alone(rng_untouched: None) -> None:
    distracted(read_twice(task("colored_objects", n=2)), 24, "between").examples(
        tests.tokenizers.tokens("gpt2")
    )
