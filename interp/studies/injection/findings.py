"""Claims about memorization in language models, judged by intervals and by nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import stats

from interp.measure.stats import bootstrap_ci, proportion_ci
from interp.studies.injection.measures import HELD
from interp.tasks.base import stable_seed

if TYPE_CHECKING:
    from interp.studies.injection.spec import InjectionSpec

HOLDS, FAILS, UNDECIDED, MISSING = "holds", "fails", "undecided", "not measured"

CHANG = "Chang et al. 2024, arXiv 2311.09060"
KFAC = "arXiv 2510.24256"
OWN = "this study"

LEARNED = ("slimming", "hard_concrete")
BASELINE = "activation"


@dataclass(frozen=True, eq=False)
class Told:
    """What claims are judged by: tables of the study; no curves where no exposures were asked for."""

    recall: pd.DataFrame
    edits: pd.DataFrame
    contrasts: pd.DataFrame
    chosen: pd.DataFrame
    attacks: pd.DataFrame
    curves: pd.DataFrame | None
    spec: InjectionSpec


def findings(told: Told) -> pd.DataFrame:
    """One row a claim, subject and memory; see the study for the columns. A claim over nothing is `not measured`."""
    rows = [*_found(told), *_deleted(told), *_attacked(told), *_exposed(told)]
    return pd.DataFrame(rows)


def above(low: float, high: float, level: float) -> str:
    """Whether an interval is above a level, below it, or neither."""
    if np.isnan(low) or np.isnan(high):
        return MISSING
    return HOLDS if low > level else FAILS if high <= level else UNDECIDED


def _row(
    finding: str,
    source: str,
    subject: str,
    memory: str,
    statistic: str,
    rule: str,
    verdict: str,
    **numbers: Any,
) -> dict[str, Any]:
    given = {"value": np.nan, "ci_lo": np.nan, "ci_hi": np.nan, "n": 0, **numbers}
    head = {"finding": finding, "source": source, "subject": subject, "memory": memory}
    return {**head, "statistic": statistic, **given, "rule": rule, "verdict": verdict}


# -- known neurons ---------------------------------------------------------------------------------------------------


def _found(told: Told) -> Iterator[dict[str, Any]]:
    rows = told.recall[(told.recall["part"] == "all") & told.recall["share"].isna()]
    rule = "holds if the interval is above 0, fails if it is not"
    if rows.empty:
        says = "the ranking finds the neurons that hold a sequence"
        yield _row(says, CHANG, "model", "injected", "recall - chance", rule, MISSING)
    for (subject, share), own in rows.groupby(["subject", "injected"], sort=False):
        where = str(subject), f"injected {share:g}"
        wide = own.pivot_table(index=["item", "seed"], columns="method", values="recall", sort=False)
        chance = float(own["chance"].mean())
        for method in [m for m in (*told.spec.methods, "magnitude") if m in wide]:
            numbers = _mean(wide[method] - chance, "found", *where, method)
            says = "the ranking finds the neurons that hold a sequence"
            verdict = above(numbers["ci_lo"], numbers["ci_hi"], 0)
            yield _row(says, CHANG, *where, f"recall of {method} - chance", rule, verdict, **numbers)
        for method in [m for m in LEARNED if m in wide and BASELINE in wide]:
            numbers = _mean(wide[method] - wide[BASELINE], "learned", *where, method)
            says = "learned gates find more of them than activations do"
            verdict = above(numbers["ci_lo"], numbers["ci_hi"], 0)
            yield _row(says, CHANG, *where, f"recall of {method} - {BASELINE}", rule, verdict, **numbers)


def _mean(values: pd.Series, *seed: str) -> dict[str, Any]:
    told = values.to_numpy(float)
    low, high = bootstrap_ci(told, [str(i) for i in values.index], seed=stable_seed("finding", *seed)[0])
    return {"value": float(told.mean()), "ci_lo": low, "ci_hi": high, "n": len(told)}


# -- deletion --------------------------------------------------------------------------------------------------------


def _deleted(told: Told) -> Iterator[dict[str, Any]]:
    """Of every memory: what the best edit does, whether neurons are of one sequence alone, and curvature's edit."""
    spec = told.spec
    for (subject, memory), own in told.chosen.groupby(["subject", "memory"], sort=False):
        where = str(subject), str(memory)
        edits = told.edits[(told.edits["subject"] == subject) & (told.edits["memory"] == memory)]
        able = own[~own["control"] & own["erases"]].sort_values("prose", kind="stable")
        rule = (
            f"holds if the most that is recited (interval) is below half of that before and prose's interval is below "
            f"{spec.worth:g}; fails if prose's is above it, or no edit erases"
        )
        says = "located sequences can be deleted, and prose stays"
        if float(own["before"].max()) < HELD:
            yield _row(says, OWN, *where, "recited of what was located", rule, MISSING)
            continue
        if able.empty:
            yield _row(says, OWN, *where, "recited of what was located, best edit", rule, FAILS, n=len(own))
        else:
            best = str(able["edit"].iloc[0])
            numbers = _measure(edits, best, "targeted")
            verdict = _kept(
                numbers, _measure(edits, "none", "targeted"), _measure(edits, best, "prose"), spec.worth
            )
            yield _row(says, OWN, *where, f"recited of what was located, {best}", rule, verdict, **numbers)
        yield from _specific(told, where, own)
        if (own["edit"] == CURVATURE).any():
            numbers = _measure(edits, CURVATURE, "held_out")
            verdict = _kept(
                numbers, _measure(edits, "none", "held_out"), _measure(edits, CURVATURE, "prose"), spec.worth
            )
            says = "dropping flat curvature deletes what it was never told of, and prose stays"
            yield _row(says, KFAC, *where, "recited of what was held out", rule, verdict, **numbers)


