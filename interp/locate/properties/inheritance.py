"""Intrinsic: whether a model that was trained on has the heads of the model it came from."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from interp.locate.compare import compare
from interp.locate.head_scores import HeadScores
from interp.locate.properties.base import Property, frame_of, instance_scores, ranged, row
from interp.locate.retrieval_heads import THRESHOLD, RetrievalHeads
from interp.models.subject import CausalLM
from interp.tasks.base import Task

TOP = (5, 10, 20)


def intrinsic(
    base: CausalLM | RetrievalHeads,
    derived: CausalLM | RetrievalHeads,
    task: Task | None = None,
    *,
    method: str | None = None,
    top: tuple[int, ...] = TOP,
    threshold: float = THRESHOLD,
    names: tuple[str, str] = ("base", "derived"),
    seed: int = 0,
) -> Property:
    """Agreement of the heads of a base model with those of a model trained on from it (continued, chat, long context).

    Each model is scored on the instances that it answers itself. Statistics: `pearson` and `spearman` of the scores of
    all heads (their null shuffles one side within layers, so that a preference for the same layers counts for nothing);
    `overlap` of the top k and of the heads over the threshold (shared over the smaller set; the null is the expectation
    for random sets with as many heads in each layer, p that they share as many); for each of these `ceiling`, what two
    lists as unreliable as these can be expected to reach (halves of the instances, `interp.measure.reliability`), and
    `of_ceiling`, the agreement between halves over it. Judge inheritance by the latter, not by 1.

    Args:
        base: a model, which is then scored on the task, or its fitted locator.
        derived: likewise.
        top: sizes of the top sets.
        names: what the two are called.

    Returns:
        the property; tables `heads` (component, layer, head, base, derived) and `agreement` (the `Comparison`'s frame).

    Raises:
        UsageError: the models differ in shape, a model comes without a task, or a top set holds every head.
    """
    ours, theirs = fitted(base, task, method), fitted(derived, task, method)
    chosen, values, clusters = instance_scores(ours, method)
    _, others, _ = instance_scores(theirs, chosen)
    both = [_query_heads(h, chosen, name) for h, name in zip((ours, theirs), names, strict=True)]
    agreement = compare(*both, top=list(top), threshold=threshold, seed=seed).frame
    labels: dict[str, Any] = {
        "subject": " and ".join(names), "n": min(len(values), len(others)), "n_clusters": len(set(clusters)),
    }  # fmt: skip
    rows = [
        made for _, one in agreement.iterrows() if one["measure"] != "jaccard" for made in _rows(one, labels)
    ]
    frame = frame_of(rows)
    heads = ours.ranking(chosen)[["component", "layer", "head", "score"]].rename(columns={"score": "base"})
    scores = theirs.ranking(chosen)[["component", "score"]].rename(columns={"score": "derived"})
    heads = heads.merge(scores, on="component")
    summary = _summary(frame, names, chosen, (len(values), len(others)), top)
    return Property("intrinsic", summary, frame, {"heads": heads, "agreement": agreement})


def fitted(source: CausalLM | RetrievalHeads, task: Task | None, method: str | None) -> RetrievalHeads:
    """The fitted locator of a model; one that is fitted already is taken as it is.

    Raises:
        UsageError: a model without a task.
    """
    if isinstance(source, RetrievalHeads):
        return source
    return RetrievalHeads(method or "copy").fit(source, task)


def _query_heads(heads: RetrievalHeads, method: str, name: str) -> HeadScores:
    """One score as `compare` takes it; without KV groups, which are not what is asked about."""
    _, values, clusters = instance_scores(heads, method)
    frame = heads.ranking(method).drop(columns="kv_head")
    return HeadScores(frame, name, "locator", {method: values}, tuple(clusters))


def _rows(one: pd.Series, labels: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of one measure and set: the agreement, its ceiling, and the one over the other."""
    correlation = one["set"] == "all"
    name = (
        one["measure"]
        if correlation
        else "overlap_" + one["set"].replace("score >= ", "over_").replace(" ", "_")
    )
    made = row(name, one["value"], (one["ci_lo"], one["ci_hi"]), **labels)
    # Expected numbers of shared heads become shares of the smaller set, as the overlap is.
    unit = 1.0 if correlation else min(one["n_a"], one["n_b"]) or np.nan
    made |= {"null": one["expected_layers"] / unit, "p": one["p_layers"]}
    return [made, *(row(f"{name}_{part}", one[part], **labels) for part in ("ceiling", "of_ceiling"))]


def _summary(
    frame: pd.DataFrame, names: tuple[str, str], method: str, n: tuple[int, int], top: tuple[int, ...]
) -> str:
    at = frame.set_index("statistic")
    r, middle = at.loc["pearson"], sorted(top)[len(top) // 2]
    both = at.loc[f"overlap_top_{middle}"]

    def of(name: str) -> str:
        share = at.loc[f"{name}_of_ceiling", "value"]
        return "" if np.isnan(share) else f", {share:.2f} of what split halves allow"

    shared = (
        f"the top {middle} share {100 * both['value']:.0f} %{of(f'overlap_top_{middle}')} (random sets "
        f"{100 * both['null']:.0f} %)"
        if np.isfinite(both["value"])
        else f"the top {middle} are tied"
    )
    return (
        f"{names[0]} and {names[1]}: {method} scores correlate by {ranged(r['value'], r['ci_lo'], r['ci_hi'])}"
        f"{of('pearson')} (shuffled within layers {r['null']:.2f}); {shared}; {n[0]} and {n[1]} instances."
    )
