"""Draws of whole batches: different numbers, weighted ones, and ids that a row does not use."""

from __future__ import annotations

from collections import Counter
from itertools import permutations

import numpy as np
import pytest

import tests.tokenizers
from interp.errors import UsageError
from interp.tasks.bare import Bare, distinct, in_order, unused, weighted
from interp.tasks.symbols import symbols


def close(counts: Counter[tuple[int, ...]], expected: dict[tuple[int, ...], float]) -> None:
    """Counts are within four standard deviations of what is expected of each."""
    n = sum(counts.values())
    assert set(counts) <= set(expected)
    for key, p in expected.items():
        assert abs(counts[key] - n * p) < 4 * np.sqrt(n * p * (1 - p)), key


@pytest.mark.parametrize(("size", "below"), [(2, 4), (3, 4), (4, 4)])
def test_all_rows_of_different_numbers_are_equally_likely(size: int, below: int) -> None:
    rows = distinct(np.random.default_rng(0), 12_000, size, below)
    every = list(permutations(range(below), size))
    close(Counter(map(tuple, rows.tolist())), {row: 1 / len(every) for row in every})


def test_no_number_repeats_in_long_rows() -> None:
    rows = distinct(np.random.default_rng(0), 50, 200, 256)
    assert all(len(set(row)) == 200 for row in rows.tolist()) and rows.max() <= 255 and rows.min() >= 0
    with pytest.raises(ValueError, match="no 5 different numbers below 4"):
        distinct(np.random.default_rng(0), 1, 5, 4)


def test_orders() -> None:
    rows = in_order(np.random.default_rng(1), 6000, 3)
    close(Counter(map(tuple, rows.tolist())), {row: 1 / 6 for row in permutations(range(3))})


def test_weighted_draws_go_one_after_the_other() -> None:
    weights = np.array([0.5, 0.3, 0.2])
    rows = weighted(np.random.default_rng(2), 20_000, 2, weights)
    pairs: dict[tuple[int, ...], float] = {
        (i, j): weights[i] * weights[j] / (1 - weights[i]) for i, j in permutations(range(3), 2)
    }
    assert sum(pairs.values()) == pytest.approx(1)
    close(Counter(map(tuple, rows.tolist())), pairs)


def test_unused_ids_are_all_equally_likely() -> None:
    pool = np.array([3, 5, 7, 9, 11, 30])
    used = np.tile([5, 30], (4000, 1))
    rows = unused(np.random.default_rng(3), pool, used, 2)
    close(Counter((i,) for i in rows.ravel().tolist()), {(i,): 1 / 4 for i in (3, 7, 9, 11)})
    with pytest.raises(ValueError, match="6 of 6 ids are used"):
        unused(np.random.default_rng(3), pool, pool[None], 1)


@pytest.mark.parametrize("family", list(tests.tokenizers.KINDS))
def test_ids_of_a_language(family: str) -> None:
    tokens = tests.tokenizers.tokens(family)
    bare = Bare.of(tokens)
    assert tokens.decode([bare.pad]).strip() == "." and bare.pad not in bare.pool
    assert len(bare.head) == (family in ("llama", "llama3", "gemma"))
    assert not tokens.special_ids & set(bare.pool.tolist())
    keys, values = bare.parts("some", keys=100, values=100)
    assert not set(keys.tolist()) & set(values.tolist()) and len(keys) == len(values) >= 500


def test_ids_of_symbols() -> None:
    bare = Bare.of(symbols(20))
    assert (bare.head, bare.pad) == ((), 0) and bare.pool.tolist() == list(range(2, 20))
    assert [p.tolist() for p in bare.parts("some", keys=9, values=3)] == [
        list(range(2, 11)),
        list(range(11, 20)),
    ]
    with pytest.raises(
        UsageError, match=r"task some: 7 different values, one of 3 kinds of ids, need 21 ordinary .* has 18"
    ):
        bare.parts("some", contexts=2, keys=3, values=7)
