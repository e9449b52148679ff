"""Claims about memorization in language models, judged by intervals and by nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from interp.measure.stats import bootstrap_ci
from interp.studies.injection.measures import HELD, NOTHING, best, beyond, controls_of, elsewhere
from interp.tasks.base import stable_seed

if TYPE_CHECKING:
    from interp.studies.injection.spec import InjectionSpec

HOLDS, FAILS, UNDECIDED, MISSING = "holds", "fails", "undecided", "not measured"

CHANG = "Chang et al. 2024, arXiv 2311.09060"
KFAC = "arXiv 2510.24256"
OWN = "this study"

ITEMS, PASSAGES = 5, 32
"""Fewest sequences, and passages of prose, over which anything is judged."""

LEARNED = ("slimming", "hard_concrete")
BASELINE = "activation"


@dataclass(frozen=True, eq=False)
class Told:
    """What claims are judged by: tables of the study; no curves where no exposures were asked for.

    Attributes:
        items: of edits, each sequence. beside: of controls at the dose of the edit `of`, each sequence behind other
            prefixes. unheld: subject and memory, of which too little was recited to begin with.
    """

    recall: pd.DataFrame
    edits: pd.DataFrame
    contrasts: pd.DataFrame
    chosen: pd.DataFrame
    items: pd.DataFrame
    beside: pd.DataFrame
    attacks: pd.DataFrame
    curves: pd.DataFrame | None
    spec: InjectionSpec
    unheld: tuple[tuple[str, str], ...] = ()


def findings(told: Told) -> pd.DataFrame:
    """One row a claim, subject and memory; see the study for the columns. A claim over nothing is `not measured`."""
    from interp.studies.injection.verdicts import attacked, exposed

    rows = [*_found(told), *_deleted(told), *attacked(told), *exposed(told)]
    return pd.DataFrame(rows)


def above(low: float, high: float, level: float) -> str:
    """Whether an interval is above a level, below it, or neither."""
    if np.isnan(low) or np.isnan(high):
        return MISSING
    return HOLDS if low > level else FAILS if high <= level else UNDECIDED


def row(
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
    says = "the ranking finds the neurons that hold a sequence"
    rule = (
        "holds if the intervals of recall - that of vector length and of recall - chance are above 0, fails if one of "
        f"them is not; sequences resampled, {ITEMS} at least that are recited"
    )
    learned = "holds if the interval is above 0, fails if it is not; sequences resampled"
    if rows.empty:
        yield row(says, CHANG, "model", "injected", "recall - magnitude", rule, MISSING)
    for (subject, share), own in rows.groupby(["subject", "injected"], sort=False):
        where = str(subject), f"injected {share:g}"
        wide = own[own["sound"]].pivot_table(
            index=["item", "seed"], columns="method", values="recall", sort=False
        )
        chance = float(own["chance"].mean())
        for method in told.spec.methods:
            statistic = f"recall of {method} - magnitude"
            if method not in wide or "magnitude" not in wide:
                yield row(says, CHANG, *where, statistic, rule, MISSING)
                continue
            numbers = _mean(wide[method] - wide["magnitude"], "found", *where, method)
            beside = _mean(wide[method] - chance, "chance", *where, method)
            yield row(says, CHANG, *where, statistic, rule, _both(numbers, beside), **numbers)
        for method in [m for m in LEARNED if m in told.spec.methods]:
            says_learned = "learned gates find more of them than activations do"
            statistic = f"recall of {method} - {BASELINE}"
            if method not in wide or BASELINE not in wide:
                yield row(says_learned, CHANG, *where, statistic, learned, MISSING)
                continue
            numbers = _mean(wide[method] - wide[BASELINE], "learned", *where, method)
            verdict = above(numbers["ci_lo"], numbers["ci_hi"], 0)
            yield row(says_learned, CHANG, *where, statistic, learned, verdict, **numbers)


def _both(*numbers: dict[str, Any]) -> str:
    verdicts = {above(n["ci_lo"], n["ci_hi"], 0) for n in numbers}
    return next(v for v in (MISSING, FAILS, UNDECIDED, HOLDS) if v in verdicts)


def _mean(values: pd.Series, *seed: str) -> dict[str, Any]:
    """Of injections, sequences resampled; no interval of too few sequences."""
    values = values.dropna()
    names = values.index.get_level_values("item").astype(str).to_numpy()
    out = {"value": float(values.mean()), "ci_lo": np.nan, "ci_hi": np.nan, "n": len(values)}
    if len(set(names)) < ITEMS:
        return out
    low, high = bootstrap_ci(values.to_numpy(float), names, seed=stable_seed("finding", *seed)[0])
    return {**out, "ci_lo": low, "ci_hi": high}


# -- deletion --------------------------------------------------------------------------------------------------------


def _deleted(told: Told) -> Iterator[dict[str, Any]]:
    """Of every memory: what the best edit does, whether neurons are of one sequence alone, and curvature's edit."""
    spec, says = told.spec, "located sequences can be deleted beyond what damage does, and prose stays"
    rule, whole = _rules(spec)
    statistic = "still recited behind other prefixes"
    for subject, memory in told.unheld:
        yield row(says, OWN, subject, memory, statistic, rule, MISSING)
    for (subject, memory), own in told.chosen.groupby(["subject", "memory"], sort=False):
        where = str(subject), str(memory)
        edits, items, beside, contrasts = (
            table[(table["subject"] == subject) & (table["memory"] == memory)]
            for table in (told.edits, told.items, told.beside, told.contrasts)
        )
        if float(own["before"].max()) < HELD:
            yield row(says, OWN, *where, statistic, rule, MISSING)
            continue
        if (edit := best(own)) is None:
            n = _measure(edits, "none", "targeted")["n"]
            verdict = FAILS if n >= ITEMS else MISSING
            yield row(says, OWN, *where, f"{statistic}, best edit", rule, verdict, n=n)
        else:
            more = beyond(items, beside[beside["of"] == edit], edit, seed=spec.seed)
            numbers = elsewhere(items, edit, seed=spec.seed)
            verdict = _kept(numbers, 1.0, edits, edit, list(more.values()), spec.worth)
            yield row(says, OWN, *where, f"{statistic}, {edit}", rule, verdict, **numbers)
            yield from _damage(where, edit, more)
        yield from _specific(told, where, own, edits)
        if (own["edit"] == CURVATURE).any():
            asked = float(own.loc[own["edit"] == CURVATURE, "asked"].iloc[0])
            numbers = _measure(edits, CURVATURE, "held_out")
            before = _measure(edits, "none", "held_out")["value"]
            less = _contrasted(contrasts, CURVATURE, asked, "held_out")
            verdict = _kept(numbers, before, edits, CURVATURE, less, spec.worth)
            says_flat = "dropping flat curvature deletes what it was never told of, and prose stays"
            yield row(says_flat, KFAC, *where, "recited of what was held out", whole, verdict, **numbers)


