"""Retrieval heads: attention heads that get the answer from the context (Wu et al. 2024, arXiv 2404.15574).

One pass over prompt and forced answer tells most scores of `interp.locate.scores.SCORES` at once. `copy`,
`copy_position` and `copy_topk` are of what the model itself emits (its greedy output, which the forced answer drafts);
the other scores are of the rows that predict the forced answer, or of the prompt's. An instance is accepted if the
model's greedy output recalls more than half of the needle's tokens; the score of a head is its mean over accepted
instances, whatever the score, and by `copy` it is a retrieval head from 0.1 on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import pandas as pd

from interp.errors import NoAcceptedExample, UsageError
from interp.locate.base import Locator
from interp.locate.capture import Capture, Decoded, Watch
from interp.locate.greedy import Begun, begin, finish, new_cache
from interp.locate.options import Options
from interp.locate.parts import Part, Parts
from interp.locate.scores import chosen
from interp.locate.scores.copying import copied, copy_position_score, copy_score
from interp.measure.stats import cluster_se
from interp.models.batch import plan
from interp.models.subject import CausalLM
from interp.models.walk import Walk
from interp.tasks.base import Example, Task, stable_seed

if TYPE_CHECKING:
    from interp.measure.sequential import Stop

__all__ = ["THRESHOLD", "TOKENS", "RetrievalHeads", "copy_position_score", "copy_score", "recall"]

THRESHOLD = 0.1
"""Copy score from which a head counts as a retrieval head (Wu et al.)."""

TOKENS = 2048
"""Padded tokens of a batch."""

UNIT = 16
"""Examples that are scored before the next look, where they share no prefills."""


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
            length_asked, needle, haystack, passes, tokens, cluster.
        per_instance_: method -> array (accepted instances, layers, heads).
        clusters_: name of the cluster of each accepted instance.
        copied_: for each accepted instance, whether each head copies at each step: steps x layers x heads.
        acceptance_: accepted over all instances.
        prefill_tokens_: tokens run up to the end of the outputs, without the passes of single scores.
        naive_tokens_: tokens of all prompts and answers, each run for itself.
        stop_: what was settled when the fit ended, where `stop` was given; see `interp.measure.sequential.StopReport`.

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
        folder: str | Path | None = None,
        stop: Stop | None = None,
        progress: Callable[[int, int, str], None] | None = None,
    ) -> Self:
        """Score all heads on a task; copying is scored where answers stand in the prompt as `value` spans of item 0.

        Prompts that begin alike (`niah_grid`) share their prefills, cluster by cluster.

        Args:
            folder: keep what is scored here, unit by unit, and go on from what is there: a killed fit ends with the
                same tables. A unit is a cluster where prefills are shared, else 16 examples.
            stop: when enough instances are scored; it looks after each unit. Fewer instances than the task has are
                then scored, and `stop_` says why. With `unit="instance"` instances are taken in a seeded random order.

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
        about = {"methods": names, "options": options, **self._accepting()}
        parts = Parts(folder, subject, about, twins=any(score.twins for score in watch.scores))
        shared = self._shares(watch, examples)
        self.__dict__.pop("stop_", None)  # of an earlier fit
        done: list[Part] = []
        shuffled = stop is not None and stop.unit == "instance"
        for unit in _units(examples, shared, whole=folder is None and stop is None, shuffled=shuffled):
            before = sum(len(p.instances) for p in done)

            def report(n: int, total: int, what: str, before: int = before) -> None:
                if progress:
                    progress(before + n, len(examples), what)

            def make(unit: list[int] = unit, report: Callable[[int, int, str], None] = report) -> Part:
                return self._part(watch, examples, unit, shared, report)

            part = parts.get([examples[i] for i in unit], make)
            # One that another fit left has that fit's numbers.
            part.instances = part.instances.assign(example=list(unit))
            done.append(part)
            report(len(unit), len(examples), "attention rows")
            if stop is not None and self._enough(stop, done):
                break
        self._learn(subject, examples, Part.join(done))
        return self

    def _accepting(self) -> dict[str, Any]:
        """What decides which instances count."""
        return {"mode": self.mode, "accept": self.accept, "max_new_tokens": self.max_new_tokens}

    @staticmethod
    def _shares(watch: Watch, examples: Sequence[Example]) -> bool:
        """Whether examples are scored one by one on one KV cache: their prompts begin alike."""
        subject = watch.subject
        if subject.edited or "cache" not in subject.engine.capabilities:
            return False  # what is applied may edit one prompt and not another that begins alike
        return Walk.of([e.ids for e in examples], watch.first).pays

    def _enough(self, stop: Stop, parts: Sequence[Part]) -> bool:
        """Whether what is scored so far, in the order it came, is enough."""
        accepted = pd.concat([p.instances[p.instances["accepted"]] for p in parts])
        if not len(accepted):
            return False
        values = np.concatenate([p.scores[self.method] for p in parts])
        self.stop_ = stop.check(values, accepted["cluster"].tolist())
        return self.stop_.stop

    def _names(self) -> list[str]:
        """Methods, the one that ranks first."""
        first = [score.name for score in chosen(self.method)]
        return list(dict.fromkeys([*first, *(score.name for score in chosen(self.scores))]))

    def _part(
        self,
        watch: Watch,
        examples: Sequence[Example],
        unit: Sequence[int],
        shared: bool,
        progress: Callable[[int, int, str], None],
    ) -> Part:
        """Score some of the examples."""
        stops = _stops(watch.subject)
        out: dict[int, Capture] = {}
        for group, begun in self._begun(watch, examples, unit, shared, out):
            done = self._finish(watch, begun, stops)
            out.update(zip(group, done, strict=True))
            progress(len(out), len(examples), "attention rows")
        captures = [out[i] for i in unit]
        kept = [c for c in captures if self._accepted(c)]
        empty = np.zeros((0, watch.subject.n_layers, watch.subject.n_heads))
        scores = {s.name: np.stack([s(c) for c in kept]) if kept else empty for s in watch.scores}
        copying = [copied(c.emitted.output, c.emitted.argmax[..., None], c.example).numpy() for c in kept]
        recalls = [_recall(c) for c in captures]
        accepted = [self._accepted(c) for c in captures]
        chosen_examples = [examples[i] for i in unit]
        decoded = [c.emitted for c in captures]
        table = _instances(watch.subject, chosen_examples, decoded, recalls, accepted)
        return Part(table, scores, copying)

    def _begun(
        self,
        watch: Watch,
        examples: Sequence[Example],
        unit: Sequence[int],
        shared: bool,
        out: Mapping[int, Capture],
    ) -> Iterator[tuple[list[int], Begun]]:
        """First passes over the examples of a unit: on one KV cache, or in batches of similar length."""
        if shared:
            walk = Walk.of([examples[i].ids for i in unit], [watch.first[i] for i in unit])
            for i, past, cache in walk.caches(watch.subject):
                yield [unit[i]], begin(watch, [examples[unit[i]]], cache=cache, past=past)
            return
        likely = True
        for at in plan([len(examples[i].full_ids) for i in unit], TOKENS):
            group = [unit[i] for i in at]
            unsure = len(group) == 1 and self.mode == "greedy" and not likely
            cache = new_cache() if unsure or watch.cached else None
            yield group, begin(watch, [examples[i] for i in group], cache=cache)
            likely = out[group[-1]].emitted.exact  # a model that words its answers otherwise goes on doing so

    def _finish(self, watch: Watch, begun: Begun, stops: frozenset[int]) -> list[Capture]:
        """Outputs, and for accepted instances what scores need beside the one pass."""
        finish(watch, begun, max_new_tokens=self.max_new_tokens, stops=stops, forced=self.mode == "forced")
        for row, capture in enumerate(begun.captures):
            if self._accepted(capture):
                watch.more(capture, begun.prefix(row))
        return begun.captures

    def _accepted(self, capture: Capture) -> bool:
        return self.mode == "forced" or _recall(capture) > self.accept

    def _learn(self, subject: CausalLM, examples: Sequence[Example], part: Part) -> None:
        self.instances_ = part.instances
        accepted = part.instances["accepted"].to_numpy()
        self.acceptance_ = float(accepted.mean())
        self.prefill_tokens_ = int(part.instances["tokens"].sum())
        self.naive_tokens_ = sum(len(examples[i].full_ids) - 1 for i in part.instances["example"])
        if not accepted.any():
            first = part.instances.iloc[0]
            raise NoAcceptedExample(
                f"{subject.name} recalls none of {len(accepted)} needles of '{examples[0].task}' (best recall "
                f"{part.instances['recall'].max():.2f}, needed above {self.accept}); asked for {first['answer']!r} it "
                f"said {first['output']!r}. Take shorter contexts or easier needles, or mode='forced'"
            )
        # Parts that were read have their scores in the order of the file.
        self.per_instance_ = {name: part.scores[name] for name in self._names()}
        self.copied_ = part.copied
        kept = [examples[i] for i in part.instances["example"][accepted]]
        self.clusters_ = [e.cluster or e.key() for e in kept]
        self.scores_ = pd.concat(
            [_frame(subject, name, values, self.clusters_) for name, values in self.per_instance_.items()],
            ignore_index=True,
        )
        by_group = self.scores_.groupby(["method", "layer", "kv_head"], sort=False)["score"]
        self.groups_ = by_group.agg(["mean", "max"]).reset_index()[
            ["layer", "kv_head", "method", "mean", "max"]
        ]


def _units(
    examples: Sequence[Example], shared: bool, *, whole: bool, shuffled: bool = False
) -> list[list[int]]:
    """Numbers of the examples that are scored together: of a cluster, of a stretch, or all.

    Args:
        shuffled: in an order that says nothing of their score (a grid goes by length), for a stop that counts each.
    """
    every = list(range(len(examples)))
    if shuffled:
        every = np.random.default_rng(stable_seed("units", len(every))).permutation(every).tolist()
    if shared:
        by_cluster: dict[str, list[int]] = {}
        for i in every:
            by_cluster.setdefault(examples[i].cluster, []).append(i)
        return list(by_cluster.values())
    return [every] if whole else [every[i : i + UNIT] for i in range(0, len(every), UNIT)]


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
            "tokens": [d.tokens for d in decoded],
            "cluster": [e.cluster or e.key() for e in examples],
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
