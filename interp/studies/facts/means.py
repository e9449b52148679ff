"""Means of many features over prompts of several scenarios, in the data and in resamples of whole subjects.

One set of resamples serves all features and scenarios, so every statistic of means (a difference, a ratio, a centre,
the layer of a peak) gets its interval from the same draws: two stages, subjects first, then draws of the noise. A
subject that is in two scenarios is drawn in both.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float

from interp.intervene.tracing.aggregate import resamples
from interp.measure.stats import LEVEL

UNIT = ["scenario", "cluster", "example", "draw"]

Told = Float[np.ndarray, " b"]
"""A number in the data (first) and in each resample."""


class Means:
    """Means of features by scenario.

    Args:
        rows: the columns `UNIT`, feature (any hashable) and value, one row a unit and feature.
        window: layers of the windows of sublayers that features are of.
    """

    def __init__(self, rows: pd.DataFrame, n_resamples: int, seed: int, window: int = 1):
        self.window = window
        wide = rows.pivot(index=UNIT, columns="feature", values="value")
        self.features: dict[Hashable, int] = {name: i for i, name in enumerate(wide.columns)}
        index = wide.index.to_frame(index=False)
        self._scenario = index["scenario"].to_numpy()
        self.scenarios = list(dict.fromkeys(self._scenario))
        self.clusters = {s: index["cluster"][self._scenario == s].nunique() for s in self.scenarios}
        self.examples = {s: index["example"][self._scenario == s].nunique() for s in self.scenarios}
        # Prompts are numbered within their scenario.
        index["example"] = index["scenario"] + " " + index["example"].astype(str)
        units = pd.MultiIndex.from_frame(index[["cluster", "example", "draw"]])
        self._weights = resamples(units, n_resamples, seed)
        self._values = wide.to_numpy(float)
        self._made: dict[str, np.ndarray] = {}

    def __call__(self, scenario: str, feature: Hashable) -> Told:
        """The mean of a feature over the units of a scenario that have it."""
        if scenario not in self._made:
            own = self._scenario == scenario
            weights, values = self._weights[:, own], self._values[own]
            there = ~np.isnan(values)
            with np.errstate(invalid="ignore", divide="ignore"):
                self._made[scenario] = (weights @ np.nan_to_num(values)) / (weights @ there)
        out: np.ndarray = self._made[scenario][:, self.features[feature]]
        return out

    def over(self, scenario: str, features: Sequence[Hashable]) -> Float[np.ndarray, "b f"]:
        """Means of several features; none gives no column."""
        if not features:
            return np.zeros((len(self._weights), 0))
        return np.stack([self(scenario, f) for f in features], axis=1)

    def ends(self, scenarios: str | Sequence[str], told: Told) -> tuple[float, float, float]:
        """A number with its 95 % interval; no interval where a scenario that it is of has fewer than two subjects."""
        of = [scenarios] if isinstance(scenarios, str) else scenarios
        tail = 100 * (1 - LEVEL) / 2
        rest = told[1:][~np.isnan(told[1:])]
        if np.isnan(told[0]) or not len(rest) or min(self.clusters[s] for s in of) < 2:
            return float(told[0]), float("nan"), float("nan")
        lo, hi = np.percentile(rest, [tail, 100 - tail])
        return float(told[0]), float(lo), float(hi)