CURVATURE = "flat curvature"


def _rules(spec: InjectionSpec) -> tuple[str, str]:
    """Of deleting what was located, and of deleting what was held out."""
    prose = (
        f"prose's interval is below {spec.worth:g} times its perplexity before the memory was put in (of what the "
        "model recites as it comes: before the edit)"
    )
    rest = (
        "not measured where prose's interval is not below that before the edit either; "
        f"{ITEMS} sequences and {PASSAGES} passages at least"
    )
    located = (
        "holds if of what was recited behind prefixes that no dose was chosen on less than half still is (interval), "
        "every control of equal dose (as many random neurons or weights, random weights that go as far) leaves more of "
        f"it (interval of the difference), and {prose}; fails if more than half is or prose's interval is above, if no "
        "edit erases, or if a control's interval is not above 0: that is general damage; " + rest
    )
    held_out = (
        "holds if less than half of what was held out and recited still is (interval), random weights that go as far "
        f"leave more of its tokens (interval of the difference), and {prose}; fails if more than half is or prose's "
        "interval is above, or if the control's interval is not above 0: that is general damage; " + rest
    )
    return located, held_out


def _damage(where: tuple[str, str], edit: str, more: dict[str, dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Of the best edit, beside each of its controls."""
    says = "the deletion takes more than random neurons or weights of equal dose"
    rule = (
        "recited behind other prefixes under the control, less the same under the edit: holds if the interval "
        f"(sequences and draws resampled) is above 0, else it is general damage and fails; {ITEMS} sequences at least"
    )
    for control, numbers in more.items():
        verdict = MISSING
        if numbers["n"] >= ITEMS and not np.isnan(numbers["ci_lo"]):
            verdict = HOLDS if numbers["ci_lo"] > 0 else FAILS
        given = {k: numbers[k] for k in NOTHING}
        yield row(says, OWN, *where, f"{control} - {edit}", rule, verdict, **given)
    if not more:
        yield row(says, OWN, *where, f"control - {edit}", rule, MISSING)


def _contrasted(contrasts: pd.DataFrame, edit: str, asked: float, measure: str) -> list[dict[str, Any]]:
    """What each control of an edit leaves of a measure, less what the edit does."""
    rows = contrasts[
        (contrasts["edit"] == edit)
        & (contrasts["asked"] == asked)
        & (contrasts["measure"] == measure)
        & contrasts["against"].isin(controls_of(edit, ""))
    ]
    return [
        {"value": -r["value"], "ci_lo": -r["ci_hi"], "ci_hi": -r["ci_lo"], "n": r["n"]}
        for r in rows.to_dict("records")
    ]


def _measure(edits: pd.DataFrame, edit: str, measure: str) -> dict[str, Any]:
    rows = edits[(edits["edit"] == edit) & (edits["measure"] == measure)]
    if rows.empty:
        return NOTHING
    return rows[["value", "ci_lo", "ci_hi", "n"]].iloc[0].to_dict()


def _kept(
    gone: dict[str, Any],
    before: float,
    edits: pd.DataFrame,
    edit: str,
    more: list[dict[str, Any]],
    worth: float,
) -> str:
    """The verdict of a deletion.

    Args:
        gone: what is still recited, of so much before. more: what its controls leave beyond that.
    """
    prose, memory = (_measure(edits, e, "prose_without") for e in (edit, "none"))
    if gone["n"] < ITEMS or prose["n"] < PASSAGES or not before > 0 or np.isnan(prose["ci_lo"]):
        return MISSING
    if not more or min(m["n"] for m in more) < ITEMS or any(np.isnan(m["ci_lo"]) for m in more):
        return MISSING
    if gone["ci_lo"] > before / 2 or any(m["ci_lo"] <= 0 for m in more):
        return FAILS
    if memory["ci_hi"] >= worth and prose["ci_hi"] >= worth:
        return MISSING
    if prose["ci_lo"] > worth:
        return FAILS
    return HOLDS if gone["ci_hi"] < before / 2 and prose["ci_hi"] < worth else UNDECIDED


def _specific(
    told: Told, where: tuple[str, str], own: pd.DataFrame, edits: pd.DataFrame
) -> Iterator[dict[str, Any]]:
    """Does silencing what is located on A take B's tokens too, beyond what it and random neurons do to all text?"""
    rows = told.contrasts[(told.contrasts["subject"] == where[0]) & (told.contrasts["memory"] == where[1])]
    says = "neurons of some sequences serve others that are memorized too"
    rule = (
        "nats a token that held-out sequences rise, less those that sequences never seen rise, less the same of random "
        f"neurons: holds if the interval is above 0, fails if it is not; of an edit that erases with prose at most "
        f"{told.spec.worth:g}, {ITEMS} sequences at least"
    )
    statistic = "held-out rise - never seen - random's"
    units = own[(own["family"] == "units") & own["erases"]].sort_values("prose", kind="stable")
    prose = {edit: _measure(edits, edit, "prose")["value"] for edit in units["edit"]}
    units = units[units["edit"].map(prose).astype(float) <= told.spec.worth]
    if not units.empty:
        best = units.iloc[0]
        found = rows[
            (rows["edit"] == best["edit"])
            & (rows["asked"] == best["asked"])
            & (rows["measure"] == "specific")
            & (rows["against"] == "random")
        ]
        if not found.empty and found["n"].iloc[0] >= ITEMS:
            numbers = found[["value", "ci_lo", "ci_hi", "n"]].iloc[0].to_dict()
            verdict = above(numbers["ci_lo"], numbers["ci_hi"], 0)
            yield row(says, CHANG, *where, f"{statistic}, {best['edit']}", rule, verdict, **numbers)
            return
    yield row(says, CHANG, *where, statistic, rule, MISSING)
