"""Do two lists of heads name the same heads? Two runs, two models of one shape, two scores, two papers.

Each overlap stands beside two nulls: sets of the same sizes drawn from all heads (hypergeometric), and sets with as
many heads *in each layer* as the ones compared (a sum of hypergeometric numbers, one a layer). Both are exact. Two
lists that merely prefer the same layers overlap by more than the first null and by no more than the second. A
correlation stands beside its values when one list's scores are shuffled, over all heads and within layers.

Where both sides have per-instance scores, `of_ceiling` sets the agreement against what each list agrees with itself
(`interp.measure.reliability`): an inheritance claim is judged by that, not by 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from interp.errors import UsageError
from interp.locate.interop import as_heads
from interp.locate.nulls import DRAWS, by_layer, correlations, hypergeometric
from interp.locate.sides import Side, Source, sides, units
from interp.measure.reliability import ceiling, sets_of, shared
from interp.tasks.base import stable_seed

COLUMNS = [
    "unit",
    "measure",
    "set",
    "value",
    "ci_lo",
    "ci_hi",
    "n_a",
    "n_b",
    "shared",
    "n",
    "expected",
    "p",
    "expected_layers",
    "p_layers",
    "ceiling",
    "of_ceiling",
]
"""Columns of a comparison's frame."""

TOP = (5, 10, 20, 50)


@dataclass(frozen=True)
class Comparison:
    """Two lists of heads, compared.

    Attributes:
        frame: one row a unit (head, kv_group), measure and set. `overlap` is shared over the smaller set, `jaccard`
            shared over the union; beside them the sizes, how many heads are `shared`, how many chance would share
            (`expected`) and the probability that it shares as many (`p`), for both nulls. `pearson` and `spearman` are
            over all heads, with a 95 % interval and the same columns from shuffles (`nulls.correlations`). `ceiling`
            and `of_ceiling` as in `reliability.ceiling`.
        heads: the heads in one set and not in the other: unit, set, only (a or b), component, layer, head or kv_head,
            score and rank on both sides.
    """

    a: str
    b: str
    method_a: str
    method_b: str
    frame: pd.DataFrame = field(repr=False)
    heads: pd.DataFrame = field(repr=False)

    def only(self, side: str, set: str | None = None, unit: str = "head") -> tuple[str, ...]:
        """Names of what is in one side's set alone, best first; default the first set."""
        own = self.heads[(self.heads["only"] == side) & (self.heads["unit"] == unit)]
        sets = self.frame[self.frame["unit"] == unit]["set"]
        return tuple(own[own["set"] == (set or next(iter(sets), None))]["component"])

    def value(self, measure: str, set: str = "all", unit: str = "head", column: str = "value") -> float:
        """One cell of `frame`."""
        at = self.frame
        row = at[(at["unit"] == unit) & (at["measure"] == measure) & (at["set"] == set)]
        if len(row) != 1:
            raise UsageError(f"there is no {measure} of '{set}' for unit {unit} in this comparison")
        return float(row[column].iloc[0])

    def as_dict(self) -> dict[str, Any]:
        """All of it as JSON-able data."""
        names = {"a": self.a, "b": self.b, "method_a": self.method_a, "method_b": self.method_b}
        return {**names, "rows": self.frame, "only": self.heads}


def compare(
    a: Source,
    b: Source,
    *,
    top: int | Sequence[int] | None = None,
    threshold: float | None = None,
    method: str | tuple[str, str] | None = None,
    kv_heads: int | None = None,
    names: tuple[str, str] | None = None,
    splits: int = 100,
    draws: int = DRAWS,
    seed: int = 0,
) -> Comparison:
    """Compare two lists of heads of one model, or of models of one shape.

    Args:
        top: sizes of the sets; default 5, 10, 20 and 50, as far as that is a quarter of the heads or less.
        threshold: compare also the heads that score at least this on each side.
        method: which score, or one for each side; default the primary ones.
        kv_heads: KV heads a layer, to compare KV groups too (each by its best head); known where a side says so.
        names: what the sides are called; default by file or locator.
        splits: seeded splits of the instances, for the ceiling; 0 leaves it out.
        draws: resamples and shuffles for the intervals and nulls of correlations; 0 leaves them out.

    Returns:
        a `Comparison`. Scores of KV heads (DuoAttention) are compared with KV groups. A list without scores is compared
        by its order, in sets up to its length.

    Raises:
        UsageError: models of different shapes, an unknown method, a set that holds every head.
    """
    ours, theirs = sides(a, b, method, names, kv_heads)
    frames, alone = [], []
    for unit, one, two in units(ours, theirs):
        total = one.total or two.total
        tops = _tops(top, total, [len(s.order) for s in (one, two) if s.grid is None])
        found, apart = _unit(unit, one, two, tops, threshold, draws, seed)
        known = _ceiling(one, two, unit, tops, threshold, splits, seed)
        if known is not None:
            found = found.drop(columns=["ceiling", "of_ceiling"]).merge(
                known, on=["measure", "set"], how="left"
            )
        frames.append(found[COLUMNS])
        alone.append(apart)
    return Comparison(
        ours.name,
        theirs.name,
        ours.method,
        theirs.method,
        pd.concat(frames, ignore_index=True),
        pd.concat(alone, ignore_index=True),
    )


