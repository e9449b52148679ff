"""Many searches by gradient descent, side by side: each start has its own Adam, and one that is done drops out.

Starts share forward passes and nothing else, so that what a search finds does not depend on which others ran with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Bool, Float, Int

from interp.errors import EngineError
from interp.models.cache import Progress, quiet
from interp.tasks.base import stable_seed


class Objective(Protocol):
    """What searches make small."""

    def groups(self, starts: Sequence[int]) -> list[list[int]]:
        """The starts, split into those that fit one pass."""

    def __call__(
        self, starts: Sequence[int], at: Float[torch.Tensor, "a n d"], step: int
    ) -> tuple[Float[torch.Tensor, " a"], Bool[torch.Tensor, " a"]]:
        """Loss of each start at its vectors after `step` updates, and whether it has found what it searches."""


@dataclass(frozen=True)
class Descent:
    """Where searches ended.

    Attributes:
        at: the vectors: of those that found something where they did, of the others at the end.
        found: whether the search found what it searched.
        steps: updates made.
        first, last: loss before the first update, and at `at`.
    """

    at: Float[torch.Tensor, "r n d"]
    found: Bool[torch.Tensor, " r"]
    steps: Int[torch.Tensor, " r"]
    first: Float[torch.Tensor, " r"]
    last: Float[torch.Tensor, " r"]


def descend(
    starts: Float[torch.Tensor, "r n d"],
    objective: Objective,
    *,
    rate: float,
    steps: int,
    stop: bool = True,
    progress: Progress = quiet,
    what: str = "steps",
) -> Descent:
    """Go down from all starts at once by Adam.

    Args:
        starts: where each search begins.
        objective: asked `steps + 1` times at most; the last answer is not followed by an update.
        rate: Adam's learning rate.
        steps: updates, at most.
        stop: a search that has found something ends there; else it goes on, and `found` says whether its end does.

    Raises:
        EngineError: a loss is not finite.
    """
    own = [row.detach().clone().requires_grad_() for row in starts]
    adam = torch.optim.Adam(own, lr=rate)
    n = len(own)
    found = torch.zeros(n, dtype=torch.bool)
    made = torch.zeros(n, dtype=torch.long)
    first, last = torch.full((n,), torch.nan), torch.full((n,), torch.nan)
    active = list(range(n))
    for step in range(steps + 1):
        for group in objective.groups(active):
            with torch.enable_grad():
                losses, done = objective(group, torch.stack([own[i] for i in group]), step)
                total = losses.sum()
            if not bool(losses.isfinite().all()):
                raise EngineError(f"the loss of a search is not finite after {step} updates: lower its rate")
            rows = torch.tensor(group)
            last[rows] = losses.detach().float().cpu()
            found[rows] = done.cpu()
            if step == 0:
                first[rows] = last[rows]
            if step < steps:
                # A parameter without a gradient is left alone by Adam, and so is its momentum.
                grads = torch.autograd.grad(total, [own[i] for i in group])
                for i, grad in zip(group, grads, strict=True):
                    own[i].grad = None if stop and found[i] else grad
        if stop:
            active = [i for i in active if not found[i]]
        progress(step, steps, what)
        if step == steps or not active:
            break
        adam.step()
        adam.zero_grad()
        made[active] += 1
    return Descent(torch.stack([row.detach() for row in own]), found, made, first, last)


def generator(*parts: object) -> torch.Generator:
    """A generator of its own for what `parts` name; the same in every process."""
    words = stable_seed(*parts)
    return torch.Generator().manual_seed(words[0] | (words[1] & 0x7FFFFFFF) << 32)
