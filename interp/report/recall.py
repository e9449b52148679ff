"""The page's section on tasks: what is recalled at every size, by family, and curves over what is asked."""

from __future__ import annotations

from typing import Any

import pandas as pd

from interp.plot.ages import AGES
from interp.plot.recall import CURVES, LADDER, NOT_ASKED, OK
from interp.plot.text import count, number, percent, signed
from interp.report.figures import Chart
from interp.report.tables import Tables

AXES = ("length", "depth", "distance", "position", "updates", "set size", "steps", "other sizes")
"""What curves are over, in the order of the page."""

_SHOWN = (*LADDER[:7], "accuracy", "choice", "logit_diff", "nll", "tokens")


def charts(tables: Tables) -> list[Chart]:
    """A figure for each family of tasks, one for each axis of curves, and one of the ages of values answered."""
    from interp import plot

    out: list[Chart] = []
    table, curves = tables.recall, tables.recall_curves
    if table is not None:
        # A table without families has a figure that says what is missing.
        for family in families(tables) or ["tasks"]:
            own = table[table["family"] == family] if _whole(table) else table
            title = f"{family[:1].upper()}{family[1:]}"
            out.append(
                Chart(
                    f"recall-{_slug(family)}", "recall",
                    lambda w, own=own, title=title: plot.recall_ladder(own, title=title, width=w),  # type: ignore[misc]
                    lambda own=own: own[[c for c in _SHOWN if c in own]],  # type: ignore[misc]
                )
            )  # fmt: skip
    if curves is not None:
        for axis in [a for a in AXES if (curves["axis"] == a).any()] if "axis" in curves else AXES[:1]:
            out.append(
                Chart(
                    f"recall-by-{_slug(axis)}", "recall_curves",
                    lambda w, axis=axis: plot.recall_curves(curves, axis, width=w),  # type: ignore[misc]
                    lambda axis=axis: curves[curves["axis"] == axis][list(CURVES)],  # type: ignore[misc]
                )
            )  # fmt: skip
    if tables.recall_ages is not None:
        ages = tables.recall_ages
        out.append(
            Chart(
                "recall-by-age", "recall_ages", lambda w: plot.recall_ages(ages, width=w),
                lambda: ages[[c for c in AGES if c in ages]],
            )
        )  # fmt: skip
    return out


def _slug(name: str) -> str:
    return name.replace(" ", "-")


def families(tables: Tables) -> list[str]:
    """The headings that tasks stand under, as far as the table has them."""
    table = tables.recall
    return [] if table is None or not _whole(table) else list(dict.fromkeys(table["family"].astype(str)))


def _whole(table: pd.DataFrame) -> bool:
    return {"family", *LADDER} <= set(table)


def rows(tables: Tables) -> list[dict[str, Any]]:
    """Every size of every task, with its intervals and whether it lies above chance."""
    table = tables.recall
    if table is None or not _whole(table):
        return []
    out = []
    for row in table.to_dict("records"):
        asked = row["status"] != NOT_ASKED
        out.append(
            {
                "task": str(row["task"]),
                "size": f"{row['param']} {row['size']}".strip().replace("_", " "),
                "n": int(row["n"]),
                "choice": _told(row, "choice", percent),
                "accuracy": _told(row, "accuracy", percent),
                "difference": _told(row, "logit_diff", signed),
                "guess": number(row["guess"], 3) if asked else "\u2013",
                "status": "above chance" if row["status"] == OK else str(row["status"]),
                "above": row["status"] == OK,
                "reason": str(row.get("reason") or ""),
            }
        )
    return out


def _told(row: dict[str, Any], metric: str, write: Any) -> str:
    """A value with the ends of its interval; a dash where there is none."""
    value, low, high = (float(row[f"{metric}{end}"]) for end in ("", "_lo", "_hi"))
    if pd.isna(value):
        return "\u2013"
    ends = f" [{write(low)}, {write(high)}]" if pd.notna(low) else ""
    return write(value) + ends


def sentence(tables: Tables) -> str:
    """How much of the tasks the model answers better than a guess."""
    found = _best(tables)
    if found is None:
        return ""
    smallest, every, tasks = found
    return (
        f"{tables.model} answers {smallest} of {count(tasks, 'task')} better than a uniform guess at the first size of "
        f"the ladder, and {every} at every size."
    )


def facts(tables: Tables) -> list[tuple[str, str, str]]:
    """Headline numbers: value, label and note."""
    found, table = _best(tables), tables.recall
    if found is None or table is None:
        return []
    smallest, every, tasks = found
    asked = table[table["status"] != NOT_ASKED]
    above = int((asked["status"] == OK).sum())
    out = [
        (f"{smallest} of {tasks}", "tasks above chance at their first size", f"{every} at every size"),
        (f"{above} of {len(asked)}", "sizes above chance", "the 95% interval lies above a uniform guess"),
    ]
    if len(table) > len(asked):
        out.append((str(len(table) - len(asked)), "sizes not asked", "the table says why"))
    return out


def _best(tables: Tables) -> tuple[int, int, int] | None:
    """Tasks above chance at the first size of a ladder, those at every size, and all that could be asked."""
    table = tables.recall
    if table is None or not _whole(table):
        return None
    asked = table[table["status"] != NOT_ASKED]
    if asked.empty:
        return None
    ok = (asked["status"] == OK).groupby(asked["task"], sort=False)
    first = asked.drop_duplicates("task")
    return int((first["status"] == OK).sum()), int(ok.all().sum()), len(first)
