"""What a measured property is, and what the five of them share: scores by cluster, resamples, exchangeable heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from interp.errors import UsageError
from interp.locate.retrieval_heads import RetrievalHeads
from interp.tasks.base import stable_seed

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from interp.plot.theme import Width

LEVEL = 0.95
COLUMNS = [
    "subject",
    "statistic",
    "value",
    "ci_lo",
    "ci_hi",
    "null",
    "null_lo",
    "null_hi",
    "p",
    "n",
    "n_clusters",
]


@dataclass(frozen=True, eq=False)
class Property:
    """One property, measured.

    Attributes:
        name: `sparse`, `universal`, `intrinsic`, `dynamic` or `causal`.
        summary: one sentence that states numbers and no verdict.
        frame: one row a statistic: subject, statistic, value, ci_lo, ci_hi (95 %), null, null_lo, null_hi (what the
            null gives on average, and the middle 95 % of it), p, n, n_clusters. NaN where there is none.
        tables: what the statistics were made of, by name; the figure draws them.
    """

    name: str
    summary: str
    frame: pd.DataFrame
    tables: Mapping[str, pd.DataFrame] = field(default_factory=dict)

    def value(self, statistic: str, subject: str | None = None) -> float:
        """One number of the frame.

        Raises:
            UsageError: there is no such statistic.
        """
        rows = self.frame[self.frame["statistic"] == statistic]
        rows = rows if subject is None else rows[rows["subject"] == subject]
        if rows.empty:
            raise UsageError(
                f"{self.name} has no statistic '{statistic}'; it has {', '.join(self.frame['statistic'].unique())}"
            )
        return float(rows["value"].iloc[0])

    def figure(self, *, width: Width = "double") -> go.Figure:
        """The property drawn: `interp.plot.properties`, by the name of the property."""
        from interp.plot import properties

        draw: Any = getattr(properties, self.name)
        return draw(self.frame, **self.tables, width=width)

    def __repr__(self) -> str:
        return f"Property({self.name}: {self.summary})"


@dataclass(frozen=True, eq=False)
class ByCluster:
    """Scores of all heads added up within each cluster of instances: all that resampling of clusters needs.

    Attributes:
        sums: cluster head.
        counts: instances of each cluster.
    """

    sums: Float[np.ndarray, "g heads"]
    counts: Float[np.ndarray, " g"]

    @classmethod
    def of(cls, values: Float[np.ndarray, "n l h"], clusters: Sequence[str]) -> ByCluster:
        """Sums of instance scores by the cluster of each instance."""
        names, at = np.unique(np.asarray(clusters), return_inverse=True)
        sums = np.zeros((len(names), values.shape[1] * values.shape[2]))
        np.add.at(sums, at, values.reshape(len(values), -1))
        return cls(sums, np.bincount(at).astype(float))

    @property
    def mean(self) -> Float[np.ndarray, " heads"]:
        """Mean score of each head over all instances."""
        out: np.ndarray = self.sums.sum(0) / self.counts.sum()
        return out

    def resampled(self, n: int, seed: int) -> Float[np.ndarray, "r heads"]:
        """Means when whole clusters are drawn with replacement, `n` times; no row where there are fewer than two."""
        g = len(self.counts)
        if g < 2:
            return np.zeros((0, self.sums.shape[1]))
        rng = np.random.default_rng(stable_seed("properties", "resample", seed))
        drawn = rng.multinomial(g, np.full(g, 1 / g), size=n).astype(float)
        out: np.ndarray = (drawn @ self.sums) / (drawn @ self.counts)[:, None]
        return out

    def exchanged(self, n: int, seed: int) -> Float[np.ndarray, "r heads"]:
        """Means when the heads trade places anew in each cluster, `n` times: every instance stays as sparse as it is.

        Within a cluster all instances are permuted alike, for they are no independent witnesses of which heads copy.
        No row where there are fewer than two clusters, for nothing then mixes.
        """
        if len(self.counts) < 2:
            return np.zeros((0, self.sums.shape[1]))
        rng = np.random.default_rng(stable_seed("properties", "exchange", seed))
        rows = [rng.permuted(self.sums, axis=1).sum(0) for _ in range(n)]
        out: np.ndarray = np.stack(rows) / self.counts.sum()
        return out


def instance_scores(heads: RetrievalHeads, method: str | None) -> tuple[str, np.ndarray, list[str]]:
    """Name of the score, its values by accepted instance, and the cluster of each.

    Raises:
        UsageError: the locator is not fitted, or has no such score by instance.
    """
    if not hasattr(heads, "per_instance_"):
        raise UsageError("the locator is not fitted yet; call fit(model, task) first")
    chosen = method or heads.method
    if chosen not in heads.per_instance_:
        raise UsageError(f"no score '{chosen}' by instance; the locator has {', '.join(heads.per_instance_)}")
    accepted = heads.instances_[heads.instances_["accepted"].astype(bool)]
    names = [c or f"example {e}" for c, e in zip(accepted["cluster"], accepted["example"], strict=True)]
    return chosen, heads.per_instance_[chosen], names


def interval(draws: np.ndarray) -> tuple[float, float]:
    """Middle 95 % of draws, NaN aside; NaN where there are none."""
    kept = draws[~np.isnan(draws)]
    if not len(kept):
        return float("nan"), float("nan")
    low, high = np.quantile(kept, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def row(
    statistic: str,
    value: float,
    ci: tuple[float, float] = (np.nan, np.nan),
    null: np.ndarray | None = None,
    *,
    more: bool = True,
    **labels: Any,
) -> dict[str, Any]:
    """A row of a property's frame.

    Args:
        null: draws of the null; `p` is the share of them that reach the value, counting the value itself as one.
        more: whether a draw reaches the value from above (else from below).
    """
    out: dict[str, Any] = dict.fromkeys(COLUMNS, np.nan)
    out |= {
        "subject": "",
        "statistic": statistic,
        "value": float(value),
        "ci_lo": ci[0],
        "ci_hi": ci[1],
        **labels,
    }
    kept = null[~np.isnan(null)] if null is not None else np.zeros(0)
    if len(kept):
        low, high = interval(kept)
        out |= {"null": float(kept.mean()), "null_lo": low, "null_hi": high}
        # Means are added up in another order under the null: equal numbers may differ in the last bits.
        reached = kept >= value - 1e-12 if more else kept <= value + 1e-12
        out["p"] = float((1 + reached.sum()) / (1 + len(kept)))
    return out


def frame_of(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Rows as the frame of a property."""
    return pd.DataFrame(rows)[COLUMNS]


def ranged(value: float, low: float, high: float, digits: int = 2, scale: float = 1.0, unit: str = "") -> str:
    """A value with its interval where it has one: `0.91 (0.90 to 0.93)`.

    >>> ranged(0.063, 0.041, 0.085, 1, 100, " %"), ranged(0.5, float("nan"), float("nan"))
    ('6.3 % (4.1 to 8.5)', '0.50')
    """
    text = f"{scale * value:.{digits}f}{unit}"
    if np.isnan(low) or np.isnan(high):
        return text
    return f"{text} ({scale * low:.{digits}f} to {scale * high:.{digits}f})"
