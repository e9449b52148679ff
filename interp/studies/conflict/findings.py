"""Which published findings about knowledge conflicts hold on the model, by a rule that is the same for all.

A finding holds where the 95 % interval of its statistic lies wholly on the side that was published, does not where it
lies wholly on the other, and is undecided where it includes the boundary (zero for differences, a half for ratios). The
interval is over subjects; fewer than `LEAST` decide nothing.

The interval of a move less its controls leaves out how control sets differ among themselves, and a window drawn at
random may pass it. A finding about a move is therefore undecided also where any control set goes as far from their mean
as the move does, on its side (`beyond`), and fewer than `SETS` sets decide nothing. A cut of heads, or of MLPs at the
last token, that would be decided is `general damage` where it costs prose more than each of its controls does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from interp.measure.conflict import MEMORY, memorisation
from interp.measure.priors import BINS
from interp.studies.conflict.balance import SINGLE

XIE = "Xie et al. 2024 (arXiv 2305.13300)"
ORTU = "Ortu et al. 2024 (arXiv 2402.11655)"
SUPPRESSION = "general copy suppression (arXiv 2507.11809)"
GEVA = "Geva et al. 2023 (arXiv 2304.14767)"
HOLDS, NOT, OPEN = "holds", "does not", "undecided"
FEW, FEW_SETS, DAMAGE = "too few subjects", "too few controls", "general damage"
LEAST = 6
"""Subjects from which an interval is told; of fewer, a bootstrap makes it too narrow."""
SETS = 8
"""Control sets from which it says something that the move lies beyond each."""


@dataclass(frozen=True)
class Judged:
    """A statistic and the boundary that its interval is held against.

    Attributes:
        above: whether the finding says that it lies above the boundary, or below.
        n_clusters: subjects.
        n_controls: control sets; None where the finding is not about a move, as all that follow.
        beyond: share of the sets that go as far as the move.
        cost: what the move adds to the loss of prose (nats); NaN where that is not measured.
        most: what its costliest control adds.
    """

    finding: str
    source: str
    statistic: str
    above: bool
    boundary: float
    value: float
    lo: float
    hi: float
    n: int
    n_clusters: int
    n_controls: int | None = None
    beyond: float = 0.0
    cost: float = float("nan")
    most: float = float("nan")

    @property
    def verdict(self) -> str:
        """By the rule of the module's docstring."""
        if self.n_clusters < LEAST:
            return FEW
        if self.n_controls is not None and self.n_controls < SETS:
            return FEW_SETS
        over, under = self.lo > self.boundary, self.hi < self.boundary
        if not (over or under) or self.beyond > 0:
            return OPEN
        if self.cost > self.most:
            return DAMAGE
        return HOLDS if over == self.above else NOT

    @property
    def rule(self) -> str:
        """What has to be so for the finding to hold, of as many subjects and control sets as decide."""
        out = f"interval {'above' if self.above else 'below'} {self.boundary:g}"
        if self.n_controls is not None:
            out += ", no control set as far"
        return out if pd.isna(self.cost) else out + f", prose no worse than {self.most:+.2f} nats"

    def row(self) -> dict[str, object]:
        """Of the table."""
        return {
            "finding": self.finding,
            "source": self.source,
            "statistic": self.statistic,
            "value": self.value,
            "ci_lo": self.lo,
            "ci_hi": self.hi,
            "verdict": self.verdict,
            "rule": self.rule,
            "n": self.n,
            "n_clusters": self.n_clusters,
        }


def findings(
    sides: pd.DataFrame,
    contrasts: pd.DataFrame,
    over_controls: pd.DataFrame,
    prose: pd.DataFrame,
    *,
    window: int,
) -> pd.DataFrame:
    """One row a finding; those whose settings or moves were not run are left out.

    Args:
        sides, contrasts, over_controls, prose: tables of the study.
        window: layers of the window of MLPs that is judged.

    Returns:
        finding, source, statistic, value, ci_lo, ci_hi, verdict (`holds`, `does not`, `undecided`, `too few
        subjects`, `too few controls`, `general damage`), rule, n, n_clusters.
    """
    judged = [*_ratios(sides), *_differences(contrasts), *_moves(over_controls, prose, window)]
    return pd.DataFrame([j.row() for j in judged])


def _ratios(sides: pd.DataFrame) -> list[Judged]:
    out = []
    asked = (
        ("one statement against it turns most known facts", [SINGLE], False),
        (
            "beside a statement of either side most answers are the memory's",
            ["1:1 memory first", "1:1 counter first"],
            True,
        ),
    )
    for finding, settings, above in asked:
        own = sides[sides["setting"].isin(settings)]
        if set(own["setting"]) != set(settings):
            continue
        (row,) = memorisation(own, ()).to_dict("records")
        name = f"memorisation ratio, {', '.join(settings)}"
        out.append(_judged(finding, XIE, name, above, 0.5, {**row, "value": row["ratio"]}))
    return out


