"""Overlap of component sets against enumeration: every pair of sets, every permutation within layers."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from interp.errors import UsageError
from interp.locate.circuits.sharing import core, intersection_pmf, overlap, overlaps
from interp.models.sites import MLP, Head

UNIVERSE = [Head(i, j) for i in range(3) for j in range(4)] + [MLP(i) for i in range(3)]
A = [Head(0, 1), Head(1, 0), Head(1, 3), MLP(1)]
B = [Head(1, 3), Head(1, 2), Head(2, 0), MLP(1), Head(0, 1)]
C = [Head(1, 3), Head(0, 1), Head(0, 2), MLP(0)]


def same_layout(parts):
    """Every set that has as many components of each kind in each layer."""
    pools = []
    for kind, layer in itertools.product((Head, MLP), range(3)):
        pool = [c for c in UNIVERSE if type(c) is kind and c.layer == layer]
        pools.append(list(itertools.combinations(pool, sum(c in parts for c in pool))))
    return [set(itertools.chain.from_iterable(p)) for p in itertools.product(*pools)]


def same_size(parts):
    return [set(p) for p in itertools.combinations(UNIVERSE, len(parts))]


def counted(draws, fixed):
    """Distribution of the overlap with one fixed set, by counting."""
    found = np.array([len(d & set(fixed)) for d in draws])
    return found, np.array([(found == k).mean() for k in range(found.max() + 1)])


@pytest.mark.parametrize(("null", "every"), [("hypergeometric", same_size), ("layers", same_layout)])
def test_nulls_equal_enumeration(null, every):
    found, pmf = counted(every(A), B)
    row = overlap(A, B, UNIVERSE, null).iloc[0]
    assert (row["n_a"], row["n_b"], row["shared"], row["n"]) == (4, 5, 3, 15)
    assert (row["jaccard"], row["of_a"], row["of_b"]) == (0.5, 0.75, 0.6)
    assert row["p"] == pytest.approx((found >= 3).mean(), abs=1e-12)
    assert row["expected"] == pytest.approx(found.mean(), abs=1e-12)
    assert row["expected_jaccard"] == pytest.approx((found / (9 - found)).mean(), abs=1e-12)
    below = pmf.cumsum()
    assert row["null_lo"] == int((below < 0.025 - 1e-12).sum())
    assert row["null_hi"] == int((below < 0.975 - 1e-12).sum())


def test_layers_make_the_null_wider_where_circuits_share_their_depth():
    everywhere, within = (overlap(A, B, UNIVERSE, null).iloc[0] for null in ("hypergeometric", "layers"))
    assert within["expected"] > everywhere["expected"] and within["p"] > everywhere["p"]


@pytest.mark.parametrize(("null", "every"), [("hypergeometric", same_size), ("layers", same_layout)])
def test_what_several_sets_share_equals_enumeration(null, every):
    row = core({"a": A, "b": B, "c": C}, UNIVERSE, null).iloc[0]
    assert row["shared"] == 2 and row["components"] == "L0H1 L1H3" and row["of_smallest"] == 0.5
    draws_c = every(C)
    hits = total = mass = 0
    for a in every(A):
        left = a & set(B)
        for c in draws_c if len(draws_c) < 1000 else [None]:
            # Of all sets of one size only how many meet is asked.
            if c is None:
                pmf = stats.hypergeom.pmf(np.arange(5), len(UNIVERSE), len(left), len(C))
                hits, mass, total = hits + pmf[2:].sum(), mass + pmf @ np.arange(5), total + 1
            else:
                k = len(left & c)
                hits, mass, total = hits + (k >= 2), mass + k, total + 1
    assert row["p"] == pytest.approx(hits / total, abs=1e-12)
    assert row["expected"] == pytest.approx(mass / total, abs=1e-12)


def test_the_distribution_is_that_of_random_sets_in_any_order():
    for sizes in itertools.permutations((3, 5, 4)):
        assert intersection_pmf(9, sizes) == pytest.approx(intersection_pmf(9, (3, 5, 4)), abs=1e-12)
    pmf = intersection_pmf(9, (3, 5, 4))
    assert pmf.sum() == pytest.approx(1) and pmf @ np.arange(4) == pytest.approx(9 * 3 * 5 * 4 / 9**3)
    rng = np.random.default_rng(0)
    drawn = [
        len(set.intersection(*(set(rng.choice(9, size=k, replace=False)) for k in (3, 5, 4))))
        for _ in range(4000)
    ]
    for k, p in enumerate(pmf):
        assert np.mean(np.array(drawn) == k) == pytest.approx(p, abs=4 * math.sqrt(0.25 / 4000))


def test_all_pairs_and_their_false_discovery_rate():
    found = overlaps({"a": A, "b": B, "c": C}, UNIVERSE)
    assert found[["a", "b"]].drop_duplicates().values.tolist() == [["a", "b"], ["a", "c"], ["b", "c"]]
    for null, rows in found.groupby("null"):
        assert rows["q"].tolist() == pytest.approx(stats.false_discovery_control(rows["p"]))
        alone = overlap(A, C, UNIVERSE, null)
        pd.testing.assert_frame_equal(rows.iloc[[1]][alone.columns].reset_index(drop=True), alone)


def test_ends():
    same = overlap(A, A, UNIVERSE, "layers").iloc[0]
    # 4 heads take one or two of, and one MLP of one: C(4, 1) x C(4, 2) x 1.
    assert same["p"] == pytest.approx(1 / 24) and same["jaccard"] == 1
    none = overlap([], A, UNIVERSE, "layers").iloc[0]
    assert none["p"] == 1 and none["shared"] == 0 and math.isnan(none["of_a"]) and none["of_b"] == 0
    assert overlap("L0H1 L1H0", "L1H0", UNIVERSE)["shared"].tolist() == [1, 1]


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: overlap(A, [Head(5, 0)], UNIVERSE), "L5H0 is not in the universe of 15"),
        (lambda: overlap(A, B, []), "universe is empty"),
        (lambda: overlap(A, B, [*UNIVERSE, MLP(0)]), "twice"),
        (lambda: overlap(A, B, UNIVERSE, "random"), "hypergeometric or layers"),
        (lambda: overlaps({"a": A}, UNIVERSE), "two sets"),
        (lambda: core({"a": A}, UNIVERSE), "two sets"),
    ],
)
def test_bad_sets_say_what_is_wrong(make, told):
    with pytest.raises(UsageError, match=told):
        make()
