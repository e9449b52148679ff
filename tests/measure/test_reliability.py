"""Split halves, second runs and the ceiling of an overlap."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from interp.errors import UsageError
from interp.measure.reliability import (
    agreement,
    by_group,
    ceiling,
    halves,
    ranks,
    retest,
    shared,
    spearman,
    split_half,
    top_set,
)

LAYERS, HEADS = 6, 20


def truth(seed: int = 0) -> np.ndarray:
    """Scores of heads, most of them zero."""
    rng = np.random.default_rng(seed)
    return np.where(rng.random((LAYERS, HEADS)) < 0.3, rng.random((LAYERS, HEADS)), 0)


def noisy(of: np.ndarray, n: int, seed: int, noise: float = 0.5) -> np.ndarray:
    return of + noise * np.random.default_rng(seed).normal(size=(n, *of.shape))


def cell(frame, measure: str, name: str = "all", column: str = "value") -> float:
    return float(frame.set_index(["measure", "set"]).loc[(measure, name), column])


def test_the_top_k_leaves_out_what_is_tied_at_its_edge():
    scores = np.array([0.3, 0.9, 0.1 + 0.2, 0.5])
    assert top_set(scores, 2).tolist() == [False, True, False, True]
    assert top_set(scores, 3).sum() == 2  # 0.3 and 0.1 + 0.2 differ by rounding alone
    assert top_set(scores, 4).all() and top_set(scores, 9).all()
    assert top_set(np.zeros(5), 2).sum() == 0
    assert top_set(-np.arange(4.0), 2).tolist() == [True, True, False, False]


def test_measures_of_agreement():
    a, b = np.array([0.9, 0.8, 0.3, 0.0, 0.0]), np.array([0.7, 0.1, 0.6, 0.0, 0.05])
    found = agreement(a, b, [2], 0.1)
    assert found["overlap", "top 2"] == 0.5 and found["jaccard", "top 2"] == pytest.approx(1 / 3)
    assert found["overlap", "score >= 0.1"] == 1.0
    assert found["pearson", "all"] == pytest.approx(stats.pearsonr(a, b)[0])
    assert found["spearman", "all"] == pytest.approx(stats.spearmanr(a, b)[0])
    assert math.isnan(spearman(a, np.ones(5)))
    tied = np.random.default_rng(0).integers(0, 5, (6, 7)).astype(float)
    np.testing.assert_array_equal(ranks(tied), stats.rankdata(tied).reshape(6, 7))
    assert shared(np.array([True, False]), np.array([False, False])) == (
        pytest.approx(math.nan, nan_ok=True),
        0.0,
    )


def test_halves_are_halves_and_all_of_them_where_there_are_few():
    few = [tuple(m) for m in halves(4, 100, 0)]
    assert sorted(few) == sorted(
        {(True, True, False, False), (True, False, True, False), (True, False, False, True)}
    )
    odd = list(halves(5, 100, 0))
    assert len(odd) == 10 and {int(m.sum()) for m in odd} == {2}
    many = list(halves(30, 50, 0))
    assert len(many) == 50 and {int(m.sum()) for m in many} == {15}
    assert len({tuple(m) for m in many}) == 50
    assert [tuple(m) for m in halves(30, 50, 0)] == [tuple(m) for m in many]
    assert [tuple(m) for m in halves(30, 50, 1)] != [tuple(m) for m in many]
    assert len(list(halves(4, 100, 0, cycle=True))) == 100
    with pytest.raises(UsageError, match="two clusters"):
        list(halves(1, 10, 0))


def test_split_halves_recover_the_reliability_of_all_instances():
    """Spearman and Brown: from halves of 20 instances to the correlation of two runs of 40."""
    of = truth()
    predicted, reached = [], []
    for seed in range(8):
        found = split_half(noisy(of, 40, seed), splits=40)
        predicted.append(cell(found, "pearson", column="corrected"))
        assert cell(found, "pearson") < predicted[-1]
        again = retest(noisy(of, 40, seed), noisy(of, 40, 1000 + seed))
        reached.append(cell(again, "pearson"))
    assert np.mean(predicted) == pytest.approx(np.mean(reached), abs=0.02)
    # The classical formula for this signal and noise.
    expected = of.var() / (of.var() + 0.25 / 40)
    assert np.mean(predicted) == pytest.approx(expected, abs=0.03)


def test_halves_of_sets_are_those_of_runs_with_half_the_instances():
    of = truth()
    split = [
        cell(split_half(noisy(of, 24, s), top=10, threshold=0.3), "overlap", "top 10") for s in range(10)
    ]
    pairs = [
        cell(retest(noisy(of, 12, 50 + s), noisy(of, 12, 90 + s), top=10), "overlap", "top 10")
        for s in range(40)
    ]
    assert np.mean(split) == pytest.approx(np.mean(pairs), abs=0.05)
    assert np.mean(split) < 0.95


def test_clusters_stay_together():
    """Noise that a cluster shares is no signal: split by cluster the reliability is gone, by instance it looks high."""
    rng = np.random.default_rng(0)
    shift = rng.normal(size=(8, LAYERS, HEADS))
    names = [f"haystack {i // 10}" for i in range(80)]
    values = np.repeat(shift, 10, axis=0) + 0.1 * rng.normal(size=(80, LAYERS, HEADS))
    assert abs(cell(split_half(values, names), "pearson")) < 0.25
    assert cell(split_half(values), "pearson") > 0.7
    found = split_half(values, names)
    assert set(found["n_clusters"]) == {8} and set(found["splits"]) == {
        35
    }  # 8 choose 4, each met from both sides
    with pytest.raises(UsageError, match="80 instances, but 3 clusters"):
        split_half(values, ["a", "b", "c"])
    with pytest.raises(UsageError, match="two clusters"):
        split_half(values, ["a"] * 80)


def test_the_ceiling_of_two_runs_of_one_truth_is_reached():
    of = truth()
    full, part = [], []
    for seed in range(6):
        found = ceiling(noisy(of, 20, seed), noisy(of, 30, 100 + seed), top=(10,), splits=30)
        full.append(cell(found, "overlap", "top 10", "of_ceiling"))
        assert cell(found, "overlap", "top 10", "ceiling") < 0.95
        mixed = 0.6 * of + 0.8 * truth(9)
        found = ceiling(noisy(of, 20, seed), noisy(mixed, 30, 100 + seed), top=(10,), splits=30)
        part.append(cell(found, "pearson", "all", "of_ceiling"))
    assert np.mean(full) == pytest.approx(1, abs=0.05)
    # Corrected for attenuation, the correlation is that of the truths.
    assert np.mean(part) == pytest.approx(np.corrcoef(of.reshape(-1), mixed.reshape(-1))[0, 1], abs=0.06)


def test_no_half_meets_its_own_instances():
    """Two scores of the same instances: what an instance shifts in both is no agreement between them."""
    rng = np.random.default_rng(0)
    shift = rng.normal(size=(30, LAYERS, HEADS))
    names = [str(i) for i in range(30)]
    a = truth(1) + shift
    b = truth(2) + shift
    found = ceiling(a, b, names, names, splits=60)
    real = np.corrcoef(truth(1).reshape(-1), truth(2).reshape(-1))[0, 1]
    both = np.corrcoef(a.mean(0).reshape(-1), b.mean(0).reshape(-1))[0, 1]
    assert both > real + 0.2
    assert cell(found, "pearson", "all", "cross") == pytest.approx(real, abs=0.15)


def test_kv_groups_take_their_best_head():
    scores = np.array([[0.1, 0.9, 0.3, 0.2]])
    assert by_group(scores, 2).tolist() == [[0.9, 0.3]]
    with pytest.raises(UsageError, match="do not divide"):
        by_group(scores, 3)
    values = np.zeros((8, 2, 8))
    values[::2, 0, 0] = values[1::2, 0, 1] = 1.0  # the copying head moves within its group
    names = ["a", "b"] * 4
    assert cell(split_half(values, names, top=1), "overlap", "top 1") == 0.0
    assert cell(split_half(values, names, top=1, kv_heads=4), "overlap", "top 1") == 1.0
