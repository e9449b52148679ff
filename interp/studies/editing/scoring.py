"""From answers before and after edits to scores of conditions, their changes, and the best of several."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from interp.measure.edits import KINDS, harmonic, scoreboard
from interp.measure.stats import bootstrap_ci, proportion_ci
from interp.tasks.base import stable_seed

CONDITION = ["method", "at_once"]
MEASURES = {"success": "S", "top": "T", "magnitude": "M"}
RESAMPLES = 2000
EDGES = (2.5, 97.5)


def scoreboards(scores: pd.DataFrame, *, seed: int) -> pd.DataFrame:
    """`scoreboard` of each condition, with intervals of S too (units resampled).

    Args:
        scores: of `Chosen.marked`; neighbours that are shared with train facts count for nothing.

    Returns:
        method, at_once, state, measure, value, ci_lo, ci_hi, n, unit (what is resampled), units (how many).
    """
    parts = []
    for (method, at_once), part in _own(scores).groupby(CONDITION, sort=False):
        board = scoreboard(part, seed=seed)
        board.insert(0, "method", method)
        board.insert(1, "at_once", at_once)
        for at in board.index[board["measure"] == "S"]:
            drawn = _resampled(by_record(part, str(board.loc[at, "state"])), clusters(part), seed)
            board.loc[at, ["ci_lo", "ci_hi"]] = np.percentile(drawn, EDGES)
        parts.append(board.assign(unit=part["unit"].iloc[0], units=clusters(part).nunique()))
    return pd.concat(parts, ignore_index=True)


def _own(scores: pd.DataFrame) -> pd.DataFrame:
    """Scores without neighbours that layers were chosen on."""
    return scores[~scores["shared"].astype(bool)]


def clusters(scores: pd.DataFrame) -> pd.Series:
    """What each record is resampled with, by its name: itself, or the records that share its edit."""
    return scores.drop_duplicates("record").set_index("record")["cluster"]


def by_record(scores: pd.DataFrame, state: str) -> pd.DataFrame:
    """Means of each record's prompts: one row a record, one column a measure (ES, ET, EM, PS ...)."""
    own = scores[scores["state"] == state]
    means = own.groupby(["record", "kind"], sort=False)[list(MEASURES)].mean().unstack("kind")
    names = [(KINDS[kind] + MEASURES[column]) for column, kind in means.columns]
    return means.set_axis(names, axis=1)


def changes(scores: pd.DataFrame, *, seed: int) -> pd.DataFrame:
    """What each condition changed, paired by record.

    Args:
        scores: of `Chosen.marked`; neighbours that are shared with train facts count for nothing.

    Returns:
        one row a condition and measure: method, at_once, measure, before, after, delta, ci_lo, ci_hi, n, unit, units;
        and one with measure `NS lost`: of the neighbours that were right before, the share that is wrong after (every
        neighbour counts as one trial, ci_lo and ci_hi of a proportion in clusters; n: neighbours).
    """
    rows = []
    for (method, at_once), part in _own(scores).groupby(CONDITION, sort=False):
        before = by_record(part, "before")
        after = by_record(part, "after").loc[before.index]
        names = clusters(part)
        about = {"method": method, "at_once": at_once}
        over = {"unit": part["unit"].iloc[0], "units": names.nunique()}
        for measure in before.columns:
            delta = (after[measure] - before[measure]).to_numpy(float)
            low, high = bootstrap_ci(delta, list(names.loc[before.index]), seed=seed)
            means = {
                "before": before[measure].mean(),
                "after": after[measure].mean(),
                "delta": np.nanmean(delta),
            }
            n = int(np.isfinite(delta).sum())
            rows.append({**about, "measure": measure, **means, "ci_lo": low, "ci_hi": high, "n": n, **over})
        if (lost := _lost(part)) is not None:
            rows.append({**about, "measure": "NS lost", **lost, **over})
    return pd.DataFrame(rows)


def _lost(part: pd.DataFrame) -> dict[str, Any] | None:
    """Of the neighbours that were right before an edit, the share that is wrong after it; None where none was right."""
    own = part[part["kind"] == "neighbour"].set_index(["record", "prompt"])
    right = own[(own["state"] == "before") & (own["success"] > 0.5)]
    if right.empty:
        return None
    wrong = (own[own["state"] == "after"].loc[right.index, "success"] < 0.5).to_numpy(float)
    low, high = proportion_ci(wrong, right["cluster"].to_numpy())
    share = float(wrong.mean())
    return {"before": 0.0, "after": share, "delta": share, "ci_lo": low, "ci_hi": high, "n": len(wrong)}


def total(means: pd.DataFrame) -> float:
    """S: the harmonic mean of ES, PS and NS of some records."""
    return harmonic([float(means[letter + "S"].mean()) for letter in KINDS.values()])


def difference(
    one: pd.DataFrame, other: pd.DataFrame, names: pd.Series, *, seed: int
) -> tuple[float, float, float]:
    """S of one condition less S of another, with the interval.

    Args:
        one, other: of `by_record`, of the same records.
        names: of `clusters`: what is resampled.
    """
    other = other.loc[one.index]
    value = total(one) - total(other)
    low, high = np.percentile(_resampled(one, names, seed) - _resampled(other, names, seed), EDGES)
    return value, float(low), float(high)


def _resampled(means: pd.DataFrame, names: pd.Series, seed: int) -> np.ndarray:
    """S of each draw of the units; equal seeds draw the same of as many."""
    rng = np.random.default_rng(stable_seed("records", seed))
    values = means[[letter + "S" for letter in KINDS.values()]]
    units = values.groupby(names.loc[values.index].to_numpy(), sort=False)
    sums, counts = units.sum().to_numpy(float), units.count().to_numpy(float)
    at = rng.integers(len(sums), size=(RESAMPLES, len(sums)))
    # A record that has no neighbour left counts for the other scores only.
    drawn = sums[at].sum(1) / np.maximum(counts[at].sum(1), 1)
    return np.array([harmonic(list(row)) for row in drawn])


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
