"""`known_to`: keep what this model answers right, so that an effect is a loss and not an ignorance."""

from __future__ import annotations

import pandas as pd

from interp.errors import NoAcceptedExample
from interp.measure.outcomes import Progress, evaluate
from interp.models.subject import CausalLM
from interp.tasks.base import FixedTask, Task


def known_to(subject: CausalLM, task: Task, *, progress: Progress | None = None) -> FixedTask:
    """The examples of a task that the intact model answers right (greedily; see `score_answer`).

    Raises:
        NoAcceptedExample: it answers none of them right.
    """
    examples = task.examples(subject)
    right = evaluate(subject, examples, {"clean": None}, progress=progress).values["clean"]["accuracy"] > 0.5
    kept = [e for e, ok in zip(examples, right, strict=True) if ok]
    if not kept:
        raise NoAcceptedExample(
            f"{subject.name} answers none of the {len(examples)} examples of {task!r} right"
        )
    return FixedTask(
        kept, name=f"known {task.name}", copies=task.copies, of=task.config(), model=subject.name
    )


def census(
    subject: CausalLM, task: Task, *, by: str = "relation", progress: Progress | None = None
) -> pd.DataFrame:
    """How many examples the model answers right, by a field of `meta` (the relation, the kind of needle).

    Returns:
        one row a value of the field: `n`, `known`, `accuracy`, `chance`.
    """
    examples = task.examples(subject)
    right = evaluate(subject, examples, {"clean": None}, progress=progress).values["clean"]["accuracy"]
    frame = pd.DataFrame(
        {
            by: [str(e.meta.get(by, "")) for e in examples],
            "known": right,
            "chance": [e.chance for e in examples],
        }
    )
    out = frame.groupby(by, sort=True).agg(
        n=("known", "size"), known=("known", "sum"), chance=("chance", "mean")
    )
    out["accuracy"] = out["known"] / out["n"]
    return out.reset_index().astype({"known": int})
