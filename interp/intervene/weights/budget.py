"""What an edit takes and moves, so that edits can be compared at equal cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from interp.errors import UsageError
from interp.intervene.weights.base import PartEdit
from interp.intervene.weights.places import parameter, parameters


@dataclass(frozen=True)
class Budget:
    """What an edit takes and moves.

    Attributes:
        changed: entries of matrices that are other than before.
        weights: entries of the matrices that are edited.
        share: `changed` over `weights`.
        of_model: `changed` over all parameters of the model.
        norm: Frobenius norm of the change of all matrices together, ||dW||_F.
        shift: norm of the change of all vectors together: biases, gains.
        by_name: of each matrix that is edited its changed entries and the norm of its change.
    """

    changed: int
    weights: int
    share: float
    of_model: float
    norm: float
    shift: float
    by_name: Mapping[str, tuple[int, float]]


def measured(edit: PartEdit, subject: Any) -> Budget:
    """The budget of an edit: the weights before it are compared with those under it, to the bit."""
    edit.check(subject)
    names = list(dict.fromkeys(name for single in edit.singles for name in single.names(subject)))
    before = {name: found.detach().clone() for name in names if (found := _found(subject, name)) is not None}
    every = sum(p.numel() for p in parameters(subject).values())
    by_name, weights, shift = {}, 0, 0.0
    with edit.applied(subject):
        for name in names:
            after = parameter(subject, name).detach()
            old = before.get(name, torch.zeros_like(after))
            squares = float((after.double() - old.double()).square().sum())
            if after.ndim < 2:
                shift += squares
                continue
            by_name[name] = (int((after != old).sum()), squares**0.5)
            weights += after.numel()
    changed = sum(n for n, _ in by_name.values())
    norm = sum(norm**2 for _, norm in by_name.values()) ** 0.5
    return Budget(changed, weights, changed / max(weights, 1), changed / every, norm, shift**0.5, by_name)


def _found(subject: Any, name: str) -> torch.Tensor | None:
    """A parameter, or None for a bias that is not there until it is lent."""
    try:
        return parameter(subject, name)
    except UsageError:
        return None
