"""Do circuits share components, and more of them than chance gives?

Counts alone mislead: circuits cluster in depth, so two unrelated ones share heads because both live in the same layers.
Each overlap therefore comes with two nulls, both exact. `hypergeometric` draws sets of the same sizes from the whole
universe. `layers` also keeps how many components each set has in each layer (and of each kind): what is shared is then
a sum of independent hypergeometric numbers, one a layer, and its distribution their convolution, which is what endless
permutations within layers would give.

Overlap is no proof of reuse: other tasks' circuits can hurt a task as much as its own do (arXiv 2605.08348). It goes
with `interp.measure.cross_task`.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy import stats

from interp.errors import UsageError
from interp.measure.stats import LEVEL, fdr
from interp.models.sites import Component, component

Null = Literal["hypergeometric", "layers"]
NULLS: tuple[Null, ...] = get_args(Null)


def overlap(
    a: Iterable[str | Component],
    b: Iterable[str | Component],
    universe: Iterable[str | Component],
    null: Null | Sequence[Null] = NULLS,
) -> pd.DataFrame:
    """What two sets of components share.

    Args:
        universe: everything that could have been chosen: all heads of the model, say.
        null: one or both nulls, see the module's docstring.

    Returns:
        one row a null: n_a, n_b, shared, jaccard, of_a (shared of a), of_b, n (universe), null, expected, null_lo and
        null_hi (95 % of the null), expected_jaccard, p (of as many shared or more).

    Raises:
        UsageError: a set holds what is not in the universe.

    >>> found = overlap("L0H1 L1H0".split(), "L1H0 L1H2".split(), [f"L{i}H{j}" for i in (0, 1) for j in range(4)])
    >>> found[["shared", "null", "expected", "p"]].round(3).values.tolist()
    [[1, 'hypergeometric', 0.5, 0.464], [1, 'layers', 0.5, 0.5]]
    """
    every = _universe(universe)
    return pd.DataFrame(_rows([_set(a, every), _set(b, every)], every, _nulls(null)))


def overlaps(
    sets: Mapping[str, Iterable[str | Component]],
    universe: Iterable[str | Component],
    null: Null | Sequence[Null] = NULLS,
) -> pd.DataFrame:
    """Every pair of several sets, as `overlap` tells it.

    Returns:
        its columns behind `a` and `b`, and `q`: p-values adjusted for the false discovery rate over the pairs of a
        null.

    Raises:
        UsageError: fewer than two sets, or a set holds what is not in the universe.
    """
    if len(sets) < 2:
        raise UsageError("overlaps: give two sets or more, by name")
    every = _universe(universe)
    known = {name: _set(parts, every) for name, parts in sets.items()}
    rows = [
        {"a": a, "b": b, **row}
        for a, b in itertools.combinations(known, 2)
        for row in _rows([known[a], known[b]], every, _nulls(null))
    ]
    return fdr(pd.DataFrame(rows), within=["null"])


def core(
    sets: Mapping[str, Iterable[str | Component]],
    universe: Iterable[str | Component],
    null: Null | Sequence[Null] = NULLS,
) -> pd.DataFrame:
    """What all of several sets share.

    Returns:
        one row a null: sets, components (what is shared), shared, of_smallest (share of the smallest set), n, null,
        expected, null_lo, null_hi, p.

    Raises:
        UsageError: fewer than two sets, or a set holds what is not in the universe.
    """
    if len(sets) < 2:
        raise UsageError("core: give two sets or more, by name")
    every = _universe(universe)
    known = [_set(parts, every) for parts in sets.values()]
    both = set.intersection(*known)
    named = " ".join(repr(c) for c in every if c in both)
    about = {"sets": " ".join(sets), "components": named, "shared": len(both), "n": len(every)}
    about["of_smallest"] = _share(len(both), min(map(len, known)))
    return pd.DataFrame([about | _against(len(both), _pmf(known, every, n), n) for n in _nulls(null)])


def intersection_pmf(total: int, sizes: Sequence[int]) -> Float[np.ndarray, " k"]:
    """Distribution of how much random sets of these sizes, out of `total`, all share; from 0 to the smallest size.

    >>> intersection_pmf(4, [2, 2]).round(3).tolist()
    [0.167, 0.667, 0.167]
    """
    pmf = np.zeros(min(sizes) + 1)
    pmf[-1] = 1.0
    # The smallest set is thinned by one of the others after the other.
    for size in sorted(sizes)[1:]:
        pmf = sum(
            weight * stats.hypergeom.pmf(np.arange(len(pmf)), total, kept, size)
            for kept, weight in enumerate(pmf)
        )
    return pmf


def _rows(
    sets: Sequence[set[Any]], every: Mapping[Any, Hashable], nulls: Sequence[Null]
) -> list[dict[str, Any]]:
    a, b = sets
    shared = len(a & b)
    about = {
        "n_a": len(a),
        "n_b": len(b),
        "shared": shared,
        "jaccard": _share(shared, len(a | b)),
        "of_a": _share(shared, len(a)),
        "of_b": _share(shared, len(b)),
        "n": len(every),
    }
    out = []
    for null in nulls:
        pmf = _pmf(sets, every, null)
        k = np.arange(len(pmf))
        either = len(a) + len(b) - k
        jaccard = float(pmf @ (k / either)) if len(a) + len(b) else float("nan")
        out.append(about | _against(shared, pmf, null) | {"expected_jaccard": jaccard})
    return out


def _pmf(sets: Sequence[set[Any]], every: Mapping[Any, Hashable], null: Null) -> Float[np.ndarray, " k"]:
    """Distribution of what all sets share under a null."""
    if null == "hypergeometric":
        return intersection_pmf(len(every), [len(s) for s in sets])
    pmf = np.ones(1)
    for stratum, total in Counter(every.values()).items():
        sizes = [sum(every[c] == stratum for c in s) for s in sets]
        if all(sizes):
            pmf = np.convolve(pmf, intersection_pmf(total, sizes))
    return pmf


def _against(shared: int, pmf: Float[np.ndarray, " k"], null: Null) -> dict[str, Any]:
    below = np.minimum(pmf.cumsum(), 1.0)
    low, high = (int(np.searchsorted(below, q - 1e-12)) for q in ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return {
        "null": null,
        "expected": float(pmf @ np.arange(len(pmf))),
        "null_lo": low,
        "null_hi": high,
        "p": float(min(1.0, pmf[shared:].sum())),
    }


def _universe(items: Iterable[str | Component]) -> dict[Any, Hashable]:
    """Each component with its stratum: its kind and layer."""
    parts = [component(c) for c in items]
    if not parts:
        raise UsageError("overlap: the universe is empty; give all components that could have been chosen")
    if len(set(parts)) < len(parts):
        raise UsageError("overlap: the universe names a component twice")
    return {c: (type(c).__name__, c.layer) for c in parts}


def _set(items: Iterable[str | Component], every: Mapping[Any, Hashable]) -> set[Any]:
    if isinstance(items, str):
        items = items.replace(",", " ").split()
    found = {component(c) for c in items}
    if outside := sorted(map(repr, found - set(every))):
        raise UsageError(f"overlap: {outside[0]} is not in the universe of {len(every)} components")
    return found


def _nulls(null: Null | Sequence[Null]) -> list[Null]:
    chosen: list[Null] = [null] if isinstance(null, str) else list(null)
    if unknown := [n for n in chosen if n not in NULLS]:
        raise UsageError(f"overlap: no null '{unknown[0]}'; write {' or '.join(NULLS)}")
    return chosen


def _share(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")
