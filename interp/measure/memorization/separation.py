"""How well a signal tells memorized prompts from others: AUC and the hit rate at few false alarms, with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy import optimize, stats

from interp.errors import UsageError
from interp.measure.stats import LEVEL, proportion_ci


def separation(
    positive: Float[np.ndarray, " n"],
    negative: Float[np.ndarray, " m"],
    *,
    clusters: tuple[Sequence[Any], Sequence[Any]] | None = None,
    sign: int = 1,
    fpr: float = 0.01,
    seed: int = 0,
    resamples: int = 2000,
) -> dict[str, float]:
    """AUC and true-positive rate of a signal.

    Args:
        positive, negative: its values for memorized and for other samples.
        clusters: the prompt of each positive and of each negative value; default: each stands for itself.
        sign: 1 where more means memorized, -1 where less does.
        fpr: share of the negatives that may be called memorized.

    Returns:
        auc (ties count half), auc_lo, auc_hi (95 %: prompts of both sides are resampled; where no resample differs,
        Newcombe's interval (2006, method 5) with the prompts as the trials), tpr (at `fpr` or fewer false positives),
        tpr_lo, tpr_hi (prompts are the clusters, the threshold is taken as given), threshold (a value beyond it is
        called memorized), n_positive, n_negative, and prompts_positive, prompts_negative.

    Raises:
        UsageError: no values on one side, NaN among them, or clusters of another number.
    """
    a, b = sign * np.asarray(positive, float), sign * np.asarray(negative, float)
    if not len(a) or not len(b) or np.isnan(a).any() or np.isnan(b).any():
        raise UsageError(
            "separation needs values of memorized and of other samples, and none that is missing"
        )
    own, other = clusters if clusters is not None else (range(len(a)), range(len(b)))
    if len(own) != len(a) or len(other) != len(b):
        raise UsageError("separation: give each value its cluster")
    first, second = (np.unique(np.asarray(c), return_inverse=True)[1] for c in (own, other))
    p, q = first.max() + 1, second.max() + 1
    wins = (a[:, None] > b[None]) + 0.5 * (a[:, None] == b[None])
    sums = np.zeros((p, q))
    np.add.at(sums, (first[:, None], second[None]), wins)
    sizes = np.bincount(first).astype(float), np.bincount(second).astype(float)
    auc = float(wins.mean())
    rng = np.random.default_rng(seed)
    weights = [rng.multinomial(k, np.full(k, 1 / k), size=resamples).astype(float) for k in (p, q)]
    found = np.einsum("rp,pq,rq->r", weights[0], sums, weights[1]) / (
        (weights[0] @ sizes[0]) * (weights[1] @ sizes[1])
    )
    low, high = np.quantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    if np.ptp(found) < 1e-12:
        low, high = newcombe(auc, int(p), int(q))
    allowed = int(fpr * len(b) + 1e-9)
    threshold = float(np.sort(b)[::-1][allowed]) if allowed < len(b) else -np.inf
    hits = (a > threshold).astype(float)
    tpr_low, tpr_high = proportion_ci(hits, np.asarray(own))
    return {
        "auc": auc,
        "auc_lo": float(low),
        "auc_hi": float(high),
        "tpr": float(hits.mean()),
        "tpr_lo": tpr_low,
        "tpr_hi": tpr_high,
        "threshold": sign * threshold,
        "n_positive": len(a),
        "n_negative": len(b),
        "prompts_positive": int(p),
        "prompts_negative": int(q),
    }


def newcombe(auc: float, n: int, m: int) -> tuple[float, float]:
    """95 % interval of an AUC from n positives and m negatives, that stays an interval at 0 and 1.

    Wilson's idea with the variance of Hanley and McNeil under exponential scores (Newcombe 2006, Stat. Med. 25).
    """
    z = stats.norm.ppf((1 + LEVEL) / 2)

    def off(theta: float) -> float:
        spread = (n + m) / 2 - 1
        variance = (
            theta * (1 - theta) * (1 + spread * ((1 - theta) / (2 - theta) + theta / (1 + theta))) / (n * m)
        )
        return float((theta - auc) ** 2 - z**2 * variance)

    # At the AUC itself the difference is negative, but for 0 and 1, where it is a second root: step off them.
    low = optimize.brentq(off, 1e-12, min(auc, 1 - 1e-9)) if auc > 1e-6 else 0.0
    high = optimize.brentq(off, max(auc, 1e-9), 1 - 1e-12) if auc < 1 - 1e-6 else 1.0
    return float(low), float(high)
