"""What the tables say of published findings. A rule is fixed for each: which numbers let it hold, and which refute it.

Most are put so that they hold where an interval lies above 0 and do not where it lies below. Three are held against a
boundary, so that both verdicts are within reach: no share of prompts lies below 0. All boundaries are conventions, set
after a first run on one model had been seen, and not on its numbers: they are round, and in the statement itself.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd

from interp.measure.stats import bootstrap_ci, fdr
from interp.studies.editing.localise import TRACE
from interp.studies.editing.records import GIVEN
from interp.studies.editing.scoring import by_record, clusters, difference
from interp.studies.editing.writing import CONTROLS

TOGETHER = "rome together"


FEWEST = 6
"""Units that an interval has to be over: of fewer, all of one sign come up by chance in more than 5 % of cases."""

WRITTEN = 0.5
"""The share of facts (ES, PS) that counts as written: most of them."""

COST = 0.05
"""The share of neighbours lost that counts as a cost: more than one in twenty, the room a 95 % statement leaves."""

NOTHING = 0.05
"""The share of the variance of success that counts as next to nothing beyond what the layer explains."""

LEVEL = 0.05
"""The false discovery rate of the findings about traces, over all that are told."""

TRACES = (("mlp_out", "noise", "probability"), ("mlp_out", "subject_swap", "logit_diff"))
"""Traces that a finding is told of, the reference's and the advised one; table `localisation` has all."""


def verdict(low: float, high: float, n: int, boundary: float = 0.0) -> str:
    """`holds` where the interval lies above a boundary, `does not` where it lies below, else `undecided`; so with few.

    >>> verdict(0.1, 0.2, 50), verdict(-0.2, -0.1, 50), verdict(-0.1, 0.1, 50), verdict(0.1, 0.2, 5)
    ('holds', 'does not', 'undecided', 'undecided')
    >>> verdict(0.1, 0.2, 50, 0.5)
    'does not'
    """
    if math.isnan(low) or math.isnan(high) or n < FEWEST:
        return "undecided"
    return "holds" if low > boundary else "does not" if high < boundary else "undecided"


def beyond(q: float, high: float, n: int) -> str:
    """Whether a trace says more than the layer: `does not` where its gain is next to nothing at most.

    It `holds` where shuffled records explain as much in too few cases, and the gain may be more than next to nothing.

    >>> beyond(0.01, 0.2, 8), beyond(0.4, 0.2, 8), beyond(0.4, 0.01, 8), beyond(0.01, 0.01, 8), beyond(0.01, 0.2, 5)
    ('holds', 'undecided', 'does not', 'does not', 'undecided')
    """
    if math.isnan(q) or math.isnan(high) or n < FEWEST:
        return "undecided"
    return "does not" if high < NOTHING else "holds" if q <= LEVEL else "undecided"


def findings(
    scores: pd.DataFrame,
    board: pd.DataFrame,
    changes: pd.DataFrame,
    drift: pd.DataFrame | None,
    localisation: pd.DataFrame | None,
    *,
    seed: int,
) -> pd.DataFrame:
    """One row a finding: finding, statistic, value, ci_lo, ci_hi, n, p, verdict.

    Args:
        scores: of `Chosen.marked`.
        board, changes: of `scoreboards` and `changes`.
        drift, localisation: tables of the study; None where they were not made.

    Returns:
        n counts the units that are resampled; p is there for traces only, adjusted over those told.
    """
    rows = _written(board, changes)
    own = {
        (str(m), int(n)): part for (m, n), part in _kept(scores).groupby(["method", "at_once"], sort=False)
    }
    after = {key: by_record(part, "after") for key, part in own.items()}
    names = {key: clusters(part) for key, part in own.items()}
    given = {key: _given(part["unit"].iloc[0]) for key, part in own.items()}
    rows += _controls(board, after, seed)
    for (method, n), means in after.items():
        if method == "memit" and n > 1 and (TOGETHER, n) in after:
            units = names[method, n]
            found = difference(means, after[TOGETHER, n], units, seed=seed)
            what = f"MEMIT of {n} facts at once does better than the sum of {n} edits by ROME, each of the intact model"
            statistic = f"S of MEMIT - ROME{given[method, n]}"
            rows.append(_row(what, statistic, *found, units.nunique()))
        if method == "memit" and n > 1 and ("memit", 1) in after:
            units = names[method, n]
            found = difference(after["memit", 1], means, units, seed=seed)
            what = f"MEMIT writes {n} facts at once worse than one alone"
            rows.append(_row(what, f"S of 1 - S of {n}{given[method, n]}", *found, units.nunique()))
    if drift is not None:
        for (method, n), part in drift.groupby(["method", "at_once"], sort=False):
            each = (part["nll_after"] - part["nll_before"]).groupby(part["passage"]).mean()
            what = f"other text gets less likely under {method}, {n} at once"
            rows.append(_mean(what, "nats a token, given these edits", each, seed))
    if localisation is not None:
        rows += _traced(localisation)
    return pd.DataFrame(rows)


