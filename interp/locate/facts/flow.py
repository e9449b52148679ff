"""Flow of information to the answer: attention knockout by windows of layers (Geva et al. 2023, arXiv 2304.14767).

Edges from one group of tokens to another are cut in a window of layers around each layer, and the rest of each row is
renormalised; what the answer loses says when it reads those tokens. Edges into the last token change that token alone:
a cell costs one token in the layers from its window's first one on, since `subject.each` keeps the intact run's keys
and values.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from interp.errors import NoAcceptedExample, UsageError
from interp.intervene.ablate import Ablate
from interp.intervene.tracing.cells import METRICS, asked, window_of
from interp.intervene.tracing.noise import span_of
from interp.intervene.tracing.places import LAST, places_of
from interp.measure.stats import bootstrap_ci
from interp.models.batch import plan, role_tokens
from interp.models.sites import Head
from interp.models.subject import CausalLM
from interp.tasks.base import Example, Span, Task
from interp.trace.each import Progress, Spent

WINDOW = 9
"""Layers of a window, as in the paper's analyses of many prompts."""
TOKENS = 2048
START = "first"
SOURCES = ("subject", START, "other", LAST)
"""The subject's tokens; the prompt's first token, where models keep a sink of attention; the others; the last one."""
_GROUP = "_group"


