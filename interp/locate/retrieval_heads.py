"""Retrieval heads: attention heads that get the answer from the context (Wu et al. 2024, arXiv 2404.15574).

One pass over prompt and forced answer tells most scores of `interp.locate.scores.SCORES` at once. `copy`,
`copy_position` and `copy_topk` are of what the model itself emits (its greedy output, which the forced answer drafts);
the other scores are of the rows that predict the forced answer, or of the prompt's. An instance is accepted if the
model's greedy output recalls more than half of the needle's tokens; the score of a head is its mean over accepted
instances, whatever the score, and by `copy` it is a retrieval head from 0.1 on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, Literal, Self

import numpy as np
import pandas as pd

from interp.errors import NoAcceptedExample, UsageError
from interp.locate.base import Locator
from interp.locate.capture import Capture, Decoded, Watch
from interp.locate.greedy import Begun, begin, finish, new_cache
from interp.locate.options import Options
from interp.locate.scores import chosen
from interp.locate.scores.copying import copied, copy_position_score, copy_score
from interp.measure.stats import cluster_se
from interp.models.batch import plan
from interp.models.subject import CausalLM
from interp.tasks.base import Example, Task

__all__ = ["THRESHOLD", "TOKENS", "RetrievalHeads", "copy_position_score", "copy_score", "recall"]

THRESHOLD = 0.1
"""Copy score from which a head counts as a retrieval head (Wu et al.)."""

TOKENS = 2048
"""Padded tokens of a batch."""


class RetrievalHeads(Locator):
    """Scores every attention head by what it retrieves from the context.

    Args:
        method: the score that ranks, of `interp.locate.scores.SCORES`.
        mode: `greedy` scores the model's own greedy output and leaves out instances it gets wrong; `forced` scores the
            forced answer of every instance.
        count: count copying steps in place of distinct tokens (the authors' code).
        accept: an instance counts if recall of the needle's tokens in the output is above this.
        max_new_tokens: length of an output that differs from the answer; default the answer's and 16 more.
        scores: what is scored beside it, or `all`. All that one pass tells cost that pass; `qr`, `cri`, `induction` and
            `echo` take passes of their own.
        options: parameters of the scores.

    Attributes:
        scores_: component, method, layer, head, kv_head, score, se (robust to clusters), n.
        groups_: mean and max of the heads of each KV group, which share keys and values.
        instances_: one row an instance: example, accepted, exact, output, answer, recall, depth, depth_asked, length,
            length_asked, needle, haystack, passes, cluster.
        per_instance_: method -> array (accepted instances, layers, heads).
        clusters_: name of the cluster of each accepted instance.
        copied_: for each accepted instance, whether each head copies at each step: steps x layers x heads.
        acceptance_: accepted over all instances.
        prefill_tokens_: tokens run up to the end of the outputs, without the passes of single scores.

    Example:
        heads = RetrievalHeads(scores=("copy", "locos")).fit(model, interp.task("niah", length=512, n=64))
        heads.top(10), heads.top(10, "locos")
    """

    mechanism = "retrieval heads"

    def __init__(
        self,
        method: str = "copy",
        *,
        mode: Literal["greedy", "forced"] = "greedy",
        count: bool = False,
        accept: float = 0.5,
        max_new_tokens: int | None = None,
        scores: str | Iterable[str] = ("copy", "copy_position"),
        options: Options | None = None,
    ):
        self.method = method
        self.mode = mode
        self.count = count
        self.accept = accept
        self.max_new_tokens = max_new_tokens
        self.scores = scores
        self.options = options

    def fit(
        self,
        subject: CausalLM,
        data: Task | None = None,
        *,
        reference: Any = None,
        progress: Callable[[int, int, str], None] | None = None,
    ) -> Self:
        """Score all heads on a task; copying is scored where answers stand in the prompt as `value` spans of item 0.

        Raises:
            UsageError: no task, no such score, or examples that lack what a score needs.
            NoAcceptedExample: the model recalls no needle; the message shows what it said instead.
        """
        names = self._names()
        if data is None:
            raise UsageError("RetrievalHeads needs a task: fit(model, interp.task('niah', length=512, n=64))")
        examples = data.examples(subject)
        options = self.options or Options()
        options = replace(options, count=self.count or options.count)
        watch = Watch(subject, examples, names, options)
        self._score(watch, examples, self._captures(watch, examples, progress))
        return self

    def _names(self) -> list[str]:
        """Methods, the one that ranks first."""
        first = [score.name for score in chosen(self.method)]
        return list(dict.fromkeys([*first, *(score.name for score in chosen(self.scores))]))

    def _captures(
        self, watch: Watch, examples: Sequence[Example], progress: Callable[[int, int, str], None] | None
    ) -> list[Capture]:
        stops = _stops(watch.subject)
        out: dict[int, Capture] = {}
        likely = True
        for group in plan([len(e.full_ids) for e in examples], TOKENS):
            unsure = len(group) == 1 and self.mode == "greedy" and not likely
            cache = new_cache() if unsure or watch.cached else None
            begun = begin(watch, [examples[i] for i in group], cache=cache)
            done = self._finish(watch, begun, stops)
            likely = done[-1].emitted.exact  # a model that words its answers otherwise goes on doing so
            out.update(zip(group, done, strict=True))
            if progress:
                progress(len(out), len(examples), "attention rows")
        return [out[i] for i in range(len(examples))]

    def _finish(self, watch: Watch, begun: Begun, stops: frozenset[int]) -> list[Capture]:
        """Outputs, and for accepted instances what scores need beside the one pass."""
        finish(watch, begun, max_new_tokens=self.max_new_tokens, stops=stops, forced=self.mode == "forced")
        for row, capture in enumerate(begun.captures):
            if self._accepted(capture):
                watch.more(capture, begun.prefix(row))
        return begun.captures

    def _accepted(self, capture: Capture) -> bool:
        return self.mode == "forced" or _recall(capture) > self.accept

    def _score(self, watch: Watch, examples: Sequence[Example], captures: Sequence[Capture]) -> None:
        subject = watch.subject
        recalls = [_recall(c) for c in captures]
        accepted = [self._accepted(c) for c in captures]
        decoded = [c.emitted for c in captures]
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
        kept = [c for c, ok in zip(captures, accepted, strict=True) if ok]
        self.per_instance_ = {score.name: np.stack([score(c) for c in kept]) for score in watch.scores}
        self.copied_ = [
            copied(c.emitted.output, c.emitted.argmax[..., None], c.example).numpy() for c in kept
        ]
        self.clusters_ = [c.example.cluster or c.example.key() for c in kept]
        self.scores_ = pd.concat(
            [_frame(subject, name, values, self.clusters_) for name, values in self.per_instance_.items()],
            ignore_index=True,
        )
        by_group = self.scores_.groupby(["method", "layer", "kv_head"], sort=False)["score"]
        self.groups_ = by_group.agg(["mean", "max"]).reset_index()[
            ["layer", "kv_head", "method", "mean", "max"]
        ]


def recall(output: list[int], answer: tuple[int, ...]) -> float:
    """Share of the answer's tokens (with multiplicity) that the output holds: ROUGE-1 recall over tokens."""
    common = Counter(output) & Counter(answer)
    return sum(common.values()) / len(answer)


def _recall(capture: Capture) -> float:
    return recall(capture.emitted.output, capture.example.answer_ids)


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
    examples: Sequence[Example],
    decoded: Sequence[Decoded],
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
            "length_asked": [e.meta.get("length_asked", np.nan) for e in examples],
            "needle": [e.meta.get("needle", np.nan) for e in examples],
            "haystack": [_joined(e.meta.get("haystack", "")) for e in examples],
            "passes": [d.passes for d in decoded],
            "cluster": [e.cluster for e in examples],
        }
    )


def _joined(names: Any) -> str:
    return names if isinstance(names, str) else " ".join(map(str, names))


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
