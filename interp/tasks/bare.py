"""What tasks over bare token ids have in common: ids to draw from, and draws for whole batches at once.

Such a task is asked of a toy model with a vocabulary of symbols (`interp.tasks.symbols`) and of a language model alike.
Its examples and its batches for training are drawn by the same code, an example being a batch of one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int64

from interp.errors import UsageError
from interp.models.tokens import Tokens
from interp.tasks.base import Ids
from interp.tasks.haystack import n_leading
from interp.tasks.induction import ordinary_ids

UNASKED = -100
"""Label of a position whose next token is not asked for (what cross entropy ignores by default)."""


@dataclass(frozen=True, eq=False)
class Bare:
    """Ids of a tokenizer that sequences are made of.

    Attributes:
        head: special tokens that the tokenizer puts in front of a text.
        pad: what fills a sequence: the pad symbol of a toy vocabulary, the full stop of a language. Never drawn.
        pool: ids that are drawn: ordinary tokens.
    """

    head: Ids
    pad: int
    pool: Int64[np.ndarray, " ids"]

    @classmethod
    def of(cls, tokens: Tokens) -> Bare:
        """What a tokenizer has."""
        stop = tokens.encode(".")
        pad = stop.ids[-1]
        pool = np.array([i for i in ordinary_ids(tokens) if i != pad], dtype=np.int64)
        return cls(stop.ids[: n_leading(stop)], pad, pool)

    def parts(self, task: str, **sizes: int) -> list[Int64[np.ndarray, " part"]]:
        """The pool in as many equal parts as there are kinds of ids, which never meet.

        Args:
            task: name of the task, for errors.
            sizes: by kind, so many different ids are needed.

        Raises:
            UsageError: the tokenizer has too few.
        """
        share = len(self.pool) // len(sizes)
        kind, most = max(sizes.items(), key=lambda item: item[1])
        if share < most:
            raise UsageError(
                f"task {task}: {most} different {kind}, one of {len(sizes)} kinds of ids, need {len(sizes) * most} "
                f"ordinary tokens, and this tokenizer has {len(self.pool)}; take fewer {kind}"
            )
        return [self.pool[i * share : (i + 1) * share] for i in range(len(sizes))]


def distinct(rng: np.random.Generator, rows: int, size: int, below: int) -> Int64[np.ndarray, "rows size"]:
    """Rows of `size` different numbers below `below`; all such rows are equally likely.

    What repeats an earlier number of its row is drawn again until nothing does. Where that happens depends on which
    places are equal and not on the numbers there, so no number is preferred.

    Raises:
        ValueError: there are not so many.
    """
    if size > below:
        raise ValueError(f"there are no {size} different numbers below {below}")
    out = rng.integers(below, size=(rows, size))
    while True:
        order = out.argsort(axis=1, kind="stable")
        ranked = np.take_along_axis(out, order, axis=1)
        again = np.zeros(out.shape, dtype=bool)
        np.put_along_axis(again, order[:, 1:], ranked[:, 1:] == ranked[:, :-1], axis=1)
        if not again.any():
            return out
        out[again] = rng.integers(below, size=int(again.sum()))


def in_order(rng: np.random.Generator, rows: int, size: int) -> Int64[np.ndarray, "rows size"]:
    """Rows of the numbers below `size`, each in an order of its own."""
    return rng.permuted(np.tile(np.arange(size), (rows, 1)), axis=1)


def weighted(
    rng: np.random.Generator, rows: int, size: int, weights: Float[np.ndarray, " n"]
) -> Int64[np.ndarray, "rows size"]:
    """Rows of `size` different numbers, drawn one after the other in proportion to their weights.

    The smallest of exponential times with the weights as rates are such draws (Efraimidis and Spirakis 2006).
    """
    times = rng.standard_exponential((rows, len(weights))) / weights
    return times.argsort(axis=1)[:, :size]


def unused(
    rng: np.random.Generator,
    pool: Int64[np.ndarray, " n"],
    used: Int64[np.ndarray, "rows u"],
    size: int,
) -> Int64[np.ndarray, "rows size"]:
    """Rows of ids of a pool, none of which is among those that its row uses; they may repeat.

    Raises:
        ValueError: a row may use all of the pool.
    """
    if used.shape[1] >= len(pool):
        raise ValueError(f"{used.shape[1]} of {len(pool)} ids are used, and none is left")
    taken: Bool[np.ndarray, "rows top"] = np.zeros(
        (len(used), int(max(pool.max(), used.max())) + 1), dtype=bool
    )
    np.put_along_axis(taken, used, True, axis=1)
    out = rng.choice(pool, size=(len(used), size))
    while (again := np.take_along_axis(taken, out, axis=1)).any():
        out[again] = rng.choice(pool, size=int(again.sum()))
    return out


def one_of(task: str, name: str, value: Any, known: Sequence[str]) -> None:
    """Check a parameter that is one of several words.

    Raises:
        UsageError: it is none of them.
    """
    if value not in known:
        raise UsageError(f"task {task}: no {name} '{value}'; take one of {', '.join(known)}")
