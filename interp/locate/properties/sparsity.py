"""Sparse: how few heads hold the score, beside heads that are exchangeable."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from interp.errors import UsageError
from interp.locate.properties.base import (
    ByCluster,
    Property,
    frame_of,
    instance_scores,
    interval,
    ranged,
    row,
)
from interp.locate.retrieval_heads import THRESHOLD, RetrievalHeads

RESAMPLES = 1000
DRAWS = 999
TOP = (0.01, 0.05, 0.1)
"""Shares of the heads whose part of the total score is told."""


def sparse(
    heads: RetrievalHeads,
    method: str | None = None,
    *,
    threshold: float = THRESHOLD,
    subject: str = "",
    seed: int = 0,
) -> Property:
    """How concentrated a score is on few heads.

    Statistics: the share of heads that score `threshold` or more, and 0.5 or more; the share of exact zeros; the Gini
    coefficient; the part of the total that the top 1, 5 and 10 % hold (the number of heads rounded up). Intervals
    resample clusters. A head of exact zero copied in no instance at all: the share falls with the number of instances
    and has no interval. The Gini coefficient of a resample is a little higher than that of the data, for resampling
    adds spread. The null exchanges the heads anew in each cluster (`ByCluster.exchanged`); it says how concentrated
    the mean would be if each instance were as sparse as it is, but in heads of its own. p is the share of 999 such
    draws that are at least as concentrated.

    Args:
        heads: a fitted locator.
        method: which of its scores; default the one that ranks.
        threshold: score from which a head counts.
        subject: name of the model in the tables and the sentence.

    Returns:
        the property; table `ranked` has one row a head, best first: component, layer, head, rank, share (rank over all
        heads), score, mass (part of the total down to this rank), null_lo, null, null_hi (the same of the null).

    Raises:
        UsageError: the locator is not fitted, or the score takes negative values, which have no total to share.
    """
    method, values, clusters = instance_scores(heads, method)
    data = ByCluster.of(values, clusters)
    found = statistics(data.mean[None], threshold)
    if (data.mean < 0).any():
        raise UsageError(f"sparse is about scores that are never negative; '{method}' has negative means")
    resampled = statistics(data.resampled(RESAMPLES, seed), threshold)
    exchanged_means = data.exchanged(DRAWS, seed)
    exchanged = statistics(exchanged_means, threshold)
    labels: dict[str, Any] = {"subject": subject, "n": len(values), "n_clusters": len(data.counts)}
    rows = []
    for name, value in found.items():
        ci = interval(resampled[name]) if name != "share_zero" else (math.nan, math.nan)
        rows.append(row(name, value[0], ci, exchanged[name], **labels))
        if name.startswith("share_over"):
            rows[-1]["p"] = math.nan  # more heads over a threshold are neither more nor less concentrated
    frame = frame_of(rows)
    return Property("sparse", _summary(frame, method, threshold, subject, data), frame, {
        "ranked": _ranked(heads, method, data.mean, exchanged_means),
    })  # fmt: skip


def statistics(
    means: Float[np.ndarray, "r heads"], threshold: float = THRESHOLD
) -> dict[str, Float[np.ndarray, " r"]]:
    """The statistics of `sparse` for each row of mean scores.

    >>> found = statistics(np.array([[0.0, 0.0, 0.0, 1.0]]))
    >>> {name: value[0].item() for name, value in found.items()}
    {'share_over_0.1': 0.25, 'share_over_0.5': 0.25, 'share_zero': 0.75, 'gini': 0.75, 'mass_top_1%': 1.0,
     'mass_top_5%': 1.0, 'mass_top_10%': 1.0}
    """
    out = {f"share_over_{level:g}": (means >= level).mean(1) for level in dict.fromkeys((threshold, 0.5))}
    out["share_zero"] = (means == 0).mean(1)
    out["gini"] = gini(means)
    mass = masses(means)
    for share in TOP:
        out[f"mass_top_{100 * share:g}%"] = mass[:, math.ceil(share * means.shape[1]) - 1]
    return out


def gini(means: Float[np.ndarray, "r heads"]) -> Float[np.ndarray, " r"]:
    """Gini coefficient of each row: 0 where all heads score alike, 1 - 1/heads where one has all; NaN for all zeros."""
    n = means.shape[1]
    rising = np.sort(means, axis=1)
    total = _or_nan(rising.sum(1))
    out: np.ndarray = 2 * (rising * np.arange(1, n + 1)).sum(1) / (n * total) - (n + 1) / n
    return out


def masses(means: Float[np.ndarray, "r heads"]) -> Float[np.ndarray, "r heads"]:
    """Part of the total score that the best heads hold, down to each rank; NaN for all zeros."""
    falling = -np.sort(-means, axis=1)
    out: np.ndarray = falling.cumsum(1) / _or_nan(falling.sum(1))[:, None]
    return out


def _or_nan(total: np.ndarray) -> np.ndarray:
    return np.where(total > 0, total, np.nan)


def _ranked(heads: RetrievalHeads, method: str, mean: np.ndarray, exchanged: np.ndarray) -> pd.DataFrame:
    own = heads.scores_[heads.scores_["method"] == method].reset_index(drop=True)
    order = np.argsort(-mean, kind="stable")
    out = own.loc[order, ["component", "layer", "head"]].reset_index(drop=True)
    out["rank"] = np.arange(1, len(mean) + 1)
    out["share"] = out["rank"] / len(mean)
    out["score"] = mean[order]
    out["mass"] = masses(mean[None])[0]
    null = masses(exchanged)
    bounds = np.quantile(null, [0.025, 0.5, 0.975], axis=0) if len(null) else np.full((3, len(mean)), np.nan)
    out["null_lo"], out["null"], out["null_hi"] = bounds
    return out


def _summary(frame: pd.DataFrame, method: str, threshold: float, subject: str, data: ByCluster) -> str:
    at = frame.set_index("statistic")
    total = data.sums.shape[1]
    over, zero = at.loc[f"share_over_{threshold:g}"], at.loc["share_zero"]
    concentration, top = at.loc["gini"], at.loc["mass_top_5%"]
    null = "" if math.isnan(concentration["null"]) else f", exchangeable heads {concentration['null']:.2f}"
    null_top = "" if math.isnan(top["null"]) else f", exchangeable heads {100 * top['null']:.0f} %"
    return (
        f"{subject + ': ' if subject else ''}{round(over['value'] * total)} of {total} heads, "
        f"{ranged(over['value'], over['ci_lo'], over['ci_hi'], 1, 100, ' %')}, score {threshold:g} or more on {method} "
        f"and {round(zero['value'] * total)} ({100 * zero['value']:.1f} %) exactly 0 in {int(over['n'])} instances; "
        f"Gini {ranged(concentration['value'], concentration['ci_lo'], concentration['ci_hi'])}{null}; the top 5 % "
        f"hold {ranged(top['value'], top['ci_lo'], top['ci_hi'], 0, 100, ' %')} of the total score{null_top}."
    )
