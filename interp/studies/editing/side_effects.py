"""What edits do to text that has nothing to do with them, and to text about their subjects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from interp.intervene.base import Intervention
from interp.measure.edits import EditRecord, fluency
from interp.measure.outcomes import Progress, evaluate
from interp.models.subject import CausalLM
from interp.studies.editing.spec import EditingSpec
from interp.tasks.base import Example


def drifts(
    subject: CausalLM,
    edits: Mapping[int, Intervention],
    passages: Sequence[Example],
    report: Progress | None,
) -> pd.DataFrame:
    """Loss on passages of text, one row an edit and passage.

    Returns:
        group (the edit's number), passage, topic, nll_before, nll_after (nats a token).
    """
    conditions = {"": None, **{str(i): edit for i, edit in edits.items()}}
    found = evaluate(subject, passages, conditions, progress=report).values
    before = found[""]["nll"]
    return pd.DataFrame(
        {
            "group": i,
            "passage": k,
            "topic": passages[k].cluster,
            "nll_before": float(a),
            "nll_after": float(b),
        }
        for i in edits
        for k, (a, b) in enumerate(zip(before, found[str(i)]["nll"], strict=True))
    )


def entropies(
    subject: CausalLM,
    records: Sequence[EditRecord],
    edits: Sequence[Intervention] | Intervention,
    spec: EditingSpec,
) -> pd.DataFrame:
    """`fluency` without the texts: record, opening, state, entropy (bits)."""
    found = fluency(subject, records, edits, tokens=spec.fluency_tokens, seed=spec.seed)
    return found.drop(columns="ids")
