"""Which answer of the closed set a model gives, and of values that were updated: how old the one it gives is.

Proactive interference shows in the age of the answers (after PI-LLM, arXiv 2506.08184): a model that reads an earlier
update gives a stale value of the right key.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Int

from interp.errors import NoAcceptedExample, UsageError
from interp.intervene.base import Intervention
from interp.measure.metrics import score_at
from interp.measure.outcomes import TOKENS
from interp.measure.stats import proportion_ci
from interp.models.batch import plan
from interp.models.subject import CausalLM
from interp.tasks.base import Example, Ids


def choices(
    subject: CausalLM, examples: Sequence[Example], intervention: Intervention | None = None
) -> Int[np.ndarray, " n"]:
    """Number of the candidate that stands highest, at the first token that tells the candidates apart; 0 is the answer.

    Candidates that share a token there count as the first of them, as in the metric `rank`.

    Raises:
        NoAcceptedExample: there is no example.
        UsageError: an example has fewer than two candidates.
    """
    if not examples:
        raise NoAcceptedExample("there is no example to measure on")
    if any(len(e.candidates) < 2 for e in examples):
        raise UsageError(
            "choices: an example has fewer than two candidates; take a task with a closed set of answers"
        )
    out = np.zeros(len(examples), dtype=np.int64)
    for group in plan([len(e.full_ids) for e in examples], TOKENS):
        batch = subject.batch([examples[i] for i in group])
        for _, logits in subject.each([intervention], batch):
            first = batch.width - logits.shape[1]
            for row, i in enumerate(group):
                place = score_at(examples[i])
                at = logits[row, batch.answer_columns(row).start - first + place]
                told = [c[place] if len(c) > place else -1 for c in examples[i].candidates]
                scores = [float(at[t]) if t >= 0 else -np.inf for t in told]
                out[i] = int(np.argmax(scores))
    return out


def ages(example: Example) -> dict[Ids, int]:
    """How many updates ago each value of the key asked for was said: 0 is the current one.

    Raises:
        UsageError: the example has no stale value.
    """
    spans = [*example.spans_of("value", 0), *example.spans_of("stale_value", 0)]
    if not example.spans_of("stale_value", 0):
        raise UsageError(
            f"{example.task}: no span has the role stale_value; take a task of updates, such as 'updates'"
        )
    return {example.ids[s.start : s.end]: s.hop if s.role == "stale_value" else 0 for s in spans}


def stale_rank(
    examples: Sequence[Example], chosen: Sequence[int] | Int[np.ndarray, " n"], *, within: str = "updates"
) -> pd.DataFrame:
    """Histogram of the ages of the values that are answered.

    Args:
        examples: of a task with `stale_value` spans.
        chosen: number of the candidate that each gives, from `choices`.
        within: entry of `meta` whose values have histograms of their own.

    Returns:
        one row a value of `within` and age: `within`, age (0 is the current value, 1 the one before; -1 an answer that
        was never said of the key), share (of the answers), ci_lo, ci_hi (95 %, over clusters), n, n_clusters, chance
        (share of a uniform guess among the candidates).

    Raises:
        UsageError: not as many choices as examples, an example without stale values, or without the entry in `meta`.
    """
    if len(examples) != len(chosen):
        raise UsageError(f"stale_rank: {len(examples)} examples and {len(chosen)} choices; give one each")
    found = []
    for example, number in zip(examples, chosen, strict=True):
        if within not in example.meta:
            raise UsageError(f"stale_rank: examples of {example.task} have no '{within}' in their meta")
        known = ages(example)
        options = [known.get(c, -1) for c in example.candidates]
        found.append((example.meta[within], options[int(number)], options, example.cluster or example.key()))
    rows = []
    for group in sorted({group for group, *_ in found}):
        part = [f[1:] for f in found if f[0] == group]
        clusters = np.array([cluster for *_, cluster in part])
        for age in sorted({a for _, options, _ in part for a in options}):
            hits = np.array([float(given == age) for given, *_ in part])
            low, high = proportion_ci(hits, clusters)
            rows.append(
                {
                    within: group,
                    "age": age,
                    "share": float(hits.mean()),
                    "ci_lo": low,
                    "ci_hi": high,
                    "n": len(part),
                    "n_clusters": len(set(clusters)),
                    "chance": float(np.mean([options.count(age) / len(options) for _, options, _ in part])),
                }
            )
    return pd.DataFrame(rows)
