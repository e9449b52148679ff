"""How well scores agree with themselves: split halves, a second run, and the ceiling of every overlap.

Two lists of heads that measure the same thing do not overlap fully, because each is measured on a finite number of
instances. Split-half reliability says how far a list agrees with itself on other instances; an overlap between two
lists is read against that, not against 1.

A head is in the top k if it stays there however ties are broken: where the scores at rank k and k + 1 are equal, the
tied heads are left out, and the set is smaller than k. Most heads score exactly 0 on most tasks, and two rankings that
fill up with them in the same order would agree for no reason.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from interp.errors import UsageError
from interp.tasks.base import stable_seed

SPLITS = 100
_TIE = 1e-9
"""Scores that differ by less than this share of the largest are equal: sums of the same numbers in another order."""


def top_set(scores: Float[np.ndarray, " c"], k: int) -> Bool[np.ndarray, " c"]:
    """The heads that are among the k best however ties are broken.

    >>> top_set(np.array([0.9, 0.5, 0.5, 0.1]), 2).tolist()
    [True, False, False, False]
    """
    if k >= len(scores):
        return np.ones(len(scores), bool)
    after = np.sort(scores)[::-1][k]
    return scores > after + _TIE * np.abs(scores).max()


def sets_of(
    scores: Float[np.ndarray, " c"], top: Sequence[int], threshold: float | None
) -> dict[str, np.ndarray]:
    """The sets that are compared, by name: each top k, and the heads that score at least the threshold."""
    found = {f"top {k}": top_set(scores, k) for k in top}
    if threshold is not None:
        found[f"score >= {threshold:g}"] = scores >= threshold
    return found


def shared(a: Bool[np.ndarray, " c"], b: Bool[np.ndarray, " c"]) -> tuple[float, float]:
    """Overlap (shared over the smaller set) and Jaccard index (shared over the union); NaN for an empty set."""
    both, least, union = int((a & b).sum()), int(min(a.sum(), b.sum())), int((a | b).sum())
    return both / least if least else math.nan, both / union if union else math.nan


def pearson(a: Float[np.ndarray, " c"], b: Float[np.ndarray, " c"]) -> float:
    """Pearson correlation; NaN where one side does not vary."""
    x, y = a - a.mean(), b - b.mean()
    scale = math.sqrt(float(x @ x) * float(y @ y))
    return float(x @ y) / scale if scale > 0 else math.nan


def spearman(a: Float[np.ndarray, " c"], b: Float[np.ndarray, " c"]) -> float:
    """Spearman's rank correlation, ties at their mean rank; NaN where one side does not vary."""
    return pearson(ranks(a), ranks(b))


def ranks(values: Float[np.ndarray, "*c"]) -> Float[np.ndarray, "*c"]:
    """Ranks from 1, ties at their mean rank; as `scipy.stats.rankdata`, which is slow on a few hundred values."""
    _, at, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (counts.cumsum() - (counts - 1) / 2)[at].reshape(values.shape)


def by_group(scores: Float[np.ndarray, "l h"], kv_heads: int) -> Float[np.ndarray, "l kv"]:
    """Score of each KV group: that of its best query head, since keeping the group's cache is keeping its best head.

    Raises:
        UsageError: the heads do not divide into as many groups.
    """
    layers, heads = scores.shape
    if kv_heads < 1 or heads % kv_heads:
        raise UsageError(f"{heads} heads do not divide into {kv_heads} KV heads")
    return scores.reshape(layers, kv_heads, -1).max(-1)


def agreement(
    a: Float[np.ndarray, " c"], b: Float[np.ndarray, " c"], top: Sequence[int], threshold: float | None
) -> dict[tuple[str, str], float]:
    """(measure, set) -> value: overlap and Jaccard of each set, Pearson and Spearman over all heads."""
    out: dict[tuple[str, str], float] = {}
    ours, theirs = sets_of(a, top, threshold), sets_of(b, top, threshold)
    for name in ours:
        out["overlap", name], out["jaccard", name] = shared(ours[name], theirs[name])
    out["pearson", "all"], out["spearman", "all"] = pearson(a, b), spearman(a, b)
    return out


