"""Masks of weights: the best of each row, and controls with as many in each row.

A mask says for each part which weights are meant, out x in. A control differs from the mask it belongs to in which
weights of a row it takes, never in how many.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int

from interp.errors import UsageError
from interp.models.subject import CausalLM
from interp.tasks.base import stable_seed

if TYPE_CHECKING:
    from interp.locate.memorization.wanda import Rule, WandaContrast
    from interp.models.parts import Part
    from interp.models.pipeline import Pipeline

Masks = Mapping["Part", Bool[torch.Tensor, "out in"]]
Scores = Mapping["Part", Float[torch.Tensor, "out in"]]


def count_of(share: float, columns: int) -> int:
    """Weights of a row that a share of it makes, rounded down as the reference does.

    Raises:
        UsageError: a share outside 0 to 1, or one that makes none.
    """
    if not 0 < share <= 1:
        raise UsageError(f"share={share}: write a share of each row above 0 and at most 1")
    count = int(share * columns)
    if count < 1:
        raise UsageError(f"share={share} of {columns} columns is no weight; write at least {1 / columns:.2g}")
    return count


def top_per_row(
    scores: Float[torch.Tensor, "out in"], counts: int | Int[torch.Tensor, " out"]
) -> Bool[torch.Tensor, "out in"]:
    """The highest scores of each row; which of equal ones is as undefined as in `torch.topk`."""
    most = counts if isinstance(counts, int) else int(counts.max())
    at = scores.topk(most, 1).indices
    taken = torch.ones_like(at, dtype=torch.bool)
    if not isinstance(counts, int):
        taken = torch.arange(most, device=scores.device) < counts.to(scores.device)[:, None]
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, at, taken)


def best_like(scores: Scores, masks: Masks) -> dict[Part, Bool[torch.Tensor, "out in"]]:
    """The best weights by other scores, in each row as many as the mask has."""
    return {part: top_per_row(scores[part], mask.sum(1)) for part, mask in masks.items()}


def rule_like(
    found: WandaContrast,
    masks: Masks,
    share: float | None = None,
    *,
    rule: Rule = "reference",
    **options: Any,
) -> dict[Part, Bool[torch.Tensor, "out in"]]:
    """What a rule takes on other items, in each row as many weights as the mask has.

    The best of the pooled scores are not what the published rule takes: its mask is a union over denoising steps. So
    the control of a mask by that rule is the rule's own mask on the other items. Rows in which it has too many weights
    keep the best by the pooled score; rows in which it has too few are filled with the best of the others, and those of
    equal score (all that the contrast does not count have 0) in the order of |W| a.

    Args:
        found: fitted on the other items.
        masks: those that the control stands beside.
        share: that these were made with; default that of the locator.
        options: tau, null and items, of `WandaContrast.mask`.

    Raises:
        UsageError: as of `WandaContrast.mask`.
    """
    own = found.mask(share, rule=rule, **options)
    scores = found.weights(rule=rule, **options)
    ties = found.weights(rule="target", **options)
    out = {}
    for part, mask in masks.items():
        order = ties[part].argsort(dim=1, descending=True, stable=True)
        for key in (scores[part], own[part].to(torch.int8)):
            order = order.gather(1, key.gather(1, order).argsort(dim=1, descending=True, stable=True))
        places = torch.arange(mask.shape[1], device=order.device).expand_as(order)
        rank = torch.empty_like(order).scatter_(1, order, places)
        out[part] = rank < mask.sum(1, keepdim=True).to(order.device)
    return out


def random_like(masks: Masks, seed: int = 0, draw: int = 0) -> dict[Part, Bool[torch.Tensor, "out in"]]:
    """Random weights, in each row as many as the mask has; a part's draw does not depend on the other parts.

    Args:
        seed: of a training, so that each has controls of its own.
        draw: number of the control; draws of one seed are independent.
    """
    out = {}
    for part, mask in masks.items():
        entropy = stable_seed("random mask", seed, draw, part.path)
        generator = torch.Generator().manual_seed(entropy[0] << 32 | entropy[1])
        drawn = torch.rand(mask.shape, generator=generator, dtype=torch.float64)
        out[part] = top_per_row(drawn.to(mask.device), mask.sum(1))
    return out


def magnitude_like(subject: CausalLM | Pipeline, masks: Masks) -> dict[Part, Bool[torch.Tensor, "out in"]]:
    """The largest weights, in each row as many as the mask has."""
    from interp.models.parts import weight_of

    return best_like({part: weight_of(subject, part).detach().abs().float() for part in masks}, masks)


def share_of(masks: Masks) -> float:
    """Share of the parts' weights that is masked."""
    return sum(int(m.sum()) for m in masks.values()) / sum(m.numel() for m in masks.values())
