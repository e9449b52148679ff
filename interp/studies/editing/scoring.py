"""From answers before and after edits to scores of conditions, their changes, and the best of several."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from interp.measure.edits import KINDS, harmonic, scoreboard
from interp.measure.stats import bootstrap_ci
from interp.tasks.base import stable_seed

CONDITION = ["method", "at_once"]
MEASURES = {"success": "S", "top": "T", "magnitude": "M"}
RESAMPLES = 2000
EDGES = (2.5, 97.5)


def scoreboards(scores: pd.DataFrame, *, seed: int) -> pd.DataFrame:
    """`scoreboard` of each condition, with intervals of S too (records resampled).

    Returns:
        method, at_once, state, measure, value, ci_lo, ci_hi, n.
    """
    parts = []
    for (method, at_once), part in scores.groupby(CONDITION, sort=False):
        board = scoreboard(part, seed=seed)
        board.insert(0, "method", method)
        board.insert(1, "at_once", at_once)
        for at in board.index[board["measure"] == "S"]:
            drawn = _resampled(by_record(part, str(board.loc[at, "state"])), seed)
            board.loc[at, ["ci_lo", "ci_hi"]] = np.percentile(drawn, EDGES)
        parts.append(board)
    return pd.concat(parts, ignore_index=True)


def by_record(scores: pd.DataFrame, state: str) -> pd.DataFrame:
    """Means of each record's prompts: one row a record, one column a measure (ES, ET, EM, PS ...)."""
    own = scores[scores["state"] == state]
    means = own.groupby(["record", "kind"], sort=False)[list(MEASURES)].mean().unstack("kind")
    names = [(KINDS[kind] + MEASURES[column]) for column, kind in means.columns]
    return means.set_axis(names, axis=1)


def changes(scores: pd.DataFrame, *, seed: int) -> pd.DataFrame:
    """What each condition changed, paired by record.

    Returns:
        one row a condition and measure: method, at_once, measure, before, after, delta, ci_lo, ci_hi, n.
    """
    rows = []
    for (method, at_once), part in scores.groupby(CONDITION, sort=False):
        before = by_record(part, "before")
        after = by_record(part, "after").loc[before.index]
        for measure in before.columns:
            delta = (after[measure] - before[measure]).to_numpy(float)
            low, high = bootstrap_ci(delta, list(before.index), seed=seed)
            about = {"method": method, "at_once": at_once, "measure": measure}
            about |= {"before": before[measure].mean(), "after": after[measure].mean(), "delta": delta.mean()}
            rows.append({**about, "ci_lo": low, "ci_hi": high, "n": len(delta)})
    return pd.DataFrame(rows)


def total(means: pd.DataFrame) -> float:
    """S: the harmonic mean of ES, PS and NS of some records."""
    return harmonic([float(means[letter + "S"].mean()) for letter in KINDS.values()])


def difference(one: pd.DataFrame, other: pd.DataFrame, *, seed: int) -> tuple[float, float, float]:
    """S of one condition less S of another, with the interval over records, which both have.

    Args:
        one, other: of `by_record`.
    """
    other = other.loc[one.index]
    value = total(one) - total(other)
    low, high = np.percentile(_resampled(one, seed) - _resampled(other, seed), EDGES)
    return value, float(low), float(high)


def _resampled(means: pd.DataFrame, seed: int) -> np.ndarray:
    """S of each draw of the records; equal seeds draw the same of as many."""
    rng = np.random.default_rng(stable_seed("records", seed))
    values = means[[letter + "S" for letter in KINDS.values()]].to_numpy(float)
    at = rng.integers(len(values), size=(RESAMPLES, len(values)))
    return np.array([harmonic(list(row)) for row in values[at].mean(1)])


def ranked(scores: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Conditions by how well edits went: the highest S first, of equal ones the largest magnitudes; ties in order.

    Returns:
        one row a condition: `by`, ES, PS, NS, ET, PT, NT, EM, PM, NM, S, n.
    """
    rows = []
    for key, part in scores.groupby(list(by), sort=False):
        means = by_record(part, "after")
        rows.append(
            {
                **dict(zip(by, key, strict=True)),
                **{f"{k}{m}": means[f"{k}{m}"].mean() for m in MEASURES.values() for k in KINDS.values()},
                "S": total(means),
                "n": len(means),
            }
        )
    frame = pd.DataFrame(rows)
    sizes = frame[["EM", "PM", "NM"]].sum(axis=1)
    order = frame.assign(_sizes=sizes).sort_values(["S", "_sizes"], ascending=False, kind="stable")
    return order.drop(columns="_sizes").reset_index(drop=True)