def split_half(
    values: Float[np.ndarray, "n l h"],
    clusters: Sequence[str] | None = None,
    *,
    top: int | Sequence[int] = 10,
    threshold: float | None = None,
    kv_heads: int | None = None,
    splits: int = SPLITS,
    seed: int = 0,
) -> pd.DataFrame:
    """Agreement of scores on one half of the instances with scores on the other, over many seeded splits.

    Args:
        values: scores of each accepted instance.
        clusters: instances of a cluster stay in one half; default each instance by itself.
        kv_heads: KV heads a layer: compare KV groups, each by its best head, in place of heads.
        splits: random splits; where there are fewer distinct ones, all of them.

    Returns:
        measure (overlap, jaccard, pearson, spearman), set, value (mean over splits), lo and hi (2.5 and 97.5 % of the
        splits: a spread, no confidence interval), corrected (Spearman and Brown's 2r / (1 + r): the correlation that
        lists from all instances would have), splits, n, n_clusters. A set has no such correction: its value is that of
        half the instances, and a floor of what all of them reach.

    Raises:
        UsageError: fewer than two clusters.
    """
    data = _Sums.of(values, clusters, kv_heads)
    tops = [top] if isinstance(top, int) else list(top)
    found = [
        agreement(data.mean(half), data.mean(~half), tops, threshold)
        for half in halves(len(data.names), splits, seed)
    ]
    rows = []
    for measure, name in found[0]:
        every = np.array([f[measure, name] for f in found])
        value, lo, hi = _spread(every)
        corrected = 2 * value / (1 + value) if name == "all" and value > -1 else math.nan
        rows.append((measure, name, value, lo, hi, corrected, len(found), len(values), len(data.names)))
    columns = ["measure", "set", "value", "lo", "hi", "corrected", "splits", "n", "n_clusters"]
    return pd.DataFrame(rows, columns=columns)


def retest(
    first: Float[np.ndarray, "n l h"],
    second: Float[np.ndarray, "m l h"],
    *,
    top: int | Sequence[int] = 10,
    threshold: float | None = None,
) -> pd.DataFrame:
    """Agreement of two runs of the same score on different instances: measure, set, value, n_first, n_second."""
    tops = [top] if isinstance(top, int) else list(top)
    found = agreement(first.mean(0).reshape(-1), second.mean(0).reshape(-1), tops, threshold)
    rows = [(measure, name, value, len(first), len(second)) for (measure, name), value in found.items()]
    return pd.DataFrame(rows, columns=["measure", "set", "value", "n_first", "n_second"])