def compare_methods(
    source: Source, *, top: int = 10, threshold: float | None = None, splits: int = 20, seed: int = 0
) -> pd.DataFrame:
    """All pairs of the scores of one locator, or of one table.

    Returns:
        one row an ordered pair, so that `frame.pivot(index="a", columns="b", values="overlap")` is a matrix: a, b, the
        set (top k, or the threshold where one is given), n_a, n_b, shared, overlap, jaccard, p, p_layers, pearson,
        spearman, ceiling and of_ceiling (of the overlap, where there are per-instance scores).
    """
    heads = as_heads(source)
    # Pairs are compared by head alone.
    heads = replace(heads, scores_=heads.scores_.drop(columns="kv_head", errors="ignore"))
    name = f"top {top}" if threshold is None else f"score >= {threshold:g}"
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for i, one in enumerate(heads.methods):
        for two in heads.methods[i:]:
            found = compare(
                heads,
                heads,
                top=top,
                threshold=threshold,
                method=(one, two),
                splits=splits,
                draws=0,
                seed=seed,
            )
            at = found.frame[found.frame["unit"] == "head"].set_index(["measure", "set"])
            overlap = at.loc[("overlap", name)]
            row = {k: overlap[k] for k in ("n_a", "n_b", "shared", "p", "p_layers", "ceiling", "of_ceiling")}
            row |= {"overlap": overlap["value"], "jaccard": at.loc[("jaccard", name), "value"]}
            row |= {k: at.loc[(k, "all"), "value"] for k in ("pearson", "spearman")}
            rows[one, two] = {"a": one, "b": two, "set": name, **row}
            rows[two, one] = {**rows[one, two], "a": two, "b": one, "n_a": row["n_b"], "n_b": row["n_a"]}
    first = [
        "a",
        "b",
        "set",
        "n_a",
        "n_b",
        "shared",
        "overlap",
        "jaccard",
        "p",
        "p_layers",
        "pearson",
        "spearman",
    ]
    ordered = [rows[one, two] for one in heads.methods for two in heads.methods]
    return pd.DataFrame(ordered)[[*first, "ceiling", "of_ceiling"]]