def knockout_map(
    subject: CausalLM,
    task: Task | Sequence[Example],
    sources: str | Sequence[str] = SOURCES,
    *,
    target: str = LAST,
    window: int = WINDOW,
    layers: Iterable[int] | None = None,
    parts: str = "layers",
    metric: str = "probability",
    role: str = "subject",
    n: int | None = None,
    budget: int | None = None,
    progress: Progress | None = None,
    spent: Spent | None = None,
) -> pd.DataFrame:
    """What the answer loses when the target's tokens cannot look at a source's.

    Args:
        sources: groups of tokens that are hidden, one after the other: see `tokens_of`. `first` may be lacking in all
            prompts.
        target: group of tokens whose rows lose the edges.
        window: layers of a window, cut off at the ends of the model; of single heads there is no window.
        layers: centres of the windows, or layers of the heads; default all.
        parts: all heads of a window of `layers` at once, or `heads` one by one.
        metric: `probability`, `logprob` (nats) or `logit_diff` (against the foil) of the answer, asked for at its first
            token that tells the candidates apart.
        role: of the span that counts as the subject.
        n: use at most so many examples.
        budget, spent: see `interp.trace.each`.

    Returns:
        one row a prompt, source and cell: example, cluster, source, target, window, layer, head (-1 for all), metric,
        value, clean, effect (value - clean) and relative (100 (value - clean) / clean, of probabilities). Prompts that
        have no token of a source have no rows of it.

    Raises:
        UsageError: no such group, metric or layer; an example lacks the target or the foil.
        NoAcceptedExample: there is no prompt.
    """
    wanted = (sources,) if isinstance(sources, str) else tuple(sources)
    _check(metric, window, parts, wanted)
    examples = asked_all(subject, task, n)
    centres = list(range(subject.n_layers) if layers is None else layers)
    cells = _cells(subject, centres, window, parts)
    groups = [{name: tokens_of(e, name, role) for name in (*wanted, target)} for e in examples]
    for e, found in zip(examples, groups, strict=True):
        if not found[target]:
            raise UsageError(f"{e.task}: an example has no token of target '{target}'")
    rows: list[dict[str, Any]] = []
    done = 0
    for members, present in _batches(examples, groups, wanted):
        marked = [_marked(examples[i], groups[i], present, target) for i in members]
        conditions: list[Ablate | None] = [None]
        names: list[dict[str, Any]] = []
        for s, source in enumerate(present):
            for layer, head, heads in cells:
                conditions.append(Ablate(heads, "knockout", f"{_GROUP}.{len(present)}", keys=f"{_GROUP}.{s}"))
                names.append({"source": source, "layer": layer, "head": head})
        values: dict[int, np.ndarray] = {}

        def report(part: int, whole: int, what: str, done: int = done, size: int = len(members)) -> None:
            if progress:
                progress(100 * done + 100 * size * part // whole, 100 * len(examples), "prompts")

        batch = subject.batch(marked)
        for i, logits in subject.each(conditions, batch, keep=1, budget=budget, progress=report, spent=spent):
            values[i] = answer_values(logits[:, -1], marked, metric)
        for row, i in enumerate(members):
            about = {"example": i, "cluster": examples[i].cluster or examples[i].key(), "target": target}
            about |= {"window": window if parts == "layers" else 1, "metric": metric, "clean": values[0][row]}
            rows += [{**about, **name, "value": values[c][row]} for c, name in enumerate(names, start=1)]
        done += len(members)
    frame = pd.DataFrame(rows).sort_values("example", kind="stable", ignore_index=True)
    frame["effect"] = frame["value"] - frame["clean"]
    frame["relative"] = 100 * frame["effect"] / frame["clean"] if metric == "probability" else np.nan
    return frame[_COLUMNS]


_COLUMNS = ["example", "cluster", "source", "target", "window", "layer", "head", "metric"]
_COLUMNS += ["value", "clean", "effect", "relative"]


def _check(metric: str, window: int, parts: str, sources: Sequence[str]) -> None:
    check_metric(metric)
    if window < 1:
        raise UsageError(f"window={window}: a window is one layer wide or more")
    if parts not in ("layers", "heads"):
        raise UsageError(f"parts={parts!r}: write 'layers' or 'heads'")
    if not sources:
        raise UsageError("sources is empty: name a group of tokens")


def _cells(
    subject: CausalLM, centres: Sequence[int], window: int, parts: str
) -> list[tuple[int, int, tuple[Head, ...]]]:
    """Layer, head (-1 for all) and the heads that are cut."""
    for layer in centres:
        subject.check(Head(layer, 0))
    heads = range(subject.n_heads)
    if parts == "heads":
        return [(layer, h, (Head(layer, h),)) for layer in centres for h in heads]
    spans = [(layer, window_of(layer, window, subject.n_layers)) for layer in centres]
    return [(layer, -1, tuple(Head(i, h) for i in span for h in heads)) for layer, span in spans]


def asked_all(subject: CausalLM, task: Task | Sequence[Example], n: int | None) -> list[Example]:
    """The prompts, up to the token that is asked for.

    Raises:
        NoAcceptedExample: there is none.
    """
    examples = [asked(e) for e in (task.examples(subject) if isinstance(task, Task) else task)][:n]
    if not examples:
        raise NoAcceptedExample("there is no example to look at")
    return examples


def tokens_of(example: Example, group: str, role: str = "subject") -> list[int]:
    """Tokens of a group.

    Args:
        group: `subject` (the span's tokens; where the prompt starts with it, the sink of attention is one of them),
            `first` (the prompt's first token, unless it is of the span or the last one), `other` (none of these and not
            the last one), a place (`last subject`, `last`, ...: see `interp.intervene.trace.places_of`), or another
            span role of the example.
        role: of the span that counts as the subject.
    """
    inside = span_of(example, role)
    end = len(example.ids) - 1
    if group == "subject":
        return inside
    if group == START:
        return [i for i in range(min(end, 1)) if i not in inside]
    if group == "other":
        return [i for i in range(1, end) if i not in inside]
    at = [i for i, place in enumerate(places_of(example, role)) if place == group]
    return at or role_tokens(example, group)


def _batches(
    examples: Sequence[Example], groups: Sequence[dict[str, list[int]]], sources: Sequence[str]
) -> list[tuple[list[int], tuple[str, ...]]]:
    """Prompts that have the same sources and similar lengths, and those sources."""
    alike: dict[tuple[str, ...], list[int]] = {}
    for i, found in enumerate(groups):
        alike.setdefault(tuple(s for s in sources if found[s]), []).append(i)
    known = {s for present in alike for s in present}
    if missing := [s for s in sources if s not in known and not (known and s == START)]:
        raise UsageError(
            f"sources: no example has a token of '{missing[0]}'; write {', '.join(SOURCES)} or a role"
        )
    return [
        ([members[j] for j in part], present)
        for present, members in alike.items()
        if present
        for part in plan([len(examples[i].ids) for i in members], TOKENS)
    ]


def _marked(example: Example, groups: dict[str, list[int]], sources: Sequence[str], target: str) -> Example:
    """The example with its groups as spans: sources by number, and after them the target."""
    named = [groups[name] for name in (*sources, target)]
    spans = tuple(Span(p, p + 1, _GROUP, item) for item, tokens in enumerate(named) for p in tokens)
    return replace(example, spans=example.spans + spans)


def check_metric(metric: str) -> None:
    """Raise `UsageError` unless there is such a metric."""
    if metric not in METRICS:
        raise UsageError(f"metric={metric!r}: write one of {', '.join(map(repr, METRICS))}")


def answer_metric(
    logits: Float[torch.Tensor, "b v"], examples: Sequence[Example], metric: str
) -> Float[torch.Tensor, " b"]:
    """A metric of each row's first answer token, that gradients can be taken of.

    Raises:
        UsageError: no such metric, or there is no foil to compare with.
    """
    check_metric(metric)
    logits = logits.float()
    own = logits[range(len(examples)), [e.answer_ids[0] for e in examples]]
    if metric == "logit_diff":
        if any(not e.foil_ids for e in examples):
            raise UsageError(
                f"{examples[0].task}: an example has no foil; take metric 'probability' or 'logprob'"
            )
        return own - logits[range(len(examples)), [e.foil_ids[0] for e in examples]]
    logprob = own - logits.logsumexp(-1)
    return logprob.exp() if metric == "probability" else logprob


def answer_values(
    logits: Float[torch.Tensor, "b v"], examples: Sequence[Example], metric: str
) -> Float[np.ndarray, " b"]:
    """`answer_metric` as numbers."""
    out: np.ndarray = answer_metric(logits, examples, metric).double().cpu().numpy()
    return out


def averages(frame: pd.DataFrame, value: str, by: Sequence[str], *, seed: int = 0) -> pd.DataFrame:
    """Mean of a column over prompts, with the 95 % interval of a bootstrap over clusters.

    Returns:
        one row a group: `by`, mean, lo, hi, n.

    Raises:
        UsageError: a column is missing.
    """
    if missing := [c for c in (value, *by, "cluster") if c not in frame]:
        raise UsageError(f"averages: the table has no column {missing[0]!r}")
    rows = []
    for key, part in frame.groupby(list(by), sort=False):
        values = part[value].to_numpy(float)
        lo, hi = bootstrap_ci(values, part["cluster"].to_numpy(), seed=seed)
        rows.append({**dict(zip(by, key, strict=True)), "mean": np.nanmean(values), "lo": lo, "hi": hi})
        rows[-1]["n"] = len(values)
    return pd.DataFrame(rows)
