"""Controls of an edit that takes directions out: as many of the same parts, at random or of other items."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from interp.errors import UsageError
from interp.tasks.base import stable_seed

if TYPE_CHECKING:
    from interp.intervene.weights import PartEdit, ProjectOut, Stack
    from interp.locate.memorization.subspace import ContrastSubspace


def subspace_controls(
    subject: Any,
    edit: PartEdit,
    others: Mapping[str, ContrastSubspace] | None = None,
    *,
    draws: int = 1,
    seed: int = 0,
    equal_norm: bool = False,
) -> dict[str, Stack]:
    """Edits that take out as many directions of each part as another one: `random 0`, ..., those of others by name.

    Args:
        edit: what takes directions out, and does nothing else.
        others: locators fitted on other items, as `{"ordinary": ContrastSubspace("prompts").fit(pipe, ordinary_prompts,
            reference=control_words)}`.
        draws: random controls. seed: of these.
        equal_norm: scale each control so that ||dW||_F is that of the edit: directions that carry little change little,
            so that a control of equal rank may be weak for that alone.

    Raises:
        UsageError: the edit does other things, or another locator has too few directions, or other parts.
    """
    from interp.intervene.weights import to_norm

    found = {f"random {i}": random_basis_like(edit, seed, i) for i in range(draws)}
    found |= {name: basis_like(edit, own) for name, own in (others or {}).items()}
    if not equal_norm:
        return found
    norm = edit.budget(subject).norm
    return {name: to_norm(own, subject, norm) for name, own in found.items()}


def random_basis_like(edit: PartEdit, seed: int = 0, draw: int = 0) -> Stack:
    """Random directions taken out of the same parts, of each as many; uniform over subspaces.

    Args:
        seed: of a training. draw: number of the control.

    Raises:
        UsageError: the edit does anything but take directions out.
    """
    from interp.intervene.weights import Stack

    out = []
    for single in _projections(edit):
        entropy = stable_seed("random basis", seed, draw, single.part.path, single.side)
        generator = torch.Generator().manual_seed(entropy[0] << 32 | entropy[1])
        drawn = torch.randn(single.basis.shape, generator=generator, dtype=torch.float64)
        out.append(replace(single, basis=torch.linalg.qr(drawn).Q.to(single.basis)))
    return Stack(tuple(out))


def basis_like(edit: PartEdit, found: ContrastSubspace) -> Stack:
    """The leading directions of another fit taken out of the same parts, of each as many.

    Raises:
        UsageError: the edit does anything but take directions out, or the fit has other parts, the other side, or too
            few directions.
    """
    from interp.intervene.weights import Stack

    out = []
    for single in _projections(edit):
        if single.side != found.side:
            raise UsageError(
                f"{single.part}: directions of side '{single.side}', and the fit is of '{found.side}'"
            )
        out.append(replace(single, basis=found.basis(single.part, single.rank).to(single.basis)))
    return Stack(tuple(out))


def _projections(edit: PartEdit) -> list[ProjectOut]:
    from interp.intervene.weights import ProjectOut

    found = [single for single in edit.singles if isinstance(single, ProjectOut)]
    if len(found) < len(edit.singles):
        raise UsageError(f"{edit!r} does not only take directions out, so that no basis is its control")
    return found