def compare_depth(
    a: Source,
    b: Source,
    *,
    share: float = 0.05,
    method: str | tuple[str, str] | None = None,
    names: tuple[str, str] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Do two models of different shapes keep their best heads at the same relative depth?

    Args:
        share: the best share of each model's heads that is compared.

    Returns:
        a, b, share, n_a, n_b, depth_a and depth_b (mean relative depth: 0 the first layer, 1 the last), distance
        (first Wasserstein distance between the depths), expected (its mean for random heads) and p (the share of 1000
        seeded draws of random heads, as many in each model, that are at least as close).
    """
    ours, theirs = sides(a, b, method, names, None, alike=False)
    if not 0 < share < 1:
        raise UsageError(f"share is {share}; it lies between 0 and 1")
    depths, every = [], []
    for side in (ours, theirs):
        if side.grid is None:
            raise UsageError(f"{side.name} is a list without scores, and of an unknown number of layers")
        layers, heads = side.grid.shape
        chosen = sets_of(side.grid.reshape(-1), [max(1, round(share * layers * heads))], None)
        at = np.repeat(np.arange(layers) / max(1, layers - 1), heads)
        depths.append(at[next(iter(chosen.values()))])
        every.append(at)
        if not len(depths[-1]):
            raise UsageError(f"the best {share:.1%} of the heads of {side.name} are tied; take another share")
    distance = float(stats.wasserstein_distance(*depths))
    rng = np.random.default_rng(stable_seed("depth", seed))
    null = np.array(
        [
            stats.wasserstein_distance(
                *(rng.choice(e, len(d), replace=False) for e, d in zip(every, depths, strict=True))
            )
            for _ in range(DRAWS)
        ]
    )
    return {
        "a": ours.name,
        "b": theirs.name,
        "share": share,
        "n_a": len(depths[0]),
        "n_b": len(depths[1]),
        "depth_a": float(depths[0].mean()),
        "depth_b": float(depths[1].mean()),
        "distance": distance,
        "expected": float(null.mean()),
        "p": float((1 + (null <= distance).sum()) / (1 + DRAWS)),
    }


def _tops(top: int | Sequence[int] | None, total: int, listed: list[int]) -> list[int]:
    if top is None:
        chosen = [k for k in TOP if 4 * k <= total] or [max(1, total // 4)]
        if listed:
            chosen = [k for k in chosen if k < min(listed)] + [min(listed)]
        return chosen
    chosen = [top] if isinstance(top, int) else sorted(set(top))
    most = min([total - 1, *listed])
    bad = next((k for k in chosen if not 1 <= k <= most), None)
    if bad is not None:
        raise UsageError(f"top {bad} was asked for, and sets of 1 to {most} can be compared here")
    return chosen


# -- one unit --------------------------------------------------------------------------------------------------------


def _sets(
    side: Side, shape: tuple[int, ...], tops: list[int], threshold: float | None
) -> dict[str, np.ndarray]:
    if side.grid is not None:
        return {k: m.reshape(shape) for k, m in sets_of(side.grid.reshape(-1), tops, threshold).items()}
    found = {}
    for k in tops:
        mask = np.zeros(shape, bool)
        mask[tuple(np.array(side.order[:k]).T)] = True
        found[f"top {k}"] = mask
    return found


def _unit(
    unit: str, one: Side, two: Side, tops: list[int], threshold: float | None, draws: int, seed: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    grid = one.grid if one.grid is not None else two.grid
    assert grid is not None
    in_a, in_b = (_sets(side, grid.shape, tops, threshold) for side in (one, two))
    rows: list[dict[str, Any]] = []
    apart: list[dict[str, Any]] = []
    for name in (n for n in in_a if n in in_b):
        a, b = in_a[name], in_b[name]
        sizes = {"n_a": int(a.sum()), "n_b": int(b.sum()), "shared": int((a & b).sum()), "n": grid.size}
        null = dict.fromkeys(("expected", "p", "expected_layers", "p_layers"), math.nan)
        values = shared(a.reshape(-1), b.reshape(-1))
        if sizes["n_a"] and sizes["n_b"]:
            null["expected"], null["p"] = hypergeometric(
                grid.size, sizes["n_a"], sizes["n_b"], sizes["shared"]
            )
            null["expected_layers"], null["p_layers"] = by_layer(a, b)
        for measure, value in zip(("overlap", "jaccard"), values, strict=True):
            rows.append({"unit": unit, "measure": measure, "set": name, "value": value, **sizes, **null})
        apart += _apart(unit, name, "a", a & ~b, one, two) + _apart(unit, name, "b", b & ~a, one, two)
    if one.grid is not None and two.grid is not None:
        found = correlations(one.grid, two.grid, draws=draws, seed=seed)
        rows += [{"unit": unit, "set": "all", "n": grid.size, **row} for row in found]
    columns = ["unit", "set", "only", "component", "layer", "head", "score_a", "score_b", "rank_a", "rank_b"]
    return pd.DataFrame(rows).reindex(columns=COLUMNS), pd.DataFrame(apart, columns=columns)


def _apart(unit: str, name: str, only: str, mask: np.ndarray, one: Side, two: Side) -> list[dict[str, Any]]:
    """The heads of a mask with both sides' scores and ranks (1 the best), best first on the side that has them."""
    rows = []
    for layer, head in zip(*np.nonzero(mask), strict=True):
        at = int(layer), int(head)
        row = {"unit": unit, "set": name, "only": only, "layer": at[0], "head": at[1]}
        row["component"] = f"L{at[0]}{'H' if unit == 'head' else 'KV'}{at[1]}"
        for letter, side in (("a", one), ("b", two)):
            row[f"score_{letter}"], row[f"rank_{letter}"] = _place(side, at)
        rows.append(row)
    return sorted(rows, key=lambda r: r[f"rank_{only}"])


def _place(side: Side, at: tuple[int, int]) -> tuple[float, float]:
    if side.grid is None:
        return math.nan, 1.0 + side.order.index(at) if at in side.order else math.nan
    score = float(side.grid[at])
    return score, 1.0 + int((side.grid > score).sum())


def _ceiling(
    one: Side, two: Side, unit: str, tops: list[int], threshold: float | None, splits: int, seed: int
) -> pd.DataFrame | None:
    if one.values is None or two.values is None or not splits or min(len(one.values), len(two.values)) < 2:
        return None
    found = ceiling(
        one.values,
        two.values,
        one.clusters,
        two.clusters,
        top=tops,
        threshold=threshold,
        kv_heads=one.kv_heads if unit == "kv_group" else None,
        splits=splits,
        seed=seed,
    )
    return found[["measure", "set", "ceiling", "of_ceiling"]]
