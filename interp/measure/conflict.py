"""Memory or context: which of two answers a model gives where they contradict each other.

For examples whose answer is the memory's and whose foil is the context's, as those of the task `conflict`. The
memorisation ratio is f_mem / (f_mem + f_counter), as in Xie et al. (arXiv 2305.13300); what is neither is told apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from jaxtyping import Float

from interp.errors import NoAcceptedExample, UsageError
from interp.intervene.base import Intervention
from interp.measure.metrics import divergence
from interp.measure.next_token import Speaker, log_probs, speaker
from interp.measure.outcomes import Progress
from interp.measure.stats import proportion_ci
from interp.models.batch import plan
from interp.models.subject import CausalLM
from interp.tasks.base import Example, Task

MEMORY, CONTEXT, OTHER = "memory", "context", "other"
TOKENS = 1024
"""Padded tokens of a batch."""
BY = ("counter", "memory", "irrelevant", "first")


def sides(subject: CausalLM, task: Task | Sequence[Example], *, speak: Speaker | None = None) -> pd.DataFrame:
    """The side that a model takes in each example, by its likeliest token where the two answers part ways.

    Interventions that are applied hold.

    Returns:
        one row an example: side (`memory`, `context` or `other`), margin (log-probability of the memory's token less
        that of the context's, in nats), cluster, and `meta`.

    Raises:
        NoAcceptedExample: there is no example.
        UsageError: an example has no foil, or one answer begins the other.
    """
    examples = list(task.examples(subject) if isinstance(task, Task) else task)
    if not examples:
        raise NoAcceptedExample("there is no example to take a side in")
    at = []
    for e in examples:
        where = divergence(e.answer_ids, e.foil_ids)
        if where is None:
            raise UsageError(f"{e.task}: an example's answer and foil cannot be told apart by one token")
        at.append(where)
    prompts = [e.ids + e.answer_ids[:i] for e, i in zip(examples, at, strict=True)]
    rows = []
    for e, i, logs in zip(examples, at, log_probs(speak or speaker(subject), prompts), strict=True):
        context, prefix = e.foil_ids[i], e.answer_ids[:i]
        memory = {a[i] for a in (e.answer_ids, *e.alternatives) if len(a) > i and a[:i] == prefix} - {context}
        best = int(logs.argmax())
        side = MEMORY if best in memory else CONTEXT if best == context else OTHER
        margin = float(logs[e.answer_ids[i]] - logs[context])
        about = {k: v for k, v in e.meta.items() if np.isscalar(v)}
        rows.append({**about, "side": side, "margin": margin, "cluster": e.cluster or e.key()})
    return pd.DataFrame(rows)


def memorisation(frame: pd.DataFrame, by: Sequence[str] = BY) -> pd.DataFrame:
    """Memorisation ratio by condition.

    Args:
        frame: of `sides`.
        by: columns whose combinations are told apart (the relation, a domain).

    Returns:
        one row a group: n, f_memory, f_context, f_other (shares of all examples), ratio (f_memory over f_memory +
        f_context; NaN where neither is given), ci_lo and ci_hi (95 %, over clusters), n_clusters, margin (its mean).

    Raises:
        UsageError: the frame has no such column.
    """
    if missing := {"side", "cluster", *by} - set(frame.columns):
        raise UsageError(f"memorisation: the frame has no column {sorted(missing)[0]!r}")
    groups = frame.groupby(list(by), sort=True) if by else [((), frame)]
    rows = []
    for key, part in groups:
        shares = {f"f_{s}": float((part["side"] == s).mean()) for s in (MEMORY, CONTEXT, OTHER)}
        decided = part[part["side"] != OTHER]
        values = (decided["side"] == MEMORY).to_numpy(float)
        lo, hi = proportion_ci(values, decided["cluster"].to_numpy()) if len(values) else (np.nan, np.nan)
        rows.append(
            {
                **dict(zip(by, key, strict=True)),
                "n": len(part),
                **shares,
                "ratio": float(values.mean()) if len(values) else np.nan,
                "ci_lo": lo,
                "ci_hi": hi,
                "n_clusters": int(decided["cluster"].nunique()),
                "margin": float(part["margin"].mean()),
            }
        )
    return pd.DataFrame(rows)


def parted(example: Example) -> Example:
    """The prompt up to where the two answers part ways: answer, foil and alternatives are the one token there.

    Raises:
        UsageError: the example has no foil, or one answer begins the other.
    """
    at = divergence(example.answer_ids, example.foil_ids)
    if at is None:
        raise UsageError(f"{example.task}: an example's answer and foil cannot be told apart by one token")
    begun, foil = example.answer_ids[:at], example.foil_ids[at : at + 1]
    more = {a[at : at + 1] for a in example.alternatives if len(a) > at and a[:at] == begun}
    return replace(
        example,
        ids=example.ids + begun,
        answer_ids=example.answer_ids[at : at + 1],
        foil_ids=foil,
        alternatives=tuple(sorted(more - {foil, example.answer_ids[at : at + 1]})),
        candidates=(),
        corrupt={},
        meta={k: v for k, v in example.meta.items() if k != "score_at"},
    )


@dataclass(frozen=True, eq=False)
class Taken:
    """What is said of each example under each condition, where its two answers part ways.

    Attributes:
        examples: as asked, see `parted`.
        conditions: names, in the order of the columns.
        sides: `memory` (the answer or an alternative), `context` (the foil) or `other`: whose token is the likeliest.
        memory: log-probability of the answer's token, in nats.
        context: that of the foil's.
    """

    examples: tuple[Example, ...]
    conditions: tuple[str, ...]
    sides: np.ndarray
    memory: Float[np.ndarray, "n c"]
    context: Float[np.ndarray, "n c"]

    @property
    def clusters(self) -> np.ndarray:
        """Unit of resampling of each example."""
        return np.array([e.cluster or e.key() for e in self.examples])

    @property
    def margin(self) -> Float[np.ndarray, "n c"]:
        """How far the answer's token is ahead of the foil's: the difference of their logits."""
        return self.memory - self.context

    def share(self, side: str) -> Float[np.ndarray, "n c"]:
        """1 where a side is taken."""
        return (self.sides == side).astype(float)


def taken(
    subject: CausalLM,
    examples: Sequence[Example],
    conditions: Mapping[str, Intervention | None],
    *,
    progress: Progress | None = None,
) -> Taken:
    """The side that a model takes in each example under each of several interventions, which share what they can.

    Args:
        examples: with a foil.
        conditions: by name; None is the model as it is.
        progress: told about forward work done.

    Raises:
        NoAcceptedExample: there is no example.
        UsageError: an example's answer and foil cannot be told apart.
    """
    if not examples:
        raise NoAcceptedExample("there is no example to take a side in")
    prompts = [parted(e) for e in examples]
    items = list(conditions.values())
    shape = len(prompts), len(items)
    sides = np.full(shape, OTHER, dtype=object)
    memory, context = np.zeros(shape), np.zeros(shape)
    done = 0
    for group in plan([len(e.ids) for e in prompts], TOKENS):
        batch = subject.batch([prompts[i] for i in group])
        for number, logits in subject.each(items, batch, keep=1):
            logs = logits[:, -1].float().log_softmax(-1).cpu()
            best = logs.argmax(-1).tolist()
            for row, i in enumerate(group):
                e = prompts[i]
                memory[i, number] = float(logs[row, e.answer_ids[0]])
                context[i, number] = float(logs[row, e.foil_ids[0]])
                if (best[row],) in (e.answer_ids, *e.alternatives):
                    sides[i, number] = MEMORY
                elif best[row] == e.foil_ids[0]:
                    sides[i, number] = CONTEXT
            done += len(group)
            if progress:
                progress(done, len(prompts) * len(items), "answers")
    return Taken(tuple(prompts), tuple(conditions), sides, memory, context)
