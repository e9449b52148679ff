"""Variable tracking: assignments among idle sentences, some of a value and some of another variable.

The chains of `multi_hop` in the form that RULER (arXiv 2404.06654) has them: `VAR stone = 51904.`, `VAR river = VAR
stone.`, noise around them, and the question which value the last variable of a chain has, or which variables have a
value. Several chains stand in one text, so a model that copies any value scores chance.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import cache
from typing import Literal, get_args

import numpy as np

from interp.errors import UsageError
from interp.tasks.base import Redraw, stable_seed
from interp.tasks.haystack import Ruler, Sentence
from interp.tasks.hops import Ask, MultiHop
from interp.tasks.multi import list_data
from interp.tasks.needles import Drawer, Pool
from interp.tasks.noise import noise
from interp.tasks.recall import Question

Names = Literal["words", "letters"]
_LETTERS = 5
_MADE_UP = 600


class VariableTracking(MultiHop):
    """The value of the last variable of a chain, or all variables that have a value.

    Args:
        length: tokens of the prompt.
        hops: assignments of a variable after the one of a value.
        chains: chains in the text.
        names: of variables: `words` of English, or `letters`, five capitals that make up no word.
        ask: `value` asks for the value of the last variable; `chain` for all that have the value, in the order of the
            text.
        shots: solved questions in front, without noise.
    """

    name = "variable_tracking"
    source = "wordings and noise written for this project; after RULER (arXiv 2404.06654)"

    def __init__(
        self,
        length: int = 512,
        hops: int = 2,
        chains: int = 3,
        names: Names = "words",
        ask: Ask = "value",
        shots: int = 1,
        n: int = 64,
        seed: int = 0,
    ):
        if names not in get_args(Names):
            raise UsageError(
                f"task variable_tracking: names is {names!r}; take of {', '.join(get_args(Names))}"
            )
        self.names = names
        super().__init__(
            length=length,
            hops=hops,
            chains=chains,
            style="variables",
            ask=ask,
            shots=shots,
            n=n,
            seed=seed,
        )
        del self.params["style"]  # fixed, so no parameter
        self.params["names"] = names

    def pool(self, drawer: Drawer) -> Pool:
        return drawer.of_one_length(made_up() if self.names == "letters" else list_data()["variables"])

    def shown(self, index: int, rng: np.random.Generator, drawer: Drawer, taken: Collection[str]) -> Question:
        (names,) = self.pool(drawer).parts
        free = Pool((tuple(name for name in names if name not in taken),))
        question = self.chained(free, index, rng, drawer)
        if not question.posed.about.isdisjoint(taken):
            raise Redraw("a solved question has a value of the question's")
        return question

    def between(self, ruler: Ruler, rng: np.random.Generator, budget: int) -> tuple[list[Sentence], str]:
        return noise(ruler, rng, budget)


@cache
def made_up() -> tuple[str, ...]:
    """Names of five capital letters; the same in every process."""
    rng = np.random.default_rng(stable_seed("variable names"))
    drawn = rng.integers(ord("A"), ord("Z") + 1, size=(_MADE_UP, _LETTERS))
    return tuple(dict.fromkeys("".join(map(chr, row)) for row in drawn.tolist()))
