"""Run examples under many conditions and keep the metrics of each: the raw material of every effect.

All conditions of a batch of examples go through `subject.each`, which shares what they have in common: those of scope
`answer` one prefill, the others the layers below the first cut.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float

from interp.errors import NoAcceptedExample
from interp.intervene.base import Intervention
from interp.measure.metrics import METRICS, score_answer
from interp.models.batch import Batch, plan
from interp.models.subject import CausalLM
from interp.tasks.base import Example
from interp.trace.each import Spent

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


def shares_prefix(condition: Intervention | None) -> bool:
    """Whether a condition leaves the prompt alone up to its last token."""
    return condition is None or all(a.describe()["scope"] == "answer" for a in condition.atoms())


def evaluate(
    subject: CausalLM,
    examples: Sequence[Example],
    conditions: Mapping[str, Intervention | None],
    *,
    share: bool = True,
    progress: Progress | None = None,
) -> Outcomes:
    """Metrics of all examples under all conditions.

    Args:
        conditions: by name; None is the intact model.
        share: share the work of conditions; False runs every one in full.
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
    for group in plan([len(e.full_ids) for e in examples], TOKENS):
        chosen = [examples[i] for i in group]
        batch = subject.batch(chosen)
        spent = Spent()
        items = [conditions[n] for n in names]
        run = subject.each(items, batch, spent=spent) if share else _one_by_one(subject, items, batch, spent)
        for number, logits in run:
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


def _one_by_one(
    subject: CausalLM, items: Sequence[Intervention | None], batch: Batch, spent: Spent
) -> Iterator[tuple[int, Float[torch.Tensor, "b keep v"]]]:
    """Every condition in a forward pass of its own."""
    for number, item in enumerate(items):
        with subject.apply(*([item] if item is not None else [])):
            logits = subject.run(batch).logits
        spent.prompt_tokens += int((batch.answer_start - batch.pad + 1).sum())
        yield number, logits
