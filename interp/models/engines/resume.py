"""Running a part of the model: from a checkpoint on, or up to a layer.

A resumed run is the model's own forward pass in which the blocks below the checkpoint hand the recorded state over
instead of computing it. Masks, rotations, the kwargs of each layer, the final norm and the unembedding are therefore
the model's own for the batch that is run, whatever the family; a pass that starts at layer k of n costs (n - k) / n.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import nn

from interp.errors import EngineError, UsageError
from interp.models.sites import Site

if TYPE_CHECKING:
    from interp.models.batch import Batch
    from interp.models.engines.base import Rows
    from interp.models.subject import CausalLM


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """Where a forward pass can go on: on entering a layer, or after the attention of it.

    Attributes:
        layer: the first layer that is run; the number of layers means that only norm and unembedding are left.
        hidden: residual stream entering that layer, for all columns of the batch; before edits at its `resid_pre`,
            which are made when the run goes on, or after them where `z` is there.
        z: head outputs of that layer, before edits there; with them the run goes on after its attention kernel, at
            site `z`.
        edits: the interventions that were applied when it was made; they need not be applied again below it.
    """

    layer: int
    hidden: Float[torch.Tensor, "b t d"]
    z: Float[torch.Tensor, "b t h d_head"] | None = None
    edits: tuple[Any, ...] = field(default=(), repr=False)

    @property
    def site(self) -> Site:
        """The first site that a run from here passes; `logits` where no layer is left."""
        return Site("resid_pre" if self.z is None else "z", self.layer)

    def rows(self, index: Int[torch.Tensor, " n"]) -> Checkpoint:
        """The checkpoint of other rows of the batch, each as often as it is named."""
        z = None if self.z is None else self.z[index.to(self.z.device)]
        return replace(self, hidden=self.hidden[index.to(self.hidden.device)], z=z)


class Stopped(Exception):
    """Carries the residual stream out of a pass that was asked to stop."""

    def __init__(self, hidden: torch.Tensor):
        super().__init__("the pass was asked to stop here")
        self.hidden = hidden


def check_range(
    subject: CausalLM,
    batch: Batch,
    start: Checkpoint | None,
    stop: int | None,
    sites: list[Site],
    rows: Rows | None = None,
) -> None:
    """Raise `UsageError` unless the part asked for exists and all sites, and layers whose rows are named, lie in it."""
    n = subject.n_layers
    if start is not None:
        if not 0 <= start.layer <= n or (start.z is not None and start.layer == n):
            raise UsageError(f"a run cannot start at layer {start.layer}: {subject.name} has {n} layers")
        if len(start.hidden) != len(batch):
            raise UsageError(
                f"the checkpoint has {len(start.hidden)} rows and the batch {len(batch)}; "
                "take Checkpoint.rows(index)"
            )
        if start.hidden.shape[1] != batch.width:
            raise UsageError(
                f"the checkpoint has {start.hidden.shape[1]} columns and the batch {batch.width}: "
                "it was made for another batch"
            )
    if stop is not None and not (0 if start is None else start.layer) < stop <= n:
        raise UsageError(
            f"stop={stop}: write a layer above the start, {0 if start is None else start.layer}, up to {n}"
        )
    sites = sites + [Site("attention", layer) for layer in sorted(rows.layers or ())] if rows else sites
    for site in sites:
        early = start is not None and (site.kind == "embed" or site < start.site)
        late = stop is not None and (site.kind == "logits" or (site.layer is not None and site.layer >= stop))
        if early or late:
            what = f"before the start, {start.site}" if early and start else f"after the stop, layer {stop}"
            raise UsageError(f"site {site} lies {what}, so its tap would never fire")


@contextmanager
def replaced_forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """A module computes something else while the block is open; wrappers of its forward are put back as they were."""
    own = module.__dict__.get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own


@contextmanager
def unedited(modules: Mapping[int, nn.Module]) -> Iterator[dict[int, torch.Tensor]]:
    """What modules are given, before any tap edits it; enter before the run, so that its taps come later.

    A run that goes on from a site makes the edits of that site itself, so what it starts from must not hold them.
    """
    found: dict[int, torch.Tensor] = {}

    def hook(key: int) -> Callable[..., None]:
        def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            found[key] = (args[0] if args else kwargs["hidden_states"]).detach()

        return keep

    with ExitStack() as stack:
        for key, module in modules.items():
            handle = module.register_forward_pre_hook(hook(key), with_kwargs=True)
            stack.callback(handle.remove)
        yield found


@contextmanager
def begun(subject: CausalLM, start: Checkpoint) -> Iterator[None]:
    """The model's forward pass starts at a checkpoint while the context is open."""
    with ExitStack() as stack:
        for block in subject.blocks[: start.layer]:
            stack.enter_context(replaced_forward(block, lambda *args, **kwargs: start.hidden))
        if start.layer < subject.n_layers:
            first = subject.blocks[start.layer]
            handle = first.register_forward_pre_hook(_hand_over(start), with_kwargs=True)
            stack.callback(handle.remove)
        if start.z is not None:
            attention = subject.module(start.layer, subject.family.attention)
            project = subject.module(start.layer, subject.family.out_proj)
            z = start.z.flatten(-2)
            stack.enter_context(replaced_forward(attention, lambda *args, **kwargs: (project(z), None)))
        yield


def _hand_over(start: Checkpoint) -> Callable[..., Any]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given = args[0] if args else kwargs["hidden_states"]
        if start.layer and given.shape != start.hidden.shape:
            raise EngineError(
                f"layer {start.layer} was given {tuple(given.shape)} in place of {tuple(start.hidden.shape)}: this "
                "model does not pass its residual stream from block to block, so it cannot be resumed"
            )
        hidden = start.hidden.to(given.device)
        return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden})

    return hook


@contextmanager
def stopped(subject: CausalLM, stop: int) -> Iterator[None]:
    """The pass ends with `Stopped` when layer `stop - 1` is done; enter after the taps, so that their edits count."""

    def hook(module: nn.Module, args: Any, output: Any) -> None:
        raise Stopped(output[0] if isinstance(output, tuple) else output)

    handle = subject.blocks[stop - 1].register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
