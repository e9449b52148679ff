"""Average indirect effects of many prompts, as sum over sum, with intervals over prompts and noise.

A ratio a prompt, IE / TE, explodes where the corruption hardly hurts; the ratio of sums does not. Intervals come from a
bootstrap in two stages: clusters of prompts are drawn with replacement, and for each copy of a prompt its draws of the
noise; IE and TE of a draw stay together.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float

from interp.errors import UsageError
from interp.intervene.tracing.places import PLACES
from interp.measure.stats import LEVEL
from interp.tasks.base import stable_seed

CELL = ["kind", "severed", "window", "corruption", "metric", "target", "layer", "place"]
"""What names an average, beside the groups that are asked for."""


def aggregate(
    maps: pd.DataFrame, by: Sequence[str] = (), *, n_resamples: int = 2000, seed: int = 0
) -> pd.DataFrame:
    """Average effects by layer and place of token.

    Prompts count alike: the tokens that one has of a place are averaged first.

    Args:
        maps: what `trace_maps` returns.
        by: columns whose values are averaged apart (the scenario, the relation).

    Returns:
        one row a group and cell: `by`, kind, severed, window, corruption, metric, target, layer, place, n (prompts),
        n_clusters, te and aie (means over prompts, in units of the metric), aie_lo, aie_hi, share (sum of IE over sum
        of TE), share_lo, share_hi. 95 % intervals; NaN for fewer than two clusters.

    Raises:
        UsageError: a column is missing.
    """
    if missing := [c for c in (*by, *CELL, "example", "cluster", "draw", "value") if c not in maps]:
        raise UsageError(
            f"aggregate: the table has no column {missing[0]!r}; it takes what trace_maps returns"
        )
    frame = maps.assign(ie=maps["value"] - maps["low"], te=maps["high"] - maps["low"])
    groups = frame.groupby(list(by), sort=False) if by else [((), frame)]
    parts = [
        _averages(part, n_resamples, seed).assign(**dict(zip(by, key, strict=True))) for key, part in groups
    ]
    out = pd.concat(parts, ignore_index=True)
    return out[
        [*by, *CELL, "n", "n_clusters", "te", "aie", "aie_lo", "aie_hi", "share", "share_lo", "share_hi"]
    ]


def _averages(frame: pd.DataFrame, n_resamples: int, seed: int) -> pd.DataFrame:
    unit = ["cluster", "example", "draw"]
    per = frame.groupby([*CELL, *unit], sort=False)[["ie", "te"]].mean()
    ie, te = (per[name].unstack(unit) for name in ("ie", "te"))
    ie = ie.sort_index(key=_place_order)
    te = te.loc[ie.index, ie.columns]
    weights = resamples(ie.columns, n_resamples, seed)
    there = ie.notna().to_numpy(float)
    ies, tes = ie.fillna(0.0).to_numpy(), te.fillna(0.0).to_numpy()
    count, sum_ie, sum_te = (
        weights @ x.T for x in (there, ies, tes)
    )  # (1 + resamples) x cells; the first is the data
    with np.errstate(invalid="ignore", divide="ignore"):
        aie = sum_ie / count
        share = np.where(np.abs(sum_te) > 1e-9, sum_ie / sum_te, np.nan)
    clusters = ie.columns.get_level_values("cluster")
    out = ie.index.to_frame(index=False)
    examples = ie.notna().T.groupby(level="example").any().sum()
    out["n"] = examples.to_numpy(int)
    out["n_clusters"] = [len(set(clusters[row > 0])) for row in there]
    out["te"] = sum_te[0] / count[0]
    for name, values in (("aie", aie), ("share", share)):
        out[name] = values[0]
        edges = _edges(values[1:])
        out[f"{name}_lo"], out[f"{name}_hi"] = np.where(out["n_clusters"] > 1, edges, np.nan)
    return out


def _edges(values: Float[np.ndarray, "b c"]) -> Float[np.ndarray, "2 c"]:
    """The percentile interval of each column, over the resamples that hold it."""
    tail = 100 * (1 - LEVEL) / 2
    edges = np.full((2, values.shape[1]), np.nan)
    told = ~np.isnan(values).all(0)
    edges[:, told] = np.nanpercentile(values[:, told], [tail, 100 - tail], axis=0)
    return edges


def resamples(units: pd.MultiIndex, n_resamples: int, seed: int) -> Float[np.ndarray, "b u"]:
    """Weight of each prompt's each draw: in the data (first row), and in each resample.

    Args:
        units: with the levels cluster, example and draw.
    """
    rng = np.random.default_rng(stable_seed("aggregate", seed))
    table = units.to_frame(index=False)
    names, cluster = np.unique(table["cluster"].to_numpy(), return_inverse=True)
    copies = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=n_resamples)
    out = np.zeros((1 + n_resamples, len(table)))
    for _, rows in table.groupby("example", sort=False):
        at = rows.index.to_numpy()
        draws = len(at)
        out[0, at] = 1 / draws
        out[1:, at] = rng.multinomial(copies[:, cluster[at[0]]] * draws, np.full(draws, 1 / draws)) / draws
    return out


def _place_order(values: pd.Index) -> pd.Index:
    return values.map(PLACES.index) if values.name == "place" else values