def ceiling(
    a: Float[np.ndarray, "n l h"],
    b: Float[np.ndarray, "m l h"],
    a_clusters: Sequence[str] | None = None,
    b_clusters: Sequence[str] | None = None,
    *,
    top: Sequence[int] = (10,),
    threshold: float | None = None,
    kv_heads: int | None = None,
    splits: int = SPLITS,
    seed: int = 0,
) -> pd.DataFrame:
    """What agreement between two lists can be expected to reach, and how much of it they reach.

    All three agreements are taken between halves, so that each is blurred by as few instances: a half of A with the
    other half of A (`self_a`), likewise B, and a half of A with the *other* half of B (`cross`); clusters that both
    have fall into the same half, so that no two sides of a comparison share an instance.

    Returns:
        measure, set, self_a, self_b, cross, ceiling = sqrt(self_a self_b), of_ceiling = cross / ceiling. For a
        correlation `of_ceiling` is Spearman's (1904) correction for attenuation. It is NaN where the ceiling is not
        positive, and can exceed 1 by chance.
    """
    ours, theirs = _Sums.of(a, a_clusters, kv_heads), _Sums.of(b, b_clusters, kv_heads)
    kinds: dict[str, list[str]] = {"both": [], "a": [], "b": []}
    for name in dict.fromkeys([*ours.names, *theirs.names]):
        kinds["both" if name in ours.at and name in theirs.at else "a" if name in ours.at else "b"].append(
            name
        )
    parts = [
        (names, list(halves(len(names), splits, seed, cycle=True))) if len(names) > 1 else (names, None)
        for names in kinds.values()
        if names
    ]
    sums: dict[tuple[str, str], list[tuple[float, float, float]]] = {}
    for i in range(splits):
        # A cluster that is alone of its kind goes to one half and to the other in turn.
        chosen = {
            name: bool(masks[i][j]) if masks is not None else bool((i + at) % 2)
            for at, (names, masks) in enumerate(parts)
            for j, name in enumerate(names)
        }
        one, two = (np.array([chosen[name] for name in side.names]) for side in (ours, theirs))
        if one.all() or two.all() or not (one.any() and two.any()):
            continue
        a1, a2, b1, b2 = ours.mean(one), ours.mean(~one), theirs.mean(two), theirs.mean(~two)
        found = [agreement(x, y, top, threshold) for x, y in ((a1, a2), (b1, b2), (a1, b2), (a2, b1))]
        for key in found[0]:
            within_a, within_b, *crossed = (f[key] for f in found)
            sums.setdefault(key, []).append((within_a, within_b, sum(crossed) / 2))
    rows = []
    for (measure, name), every in sums.items():
        self_a, self_b, cross = (_spread(column)[0] for column in np.array(every).T)
        most = math.sqrt(self_a * self_b) if self_a > 0 and self_b > 0 else math.nan
        rows.append((measure, name, self_a, self_b, cross, most, cross / most))
    columns = ["measure", "set", "self_a", "self_b", "cross", "ceiling", "of_ceiling"]
    return pd.DataFrame(rows, columns=columns)


def halves(n: int, splits: int, seed: int, *, cycle: bool = False) -> Iterator[np.ndarray]:
    """Masks that split n clusters in two, all distinct splits where there are at most `splits`, else seeded draws.

    Args:
        cycle: give `splits` masks in any case, over and over.
    """
    if n < 2:
        raise UsageError("reliability needs two clusters of instances or more; score more instances")
    size = n // 2
    distinct = math.comb(n, size) // (2 if n % 2 == 0 else 1)
    if distinct <= splits:
        every = []
        for chosen in itertools.combinations(range(n), size):
            if n % 2 or 0 in chosen:  # of an even number, each split is met from both sides
                every.append(np.isin(np.arange(n), chosen))
        yield from itertools.islice(itertools.cycle(every), splits if cycle else len(every))
        return
    rng = np.random.default_rng(stable_seed("halves", seed, n))
    for _ in range(splits):
        mask = np.zeros(n, bool)
        mask[rng.permutation(n)[:size]] = True
        yield mask


@dataclass(frozen=True)
class _Sums:
    """Scores summed over each cluster, from which the mean of any set of clusters is one product."""

    names: list[str]
    at: Mapping[str, int]
    sums: np.ndarray  # clusters layers heads
    counts: np.ndarray
    kv_heads: int | None

    @classmethod
    def of(cls, values: np.ndarray, clusters: Sequence[str] | None, kv_heads: int | None) -> _Sums:
        named = [str(i) for i in range(len(values))] if clusters is None else [str(c) for c in clusters]
        if len(named) != len(values):
            raise UsageError(
                f"{len(values)} instances, but {len(named)} clusters; name one for each instance"
            )
        at = {name: i for i, name in enumerate(dict.fromkeys(named))}
        index = np.array([at[name] for name in named])
        sums = np.zeros((len(at), *values.shape[1:]))
        np.add.at(sums, index, values)
        return cls(list(at), at, sums, np.bincount(index).astype(float), kv_heads)

    def mean(self, chosen: np.ndarray) -> np.ndarray:
        means = np.tensordot(chosen.astype(float), self.sums, 1) / self.counts[chosen].sum()
        return (means if self.kv_heads is None else by_group(means, self.kv_heads)).reshape(-1)


def _spread(values: np.ndarray) -> tuple[float, float, float]:
    ok = values[~np.isnan(values)]
    if not len(ok):
        return math.nan, math.nan, math.nan
    lo, hi = np.quantile(ok, [0.025, 0.975])
    return float(ok.mean()), float(lo), float(hi)
