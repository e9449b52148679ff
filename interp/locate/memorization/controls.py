"""Controls of an edit that prunes: as many weights of the same parts, taken at random or by their size."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool

from interp.locate.memorization.masks import magnitude_like, random_like
from interp.tasks.base import stable_seed

if TYPE_CHECKING:
    from interp.intervene.weights import PartEdit, Stack
    from interp.models.parts import Part


def control_edits(subject: Any, edit: PartEdit, *, draws: int = 1, seed: int = 0) -> dict[str, Stack]:
    """Edits that cut as much as another one: `random 0`, `random 1`, ... and `magnitude`, by name.

    They take as many weights of each row; of parts in which whole rows or whole columns (the units that are read) are
    cut, as many whole rows or columns.
    Masks of one part are taken together, so that a weight that is cut twice counts once. Nothing where the edit does
    anything but prune: nothing else has a budget of weights.

    Args:
        draws: random controls. seed: of these.
    """
    from interp.intervene.weights import Prune, pruned

    masks: dict[Part, torch.Tensor] = {}
    for single in edit.singles:
        if not isinstance(single, Prune):
            return {}
        masks[single.part] = masks[single.part] | single.mask if single.part in masks else single.mask
    sides = {part: side for part, mask in masks.items() if (side := _whole(mask)) is not None}
    single_weights = {part: mask for part, mask in masks.items() if part not in sides}
    out = {}
    for i in range(draws):
        random = {part: _random(part, masks[part], side, seed, i) for part, side in sides.items()}
        out[f"random {i}"] = pruned(subject, {**random_like(single_weights, seed, i), **random})
    largest = {part: _largest(subject, part, masks[part], side) for part, side in sides.items()}
    out["magnitude"] = pruned(subject, {**magnitude_like(subject, single_weights), **largest})
    return out


def _whole(mask: Bool[torch.Tensor, "out in"]) -> int | None:
    """The dimension that is numbered by whole rows (0) or whole columns (1), where nothing else is cut."""
    for side in (0, 1):
        if torch.equal(mask.any(1 - side), mask.all(1 - side)):
            return side
    return None


def _random(
    part: Part, mask: Bool[torch.Tensor, "out in"], side: int, seed: int, draw: int
) -> Bool[torch.Tensor, "out in"]:
    entropy = stable_seed("random rows" if side == 0 else "random columns", seed, draw, part.path)
    generator = torch.Generator().manual_seed(entropy[0] << 32 | entropy[1])
    return _first(mask, side, torch.randperm(mask.shape[side], generator=generator))


def _largest(
    subject: Any, part: Part, mask: Bool[torch.Tensor, "out in"], side: int
) -> Bool[torch.Tensor, "out in"]:
    from interp.models.parts import weight_of

    norms = weight_of(subject, part).float().norm(dim=1 - side)
    return _first(mask, side, norms.argsort(descending=True).cpu())


def _first(mask: torch.Tensor, side: int, order: torch.Tensor) -> torch.Tensor:
    """As many whole rows or columns as the mask has, the first in order."""
    out = torch.zeros_like(mask)
    chosen = order[: int(mask.any(1 - side).sum())].to(mask.device)
    return out.index_fill(side, chosen, True)
