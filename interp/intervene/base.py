"""What an intervention is: a frozen description of what is cut or edited, that lowers to taps.

`+` composes. Several *conditions* can share one forward pass: each row of a batch has its own (`lower_conditions`). A
description names everything that changes a number: components, mode, scope and reference; they make its `key` and
appear in every result row.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int

from interp.models.batch import Batch
from interp.models.engines.base import Tap
from interp.models.sites import Site
from interp.models.subject import CausalLM

Scope = str | tuple[str | int, ...]


def scope_name(scope: Scope) -> str:
    """`all`, `answer`, or the roles and token positions joined by `+`."""
    return scope if isinstance(scope, str) else "+".join(map(str, scope))


class Intervention(ABC):
    """A frozen description of a cut or an edit."""

    @abstractmethod
    def atoms(self) -> tuple[Atom, ...]:
        """The single cuts and edits it is made of."""

    def __add__(self, other: Intervention) -> Compose:
        return Compose(self.atoms() + other.atoms())

    def touches(self, subject: CausalLM, batch: Batch) -> dict[Site, Bool[torch.Tensor, "b t"]]:
        """The sites this edits, and at which columns of each row.

        An edit must not look at other columns of its tensor: `subject.each` runs some columns only.
        """
        every: dict[Site, torch.Tensor] = {}
        for atom in self.atoms():
            for site, columns in atom.touches(subject, batch).items():
                every[site] = every[site] | columns if site in every else columns
        return every

    def part_at(self, site: Site) -> Intervention:
        """The part of it that edits a site, or more than that: what `lower` gives for the site is the same."""
        return self

    def lower(self, subject: CausalLM, batch: Batch) -> dict[Site, list[Tap]]:
        """Taps that do this to every row of a batch."""
        return lower_conditions(subject, batch, [self], torch.zeros(len(batch), dtype=torch.long))

    def config(self) -> list[dict[str, Any]]:
        """JSON-able description."""
        return [atom.describe() for atom in self.atoms()]

    def key(self) -> str:
        """Content hash of the description."""
        return hashlib.sha256(json.dumps(self.config(), sort_keys=True).encode()).hexdigest()[:16]


class Atom(Intervention):
    """A single cut or edit."""

    def atoms(self) -> tuple[Atom, ...]:
        return (self,)

    def part_at(self, site: Site) -> Atom:
        return self

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """JSON-able description."""

    @abstractmethod
    def group(self) -> tuple[Any, ...]:
        """Atoms of one group differ in their components only and are lowered together."""

    @abstractmethod
    def touches(self, subject: CausalLM, batch: Batch) -> dict[Site, Bool[torch.Tensor, "b t"]]:
        """The sites this edits, and at which columns of each row: what lies before them need not be run again."""

    @classmethod
    @abstractmethod
    def lower_group(
        cls,
        subject: CausalLM,
        batch: Batch,
        atoms: Sequence[tuple[int, Any]],
        of: Int[torch.Tensor, " b"],
        n: int,
    ) -> dict[Site, list[Tap]]:
        """Taps for the atoms of one group, each with the number of its condition; `of` says which one holds where."""


@dataclass(frozen=True)
class Compose(Intervention):
    """Several interventions at once."""

    parts: tuple[Atom, ...]

    def atoms(self) -> tuple[Atom, ...]:
        return self.parts

    def part_at(self, site: Site) -> Compose:
        return Compose(tuple(part.part_at(site) for part in self.parts))


def lower_conditions(
    subject: CausalLM,
    batch: Batch,
    conditions: Sequence[Intervention | None],
    of: Int[torch.Tensor, " b"],
) -> dict[Site, list[Tap]]:
    """Taps under which each row of a batch meets its own condition, whose edits of one site run in its own order.

    Args:
        conditions: interventions; None leaves the model as it is.
        of: which condition holds for each row.
    """
    taps: dict[Site, list[Tap]] = {}
    for atoms in _steps(conditions):
        lowered = type(atoms[0][1]).lower_group(
            subject, batch, atoms, of.to(batch.ids.device), len(conditions)
        )
        for site, more in lowered.items():
            taps.setdefault(site, []).extend(more)
    return taps


def _steps(conditions: Sequence[Intervention | None]) -> list[list[tuple[int, Atom]]]:
    """Atoms that are lowered together, in an order that keeps that of each condition.

    Edits of one site need not commute: an atom joins the first step of its group that no earlier atom of its condition
    has passed.
    """
    steps: list[list[tuple[int, Atom]]] = []
    groups: dict[tuple[Any, ...], list[int]] = {}
    for number, condition in enumerate(conditions):
        reached = 0
        for atom in condition.atoms() if condition is not None else ():
            places = groups.setdefault((type(atom), *atom.group()), [])
            place = next((i for i in places if i >= reached), len(steps))
            if place == len(steps):
                steps.append([])
                places.append(place)
            steps[place].append((number, atom))
            reached = place
    return steps
