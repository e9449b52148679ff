"""Rows of several trainings of the memorization study taken together, and what its edits and conditions are called."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from interp.measure.stats import bootstrap_ci, proportion_ci

NAMES = {
    "none": "before", "without": "without the memory", "original": "original", "oracle": "oracle",
    "wanda": "Wanda contrast", "wanda reference": "Wanda (published)", "wanda corrected": "Wanda (corrected)",
    "wanda paired": "Wanda (paired null)", "wanda prompts": "Wanda (prompts null)",
    "gradient": "gradient \u00d7 activation", "gradient_size": "gradient \u00d7 activation (size)",
    "integrated": "integrated gradients", "leave_one_out": "leave one out", "slimming": "Slimming",
    "hard_concrete": "hard concrete", "balanced_subnet": "BalancedSubnet", "contrastive": "contrastive gradients",
    "nemo": "NeMo", "subspace": "contrast subspace", "flat": "K-FAC (label-free)",
    "flat curvature": "K-FAC (label-free)", "ordinary": "ordinary prompts", "words": "control words",
    "negation": "task-vector negation", "adversarial tuning": "adversarial fine-tuning", "known": "known neurons",
}  # fmt: skip
"""Edits and conditions as figures and tables call them."""

CONTROLS = ("random", "magnitude", "ordinary", "words", "random weights", "tuned on unseen", "negated unseen")
TRAINED = ("negation", "adversarial tuning")
SHARES = ("targeted", "held_out", "retained", "control", "alignment")
"""Measures that are shares of items."""
AWAY = {"targeted": "targeted_own", "held_out": "held_out_own"}
"""Mean distance of samples of A and B to their own pictures, which says how far a deletion goes."""


_CONTROL = re.compile(r"(random|magnitude|ordinary|words)(?: \d+)? \((.+)\)")
_EARLY = re.compile(r"(.+), tau (\d+)")


def pooled(frame: pd.DataFrame) -> pd.DataFrame:
    """Draws of a random control under one name: `random 0 (nemo)` is `random (nemo)`."""
    return frame.assign(edit=[_CONTROL.sub(r"\1 (\2)", str(e)) for e in frame["edit"]])


def beside(frame: pd.DataFrame, edit: str) -> pd.DataFrame:
    """Edits, and of their controls those of one edit alone, by their kind."""
    told = [_CONTROL.fullmatch(str(e)) for e in frame["edit"]]
    out = frame.assign(edit=[e if m is None else m[1] for e, m in zip(frame["edit"], told, strict=True)])
    return out[[m is None or m[2] == edit for m in told]]


def named(edit: str) -> str:
    """An edit as it is written."""
    if control := _CONTROL.fullmatch(edit):
        return f"{named(control[1])}, beside {named(control[2])}"
    if early := _EARLY.fullmatch(edit):
        return f"{named(early[1])}, {early[2]} of the steps"
    if edit.startswith("rewritten ("):
        return f"{named(edit[len('rewritten (') : -1])} (rewritten)"
    if edit not in NAMES and edit.endswith(" weights") and edit.removesuffix(" weights") in NAMES:
        return f"{NAMES[edit.removesuffix(' weights')]} (weights)"
    return NAMES.get(edit, edit.replace("_", " "))


def family(edit: str) -> str:
    """What kind of edit it is, by which figures set them apart."""
    return (
        "none" if edit in ("none", "without", "original", "memorized")
        else "control" if edit in CONTROLS or _CONTROL.fullmatch(edit)
        else "trained" if edit in TRAINED else "oracle" if edit == "oracle" else "located"
    )  # fmt: skip


FAMILIES = ("none", "located", "known", "control", "trained", "oracle")


def in_order(frame: pd.DataFrame, column: str = "edit") -> pd.DataFrame:
    """Rows by family, otherwise as they were; `kind` says which family that is."""
    out = frame.assign(kind=[family(str(e)) for e in frame[column]])
    return out.sort_values("kind", key=lambda g: g.map(FAMILIES.index), kind="stable")


def edited(edits: pd.DataFrame, items: pd.DataFrame | None) -> pd.DataFrame:
    """Each edit and measure over all trainings: edit, measure, value, ci_lo, ci_hi, n, n_seeds.

    Of one training the rows are those of `edits`; of several, items of different trainings are different items, and a
    measure that is of no items (Frechet distance) is the mean. So it is with draws of a control that have one name.
    With items come the measures of `AWAY`.
    """
    keep = ["edit", "measure", "value", "ci_lo", "ci_hi", "n"]
    n_seeds = edits["seed"].nunique()
    if items is None:
        return edits[keep].assign(n_seeds=n_seeds)
    away = pd.DataFrame([
        {"edit": edit, "measure": AWAY[name], **_told(own, "own", False), "n": _count(own), "n_seeds": n_seeds}
        for (edit, name), own in items.groupby(["edit", "set"], sort=False) if name in AWAY
    ])  # fmt: skip
    once = ~edits["edit"].isin(edits[edits.duplicated(["edit", "measure"])]["edit"])
    order = {name: i for i, name in enumerate(dict.fromkeys(edits["edit"]))}
    one = edits[keep][once].assign(n_seeds=n_seeds)
    edits = edits[~once]
    items = items[items["edit"].isin(edits["edit"])]
    means = edits[~edits["measure"].isin(items["set"])].groupby(["edit", "measure"], sort=False)
    rows = [
        {"edit": e, "measure": m, "value": own["value"].mean(), "ci_lo": np.nan, "ci_hi": np.nan,
         "n": int(own["n"].sum()), "n_seeds": own["seed"].nunique()}
        for (e, m), own in means
    ]  # fmt: skip
    for (edit, measure), own in items.groupby(["edit", "set"], sort=False):
        value = _told(own, "value", measure in SHARES)
        rows.append(
            {"edit": edit, "measure": measure, **value, "n": _count(own), "n_seeds": own["seed"].nunique()}
        )
    every = pd.concat([f for f in (one, pd.DataFrame(rows), away) if len(f)], ignore_index=True)
    return every.sort_values("edit", key=lambda e: e.map(order), kind="stable")


def _count(own: pd.DataFrame) -> int:
    """Items, of which each draw of a control has a row."""
    return len(own.drop_duplicates(["seed", "item"]))


def _told(own: pd.DataFrame, column: str, share: bool) -> dict[str, float]:
    """Mean of a column, with an interval over items of each training."""
    values = own[column].to_numpy(float)
    clusters = (own["seed"].astype(str) + " " + own["item"].astype(str)).tolist()
    low, high = proportion_ci(values, clusters) if share else bootstrap_ci(values, clusters, seed=0)
    return {"value": float(values.mean()), "ci_lo": low, "ci_hi": high}


def replicated(samples: pd.DataFrame) -> pd.DataFrame:
    """MR of each group, by role and guidance, over all trainings: role, guidance, group, value, ci_lo, ci_hi, n."""
    by = samples.groupby(["role", "guidance", "group"], sort=False)
    return pd.DataFrame([
        {"role": r, "guidance": g, "group": group, **_told(own, "extracted", True),
         "n": own.drop_duplicates(["seed", "item"]).shape[0], "n_seeds": own["seed"].nunique()}
        for (r, g, group), own in by
    ])  # fmt: skip


def under_attack(attacks: pd.DataFrame) -> pd.DataFrame:
    """Before and under attack, over all trainings: condition, group, metric, value, ci_lo, ci_hi, n, steps.

    Metrics: `before` (share of samples that the prompt gives), `attacked` (share of searches that extracted their
    item), `attacked_any` (share of items that any search extracted). `steps`: median of the searches that did.
    """
    rows: list[dict[str, Any]] = []
    for (condition, group), own in attacks.groupby(["condition", "group"], sort=False):
        by = own.groupby(["seed", "item"], sort=False)
        items = by.agg(before=("before", "first"), any=("extracted", "max")).astype(float).reset_index()
        steps = own[own["extracted"].astype(bool)]["steps"].median()
        about = {"condition": condition, "group": group, "n": len(items), "n_seeds": own["seed"].nunique()}
        for metric, frame, column in (
            ("before", items, "before"), ("attacked", own, "extracted"), ("attacked_any", items, "any"),
        ):  # fmt: skip
            rows.append({**about, "metric": metric, **_told(frame, column, True), "steps": steps})
    return pd.DataFrame(rows)


def work(attacks: pd.DataFrame) -> pd.DataFrame:
    """Share of items that some search has got after so many updates: condition, group, steps, value, ci_lo, ci_hi."""
    done = attacks["extracted"].astype(bool)
    amounts = np.unique(np.append(attacks[done]["steps"].to_numpy(float), 0.0))
    rows: list[dict[str, Any]] = []
    for (condition, group), own in attacks.assign(at=attacks["steps"].where(done)).groupby(
        ["condition", "group"], sort=False
    ):
        least = own.groupby(["seed", "item"], sort=False)["at"].min().fillna(np.inf).reset_index()
        for steps in amounts:
            told = _told(least.assign(got=(least["at"] <= steps).astype(float)), "got", True)
            rows.append({"condition": condition, "group": group, "steps": steps, **told, "n": len(least)})
    return pd.DataFrame(rows)


def dealt(overlaps: pd.DataFrame) -> pd.DataFrame:
    """Overlap of each pair of sets beside those of deals: role, method, share, a, b, value, null_lo, null_hi, p, draws.

    Of several trainings the mean is tested: deal by deal the trainings' overlaps are averaged.
    """
    rows = []
    for (role, method, share, a, b), own in overlaps.groupby(
        ["role", "method", "share", "a", "b"], sort=False, dropna=False
    ):
        means = own.groupby("draw")["overlap"].mean()
        value, null = float(means.loc[-1]), means[means.index >= 0].to_numpy(float)
        rows.append({
            "role": role, "method": method, "share": share, "a": a, "b": b, "value": value,
            "null_lo": float(np.quantile(null, 0.025)), "null_hi": float(np.quantile(null, 0.975)),
            "p": (1 + int((null >= value - 1e-12).sum())) / (1 + len(null)), "draws": len(null),
            "independent": float(own[own["draw"] == -1]["independent"].mean()),
        })  # fmt: skip
    return pd.DataFrame(rows)


def averaged(frame: pd.DataFrame, by: Sequence[str], columns: Iterable[str]) -> pd.DataFrame:
    """Means over trainings of what has no items of its own; ends are left out where there are several trainings."""
    how: dict[str, str | Callable[[pd.Series], Any]] = dict.fromkeys(columns, "mean")
    out = frame.groupby(list(by), sort=False, dropna=False).agg(how).reset_index()
    if "seed" in frame and frame["seed"].nunique() > 1:
        out = out.assign(**{c: np.nan for c in ("ci_lo", "ci_hi", "lo", "hi") if c in out})
    return out


def at_dose(contrasts: pd.DataFrame, chosen: pd.DataFrame | None) -> pd.DataFrame:
    """Contrasts of text edits at the dose that each is measured at; at the largest, where none was chosen."""
    keys = ["subject", "memory", "edit"]
    largest = contrasts.groupby(keys)["asked"].transform("max")
    if chosen is None:
        return contrasts[contrasts["asked"] == largest]
    told = contrasts[keys].merge(chosen[[*keys, "asked"]].drop_duplicates(keys), on=keys, how="left")["asked"]
    return contrasts[contrasts["asked"].to_numpy() == np.where(told.isna(), largest, told)]
