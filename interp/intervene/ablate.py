"""Ablation: heads, MLP layers or neurons set to zero, to a mean, to other data's values, or to uniform attention.

Numbers from different papers compare only if mode and scope are the same: the reference code of retrieval heads sets
*queries* to zero at *decoded* tokens (`mode="uniform", scope="answer"` here), others zero head outputs everywhere
(`mode="zero", scope="all"`). Both are part of every name, key and row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Int

from interp.errors import UsageError
from interp.intervene.base import Atom, Scope, scope_name
from interp.intervene.reference import Reference
from interp.models.batch import Batch
from interp.models.engines.attention import AttentionCall
from interp.models.engines.base import Frame, Tap
from interp.models.sites import MLP, Component, Head, Neuron, Site, components
from interp.models.subject import CausalLM
from interp.tasks.base import Example, Task, stable_seed

Mode = Literal["zero", "mean", "resample", "uniform"]
MODES: tuple[str, ...] = get_args(Mode)
NEEDS_REFERENCE = frozenset({"mean", "resample"})


@dataclass(frozen=True)
class Ablate(Atom):
    """A set of components, and what their output is replaced by where.

    Attributes:
        components: heads (cut at `z`), MLPs (at `mlp_out`) or neurons; each once.
        mode: `zero`; `mean` of the reference; `resample` (values of other tokens of the reference, or of the twin);
            `uniform` (heads only: attention uniform over the visible keys).
        scope: `all`, `answer`, or span roles and token positions.
        reference: where `mean` and `resample` take their values from.
        seed: of the draws of `resample`.
    """

    components: tuple[Component, ...]
    mode: Mode = "zero"
    scope: Scope = "all"
    reference: Reference | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise UsageError(f"unknown ablation mode '{self.mode}'; write one of {', '.join(MODES)}")
        if self.mode == "uniform" and not all(isinstance(c, Head) for c in self.components):
            raise UsageError("mode 'uniform' changes attention patterns, so it takes heads only")
        if self.reference is not None:
            allowed = {"mean": ("pooled", "position", "role"), "resample": ("pooled", "twin")}.get(
                self.mode, ()
            )
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
        }

    def group(self) -> tuple[Any, ...]:
        return self.mode, self.scope, id(self.reference), self.seed

    def touches(self, subject: CausalLM, batch: Batch) -> dict[Site, Bool[torch.Tensor, "b t"]]:
        columns = batch.scope_columns(self.scope, 0, batch.width)
        return {_site(self, part): columns for part in self.components}

    def __repr__(self) -> str:
        what = " ".join(map(repr, self.components)) or "nothing"
        ref = f", reference={self.reference_name}" if self.reference else ""
        return f"ablate({what}, mode={self.mode}, scope={scope_name(self.scope)}{ref})"

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
            where = _Where(batch, member, of, first.scope)
            fill = None if first.mode == "uniform" else _fill(first, subject, batch, site)
            taps[site] = [_Uniform(where) if fill is None else _Replace(where, fill)]
        return taps


def _site(cut: Ablate, part: Component) -> Site:
    return Site("attention" if cut.mode == "uniform" else part.site.kind, part.layer)


def _n_units(subject: CausalLM, kind: str) -> int:
    return {"z": subject.n_heads, "attention": subject.n_heads, "mlp_out": 1}.get(kind) or subject.d_mlp


@dataclass(frozen=True)
class _Where:
    """Which units are cut at which columns: the condition that holds there has the unit, and the scope covers it."""

    batch: Batch
    member: Bool[torch.Tensor, "c u"]
    of: Int[torch.Tensor, " b"]
    scope: Scope

    def mask(self, frame: Frame) -> Bool[torch.Tensor, "b t u"]:
        key = (self.scope, frame.past, frame.width)
        if key not in frame.memo:
            frame.memo[key] = self.batch.scope_columns(self.scope, frame.past, frame.width)
        return self.member[self.of[:, None]] & frame.memo[key][..., None]


Fill = Callable[[Frame], "torch.Tensor | float"]


@dataclass(frozen=True)
class _Replace:
    where: _Where
    fill: Fill

    def edit(self, value: torch.Tensor, frame: Frame) -> torch.Tensor:
        mask = self.where.mask(frame).to(value.device)
        units = mask.shape[-1]
        view = value.reshape(*value.shape[:2], units, -1)
        fill = self.fill(frame)
        if isinstance(fill, torch.Tensor):
            fill = fill.to(value.device, value.dtype).reshape(*fill.shape[:2], units, -1)
        return torch.where(mask[..., None], fill, view).view(value.shape)


@dataclass(frozen=True)
class _Uniform:
    where: _Where

    def edit(self, call: AttentionCall, frame: Frame) -> AttentionCall:
        mask = self.where.mask(frame).to(call.q.device)
        # A zero query scores every visible key alike.
        return call.with_(q=call.q.masked_fill(mask.transpose(1, 2)[..., None], 0.0))


def _fill(cut: Ablate, subject: CausalLM, batch: Batch, site: Site) -> Fill:
    """What replaces the units of a site, as a function of the frame: a number or (1|b, 1|t, *unit shape)."""
    assert site.layer is not None
    layer, reference = site.layer, cut.reference
    if cut.mode == "zero":
        return lambda frame: 0.0
    assert reference is not None
    if cut.mode == "mean":
        means = reference.means(subject, site.kind)
        if reference.pool == "pooled":
            value = means[""][layer][None, None]
            return lambda frame: value
        return lambda frame: _by_class(reference, means, layer, batch, frame, cut.scope)
    if reference.pool == "twin":
        if not batch.examples:
            raise UsageError("resampling from the twin needs examples, not bare ids")
        # Before the pass, not in it: the twins are runs of the same model.
        kept = len({id(e) for e in batch.examples})
        twins = [reference.twins(subject, e, site.kind, kept)[layer] for e in batch.examples]  # type: ignore[arg-type]
        return lambda frame: _by_twin(twins, batch, frame)
    bank = reference.bank(subject, site.kind)[layer]

    def draw(frame: Frame) -> torch.Tensor:
        # One donor token for each position, the same for all units and layers, whatever the batch.
        places = _positions(batch, frame)
        donors = torch.stack(
            [
                _donors(cut.seed, _example(batch, row), int(at.max()) + 1, len(bank)).to(at.device)[at]
                for row, at in enumerate(places)
            ]
        )
        return bank[donors.to(bank.device)]

    return draw


def _donors(seed: int, example: Example | None, n: int, bank: int) -> torch.Tensor:
    rng = np.random.default_rng(stable_seed("resample", seed, example.key() if example else ""))
    return torch.from_numpy(rng.integers(bank, size=n))


def _positions(batch: Batch, frame: Frame) -> torch.Tensor:
    """Token index of each column of the pass, also of columns that are generated; b t."""
    columns = torch.arange(frame.past, frame.past + frame.width, device=batch.ids.device)
    if frame.past + frame.width <= batch.width:
        return batch.positions[:, frame.columns]
    return (columns[None] - batch.pad[:, None]).clamp(min=0)


def _example(batch: Batch, row: int) -> Example | None:
    return batch.examples[row] if batch.examples else None  # type: ignore[return-value]


def _by_class(
    reference: Reference,
    means: dict[str, torch.Tensor],
    layer: int,
    batch: Batch,
    frame: Frame,
    scope: Scope,
) -> torch.Tensor:
    """Mean of each token's class, b t *unit shape; zeros where the reference lacks it and no scope needs it."""
    out = []
    covered = batch.scope_columns(scope, frame.past, frame.width).tolist()
    none = torch.zeros_like(next(iter(means.values()))[layer])
    for row, places in enumerate(_positions(batch, frame)):
        example = _example(batch, row)
        if example is None:
            raise UsageError("a mean by position or role needs examples, not bare ids")
        names = reference.classes(example, int(places.max()) + 1)
        missing = {names[p] for p, needed in zip(places.tolist(), covered[row], strict=True) if needed}
        missing -= set(means)
        if missing:
            raise UsageError(
                f"reference {reference.name} has no {reference.pool} {sorted(missing)[0]}; "
                "give reference examples that have it, or pool='pooled'"
            )
        values = {name: means[name][layer] for name in set(names) & set(means)}
        out.append(torch.stack([values.get(names[p], none) for p in places.tolist()]))
    return torch.stack(out)


