"""Does a trace say where to edit? Edits of the same facts in layer after layer, held against the effects of a trace.

Hase et al. (2023, "Does localization inform editing?") found that where a fact is traced to explains next to nothing of
where it can be written. Both are therefore measured and neither is inferred from the other: `edit_layers` writes each
fact in each layer by itself, and `against_effects` says how much of the success the layer explains, and how much more
the trace's effect does.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from interp.errors import NoAcceptedExample, UsageError
from interp.intervene.facts import Moments, Prefixes, Search, rome
from interp.intervene.facts.rome import RIDGE, default_prefixes
from interp.measure.edits import KINDS, EditRecord, Rule, score_edits
from interp.models.cache import Progress, quiet
from interp.models.subject import CausalLM


def edit_layers(
    subject: CausalLM,
    records: Sequence[EditRecord],
    layers: Sequence[int],
    moments: Moments | None,
    *,
    prefixes: Prefixes | None = None,
    search: Search | None = None,
    ridge: float = RIDGE,
    rule: Rule = "divergence",
    progress: Progress = quiet,
) -> pd.DataFrame:
    """Each fact written by ROME in each layer, one at a time, with what `score_edits` says of it.

    Args:
        moments, prefixes, search, ridge: as for `rome`.
        progress: told about edits done.

    Returns:
        the rows of `score_edits` with the columns layer, nll (of the target at the end of the search, nats a token)
        and seconds (that the edit took).
    """
    prefixes = prefixes or default_prefixes(subject)
    parts = []
    for layer in layers:
        for record in records:
            began = time.perf_counter()
            edit = rome(
                subject, record.rewrite, layer, moments, prefixes=prefixes, search=search, ridge=ridge
            )
            seconds = time.perf_counter() - began
            found = score_edits(subject, [record], [edit], rule=rule)
            parts.append(found.assign(layer=layer, nll=edit.history[0][-1]["nll"], seconds=seconds))
            progress(len(parts), len(layers) * len(records), "edits")
    if not parts:
        raise NoAcceptedExample("no edit to be judged: give at least one record and one layer")
    return pd.concat(parts, ignore_index=True)


def against_effects(scan: pd.DataFrame, effects: pd.DataFrame, *, column: str = "magnitude") -> pd.DataFrame:
    """How much of the success of edits a trace explains, beyond what the layer does.

    Args:
        scan: from `edit_layers`; what is explained is `column` after the edit, a mean over a record's prompts.
        effects: one row a record and layer, with the columns record, layer, effect (say the indirect effect of the
            MLP at the last token of the subject). Pairs that either table lacks are left out.
        column: `magnitude`, `success` or `top`.

    Returns:
        one row a kind of prompt: n (pairs), records, rho (Spearman over all pairs), within (the mean over the
        `within_n` records that have one of Spearman over layers; a description: records that share a profile of layers
        agree without a trace that says anything, so no interval over records tells), r2_layer (share of variance
        between layers, taken as categories), r2_both (with the effect), gain (their difference). NaN where nothing
        varies.

    Raises:
        UsageError: a column is missing, or no pair is in both tables.
    """
    for name, table, needed in (
        ("scan", scan, {"record", "layer", "kind", "state", column}),
        ("effects", effects, {"record", "layer", "effect"}),
    ):
        if missing := needed - set(table.columns):
            raise UsageError(f"table {name} has no column {min(missing)!r}")
    after = scan[scan["state"] == "after"]
    means = after.groupby(["kind", "record", "layer"], sort=False)[column].mean().reset_index(name="value")
    joined = means.merge(effects[["record", "layer", "effect"]], on=["record", "layer"])
    if joined.empty:
        raise UsageError("no record and layer is in both tables; records go by their name")
    rows = []
    for kind in KINDS:
        part = joined[joined["kind"] == kind]
        if part.empty:
            continue
        own = np.array([_spearman(p["effect"], p["value"]) for _, p in part.groupby("record", sort=False)])
        values = own[~np.isnan(own)]
        layers = pd.get_dummies(part["layer"]).to_numpy(float)
        both = np.column_stack([layers, part["effect"].to_numpy(float)])
        y = part["value"].to_numpy(float)
        about: dict[str, Any] = {"kind": kind, "n": len(part), "records": part["record"].nunique()}
        about |= {"rho": _spearman(part["effect"], part["value"])}
        about |= {"within": values.mean() if len(values) else np.nan, "within_n": len(values)}
        about |= {"r2_layer": _explained(layers, y), "r2_both": _explained(both, y)}
        rows.append({**about, "gain": about["r2_both"] - about["r2_layer"]})
    return pd.DataFrame(rows)


def _spearman(x: pd.Series, y: pd.Series) -> float:
    if len(x) < 3 or x.nunique() < 2 or y.nunique() < 2:
        return float("nan")
    return float(stats.spearmanr(x, y).statistic)


def _explained(x: np.ndarray, y: np.ndarray) -> float:
    """R^2 of a least squares fit; the columns of x hold the constant."""
    total = float(((y - y.mean()) ** 2).sum())
    if not total:
        return float("nan")
    fit = x @ np.linalg.lstsq(x, y, rcond=None)[0]
    return 1 - float(((y - fit) ** 2).sum()) / total
