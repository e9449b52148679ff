"""The cuts of a study and their matched controls, as a table, and examples run under them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from interp.errors import UsageError
from interp.intervene.ablate import NEEDS_REFERENCE, Ablate, ablate
from interp.measure.controls import matched
from interp.measure.mlp_controls import matched_neurons, matched_windows
from interp.measure.plans import CLEAN
from interp.models.sites import MLP, Component, Head, components
from interp.studies.dissociation.sets import SCOPES
from interp.tasks.base import Example

if TYPE_CHECKING:
    from interp.intervene.reference import Reference
    from interp.measure.outcomes import Progress
    from interp.models.subject import CausalLM

CUT = ["mechanism", "scope", "condition", "draw"]
"""What names a cut."""

MANY = 10**9
"""What `n_distinct` says of control sets that are more than this."""


def window(scores: Mapping[int, float], width: int) -> list[int]:
    """Neighbouring layers whose scores have the greatest sum; the first of equals.

    >>> window({0: 0.0, 1: 3.0, 2: 1.0, 3: 2.5}, 2)
    [1, 2]
    """
    starts = range(len(scores) - width + 1)
    best = max(starts, key=lambda a: (sum(scores[i] for i in range(a, a + width)), -a))
    return list(range(best, best + width))


def planned(
    subject: CausalLM,
    mechanism: str,
    parts: Sequence[Component],
    scopes: Iterable[str],
    *,
    mode: str,
    controls: int,
    data: Sequence[Example],
    seed: int,
    remark: Callable[[str], None],
) -> pd.DataFrame:
    """A cut and its controls at each scope.

    Args:
        controls: matched sets, see `interp.measure.controls` (heads: by layer) and `interp.measure.mlp_controls`.
        data: what MLPs and neurons are matched on, at the tokens of the scope.
        remark: told where there are no others to match.

    Returns:
        one row a cut: mechanism, scope, condition, draw, k, components, mode, match, match_gap, n_distinct.
    """
    rows = []
    for scope in scopes:
        about = {"mechanism": mechanism, "scope": scope, "k": len(parts), "mode": mode}
        cut = {"condition": "cut", "draw": -1, "components": _text(parts), "match": "", "match_gap": np.nan}
        rows.append(about | cut | {"n_distinct": 0})
        try:
            match, sets, gaps, n = _controls(subject, parts, scope, controls, data, seed)
        except UsageError as why:
            remark(f"{mechanism} has no controls: {why}")
            continue
        for draw, (others, gap) in enumerate(zip(sets, gaps, strict=True)):
            own = {"condition": "control", "draw": draw, "components": _text(others), "match": match}
            rows.append(about | own | {"match_gap": gap, "n_distinct": n})
    return pd.DataFrame(rows)


def _controls(
    subject: CausalLM,
    parts: Sequence[Component],
    scope: str,
    n: int,
    data: Sequence[Example],
    seed: int,
) -> tuple[str, Sequence[tuple[Component, ...]], list[float], int]:
    """Kind, sets, gaps and number of all sets that there are."""
    if not n:
        return "", (), [], 0
    if isinstance(parts[0], Head):
        heads = matched(subject, parts, n, "layer", seed=seed)
        return "layer", heads.sets, heads.gaps, len(heads)
    at = SCOPES[scope]
    if isinstance(parts[0], MLP):
        found = matched_windows(subject, parts, n, data, scope=at, seed=seed)
    else:
        found = matched_neurons(subject, parts, n, data, scope=at, seed=seed)
    return found.by, found.sets, found.gaps, min(found.n_distinct, MANY)


def _text(parts: Iterable[Component]) -> str:
    return " ".join(map(repr, parts))


def intervention(row: Any, reference: Reference | None) -> Ablate:
    """The cut of a row."""
    needed = reference if row.mode in NEEDS_REFERENCE else None
    return ablate(components(row.components), row.mode, SCOPES[row.scope], needed)


def cells(
    subject: CausalLM,
    task: str,
    examples: Sequence[Example],
    cuts: pd.DataFrame,
    reference: Reference | None = None,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Every example of a task, intact and under every cut.

    Returns:
        the columns that `interp.studies.dissociation.study` tells of the table `cells`, and status.
    """
    from interp.measure.effects import AT_CHANCE, at_chance
    from interp.measure.outcomes import evaluate

    rows = list(cuts.itertuples())
    made = {" ".join(str(getattr(r, c)) for c in CUT): intervention(r, reference) for r in rows}
    found = evaluate(subject, examples, {CLEAN: None, **made}, progress=progress)
    open_ended = all(not e.candidates for e in examples)
    status = "ok" if open_ended or not at_chance(found) else AT_CHANCE
    about = pd.DataFrame(
        {
            "example": range(len(examples)),
            "cluster": found.clusters,
            "relation": [str(e.meta.get("relation", "")) for e in examples],
            "status": status,
        }
    )
    clean = {"mechanism": "", "scope": "", "condition": CLEAN, "draw": -1}
    labels = [(CLEAN, clean)] + [
        (name, {c: getattr(r, c) for c in CUT}) for name, r in zip(made, rows, strict=True)
    ]
    parts = []
    for name, label in labels:
        values = found.values[name]
        accuracy = np.full(len(examples), np.nan) if open_ended else values["accuracy"]
        scores = {"accuracy": accuracy, "nll": values["nll"], "probability": np.exp(-values["nll"])}
        parts.append(about.assign(task=task, **label, **scores))
    columns = ["task", *CUT, "example", "cluster", "relation", "accuracy", "nll", "probability", "status"]
    return pd.concat(parts, ignore_index=True)[columns]
