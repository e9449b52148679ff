"""What attacks say of a deletion: rates before and after, false positives, and the work that extraction took.

The tables are those of `adversarial_embeddings` and of `soft_prompts`. A deletion is judged by three things side by
side: what the prompt or the prefix still gives, what the attack gets back, and what the same attack gets of items that
the model never held, which is how often an attack makes up what it is after.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import pandas as pd

from interp.errors import UsageError
from interp.intervene.weights.base import PartEdit
from interp.measure.stats import proportion_ci
from interp.models.cache import Progress, quiet

Condition = tuple[Any, PartEdit | None]
"""A subject, and the edit that it is attacked under; None: as it is."""


def audit(
    conditions: Mapping[str, Condition], attack: Callable[[Any], Any], *, progress: Progress = quiet
) -> pd.DataFrame:
    """The same attack under several conditions: intact, edited, an oracle that never saw the items.

    Args:
        conditions: by name; the edit is applied for the time of the attack.
        attack: given a subject, what has a `table`.

    Returns:
        the tables one below the other, with `condition` before them.

    Raises:
        UsageError: there are no conditions.

    Example:
        audit(
            {"intact": (pipe, None), "pruned": (pipe, edit), "oracle": (oracle, None)},
            lambda subject: adversarial_embeddings(subject, items, yardstick, others=prompts),
        )
    """
    if not conditions:
        raise UsageError("an audit needs conditions: a name, a subject and an edit or None, for each")
    parts = []
    for done, (name, (subject, edit)) in enumerate(conditions.items()):
        progress(done, len(conditions), f"attack on {name}")
        with nullcontext() if edit is None else edit.applied(subject):
            table = attack(subject).table.copy()
        table.insert(0, "condition", name)
        parts.append(table)
    progress(len(conditions), len(conditions), "attacks")
    return pd.concat(parts, ignore_index=True)


def recovery(table: pd.DataFrame, *, by: Sequence[str] = ("condition", "group")) -> pd.DataFrame:
    """Rates of extraction before and under attack.

    Args:
        table: of `audit` or of an attack; of `by`, columns that it lacks are left out.

    Returns:
        the columns of `by`, metric, value, ci_lo, ci_hi (95 %, items are the clusters), n_items, n. The metrics:
        `before` (share of samples or sequences that the prompt gives), `attacked` (share of searches that extracted
        their item: what one start finds), `attacked_any` (share of items that any of their searches extracted),
        `gained` (share of searches that extracted what `before` did not give in most samples), `refused` (where images
        are judged by fresh samples: share of searches that gave copies on the seeds they look at, and not on fresh
        ones), and of the searches that succeeded the median of `steps` and of `work`, with no interval.
    """
    keys = [name for name in by if name in table]
    rows: list[dict[str, Any]] = []
    for key, part in _parts(table, keys):
        items = part.groupby("item", sort=False)
        first = items["before"].first()
        most = items["extracted"].max()
        hidden = part[part["before"] < 0.5]
        metrics = [
            ("before", first, list(first.index)),
            ("attacked", part["extracted"], list(part["item"])),
            ("attacked_any", most, list(most.index)),
            ("gained", hidden["extracted"], list(hidden["item"])),
        ]
        if "refused" in part:
            vain = (part["refused"] > 0) & (part["extracted"] == 0)
            metrics.append(("refused", vain, list(part["item"])))
        for metric, values, clusters in metrics:
            told = values.to_numpy(float)
            low, high = proportion_ci(told, clusters) if len(told) else (np.nan, np.nan)
            value = told.mean() if len(told) else np.nan
            n = {"n_items": len(set(clusters)), "n": len(told)}
            rows.append({**key, "metric": metric, "value": value, "ci_lo": low, "ci_hi": high, **n})
        found = part[part["extracted"] == 1]
        for metric in ("steps", "work"):
            n = {"n_items": found["item"].nunique(), "n": len(found)}
            value = found[metric].median() if len(found) else np.nan
            rows.append({**key, "metric": metric, "value": value, "ci_lo": np.nan, "ci_hi": np.nan, **n})
    return pd.DataFrame(rows)


def work_curve(
    table: pd.DataFrame, *, by: Sequence[str] = ("condition", "group"), unit: str = "work"
) -> pd.DataFrame:
    """Share of searches that had extracted their item by so much work: the adversarial work criterion, as a curve.

    Args:
        unit: `work` (rows run forward and backward) or `steps`.

    Returns:
        the columns of `by`, the unit, `extracted` (share of searches), `items` (share of items that one of their
        searches extracted by then); a row for 0 and for each amount at which something was extracted in any part.
    """
    keys = [name for name in by if name in table]
    found = table[table["extracted"] == 1]
    amounts = np.unique(np.concatenate([[0.0], found[unit].to_numpy(float)]))
    rows = []
    for key, part in _parts(table, keys):
        spent = part[unit].where(part["extracted"] == 1, np.inf).to_numpy(float)
        least = pd.Series(spent, index=part.index).groupby(part["item"], sort=False).min().to_numpy()
        for amount in amounts:
            shares = {"extracted": (spent <= amount).mean(), "items": (least <= amount).mean()}
            rows.append({**key, unit: amount, **shares})
    return pd.DataFrame(rows)


def by_item(table: pd.DataFrame) -> pd.DataFrame:
    """One row for each condition and item: before, attacked (share of its searches), any, steps (least), searches."""
    keys = [name for name in ("condition", "group", "split", "item") if name in table]
    found = table.groupby(keys, sort=False, dropna=False)
    return found.agg(
        before=("before", "first"),
        attacked=("extracted", "mean"),
        any=("extracted", "max"),
        steps=("steps", "min"),
        searches=("extracted", "size"),
    ).reset_index()


def _parts(table: pd.DataFrame, keys: list[str]) -> list[tuple[dict[str, Any], pd.DataFrame]]:
    if not len(table):
        raise UsageError("the table of the attack is empty")
    if not keys:
        return [({}, table)]
    return [
        (dict(zip(keys, key, strict=True)), part)
        for key, part in table.groupby(keys, sort=False, dropna=False)
    ]
