"""Run examples under many conditions and keep the metrics of each: the raw material of every effect.

All conditions of a batch of examples go through `subject.each`, which shares what they have in common: those of scope
`answer` one prefill, the others the layers below the first cut. Examples whose prompts begin alike (a grid of
lengths, depths and questions over one haystack) run one by one on one KV cache, as far as no condition edits what they
share.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from interp.errors import NoAcceptedExample
from interp.intervene.base import Intervention
from interp.measure.metrics import METRICS, score_answer
from interp.models.batch import plan
from interp.models.subject import CausalLM
from interp.models.walk import Walk
from interp.tasks.base import Example
from interp.trace.each import Spent, resumes

Progress = Callable[[int, int, str], None]
TOKENS = 2048
"""Padded tokens of a batch."""


@dataclass
class Outcomes:
    """Metrics by condition: `values[condition][metric]` is an array over examples.

    Attributes:
        examples: in the order of the arrays.
        prefill_tokens: prompt tokens that were run, all conditions together.
    """

    examples: list[Example]
    values: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    prefill_tokens: int = 0

    @property
    def clusters(self) -> np.ndarray:
        """Unit of resampling of each example."""
        return np.array([e.cluster or e.key() for e in self.examples])

    def frame(self) -> pd.DataFrame:
        """One row an example and condition: number, condition, every metric, cluster, chance, and `meta`."""
        about = pd.DataFrame([{k: v for k, v in e.meta.items() if np.isscalar(v)} for e in self.examples])
        about.insert(0, "example", range(len(self.examples)))
        about["cluster"] = self.clusters
        about["chance"] = [e.chance for e in self.examples]
        parts = [about.assign(condition=name, **values) for name, values in self.values.items()]
        return pd.concat(parts, ignore_index=True)


def shares_prefix(condition: Intervention | None) -> bool:
    """Whether a condition leaves the prompt alone up to its last token."""
    return condition is None or all(a.describe()["scope"] == "answer" for a in condition.atoms())


def evaluate(
    subject: CausalLM,
    examples: Sequence[Example],
    conditions: Mapping[str, Intervention | None],
    *,
    progress: Progress | None = None,
) -> Outcomes:
    """Metrics of all examples under all conditions.

    Args:
        conditions: by name; None is the intact model.
        progress: told about forward work done.

    Raises:
        NoAcceptedExample: there is no example.
    """
    if not examples:
        raise NoAcceptedExample("there is no example to measure on")
    out = Outcomes(list(examples))
    names = list(conditions)
    for name in names:
        out.values[name] = {m: np.full(len(examples), np.nan) for m in METRICS}
    done, total = 0, len(examples) * len(names)
    items = [conditions[n] for n in names]
    for group, options in _units(subject, examples, items):
        batch = subject.batch([examples[i] for i in group])
        spent = Spent()
        for number, logits in subject.each(items, batch, spent=spent, **options):
            first = batch.width - logits.shape[1]
            for row, i in enumerate(group):
                columns = batch.answer_columns(row)
                rows = logits[row, columns.start - first : columns.stop - first].float()
                for metric, value in score_answer(rows, examples[i]).items():
                    out.values[names[number]][metric][i] = value
            done += len(group)
            if progress:
                progress(done, total, names[number].rpartition(" ")[0] or names[number])
        out.prefill_tokens += spent.prompt_tokens
    return out


def _units(
    subject: CausalLM, examples: Sequence[Example], items: Sequence[Intervention | None]
) -> Iterator[tuple[list[int], dict[str, Any]]]:
    """Examples that run together, with the KV cache of what one shares with the one before it."""
    # What is applied may edit one example's prompt and not that of another which begins alike.
    if not subject.edited and resumes(subject):
        prompts = [e.ids for e in examples]
        if Walk.of(prompts).pays:  # else conditions need not be asked what they leave to be shared
            walk = Walk.of(prompts, [_first_edited(subject, e, items) for e in examples])
            if walk.pays:
                for i, past, cache in walk.caches(subject):
                    yield [i], {"cache": cache, "past": past}
                return
    for group in plan([len(e.full_ids) for e in examples], TOKENS):
        yield group, {}


def _first_edited(subject: CausalLM, example: Example, items: Sequence[Intervention | None]) -> int:
    """First token that a condition edits, or else that predicts the answer."""
    batch = subject.batch([example])
    first = len(example.ids) - 1
    for item in items:
        touched = item.touches(subject, batch) if item is not None else {}
        if any(site.layer is None for site in touched):
            return 0
        for columns in touched.values():
            if bool(columns.any()):
                first = min(first, int(columns[0].int().argmax()))
    return first
