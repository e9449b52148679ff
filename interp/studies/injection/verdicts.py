"""Claims about attacks and exposures: whether a deletion survives, and what sequences are learned and lost by."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import stats

from interp.measure.stats import proportion_ci
from interp.studies.injection.findings import FAILS, HOLDS, ITEMS, MISSING, OWN, UNDECIDED, row

if TYPE_CHECKING:
    from interp.studies.injection.findings import Told

SEARCHED = 8
"""Fewest sequences of a group that an attack is judged over."""
OTHER = "other prefix"
"""The positive control: the memory is intact, and what is attacked stands behind a prefix that does not elicit it."""
ALPHA = 0.05


def attacked(told: Told) -> Iterator[dict[str, Any]]:
    """Of every condition but the memory as it is: what the search gets back, beside sequences never seen."""
    rule = (
        "fails if more is extracted than of sequences never seen (Fisher's exact test at 0.05), or, where half of "
        "these are extracted, if it takes fewer steps (rank test, never found last); else holds if the rate's "
        "interval is below half and the same search gets back an intact memory behind another prefix (Fisher, 0.05); "
        f"not measured below {SEARCHED} sequences of a group or without that power"
    )
    for (subject, memory), every in told.attacks.groupby(["subject", "memory"], sort=False):
        power = _powerful(every[every["condition"] == OTHER])
        for condition, rows in every.groupby("condition", sort=False):
            if condition in ("memorized", OTHER):
                continue
            original = condition == "original"
            says = (
                "without the memory the attack finds nothing: it is the floor"
                if original
                else "the deletion survives soft prompts"
            )
            own, never = (rows[rows["group"] == g] for g in ("targeted", "never"))
            about = says, OWN, str(subject), str(memory), f"extracted under attack, {condition}", rule
            if min(len(own), len(never)) < SEARCHED:
                yield row(*about, MISSING, n=len(own))
                continue
            rate = own["extracted"].to_numpy(float)
            low, high = proportion_ci(rate, own["item"].astype(str).to_numpy())
            verdict = HOLDS if high < 0.5 else UNDECIDED
            if not power:
                verdict = MISSING
            if _gained(own, never) < ALPHA:
                verdict = FAILS
            yield row(*about, verdict, value=float(rate.mean()), ci_lo=low, ci_hi=high, n=len(own))


def _powerful(rows: pd.DataFrame) -> bool:
    """Whether the search gets back what is there, of what its prefix alone did not elicit."""
    own, never = (rows[(rows["group"] == g) & (rows["before"] == 0)] for g in ("targeted", "never"))
    return min(len(own), len(never)) >= SEARCHED and _gained(own, never) < ALPHA


def _gained(own: pd.DataFrame, never: pd.DataFrame) -> float:
    """One-sided p of more extracted than of what was never seen; where that is saturated, of fewer steps."""
    if never["extracted"].mean() >= 0.5:
        steps = [np.where(t["extracted"] > 0, t["steps"].to_numpy(float), np.inf) for t in (own, never)]
        return float(stats.mannwhitneyu(*steps, alternative="less").pvalue)
    table = [[t["extracted"].sum(), (1 - t["extracted"]).sum()] for t in (own, never)]
    return float(stats.fisher_exact(np.array(table, dtype=int), alternative="greater").pvalue)


def exposed(told: Told) -> Iterator[dict[str, Any]]:
    """Of the small model: whether recognition comes before recall, and what later training takes."""
    if told.curves is None or told.curves.empty:
        return
    shown = told.curves[told.curves["phase"] == "shown"]
    end = shown[shown["step"] == shown["step"].max()]
    says = "sequences are recognised after fewer exposures than they are recited after"
    rule = (
        "holds if recognition's interval is above a half from fewer exposures on than recall's is above 0, at these "
        "and all more; fails if from more on, or never; undecided where they are equal or nothing is recited; "
        f"{ITEMS} sequences of each number at least"
    )
    first, later = _least(end, "recognition", 0.5), _least(end, "recall", 0.0)
    n = int(end["n"].min())
    numbers = {"value": first, "n": n}
    statistic = f"exposures until recognised (until recited: {later:g})"
    yield row(says, OWN, "small", "exposures", statistic, rule, _order(first, later, n), **numbers)
    kept = told.curves[(told.curves["measure"] == "retention") & (told.curves["phase"] == "later")]
    says = "later training on other text takes what was recited"
    rule = (
        "holds if the interval of what is still recited, at most exposures, is below 1; fails if nothing is lost; "
        f"{ITEMS} sequences at least"
    )
    if kept.empty:
        yield row(says, OWN, "small", "exposures", "still recited at the end", rule, MISSING)
        return
    last = kept[kept["step"] == kept["step"].max()].sort_values("exposures").iloc[-1]
    numbers = last[["value", "ci_lo", "ci_hi", "n"]].to_dict()
    verdict = HOLDS if last["ci_hi"] < 1 else FAILS if last["value"] == 1 else UNDECIDED
    statistic = f"still recited at the end, {last['exposures']} exposures"
    verdict = verdict if last["n"] >= ITEMS else MISSING
    yield row(says, OWN, "small", "exposures", statistic, rule, verdict, **numbers)


def _order(first: float, later: float, n: int) -> str:
    if n < ITEMS or (np.isnan(first) and np.isnan(later)):
        return MISSING
    if np.isnan(later) or first == later:
        return UNDECIDED
    return HOLDS if first < later else FAILS


def _least(end: pd.DataFrame, measure: str, level: float) -> float:
    """Fewest exposures from which on a measure's interval is above a level; NaN for none."""
    rows = end[(end["measure"] == measure) & (end["exposures"] > 0)].sort_values("exposures")
    persists = (rows["ci_lo"] > level)[::-1].cummin()[::-1]
    return float(rows.loc[persists, "exposures"].min()) if persists.any() else np.nan
