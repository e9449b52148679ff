"""Depths: how far into its context a statement stands, example by example."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from interp.errors import UsageError
from interp.tasks.base import listed, stable_seed

_GOLDEN = (math.sqrt(5) - 1) / 2


class Depths:
    """A `depth` parameter: a share of the context from 0 to 1, several that take turns, or `uniform`.

    Uniform depths are spread evenly, however many there are. All are fixed by the example's number, so that a redraw
    keeps them.

    Attributes:
        given: the depths; empty for `uniform`.

    Raises:
        UsageError: it is none of these.
    """

    def __init__(self, task: str, depth: float | str | Sequence[float], seed: int):
        self.given: tuple[float, ...] = ()
        if depth != "uniform":
            several = listed(task, "depth", depth)
            for d in several:
                if isinstance(d, bool | str) or not 0 <= d <= 1:
                    raise UsageError(
                        f"task {task}: depth is {d!r}; take a number from 0 to 1, a list of them, or 'uniform'"
                    )
            self.given = tuple(float(d) for d in several)
        self._start = np.random.default_rng(stable_seed(task, "depth", seed)).random()

    @property
    def param(self) -> list[float] | str:
        """The parameter as it is written down."""
        return list(self.given) or "uniform"

    def of(self, index: int) -> float:
        """Depth of an example."""
        if self.given:
            return self.given[index % len(self.given)]
        return float((self._start + index * _GOLDEN) % 1.0)

    def turn(self, index: int) -> int:
        """How often all depths were gone through before an example: what else takes turns goes by this number."""
        return index // len(self.given) if self.given else index
