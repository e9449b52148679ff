"""Edge attribution patching: the effect of ablating every edge or node, estimated from gradients.

The score of an edge is (what its writer writes in the corrupt run - in the clean run) . (gradient of the metric at its
reader's own input), summed over tokens: the first-order change of the metric when that edge alone carries the corrupt
value (EAP, Syed et al. 2023, arXiv 2310.10348). An edge that the answer needs has a negative score. One clean and one
corrupt forward pass and one backward pass score all edges; what remains is one product a layer and example, writers by
readers. The gradient at a reader's input comes from its own queries, keys, values or MLP, taken back through its norm
at that token; nothing of writers x readers x tokens is ever held.

With `steps` the gradient is averaged over a path of the embeddings from the clean to the corrupt prompt (EAP-IG inputs,
Hanna et al. 2024, arXiv 2403.17806): one forward and one backward pass a step, at its midpoint. The scores of the edges
that leave the embeddings then sum to the metric's change from the clean to the corrupt run. A node's score is the sum
over the edges that leave it. All are estimates: `edge_effects` gives exact values, and their agreement should be
reported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from interp.errors import UsageError
from interp.locate.circuits.graph import Embed, Graph, Input, Writer, layer_of
from interp.locate.circuits.streams import (
    Pairs,
    Projection,
    Written,
    attention_norm,
    mlp_reader,
    mlp_site,
    questions,
    readable,
    watch,
)
from interp.locate.gradients import Metric, between, gradients, metric_of
from interp.models.engines.base import Record, Tap
from interp.models.sites import MLP, Head, Site
from interp.models.subject import CausalLM
from interp.tasks.base import Example, Task

STEPS = 5
Progress = Callable[[int, int, str], None]
_HEADS: tuple[Input, ...] = ("q", "k", "v")


def edge_scores(
    subject: CausalLM,
    task: Task | Sequence[Example],
    *,
    corruption: str | None = None,
    steps: int = STEPS,
    metric: str = "logit_diff",
    tokens: int | None = None,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Estimated change of the metric when each edge alone carries the corrupt run's value.

    Args:
        corruption: which corrupt twin; default the first that all examples have.
        steps: 1 for the clean run's gradient (EAP), more for a path of the embeddings (EAP-IG).
        metric: `logit_diff` or `logprob`.
        tokens: padded tokens of a batch at most; what every writer wrote is held for them.
        progress: told about examples done.

    Returns:
        one row an edge, in the graph's order: edge, writer, reader, input, writer_layer, reader_layer, score (mean over
        examples), se (over clusters; NaN for fewer than two), n, n_clusters.

    Raises:
        UsageError: a post-norm family, steps below 1, a metric without gradient, an example that lacks the twin or a
            foil; or an edit is applied that edges would lose.
        EngineError: the engine keeps no graph, or a projection is quantised.

    Example:
        scores = edge_scores(model, interp.task("ioi", n=32), corruption="abc")
        circuit = select(scores, 200, Graph.of(model))
    """
    examples, twin = _asked(subject, task, corruption, steps)
    graph = Graph.of(subject)
    sums = _Clusters(examples, (len(graph.readers), len(graph.writers)))
    for group, pairs in Pairs.of(subject, examples, twin, tokens):
        readable(subject, pairs.clean)
        corrupt = Written.of_run(subject, pairs.corrupt)
        clean = Written.of_run(subject, pairs.clean) if steps > 1 else None
        change: torch.Tensor | None = None
        for path in _paths(subject, pairs, steps):
            slopes, values = _differentiated(subject, pairs, metric, path)
            if change is None:
                # Without a path the pass that is differentiated is the clean run.
                clean = clean or Written.read(subject, values.__getitem__)
                change = corrupt.less(clean, subject, pairs.clean)
            for readers, seen, grads in _inputs(subject, graph, slopes, values):
                found = torch.einsum("bwtd,butd->buw", change[:, :seen], grads.to(change)) / steps
                sums.add(group, found, readers, slice(0, seen))
        sums.done(group, progress)
    score, se = sums.mean()
    out = graph.frame(score=score, se=se)
    return out.assign(n=len(examples), n_clusters=len(sums.names))


