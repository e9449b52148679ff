"""What tasks of minimal pairs have in common: words that are as long as one another in tokens, and balanced draws.

A twin is aligned when one word takes another's place and both have as many tokens. Where a tokenizer has enough words
of one token, only those are drawn.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np

from interp.errors import UsageError
from interp.models.tokens import Tokens
from interp.tasks.base import Example, Ids, Redraw, continuations, stable_seed


@cache
def data(name: str) -> dict[str, Any]:
    """A table of `data` by name: `words` (pools of single words), or the templates of a task."""
    return json.loads((files("interp.tasks") / "data" / f"{name}.json").read_text("utf-8"))


class Alike:
    """Words of a pool that are as long as one another in tokens behind a space.

    Those of one token, where at least `least` of them start differently; else those of the length of which most do.

    Attributes:
        ids: ids of each word behind a space.
        size: tokens of each.

    Args:
        tokens: the tokenizer.
        pool: a pool of `words`.
        least: so many words have to start with different tokens.
        task: name of the task, for errors.

    Raises:
        UsageError: the tokenizer has not so many.
    """

    def __init__(self, tokens: Tokens, pool: str, least: int, task: str):
        words = data("words")[pool]
        lengths: dict[int, dict[str, Ids]] = {}
        for word, ids in zip(words, continuations(tokens, "the", [f" {w}" for w in words]), strict=True):
            lengths.setdefault(len(ids), {})[word] = ids
        starts = {size: len({ids[0] for ids in known.values()}) for size, known in lengths.items()}
        self.size = 1 if starts.get(1, 0) >= least else max(starts, key=lambda size: (starts[size], -size))
        if starts[self.size] < least:
            raise UsageError(
                f"task {task}: {least} {pool} of one length are needed, and this tokenizer has {starts[self.size]}"
            )
        self.ids = lengths[self.size]

    def draw(self, rng: np.random.Generator, n: int, besides: Collection[str] = ()) -> list[str]:
        """`n` words that start with different tokens, so that the first one tells them apart.

        Raises:
            Redraw: there are not so many left.
        """
        words = list(self.ids)
        out: dict[int, str] = {}
        for i in rng.permutation(len(words)):
            if words[i] not in besides:
                out.setdefault(self.ids[words[i]][0], words[i])
        if len(out) < n:
            raise Redraw(f"fewer than {n} words start differently")
        return list(out.values())[:n]


def in_turn(index: int, size: int, *seed: Any) -> int:
    """Number `index` of a shuffled sequence without end: each block of `size` numbers holds all of `0..size - 1`."""
    block, at = divmod(index, size)
    return int(np.random.default_rng(stable_seed(*seed, size, block)).permutation(size)[at])


def digest(text: str) -> str:
    """Name of a text, for `Example.group`."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def aligned(clean: Example, twins: Mapping[str, Example]) -> dict[str, Example]:
    """The twins, if each is as long as the clean prompt and differs from it inside declared spans only.

    Raises:
        Redraw: one of them is not.
    """
    declared = {i for s in clean.spans if s.role != "question" for i in range(s.start, s.end)}
    for twin in twins.values():
        if len(twin.ids) != len(clean.ids) or any(
            a != b and i not in declared for i, (a, b) in enumerate(zip(clean.ids, twin.ids, strict=True))
        ):
            raise Redraw("a twin is not aligned with the prompt")
    return dict(twins)


def differs_within(twin: Example, clean: Example, role: str) -> bool:
    """Whether a twin has the clean prompt's length and spans, and its tokens outside those of a role."""
    inside = {i for s in clean.spans_of(role) for i in range(s.start, s.end)}
    return (
        len(twin.ids) == len(clean.ids)
        and twin.spans == clean.spans
        and all(a == b or i in inside for i, (a, b) in enumerate(zip(twin.ids, clean.ids, strict=True)))
    )


def joints(n: int) -> list[str]:
    """What stands before each of `n` words that a sentence lists.

    >>> joints(3)
    ['', ',', ' and']
    """
    return ["", *[","] * (n - 2), " and"][:n]
