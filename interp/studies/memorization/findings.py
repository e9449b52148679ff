"""What the study says, judged by rules that were set before: intervals over items of all trainings together.

A claim about a difference holds where its 95 % interval lies wholly on the claimed side of its boundary, does not where
it lies wholly on the other, and is undecided else. Fewer than `LEAST` items decide nothing, and a verdict over no items
is refused. A claim about an edit asks first whether the edit erased anything: where it did not, there is nothing to
judge. A claim that needs retention is `general damage` where the edit costs more than `COST` of class alignment.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from interp.errors import UsageError
from interp.studies.memorization.audit import NEGATED, ORACLE, ORIGINAL, TUNED
from interp.studies.memorization.cuts import CONTROLS, NONE
from interp.studies.memorization.measures import between, unseen_share

HOLDS, NOT, OPEN = "holds", "does not", "undecided"
FEW, NOTHING, DAMAGE = "too few items", "nothing deleted", "general damage"
LEAST = 6
"""Items from which an interval is told."""
COST = 0.1
"""Class alignment that an edit may cost."""
UNNOTICED = -1.64
"""C_T below which samples would be called copies, at 5 %."""
_SHARED = f"interval below 0; A erased; alignment not lower by more than {COST:g}"
MARGIN = 0.15
"""Replication or ease that counts as none: what thirty items can tell from it."""

PROTOCOL = "memorized items replicate (0.8 or more) and controls do not (0.05 or less)"
WEN = "Wen et al. 2024 (arXiv 2407.21720)"
CHAVHAN = "Chavhan et al. 2024 (arXiv 2406.18566)"
DORI = "Dori 2025 (arXiv 2507.16880)"
STEIN = "Stein et al. 2023 (arXiv 2306.04675)"
OURS = "this toolkit"


@dataclass(frozen=True)
class Claim:
    """A number, its interval, and the side of a boundary on which the claim says that it lies.

    Attributes:
        above: whether the claim is that it lies above. gate: in place of a verdict, where the question does not arise.
    """

    finding: str
    source: str
    statistic: str
    value: float
    lo: float
    hi: float
    boundary: float
    above: bool
    n: int
    n_seeds: int
    gate: str = ""
    rule: str = ""

    @property
    def verdict(self) -> str:
        """By the rule of the module's docstring.

        Raises:
            UsageError: there is no item.
        """
        if not self.n:
            raise UsageError(f"'{self.finding}': a verdict over no items is refused; measure some")
        if self.n < LEAST:
            return FEW
        if self.gate:
            return self.gate
        over, under = self.lo > self.boundary, self.hi < self.boundary
        if not (over or under):
            return OPEN
        return HOLDS if over == self.above else NOT

    def row(self) -> dict[str, Any]:
        """Of the table."""
        rule = self.rule or f"interval {'above' if self.above else 'below'} {self.boundary:g}"
        return {
            "finding": self.finding,
            "source": self.source,
            "statistic": self.statistic,
            "value": self.value,
            "ci_lo": self.lo,
            "ci_hi": self.hi,
            "verdict": self.verdict,
            "rule": rule,
            "n": self.n,
            "n_seeds": self.n_seeds,
        }


def findings(
    samples: pd.DataFrame,
    detection: pd.DataFrame,
    copying: pd.DataFrame,
    items: pd.DataFrame,
    contrasts: pd.DataFrame,
    overlap: pd.DataFrame,
    attacks: pd.DataFrame,
    *,
    guidance: float,
    judged: Sequence[str],
    edits: Sequence[str],
) -> pd.DataFrame:
    """One row a claim; arguments are tables of the study, `attacks` with `ease`.

    Args:
        guidance: of the samples that existence is judged by. judged: edits held against every control.
        edits: other located ones.

    Returns:
        finding, source, statistic, value, ci_lo, ci_hi, verdict (`holds`, `does not`, `undecided`, `too few items`,
        `nothing deleted`, `general damage`), rule, n, n_seeds.
    """
    claims = [
        *_exists(samples[samples["guidance"] == guidance]),
        *_detected(detection),
        *_unnoticed(copying),
        *(c for edit in (*judged, *edits) for c in _shared(edit, items, contrasts, judged)),
        *_overlapping(overlap),
        *(c for edit in (*judged, *edits, NEGATED, TUNED) for c in _survives(edit, items, attacks)),
        *(c for edit in (ORIGINAL, *judged, *edits, NEGATED, TUNED) for c in _new(edit, items, attacks)),
        *_floor(attacks),
    ]
    return pd.DataFrame([c.row() for c in claims])


def _exists(samples: pd.DataFrame) -> list[Claim]:
    """By the protocol in every training, and as a difference to the oracle over all."""
    rates: dict[str, tuple[float, int]] = {}
    own = samples[samples["role"] == "model"]
    n_seeds = own["seed"].nunique()
    for group, worst in (("memorized", min), ("control", max)):
        some = own[own["group"] == group]
        if some.empty:
            raise UsageError(f"no samples of the group {group}: whether memorization exists cannot be judged")
        by_seed = some.groupby("seed")["extracted"].mean()
        rates[group] = worst(by_seed), some.groupby(["seed", "item"]).ngroups
    low, n = rates["memorized"]
    high, m = rates["control"]
    out = [
        Claim(PROTOCOL, OURS, f"lowest MR of a training (highest of controls: {high:.3f}, {m} items)", low, low, low,
              0.8, True, n, n_seeds, NOT if low < 0.8 or high > 0.05 else HOLDS, "point values, in every training")
    ]  # fmt: skip
    both = (
        samples[samples["group"] == "memorized"]
        .groupby(["seed", "item", "role"])["extracted"]
        .mean()
        .unstack()
    )
    if "oracle" in both:
        delta = (both["model"] - both["oracle"]).dropna()
        told = _difference(delta)
        out.append(
            Claim("an oracle, trained without the items, does not replicate them", OURS,
                  "MR of memorized items less that of the oracle", *told, 0.5, True, len(delta), n_seeds)
        )  # fmt: skip
    return out


def _difference(delta: pd.Series) -> tuple[float, float, float]:
    """Mean and interval over items, indexed by seed and item."""
    if delta.empty:
        raise UsageError("a verdict over no items is refused; measure some")
    clusters = [" ".join(map(str, key)) if isinstance(key, tuple) else str(key) for key in delta.index]
    values = delta.to_numpy(float)
    return float(values.mean()), *between(values, clusters, seed=0)


def _detected(detection: pd.DataFrame) -> list[Claim]:
    """The magnitude against control words, in the training where it does worst."""
    out = []
    for signal in ("first", "all"):
        own = detection[(detection["role"] == "model") & (detection["signal"] == signal)]
        own = own[own["against"] == "control"]
        if own.empty:
            continue
        r = own.sort_values("auc_lo").iloc[0]
        name = "the first step" if signal == "first" else "all steps"
        out.append(
            Claim(
                f"conditional minus unconditional noise at {name} tells memorized prompts from other rare words",
                WEN, "AUC in the training where it is lowest", r["auc"], r["auc_lo"], r["auc_hi"], 0.8, True,
                int(r["prompts_positive"] + r["prompts_negative"]), own["seed"].nunique(),
            )
        )  # fmt: skip
    return out


def _unnoticed(copying: pd.DataFrame) -> list[Claim]:
    """C_T of honest samples of which one in ten is replaced by a copy, in the training where it notices most."""
    own = copying[copying["set"] == "mixed"]
    if own.empty:
        return []
    r = own.sort_values("c_t").iloc[0]
    return [
        Claim(
            "a test of whole sets (C_T) misses one copy in ten samples", STEIN,
            f"lowest C_T of a training ({r['extracted']:.2f} of the samples are copies)", r["c_t"], r["c_t"], r["c_t"],
            UNNOTICED, True, int(r["n"]), own["seed"].nunique(), "",
            f"point value above {UNNOTICED:g}, in every training",
        )
    ]  # fmt: skip


def _shared(edit: str, items: pd.DataFrame, contrasts: pd.DataFrame, judged: Sequence[str]) -> list[Claim]:
    """A cut located on A erases A, and B beyond the cut of ordinary prompts, and keeps what is ordinary."""
    own = contrasts[contrasts["edit"] == edit]
    if own.empty:
        return []
    erased = _mean(items, edit, "targeted")
    cost = own[(own["against"] == NONE) & (own["measure"] == "alignment")]
    dear = bool(len(cost)) and float(cost["ci_hi"].iloc[0]) < -COST
    gate = NOTHING if erased > 0.5 else DAMAGE if dear else ""
    out = []
    # Of the edits that no claim was published about, the hardest control says enough.
    for other in CONTROLS if edit in judged else ("ordinary",):
        for measure, text in (
            ("targeted", "what it was located on"),
            ("held_out", "held-out memorized items"),
        ):
            rows = own[(own["against"] == other) & (own["measure"] == measure)]
            if rows.empty:
                continue
            r = rows.iloc[0]
            claim = Claim(
                f"{edit}: the cut erases {text} beyond a mask of equal budget ({other})", CHAVHAN,
                f"MR, less that under the {other} mask", r["value"], r["ci_lo"], r["ci_hi"], 0.0, False,
                int(r["n"]), int(r["n_seeds"]), gate if measure == "held_out" else "",
                _SHARED if measure == "held_out" else "",
            )  # fmt: skip
            out.append(claim)
    if len(cost):
        r = cost.iloc[0]
        out.append(Claim(f"{edit}: ordinary prompts keep their digits", CHAVHAN, "class alignment, less that before",
                         r["value"], r["ci_lo"], r["ci_hi"], -COST, True, int(r["n"]), int(r["n_seeds"])))  # fmt: skip
    return out


def _mean(items: pd.DataFrame, edit: str, measure: str) -> float:
    own = items[(items["edit"] == edit) & (items["set"] == measure)]["value"]
    if own.empty:
        raise UsageError(f"{edit} was measured on no item of '{measure}'; a verdict over no items is refused")
    return float(own.mean())


def _overlapping(overlap: pd.DataFrame) -> list[Claim]:
    """A and B share more than sets dealt out from memorized and control items."""
    out = []
    for (method, share), own in overlap[overlap["statistic"] == "excess"].groupby(
        ["method", "share"], sort=False, dropna=False
    ):
        # Of several trainings, the one with the least evidence.
        r = own.sort_values("p").iloc[-1]
        name = method if np.isnan(share) else f"{method}, {share:g} of a row"
        gate = HOLDS if r["p"] < 0.05 else OPEN
        out.append(
            Claim(
                f"A and B share more with each other than with control words ({name})", CHAVHAN,
                "excess overlap, its 95 % range over deals (training with the highest p)", r["value"], r["lo"], r["hi"],
                0.0, True, int(r["n_items"]), own["seed"].nunique(), gate, "p < 0.05 over deals, in every training",
            )
        )  # fmt: skip
    return out


def _survives(edit: str, items: pd.DataFrame, attacks: pd.DataFrame) -> list[Claim]:
    """Under attack, A is as hard to get from the edited model as from the oracle, which never held it."""
    own = attacks[attacks["group"] == "targeted"]
    if edit not in set(own["condition"]) or ORACLE not in set(own["condition"]):
        return []
    gone = _mean(items, edit, "targeted") <= 0.5
    out = []
    for measure, text in (("any", "share of pictures got back"), ("ease", "ease of extraction")):
        if measure == "any":
            wide = own.groupby(["seed", "item", "condition"])["extracted"].max().unstack()
        else:
            wide = own.groupby(["seed", "item", "condition"])["ease"].mean().unstack()
        delta = (wide[edit] - wide[ORACLE]).dropna()
        told = _difference(delta)
        out.append(
            Claim(
                f"{edit}: the deletion survives the attack ({text})", DORI, f"{text}, less that of the oracle", *told,
                MARGIN, False, len(delta), delta.index.get_level_values("seed").nunique(), "" if gone else NOTHING,
                f"interval below {MARGIN:g}; A erased before the attack",
            )
        )  # fmt: skip
    return out


def _new(edit: str, items: pd.DataFrame, attacks: pd.DataFrame) -> list[Claim]:
    """Under attack, A is as hard to get as pictures that were never trained on, from the same edited model.

    An attack paints what it is after into a model that can draw much, held or not. Searches count that do not begin at
    the item's own prompt, whose words A was trained with and the others were not.
    """
    own = attacks[(attacks["condition"] == edit) & (attacks["start"] != "prompt")]
    held, new = (
        own[own["group"] == g].groupby(["seed", "item"])["ease"].mean() for g in ("targeted", "unseen")
    )
    if held.empty or new.empty:
        return []
    rng = np.random.default_rng(0)
    draws = [rng.choice(x.to_numpy(), (2000, len(x))).mean(1) for x in (held, new)]
    low, high = np.quantile(draws[0] - draws[1], [0.025, 0.975])
    # A side on which all are equal adds what items that were not drawn may do to its mean, which is in [0, 1].
    for values, (down, up) in ((held, (1, 0)), (new, (0, 1))):
        c, others = float(values.iloc[0]), unseen_share(len(values)) * (np.ptp(values) == 0)
        low -= others * (c * down + (1 - c) * up)
        high += others * ((1 - c) * down + c * up)
    gone = edit == ORIGINAL or _mean(items, edit, "targeted") <= 0.5
    known = edit == ORIGINAL
    return [
        Claim(
            "the attack tells what the model holds from what it never saw" if known
            else f"{edit}: what the attack gets back is no more than what it makes up of pictures never seen",
            DORI, "ease of extraction of A, less that of unseen pictures, same model, starts off the prompt",
            float(held.mean() - new.mean()), float(low), float(high), 0.0 if known else MARGIN, known,
            min(len(held), len(new)), own["seed"].nunique(), "" if gone else NOTHING,
        )
    ]  # fmt: skip


def _floor(attacks: pd.DataFrame) -> list[Claim]:
    """What the attack gets from an oracle, which is how often it makes pictures up."""
    own = attacks[(attacks["group"] == "targeted") & attacks["condition"].isin([ORACLE, ORIGINAL])]
    found = own.groupby(["seed", "item", "condition"]).agg(any=("extracted", "max"), ease=("ease", "mean"))
    if ORACLE not in set(own["condition"]):
        return []
    made_up = found["any"].unstack()[ORACLE].dropna()
    n_seeds = int(own["seed"].nunique())
    out = [
        Claim("the attack gets nothing from the oracle, which never held the pictures", OURS,
              "share of pictures got from the oracle", *_difference(made_up), MARGIN, False, len(made_up), n_seeds)
    ]  # fmt: skip
    ease = found["ease"].unstack()
    if ORIGINAL in ease:
        delta = (ease[ORIGINAL] - ease[ORACLE]).dropna()
        out.append(Claim("the oracle is the floor: a model that holds the pictures gives them up sooner", OURS,
                         "ease of extraction, original less oracle", *_difference(delta), 0.0, True, len(delta),
                         n_seeds))  # fmt: skip
    return out
