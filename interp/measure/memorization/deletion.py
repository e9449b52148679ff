"""What edits take from a language model: the sequences that were meant, others that it holds, and plain text.

A report of deletion is not whole without an attack: what is not recited any more may still be there, and a soft prompt
may bring it back (`interp.intervene.attack.soft_prompt`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import pandas as pd

from interp.errors import NoAcceptedExample, UsageError
from interp.intervene.weights.base import PartEdit
from interp.measure.memorization.recite import recite
from interp.measure.plans import CLEAN
from interp.measure.stats import bootstrap_ci
from interp.models.cache import Progress, quiet
from interp.models.subject import CausalLM
from interp.tasks.base import stable_seed
from interp.tasks.memorized import TextItem

MEASURES = ("exact", "accuracy", "similarity", "hits", "nll")
"""Columns of `recite` that are averaged; 1 is recited, but for `nll`. `perplexity` is added."""


def deletion(
    subject: CausalLM,
    edits: Mapping[str, PartEdit],
    sets: Mapping[str, Sequence[TextItem]],
    *,
    generate: bool = True,
    seed: int = 0,
    progress: Progress = quiet,
) -> pd.DataFrame:
    """Recital of several sets of sequences by the model as it is (`clean`) and under each edit.

    Args:
        subject: the model that holds the sequences, injections that are on included.
        edits: by the name of the condition.
        sets: sequences by name: those that were meant (`target`), others that are held, passages of plain text.
        generate: let the model go on alone where it leaves a suffix; without it `accuracy` and `similarity` are left
            out. Plain text needs no generation: give it in a call of its own.
        seed: of the resampling.

    Returns:
        one row a condition, set and measure: condition, set, measure, value, ci_lo, ci_hi, delta (from `clean`),
        delta_lo, delta_hi (95 %, sequences resampled, pairs kept), n, changed (weights), norm (||dW||_F). Intervals of
        `perplexity`, the exponential of the mean nll over sequences, come from those of nll; its delta is a ratio.

    Raises:
        NoAcceptedExample: an empty set.
        UsageError: an edit that is named `clean`, or one made for another model.
    """
    if CLEAN in edits:
        raise UsageError(f"'{CLEAN}' is the model without edits; give the edit another name")
    if empty := [name for name, items in sets.items() if not items] or ([] if sets else ["sets"]):
        raise NoAcceptedExample(f"no sequences in '{empty[0]}': a set holds at least one")
    every = [item for items in sets.values() for item in items]
    where = np.repeat(list(sets), [len(items) for items in sets.values()])
    conditions: dict[str, PartEdit | None] = {CLEAN: None, **edits}
    clean: pd.DataFrame | None = None
    out: list[dict[str, Any]] = []
    for done, (name, edit) in enumerate(conditions.items(), 1):
        budget = edit.budget(subject) if edit is not None else None
        with nullcontext() if edit is None else edit.applied(subject):
            found = recite(subject, every, generate=generate)
        clean = found if clean is None else clean
        for part in sets:
            mine = where == part
            for row in _measured(found[mine], clean[mine], generate, (seed, part)):
                about = {"condition": name, "set": part, **row}
                out.append(
                    {
                        **about,
                        "changed": budget.changed if budget else 0,
                        "norm": budget.norm if budget else 0.0,
                    }
                )
        progress(done, len(conditions), "conditions")
    return pd.DataFrame(out)


def _measured(found: pd.DataFrame, clean: pd.DataFrame, generate: bool, seed: Any) -> list[dict[str, Any]]:
    out = []
    for measure in MEASURES:
        if not generate and measure in ("accuracy", "similarity"):
            continue
        # Positions name the sequences: two of one name are two. All conditions are resampled alike.
        values, names = found[measure].to_numpy(float), np.arange(len(found)).astype(str)
        change = values - clean[measure].to_numpy(float)
        entropy = stable_seed("deletion", *seed, measure)[0]
        low, high = bootstrap_ci(values, names, seed=entropy)
        delta_low, delta_high = bootstrap_ci(change, names, seed=entropy)
        row = {
            "measure": measure,
            "value": values.mean(),
            "ci_lo": low,
            "ci_hi": high,
            "delta": change.mean(),
            "delta_lo": delta_low,
            "delta_hi": delta_high,
            "n": len(values),
        }
        out.append(row)
        if measure == "nll":
            logs = {k: float(np.exp(v)) for k, v in row.items() if k not in ("measure", "n")}
            out.append({**logs, "measure": "perplexity", "n": len(values)})
    return out
