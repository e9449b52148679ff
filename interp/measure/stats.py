"""Intervals and tests over clusters: examples that share a haystack, a subject or a template move together."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy import stats

from interp.errors import UsageError

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
    """95 % interval of a proportion whose trials come in clusters (Korn and Graubard 1998, Survey Methodology 24).

    Clopper-Pearson with the number of trials divided by the design effect, which is how much larger the cluster-robust
    variance is than that of independent trials, and never below one. Unlike the bootstrap it is wider than a point
    where all examples are right or all are wrong; with no variance to tell, the clusters then count as the trials.
    """
    ok = ~np.isnan(values)
    values, names = values[ok], np.asarray(clusters)[ok]
    n, g = len(values), len(np.unique(names))
    p = float(values.mean())
    variance = float(cluster_se(values, names)) ** 2 if g > 1 else np.nan
    trials = float(g)
    if 0 < p < 1 and variance > 0:
        trials = min(p * (1 - p) / variance, float(n))
    hits = p * trials
    low = stats.beta.ppf((1 - LEVEL) / 2, hits, trials - hits + 1) if hits > 0 else 0.0
    high = stats.beta.ppf((1 + LEVEL) / 2, hits + 1, trials - hits) if hits < trials else 1.0
    return float(low), float(high)


def mcnemar(clean: np.ndarray, cut: np.ndarray) -> float:
    """Exact two-sided McNemar p-value of two paired 0/1 outcomes; 1.0 where no pair differs."""
    lost = int(((clean > 0.5) & (cut < 0.5)).sum())
    won = int(((clean < 0.5) & (cut > 0.5)).sum())
    return float(stats.binomtest(min(lost, won), lost + won).pvalue) if lost + won else 1.0


EXACT = 14
"""Clusters that differ up to which all assignments of signs are gone through."""


def sign_flip(
    delta: np.ndarray, clusters: Sequence[str] | np.ndarray, *, seed: int, draws: int = 9999
) -> float:
    """Two-sided p-value of paired differences against a distribution symmetric about zero, flipped cluster by cluster.

    The cluster-aware companion of McNemar's test: under the null the differences of one cluster keep their size and
    change sign together. The statistic is the mean difference. With `EXACT` or fewer clusters that differ, all
    assignments of signs are counted, so the test is exact; with more, `draws` seeded ones, and p = (1 + hits) / (1 +
    draws). NaN for fewer than two clusters, 1.0 where none differs.
    """
    sums, _ = cluster_sums(delta, clusters)
    if len(sums) < 2:
        return float("nan")
    least = abs(sums.sum()) - 1e-9 * np.abs(sums).sum()  # sums in another order differ by rounding
    differ = sums[sums != 0]
    if len(differ) <= EXACT:
        signs = 1 - 2 * (np.arange(2 ** len(differ))[:, None] >> np.arange(len(differ)) & 1)
        return float((np.abs(signs @ differ) >= least).mean())
    hits = np.abs(_signs(len(sums), draws, seed) @ sums) >= least
    return float((1 + hits.sum()) / (1 + draws))


@lru_cache(maxsize=2)
def _signs(n: int, draws: int, seed: int) -> Float[np.ndarray, "d n"]:
    """Random signs; all rows of a table are tested under the same ones."""
    return np.random.default_rng(seed).choice([-1.0, 1.0], size=(draws, n))


def fdr(frame: pd.DataFrame, p: str = "p", *, within: Sequence[str] = ()) -> pd.DataFrame:
    """The frame with a column `q`: p-values adjusted for the false discovery rate (Benjamini and Hochberg 1995).

    Args:
        frame: the rows that are looked at together; choose them first (one metric, the cuts but not their controls).
            Rows without a p-value get none and count for nothing.
        p: column of the p-values.
        within: columns whose combinations are families of their own.

    Raises:
        UsageError: no such column, or numbers that are no p-values.
    """
    if missing := {p, *within} - set(frame.columns):
        raise UsageError(f"fdr: the frame has no column {sorted(missing)[0]!r}")
    out = frame.assign(q=np.nan)
    if not frame.index.is_unique:
        raise UsageError("fdr: rows of the frame share an index; write fdr(frame.reset_index(drop=True))")
    parts = frame.groupby(list(within), sort=False, dropna=False) if within else [((), frame)]
    for _, rows in parts:
        told = rows[p].dropna()
        if not told.between(0, 1).all():
            raise UsageError(f"fdr: column {p!r} holds numbers outside 0 to 1")
        if len(told):
            out.loc[told.index, "q"] = stats.false_discovery_control(told.to_numpy(float))
    return out


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
