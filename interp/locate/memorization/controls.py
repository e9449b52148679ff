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

    They take as many weights of each row; of parts in which whole rows are cut, as many whole rows. Masks of one part
    are taken together, so that a weight that is cut twice counts once. Nothing where the edit does anything but prune:
    nothing else has a budget of weights.

    Args:
        draws: random controls. seed: of these.
    """
    from interp.intervene.weights import Prune, pruned

    masks: dict[Part, torch.Tensor] = {}
    for single in edit.singles:
        if not isinstance(single, Prune):
            return {}
        masks[single.part] = masks[single.part] | single.mask if single.part in masks else single.mask
    rows = {part: mask for part, mask in masks.items() if bool((mask.any(1) == mask.all(1)).all())}
    single_weights = {part: mask for part, mask in masks.items() if part not in rows}
    out = {}
    for i in range(draws):
        whole = {part: _random_rows(part, mask, seed + i) for part, mask in rows.items()}
        out[f"random {i}"] = pruned(subject, {**random_like(single_weights, seed + i), **whole})
    largest = {part: _largest_rows(subject, part, mask) for part, mask in rows.items()}
    out["magnitude"] = pruned(subject, {**magnitude_like(subject, single_weights), **largest})
    return out


def _random_rows(part: Part, mask: Bool[torch.Tensor, "out in"], seed: int) -> Bool[torch.Tensor, "out in"]:
    entropy = stable_seed("random rows", seed, part.path)
    generator = torch.Generator().manual_seed(entropy[0] << 32 | entropy[1])
    return _rows(mask, torch.randperm(len(mask), generator=generator))


def _largest_rows(
    subject: Any, part: Part, mask: Bool[torch.Tensor, "out in"]
) -> Bool[torch.Tensor, "out in"]:
    from interp.models.parts import weight_of

    return _rows(mask, weight_of(subject, part).float().norm(dim=1).argsort(descending=True).cpu())


def _rows(mask: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """As many whole rows as the mask has, the first in order."""
    out = torch.zeros_like(mask)
    out[order[: int(mask.any(1).sum())].to(mask.device)] = True
    return out