def node_scores(
    subject: CausalLM,
    task: Task | Sequence[Example],
    *,
    corruption: str | None = None,
    steps: int = STEPS,
    metric: str = "logit_diff",
    tokens: int | None = None,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Estimated change of the metric when the output of each node is that of the corrupt run.

    Arguments are those of `edge_scores`; every family has nodes, post-norm ones too.

    Returns:
        one row a node: node, kind (embed, head, mlp), layer, score, se, n, n_clusters. The embeddings' score estimates
        the whole change from clean to corrupt.
    """
    examples, twin = _asked(subject, task, corruption, steps)
    graph = Graph.of(subject, edges=False)
    sums = _Clusters(examples, (1, len(graph.writers)))
    sites = Written.sites(subject)
    for group, pairs in Pairs.of(subject, examples, twin, tokens):
        corrupt = Written.of_run(subject, pairs.corrupt)
        clean = Written.of_run(subject, pairs.clean) if steps > 1 else None
        for path in _paths(subject, pairs, steps):
            _, values, grads = gradients(subject, pairs.clean, sites, _metric(pairs, metric), taps=path)
            clean = clean or Written.read(subject, values.__getitem__)
            slope = Written.read(subject, grads.__getitem__)
            found = [_along(corrupt.embed, clean.embed, slope.embed, pairs)[:, None]]
            for i in range(subject.n_layers):
                found.append(_along(corrupt.z[i], clean.z[i], slope.z[i], pairs))
                found.append(_along(corrupt.mlp[i], clean.mlp[i], slope.mlp[i], pairs)[:, None])
            every = torch.cat([f.to(subject.device) for f in found], dim=1)[:, None] / steps
            sums.add(group, every, slice(0, 1), slice(0, len(graph.writers)))
        sums.done(group, progress)
    score, se = sums.mean()
    rows = [(repr(w), _kind(w), layer_of(w, subject.n_layers)) for w in graph.writers]
    frame = pd.DataFrame(rows, columns=["node", "kind", "layer"])
    return frame.assign(score=score[0], se=se[0], n=len(examples), n_clusters=len(sums.names))


def _asked(
    subject: CausalLM, task: Task | Sequence[Example], corruption: str | None, steps: int
) -> tuple[list[Example], str]:
    if steps < 1:
        raise UsageError(f"steps is {steps}; take 1 (the clean run's gradient) or more")
    return questions(subject, task, corruption)


def _kind(writer: Writer) -> str:
    return {Embed: "embed", Head: "head", MLP: "mlp"}[type(writer)]


def _metric(pairs: Pairs, metric: str) -> Metric:
    return lambda logits: metric_of(logits, pairs.clean, pairs.examples, metric)


def _paths(subject: CausalLM, pairs: Pairs, steps: int) -> Iterator[dict[Site, Tap]]:
    """Taps of each pass that gradients are taken of."""
    if steps == 1:
        yield {}
        return
    own, donor = (
        subject.run(batch, {Site("embed"): Record()}, stop=1)["embed"]
        for batch in (pairs.clean, pairs.corrupt)
    )
    yield from between(own, donor, steps)


def _along(
    corrupt: torch.Tensor, clean: torch.Tensor, slope: torch.Tensor, pairs: Pairs
) -> Float[torch.Tensor, b * u]:
    """<slope, corrupt - clean> of each unit, summed over the tokens of each example."""
    found = ((corrupt - clean).float() * slope.float()).sum(-1)
    real = pairs.clean.mask.to(found)
    return torch.einsum("bt...,bt->b...", found, real)


_Values = Mapping[Site, torch.Tensor]


def _differentiated(
    subject: CausalLM, pairs: Pairs, metric: str, path: Mapping[Site, Tap]
) -> tuple[_Values, _Values]:
    """Gradients at queries, keys, values, MLP outputs and before the logits; and values there and at what they read."""
    n = subject.n_layers
    ends = [Site(kind, i) for i in range(n) for kind in (*_HEADS, "mlp_out")]
    entered = [Site("resid_pre", i) for i in range(n)] + [mlp_site(subject, i) for i in range(n)]
    seen = watch([*entered, *(Site("z", i) for i in range(n))])
    _, values, slopes = gradients(
        subject,
        pairs.clean,
        [*ends, Site("resid_post", n - 1)],
        _metric(pairs, metric),
        taps={**path, **seen},
    )
    return slopes, {**values, **{site: tap.value for site, tap in seen.items()}}


def _inputs(
    subject: CausalLM, graph: Graph, slopes: _Values, values: _Values
) -> Iterator[tuple[slice, int, Float[torch.Tensor, "b u t d"]]]:
    """Gradients at readers' own inputs, place by place: the readers' numbers, how many writers they see, gradients.

    Queries, keys, values and MLP outputs are made of one reader's input each; their gradients are taken back to the
    residual stream through its own projection and norm (or MLP), at the value that entered them.
    """
    n = subject.n_layers
    for layer in range(n):
        parts = [Projection.of(subject, layer, p).back(slopes[Site(p, layer)]) for p in _HEADS]
        x = values[Site("resid_pre", layer)]
        found = _back(
            attention_norm(subject, layer), x, torch.cat(parts, 1).movedim(1, 0), batched=True
        ).movedim(0, 1)
        rows = slice(graph.block(layer, "q").start, graph.block(layer, "v").stop)
        yield rows, graph.before(layer), found
        x = values[mlp_site(subject, layer)]
        found = _back(mlp_reader(subject, layer), x, slopes[Site("mlp_out", layer)])[:, None]
        yield graph.block(layer, "mlp"), graph.before(layer, mlp=True), found
    yield graph.block(n, "logits"), len(graph.writers), slopes[Site("resid_post", n - 1)][:, None]


def _back(
    fn: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, grad: torch.Tensor, *, batched: bool = False
) -> torch.Tensor:
    """Gradients behind a function as gradients before it; several at once where they are `batched`."""
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        (found,) = torch.autograd.grad(fn(leaf), leaf, grad.to(x.device), is_grads_batched=batched)
    return found


class _Clusters:
    """Sums of the examples' scores, cluster by cluster."""

    def __init__(self, examples: Sequence[Example], shape: tuple[int, int]):
        self.names, self.of = np.unique([e.cluster or e.key() for e in examples], return_inverse=True)
        self.counts = np.bincount(self.of)
        self.sums = np.zeros((len(self.names), *shape), dtype=np.float32)
        self.seen = 0

    def add(
        self, group: Sequence[int], found: Float[torch.Tensor, "b u w"], rows: slice, columns: slice
    ) -> None:
        """Scores of a batch's examples, for a block of the matrix."""
        for example, own in zip(group, found.cpu().numpy(), strict=True):
            self.sums[self.of[example], rows, columns] += own

    def done(self, group: Sequence[int], progress: Progress | None) -> None:
        """Tell that a batch is done."""
        self.seen += len(group)
        if progress:
            progress(self.seen, int(self.counts.sum()), "examples")

    def mean(self) -> tuple[Float[np.ndarray, "u w"], Float[np.ndarray, "u w"]]:
        """Mean over examples and its standard error, robust to clusters; NaN for fewer than two of them."""
        n, g = int(self.counts.sum()), len(self.names)
        mean = self.sums.sum(0, dtype=np.float64) / n
        if g < 2:
            return mean, np.full_like(mean, np.nan)
        square = np.zeros_like(mean)
        for count, own in zip(self.counts, self.sums, strict=True):
            square += (own - count * mean) ** 2
        return mean, np.sqrt(square * g / (g - 1)) / n
