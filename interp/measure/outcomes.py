"""Run examples under many conditions and keep the metrics of each: the raw material of every effect.

Conditions of scope `answer` share one prefill an example and run packed (`interp.trace.prefix`); the others take a
forward pass each, batched over examples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from interp.errors import NoAcceptedExample
from interp.intervene.base import Intervention
from interp.measure.metrics import METRICS, score_answer
from interp.models.batch import plan
from interp.models.subject import CausalLM
from interp.tasks.base import Example
from interp.trace.prefix import Prefix

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
        share: run `answer`-scope conditions off one shared prefill; False runs every condition on its own.
        progress: told about forward work done.

    Raises:
        NoAcceptedExample: there is no example.
    """
    if not examples:
        raise NoAcceptedExample("there is no example to measure on")
    out = Outcomes(list(examples))
    for name in conditions:
        out.values[name] = {m: np.full(len(examples), np.nan) for m in METRICS}
    shared = [n for n, c in conditions.items() if share and shares_prefix(c)]
    if all(conditions[n] is None for n in shared):
        shared = []  # nothing to share: the intact model alone runs as fast in batches
    alone = [n for n in conditions if n not in shared]
    total = len(examples) * (bool(shared) + len(alone))
    done = 0
    if shared:
        for i, example in enumerate(examples):
            logits = Prefix(subject, example).run([conditions[n] for n in shared])
            out.prefill_tokens += len(example.ids)
            for name, rows in zip(shared, logits, strict=True):
                _keep(out, name, i, score_answer(rows, example))
            done += 1
            if progress:
                progress(done, total, "conditions of scope answer")
    for name in alone:
        condition = conditions[name]
        with subject.apply(*([condition] if condition is not None else [])):
            for group in plan([len(e.full_ids) for e in examples], TOKENS):
                chosen = [examples[i] for i in group]
                batch = subject.batch(chosen)
                logits = subject.run(batch).logits
                first = batch.width - logits.shape[1]
                out.prefill_tokens += sum(len(e.ids) for e in chosen)
                for row, i in enumerate(group):
                    columns = batch.answer_columns(row)
                    rows = logits[row, columns.start - first : columns.stop - first]
                    _keep(out, name, i, score_answer(rows, examples[i]))
                done += len(group)
                if progress:
                    progress(done, total, name.rpartition(" ")[0] or name)
    return out


def _keep(out: Outcomes, name: str, i: int, scores: Mapping[str, float]) -> None:
    for metric, value in scores.items():
        out.values[name][metric][i] = value
