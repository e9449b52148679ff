"""What chance gives: overlaps of random sets and correlations of shuffled scores, over all heads and within layers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from scipy import stats

from interp.measure.reliability import pearson, ranks, spearman
from interp.tasks.base import stable_seed

DRAWS = 1000
_LAYERS = 8
"""Layers from which on intervals resample layers."""


def hypergeometric(total: int, n_a: int, n_b: int, both: int) -> tuple[float, float]:
    """Expected number shared by two random sets of n_a and n_b of `total` heads, and P(as many as `both` or more)."""
    return n_a * n_b / total, float(stats.hypergeom.sf(both - 1, total, n_a, n_b))


def by_layer(a: Bool[np.ndarray, "l h"], b: Bool[np.ndarray, "l h"]) -> tuple[float, float]:
    """Like `hypergeometric` for the two sets themselves, with the number of heads of each in each layer held fixed.

    The number shared is then a sum of independent hypergeometric numbers, one a layer; their distributions are
    convolved, so the p-value is exact.
    """
    width, both = a.shape[1], int((a & b).sum())
    density, expected = np.ones(1), 0.0
    for in_a, in_b in zip(a.sum(1), b.sum(1), strict=True):
        if in_a and in_b:
            few = int(min(in_a, in_b))
            density = np.convolve(density, stats.hypergeom.pmf(np.arange(few + 1), width, in_a, in_b))
            expected += in_a * in_b / width
    return float(expected), float(min(1.0, density[both:].sum()))


def correlations(
    a: Float[np.ndarray, "l c"], b: Float[np.ndarray, "l c"], *, draws: int = DRAWS, seed: int = 0
) -> list[dict[str, Any]]:
    """Pearson and Spearman over all heads, each with a 95 % interval and what shuffled scores give.

    Heads of a layer share its input, so the interval resamples whole layers; under eight layers there are too few of
    them and heads are resampled. Shuffles permute one side over all heads, and within layers; a p-value is the share
    of shuffles that reach the value, the value itself among them, so at least 1 / (draws + 1).

    Returns:
        measure, value, ci_lo, ci_hi, expected, p, expected_layers, p_layers; only the first two where a side does not
        vary or `draws` is 0.
    """
    rng = np.random.default_rng(stable_seed("compare", seed, a.shape))
    rows = []
    kinds: list[tuple[str, Callable[..., float], np.ndarray, np.ndarray]] = [
        ("pearson", pearson, a, b),
        ("spearman", spearman, ranks(a), ranks(b)),
    ]
    for measure, correlate, x, y in kinds:
        value = correlate(a.reshape(-1), b.reshape(-1))
        row: dict[str, Any] = {"measure": measure, "value": value}
        if draws and not math.isnan(value):
            row["ci_lo"], row["ci_hi"] = _interval(measure == "spearman", a, b, draws, rng)
            everywhere = rng.permuted(np.tile(y.reshape(-1), (draws, 1)), axis=1)
            within = rng.permuted(np.tile(y, (draws, 1, 1)), axis=2).reshape(draws, -1)
            for suffix, shuffled in (("", everywhere), ("_layers", within)):
                null = (shuffled - y.mean()) @ (x - x.mean()).reshape(-1) / (x.std() * y.std() * x.size)
                row["expected" + suffix] = float(null.mean())
                reached = int((null >= value - 1e-12).sum())
                row["p" + suffix] = (1 + reached) / (1 + draws)
        rows.append(row)
    return rows


def _interval(
    ranked: bool, a: np.ndarray, b: np.ndarray, draws: int, rng: np.random.Generator
) -> tuple[float, float]:
    """95 % of the correlation over resampled layers; NaN where no resample varies."""
    if len(a) < _LAYERS:
        a, b = a.reshape(-1, 1), b.reshape(-1, 1)
    at = rng.integers(0, len(a), (draws, len(a)))
    x, y = (side[at].reshape(draws, -1) for side in (a, b))
    if ranked:
        x, y = stats.rankdata(x, axis=1), stats.rankdata(y, axis=1)
    x, y = (side - side.mean(1, keepdims=True) for side in (x, y))
    scale = np.sqrt((x**2).sum(1) * (y**2).sum(1))
    known = (x * y).sum(1)[scale > 0] / scale[scale > 0]
    if not len(known):
        return math.nan, math.nan
    low, high = np.quantile(known, [0.025, 0.975])
    return float(low), float(high)
