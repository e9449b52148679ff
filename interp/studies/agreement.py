"""Do score types find the same heads, and does it matter how many needles a context holds?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from interp.locate.compare import compare, compare_methods
from interp.locate.head_scores import HeadScores
from interp.locate.retrieval_heads import RetrievalHeads

SPLITS = 20
"""Seeded splits of the instances that reliability is taken over."""


def pairs(
    grid: Callable[[], RetrievalHeads],
    own: Callable[[], RetrievalHeads] | None,
    scores: pd.DataFrame,
    *,
    top: int,
    seed: int,
) -> pd.DataFrame:
    """Every pair of score types, as `compare_methods` tells it; ceilings where both were scored on the same instances.

    Args:
        grid: the fit on the whole grid; `own` that of the scores with passes of their own, on other instances.
        scores: the scores of both.
    """
    found = compare_methods(HeadScores(scores, "study", "table"), top=top, splits=SPLITS, seed=seed)
    known = [
        compare_methods(fit(), top=top, splits=SPLITS, seed=seed) for fit in (grid, own) if fit is not None
    ]
    at = ["a", "b"]
    ceilings = pd.concat(known, ignore_index=True).set_index(at)[["ceiling", "of_ceiling"]]
    out = found.drop(columns=["ceiling", "of_ceiling"]).merge(
        ceilings, how="left", left_on=at, right_index=True
    )
    return out[found.columns]


def modes(exact: RetrievalHeads, several: RetrievalHeads, *, top: int, seed: int) -> pd.DataFrame:
    """One needle a context against several in it, of the same lengths, depths and kinds.

    Returns:
        one row a score type: instances and accepted ones of both modes, prompt tokens run over those of the naive
        protocol, overlap of the top heads with its p-value, rank correlation, and the ceiling of the overlap.
    """
    rows = []
    for method in exact.per_instance_:
        told = compare(
            exact,
            several,
            top=top,
            method=method,
            names=("exact", "several"),
            splits=SPLITS,
            draws=0,
            seed=seed,
        ).frame
        at = told[told["unit"] == "head"].set_index(["measure", "set"])
        overlap = at.loc[("overlap", f"top {top}")]
        row: dict[str, Any] = {"method": method, "set": f"top {top}"}
        for name, fit in (("exact", exact), ("several", several)):
            found = fit.instances_
            row |= {
                f"n_{name}": len(found),
                f"accepted_{name}": int(found["accepted"].sum()),
                f"exact_{name}": int(found["exact"].sum()),
                f"tokens_{name}": fit.prefill_tokens_,
                f"share_{name}": fit.prefill_tokens_ / fit.naive_tokens_,
            }
        row |= {k: overlap[k] for k in ("shared", "p", "ceiling", "of_ceiling")}
        row |= {"overlap": overlap["value"], "spearman": at.loc[("spearman", "all"), "value"]}
        difference = exact.per_instance_[method].mean(0) - several.per_instance_[method].mean(0)
        rows.append({**row, "difference": float(np.abs(difference).max())})
    return pd.DataFrame(rows)
