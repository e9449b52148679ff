"""Weights that are trained or replaced inside a block, and come back to the bit.

`tuned` lets an optimiser loose on parameters and hands out what it did as an edit. `substituted` puts tensors with a
graph in the place of parameters, so that gradients reach what they were made from: coefficients, masks, factors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import nn

from interp.errors import UsageError
from interp.intervene.edit import edited, found_by
from interp.intervene.weights.base import up
from interp.intervene.weights.kinds import Delta
from interp.intervene.weights.places import editable, idle, parameter, parameters, projection, roots, training
from interp.intervene.weights.whole import ModelDelta
from interp.models.parts import Part


@dataclass(frozen=True, eq=False)
class Tuning:
    """Parameters that are free inside a `tuned` block.

    Attributes:
        free: by name; hand their values to an optimiser.
        model: fingerprint of the model before.
    """

    free: Mapping[str, nn.Parameter]
    model: str
    before: Callable[[str], torch.Tensor]

    def delta(self) -> ModelDelta:
        """What was done so far, as an edit of the model as it was."""
        changes = {n: up(p.detach()) - up(self.before(n)) for n, p in self.free.items()}
        return ModelDelta(changes, self.model)


@contextmanager
def tuned(subject: Any, what: Sequence[str | Part] | None = None) -> Iterator[Tuning]:
    """Some parameters ask for gradients inside the block, all others do not; leaving it restores every bit.

    Args:
        subject: a language model or a pipeline; it stays in eval mode.
        what: names of parameters, or parts for their weights; default all of a language model, or of a pipeline's UNet.

    Raises:
        UsageError: there is no such parameter.
        EngineError: a weight is quantised, not in memory, or being trained already. Inside, the same is said of edits
            of these weights; put edits on before.

    Example:
        with tuned(model, parts(model, "ff_out")) as tuning:
            adam = torch.optim.Adam(tuning.free.values(), lr=1e-4)
            ...
            edit = tuning.delta()
    """
    every = parameters(subject)
    if what is None:
        names = [n for n in every if subject.kind != "pipeline" or n.startswith("unet.")]
    else:
        names = [f"{w.path}.weight" if isinstance(w, Part) else w for w in what]
    free = {name: parameter(subject, name) for name in dict.fromkeys(names)}
    for name, weight in free.items():
        editable(weight, name)
        idle(weight, name)
    model, token = subject.fingerprint, object()
    asked = {weight: (weight.requires_grad, weight.grad) for weight in every.values()}
    with edited(token, [(weight, lambda value: value) for weight in free.values()]):
        own = {id(weight) for weight in free.values()}
        training.update(own)
        try:
            for weight in every.values():
                weight.requires_grad_(id(weight) in own)
                weight.grad = None
            yield Tuning(free, model, lambda name: found_by(token, free[name]))
        finally:
            training.difference_update(own)
            for weight, (flag, grad) in asked.items():
                weight.requires_grad_(flag)
                weight.grad = grad


@contextmanager
def substituted(subject: Any, tensors: Mapping[str | Part, Float[torch.Tensor, ...]]) -> Iterator[None]:
    """Tensors stand in for parameters inside the block, wherever these are used; gradients flow into them.

    Args:
        tensors: by the name of a parameter, in its own shape; or by part, out x in.

    Raises:
        UsageError: there is no such parameter, or a tensor has another shape.
    """
    stand_ins: dict[int, torch.Tensor] = {}
    for where, tensor in tensors.items():
        if isinstance(where, Part):
            weight, _, transposed = projection(subject, where)
            new = tensor.T if transposed else tensor
        else:
            weight, new = parameter(subject, where), tensor
        if weight.shape != new.shape:
            raise UsageError(f"{where} is {tuple(weight.shape)} and what takes its place {tuple(new.shape)}")
        stand_ins[id(weight)] = new.to(weight.device, weight.dtype)
    with ExitStack() as stack:
        # A tied weight is held by several modules.
        for module in (m for root in roots(subject).values() for m in root.modules()):
            for name, held in list(module._parameters.items()):
                if held is not None and id(held) in stand_ins:
                    stack.callback(module._parameters.__setitem__, name, held)
                    module._parameters[name] = stand_ins[id(held)]  # type: ignore[assignment]
        yield


def part_delta(subject: Any, delta: ModelDelta, part: Part) -> Delta:
    """What a change of the model does to one part, out x in; a change of its bias is its shift.

    Raises:
        UsageError: it does not change that part.
    """
    change = delta.changes.get(f"{part.path}.weight")
    if change is None:
        raise UsageError(f"{delta!r} does not change {part} of {subject.name}")
    transposed = projection(subject, part)[2]
    return Delta(
        part, change.T if transposed else change, delta.changes.get(f"{part.path}.bias"), delta.model
    )
