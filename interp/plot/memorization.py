"""Memorization: what an edit deletes and what it costs, how exposures make memory, and how well neurons are found."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Literal

import pandas as pd
import plotly.graph_objects as go

from interp.errors import UsageError
from interp.plot.check import need
from interp.plot.curves import value_curves
from interp.plot.text import count, joined
from interp.plot.theme import Width

DOSES = ("edit", "dose", "measure", "value", "ci_lo", "ci_hi")
"""A row of a dose table; the row of edit `none` is the model before."""

EXPOSURES = ("exposures", "measure", "value", "ci_lo", "ci_hi")
"""A row of an exposure table; `curve` tells several apart."""

RECOVERY = ("method", "part", "share", "recall", "ci_lo", "ci_hi", "chance")
"""A row of a recovery table, as of `interp.measure.memorization.injected.recovery`."""

NONE = "none"
CAPTIONS = {
    "targeted": "Targeted items replicated", "held_out": "Other memorized items replicated",
    "retention": "Retention", "attacked": "Replicated under attack",
}  # fmt: skip
"""What panels of known measures are called."""


def dose_retention(
    doses: pd.DataFrame,
    *,
    by: Literal["dose", "norm"] = "dose",
    against: tuple[str, str] | None = None,
    bands: Collection[str] | None = None,
    captions: Mapping[str, str] | None = None,
    width: Width = "double",
) -> go.Figure:
    """What each edit deletes, and what it costs, over the share of weights it changes: a panel a measure.

    Args:
        doses: `edit dose measure value ci_lo ci_hi`; `control` (bool) marks edits that are drawn in grey. Values are
            shares, `dose` is the share of weights. Rows of edit `none` are the model before: a line across.
        by: `norm` draws over the norm of the change (a column), by which edits of few weights and of all compare.
        against: two measures; a last panel shows the second over the first.
        bands: edits whose intervals are drawn; default all.
        captions: of panels, by measure.
        width: `single`, `double`, `page` or pixels.

    Raises:
        UsageError: missing columns, no edit, or two rows for one point.
    """
    need(doses, (*DOSES, by), "dose_retention", numeric=(by, "value", "ci_lo", "ci_hi"))
    told = "the share of weights changed" if by == "dose" else "the norm of the change"
    before, rows = doses[doses["edit"] == NONE], doses[doses["edit"] != NONE]
    if rows.empty:
        raise UsageError("dose_retention: the table has no edit, only the model before")
    if before.duplicated("measure").any():
        raise UsageError(
            "dose_retention: the model before has two rows of a measure; filter the table to one"
        )
    levels: dict[str, dict[str, float]] = {
        str(r["measure"]): {"before": float(r["value"])} for r in before.to_dict("records")
    }
    return value_curves(
        rows, by, panel="measure", line="edit", controls=_controls(rows), bands=bands, levels=levels,
        title="What an edit deletes and what it keeps", note=joined([_items(rows), f"over {told}"]),
        x_title="weights changed" if by == "dose" else "norm of the change", y="share", percent=True,
        x_percent=by == "dose", y_range=(-0.04, 1.04),
        captions={**CAPTIONS, **(captions or {})}, against=against, width=width,
    )  # fmt: skip


def exposure_curves(
    exposures: pd.DataFrame, *, captions: Mapping[str, str] | None = None, width: Width = "double"
) -> go.Figure:
    """Recognition, recall and retention over how often an item was trained on: a panel a measure.

    Args:
        exposures: `exposures measure value ci_lo ci_hi`; `curve` where several are told apart (early and late items,
            a checkpoint). Values are shares; an item of 0 exposures was never trained on.
        captions: of panels, by measure.
        width: `single`, `double`, `page` or pixels.

    Raises:
        UsageError: missing columns, or two rows for one point.
    """
    need(exposures, EXPOSURES, "exposure_curves", numeric=("exposures", "value", "ci_lo", "ci_hi"))
    return value_curves(
        exposures, "exposures", panel="measure", line="curve" if "curve" in exposures else None,
        controls=_controls(exposures, "curve"), title="How many exposures make a memory",
        note=joined([_items(exposures), "0: never trained on"]), x_title="exposures", y="share", percent=True,
        y_range=(-0.04, 1.04), captions=captions, width=width,
    )  # fmt: skip


def recovery_curves(
    recovery: pd.DataFrame, parts: Sequence[str] = ("all",), *, width: Width = "double"
) -> go.Figure:
    """Share of the known neurons among the top of each method's ranking, over how many are taken: a panel a part.

    Args:
        recovery: `method part share recall ci_lo ci_hi chance`; rows without `share` are left out.
        parts: which are drawn; `all` is the ranking over all parts together.
        width: `single`, `double`, `page` or pixels.

    Raises:
        UsageError: missing columns, none of the parts, or two rows for one point.
    """
    need(recovery, RECOVERY, "recovery_curves", numeric=("share", "recall", "ci_lo", "ci_hi", "chance"))
    rows = recovery[recovery["part"].astype(str).isin(list(parts)) & recovery["share"].notna()]
    if rows.empty:
        have = ", ".join(dict.fromkeys(recovery["part"].astype(str)))
        raise UsageError(f"recovery_curves: no row of {', '.join(parts)}; there are {have}")
    rows = rows.assign(part=rows["part"].astype(str))
    rows = rows.sort_values("part", key=lambda names: names.map(list(parts).index), kind="stable")
    chance = rows.drop_duplicates(["part", "share"]).assign(
        method="chance", recall=lambda r: r["chance"], ci_lo=float("nan"), ci_hi=float("nan")
    )
    return value_curves(
        pd.concat([rows, chance]), "share", "recall", panel="part", line="method",
        controls=["chance", *_controls(rows, "method")], title="Do rankings find the neurons that hold a sequence?",
        note=joined([_items(recovery, "injection"), "known neurons, by injection"]), x_title="neurons taken",
        y="known neurons found", percent=True, x_percent=True, y_range=(-0.04, 1.04),
        captions={"all": "All parts ranked together"}, width=width,
    )  # fmt: skip


def _controls(rows: pd.DataFrame, column: str = "edit") -> list[str]:
    if "control" not in rows or column not in rows:
        return []
    return list(dict.fromkeys(rows[rows["control"].astype(bool)][column].astype(str)))


def _items(rows: pd.DataFrame, noun: str = "item") -> str:
    """How many items there are a point, where the table says so."""
    if "n" not in rows:
        return ""
    low, high = int(rows["n"].min()), int(rows["n"].max())
    return count(high, noun) + " a point" if low == high else f"{low} to {count(high, noun)} a point"
