"""Low-rank edits of the weights that write to the residual stream, undone bit for bit, and their exact equivalent.

In row-vector convention (x @ W) an edit turns W into W + a @ b. `with edit.applied(subject)` changes the weights
themselves, so that everything that reads them sees the edit. `subject.apply(edit)` leaves them alone and adds
(x @ a) @ b to what the projection gives, which is the same and can differ from row to row: many edits run as one batch.
Output projections belong to query heads, so an edit of one head touches no other, with grouped KV heads either.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Float, Int

from interp.errors import EngineError, UsageError
from interp.intervene.base import Atom
from interp.intervene.where import Where
from interp.models.batch import Batch
from interp.models.engines.base import Frame, Tap
from interp.models.sites import Head, Site
from interp.models.subject import CausalLM

Module = Literal["o", "down"]
MODULES: tuple[str, ...] = get_args(Module)


@dataclass(frozen=True, eq=False)
class WeightEdit(Atom):
    """W + a @ b in place of the weight W of a projection, x @ W.

    Two edits are equal if they are of the same weight and the bits of their factors are equal.

    Args:
        layer: the layer.
        module: `o`, the output projection of attention, or `down`, the down projection of the MLP.
        a: directions that are read, d_in r: of all heads of z one after the other, or of the neurons.
        b: directions that are written, r d_out.

    Raises:
        UsageError: no such module, or factors that do not fit each other or are not finite.
    """

    layer: int
    module: Module
    a: Float[torch.Tensor, "d_in r"]
    b: Float[torch.Tensor, "_ d_out"]
    digest: str = field(init=False)

    def __post_init__(self) -> None:
        if self.module not in MODULES:
            raise UsageError(f"no projection '{self.module}' to edit; write one of {', '.join(MODULES)}")
        if self.a.shape[1:] != self.b.shape[:1] or self.b.ndim != 2:
            raise UsageError(
                f"factors of an edit are (d_in, r) and (r, d_out), not {tuple(self.a.shape)} and {tuple(self.b.shape)}"
            )
        digest = hashlib.sha256(f"{self.site}".encode())
        for name in ("a", "b"):
            # A copy of our own: an edit of the tensor handed over must not change what this describes.
            factor = getattr(self, name).detach().cpu()
            factor = factor.to(torch.promote_types(factor.dtype, torch.float32)).contiguous().clone()
            if not bool(factor.isfinite().all()):
                raise UsageError(f"factor {name} of an edit at {self.site} is not finite")
            digest.update(f"{tuple(factor.shape)} {factor.dtype}".encode() + factor.numpy().tobytes())
            object.__setattr__(self, name, factor)
        object.__setattr__(self, "digest", digest.hexdigest()[:16])

    @classmethod
    def of_head(
        cls,
        subject: CausalLM,
        head: Head,
        a: Float[torch.Tensor, "d_head r"],
        b: Float[torch.Tensor, "r d_out"],
    ) -> WeightEdit:
        """An edit of one query head's part of the output projection; all other heads keep theirs."""
        subject.check(head)
        rows = a.new_zeros(subject.n_heads, subject.d_head, a.shape[1])
        rows[head.head] = a
        return cls(head.layer, "o", rows.flatten(0, 1), b)

    @property
    def site(self) -> Site:
        """What the projection reads and gives, where the edit acts on activations."""
        return Site(self.module, self.layer)

    @property
    def rank(self) -> int:
        """Number of directions."""
        return self.a.shape[1]

    def __eq__(self, other: object) -> bool:
        return self.digest == other.digest if isinstance(other, WeightEdit) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return f"edit({self.site}, rank {self.rank}, {self.digest[:6]})"

    def describe(self) -> dict[str, Any]:
        return {
            "kind": "weight_edit",
            "site": repr(self.site),
            "rank": self.rank,
            "factors": self.digest,
            "scope": "all",
        }

    # -- as weights --------------------------------------------------------------------------------------------------

    @contextmanager
    def applied(self, subject: CausalLM) -> Iterator[CausalLM]:
        """The weights are edited inside the block; leaving it, by an exception too, restores every bit.

        Edits of one weight may be nested and left in any order: what remains is the first state of the weight with the
        edits that are still on, in the order they were made. Whatever else was done to the weight inside is undone too.

        Raises:
            UsageError: the factors do not fit the weight.
            EngineError: the weight is quantised or not in memory, so that it cannot be edited.
        """
        weight, transposed = self._weight(subject)
        _on(weight, transposed, self)
        try:
            yield subject
        finally:
            _off(weight, self)

    def _weight(self, subject: CausalLM) -> tuple[torch.Tensor, bool]:
        """The weight, and whether it is kept (out, in)."""
        self._check(subject)
        projection = _projection(subject, self)
        weight: torch.Tensor = projection.weight
        if not weight.is_floating_point() or weight.is_meta:
            why = "is not in memory" if weight.is_meta else "is quantised"
            raise EngineError(
                f"{self.site}: the weight {why} and cannot be edited in place; subject.apply(edit) does the same"
            )
        return weight, type(projection).__name__ != "Conv1D"

    def _check(self, subject: CausalLM) -> None:
        subject.check(Site("z" if self.module == "o" else "neurons", self.layer))
        d_in = subject.n_heads * subject.d_head if self.module == "o" else subject.d_mlp
        if (self.a.shape[0], self.b.shape[1]) != (d_in, subject.d_model):
            raise UsageError(
                f"{self}: the projection of {subject.name} is {d_in} x {subject.d_model}, "
                f"the edit {self.a.shape[0]} x {self.b.shape[1]}"
            )

    # -- as activations ----------------------------------------------------------------------------------------------

    def group(self) -> tuple[Any, ...]:
        return (self.site,)

    def touches(self, subject: CausalLM, batch: Batch) -> dict[Site, Bool[torch.Tensor, "b t"]]:
        return {self.site: batch.scope_columns("all", 0, batch.width)}

    @classmethod
    def lower_group(
        cls,
        subject: CausalLM,
        batch: Batch,
        atoms: Sequence[tuple[int, Any]],
        of: Int[torch.Tensor, " b"],
        n: int,
    ) -> dict[Site, list[Tap]]:
        for _, atom in atoms:
            atom._check(subject)
        return {atoms[0][1].site: [_Add(atom, Where(batch, of, n, number, "all")) for number, atom in atoms]}


