"""How well a ranking of neurons finds those that are known to hold a sequence: recall at k, by layer, beside chance.

A locator's `scores_` (one row a unit: `part`, `unit`, `score`) is held against the units of `inject`. Ties are broken
at random in expectation, so that a method that gives most units the same score is not helped by their order. What a
uniform ranking recalls is k / n. Units of resampling are the injections.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from interp.errors import NoAcceptedExample, UsageError
from interp.measure.stats import bootstrap_ci
from interp.tasks.base import stable_seed

ALL = "all"
"""Part of the rows in which the units of all parts are ranked together."""

SHARES = (0.01, 0.02, 0.05, 0.1)
"""Shares of the units that are taken from the top."""


def recall_at_k(
    scores: pd.DataFrame,
    units: Mapping[Any, Sequence[int]],
    *,
    shares: Sequence[float] = SHARES,
    method: str | None = None,
) -> pd.DataFrame:
    """Recall of known units among the top of a ranking, in each part and over all parts together.

    Args:
        scores: one row a unit, as a locator's `scores_`; more is more responsible, and NaN ranks last.
        units: the known units, by part or its name (`Injected.units`).
        shares: the top k are this share of the units, at least one. A further row has k = the number of known units
            (`share` is NaN in it).
        method: rows of `scores` with this `method`; needed where it has several.

    Returns:
        one row a part (and `all`) and k: part, k, share, known, units (how many there are), recall, chance (k / units)
        and auc (of known against other units; 0.5 is chance).

    Raises:
        UsageError: no scores of a part, a unit that has none, several methods, or a share outside 0 to 1.
    """
    if any(not 0 < s <= 1 for s in shares):
        raise UsageError(f"shares {list(shares)}: each is above 0 and at most 1")
    frame = _of_method(scores, method)
    known = {str(part): {int(u) for u in list(numbers)} for part, numbers in units.items()}
    by_part = {str(part): rows for part, rows in frame.groupby("part", sort=False)}
    out: list[dict[str, Any]] = []
    pooled: list[tuple[np.ndarray, np.ndarray]] = []
    for part, numbers in known.items():
        rows = by_part.get(part)
        if rows is None or not numbers <= set(rows["unit"]) or rows["unit"].duplicated().any():
            raise UsageError(
                f"the scores have not each unit of {part} once; hand over those of a locator that was fitted to all "
                "parts that were injected into"
            )
    for part, rows in by_part.items():
        values = rows["score"].fillna(-np.inf).to_numpy(float)
        truth = rows["unit"].isin(known.get(part, set())).to_numpy()
        pooled.append((values, truth))
        if part in known:
            out += _rows(part, values, truth, shares)
    every = np.concatenate([v for v, _ in pooled]), np.concatenate([t for _, t in pooled])
    return pd.DataFrame([*out, *_rows(ALL, *every, shares)])


def _of_method(scores: pd.DataFrame, method: str | None) -> pd.DataFrame:
    if "method" not in scores:
        return scores
    have = list(scores["method"].unique())
    if method is None and len(have) > 1:
        raise UsageError(
            f"the scores are of several methods; write method= one of {', '.join(map(str, have))}"
        )
    if method is not None and method not in have:
        raise UsageError(f"no scores of method '{method}'; there are {', '.join(map(str, have))}")
    return scores if method is None else scores[scores["method"] == method]


def _rows(part: str, values: np.ndarray, truth: np.ndarray, shares: Sequence[float]) -> list[dict[str, Any]]:
    n, known = len(values), int(truth.sum())
    ranks = rankdata(values)
    # Mann and Whitney's count, ties as halves.
    wins = float(ranks[truth].sum()) - known * (known + 1) / 2
    auc = wins / (known * (n - known)) if known < n else np.nan
    sizes = [(known, np.nan), *((max(1, round(share * n)), share) for share in shares)]
    return [
        {
            "part": part,
            "k": k,
            "share": share,
            "known": known,
            "units": n,
            "recall": expected_recall(values, truth, k),
            "chance": k / n,
            "auc": auc,
        }
        for k, share in sizes
    ]


def expected_recall(values: np.ndarray, truth: np.ndarray, k: int) -> float:
    """Share of the true units among the `k` of most value, in expectation over random orders of equal values."""
    edge = np.partition(values, len(values) - k)[len(values) - k]
    above, tied = values > edge, values == edge
    taken = (k - above.sum()) / tied.sum()
    return float((truth & above).sum() + taken * (truth & tied).sum()) / float(truth.sum())


def recovery(
    tables: Mapping[str, pd.DataFrame], *, by: Sequence[str] = ("part", "share"), seed: int = 0
) -> pd.DataFrame:
    """Recall averaged over injections, with intervals.

    Args:
        tables: rows of `recall_at_k` of each injection, by the name of its sequence; more columns (`method`) may be
            there and be named in `by`.
        by: what rows are told apart by.
        seed: of the resampling.

    Returns:
        one row each: `by`, recall, ci_lo, ci_hi (95 %, injections resampled), chance, auc, n (injections).

    Raises:
        NoAcceptedExample: there is no table.
    """
    if not tables:
        raise NoAcceptedExample("there is no injection to average recall over")
    every = pd.concat([table.assign(injection=name) for name, table in tables.items()], ignore_index=True)
    out = []
    for keys, rows in every.groupby(list(by), sort=False, dropna=False):
        values, names = rows["recall"].to_numpy(float), rows["injection"].to_numpy()
        entropy = stable_seed("recovery", seed, [str(k) for k in keys])[0]
        low, high = bootstrap_ci(values, names, seed=entropy)
        out.append(
            {
                **dict(zip(by, keys, strict=True)),
                "recall": values.mean(),
                "ci_lo": low,
                "ci_hi": high,
                "chance": rows["chance"].mean(),
                "auc": rows["auc"].mean(),
                "n": rows["injection"].nunique(),
            }
        )
    return pd.DataFrame(out)