def _judged(
    finding: str, source: str, name: str, above: bool, boundary: float, row: Mapping[str, Any]
) -> Judged:
    """Of a row with value, interval and counts."""
    numbers = (row["value"], row["ci_lo"], row["ci_hi"], row["n"], row["n_clusters"])
    return Judged(finding, source, name, above, boundary, *numbers)


def _differences(contrasts: pd.DataFrame) -> list[Judged]:
    out = []
    asked: Sequence[tuple[str, str, str, bool]] = (
        ("a second statement against it turns more facts", "context twice", "", False),
        ("beside one for it, a second statement against it turns more facts", "context twice beside memory", "", False),
        ("a second statement for it keeps more facts", "memory twice beside context", "", True),
        ("of two statements the later one is believed", "order 1:1", "", False),
        ("statements about others weaken the one against it", "irrelevant 3", "", True),
        ("facts about popular subjects (by token rank) are kept more often", "popularity",
         f"{SINGLE} {BINS[-1]}", True),
    )  # fmt: skip
    for finding, contrast, a, above in asked:
        own = contrasts[(contrasts["contrast"] == contrast) & (contrasts["statistic"] == MEMORY)]
        if a:
            own = own[own["a"] == a]
        for r in own.to_dict("records"):
            name = f"share of the memory's answers, {r['a']} less {r['b']}"
            out.append(_judged(finding, XIE, name, above, 0.0, r))
    return out


def _moves(over: pd.DataFrame, prose: pd.DataFrame, window: int) -> list[Judged]:
    """Moves of the largest set of heads, and of the window, less their controls; kind of control by kind."""
    out = []
    asked: Sequence[tuple[str, str, str, str, str, str, float | None, bool]] = (
        ("few heads carry the context: without what they read, memory is said", ORTU, "conflict", "scale context",
         "answer", MEMORY, 0.0, True),
        ("few heads carry the context: without what they read, memory is ahead", ORTU, "conflict", "scale context",
         "answer", "margin", 0.0, True),
        ("heads that read the context's answer and speak against it: without that, context is ahead", SUPPRESSION,
         "conflict", "scale against", "answer", "margin", 0.0, False),
        ("few heads carry the memory: without what they read of the subject, context is ahead", ORTU, "conflict",
         "scale memory", "answer", "margin", 0.0, False),
        ("few heads carry the context: cut, they leave the memory ahead", ORTU, "conflict", "cut context", "answer",
         "margin", None, True),
        ("few heads carry the memory: cut, they leave the context ahead", ORTU, "conflict", "cut memory", "answer",
         "margin", None, False),
        ("MLPs at the subject carry the memory", GEVA, "conflict", "cut mlps", "subject", "margin", None, False),
        ("MLPs at the last token carry the memory", GEVA, "conflict", "cut mlps", "answer", "margin", None, False),
        ("heads that carry the context are needed to read it", ORTU, "told", "cut context", "answer", "margin", None,
         False),
    )  # fmt: skip
    for finding, source, task, family, scope, statistic, factor, above in asked:
        own = over[(over["task"] == task) & (over["family"] == family) & (over["scope"] == scope)]
        own = own[own["statistic"] == statistic]
        own = own[own["factor"].isna()] if factor is None else own[own["factor"] == factor]
        if own.empty:
            continue
        wanted = window if family == "cut mlps" else own["k"].max()
        for r in own[own["k"] == wanted].to_dict("records"):
            what = "share of the memory's answers" if statistic == MEMORY else "margin of the memory (nats)"
            sets = f"{r['n_controls']} controls by {r['control']}"
            name = f"{what}: {family} {r['k']} @{scope} less {sets}, task {task}"
            name += f" (z {r['z']:+.1f}, beyond {r['beyond']:.2f})"
            cost, most = _costs(prose, r)
            judged = _judged(finding, source, name, above, 0.0, r)
            out.append(replace(judged, n_controls=r["n_controls"], beyond=r["beyond"], cost=cost, most=most))
    return out


def _costs(prose: pd.DataFrame, move: Mapping[str, Any]) -> tuple[float, float]:
    """What a move, and what the costliest of its controls of one kind, adds to the loss of prose.

    NaN for moves that need roles, which prose has not.
    """
    own = prose
    for c in ("family", "k", "scope"):
        own = own[own[c] == move[c]]
    if not np.isnan(move["factor"]) or own.empty:
        return float("nan"), float("nan")
    drawn = own.loc[own["control"] == move["control"], "d_nll"]
    return float(own.loc[own["control"] == "", "d_nll"].iloc[0]), float(drawn.max())
