"""Universal: whether models of any family have few strong heads, and where in the depth of the model they lie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from interp.errors import UsageError
from interp.locate.nulls import correlations
from interp.locate.properties.base import (
    ByCluster,
    Property,
    frame_of,
    instance_scores,
    interval,
    ranged,
    row,
)
from interp.locate.properties.inheritance import fitted
from interp.locate.properties.sparsity import DRAWS, RESAMPLES, sparse, statistics
from interp.locate.retrieval_heads import THRESHOLD, RetrievalHeads
from interp.models.subject import CausalLM
from interp.tasks.base import Task, stable_seed

OF_EACH = ("share_over_{}", "share_zero", "gini", "mass_top_5%")
BINS = 10
"""Slices of the depth in which the score is added up."""

GRID = (np.arange(200) + 0.5) / 200
"""Shares of the heads at which strength curves are compared."""


@dataclass(frozen=True)
class _Model:
    name: str
    heads: RetrievalHeads
    values: np.ndarray
    data: ByCluster

    @property
    def grid(self) -> np.ndarray:
        """Mean scores, layers x heads."""
        out: np.ndarray = self.values.mean(0)
        return out

    @property
    def depths(self) -> np.ndarray:
        """Relative depth of each head: 0 the first layer, 1 the last."""
        layers, heads = self.grid.shape
        return np.repeat(np.arange(layers) / max(1, layers - 1), heads)

    def depth(self, means: np.ndarray) -> np.ndarray:
        """Mean relative depth of the score, for each row of mean scores."""
        total = means.sum(1)
        return (means @ self.depths) / np.where(total > 0, total, np.nan)

    def strength(self, at: np.ndarray) -> np.ndarray:
        """Score of the head that has the given share of all heads above it."""
        ranked = np.sort(self.data.mean)[::-1]
        out: np.ndarray = ranked[np.minimum((at * len(ranked)).astype(int), len(ranked) - 1)]
        return out


def universal(
    models: Mapping[str, CausalLM | RetrievalHeads] | Sequence[CausalLM],
    task: Task | None = None,
    *,
    method: str | None = None,
    threshold: float = THRESHOLD,
    seed: int = 0,
) -> Property:
    """How alike models are in how few heads score, how strongly, and how deep; heads of models are not matched.

    Statistics of each model: those of `sparse`, and `depth`, the mean relative depth of the score (0 the first layer,
    1 the last). Of each pair: the differences of the share over the threshold and of the Gini coefficient (second minus
    first; the interval resamples the clusters of each), `strength_distance` (mean difference of the scores at equal
    shares of the heads above), and `depth_distance` (first Wasserstein distance between the distributions of the score
    over relative depth; its null deals each model's scores out to its heads anew, p is the share of 999 draws that are
    as close). Pairs of one shape have `pearson` and `spearman` of their heads too, with the null of scores shuffled
    within layers: unrelated models should be at it. For pairs of different shapes no head is taken for another.

    Args:
        models: models by name, or their fitted locators; or models, called by their own names.
        task: what models are scored on, each on the instances that it answers; not needed for locators.

    Returns:
        the property; tables `strength` (subject, component, rank, share, score) and `depth` (subject, depth, share of
        the total score in that tenth of the depth).

    Raises:
        UsageError: fewer than two models, two of one name, a model without a task, or scores that can be negative.
    """
    every = _models(models, task, method)
    rows: list[dict[str, Any]] = []
    for model in every:
        own = sparse(model.heads, method, threshold=threshold, subject=model.name, seed=seed).frame
        wanted = [name.format(f"{threshold:g}") for name in OF_EACH]
        rows += own[own["statistic"].isin(wanted)].to_dict("records")
        drawn = model.depth(model.data.resampled(RESAMPLES, seed))
        labels: dict[str, Any] = {
            "subject": model.name,
            "n": len(model.values),
            "n_clusters": len(model.data.counts),
        }
        rows.append(row("depth", model.depth(model.data.mean[None])[0], interval(drawn), **labels))
    for i, (a, b) in enumerate(combinations(every, 2)):
        rows += _pair(a, b, threshold, seed + i)
    frame = frame_of(rows)
    tables = {
        "strength": pd.concat([_strength(m, method) for m in every], ignore_index=True),
        "depth": pd.concat([_depth(m) for m in every], ignore_index=True),
    }
    return Property("universal", _summary(frame, every, threshold), frame, tables)


def _models(
    models: Mapping[str, CausalLM | RetrievalHeads] | Sequence[CausalLM],
    task: Task | None,
    method: str | None,
) -> list[_Model]:
    named = list(models.items()) if isinstance(models, Mapping) else [(m.name, m) for m in models]
    if len(named) < 2:
        raise UsageError("universal compares models: name two or more")
    names = [name for name, _ in named]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UsageError(f"two models are called '{twice[0]}'; give a mapping of names to models")
    out = []
    for name, source in named:
        heads = fitted(source, task, method)
        _, values, clusters = instance_scores(heads, method)
        out.append(_Model(name, heads, values, ByCluster.of(values, clusters)))
    return out


def _pair(a: _Model, b: _Model, threshold: float, seed: int) -> list[dict[str, Any]]:
    labels: dict[str, Any] = {
        "subject": f"{a.name} and {b.name}", "n": min(len(a.values), len(b.values)),
        "n_clusters": min(len(a.data.counts), len(b.data.counts)),
    }  # fmt: skip
    rows = []
    # Seeds of their own: the two models are resampled independently of each other.
    resamples = [m.data.resampled(RESAMPLES, 2 * seed + j) for j, m in enumerate((a, b))]
    means = [statistics(m.data.mean[None], threshold) for m in (a, b)]
    drawn = [statistics(r, threshold) for r in resamples]
    for name in (f"share_over_{threshold:g}", "gini"):
        ends = min(len(d[name]) for d in drawn)
        ci = interval(drawn[1][name][:ends] - drawn[0][name][:ends])
        rows.append(row(f"{name}_difference", means[1][name][0] - means[0][name][0], ci, **labels))
    rows.append(row("strength_distance", float(np.abs(a.strength(GRID) - b.strength(GRID)).mean()), **labels))
    apart = stats.wasserstein_distance(a.depths, b.depths, a.data.mean, b.data.mean)
    rows.append(row("depth_distance", apart, null=_apart_by_chance(a, b, seed), more=False, **labels))
    if a.grid.shape == b.grid.shape:
        for found in correlations(a.grid, b.grid, seed=seed):
            ci = found.get("ci_lo", np.nan), found.get("ci_hi", np.nan)
            null = {"null": found.get("expected_layers", np.nan), "p": found.get("p_layers", np.nan)}
            rows.append(row(found["measure"], found["value"], ci, **labels) | null)
    return rows


def _apart_by_chance(a: _Model, b: _Model, seed: int) -> np.ndarray:
    """Distances of the depths when each model's scores are dealt out to its heads anew."""
    rng = np.random.default_rng(stable_seed("properties", "depth", seed))
    return np.array([
        stats.wasserstein_distance(a.depths, b.depths, rng.permutation(a.data.mean), rng.permutation(b.data.mean))
        for _ in range(DRAWS)
    ])  # fmt: skip


