"""Low-rank edits of the weights that write to the residual stream, undone bit for bit, and their exact equivalent.

In row-vector convention (x @ W) an edit turns W into W + a @ b, and may shift the bias behind it.
`with edit.applied(subject)` changes the weights themselves, so that everything that reads them sees the edit.
`subject.apply(edit)` leaves them alone and adds (x @ a) @ b to what the projection gives, which is the same and can
differ from row to row: many edits run as one batch.
Output projections belong to query heads, so an edit of one head touches no other, with grouped KV heads either.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float

from interp.errors import EngineError, UsageError
from interp.intervene.factored import Factored
from interp.intervene.where import Where
from interp.models.engines.base import Frame, Tap
from interp.models.sites import Head, Site
from interp.models.subject import CausalLM

Module = Literal["o", "down"]
MODULES: tuple[str, ...] = get_args(Module)


@dataclass(frozen=True, eq=False)
class WeightEdit(Factored):
    """W + a @ b in place of the weight W of a projection, x @ W.

    Two edits are equal if they are of the same weight and the bits of their factors are equal.

    Args:
        layer: the layer.
        module: `o`, the output projection of attention, or `down`, the down projection of the MLP.
        a: directions that are read, d_in r: of all heads of z one after the other, or of the neurons.
        b: directions that are written, r d_out.
        shift: added to what the projection gives; as weights, to its bias.

    Raises:
        UsageError: no such module, or factors that do not fit each other or are not finite.
    """

    layer: int
    module: Module
    a: Float[torch.Tensor, "d_in r"]
    b: Float[torch.Tensor, "_ d_out"]
    shift: Float[torch.Tensor, " d_out"] | None = None
    digest: str = field(init=False)

    def __post_init__(self) -> None:
        if self.module not in MODULES:
            raise UsageError(f"no projection '{self.module}' to edit; write one of {', '.join(MODULES)}")
        if self.a.shape[1:] != self.b.shape[:1] or self.b.ndim != 2:
            raise UsageError(
                f"factors of an edit are (d_in, r) and (r, d_out), not {tuple(self.a.shape)} and {tuple(self.b.shape)}"
            )
        self._keep(f"{self.site}", f"at {self.site}", a=self.a, b=self.b, shift=self.shift)

    @classmethod
    def of_head(
        cls,
        subject: CausalLM,
        head: Head,
        a: Float[torch.Tensor, "d_head r"],
        b: Float[torch.Tensor, "r d_out"],
        shift: Float[torch.Tensor, " d_out"] | None = None,
    ) -> WeightEdit:
        """An edit of one query head's part of the output projection; all other heads keep theirs."""
        subject.check(head)
        rows = a.new_zeros(subject.n_heads, subject.d_head, a.shape[1])
        rows[head.head] = a
        return cls(head.layer, "o", rows.flatten(0, 1), b, shift)

    @property
    def site(self) -> Site:
        """What the projection reads and gives, where the edit acts on activations."""
        return Site(self.module, self.layer)

    def __repr__(self) -> str:
        return f"edit({self.site}, rank {self.rank}, {self.digest[:6]})"

    def describe(self) -> dict[str, Any]:
        return self._described("weight_edit", site=repr(self.site))

    # -- as weights --------------------------------------------------------------------------------------------------

    @contextmanager
    def applied(self, subject: CausalLM) -> Iterator[CausalLM]:
        """The weights are edited inside the block; leaving it, by an exception too, restores every bit.

        Edits of one weight may be nested and left in any order: what remains is the first state of the weight with the
        edits that are still on, in the order they were made. Whatever else was done to the weight inside is undone too.

        Raises:
            UsageError: the factors do not fit the weight.
            EngineError: the weight is quantised or not in memory, so that it cannot be edited, or there is no bias that
                could be shifted.
        """
        self.check(subject)
        weight, bias, transposed = editable(_projection(subject, self), self.site, self.shift is not None)
        a, b = self.factors(weight)
        change = (a @ b).T if transposed else a @ b
        changes: list[tuple[torch.Tensor, Change]] = [(weight, lambda w: w.to(change.dtype) + change)]
        if self.shift is not None:
            assert bias is not None
            shift = self.shift.to(bias.device)
            changes.append((bias, lambda v: v.to(shift.dtype) + shift))
        with edited(self, changes):
            yield subject

    def check(self, subject: CausalLM) -> None:
        subject.check(Site("z" if self.module == "o" else "neurons", self.layer))
        d_in = subject.n_heads * subject.d_head if self.module == "o" else subject.d_mlp
        if (self.a.shape[0], self.b.shape[1]) != (d_in, subject.d_model):
            raise UsageError(
                f"{self}: the projection of {subject.name} is {d_in} x {subject.d_model}, "
                f"the edit {self.a.shape[0]} x {self.b.shape[1]}"
            )

    # -- as activations ----------------------------------------------------------------------------------------------

    def tap(self, where: Where) -> Tap:
        return _Add(self, where)


