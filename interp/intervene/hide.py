"""Stretches of the context hidden: no later token attends to them, in any head.

What a model reads without them is what it reads when they are not there, but for the positions of the other tokens,
which stay. "Hide what is stale" is the baseline for interference between memories (Li et al., arXiv 2508.04664): if a
model goes wrong because it reads an old value, hiding that value mends it; if cutting some heads mends it too, those
are the heads that read it.

The edges are masked as in knockout (`interp.intervene.knockout`), in all heads of all layers. Hidden tokens themselves
see what they saw: nobody reads them. A token that is not hidden sees itself, so no row is left without a key.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int

from interp.errors import UsageError
from interp.intervene.base import Atom, Scope, scope_name
from interp.intervene.knockout import Keys, Knockout, check_kernel, window_of
from interp.intervene.where import Units, covered
from interp.models.batch import Batch
from interp.models.engines.base import Frame, Tap
from interp.models.sites import Site
from interp.models.subject import CausalLM


@dataclass(frozen=True)
class Hide(Atom):
    """Tokens that are hidden, and from which rows.

    Attributes:
        keys: span roles (as `role` or `role.item`) or token positions.
        scope: rows from which they are hidden, themselves excepted: `all`, `answer`, span roles or token positions.
        layers: where; None for every layer.
    """

    keys: tuple[str | int, ...]
    scope: Scope = "all"
    layers: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if not self.keys or {"all", "answer"} & set(self.keys):
            raise UsageError(f"hide: roles are {list(self.keys)}; name span roles or token positions")
        if self.layers is not None and not self.layers:
            raise UsageError("hide: layers is empty; name layers, or leave them out for all")

    @property
    def keys_name(self) -> str:
        """What is hidden, as cuts call it."""
        return scope_name(self.keys)

    def describe(self) -> dict[str, Any]:
        return {
            "kind": "hide",
            "keys": self.keys_name,
            "scope": scope_name(self.scope),
            "layers": "all" if self.layers is None else list(self.layers),
        }

    def __repr__(self) -> str:
        layers = "" if self.layers is None else f", layers={' '.join(map(str, self.layers))}"
        return f"hide({self.keys_name}, scope={scope_name(self.scope)}{layers})"

    def group(self) -> tuple[Any, ...]:
        return self.keys, self.scope, self.layers

    def touches(self, subject: CausalLM, batch: Batch) -> dict[Site, Bool[torch.Tensor, "b t"]]:
        keys = Keys(batch, self.keys)
        rows = batch.scope_columns(self.scope, 0, batch.width) & keys.reached() & ~keys.columns(batch.width)
        return {Site("attention", layer): rows for layer in self._layers(subject)}

    def _layers(self, subject: CausalLM) -> Sequence[int]:
        if self.layers is None:
            return range(subject.n_layers)
        if wrong := [i for i in self.layers if not 0 <= i < subject.n_layers]:
            raise UsageError(f"hide: layer {wrong[0]}; {subject.name} has layers 0 to {subject.n_layers - 1}")
        return self.layers

    @classmethod
    def lower_group(
        cls,
        subject: CausalLM,
        batch: Batch,
        atoms: Sequence[tuple[int, Any]],
        of: Int[torch.Tensor, " b"],
        n: int,
    ) -> dict[Site, list[Tap]]:
        first: Hide = atoms[0][1]
        check_kernel(subject, "hide")
        member = torch.zeros(n, 1, dtype=torch.bool, device=batch.ids.device)
        member[[number for number, _ in atoms]] = True
        taps: dict[Site, list[Tap]] = {}
        for layer in first._layers(subject):
            keys = Keys(batch, first.keys, window_of(subject, layer))
            taps[Site("attention", layer)] = [Knockout(_Seeing(batch, member, of, first.scope, keys), keys)]
        return taps


@dataclass(frozen=True)
class _Seeing(Units):
    """Rows of a scope that are not hidden themselves; all heads alike, so there is one unit."""

    keys: Keys

    def mask(self, frame: Frame) -> Bool[torch.Tensor, "b t u"]:
        rows = covered(self.batch, self.scope, frame) & ~self.keys.of(frame)[:, frame.columns]
        return self.member[self.of[:, None]] & rows[..., None]


def hide(
    roles: str | int | Iterable[str | int],
    scope: str | int | Iterable[str | int] = "all",
    layers: int | Iterable[int] | None = None,
) -> Hide:
    """Hide spans of the context from every later token; nothing runs until it is applied or measured.

    Args:
        roles: what is hidden: span roles (`stale_value`, `distractor_value.1`) or token positions. All spans of a role
            are hidden, every copy of a context that is read twice included.
        scope: rows from which it is hidden: `all`, generated ones included, or `answer`, or span roles or positions.
        layers: where; default every layer.

    Raises:
        UsageError: nothing is named. When it runs: an example has no span of a role.

    >>> hide("stale_value")
    hide(stale_value, scope=all)
    >>> hide(["distractor_key", "distractor_value"], scope="answer", layers=range(3))
    hide(distractor_key+distractor_value, scope=answer, layers=0 1 2)
    """
    named = (roles,) if isinstance(roles, str | int) else tuple(roles)
    chosen = None if layers is None else (layers,) if isinstance(layers, int) else tuple(layers)
    return Hide(named, _scope(scope), chosen)


def _scope(given: str | int | Iterable[str | int]) -> Scope:
    return given if isinstance(given, str) else (given,) if isinstance(given, int) else tuple(given)


__all__ = ["Hide", "hide"]
