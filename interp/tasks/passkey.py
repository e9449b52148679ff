"""Passkey: a number, said twice, somewhere in idle sentences that repeat.

Protocol after Mohtashami and Jaggi (arXiv 2305.16300): an instruction, idle sentences, the number in two sentences that
stand together, idle sentences, the question. Here the text is cut between sentences to an exact number of tokens, and
all sentences were written for this project.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from interp.tasks.base import whole_number
from interp.tasks.depths import Depths
from interp.tasks.haystack import Ruler, Sentence
from interp.tasks.needles import Drawer, Pool
from interp.tasks.niah import CANDIDATES
from interp.tasks.noise import noise
from interp.tasks.recall import InProse, Posed, Question, Statement, apart, asked

INSTRUCTION = "One thing in this text matters: a pass key. Find it and keep it in mind.\n\n"
FACT = "The pass key is {value}. Keep it in mind: {again} is the pass key."
QUESTION = "What is the {asked}?"
STEM = "The pass key is"


class Passkey(InProse):
    """Which number is the pass key?

    The number stands in the text twice, so there are two `value` spans; both are swapped in `value_swap` and dropped in
    `needle_drop`. Candidates are the number and nine others that are as long and nowhere in the text, so chance is that
    of a model that knows nothing of the text; who makes up a number of five digits is right in one of 90,000 cases.

    Args:
        length: tokens of the prompt.
        depth: where the pass key stands, 0 to 1, a list of depths to go through, or `uniform`.
        digits: of the number.
        shots: solved questions in front, without idle sentences.
    """

    name = "passkey"
    source = "sentences written for this project; after Mohtashami and Jaggi (arXiv 2305.16300)"
    copies: ClassVar[bool] = True

    def __init__(
        self,
        length: int = 512,
        depth: float | str | Sequence[float] = "uniform",
        digits: int = 5,
        shots: int = 0,
        n: int = 64,
        seed: int = 0,
    ):
        self.depths = Depths(self.name, depth, seed)
        self.digits = whole_number(self.name, "digits", digits, 2)
        super().__init__(length=length, shots=shots, n=n, seed=seed, depth=self.depths.param, digits=digits)

    def pose(self, index: int, rng: np.random.Generator, drawer: Drawer) -> Question:
        pool = Pool(digits=(self.digits,))
        options = drawer.alike(pool, rng, pool.draw(rng), CANDIDATES - 1, "is")
        value = next(iter(options))
        spare = apart(options, value)

        def posed(value: str) -> Posed:
            words = {"value": (value, "value"), "again": (value, "value")}
            return Posed(
                (Statement(FACT, words, 0, "evidence"),),
                asked(QUESTION, STEM, {"asked": ("pass key", "query")}),
                value,
                INSTRUCTION,
            )

        swapped = {spare: options[spare], **options}
        return Question(
            posed(value),
            (self.depths.of(index),),
            options,
            spare,
            {"value_swap": (posed(spare), swapped)},
            {"value": value, "digits": self.digits},
        )

    def between(self, ruler: Ruler, rng: np.random.Generator, budget: int) -> tuple[list[Sentence], str]:
        return noise(ruler, rng, budget)