def _kept(scores: pd.DataFrame) -> pd.DataFrame:
    return scores[~scores["shared"].astype(bool)]


def _given(unit: str) -> str:
    """Said of a statistic whose interval knows of one edit only."""
    return ", given this edit" if unit == GIVEN else ""


def _written(board: pd.DataFrame, changes: pd.DataFrame) -> list[dict[str, Any]]:
    """Whether edits write most facts, in the edited wording and in others, and whether they cost neighbours."""
    after = board[board["state"] == "after"].set_index(["method", "at_once", "measure"])
    lost = changes.set_index(["method", "at_once", "measure"])
    asked = (
        ("ES", after, "writes the fact", "ES", "value", WRITTEN),
        ("PS", after, "writes it for other wordings too", "PS", "value", WRITTEN),
        ("NS lost", lost, "costs neighbours their answers", "neighbours lost", "delta", COST),
    )
    rows = []
    for method, n in dict.fromkeys(zip(changes["method"], changes["at_once"], strict=True)):
        for measure, table, what, statistic, column, boundary in asked:
            if method in CONTROLS or (method, n, measure) not in table.index:
                continue
            r = table.loc[(method, n, measure)]
            told = f"{statistic} (against {boundary:g}){_given(r['unit'])}"
            found = (float(r[column]), r["ci_lo"], r["ci_hi"])
            rows.append(_row(f"{method}, {n} at once, {what}", told, *found, int(r["units"]), boundary))
    return rows


def _controls(
    board: pd.DataFrame, after: dict[tuple[str, int], pd.DataFrame], seed: int
) -> list[dict[str, Any]]:
    """ROME against control edits: it writes more, and they do not write most facts themselves."""
    rows = []
    ends = board[(board["state"] == "after") & (board["measure"] == "ES")].set_index(["method", "at_once"])
    for kind in CONTROLS:
        if ("rome", 1) not in after or (kind, 1) not in after:
            continue
        delta = after["rome", 1]["ES"] - after[kind, 1]["ES"].loc[after["rome", 1].index]
        low, high = (float(ends.loc[(kind, 1), c]) for c in ("ci_lo", "ci_hi"))
        row = _mean(
            "ROME writes the fact, and a control edit of its size does not",
            f"ES of ROME - {kind} (whose own ES is {low:.2f} to {high:.2f})",
            delta,
            seed,
        )
        alone = verdict(-high, -low, row["n"], -WRITTEN)
        both = {row["verdict"], alone}
        row["verdict"] = "does not" if "does not" in both else "holds" if both == {"holds"} else "undecided"
        rows.append(row)
    return rows


def _traced(localisation: pd.DataFrame) -> list[dict[str, Any]]:
    """Hase et al. (2023): where a fact is traced to says next to nothing of where it is written, beyond the layer."""
    own = localisation[
        [key in TRACES for key in zip(*(localisation[c] for c in TRACE), strict=True)]
    ].reset_index(drop=True)
    rows = []
    for r in fdr(own).to_dict("records"):
        about = f"{r['trace']}, {r['corruption']}, {r['metric']}"
        row = _row(
            f"a trace says how well a fact is written in a layer, beyond the layer itself ({r['kind']})",
            f"R\u00b2 gained (against {NOTHING:g}, and p): {about}",
            r["gain"], r["gain_lo"], r["gain_hi"], r["records"],
        )  # fmt: skip
        rows.append({**row, "p": r["q"], "verdict": beyond(r["q"], r["gain_hi"], r["records"])})
    return rows


def _mean(finding: str, statistic: str, values: pd.Series, seed: int) -> dict[str, Any]:
    """The mean of one number a record, or passage."""
    numbers = values.to_numpy(float)
    low, high = bootstrap_ci(numbers, list(map(str, values.index)), seed=seed)
    return _row(finding, statistic, float(np.mean(numbers)), low, high, len(numbers))


def _row(
    finding: str, statistic: str, value: float, low: float, high: float, n: int, boundary: float = 0.0
) -> dict[str, Any]:
    about = {"finding": finding, "statistic": statistic, "value": value, "ci_lo": low, "ci_hi": high, "n": n}
    return {**about, "p": math.nan, "verdict": verdict(low, high, n, boundary)}
