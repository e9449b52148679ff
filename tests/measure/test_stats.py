"""Intervals against closed forms and simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats as reference

from interp.measure.stats import bootstrap_ci, cluster_se, mcnemar, proportion_ci


def test_bootstrap_matches_the_normal_interval_for_independent_values(rng_untouched):
    values = np.random.default_rng(0).normal(size=400)
    low, high = bootstrap_ci(values, np.arange(400).astype(str), seed=1)
    half = 1.96 * values.std(ddof=1) / 20
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.02)
    assert bootstrap_ci(values, np.arange(400).astype(str), seed=1) == (low, high)


def test_clusters_widen_the_interval_to_their_own_number():
    """Each value stands ten times: the interval must be that of the 40 clusters, not of 400 values."""
    base = np.random.default_rng(0).normal(size=40)
    once = bootstrap_ci(base, np.arange(40).astype(str), seed=0)
    ten = bootstrap_ci(np.repeat(base, 10), np.repeat(np.arange(40), 10).astype(str), seed=0)
    assert ten == pytest.approx(once, abs=1e-9)
    assert cluster_se(np.repeat(base, 10), np.repeat(np.arange(40), 10)) == pytest.approx(
        base.std(ddof=1) / np.sqrt(40)
    )


def test_coverage_of_the_cluster_interval_is_near_its_level():
    hits = 0
    rng = np.random.default_rng(5)
    for trial in range(200):
        effect = rng.normal(size=30)
        values = np.repeat(effect, 4) + 0.3 * rng.normal(size=120)
        low, high = bootstrap_ci(values, np.repeat(np.arange(30), 4), seed=trial, n_resamples=400)
        hits += low <= 0 <= high
    assert 0.89 <= hits / 200 <= 0.98


def test_one_cluster_gives_no_interval():
    assert np.isnan(bootstrap_ci(np.ones(5), ["a"] * 5, seed=0)).all()
    assert np.isnan(cluster_se(np.ones((5, 2)), ["a"] * 5)).all()


def test_proportion_interval_is_exact_and_never_a_point():
    clusters = [str(i) for i in range(20)]
    low, high = proportion_ci(np.repeat([1.0, 0.0], 10), clusters)
    exact = reference.binomtest(10, 20).proportion_ci()
    # Independent trials: Clopper-Pearson, but for the G / (G - 1) of the cluster variance.
    assert (low, high) == pytest.approx((exact.low, exact.high), abs=0.02)
    # Unequal clusters: the interval is of the mean over examples, and holds it.
    low, high = proportion_ci(np.array([1.0] * 100 + [0.0] * 9), ["big"] * 100 + [str(i) for i in range(9)])
    assert low < 100 / 109 < high
    low, high = proportion_ci(np.ones(20), clusters)
    assert (low, high) == pytest.approx((0.025 ** (1 / 20), 1.0))
    assert proportion_ci(np.zeros(20), clusters) == pytest.approx((0.0, 1 - 0.025 ** (1 / 20)))
    assert (
        proportion_ci(np.repeat([1.0, 0.0], 10), ["a"] * 10 + ["b"] * 10)[1] > 0.95
    )  # two clusters say little


def test_mcnemar_is_the_binomial_test_of_the_discordant_pairs():
    clean = np.array([1.0] * 12 + [0.0] * 3)
    cut = np.array([0.0] * 8 + [1.0] * 4 + [1.0, 0, 0])
    assert mcnemar(clean, cut) == pytest.approx(reference.binomtest(1, 9).pvalue)
    assert mcnemar(clean, clean) == 1.0
