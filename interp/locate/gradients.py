"""Gradients of a metric with respect to the activations at many sites, from one backward pass.

Weights get no gradient: their `requires_grad` is off for the time of a pass, so nothing below the first site that is
asked for is in the graph, and the backward pass costs about as much as the forward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float

from interp.errors import EngineError, UsageError
from interp.measure.metrics import divergence
from interp.models.batch import Batch
from interp.models.engines.base import Frame, Record, Tap
from interp.models.engines.resume import Checkpoint, unedited
from interp.models.sites import Site
from interp.models.subject import CausalLM
from interp.tasks.base import Example

METRICS = ("logit_diff", "logprob")
Metric = Callable[[torch.Tensor], torch.Tensor]
Passed = tuple[torch.Tensor, dict[Site, torch.Tensor], dict[Site, torch.Tensor]]
"""The metric of each row, the values at the sites, and the gradients there."""


@contextmanager
def frozen(subject: CausalLM) -> Iterator[None]:
    """No weight takes part in gradients inside the block; the flags are as before after it."""
    flags = [(p, p.requires_grad) for p in subject.hf.parameters()]
    try:
        for p, _ in flags:
            p.requires_grad_(False)
        yield
    finally:
        for p, flag in flags:
            p.requires_grad_(flag)


def metric_of(
    logits: Float[torch.Tensor, "b keep v"], batch: Batch, examples: Sequence[Example], metric: str
) -> Float[torch.Tensor, " b"]:
    """A metric of each row that can be differentiated; the numbers are those of `interp.measure.metrics`.

    Raises:
        UsageError: the metric is not smooth, or an example has no foil.
    """
    if metric not in METRICS:
        raise UsageError(f"no gradient of metric '{metric}'; take {' or '.join(METRICS)}")
    first = batch.width - logits.shape[1]
    out = []
    for row, example in enumerate(examples):
        columns = batch.answer_columns(row)
        rows = logits[row, columns.start - first : columns.stop - first].float()
        if metric == "logprob":
            answer = torch.tensor(example.answer_ids, device=logits.device)
            out.append(rows.log_softmax(-1).gather(-1, answer[:, None]).sum())
            continue
        at = divergence(example.answer_ids, example.foil_ids) if example.foil_ids else None
        if at is None:
            raise UsageError(f"{example.task}: an example has no foil; take metric 'logprob'")
        out.append(rows[at, example.answer_ids[at]] - rows[at, example.foil_ids[at]])
    return torch.stack(out)


class _Leaf:
    """Makes a site's tensor one that gradients are taken of, with a graph below it only where there was one."""

    def __init__(self, replace: Callable[[torch.Tensor], torch.Tensor] | None = None):
        self.replace = replace
        self.value: torch.Tensor
        self.out: torch.Tensor

    def edit(self, value: torch.Tensor, frame: Frame) -> torch.Tensor:
        self.value = value.detach()
        if self.replace is not None:
            value = self.replace(value)
        # A tensor of its own: the engine hands out views, and a view is not what the model goes on with.
        self.out = value.clone() if value.requires_grad else value.clone().requires_grad_()
        return self.out


def gradients(
    subject: CausalLM,
    batch: Batch,
    sites: Sequence[Site],
    metric: Metric,
    *,
    replace: Mapping[Site, Callable[[torch.Tensor], torch.Tensor]] | None = None,
    taps: Mapping[Site, Tap] | None = None,
    start: Checkpoint | None = None,
) -> Passed:
    """Gradients of each row's metric at the sites, from one forward and one backward pass.

    Rows do not see each other, so the gradient of the sum over rows holds each row's own.

    Args:
        metric: of the logits, one number a row.
        replace: what takes the place of a site's value; gradients are taken there.
        taps: more taps, at other sites.
        start: go on from here.

    Returns:
        the metric, the values that reached the sites, and the gradients.

    Raises:
        EngineError: the engine keeps no graph.
    """
    if "grad" not in subject.engine.capabilities:
        raise EngineError(
            f"engine '{subject.engine.name}' gives no gradients (capability 'grad'); use 'hooks'"
        )
    leaves = {site: _Leaf((replace or {}).get(site)) for site in sites}
    options: dict[str, Any] = {} if start is None else {"start": start}
    with frozen(subject):
        trace = subject.run(batch, {**(taps or {}), **leaves}, grad=True, **options)
        found = metric(trace.logits)
        grads = torch.autograd.grad(found.sum(), [leaf.out for leaf in leaves.values()])
    values = {site: leaf.value for site, leaf in leaves.items()}
    return found.detach(), values, dict(zip(leaves, grads, strict=True))


def along_inputs(
    subject: CausalLM,
    batch: Batch,
    sites: Sequence[Site],
    metric: Metric,
    embed: Float[torch.Tensor, "b t d"],
    steps: int,
) -> Passed:
    """Gradients averaged while the embeddings go from this run's to a donor's; metric and values are this run's."""
    trace = subject.run(batch, {s: Record() for s in [*sites, Site("embed")]})
    total: dict[Site, torch.Tensor] = {}
    for taps in between(trace["embed"], embed, steps):
        _, _, grads = gradients(subject, batch, sites, metric, taps=taps)
        _accumulate(total, grads, steps)
    return metric(trace.logits), {s: trace[s] for s in sites}, total


def between(
    own: Float[torch.Tensor, "b t d"], donor: Float[torch.Tensor, "b t d"], steps: int
) -> Iterator[dict[Site, Tap]]:
    """Taps that put the embeddings on their way from a run's own to a donor's, at the midpoint of each step."""
    for step in range(steps):
        yield {Site("embed"): _constant(own + (step + 0.5) / steps * (donor - own))}


def along_layers(
    subject: CausalLM,
    batch: Batch,
    sites: Sequence[Site],
    metric: Metric,
    target: Callable[[Site, torch.Tensor], torch.Tensor],
    steps: int,
    columns: Bool[torch.Tensor, "b t"],
) -> Passed:
    """Gradients averaged while one site after the other goes to its target, at the columns that are meant.

    Each pass starts at the layer of its site where the engine resumes.
    """
    resumes = "resume" in subject.engine.capabilities
    blocks = {s.layer: subject.blocks[s.layer] for s in sites if resumes and s.layer is not None}
    with unedited(blocks) as entering:
        trace = subject.run(batch, {s: Record() for s in sites})
    total: dict[Site, torch.Tensor] = {}
    for site in sites:
        assert site.layer is not None
        start = None
        if resumes:
            start = Checkpoint(site.layer, entering[site.layer], edits=subject._edits)
        value = trace[site]
        meant = columns.to(value.device).view(*columns.shape, *[1] * (value.ndim - 2))
        change = torch.where(meant, target(site, value) - value, 0.0)
        for step in range(steps):
            on_path = {site: _constant(value + (step + 0.5) / steps * change)}
            _, _, grads = gradients(subject, batch, [site], metric, replace=on_path, start=start)
            _accumulate(total, grads, steps)
    return metric(trace.logits), {s: trace[s] for s in sites}, total


def _constant(value: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda _: value


def _accumulate(total: dict[Site, torch.Tensor], grads: Mapping[Site, torch.Tensor], steps: int) -> None:
    for site, grad in grads.items():
        total[site] = total[site] + grad / steps if site in total else grad / steps
