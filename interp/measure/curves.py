"""What is read off a plan's curve: the area under a dose curve, and the smallest set of heads that is enough."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from interp.errors import UsageError
from interp.measure.effects import AT_CHANCE, Measured
from interp.measure.plans import CLEAN, Condition
from interp.measure.stats import bootstrap_ci

LESS_IS_BETTER = ("nll", "rank")


def auc(measured: Measured, metric: str = "accuracy", *, seed: int = 0) -> pd.DataFrame:
    """Area under a dose curve, over the logarithm of the number of components cut, as a mean height.

    The area is the trapezoid over log k, divided by its width: the metric's mean over the curve, in the metric's own
    unit. It is linear in the examples, so each has an area of its own and whole clusters are resampled.

    Args:
        measured: of one task, from `measure(..., into=...)` with a plan by `dose` of two ks or more.
        metric: which metric.
        seed: of the resampling.

    Returns:
        rows `clean` (its level), `cut`, `control` (mean over the draws, by kind) and `cut - control`, each with
        `control` (kind), value, ci_lo, ci_hi (95 %), n_clusters; the cut and the difference have no interval where the
        clean model is at chance.

    Raises:
        UsageError: no such metric, fewer than two ks, or two cuts of one k.
    """
    outcomes, plan = measured.outcomes, measured.plan
    clusters = outcomes.clusters
    if metric not in outcomes.values[CLEAN]:
        raise UsageError(f"auc: no metric {metric!r}; there are {', '.join(outcomes.values[CLEAN])}")
    cuts = [c for c in plan if c.condition == "cut"]
    ks = sorted(c.k for c in cuts)
    if len(set(ks)) < 2 or len(set(ks)) < len(ks) or ks[0] < 1:
        raise UsageError(f"auc: a curve needs one cut at each of two ks or more, from 1 on; it has {ks}")

    def area(conditions: Sequence[Condition]) -> Float[np.ndarray, " n"]:
        at = {k: [outcomes.values[c.name][metric] for c in conditions if c.k == k] for k in ks}
        return np.stack([np.mean(at[k], axis=0) for k in ks], axis=1) @ weights(ks)

    found: list[tuple[str, str, Float[np.ndarray, " n"]]] = [
        ("clean", "", outcomes.values[CLEAN][metric]),
        ("cut", "", area(cuts)),
    ]
    for kind in dict.fromkeys(c.control for c in plan if c.condition == "control"):
        draws = [c for c in plan if c.condition == "control" and c.control == kind]
        if {c.k for c in draws} == set(ks):
            found += [("control", kind, area(draws)), ("cut - control", kind, found[1][2] - area(draws))]
    rows: list[dict[str, Any]] = []
    for what, kind, values in found:
        told = measured.status != AT_CHANCE or what == "clean"
        low, high = bootstrap_ci(values, clusters, seed=seed) if told else (np.nan, np.nan)
        rows.append({"what": what, "control": kind, "metric": metric, "value": float(np.nanmean(values))})
        rows[-1] |= {"ci_lo": low, "ci_hi": high, "n_clusters": len(set(clusters)), "status": measured.status}
    return pd.DataFrame(rows)


def weights(ks: Sequence[int]) -> Float[np.ndarray, " k"]:
    """Weight of each k in the mean height of a trapezoid over log k; they sum to one."""
    x = np.log(np.asarray(ks, dtype=float))
    gaps = np.diff(x)
    out = np.zeros(len(x))
    out[:-1] += gaps / 2
    out[1:] += gaps / 2
    return np.asarray(out / (x[-1] - x[0]))


def smallest(effects: pd.DataFrame, *, share: float = 0.9, metric: str = "accuracy") -> pd.DataFrame:
    """The smallest number of heads that keeps a share of the clean value when all other heads are cut.

    Args:
        effects: rows of a plan by `sufficient`, as `measure` gives them.
        share: of the clean value; where less is better (`nll`, `rank`), the value may be clean / share.

    Returns:
        one row a task and way of cutting: `clean`, `wanted` (the value to reach), `k` (NaN where no measured size
        reaches it, or the clean model is at chance), `kept` (the heads), `value`, `stays` (all larger sizes reach it
        too), and over the controls that keep as many others `control_mean`, `control_best`, `n_controls`.

    Raises:
        UsageError: no row of the metric keeps heads, `share` is not within 0 to 1, or the clean value is negative and
            has no shares.
    """
    if not 0 < share <= 1:
        raise UsageError(f"share={share}: a share of the clean value lies above 0 and up to 1")
    rows = effects[effects["metric"] == metric]
    keeps = rows[rows["condition"] == "keep"] if "kept" in rows else rows[:0]
    if keeps.empty:
        raise UsageError(
            f"no row with condition 'keep' and metric {metric!r}; measure a plan by `sufficient`"
        )
    down = metric in LESS_IS_BETTER
    by = ["subject", "task", "mechanism", "locator", "mode", "scope", "keys", "reference", "seed"]
    out = []
    for key, group in keeps.groupby(by, sort=False, dropna=False):
        about = dict(zip(by, key, strict=True))
        same = np.logical_and.reduce([rows[c] == about[c] for c in ("subject", "task", "seed")])
        clean = rows[same & (rows["condition"] == "clean")].iloc[0]
        if clean["value"] < 0:
            raise UsageError(
                f"smallest: {metric} of the intact model is {clean['value']:.3g} on {about['task']}, and a share of a "
                "negative number is no bar; take accuracy or nll"
            )
        wanted = float(clean["value"] / share if down else clean["value"] * share)
        group = group.sort_values("k")
        reached = (group["value"] <= wanted) if down else (group["value"] >= wanted)
        if AT_CHANCE in set(group["status"]):
            reached = reached & False
        row: dict[str, Any] = {
            **about,
            "metric": metric,
            "share": share,
            "clean": clean["value"],
            "wanted": wanted,
        }
        row |= {"k": np.nan, "kept": "", "value": np.nan, "stays": False}
        row |= {"control_mean": np.nan, "control_best": np.nan, "n_controls": 0}
        if reached.any():
            best = group[reached].iloc[0]
            row |= {"k": int(best["k"]), "kept": best["kept"], "value": best["value"]}
            row["stays"] = bool(reached[group["k"] >= best["k"]].all())
            matching = np.logical_and.reduce([rows[c] == v for c, v in about.items()])
            others = rows[matching & (rows["condition"] == "keep_control") & (rows["k"] == best["k"])][
                "value"
            ]
            if len(others):
                row["control_mean"] = float(others.mean())
                row["control_best"] = float(others.min() if down else others.max())
                row["n_controls"] = len(others)
        out.append(row)
    return pd.DataFrame(out)
