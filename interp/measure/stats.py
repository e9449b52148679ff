"""Intervals and tests over clusters: examples that share a haystack, a subject or a template move together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats

LEVEL = 0.95


def cluster_sums(values: np.ndarray, clusters: Sequence[str] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sum and count of the values of each cluster; NaN values are left out of both."""
    _, at = np.unique(np.asarray(clusters), return_inverse=True)
    ok = ~np.isnan(values)
    sums = np.bincount(at[ok], weights=values[ok], minlength=at.max() + 1)
    counts = np.bincount(at[ok], minlength=at.max() + 1)
    keep = counts > 0
    return sums[keep], counts[keep].astype(float)


def bootstrap_ci(
    values: np.ndarray, clusters: Sequence[str] | np.ndarray, *, seed: int, n_resamples: int = 2000
) -> tuple[float, float]:
    """Percentile interval (95 %) of the mean of `values` when whole clusters are resampled; NaN for fewer than two."""
    sums, counts = cluster_sums(values, clusters)
    if len(sums) < 2:
        return float("nan"), float("nan")
    result = stats.bootstrap(
        (sums, counts),
        lambda s, c, axis=-1: s.sum(axis) / c.sum(axis),
        paired=True,
        vectorized=True,
        method="percentile",
        n_resamples=n_resamples,
        confidence_level=LEVEL,
        rng=np.random.default_rng(seed),
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def proportion_ci(values: np.ndarray, clusters: Sequence[str] | np.ndarray) -> tuple[float, float]:
    """Exact (Clopper-Pearson) 95 % interval of a proportion, with clusters as the trials.

    Each cluster counts once, by its mean: conservative where examples of one cluster differ, and, unlike the
    bootstrap, wider than a point where all examples are right or all are wrong.
    """
    sums, counts = cluster_sums(values, clusters)
    n = len(sums)
    hits = round(float((sums / counts).sum()))
    interval = stats.binomtest(min(hits, n), n).proportion_ci(confidence_level=LEVEL)
    return float(interval.low), float(interval.high)


def mcnemar(clean: np.ndarray, cut: np.ndarray) -> float:
    """Exact two-sided McNemar p-value of two paired 0/1 outcomes; 1.0 where no pair differs."""
    lost = int(((clean > 0.5) & (cut < 0.5)).sum())
    won = int(((clean < 0.5) & (cut > 0.5)).sum())
    return float(stats.binomtest(min(lost, won), lost + won).pvalue) if lost + won else 1.0


def cluster_se(values: np.ndarray, clusters: Sequence[str] | np.ndarray) -> np.ndarray:
    """Standard error of the mean over axis 0, robust to clusters (Liang-Zeger, with the G/(G-1) correction).

    Args:
        values: n ... ; one row an example.

    Returns:
        the error of each trailing element; NaN for fewer than two clusters.
    """
    _, at = np.unique(np.asarray(clusters), return_inverse=True)
    g = int(at.max()) + 1
    if g < 2:
        return np.full(values.shape[1:], np.nan)
    residuals = values - values.mean(0)
    sums = np.zeros((g, *values.shape[1:]))
    np.add.at(sums, at, residuals)
    out: np.ndarray = np.sqrt((sums**2).sum(0) * g / (g - 1)) / len(values)
    return out