def _strength(model: _Model, method: str | None) -> pd.DataFrame:
    out = model.heads.ranking(method or model.heads.method)[["component", "score"]]
    out.insert(0, "subject", model.name)
    out["rank"] = np.arange(1, len(out) + 1)
    return out.assign(share=out["rank"] / len(out))


def _depth(model: _Model) -> pd.DataFrame:
    edges = np.minimum((model.depths * BINS).astype(int), BINS - 1)
    mass = np.bincount(edges, weights=model.data.mean, minlength=BINS)
    total = mass.sum() or np.nan
    return pd.DataFrame(
        {"subject": model.name, "depth": (np.arange(BINS) + 0.5) / BINS, "share": mass / total}
    )


def _summary(frame: pd.DataFrame, every: Sequence[_Model], threshold: float) -> str:
    def told(name: str) -> str:
        rows = frame[frame["statistic"] == name]
        return ", ".join(f"{r.value:.2f} ({r.subject})" for r in rows.itertuples())

    shares = frame[frame["statistic"] == f"share_over_{threshold:g}"]
    over = ", ".join(
        f"{ranged(r.value, r.ci_lo, r.ci_hi, 1, 100, ' %')} of {len(m.depths)} heads of {m.name}"
        for r, m in zip(shares.itertuples(), every, strict=True)
    )
    same = told("pearson")
    return (
        f"{over} score {threshold:g} or more; Gini {told('gini')}; mean relative depth of the score {told('depth')}; "
        f"distance of these depths {told('depth_distance')}"
        f"{'; correlation of the heads of models of one shape ' + same if same else ''}."
    )
