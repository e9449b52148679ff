"""What the study says, judged by rules that were set before: intervals over items of these trainings.

A claim holds where its 95 % interval lies wholly on the claimed side of its boundary and the point estimate of every
training does; it does not where the interval lies wholly on the other side, and is undecided else. Items of a training
are resampled as if they were independent, so that it is these trainings that a verdict is about.

- That two things are equal is a claim of its own: the interval of their difference lies within `MARGIN` (replication,
  ease) or `COST` (class alignment, denoising error). Fewer items than could show it are `too few items`; so are fewer
  than `LEAST` of any claim.
- An edit is judged over the trainings in which it erased A (replication at most `erased` of the spec); where it erased
  A in none, there is nothing to judge.
- A claim that needs retention is `general damage` where the edit costs more than `COST`; where that it costs less is
  not shown, it says so in place of `holds` (`UNSURE`).
- A claim about an attack is `attack cannot tell`, whatever came back, where the same attack does not tell the intact
  model from an oracle, or the pictures that it holds from others that it never saw.
- Settings were chosen on the first training of the spec. What rests on them is judged over the others, where there are
  some.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from interp.errors import UsageError
from interp.measure.stats import proportion_ci

if TYPE_CHECKING:
    from interp.studies.memorization.spec import MemorizationSpec

HOLDS, NOT, OPEN = "holds", "does not", "undecided"
FEW, MISSING = "too few items", "not measured"
NOTHING, DAMAGE, BLIND = "A not erased", "general damage", "attack cannot tell"
UNSURE = {OPEN: "retention undecided", FEW: "retention: too few items", MISSING: "retention not measured"}
"""In place of `holds`, where it is not shown that what is ordinary stays."""
BOTH = "so does the oracle"
LEAST = 6
"""Items from which an interval is told."""
COST = 0.1
"""Class alignment, or denoising error of held-out pictures (a share of it), that an edit may cost."""
MARGIN = 0.15
"""Replication or ease that counts as none: what thirty items can tell from it."""
ALPHA = 0.05

PROTOCOL = "memorized items replicate (0.8 or more) and controls do not (0.05 or less)"
WEN = "Wen et al. 2024 (arXiv 2407.21720)"
CHAVHAN = "Chavhan et al. 2024 (arXiv 2406.18566)"
DORI = "Dori 2025 (arXiv 2507.16880)"
STEIN = "Stein et al. 2023 (arXiv 2306.04675)"
OURS = "this toolkit"


@dataclass(frozen=True, eq=False)
class Told:
    """What claims are judged by: tables of the study.

    Attributes:
        items: `edit_items`. attacks: with `ease`. judged: edits that claims were published about. others: located ones.
    """

    samples: pd.DataFrame
    detection: pd.DataFrame
    copying: pd.DataFrame
    items: pd.DataFrame
    contrasts: pd.DataFrame
    overlap: pd.DataFrame
    attacks: pd.DataFrame
    chosen: pd.DataFrame
    edits: pd.DataFrame
    judged: Sequence[str]
    others: Sequence[str]


def enough(margin: float) -> int:
    """Fewest items of which an interval can lie within a margin: that of items that are all alike does."""
    return math.floor(math.log(0.025) / math.log(1 - margin)) + 1


@dataclass(frozen=True)
class Claim:
    """A number, its interval, and the side of a boundary on which the claim says that it lies.

    Attributes:
        above: whether the claim is that it lies above. points: of every training.
        refuted: past it (on the other side) the claim does not hold; the boundary itself where nothing is said.
        least: fewest items by which it can hold.
        gate: in place of any verdict, where the question does not arise. needs: in place of `holds`.
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
    rule: str
    points: tuple[float, ...] = ()
    refuted: float | None = None
    least: int = LEAST
    gate: str = ""
    needs: str = ""

    @property
    def verdict(self) -> str:
        """By the rules of the module's docstring.

        Raises:
            UsageError: there is no item.
        """
        if self.gate == MISSING:
            return MISSING
        if not self.n:
            raise UsageError(f"'{self.finding}': a verdict over no items is refused; measure some")
        if self.gate or self.n < LEAST:
            return self.gate or FEW
        sign = 1 if self.above else -1
        near, far = (self.lo, self.hi) if self.above else (self.hi, self.lo)
        level = self.boundary if self.refuted is None else self.refuted
        if sign * (near - self.boundary) > 0 and all(sign * (x - self.boundary) > 0 for x in self.points):
            return FEW if self.n < self.least else self.needs or HOLDS
        if sign * (far - level) < 0:
            return NOT
        return FEW if self.n < self.least else OPEN

    def row(self) -> dict[str, Any]:
        """Of the table."""
        return {
            "finding": self.finding,
            "source": self.source,
            "statistic": self.statistic,
            "value": self.value,
            "ci_lo": self.lo,
            "ci_hi": self.hi,
            "verdict": self.verdict,
            "rule": f"{self.rule}; over items of these trainings, {self.least} at least",
            "n": self.n,
            "n_seeds": self.n_seeds,
        }


