"""Facts over bare ids, moments and contexts of the tiny models."""

from __future__ import annotations

from functools import cache

import torch

from interp.intervene.facts import Moments, Prefixes, Rewrite, second_moments
from tests.subjects import examples, subject


def rewrites(n: int = 3) -> list[Rewrite]:
    """Prompts of different lengths whose subject is tokens 4 to 6 and whose target has two tokens."""
    return [Rewrite(e.ids, (4, 7), (5 + i, 9)) for i, e in enumerate(examples((12, 9, 15)[:n], seed=5))]


@cache
def moments(family: str) -> Moments:
    """Moments of 400 random tokens."""
    return second_moments(subject(family), examples((50,) * 8, seed=7), cache=False, dtype=torch.float64)


@cache
def contexts(family: str) -> Prefixes:
    """Two contexts of random tokens, and none."""
    return Prefixes.random(subject(family), 2, 4)
