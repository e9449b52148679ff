"""Value units of cross-attention: how active a prompt makes them, and which are blocked at first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Float

from interp.errors import UsageError

if TYPE_CHECKING:
    from interp.models.parts import Part
    from interp.models.pipeline import Pipeline

RUNGS: tuple[tuple[float, int], ...] = tuple((5 - i / 4, i) for i in range(16))
"""How the initial set grows: the z above which a unit is blocked, and the most active units of each layer beside."""


def activity(
    subject: Pipeline, parts: Sequence[Part], prompts: Sequence[str], *, batch: int = 256
) -> Float[torch.Tensor, "n units"]:
    """Mean over tokens of the absolute output of each unit, part after part; padding counts, as in NeMo.

    Raises:
        UsageError: a part does not read the prompt's embedding.
    """
    from interp.models.parts import module_of, weight_of

    out = []
    for at in range(0, len(prompts), batch):
        embedded = subject.embed(list(prompts[at : at + batch]))
        found = []
        for part in parts:
            weight = weight_of(subject, part)
            if weight.shape[1] != embedded.shape[2]:
                raise UsageError(
                    f"{part} reads {weight.shape[1]} numbers, and an embedding has {embedded.shape[2]}"
                )
            bias = module_of(subject, part).bias
            values = torch.nn.functional.linear(embedded, weight, None if bias is None else bias.detach())
            found.append(values.float().abs().mean(1).cpu())
        out.append(torch.cat(found, 1))
    return torch.cat(out)


def initial_sets(
    z: Float[torch.Tensor, " units"],
    active: Float[torch.Tensor, " units"],
    widths: Sequence[int],
    rungs: Sequence[tuple[float, int]] = RUNGS,
) -> list[tuple[Bool[torch.Tensor, " units"], list[list[int]]]]:
    """The set of each rung, and its units layer by layer in the order in which NeMo tries them.

    That is: units far off their mean in the order of their numbers, then the most active ones in that order. A unit
    that is both is tried in its second place, for in its first the reference unblocks one of its two entries only.
    """
    out = []
    offsets = np.cumsum([0, *widths[:-1]])
    for theta, k in rungs:
        layers = []
        for at, width in zip(offsets.tolist(), widths, strict=True):
            top = active[at : at + width].topk(min(k, width)).indices.tolist()
            far = (z[at : at + width] > theta).nonzero().flatten().tolist()
            layers.append([at + u for u in (*(u for u in far if u not in top), *top)])
        blocked = torch.zeros(len(z), dtype=torch.bool)
        blocked[[u for layer in layers for u in layer]] = True
        out.append((blocked, layers))
    return out
