"""Intervals against closed forms and simulation."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats as reference

from interp.errors import UsageError
from interp.measure.stats import bootstrap_ci, cluster_se, fdr, mcnemar, proportion_ci, sign_flip


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


def test_sign_flips_of_few_clusters_are_all_counted():
    delta = np.array([-1.0, -1.0, 0.0, -1.0, 1.0, -1.0])
    clusters = ["a", "a", "b", "b", "c", "d"]  # sums -2, -1, 1, -1
    flips = [abs(2 * a + b + c + d) for a in (1, -1) for b in (1, -1) for c in (1, -1) for d in (1, -1)]
    assert sign_flip(delta, clusters, seed=0) == np.mean([f >= 3 for f in flips])
    # As independent examples, the test is McNemar's: a binomial one, up to the one of the two tails it counts.
    alone = [str(i) for i in range(6)]
    assert sign_flip(delta, alone, seed=0) == pytest.approx(reference.binomtest(1, 5).pvalue)
    assert sign_flip(np.zeros(6), clusters, seed=0) == 1.0
    assert np.isnan(sign_flip(delta, ["a"] * 6, seed=0))


def test_examples_of_one_cluster_are_not_independent_evidence():
    """Ten examples a cluster that always agree: the p-value is that of the clusters."""
    rng = np.random.default_rng(0)
    base = rng.normal(-0.4, 1, size=12)
    once = sign_flip(base, np.arange(12), seed=0)
    assert sign_flip(np.repeat(base, 10), np.repeat(np.arange(12), 10), seed=0) == pytest.approx(once)
    assert sign_flip(np.repeat(base, 10), np.arange(120), seed=0) < once / 10


def test_many_clusters_are_flipped_at_random_and_never_give_zero(rng_untouched):
    rng = np.random.default_rng(1)
    delta = rng.normal(0.2, 1, size=60)
    p = sign_flip(delta, np.arange(60), seed=3)
    z = abs(delta.sum()) / np.sqrt((delta**2).sum())
    assert p == pytest.approx(2 * reference.norm.sf(z), abs=0.02) and p == sign_flip(
        delta, np.arange(60), seed=3
    )
    assert sign_flip(np.ones(60), np.arange(60), seed=0, draws=999) == 1 / 1000
    under = [sign_flip(rng.normal(size=20), np.arange(20), seed=0, draws=199) < 0.1 for _ in range(300)]
    assert np.mean(under) == pytest.approx(0.1, abs=0.05)


def test_false_discovery_rate_is_adjusted_within_families_and_skips_rows_without_p():
    frame = pd.DataFrame(
        {"p": [0.01, 0.04, np.nan, 0.03, 0.5], "metric": ["a", "a", "a", "b", "b"]}, index=[5, 6, 7, 8, 9]
    )
    # By hand: p n / rank, made monotone from the largest down.
    assert fdr(frame)["q"].to_list() == pytest.approx([0.04, 0.16 / 3, np.nan, 0.16 / 3, 0.5], nan_ok=True)
    within = fdr(frame, within=["metric"])
    assert within["q"].to_list() == pytest.approx([0.02, 0.04, np.nan, 0.06, 0.5], nan_ok=True)
    assert "q" not in frame and fdr(frame.iloc[:0])["q"].empty
    for bad, told in (
        (lambda: fdr(frame, "p_cluster"), "no column 'p_cluster'"),
        (lambda: fdr(frame.assign(p=2.0)), "outside 0 to 1"),
        (lambda: fdr(pd.concat([frame, frame])), "share an index"),
    ):
        with pytest.raises(UsageError, match=told):
            bad()