CURVATURE = "flat curvature"


def _measure(edits: pd.DataFrame, edit: str, measure: str) -> dict[str, Any]:
    rows = edits[(edits["edit"] == edit) & (edits["measure"] == measure)]
    if rows.empty:
        return {"value": np.nan, "ci_lo": np.nan, "ci_hi": np.nan, "n": 0}
    return rows[["value", "ci_lo", "ci_hi", "n"]].iloc[0].to_dict()


def _kept(gone: dict[str, Any], before: dict[str, Any], prose: dict[str, Any], worth: float) -> str:
    if not gone["n"] or not prose["n"] or not before["n"] or before["value"] == 0 or np.isnan(prose["ci_lo"]):
        return MISSING
    if prose["ci_lo"] > worth or gone["ci_lo"] > before["value"] / 2:
        return FAILS
    return HOLDS if gone["ci_hi"] < before["value"] / 2 and prose["ci_hi"] < worth else UNDECIDED


def _specific(told: Told, where: tuple[str, str], own: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """Does silencing what is located on A take B's tokens too, beyond as many random neurons?"""
    rows = told.contrasts[(told.contrasts["subject"] == where[0]) & (told.contrasts["memory"] == where[1])]
    units = own[(own["family"] == "units") & own["erases"]].sort_values("prose", kind="stable")
    says = "neurons of some sequences serve others that are memorized too"
    rule = "holds if the fall of the held-out sequences' hits beyond random neurons has an interval below 0"
    if units.empty:
        yield _row(says, CHANG, *where, "held-out hits - random's", rule, MISSING)
        return
    best = units.iloc[0]
    found = rows[
        (rows["edit"] == best["edit"]) & (rows["asked"] == best["asked"]) & (rows["measure"] == "held_out")
    ]
    if found.empty:
        yield _row(says, CHANG, *where, "held-out hits - random's", rule, MISSING)
        return
    numbers = found[["value", "ci_lo", "ci_hi", "n"]].iloc[0].to_dict()
    verdict = above(-numbers["ci_hi"], -numbers["ci_lo"], 0)
    yield _row(
        says, CHANG, *where, f"held-out hits under {best['edit']} - random's", rule, verdict, **numbers
    )


# -- attack ----------------------------------------------------------------------------------------------------------


def _attacked(told: Told) -> Iterator[dict[str, Any]]:
    rule = (
        "holds if the rate's interval is below half; fails if it is above that of sequences never seen (Fisher's exact "
        "test at 0.05)"
    )
    for (subject, memory, condition), rows in told.attacks.groupby(
        ["subject", "memory", "condition"], sort=False
    ):
        if condition == "memorized":
            continue
        own, never = (rows[rows["group"] == g]["extracted"].to_numpy(float) for g in ("targeted", "never"))
        says = (
            "without the memory the attack finds nothing: it is the floor"
            if condition == "original"
            else "the deletion survives soft prompts"
        )
        statistic = f"extracted under attack, {condition}"
        if not len(own) or not len(never):
            yield _row(says, OWN, str(subject), str(memory), statistic, rule, MISSING)
            continue
        low, high = proportion_ci(own, [str(i) for i in range(len(own))])
        table = [[own.sum(), (1 - own).sum()], [never.sum(), (1 - never).sum()]]
        p = float(stats.fisher_exact(np.array(table, dtype=int), alternative="greater").pvalue)
        verdict = FAILS if p < 0.05 else HOLDS if high < 0.5 else UNDECIDED
        numbers = {"value": float(own.mean()), "ci_lo": low, "ci_hi": high, "n": len(own)}
        yield _row(says, OWN, str(subject), str(memory), statistic, rule, verdict, **numbers)


# -- exposures -------------------------------------------------------------------------------------------------------


def _exposed(told: Told) -> Iterator[dict[str, Any]]:
    if told.curves is None or told.curves.empty:
        return
    shown = told.curves[told.curves["phase"] == "shown"]
    end = shown[shown["step"] == shown["step"].max()]
    least = {m: _least(end, m, level) for m, level in (("recognition", 0.5), ("recall", 0.0))}
    says = "sequences are recognised after fewer exposures than they are recited after"
    rule = "holds if recognition's interval is above a half at fewer exposures than recall's is above 0"
    first, later = least["recognition"], least["recall"]
    verdict = MISSING if np.isnan(first) and np.isnan(later) else UNDECIDED
    if not np.isnan(first):
        verdict = HOLDS if np.isnan(later) or first < later else FAILS
    numbers = {"value": first, "ci_lo": np.nan, "ci_hi": np.nan, "n": int(end["n"].sum())}
    statistic = f"exposures until recognised (until recited: {later:g})"
    yield _row(says, OWN, "small", "exposures", statistic, rule, verdict, **numbers)
    kept = told.curves[(told.curves["measure"] == "retention") & (told.curves["phase"] == "later")]
    says = "later training on other text takes what was recited"
    rule = "holds if the interval of what is still recited, at most exposures, is below 1; fails if nothing is lost"
    if kept.empty:
        yield _row(says, OWN, "small", "exposures", "still recited at the end", rule, MISSING)
        return
    last = kept[kept["step"] == kept["step"].max()].sort_values("exposures").iloc[-1]
    numbers = last[["value", "ci_lo", "ci_hi", "n"]].to_dict()
    verdict = HOLDS if last["ci_hi"] < 1 else FAILS if last["value"] == 1 else UNDECIDED
    statistic = f"still recited at the end, {last['exposures']} exposures"
    yield _row(says, OWN, "small", "exposures", statistic, rule, verdict, **numbers)


def _least(end: pd.DataFrame, measure: str, level: float) -> float:
    """Fewest exposures at which a measure's interval is above a level; NaN for none."""
    rows = end[(end["measure"] == measure) & (end["ci_lo"] > level) & (end["exposures"] > 0)]
    return float(rows["exposures"].min()) if len(rows) else np.nan
