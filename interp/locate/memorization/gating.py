"""Gates: numbers that units are multiplied with, of each item its own, and the objective's gradients by them.

The gradient by an open gate is the sum over tokens of activation times gradient, so that no activation has to be kept
and one backward pass serves all layers and all items. Half-open gates give integrated gradients, closed ones what a
unit is worth, and learned ones the smallest set that holds an item.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float

from interp.errors import EngineError
from interp.intervene.weights.places import roots
from interp.measure.memorization.objective import loss
from interp.models.parts import Part, Pass, replacing, weight_of
from interp.models.subject import CausalLM

if TYPE_CHECKING:
    from interp.models.pipeline import Pipeline

ROWS = 128
"""Rows of a pipeline in one graph: items times draws."""

TOKENS = 2048
"""Tokens of a language model in one graph."""

Gates = Mapping[Part, Float[torch.Tensor, "items units"]]


def together(subject: CausalLM | Pipeline, items: Sequence[Any], draws: int) -> int:
    """How many items go into one graph."""
    if isinstance(subject, CausalLM):
        return max(1, TOKENS // max(len(item.ids) for item in items))
    return max(1, ROWS // draws)


def open_gates(
    subject: CausalLM | Pipeline, parts: Sequence[Part], items: int
) -> dict[Part, Float[torch.Tensor, "items units"]]:
    """Gates that change nothing."""
    out = {}
    for part in parts:
        weight = weight_of(subject, part)
        out[part] = torch.ones(items, weight.shape[1], device=weight.device)
    return out


@contextmanager
def gated(subject: CausalLM | Pipeline, gates: Gates) -> Iterator[None]:
    """What each part reads is multiplied, unit by unit, with the gates of the item that a row is of."""

    def gate(part: Part) -> Any:
        def change(x: torch.Tensor, pass_: Pass) -> torch.Tensor:
            own = gates[part][pass_.items.to(gates[part].device)]
            return x * own[:, None].to(x.device, x.dtype)

        return change

    with replacing(subject, {part: gate(part) for part in gates}):
        yield


@contextmanager
def frozen(subject: CausalLM | Pipeline) -> Iterator[None]:
    """No weight takes part in gradients inside the block, and gradients are enabled."""
    flags = [(p, p.requires_grad) for module in roots(subject).values() for p in module.parameters()]
    try:
        for p, _ in flags:
            p.requires_grad_(False)
        with torch.enable_grad():
            yield
    finally:
        for p, flag in flags:
            p.requires_grad_(flag)


def gate_gradients(
    subject: CausalLM | Pipeline, items: Sequence[Any], gates: Gates, *, draws: int = 8, seed: int = 0
) -> tuple[Float[torch.Tensor, " items"], dict[Part, Float[torch.Tensor, "items units"]]]:
    """The objective of each item under its gates, and its gradients by them, from one backward pass.

    Raises:
        EngineError: a part has no bearing on the objective: its gates have no gradient.
    """
    leaves = {part: values.detach().clone().requires_grad_() for part, values in gates.items()}
    with frozen(subject), gated(subject, leaves):
        losses = loss(subject, items, draws=draws, seed=seed, batch=len(items) * draws)
        found = torch.autograd.grad(losses.sum(), list(leaves.values()), allow_unused=True)
    grads = {}
    for part, grad in zip(leaves, found, strict=True):
        if grad is None:
            raise EngineError(f"{part} of {subject.name} has no bearing on the objective; leave it out")
        grads[part] = grad
    return losses.detach(), grads