@dataclass(frozen=True)
class _Add:
    edit_: WeightEdit
    where: Where

    def edit(self, value: torch.Tensor, frame: Frame) -> torch.Tensor:
        a, b = _factors(self.edit_, value)

        def add(ends: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
            x, out = ends.to(a.dtype).split([len(a), b.shape[1]], dim=-1)
            return torch.cat([x, out + (x @ a) @ b], dim=-1)

        return self.where.change(value, frame, add)


def _factors(edit: WeightEdit, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    dtype = torch.promote_types(like.dtype, torch.float32)
    return edit.a.to(like.device, dtype), edit.b.to(like.device, dtype)


def _projection(subject: CausalLM, edit: WeightEdit) -> Any:
    family = subject.family
    path = family.out_proj if edit.module == "o" else family.sites["neurons"].module
    return subject.module(edit.layer, path)


@dataclass
class _Edited:
    """A weight that is edited now: it is kept alive here, so its id stays its own."""

    weight: torch.Tensor
    transposed: bool
    original: torch.Tensor
    edits: list[WeightEdit]


_edited: dict[int, _Edited] = {}


def _on(weight: torch.Tensor, transposed: bool, edit: WeightEdit) -> None:
    state = _edited.get(id(weight)) or _Edited(weight, transposed, weight.detach().clone(), [])
    _add(state, edit)
    state.edits.append(edit)
    _edited[id(weight)] = state


def _off(weight: torch.Tensor, edit: WeightEdit) -> None:
    state = _edited[id(weight)]
    last = max(i for i, other in enumerate(state.edits) if other is edit)
    del state.edits[last]
    with torch.no_grad():
        weight.copy_(state.original)
    for other in state.edits:
        _add(state, other)
    if not state.edits:
        del _edited[id(weight)]


def _add(state: _Edited, edit: WeightEdit) -> None:
    weight = state.weight.detach()
    a, b = _factors(edit, weight)
    change = a @ b
    # The sum is made in fp32 and rounded once, also where the weight is in half precision.
    weight.copy_(weight.to(change.dtype) + (change.T if state.transposed else change))
