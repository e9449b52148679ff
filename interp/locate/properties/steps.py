"""Which heads copy at each step of the model's own output."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool

from interp.errors import NoAcceptedExample, UsageError
from interp.locate.greedy import Decoded, decode
from interp.locate.retrieval_heads import TOKENS, _stops, recall
from interp.models.batch import plan
from interp.models.subject import CausalLM
from interp.tasks.base import Example, Task

ACCEPT = 0.5


@dataclass(frozen=True, eq=False)
class Steps:
    """One accepted instance.

    Attributes:
        index: its number in the task.
        example: the question.
        copies: whether each head copies at each step: its top key lies in the needle and holds the emitted token.
    """

    index: int
    example: Example
    copies: Bool[np.ndarray, "s l h"]


def copying_steps(subject: CausalLM, task: Task) -> list[Steps]:
    """The copying steps of every instance that the model answers right (recall above a half).

    Raises:
        UsageError: an answer does not stand in the prompt.
        NoAcceptedExample: the model answers none.
    """
    examples = task.examples(subject)
    for e in examples:
        if not e.spans_of("value", 0):
            raise UsageError(f"an answer of {task!r} does not stand in the prompt as a value span of item 0")
    decoded: dict[int, Decoded] = {}
    for group in plan([len(e.full_ids) for e in examples], TOKENS):
        done = decode(subject, [examples[i] for i in group], stops=_stops(subject))
        decoded.update(zip(group, done, strict=True))
    out = [
        Steps(i, e, copies(decoded[i], e))
        for i, e in enumerate(examples)
        if recall(decoded[i].output, e.answer_ids) > ACCEPT
    ]
    if not out:
        raise NoAcceptedExample(f"{subject.name} recalls none of {len(examples)} needles of '{task.name}'")
    return out


def copies(decoded: Decoded, example: Example) -> Bool[np.ndarray, "s l h"]:
    """Whether each head copies at each step (Wu et al. 2024, section 2)."""
    ids = torch.tensor(example.ids)
    top = decoded.argmax
    inside = torch.zeros_like(top, dtype=torch.bool)
    for span in example.spans_of("value", 0):
        inside |= (top >= span.start) & (top < span.end)
    emitted = torch.tensor(decoded.output)[:, None, None]
    return (inside & (ids[top.clamp(0, len(ids) - 1)] == emitted)).numpy()
