"""A user's own task: a function that yields Examples.

def pairs(tokens, rng, items=4):
    while True:
        yield Example(...)

interp.tasks.register("pairs", pairs)
task = interp.task("pairs", items=8, n=32, seed=1)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

import numpy as np

from interp.errors import BrokenData
from interp.models.tokens import Tokens, as_tokens
from interp.tasks.base import Example, Task, check_example, is_copy, stable_seed


class FunctionTask(Task):
    """A user's own task: a function `f(tokens, rng, **params)` that yields Examples, of which the first `n` are taken.

    Each of them is held against the contract, so that a wrong span is named here and not read as a result.
    """

    source = "given by the user"

    def __init__(
        self,
        function: Callable[..., Iterable[Example]],
        name: str,
        *,
        n: int = 64,
        seed: int = 0,
        **params: Any,
    ):
        self.name = name  # type: ignore[misc]
        self.function = function
        super().__init__(n=n, seed=seed, **params)

    def make(self, index: int, rng: np.random.Generator, tokens: Tokens) -> Example:
        raise NotImplementedError("the function yields the examples")

    def stream(self, source: Any) -> Iterator[Example]:
        """The examples that the function yields.

        Raises:
            BrokenData: it yields none, or one that breaks the contract.
        """
        tokens = as_tokens(source)
        rng = np.random.default_rng(stable_seed(self.name, self.params, self.seed))
        count = 0
        for example in islice(self.function(tokens, rng, **self.params), self.n):
            check_example(example, tokens)
            count += 1
            yield example
        if not count:
            raise BrokenData(f"task {self.name}: its function yields no example")

    def examples(self, source: Any) -> list[Example]:
        """The examples; there may be fewer than were asked for."""
        out = super().examples(source)
        self.n = len(out)
        self.copies = all(is_copy(e) for e in out)  # type: ignore[misc]
        return out