@dataclass(frozen=True)
class _Add:
    edit_: WeightEdit
    where: Where

    def edit(self, value: torch.Tensor, frame: Frame) -> torch.Tensor:
        a, b = self.edit_.factors(value)

        def add(ends: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
            x, out = ends.to(a.dtype).split([len(a), b.shape[1]], dim=-1)
            out = out + (x @ a) @ b
            if self.edit_.shift is not None:
                out = out + self.edit_.shift.to(out.device, out.dtype)
            return torch.cat([x, out], dim=-1)

        return self.where.change(value, frame, add)


def _projection(subject: CausalLM, edit: WeightEdit) -> Any:
    family = subject.family
    path = family.out_proj if edit.module == "o" else family.sites["neurons"].module
    return subject.module(edit.layer, path)


def editable(projection: Any, site: Site, shifts: bool) -> tuple[torch.Tensor, torch.Tensor | None, bool]:
    """Weight and bias of a projection, and whether the weight is kept (out, in).

    Raises:
        EngineError: the weight cannot be edited in place, or the bias is to be shifted and there is none.
    """
    weight: torch.Tensor = projection.weight
    bias: torch.Tensor | None = projection.bias
    why = "is not in memory" if weight.is_meta else "is quantised" if not weight.is_floating_point() else ""
    if why:
        raise EngineError(
            f"{site}: the weight {why} and cannot be edited in place; subject.apply(edit) does the same"
        )
    if shifts and bias is None:
        raise EngineError(
            f"{site}: the projection has no bias that could keep a constant; subject.apply(edit) does the same"
        )
    return weight, bias, type(projection).__name__ != "Conv1D"


Change = Callable[[torch.Tensor], torch.Tensor]
"""What a weight becomes, in fp32 or better."""


@dataclass
class _Edited:
    """A weight that is edited now: it is kept alive here, so its id stays its own."""

    weight: torch.Tensor
    original: torch.Tensor
    edits: list[tuple[object, Change]]


_edited: dict[int, _Edited] = {}


@contextmanager
def edited(edit: object, changes: Sequence[tuple[torch.Tensor, Change]]) -> Iterator[None]:
    """Weights are changed inside the block, one change on top of another; leaving it takes those of `edit` back.

    Changes are made in the order given and taken back from the last to the first.
    """
    with ExitStack() as stack:
        for weight, change in changes:
            _on(weight, edit, change)
            stack.callback(_off, weight, edit)
        yield


def found_by(edit: object, weight: torch.Tensor) -> torch.Tensor:
    """The weight as an edit finds it: under the edits that are on and were made before it; a copy."""
    state = _edited.get(id(weight))
    if state is None or not any(other is edit for other, _ in state.edits):
        return weight.detach().clone()
    value = state.original.clone()
    for other, change in state.edits:
        if other is edit:
            break
        value.copy_(change(value))
    return value


def _on(weight: torch.Tensor, edit: object, change: Change) -> None:
    state = _edited.get(id(weight)) or _Edited(weight, weight.detach().clone(), [])
    _add(state, change)
    state.edits.append((edit, change))
    _edited[id(weight)] = state


def _off(weight: torch.Tensor, edit: object) -> None:
    state = _edited[id(weight)]
    last = max(i for i, (other, _) in enumerate(state.edits) if other is edit)
    del state.edits[last]
    _again(state)
    # What the edits that are still on do to other weights may depend on this one, as a bias does (see `found_by`).
    on = {id(other) for other, _ in state.edits}
    for else_ in _edited.values():
        if else_ is not state and any(id(other) in on for other, _ in else_.edits):
            _again(else_)
    if not state.edits:
        del _edited[id(weight)]


def _again(state: _Edited) -> None:
    """The first state of the weight with the edits that are on."""
    with torch.no_grad():
        state.weight.copy_(state.original)
    for _, change in state.edits:
        _add(state, change)


def _add(state: _Edited, change: Change) -> None:
    # The sum is made in fp32 and rounded once, also where the weight is in half precision.
    weight = state.weight.detach()
    weight.copy_(change(weight))