def unjudged(finding: str, source: str, statistic: str, gate: str, rule: str, n: int = 0) -> Claim:
    """A claim without a number: there is nothing to judge it by."""
    nan = float("nan")
    return Claim(finding, source, statistic, nan, nan, nan, 0.0, True, n, 0, rule, gate=gate)


def findings(told: Told, *, spec: MemorizationSpec) -> pd.DataFrame:
    """One row a claim.

    Returns:
        finding, source, statistic, value, ci_lo, ci_hi, verdict (`holds`, `does not`, `undecided`, `too few items`,
        `not measured`, `A not erased`, `general damage`, `retention ...`, `attack cannot tell`, `so does the oracle`),
        rule, n, n_seeds.

    Raises:
        UsageError: no samples of memorized items or of controls.
    """
    from interp.studies.memorization.verdicts import attacked, cut

    claims = [
        *_exists(told.samples[told.samples["guidance"] == spec.guidance], spec.train_seeds[0]),
        *_detected(told.detection),
        *_unnoticed(told.copying),
        *cut(told, spec),
        *_overlapping(told.overlap),
        *attacked(told, spec),
    ]
    return pd.DataFrame([c.row() for c in claims])


def unchosen(seeds: Sequence[int], first: int) -> tuple[list[int], str]:
    """Trainings that no setting was chosen on, all where there are no others; and what a rule says of that."""
    every = sorted(set(seeds))
    others = [s for s in every if s != first]
    if not others:
        return every, "; settings were chosen on this training"
    return others, f"; training {first}, which settings were chosen on, is left out"


# -- what is memorized -------------------------------------------------------------------------------------------------


def _exists(samples: pd.DataFrame, first: int) -> Iterator[Claim]:
    """By the protocol in every training, and of the oracle."""
    own = samples[samples["role"] == "model"]
    for group in ("memorized", "control"):
        if own[own["group"] == group].empty:
            raise UsageError(f"no samples of the group {group}: whether memorization exists cannot be judged")
    seeds, note = unchosen(own["seed"].tolist(), first)
    by = own.groupby(["group", "seed"])["extracted"].mean()
    low, high = by["memorized"].loc[seeds].min(), by["control"].reindex(seeds).max()
    mine = own[own["seed"].isin(seeds) & (own["group"] == "memorized")]
    yield Claim(
        PROTOCOL, OURS, f"lowest MR of a training (highest of controls: {high:.3f})", low, low, low, 0.8, True,
        mine.groupby(["seed", "item"]).ngroups, len(seeds), f"point values, in every training{note}",
        gate=HOLDS if low >= 0.8 and high <= 0.05 else NOT,
    )  # fmt: skip
    finding = "an oracle, trained without the items, does not replicate them"
    rule = f"upper end of the rate's interval below {MARGIN:g}, the rate in every training{note}"
    rest = samples[
        (samples["role"] == "oracle") & (samples["group"] == "memorized") & samples["seed"].isin(seeds)
    ]
    if rest.empty:
        yield unjudged(finding, OURS, "the oracle's MR of memorized items", MISSING, rule)
        return
    yield rate(rest, finding, "the oracle's MR of memorized items", rule)


def rate(rows: pd.DataFrame, finding: str, statistic: str, rule: str) -> Claim:
    """That a share of `extracted`, of which an item has some rows, is below `MARGIN`."""
    values = rows["extracted"].to_numpy(float)
    clusters = (rows["seed"].astype(str) + " " + rows["item"].astype(str)).to_numpy()
    points = rows.groupby("seed")["extracted"].mean()
    return Claim(
        finding, OURS, statistic, float(values.mean()), *proportion_ci(values, clusters), MARGIN, False,
        len(set(clusters)), len(points), rule, tuple(points), least=enough(MARGIN),
    )  # fmt: skip


