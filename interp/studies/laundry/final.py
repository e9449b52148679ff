"""What the conditions of the test are, and what they cost where nothing should be lost."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd

from interp.intervene.base import Intervention
from interp.measure.outcomes import evaluate
from interp.measure.stats import bootstrap_ci
from interp.models.cache import Progress
from interp.models.subject import CausalLM
from interp.studies.laundry.edits import Edit, InWeights, Pushed, Scaled
from interp.tasks.prose import Prose

EVERY = "learned"
"""The kind of edit that has a factor for every head."""
PROMPT, ANSWER = 64, 32
"""Tokens of a passage that are read, and that are predicted."""


def described(conditions: Mapping[str, Edit | Pushed]) -> pd.DataFrame:
    """What each condition is: condition, kind, edit, size (or sizes, by length of list), dims (NaN for whole heads)."""
    return pd.DataFrame(
        {
            "condition": name,
            "kind": c.kind,
            "edit": c.name,
            "size": str(c.size),
            "dims": float(c.dims) if c.dims is not None else np.nan,
        }
        for name, c in conditions.items()
    )


def in_weights(conditions: Iterable[Edit | Pushed]) -> dict[str, InWeights]:
    """Scaled edits of one size made in the weights, but for factors that most heads have."""
    scaled = [c for c in conditions if isinstance(c, Scaled) and not isinstance(c.size, Mapping)]
    found = [InWeights(c) for c in scaled if c.kind != EVERY]
    return {edit.kind: edit for edit in found}


def neutral(
    subject: CausalLM,
    conditions: Mapping[str, Intervention | None],
    n: int,
    *,
    seed: int,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Loss of natural prose when every token that predicts is edited; of edits of weights, every token.

    Args:
        conditions: by name, with `clean`.
        n: passages.

    Returns:
        condition, nll (nats a token), change (from the intact model), ci_lo, ci_hi (bootstrap over topics), n.
    """
    examples = Prose(prompt=PROMPT, answer=ANSWER, n=n, seed=seed).examples(subject)
    found = evaluate(subject, examples, conditions, progress=progress)
    clean = found.values["clean"]["nll"]
    out = []
    for name in conditions:
        change = found.values[name]["nll"] - clean
        low, high = bootstrap_ci(change, found.clusters, seed=seed)
        about = {"condition": name, "nll": found.values[name]["nll"].mean(), "change": change.mean()}
        out.append(about | {"ci_lo": low, "ci_hi": high, "n": len(examples)})
    return pd.DataFrame(out)