def _by_twin(twins: list[torch.Tensor], batch: Batch, frame: Frame) -> torch.Tensor:
    places = _positions(batch, frame)
    for values, at in zip(twins, places, strict=True):
        if int(at.max()) >= len(values):
            raise UsageError(
                "resampling from the twin does not reach generated tokens; force the answer instead"
            )
    return torch.stack([values[at] for values, at in zip(twins, places, strict=True)])


def ablate(
    parts: str | Component | Iterable[str | Component],
    mode: Mode = "zero",
    scope: str | int | Iterable[str | int] = "all",
    reference: Reference | Task | Sequence[Example] | None = None,
    seed: int = 0,
) -> Ablate:
    """Describe an ablation; nothing runs until it is applied or measured.

    Args:
        parts: components or their names: `"L17H3 L18H7"`, `heads.top(10)`, `[MLP(3)]`.
        mode: `zero`, `mean`, `resample` or `uniform`, see `Ablate`.
        scope: `all`, `answer`, or one or more span roles or token positions.
        reference: for `mean` and `resample`: a task or examples (pooled), or a `Reference`. `measure` takes the
            measured task where none is given.
        seed: of the draws of `resample`.

    >>> ablate("L0H1 L2H3", mode="zero", scope="answer")
    ablate(L0H1 L2H3, mode=zero, scope=answer)
    """
    if reference is not None and not isinstance(reference, Reference):
        reference = Reference(reference)
    where: Scope = scope if isinstance(scope, str) else (scope,) if isinstance(scope, int) else tuple(scope)
    return Ablate(components(parts), mode, where, reference, seed)


__all__ = ["MLP", "MODES", "Ablate", "Head", "Mode", "Neuron", "Reference", "ablate"]