def _detected(detection: pd.DataFrame) -> Iterator[Claim]:
    """The magnitude against control words, in the training where it does worst."""
    for signal in ("first", "all"):
        own = detection[(detection["role"] == "model") & (detection["signal"] == signal)]
        own = own[own["against"] == "control"]
        if own.empty:
            continue
        r = own.sort_values("auc_lo").iloc[0]
        name = "the first step" if signal == "first" else "all steps"
        yield Claim(
            f"conditional minus unconditional noise at {name} tells memorized prompts from other rare words",
            WEN, "AUC in the training where it is lowest", r["auc"], r["auc_lo"], r["auc_hi"], 0.8, True,
            int(r["prompts_positive"] + r["prompts_negative"]), own["seed"].nunique(),
            "interval above 0.8 in every training; does not: below it in the one with the lowest end, which is shown",
        )  # fmt: skip


def _unnoticed(copying: pd.DataFrame) -> Iterator[Claim]:
    """C_T of honest samples of which one in ten is replaced by a copy, against honest samples."""
    finding = "a test of whole sets (C_T) misses one copy in ten samples"
    rule = (
        f"over drawn sets of equal size: at most half of the mixtures have a lower C_T than the lowest {ALPHA:.0%} of "
        "honest sets in every training; does not: more than half in every training; point values"
    )
    noticed, n, copies = [], [], []
    for _, own in copying.groupby("seed"):
        mixed, honest = own[own["set"] == "mixed"], own[own["set"] == "honest"]
        if mixed.empty or len(honest) < 1 / ALPHA:
            continue
        noticed.append(float((mixed["c_t"] < honest["c_t"].quantile(ALPHA)).mean()))
        n.append(int(mixed["n"].min()))
        copies.append(float(mixed["extracted"].mean()))
    if not noticed:
        yield unjudged(finding, STEIN, "share of mixtures that are noticed", MISSING, rule)
        return
    worst = max(noticed)
    yield Claim(
        finding, STEIN, f"highest share of mixtures noticed in a training ({np.mean(copies):.2f} of them are copies)",
        worst, worst, worst, 0.5, False, min(n), len(noticed), rule,
        gate=HOLDS if worst <= 0.5 else NOT if min(noticed) > 0.5 else OPEN,
    )  # fmt: skip


def _overlapping(overlap: pd.DataFrame) -> Iterator[Claim]:
    """A and B share more than sets dealt out from memorized and control items; and what the oracle says to that."""
    rule = (
        f"p < {ALPHA:g} over deals by digit in every training, and in none of the oracle, which holds neither; does "
        "not: below the 95 % range of deals in every training; not measured where items cannot be dealt by digit"
    )
    some = overlap[overlap["statistic"] == "excess"]
    for (method, share), own in some.groupby(["method", "share"], sort=False, dropna=False):
        name = method if np.isnan(share) else f"{method}, {share:g} of a row"
        finding = f"A and B share more with each other than with control words ({name})"
        model, oracle = (own[own["role"] == r] for r in ("model", "oracle"))
        if model.empty:
            continue
        # Of several trainings, the one with the least evidence.
        r = model.sort_values("p").iloc[-1]
        too = not oracle.empty and bool((oracle["p"] < ALPHA).any())
        below = bool((model["value"] < model["lo"]).all())
        if (own["dealt"] != "by digit").any() or oracle.empty:
            gate = MISSING
        elif r["p"] < ALPHA:
            gate = BOTH if too else HOLDS
        else:
            gate = NOT if below else OPEN
        least = "none" if oracle.empty else f"{oracle['p'].min():.3f}"
        told = f"the training with the highest p, {r['p']:.3f}; lowest p of an oracle: {least}"
        yield Claim(
            finding, CHAVHAN, f"excess overlap, its 95 % range over deals ({told})", r["value"], r["lo"], r["hi"],
            0.0, True, int(r["n_items"]), model["seed"].nunique(), rule, gate=gate,
        )  # fmt: skip
