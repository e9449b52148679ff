"""Ablation: heads, MLP layers or neurons set to zero, to a mean or to other data's values; heads' attention cut too.

Numbers from different papers compare only if mode and scope are the same: the reference code of retrieval heads sets
*queries* to zero at *decoded* tokens (`mode="uniform", scope="answer"` here), others zero head outputs everywhere
(`mode="zero", scope="all"`), give every token the mean query (`mode="mean_query", scope="all"`, Locos, arXiv
2607.01002), or hide the needle from the heads (`mode="knockout"`). Both are part of every name, key and row.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Int

from interp.errors import UsageError
from interp.intervene.base import Atom, Scope, scope_name
from interp.intervene.fills import Replace, mean_fill, nothing, resample_fill
from interp.intervene.knockout import NEEDLE, Keys, Knockout, Silence, check_kernel, window_of
from interp.intervene.reference import Reference
from interp.intervene.where import Units
from interp.models.batch import Batch
from interp.models.engines.attention import AttentionCall
from interp.models.engines.base import Frame, Tap
from interp.models.sites import MLP, Component, Head, Neuron, Site, components
from interp.models.subject import CausalLM
from interp.tasks.base import Example, Task

Mode = Literal["zero", "mean", "resample", "uniform", "mean_query", "knockout"]
MODES: tuple[str, ...] = get_args(Mode)
HEADS_ONLY = frozenset({"uniform", "mean_query", "knockout"})
"""Modes that change attention patterns."""
NEEDS_REFERENCE = frozenset({"mean", "resample", "mean_query"})
_POOLS = {
    "mean": ("pooled", "position", "role"),
    "mean_query": ("pooled", "position", "role"),
    "resample": ("pooled", "twin"),
}
_SITES = {"uniform": "attention", "knockout": "attention", "mean_query": "q"}


@dataclass(frozen=True)
class Ablate(Atom):
    """A set of components, and what their output is replaced by where.

    Attributes:
        components: heads (cut at `z`), MLPs (at `mlp_out`) or neurons; each once.
        mode: `zero`; `mean` of the reference; `resample` (values of other tokens of the reference, or of the twin).
            For heads only: `uniform` (attention uniform over the visible keys); `mean_query` (the head's query is the
            mean query of the reference, put in its place at site `q`, so norm and rotation of the token's position
            come after it; where the norm runs over all heads, as in OLMo 2, it gets the length of the query that it
            replaces, which leaves the other heads' queries as they are); `knockout` (the edges to `keys` removed and
            the rest of the row renormalised; a row without a key left has output zero).
        scope: `all`, `answer`, or span roles and token positions; for `knockout` the rows that lose edges.
        reference: where `mean`, `mean_query` and `resample` take their values from.
        seed: of the draws of `resample`.
        keys: for `knockout`: span roles, token positions, `all` or `answer`; None for each example's evidence, or its
            value where it has no evidence.
    """

    components: tuple[Component, ...]
    mode: Mode = "zero"
    scope: Scope = "all"
    reference: Reference | None = None
    seed: int = 0
    keys: Scope | None = None

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise UsageError(f"unknown ablation mode '{self.mode}'; write one of {', '.join(MODES)}")
        if self.mode in HEADS_ONLY and not all(isinstance(c, Head) for c in self.components):
            raise UsageError(f"mode '{self.mode}' changes attention patterns, so it takes heads only")
        if self.keys is not None and self.mode != "knockout":
            raise UsageError(f"mode '{self.mode}' takes no keys; write mode='knockout'")
        if self.reference is not None:
            allowed = _POOLS.get(self.mode, ())
            if self.reference.pool not in allowed:
                raise UsageError(
                    f"mode '{self.mode}' takes no reference pooled as '{self.reference.pool}'"
                    + (f"; write one of {', '.join(allowed)}" if allowed else "")
                )

    @property
    def reference_name(self) -> str:
        """Name of the reference, empty where the mode needs none."""
        return self.reference.name if self.reference else ""

    @property
    def keys_name(self) -> str:
        """Name of the keys that are knocked out, empty in other modes."""
        if self.mode != "knockout":
            return ""
        return NEEDLE if self.keys is None else scope_name(self.keys)

    @property
    def needs_reference(self) -> bool:
        """Whether a reference has still to be named before this can run."""
        return self.mode in NEEDS_REFERENCE and self.reference is None

    def with_components(self, items: Iterable[Component]) -> Ablate:
        """The same cut of other components: a control."""
        return replace(self, components=tuple(items))

    def with_reference(self, reference: Reference) -> Ablate:
        """The same cut with its reference named."""
        return replace(self, reference=reference)

    def describe(self) -> dict[str, Any]:
        return {
            "kind": "ablate",
            "components": [repr(c) for c in self.components],
            "mode": self.mode,
            "scope": scope_name(self.scope),
            "reference": self.reference_name,
            "seed": self.seed,
            **({"keys": self.keys_name} if self.mode == "knockout" else {}),
        }

    def group(self) -> tuple[Any, ...]:
        return self.mode, self.scope, self.keys, id(self.reference), self.seed

    def part_at(self, site: Site) -> Ablate:
        return replace(self, components=self._by_layer.get(site.layer, ()))

    @cached_property
    def _by_layer(self) -> dict[int | None, tuple[Component, ...]]:
        found: dict[int | None, list[Component]] = {}
        for part in self.components:
            found.setdefault(part.layer, []).append(part)
        return {layer: tuple(parts) for layer, parts in found.items()}

    def touches(self, subject: CausalLM, batch: Batch) -> dict[Site, Bool[torch.Tensor, "b t"]]:
        columns = batch.scope_columns(self.scope, 0, batch.width)
        if self.mode == "knockout":
            columns = columns & Keys(batch, self.keys).reached()
        touched = {_site(self, part): columns for part in self.components}
        if self.mode == "knockout":
            touched |= {Site("z", part.layer): columns for part in self.components}
        return touched

    def __repr__(self) -> str:
        what = " ".join(map(repr, self.components)) or "nothing"
        keys = f", keys={self.keys_name}" if self.mode == "knockout" else ""
        ref = f", reference={self.reference_name}" if self.reference else ""
        return f"ablate({what}, mode={self.mode}, scope={scope_name(self.scope)}{keys}{ref})"

    @classmethod
    def lower_group(
        cls,
        subject: CausalLM,
        batch: Batch,
        atoms: Sequence[tuple[int, Any]],
        of: Int[torch.Tensor, " b"],
        n: int,
    ) -> dict[Site, list[Tap]]:
        first: Ablate = atoms[0][1]
        if first.needs_reference:
            raise UsageError(f"mode '{first.mode}' needs a reference: ablate(..., reference=task)")
        units: dict[Site, list[tuple[int, int]]] = {}
        for number, atom in atoms:
            for part in atom.components:
                subject.check(part)
                units.setdefault(_site(first, part), []).append((number, part.site.index or 0))
        taps: dict[Site, list[Tap]] = {}
        for site, marks in units.items():
            member = torch.zeros(n, _n_units(subject, site.kind), dtype=torch.bool, device=batch.ids.device)
            member[tuple(torch.tensor(marks).T)] = True
            for at, tap in _taps(first, subject, site, Units(batch, member, of, first.scope)).items():
                taps[at] = [tap]
        return taps


def _site(cut: Ablate, part: Component) -> Site:
    return Site(_SITES.get(cut.mode, part.site.kind), part.layer)


def _n_units(subject: CausalLM, kind: str) -> int:
    if kind == "mlp_out":
        return 1
    return subject.d_mlp if kind == "neurons" else subject.n_heads


def _taps(cut: Ablate, subject: CausalLM, site: Site, where: Units) -> dict[Site, Tap]:
    """The taps of a cut in one layer."""
    assert site.layer is not None
    batch, reference = where.batch, cut.reference
    if cut.mode == "uniform":
        return {site: _Uniform(where)}
    if cut.mode == "knockout":
        check_kernel(subject)
        keys = Keys(batch, cut.keys, window_of(subject, site.layer))
        return {site: Knockout(where, keys), Site("z", site.layer): Silence(where, keys)}
    if cut.mode == "zero":
        return {site: Replace(where, nothing)}
    assert reference is not None
    if cut.mode == "resample":
        return {site: Replace(where, resample_fill(subject, batch, site, reference, cut.seed))}
    fill = mean_fill(subject, batch, site, reference, cut.scope)
    return {site: Replace(where, fill, site.kind == "q" and _joint_norm(subject, site.layer))}


def _joint_norm(subject: CausalLM, layer: int) -> bool:
    """Whether the queries of a layer are normed over all heads at once."""
    norm = getattr(subject.module(layer, subject.family.attention), "q_norm", None)
    return norm is not None and norm.weight.numel() != subject.d_head


@dataclass(frozen=True)
class _Uniform:
    where: Units

    def edit(self, call: AttentionCall, frame: Frame) -> AttentionCall:
        mask = self.where.mask(frame).to(call.q.device)
        # A zero query scores every visible key alike.
        return call.with_(q=call.q.masked_fill(mask.transpose(1, 2)[..., None], 0.0))


def ablate(
    parts: str | Component | Iterable[str | Component],
    mode: Mode = "zero",
    scope: str | int | Iterable[str | int] = "all",
    reference: Reference | Task | Sequence[Example] | None = None,
    seed: int = 0,
    *,
    keys: str | int | Iterable[str | int] | None = None,
) -> Ablate:
    """Describe an ablation; nothing runs until it is applied or measured.

    Args:
        parts: components or their names: `"L17H3 L18H7"`, `heads.top(10)`, `[MLP(3)]`.
        mode: `zero`, `mean`, `resample`, `uniform`, `mean_query` or `knockout`, see `Ablate`.
        scope: `all`, `answer`, or one or more span roles or token positions.
        reference: for `mean`, `mean_query` and `resample`: a task or examples (pooled), or a `Reference`. `measure`
            takes the measured task where none is given.
        seed: of the draws of `resample`.
        keys: for `knockout`, the keys that are hidden: one or more span roles or token positions; default each
            example's evidence, or its value where it has no evidence.

    >>> ablate("L0H1 L2H3", mode="zero", scope="answer")
    ablate(L0H1 L2H3, mode=zero, scope=answer)
    >>> ablate("L0H1", mode="knockout", scope="answer", keys="value")
    ablate(L0H1, mode=knockout, scope=answer, keys=value)
    """
    if reference is not None and not isinstance(reference, Reference):
        reference = Reference(reference)
    hidden = None if keys is None else _scope(keys)
    return Ablate(components(parts), mode, _scope(scope), reference, seed, hidden)


def _scope(given: str | int | Iterable[str | int]) -> Scope:
    return given if isinstance(given, str) else (given,) if isinstance(given, int) else tuple(given)


__all__ = ["MLP", "MODES", "Ablate", "Head", "Mode", "Neuron", "Reference", "ablate"]
