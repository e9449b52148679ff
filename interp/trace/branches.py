"""Where the run of an intervention leaves the intact one, and what it needs of it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import nn

from interp.models.batch import Batch
from interp.models.engines.base import Record, Tap
from interp.models.engines.resume import unedited
from interp.models.sites import Site
from interp.models.subject import CausalLM

LATE = frozenset({"z", "o", "head_out", "attn_out", "resid_mid", "neurons", "down", "mlp_out", "resid_post"})
"""Kinds of site that lie after the attention kernel."""


@dataclass(frozen=True, eq=False)
class Branch:
    """One intervention on the rows of the batch that it touches first at the same column.

    Attributes:
        condition: number of the intervention.
        start: first column that is run again.
        rows: rows of the batch.
        layer: first layer.
        late: the layer's attention stays the intact run's, so that only `columns` run in it.
        columns: columns that are edited in the first layer.
        sites: sites that the intervention names.
    """

    condition: int
    start: int
    rows: Int[torch.Tensor, " r"]
    layer: int
    late: bool
    columns: Bool[torch.Tensor, "r t"]
    sites: frozenset[Site]

    @property
    def instant(self) -> bool:
        """Whether the first layer needs no computation at all: only what leaves it is edited there."""
        return {s.kind for s in self.sites if s.layer == self.layer} == {"resid_post"}


@dataclass
class Base:
    """The intact run of a batch: what branches start from.

    Attributes:
        logits: of the columns that are read.
        resid: residual stream entering a layer, before edits there; under the number of layers, leaving the last.
        z: head outputs before edits there, of layers that branches enter after the attention.
        keys, values: of every layer, after rotation, b kv t d_head.
        kwargs: what the model hands to each block beside the residual stream.
        first: column at which `resid`, `z` and `kwargs` begin; of those before it only keys and values are there.
    """

    batch: Batch
    logits: Float[torch.Tensor, "b keep v"]
    resid: dict[int, torch.Tensor]
    z: dict[int, torch.Tensor]
    keys: list[torch.Tensor]
    values: list[torch.Tensor]
    kwargs: dict[int, dict[str, Any]]
    first: int = 0

    @property
    def keep(self) -> int:
        """How many last columns are read."""
        return self.logits.shape[1]

    def pick(
        self, whole: Shaped[torch.Tensor, "b w ..."], row: torch.Tensor, column: torch.Tensor
    ) -> Shaped[torch.Tensor, "n ..."]:
        """Tokens of what begins at `first`, by row and column of the batch."""
        return whole[row.to(whole.device), column.to(whole.device) - self.first]

    def suffix(
        self, whole: Float[torch.Tensor, "b w ..."], rows: torch.Tensor, start: int
    ) -> Float[torch.Tensor, "r m ..."]:
        """Columns from `start` on of what begins at `first`."""
        return whole[rows.to(whole.device), start - self.first :]


def intact(
    subject: CausalLM,
    batch: Batch,
    branches: Sequence[Branch],
    keep: int | None,
    cache: Any = None,
    past: int = 0,
) -> Base:
    """Run the batch once, on a KV cache of its first `past` columns where there is one, and keep what branches need."""
    n = subject.n_layers
    late = {b.layer for b in branches if b.late and not b.instant}
    entering = {b.layer for b in branches if not b.instant} | {b.layer + 1 for b in branches if b.late}
    blocks = {i: subject.blocks[i] for i in entering if i < n}
    projections = {i: subject.module(i, subject.family.out_proj) for i in late}
    taps: dict[Site, Tap] = {Site("resid_post", n - 1): Record()} if n in entering else {}
    kwargs: dict[int, dict[str, Any]] = {}
    with recorded_kwargs(subject, kwargs), unedited(blocks) as resid, unedited(projections) as z:
        trace = subject.run(batch, taps, keep=keep, use_cache=bool(branches), cache=cache, past=past)
    if n in entering:
        resid[n] = trace[Site("resid_post", n - 1)]
    layers = trace.cache.layers if branches else []
    return Base(
        batch,
        trace.logits,
        resid,
        {i: found.unflatten(-1, (subject.n_heads, subject.d_head)) for i, found in z.items()},
        [layer.keys for layer in layers],
        [layer.values for layer in layers],
        kwargs,
        past,
    )


@contextmanager
def recorded_kwargs(subject: CausalLM, into: dict[int, dict[str, Any]]) -> Iterator[None]:
    """Record what the model hands to each block beside the residual stream: masks, rotations, positions."""

    def hook(layer: int, signature: inspect.Signature) -> Callable[..., None]:
        def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            bound = dict(signature.bind(*args, **kwargs).arguments)
            bound.pop(next(iter(bound)))  # the residual stream itself
            rest = [p.name for p in signature.parameters.values() if p.kind is p.VAR_KEYWORD]
            into[layer] = bound | (bound.pop(rest[0], {}) if rest else {})

        return record

    with ExitStack() as stack:
        for i, block in enumerate(subject.blocks):
            handle = block.register_forward_pre_hook(
                hook(i, inspect.signature(block.forward)), with_kwargs=True
            )
            stack.callback(handle.remove)
        yield


def branches_of(number: int, touched: dict[Site, torch.Tensor], sites: frozenset[Site]) -> Iterator[Branch]:
    """Branches of an intervention, one for each first column that it edits.

    Args:
        touched: sites that it edits in this batch, and at which columns.
        sites: all sites that it names, also those without such a column.
    """
    layer = min(s.layer for s in touched if s.layer is not None)
    here = {s: c for s, c in touched.items() if s.layer == layer}
    late = all(s.kind in LATE for s in here)
    union = torch.stack(list(touched.values())).any(0)
    first = torch.stack(list(here.values())).any(0)
    start = torch.where(union.any(1), union.int().argmax(1), union.shape[1])
    for column in sorted(set(start.tolist()) - {union.shape[1]}):
        rows = (start == column).nonzero()[:, 0]
        yield Branch(number, column, rows, layer, late, first[rows], sites)
