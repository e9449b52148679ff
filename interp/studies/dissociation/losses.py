"""Losses of cuts with their intervals: every number of a task is told over the same resamples of its clusters.

So what is paired stays paired: two cuts of one task, a cut and its controls, a gap between two tasks and the same gap
under another cut. Control sets are drawn anew in each resample, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from interp.measure.stats import LEVEL
from interp.tasks.base import stable_seed

RESAMPLES = 2000
METRICS = ("accuracy", "probability", "nll")

Draws = Float[np.ndarray, " b"]
"""A number of the data, and then of each resample."""


@dataclass(frozen=True, eq=False)
class Sample:
    """Clusters of a task's examples in the data (row 0) and in each resample.

    Attributes:
        weights: of each example; a row the data, and a row each resample.
    """

    weights: Float[np.ndarray, "b n"]

    @classmethod
    def of(cls, clusters: Sequence[str], *seed: Any) -> Sample:
        """Resamples of the clusters; equal clusters and seeds give equal ones."""
        names, at = np.unique(np.asarray(clusters), return_inverse=True)
        rng = np.random.default_rng(stable_seed("losses", *seed))
        copies = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=RESAMPLES)
        return cls(np.vstack([np.ones(len(at)), copies[:, at]]))

    def loss(
        self, clean: Float[np.ndarray, " n"], cut: Float[np.ndarray, " n"], metric: str
    ) -> tuple[Draws, float, float]:
        """The loss over the resamples, and the means, intact and cut."""
        there = ~(np.isnan(clean) | np.isnan(cut))
        w = self.weights[:, there]
        before, after = w @ clean[there], w @ cut[there]
        with np.errstate(invalid="ignore", divide="ignore"):
            if metric == "nll":
                loss = (after - before) / w.sum(1)
            else:
                loss = np.where(before > 1e-9, 1 - after / before, np.nan)
        return loss, float(clean[there].mean()), float(cut[there].mean())


def over_sets(losses: Sequence[Draws], *seed: Any) -> Draws:
    """Mean over control sets, which are drawn with replacement in each resample."""
    stacked = np.stack(losses)
    rng = np.random.default_rng(stable_seed("control sets", *seed))
    n = len(stacked)
    copies = rng.multinomial(n, np.full(n, 1 / n), size=stacked.shape[1] - 1).T
    copies = np.hstack([np.ones((n, 1)), copies])
    out: np.ndarray = (stacked * copies).sum(0) / n
    return out


def interval(draws: Draws, clusters: int = 2) -> tuple[float, float]:
    """The 95 % interval over the resamples; NaN for fewer than two clusters."""
    told = draws[1:][~np.isnan(draws[1:])]
    if clusters < 2 or not len(told):
        return float("nan"), float("nan")
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(told, [tail, 100 - tail])
    return float(low), float(high)


def told(name: str, draws: Draws, clusters: int = 2) -> dict[str, float]:
    """A number as a table has it: itself, `_lo` and `_hi`."""
    low, high = interval(draws, clusters)
    return {name: float(draws[0]), f"{name}_lo": low, f"{name}_hi": high}


def above(row: dict[str, Any] | pd.Series, name: str) -> bool:
    """Whether the whole interval of a number lies above zero."""
    return bool(row[f"{name}_lo"] > 0)
