"""Noise: a few short sentences over and over, which say nothing and ask for nothing.

What stands around a passkey or a chain of variables when the length of the context is to matter, and its contents not.
"""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from itertools import cycle, islice

import numpy as np

from interp.tasks.haystack import Ruler, Sentence, cut


@cache
def verses() -> dict[str, tuple[Sentence, ...]]:
    """Every set of sentences by name; each is a paragraph."""
    data = json.loads((files("interp.tasks") / "data" / "noise.json").read_text("utf-8"))
    return {
        name: tuple(Sentence(text, name, opens=i == 0) for i, text in enumerate(texts))
        for name, texts in data.items()
    }


def noise(ruler: Ruler, rng: np.random.Generator, budget: int) -> tuple[list[Sentence], str]:
    """One set of sentences, repeated, of `budget` tokens (at most two fewer); and its name."""
    names = list(verses())
    name = names[rng.integers(len(names))]
    # No sentence has less than one token, so these are enough for any budget.
    return cut(ruler, rng, budget, list(islice(cycle(verses()[name]), budget + 1))), name
