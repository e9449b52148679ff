"""From what was measured to the tables of a study: rows of single needles, rows by score type, areas of dose curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from interp.measure.curves import weights
from interp.measure.effects import Measured
from interp.measure.outcomes import Outcomes
from interp.measure.plans import Condition, Cut
from interp.measure.stats import bootstrap_ci, fdr, mcnemar, proportion_ci, sign_flip

LABELS = ["condition", "control", "k", "draw", "mode", "scope", "reference", "components", "kept"]
"""What a row says of its condition, as effects do."""

ABOUT = ("length_asked", "depth_asked", "length", "depth", "needle", "haystack", "kind")
"""What is kept of an example's meta."""

METRICS = ("accuracy", "logprob", "logit_diff")
"""Metrics that tables tell of answers."""

JUDGED = ("accuracy", "f1", "number", "nll")
"""Metrics that a task is judged by, the first that it has."""


def rows_of(outcomes: Outcomes, plan: Sequence[Condition]) -> pd.DataFrame:
    """One row a condition and example: `LABELS`, `METRICS`, example, cluster, and what of `ABOUT` the examples have."""
    whole = outcomes.frame()
    kept = ["example", "cluster", *(c for c in ABOUT if c in whole), *METRICS]
    by_name = dict(iter(whole.groupby("condition", sort=False)))
    return pd.concat([by_name[c.name][kept].assign(**_labels(c)) for c in plan], ignore_index=True)


def _labels(c: Condition) -> dict[str, Any]:
    cut = c.intervention
    return {
        "condition": c.condition,
        "control": c.control,
        "k": c.k,
        "draw": c.draw,
        "mode": cut.mode if cut else "",
        "scope": cut.describe()["scope"] if cut else "",
        "reference": cut.reference_name if cut else "",
        "components": named(cut),
        "kept": " ".join(map(repr, c.kept)),
    }


def named(cut: Cut | None) -> str:
    """Components of a cut as rows write them."""
    return " ".join(map(repr, cut.components)) if cut else ""


def by_locator(
    rows: pd.DataFrame, plan: Mapping[str, Sequence[Condition]], conditions: Sequence[str]
) -> pd.DataFrame:
    """Rows of `conditions` once for every score type that asked for them: two that rank alike share a run.

    Args:
        plan: the conditions of each score type.
    """
    mine = rows["condition"].isin(list(conditions))
    parts = [rows[~mine]]
    for locator, asked in plan.items():
        wanted = {(c.condition, c.k, named(c.intervention)) for c in asked if c.condition in conditions}
        at = list(zip(rows["condition"], rows["k"], rows["components"], strict=True))
        parts.append(rows[[key in wanted for key in at]].assign(locator=locator))
    return pd.concat(parts, ignore_index=True)


def joined(plan: Mapping[str, Sequence[Condition]]) -> list[Condition]:
    """All conditions, each that is the same cut once."""
    return list({c.name: c for conditions in plan.values() for c in conditions}.values())


AREAS = ["locator", "condition", "control", "draw"]


def areas(
    measured: Measured, plan: Mapping[str, Sequence[Condition]], *, metric: str = "accuracy", seed: int = 0
) -> pd.DataFrame:
    """The mean of each dose curve over log k (trapezoids), with the interval over clusters.

    The area of the mean curve is the mean of the examples' areas, which is what is resampled. One dose gives its value.
    A control draw that lacks a dose (one head has few others in its layer) has no area: it would be of other doses.

    Returns:
        one row a curve: locator, condition, control, draw, metric, value, ci_lo, ci_hi.
    """
    clusters = measured.outcomes.clusters
    rows = []
    for locator, conditions in plan.items():
        curves: dict[tuple[str, str, int], dict[int, np.ndarray]] = {}
        for c in conditions:
            if c.k > 0:
                curve = curves.setdefault((c.condition, c.control, c.draw), {})
                curve[c.k] = measured.outcomes.values[c.name][metric]
        ks = sorted(set().union(*curves.values()))
        for key, curve in curves.items():
            if len(curve) < len(ks):
                continue
            values = np.stack([curve[k] for k in ks], axis=1)
            area = values @ weights(ks) if len(ks) > 1 else values[:, 0]
            low, high = bootstrap_ci(area, clusters, seed=seed)
            said = dict(zip(AREAS, (locator, *key), strict=True))
            rows.append({**said, "metric": metric, "value": float(area.mean()), "ci_lo": low, "ci_hi": high})
    return pd.DataFrame(rows, columns=[*AREAS, "metric", "value", "ci_lo", "ci_hi"])


def map_effects(cells: pd.DataFrame, *, seed: int = 0) -> pd.DataFrame:
    """Effects over all cells of a map: one row a condition and metric.

    Returns:
        `condition control k draw mode components metric value delta ci_lo ci_hi p p_cluster n n_clusters`, as in
        effects: the interval (95 %) is of the change, for the uncut model of the value.
    """
    order = ["unit", "example"]
    cells = cells.sort_values(order, kind="stable")
    clean = cells[cells["condition"] == "clean"]
    clusters = clean["cluster"].astype(str).to_numpy()
    by = ["condition", "control", "k", "draw", "mode", "components"]
    rows: list[dict[str, Any]] = []
    for key, part in cells.groupby(by, sort=False):
        for metric in METRICS:
            value, before = part[metric].to_numpy(float), clean[metric].to_numpy(float)
            if np.isnan(value).all():
                continue  # needles without a foil have no such metric
            row = dict(zip(by, key, strict=True)) | {"metric": metric, "value": float(np.nanmean(value))}
            change = value - before
            if row["condition"] == "clean":
                ends = (
                    proportion_ci(value, clusters)
                    if metric == "accuracy"
                    else bootstrap_ci(value, clusters, seed=seed)
                )
                row |= {"delta": 0.0, "p": np.nan, "p_cluster": np.nan}
            else:
                ends = bootstrap_ci(change, clusters, seed=seed)
                row |= {
                    "delta": float(np.nanmean(change)),
                    "p_cluster": sign_flip(change, clusters, seed=seed),
                }
                row["p"] = mcnemar(before, value) if metric == "accuracy" else np.nan
            row |= {"ci_lo": ends[0], "ci_hi": ends[1], "n": int((~np.isnan(value)).sum())}
            rows.append(row | {"n_clusters": len(set(clusters))})
    return pd.DataFrame(rows)


def adjusted(effects: pd.DataFrame) -> pd.DataFrame:
    """Effects with `q`: cluster-wise p-values of the cuts, adjusted for the false discovery rate over the table."""
    cuts = effects[effects["condition"] == "cut"]
    main = cuts[cuts["metric"] == cuts["task"].map(first_metric(cuts))]
    return effects.assign(q=fdr(main, "p_cluster")["q"].reindex(effects.index))


def first_metric(effects: pd.DataFrame) -> dict[str, str]:
    """The metric that each task is judged by: the first of `JUDGED` that it has."""
    out = {}
    for task, own in effects.groupby("task", sort=False)["metric"]:
        has = set(own)
        out[str(task)] = next((m for m in JUDGED if m in has), str(own.iloc[0]))
    return out
