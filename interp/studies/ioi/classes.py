"""Classes of heads by rule: what their path does, and where they look.

| stage | path | looks from | at | class |
|---|---|---|---|---|
| `direct` | to the logits, for the answer | end | IO | name mover |
| `direct` | to the logits, against it | end | IO | negative mover |
| `direct` | to the logits, for the answer | end | S | subject suppressor |
| `direct` | to the logits, against it | end | S | subject mover |
| `mover_q` | to a name mover's query, for the answer | end | S2 | S-inhibition |
| `suppressor_q` | to a subject suppressor's query, for the answer | end | S2 | S-inhibition |
| `suppressor_k`, `inhibition_k`, `inhibition_v` | to what those two read at S2 | S2 | S1 | duplicate token |
| `suppressor_k`, `inhibition_k`, `inhibition_v` | the same | S2 | behind S1 | induction |
| `induction_k` | to an induction head's key behind S1 | behind S1 | S1 | previous token |

A head looks where most of its attention on the names (and, for induction, behind S1) goes, if that is `look` or more;
where it looks elsewhere its path keeps the name of its stage. Names are those of Wang et al. 2022; a subject
suppressor writes against the name that it looks at, which they did not need.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from interp.measure.stats import fdr
from interp.studies.ioi.roles import AFTER

MOVER, SUPPRESSOR, INHIBITION, DUPLICATE, INDUCTION, PREVIOUS = (
    "name mover",
    "subject suppressor",
    "S-inhibition",
    "duplicate token",
    "induction",
    "previous token",
)
CLASSES = (
    MOVER, "negative mover", "subject mover", SUPPRESSOR, INHIBITION, DUPLICATE, INDUCTION, PREVIOUS,
)  # fmt: skip
"""Classes in the order in which information comes out of them, last ones first."""


@dataclass(frozen=True)
class Step:
    """A stage: the paths from all heads to one input of the heads of a class.

    Attributes:
        name: what tables call it.
        of: class of the receiving heads; empty for the logits.
        input: `q`, `k`, `v` or `logits`.
        scope: roles at which the path is patched; empty: where the answer is predicted.
        row: role of the token from which senders are seen looking.
        looks: class by what a sender looks at: (key role, sign of the effect, 0 for any) -> class.
    """

    name: str
    of: str
    input: str
    scope: tuple[str, ...]
    row: str
    looks: Mapping[tuple[str, int], str]


_READ_AT_S2 = {("s1", 0): DUPLICATE, (AFTER, 0): INDUCTION}
STEPS = (
    Step(
        "direct",
        "",
        "logits",
        (),
        "end",
        {
            ("io", 1): MOVER,
            ("io", -1): "negative mover",
            ("s", -1): "subject mover",
            ("s", 1): SUPPRESSOR,
        },
    ),
    Step("mover_q", MOVER, "q", (), "end", {("s2", 1): INHIBITION}),
    Step("mover_k", MOVER, "k", ("io", "s1"), "s2", {}),
    Step("mover_v", MOVER, "v", ("io", "s1"), "s2", {}),
    Step("suppressor_q", SUPPRESSOR, "q", (), "end", {("s2", 1): INHIBITION}),
    Step("suppressor_k", SUPPRESSOR, "k", ("s2",), "s2", _READ_AT_S2),
    Step("inhibition_q", INHIBITION, "q", (), "end", {}),
    Step("inhibition_v", INHIBITION, "v", ("s2",), "s2", _READ_AT_S2),
    Step("inhibition_k", INHIBITION, "k", ("s2",), "s2", _READ_AT_S2),
    Step("induction_k", INDUCTION, "k", (AFTER,), AFTER, {("s1", 0): PREVIOUS}),
)
"""The stages, each after those whose classes it needs."""


def judged(effects: pd.DataFrame, *, level: float, least: float, most: int) -> pd.DataFrame:
    """Effects of one stage with `q` (false discovery rate over its senders) and `chosen`.

    Chosen are senders with q <= level and an effect of `least` or more either way, at most the `most` strongest.
    """
    out = fdr(effects)
    ok = (out["q"] <= level) & (out["effect"].abs() >= least)
    strongest = out["effect"].abs().where(ok).nlargest(most).index
    return out.assign(chosen=out.index.isin(strongest) & ok)


def classed(stage: Step, chosen: pd.DataFrame, attention: pd.DataFrame, look: float) -> pd.DataFrame:
    """The chosen senders of a stage with their class and where they look.

    Returns:
        component, layer, head, class, stage, effect, ci_lo, ci_hi, q, looks (the role), mass.
    """
    rows = attention[attention["row"] == stage.row].set_index("component")
    out = []
    for sender in chosen.sort_values("effect", key=np.abs, ascending=False).itertuples():
        seen = _seen(stage, rows.loc[sender.sender])
        role = max(seen, key=lambda r: seen[r])
        told = role if seen[role] >= look else "elsewhere"
        sign = 1 if sender.effect > 0 else -1
        name = stage.looks.get((told, sign)) or stage.looks.get((told, 0)) or f"other: {stage.name}"
        out.append(
            {
                "component": sender.sender,
                "layer": sender.layer,
                "head": sender.head,
                "class": name,
                "stage": stage.name,
                "effect": sender.effect,
                "ci_lo": sender.ci_lo,
                "ci_hi": sender.ci_hi,
                "q": sender.q,
                "looks": told,
                "mass": seen[role],
            }
        )
    columns = [
        "component",
        "layer",
        "head",
        "class",
        "stage",
        "effect",
        "ci_lo",
        "ci_hi",
        "q",
        "looks",
        "mass",
    ]
    return pd.DataFrame(out, columns=columns)


def _seen(stage: Step, masses: pd.Series) -> dict[str, float]:
    """Attention on what a stage asks about; the subject's two mentions are one where it does not tell them apart."""
    if stage.name == "direct":
        return {"io": masses["io"], "s": masses["s1"] + masses["s2"]}
    if stage.row == "end":
        return {role: masses[role] for role in ("io", "s1", "s2")}
    return {role: masses[role] for role in ("io", "s1", AFTER)}


def members(heads: pd.DataFrame, of: str) -> list[str]:
    """Heads of a class, strongest first."""
    return list(dict.fromkeys(heads.loc[heads["class"] == of, "component"]))


def circuit(heads: pd.DataFrame, classes: Sequence[str] = CLASSES) -> list[str]:
    """Heads of all classes; those whose path is told but not what they do are no part of it."""
    return list(dict.fromkeys(h for name in classes for h in members(heads, name)))
