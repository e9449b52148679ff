"""From scores to edits: prune the best weights or units, at a stated share or at a stated norm of the change.

Scores come from any locator, one for each weight (out x in) or for each input unit of a part. Edits compared with each
other should cost the same: as many weights in each row (`pruned` with the masks of a control), or the same ||dW||_F
(`prune_to_norm`, `to_norm`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Float, Int

from interp.errors import UsageError
from interp.intervene.weights.base import OfPart, PartEdit, Single, Stack
from interp.intervene.weights.kinds import Prune
from interp.intervene.weights.whole import ModelDelta, Scaled
from interp.models.parts import Part, weight_of

Per = Literal["row", "part", "all"]
PER: tuple[str, ...] = get_args(Per)
Weights = Mapping[Part, Float[torch.Tensor, "out in"]]
Units = Mapping[Part, Float[torch.Tensor, " units"]]


def top_masks(
    scores: Weights,
    share: float,
    *,
    per: Per = "row",
    within: Mapping[Part, Bool[torch.Tensor, "out in"]] | None = None,
) -> dict[Part, Bool[torch.Tensor, "out in"]]:
    """The weights with the highest scores; of equal ones the first.

    Args:
        scores: of each weight.
        share: how many, rounded down, of each row, of each part, or of all parts together.
        per: which of these.
        within: weights that may be taken at all. The best are found first, so that fewer than the share may be left.

    Raises:
        UsageError: a share that is no share or makes no weight, or scores that are no numbers.
    """
    _check(scores, per)
    if per == "all":
        order = sorted(scores)
        flat = torch.cat([scores[part].reshape(-1).float().cpu() for part in order])
        best = _best(flat[None], share)[0].split([scores[part].numel() for part in order])
        found = {part: mask.reshape(scores[part].shape) for part, mask in zip(order, best, strict=True)}
    elif per == "part":
        found = {part: _best(s.reshape(1, -1), share).reshape(s.shape) for part, s in scores.items()}
    else:
        found = {part: _best(s, share) for part, s in scores.items()}
    return {part: (m if within is None else m & within[part].to(m.device)) for part, m in found.items()}


def prune(
    subject: Any,
    scores: Weights,
    share: float,
    *,
    per: Per = "row",
    within: Mapping[Part, Bool[torch.Tensor, "out in"]] | None = None,
) -> Stack:
    """Cut the weights with the highest scores; see `top_masks`."""
    return pruned(subject, top_masks(scores, share, per=per, within=within))


def pruned(subject: Any, masks: Mapping[Part, Bool[torch.Tensor, "out in"]]) -> Stack:
    """Cut the weights of these masks; parts without any are left out."""
    name = subject.fingerprint
    return Stack(tuple(Prune(part, mask, name) for part, mask in sorted(masks.items()) if bool(mask.any())))


def top_units(
    scores: Units, k: int | float, *, per: Literal["part", "all"] = "part"
) -> dict[Part, Int[torch.Tensor, " n"]]:
    """The units with the highest scores, in ascending order; of equal ones the first.

    Args:
        scores: of each unit.
        k: how many (an int), or which share of them, rounded down (a float); of each part, or of all together.

    Raises:
        UsageError: fewer units than that, a share that is no share or makes no unit, or scores that are no numbers.
    """
    _check(scores, per)
    if per == "all":
        order = sorted(scores)
        best = _best(torch.cat([scores[p].float().cpu() for p in order])[None], k)[0]
        masks = dict(zip(order, best.split([len(scores[p]) for p in order]), strict=True))
    else:
        masks = {part: _best(s[None], k)[0] for part, s in scores.items()}
    return {part: mask.nonzero().squeeze(1) for part, mask in masks.items() if bool(mask.any())}


def prune_units(
    subject: Any, scores: Units, k: int | float, *, per: Literal["part", "all"] = "part"
) -> Stack:
    """Cut the columns of the units with the highest scores; see `top_units`."""
    return Stack(tuple(Prune.units(subject, p, u) for p, u in sorted(top_units(scores, k, per=per).items())))


# -- at equal norm ---------------------------------------------------------------------------------------------------


def prune_to_norm(subject: Any, scores: Weights, norm: float) -> Stack:
    """Cut the best weights of each row, the same share of all rows, so that ||dW||_F comes nearest to `norm`.

    Raises:
        UsageError: not even cutting all weights goes that far.
    """
    _check(scores, "row")
    curves = {}
    for part, score in scores.items():
        weights = weight_of(subject, part).double()
        order = score.to(weights.device).sort(dim=1, descending=True, stable=True).indices
        curves[part] = weights.square().gather(1, order).sum(0).cumsum(0).cpu()
    reach = float(sum(curve[-1] for curve in curves.values())) ** 0.5
    if not 0 < norm <= reach * (1 + 1e-9):
        raise UsageError(
            f"norm {norm:.4g}: cutting all weights of these parts gives {reach:.4g}; write at most that"
        )
    # The norm rises with the share, and changes only where some part takes one more weight of its rows.
    shares = sorted({k / len(curve) for curve in curves.values() for k in range(1, len(curve) + 1)})
    low, high = 0, len(shares) - 1
    while low < high:
        middle = (low + high) // 2
        if _norm(curves, shares[middle]) < norm:
            low = middle + 1
        else:
            high = middle
    best = min(shares[max(low - 1, 0) : low + 1], key=lambda share: abs(_norm(curves, share) - norm))
    masks = {part: _first(s, _count(best, len(curves[part]))) for part, s in scores.items()}
    return pruned(subject, masks)


def to_norm(edit: PartEdit, subject: Any, norm: float) -> Stack:
    """The same edit with another dose, all parts scaled alike, so that ||dW||_F is `norm`.

    Raises:
        UsageError: the edit changes nothing, or it edits a part twice.
    """
    touched = [name for single in edit.singles for name in single.names(subject)]
    if len(set(touched)) < len(touched):
        raise UsageError(f"{edit!r} edits a weight twice, so that its norm is not proportional to its dose")
    now = edit.budget(subject).norm
    if not now:
        raise UsageError(f"{edit!r} changes no matrix, so that no dose of it has norm {norm:.4g}")
    return Stack(tuple(_dosed(single, norm / now) for single in edit.singles))


def _dosed(single: Single, share: float) -> Single:
    if isinstance(single, ModelDelta):
        return single.times(share)
    assert isinstance(single, OfPart)
    return Scaled(single, share)


def _norm(curves: Mapping[Part, torch.Tensor], share: float) -> float:
    counts = {part: _count(share, len(curve)) for part, curve in curves.items()}
    return float(sum(curve[counts[p] - 1] for p, curve in curves.items() if counts[p])) ** 0.5


def _count(share: float, columns: int) -> int:
    # Shares here are k / columns, which times columns may fall short of k by rounding.
    return int(share * columns + 1e-6)


# -- the best --------------------------------------------------------------------------------------------------------


def _check(scores: Mapping[Part, torch.Tensor], per: str) -> None:
    if per not in PER:
        raise UsageError(f"no way '{per}' to count a share; write one of {', '.join(PER)}")
    if not scores:
        raise UsageError("no scores to choose from; give those of at least one part")
    for part, score in scores.items():
        if bool(score.isnan().any()):
            raise UsageError(f"{part}: scores are not numbers (NaN); look at what they were made from")


def _best(scores: torch.Tensor, share: int | float) -> torch.Tensor:
    """In each row the highest scores, a number of them or a share."""
    columns = scores.shape[1]
    if isinstance(share, float) and not 0 < share <= 1:
        raise UsageError(f"share={share}: write a share above 0 and at most 1")
    count = int(share * columns) if isinstance(share, float) else share
    if not 1 <= count <= columns:
        raise UsageError(
            f"{share} of {columns} is {count}; write at least {1 / columns:.2g} or 1, at most all"
        )
    return _first(scores, count)


def _first(scores: torch.Tensor, count: int) -> torch.Tensor:
    """The first `count` of each row in order of their scores."""
    at = scores.sort(dim=1, descending=True, stable=True).indices[:, :count]
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, at, True)
