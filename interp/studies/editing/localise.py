"""Where a trace finds facts, and whether they are written better there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from jaxtyping import Float

from interp.intervene.trace import How, trace_maps
from interp.intervene.tracing.places import LAST_OF
from interp.measure.edit_layers import against_effects
from interp.measure.edits import EditRecord
from interp.measure.metrics import divergence
from interp.measure.outcomes import Progress
from interp.models.subject import CausalLM
from interp.tasks.base import Example, stable_seed

KINDS = ("mlp_out", "resid_post")
CORRUPTIONS = ("noise", "subject_swap")
METRICS = ("probability", "logit_diff")
PERMUTATIONS = 999
RESAMPLES = 2000

TRACE = ["trace", "corruption", "metric"]
"""What names a trace."""


def traced(
    subject: CausalLM,
    examples: Sequence[Example],
    records: Sequence[EditRecord],
    layers: Sequence[int],
    corruption: str,
    samples: int,
    seed: int,
    report: Progress | None,
) -> pd.DataFrame:
    """Effects of restoring one layer at the subject's last token, on what the edit is judged by too: the token at which
    the true answer and the new one part.

    Returns:
        one row a record, layer, kind and metric: record, relation, layer, kind, corruption, metric, te, effect (both in
        units of the metric), share (effect over te).
    """
    how = How(
        kinds=KINDS,
        corruption=(corruption,),
        samples=samples,
        layers=tuple(layers),
        places=(LAST_OF,),
        metrics=METRICS,
        seed=seed,
    )
    at = [divergence(r.rewrite.target, r.rewrite.true) for r in records]
    asked = [replace(e, meta={**e.meta, "score_at": i}) for e, i in zip(examples, at, strict=True)]
    maps = trace_maps(subject, asked, how, progress=report)
    cell = ["example", "layer", "kind", "corruption", "metric"]
    frame = maps.assign(effect=maps["value"] - maps["low"], te=maps["high"] - maps["low"])
    out = frame.groupby(cell, sort=False)[["te", "effect"]].mean().reset_index()
    out["share"] = out["effect"] / out["te"].where(out["te"].abs() > 1e-9)
    out.insert(0, "record", [records[i].name for i in out["example"]])
    out.insert(1, "relation", [records[i].relation for i in out["example"]])
    return out.drop(columns="example")


def agreement(scan: pd.DataFrame, effects: pd.DataFrame, *, seed: int) -> pd.DataFrame:
    """`against_effects` of every trace, and how often shuffled records explain as much.

    Returns:
        one row a trace and kind of prompt: trace (what was restored), corruption, metric, the columns of
        `against_effects` for the magnitude after the edit, gain_lo and gain_hi (of the gain, records resampled: 95 %;
        few records gain by chance, so both ends lie too high) and p (of the gain: which record has which effects is
        shuffled, layers stay). Records that lack a layer are left out of these three.
    """
    after = scan[scan["state"] == "after"]
    parts = []
    for key, part in effects.rename(columns={"kind": "trace"}).groupby(TRACE, sort=False):
        found = against_effects(scan, part)
        wide = part.pivot(index="record", columns="layer", values="effect").dropna()
        ps, ends = [], []
        for kind in found["kind"]:
            own = after[after["kind"] == kind]
            values = own.pivot_table(index="record", columns="layer", values="magnitude")
            both = values.index.intersection(wide.index)
            values = values.loc[both, wide.columns]
            pair = values.to_numpy(float), wide.loc[both].to_numpy(float)
            ps.append(gain_p(*pair, seed=seed))
            ends.append(gain_ci(*pair, seed=seed))
        lows, highs = zip(*ends, strict=True)
        found = found.assign(gain_lo=lows, gain_hi=highs, p=ps)
        parts.append(found.assign(**dict(zip(TRACE, key, strict=True))))
    out = pd.concat(parts, ignore_index=True)
    return out[[*TRACE, *(c for c in out if c not in TRACE)]]


def gain_p(values: Float[np.ndarray, "r l"], effects: Float[np.ndarray, "r l"], *, seed: int) -> float:
    """Share of shuffles of the records (the data among them) under which effects explain as much of values.

    Both are taken as differences from their layer's mean, so what is explained is what the gain in R^2 is made of.
    """
    y = values - values.mean(0)
    x = effects - effects.mean(0)
    if not np.any(np.abs(y) > 1e-12) or not np.any(np.abs(x) > 1e-12):
        return float("nan")
    rng = np.random.default_rng(stable_seed("gain", seed))
    shared = [abs(float((x[order] * y).sum())) for order in _orders(rng, len(x))]
    return float(np.mean(np.array(shared) >= shared[0] * (1 - 1e-12)))


def gain_ci(
    values: Float[np.ndarray, "r l"], effects: Float[np.ndarray, "r l"], *, seed: int
) -> tuple[float, float]:
    """Percentile interval (95 %) of the gain in R^2 by the effects, beyond the layers, when records are resampled."""
    if len(values) < 2:
        return float("nan"), float("nan")
    rng = np.random.default_rng(stable_seed("interval of the gain", seed))
    at = rng.integers(len(values), size=(RESAMPLES, len(values)))
    gains = gain(values[at], effects[at])
    if np.isnan(gains).all():
        return float("nan"), float("nan")
    low, high = np.nanpercentile(gains, (2.5, 97.5))
    return float(low), float(high)


def gain(
    values: Float[np.ndarray, "*n r l"], effects: Float[np.ndarray, "*n r l"]
) -> Float[np.ndarray, "*n"]:
    """Share of the variance of values that a line in the effects explains beyond each layer's mean; NaN without any."""
    y = values - values.mean(-2, keepdims=True)
    x = effects - effects.mean(-2, keepdims=True)
    total = ((values - values.mean((-2, -1), keepdims=True)) ** 2).sum((-2, -1))
    scale = (x**2).sum((-2, -1)) * total
    shared = (x * y).sum((-2, -1)) ** 2
    return np.divide(shared, scale, out=np.full_like(shared, np.nan), where=scale > 1e-24)


def _orders(rng: np.random.Generator, n: int) -> list[np.ndarray]:
    return [np.arange(n), *(rng.permutation(n) for _ in range(PERMUTATIONS))]
