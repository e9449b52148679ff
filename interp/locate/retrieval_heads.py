"""Retrieval heads: attention heads that copy from the context (Wu et al. 2024, arXiv 2404.15574).

At the step that emits token w a head *copies* if the key it attends to most lies in the needle and holds w. The row is
the one that *predicts* w: the last prompt token's for the first answer token. Scores of an instance:

- `copy`: distinct needle tokens copied over distinct needle tokens (section 2 of the paper); it lies in [0, 1]. With
  `count=True` every copying step counts, as in the authors' code, and the score can exceed 1 where a token repeats.
- `copy_position`: steps at which the head's top key is the very position that the emitted token was copied from, over
  the needle's length. It does not credit a head for another occurrence of the same token.

An instance is accepted if the model's greedy output recalls more than half of the needle's tokens; the score of a head
is its mean over accepted instances, and it is a retrieval head from 0.1 on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, Literal, Self

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from interp.errors import NoAcceptedExample, UsageError
from interp.locate.base import Locator
from interp.locate.greedy import Decoded, decode
from interp.measure.stats import cluster_se
from interp.models.batch import plan
from interp.models.subject import CausalLM
from interp.tasks.base import Example, Task

METHODS = ("copy", "copy_position")
THRESHOLD = 0.1
"""Score from which a head counts as a retrieval head (Wu et al.)."""

TOKENS = 2048
"""Padded tokens of a batch."""


class RetrievalHeads(Locator):
    """Scores every attention head by what it copies from the context.

    Args:
        method: the score that ranks: `copy` or `copy_position`.
        mode: `greedy` scores the model's own greedy output and leaves out instances it gets wrong; `forced` scores the
            forced answer of every instance.
        count: count copying steps in place of distinct tokens (the authors' code).
        accept: an instance counts if recall of the needle's tokens in the output is above this.
        max_new_tokens: length of an output that differs from the answer; default the answer's and 16 more.

    Attributes:
        scores_: component, method, layer, head, kv_head, score, se (robust to clusters), n.
        groups_: mean and max of the heads of each KV group, which share keys and values.
        instances_: one row an instance: accepted, exact, output, answer, recall, depth, depth_asked, length, passes.
        per_instance_: method -> array (accepted instances, layers, heads).
        acceptance_: accepted over all instances.
        prefill_tokens_: tokens run.

    Example:
        heads = RetrievalHeads().fit(model, interp.task("niah", length=512, n=64))
        heads.top(10)
    """

    mechanism = "retrieval heads"

    def __init__(
        self,
        method: Literal["copy", "copy_position"] = "copy",
        *,
        mode: Literal["greedy", "forced"] = "greedy",
        count: bool = False,
        accept: float = 0.5,
        max_new_tokens: int | None = None,
    ):
        self.method = method
        self.mode = mode
        self.count = count
        self.accept = accept
        self.max_new_tokens = max_new_tokens

    def fit(
        self,
        subject: CausalLM,
        data: Task | None = None,
        *,
        reference: Any = None,
        progress: Callable[[int, int, str], None] | None = None,
    ) -> Self:
        """Score all heads on a task whose answers stand in the prompt as `value` spans of item 0.

        Raises:
            UsageError: no task, or one whose answers do not stand in the prompt.
            NoAcceptedExample: the model recalls no needle; the message shows what it said instead.
        """
        if self.method not in METHODS:
            raise UsageError(f"unknown method '{self.method}'; write one of {', '.join(METHODS)}")
        if data is None:
            raise UsageError("RetrievalHeads needs a task: fit(model, interp.task('niah', length=512, n=64))")
        examples = data.examples(subject)
        for e in examples:
            spans = e.spans_of("value", 0)
            if not spans or any(len(s) != len(e.answer_ids) for s in spans):
                raise UsageError(
                    f"an answer of {data!r} does not stand in the prompt as a value span of item 0, so nothing can be "
                    "copied; take niah or induction"
                )
        decoded = self._decode(subject, examples, progress)
        self._score(subject, examples, decoded)
        return self

    def _decode(
        self, subject: CausalLM, examples: list[Example], progress: Callable[[int, int, str], None] | None
    ) -> list[Decoded]:
        stops = _stops(subject)
        out: dict[int, Decoded] = {}
        likely = True
        for group in plan([len(e.full_ids) for e in examples], TOKENS):
            chosen = [examples[i] for i in group]
            done = decode(
                subject,
                chosen,
                max_new_tokens=self.max_new_tokens,
                stops=stops,
                forced=self.mode == "forced",
                likely=likely,
            )
            likely = done[-1].exact  # a model that words its answers otherwise goes on doing so
            out.update(zip(group, done, strict=True))
            if progress:
                progress(len(out), len(examples), "attention rows")
        return [out[i] for i in range(len(examples))]

    def _score(self, subject: CausalLM, examples: list[Example], decoded: list[Decoded]) -> None:
        recalls = [recall(d.output, e.answer_ids) for d, e in zip(decoded, examples, strict=True)]
        accepted = [self.mode == "forced" or r > self.accept for r in recalls]
        self.instances_ = _instances(subject, examples, decoded, recalls, accepted)
        self.acceptance_ = float(np.mean(accepted))
        self.prefill_tokens_ = sum(d.tokens for d in decoded)
        if not any(accepted):
            example, said = examples[0], decoded[0].output
            raise NoAcceptedExample(
                f"{subject.name} recalls none of {len(examples)} needles of '{example.task}' (best recall "
                f"{max(recalls):.2f}, needed above {self.accept}); asked for {_text(subject, example.answer_ids)!r} it "
                f"said {_text(subject, said)!r}. Take shorter contexts or easier needles, or mode='forced'"
            )
        kept = [(e, d) for e, d, ok in zip(examples, decoded, accepted, strict=True) if ok]
        self.per_instance_ = {
            "copy": np.stack([copy_score(d, e, count=self.count) for e, d in kept]),
            "copy_position": np.stack([copy_position_score(d, e) for e, d in kept]),
        }
        clusters = [e.cluster or e.key() for e, _ in kept]
        order = [self.method, *(m for m in METHODS if m != self.method)]
        self.scores_ = pd.concat(
            [_frame(subject, method, self.per_instance_[method], clusters) for method in order],
            ignore_index=True,
        )
        by_group = self.scores_.groupby(["method", "layer", "kv_head"], sort=False)["score"]
        self.groups_ = by_group.agg(["mean", "max"]).reset_index()[
            ["layer", "kv_head", "method", "mean", "max"]
        ]


def copy_score(decoded: Decoded, example: Example, *, count: bool = False) -> Float[np.ndarray, "l h"]:
    """Copy score of one instance (Wu et al. 2024, section 2): set-based in [0, 1], or counting steps.

    >>> import torch
    >>> from interp.tasks.base import Example, Span
    >>> e = Example("t", (9, 5, 6, 1), (5, 6), spans=(Span(1, 3, "value", 0),), chance=0.5)
    >>> copy_score(Decoded([5, 6], torch.tensor([[[1, 0]], [[2, 2]]]), True), e)
    array([[1. , 0.5]])
    """
    needle = _needle(example)
    ids = torch.tensor(example.ids)
    argmax = decoded.argmax  # s l h
    inside = _inside(argmax, needle, len(example.ids))
    tokens = torch.tensor(decoded.output)
    hit = inside & (ids[argmax.clamp(0, len(ids) - 1)] == tokens[:, None, None])
    if count:
        return (hit.sum(0).double() / len(needle)).numpy()
    kinds = sorted({int(ids[i]) for i in needle})
    found = torch.stack([(hit & (tokens == kind)[:, None, None]).any(0) for kind in kinds])
    return (found.sum(0).double() / len(kinds)).numpy()


def copy_position_score(decoded: Decoded, example: Example) -> Float[np.ndarray, "l h"]:
    """Steps whose top key is the exact source of the emitted token, over the needle's length.

    In an output that is not the forced answer, token by token, the source of an emitted token is each needle position
    that holds it; a position counts once.
    """
    spans = example.spans_of("value", 0)
    argmax = decoded.argmax
    n = len(spans[0])
    if tuple(decoded.output) == example.answer_ids:
        step = torch.arange(n)[:, None, None]
        hit = torch.stack([argmax == s.start + step for s in spans]).any(0)
        return (hit.sum(0).double() / n).numpy()
    ids = torch.tensor(example.ids)
    tokens = torch.tensor(decoded.output)
    found = [
        ((argmax == place) & (tokens == ids[place])[:, None, None]).any(0)
        for place in range(spans[0].start, spans[0].end)
    ]
    return (torch.stack(found).sum(0).double() / n).numpy()


def recall(output: list[int], answer: tuple[int, ...]) -> float:
    """Share of the answer's tokens (with multiplicity) that the output holds: ROUGE-1 recall over tokens."""
    common = Counter(output) & Counter(answer)
    return sum(common.values()) / len(answer)


def _needle(example: Example) -> list[int]:
    return [i for s in example.spans_of("value", 0) for i in range(s.start, s.end)]


def _inside(argmax: torch.Tensor, needle: list[int], n: int) -> torch.Tensor:
    member = torch.zeros(n, dtype=torch.bool)
    member[needle] = True
    return (argmax < n) & (argmax >= 0) & member[argmax.clamp(0, n - 1)]


def _stops(subject: CausalLM) -> frozenset[int]:
    """End of text and newline end an output."""
    if not subject.has_tokens:
        return frozenset()
    tokens = subject.tokens
    ends = set() if tokens.eos_id is None else {tokens.eos_id}
    newline = tokens.encode("a\n").ids[-1]
    if tokens.decode([newline]) == "\n":
        ends.add(newline)
    return frozenset(ends)


def _text(subject: CausalLM, ids: Any) -> str:
    return subject.tokens.decode(ids) if subject.has_tokens else " ".join(map(str, ids))


def _instances(
    subject: CausalLM,
    examples: list[Example],
    decoded: list[Decoded],
    recalls: list[float],
    accepted: list[bool],
) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "example": range(len(examples)),
            "accepted": accepted,
            "exact": [d.exact for d in decoded],
            "output": [_text(subject, d.output) for d in decoded],
            "answer": [_text(subject, e.answer_ids) for e in examples],
            "recall": recalls,
            "depth": [e.meta.get("depth", np.nan) for e in examples],
            "depth_asked": [e.meta.get("depth_asked", np.nan) for e in examples],
            "length": [len(e.ids) for e in examples],
            "passes": [d.passes for d in decoded],
            "cluster": [e.cluster for e in examples],
        }
    )


def _frame(subject: CausalLM, method: str, values: np.ndarray, clusters: list[str]) -> pd.DataFrame:
    mean, se = values.mean(0), cluster_se(values, clusters)
    heads = subject.heads()
    return pd.DataFrame(
        {
            "component": [repr(h) for h in heads],
            "method": method,
            "layer": [h.layer for h in heads],
            "head": [h.head for h in heads],
            "kv_head": [subject.kv_head(h.head) for h in heads],
            "score": mean.reshape(-1),
            "se": se.reshape(-1),
            "n": len(values),
        }
    )
