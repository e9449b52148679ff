"""Tables of a run of the tasks: every rung with its intervals, and curves over what an example is asked at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from interp.measure.effects import AT_CHANCE
from interp.measure.metrics import BINARY, METRICS
from interp.measure.recall_curves import curve
from interp.measure.stats import bootstrap_ci, proportion_ci
from interp.studies.recall.spec import Rung, info

NOT_ASKED = "not asked"

AXES: dict[str, tuple[str, ...]] = {
    "length": ("length", "lengths"),
    "depth": ("depth",),
    "distance": ("distance",),
    "position": ("position",),
    "updates": ("updates", "versions"),
    "set size": (
        "items", "objects", "needles", "values", "people", "attributes", "families", "pairs", "keys", "contexts",
        "chains", "sentences", "consolidation.facts",
    ),
    "steps": ("hops", "facts", "steps", "terms"),
}  # fmt: skip
"""What curves are drawn over, and the parameters, or the columns of examples, that each is of."""

OTHER = "other sizes"
"""The axis of parameters that no axis names."""

WITHIN = {"depth": 5, "distance": 5, "position": None}
"""What examples of one size differ in, and into how many bins it is put; None takes each value, where there are few."""

CURVED = ("accuracy", "choice", "logit_diff")

Frames = Mapping[str, pd.DataFrame]
"""Examples of each rung, by its question; a frame with the column `reason` says why it was not asked."""


def axis_of(name: str, task: str = "") -> str:
    """The axis of a parameter or a column: of `task.name` where that has one of its own, else of the name."""
    known = {each: axis for axis, names in AXES.items() for each in names}
    return known.get(f"{task}.{name}", known.get(name, OTHER))


def rungs_table(rungs: Sequence[Rung], frames: Frames, seed: int) -> pd.DataFrame:
    """One row a rung, in the order of the ladders."""
    return pd.DataFrame([_row(rung, frames[rung.question], seed) for rung in rungs])


def _row(rung: Rung, frame: pd.DataFrame, seed: int) -> dict[str, Any]:
    about: dict[str, Any] = {
        "family": info(rung.task).family, "task": rung.task, "param": rung.param, "size": rung.written, "at": rung.at,
        "rung": rung.place,
    }  # fmt: skip
    nothing = {name: np.nan for m in METRICS for name in (m, f"{m}_lo", f"{m}_hi")}
    if "reason" in frame:
        empty = {
            "n": 0,
            "n_clusters": 0,
            "tokens": np.nan,
            "redraws": 0,
            "chance": np.nan,
            "judged": "",
            "guess": np.nan,
        }
        return about | empty | {"status": NOT_ASKED} | nothing | {"reason": str(frame["reason"].iloc[0])}
    first, clusters = frame.iloc[0], frame["cluster"].to_numpy()
    out = about | {
        "n": len(frame), "n_clusters": frame["cluster"].nunique(), "tokens": float(frame["tokens"].mean()),
        "redraws": int(first["redraws"]), "chance": float(frame["chance"].mean()), "judged": str(first["judged"]),
        "guess": float(frame["guess"].mean()), "status": str(first["status"]), **nothing, "reason": "",
    }  # fmt: skip
    for metric in METRICS:
        values = frame[metric].to_numpy(float)
        if not np.isnan(values).all():
            low, high = (
                proportion_ci(values, clusters)
                if metric in BINARY
                else bootstrap_ci(values, clusters, seed=seed)
            )
            out |= {metric: float(np.nanmean(values)), f"{metric}_lo": low, f"{metric}_hi": high}
    return out


def curves_table(rungs: Sequence[Rung], frames: Frames, seed: int) -> pd.DataFrame:
    """Curves of every task: over the sizes of its ladders, and over what examples of one size differ in."""
    found = []
    for name in dict.fromkeys(r.task for r in rungs):
        own = [r for r in rungs if r.task == name and "reason" not in frames[r.question]]
        for param in dict.fromkeys(r.param for r in own):
            found += _over_sizes([r for r in own if r.param == param], frames, seed)
        if own:
            # One ladder alone, of numbers where there is one: what others vary would be mixed into the curve.
            param = next((r.param for r in own if not np.isnan(r.at)), own[0].param)
            found += _within_sizes([r for r in own if r.param == param], frames, seed)
    columns = (
        "family",
        "task",
        "axis",
        "by",
        "line",
        "metric",
        "x",
        "x_lo",
        "x_hi",
        "value",
        "ci_lo",
        "ci_hi",
    )
    empty = pd.DataFrame(columns=[*columns, "n", "n_clusters", "chance"])
    return pd.concat(found, ignore_index=True)[list(empty)] if found else empty


def _over_sizes(rungs: Sequence[Rung], frames: Frames, seed: int) -> list[pd.DataFrame]:
    if len({r.at for r in rungs}) < 2 or any(np.isnan(r.at) for r in rungs):
        return []
    rows = _pooled(rungs, frames, ())
    about = {
        "family": info(rungs[0].task).family,
        "task": rungs[0].task,
        "axis": axis_of(rungs[0].param, rungs[0].task),
    }
    return [
        curve(_held(rows, metric), "_size", metric, seed=seed).assign(
            **about, by=rungs[0].param, line="", metric=metric
        )
        for metric in _told(rows)
    ]


def _within_sizes(rungs: Sequence[Rung], frames: Frames, seed: int) -> list[pd.DataFrame]:
    found = []
    about = {"family": info(rungs[0].task).family, "task": rungs[0].task}
    for by, bins in WITHIN.items():
        having = [r for r in rungs if by in frames[r.question]]
        if not having or by == rungs[0].param:
            continue
        rows = _pooled(having, frames, (by,))
        if rows[by].nunique() < 2:
            continue
        # A place in a list means another thing in each length of list.
        apart = by == "position" and axis_of(having[0].param, having[0].task) == "set size"
        for part in [[r] for r in having] if apart else [having]:
            own = rows[rows["_size"].isin([r.at for r in part])] if apart else rows
            if own[by].notna().sum() and own[by].nunique() > 1:
                line = f"{part[0].written} {part[0].param}" if apart else ""
                found += [
                    curve(_held(own, metric), by, metric, bins=_bins(own[by], bins), seed=seed).assign(
                        **about, axis=axis_of(by), by=by, line=line, metric=metric
                    )
                    for metric in _told(own)
                ]
    return found


def _bins(values: pd.Series, bins: int | None) -> int | None:
    """Bins where there are more values than bins; else each value is a point."""
    return bins if bins is not None and values.nunique() > bins else None


def _pooled(rungs: Sequence[Rung], frames: Frames, more: Sequence[str]) -> pd.DataFrame:
    """Examples of several rungs, with the size of each in `_size`."""
    columns = [*CURVED, "cluster", "chance", "guess", *more]
    parts = [frames[r.question][columns].astype({m: float for m in more}).assign(_size=r.at) for r in rungs]
    return pd.concat(parts, ignore_index=True)


def _held(rows: pd.DataFrame, metric: str) -> pd.DataFrame:
    """The rows with what a metric is held against as their chance: the choice, against what a guess scores by it."""
    return rows.assign(chance=rows["guess"]) if metric == "choice" else rows


def _told(rows: pd.DataFrame) -> list[str]:
    return [m for m in CURVED if rows[m].notna().any()]


def counted(table: pd.DataFrame) -> dict[str, int]:
    """Rungs by their status."""
    return {status: int((table["status"] == status).sum()) for status in ("ok", AT_CHANCE, NOT_ASKED)}
