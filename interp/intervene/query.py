"""Edits of one head's query projection from the right, undone bit for bit, and their exact equivalent.

W_Q becomes W_Q (I + a b) for one query head, so that its queries q become q + ((q - constant) a) b: what is edited of a
query is told by the query alone. Keys, values and all other heads stay as they are, with grouped KV heads too, and the
edit comes before positions rotate anything. `with edit.applied(subject)` changes the weights, `subject.apply(edit)` the
queries; many edits run as one batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float

from interp.errors import UsageError
from interp.intervene.edit import Change, editable, edited
from interp.intervene.factored import Factored
from interp.intervene.where import Where
from interp.models.engines.base import Frame, Tap
from interp.models.sites import Head, Site
from interp.models.subject import CausalLM


@dataclass(frozen=True, eq=False)
class QueryEdit(Factored):
    """W_Q (I + a @ b) in place of a head's W_Q; two edits are equal if their head and the bits of their factors are.

    Args:
        head: the query head.
        a, b: factors in the head's own space.
        constant: the part of the query that is left as it is, a bias; default none.

    Raises:
        UsageError: factors that do not fit each other or are not finite.
    """

    head: Head
    a: Float[torch.Tensor, "d_head r"]
    b: Float[torch.Tensor, "_ d_head"]
    constant: Float[torch.Tensor, " d_head"] | None = None
    digest: str = field(init=False)

    def __post_init__(self) -> None:
        if self.a.ndim != 2 or self.b.shape != self.a.shape[::-1]:
            raise UsageError(
                f"factors of a query edit are (d_head, r) and (r, d_head), not {tuple(self.a.shape)} and "
                f"{tuple(self.b.shape)}"
            )
        constant = self.a.new_zeros(len(self.a)) if self.constant is None else self.constant
        self._keep(repr(self.head), f"of the queries of {self.head}", a=self.a, b=self.b, constant=constant)

    @property
    def site(self) -> Site:
        """Where the edit acts on activations: the queries of all heads, before rotation."""
        return Site("q", self.head.layer)

    def __repr__(self) -> str:
        return f"query_edit({self.head}, rank {self.rank}, {self.digest[:6]})"

    def describe(self) -> dict[str, Any]:
        return self._described("query_edit", components=[repr(self.head)])

    @contextmanager
    def applied(self, subject: CausalLM) -> Iterator[CausalLM]:
        """The weights are edited inside the block; leaving it, by an exception too, restores every bit.

        Raises:
            UsageError: there is no such head, or the factors do not fit it.
            EngineError: the weight is quantised or not in memory, or a constant has no bias to be kept in.
        """
        self.check(subject)
        place = subject.family.sites["q"]
        projection = subject.module(self.head.layer, place.module)
        kept = bool((self._constant @ self.a @ self.b).abs().max() > 0)
        weight, bias, transposed = editable(projection, self.site, kept)
        first = self.head.head * subject.d_head * (3 if place.part.startswith("headwise") else 1)
        columns = slice(first, first + subject.d_head)

        def change(value: torch.Tensor) -> torch.Tensor:
            out = value.to(torch.promote_types(value.dtype, torch.float32), copy=True)
            own = out.T[:, columns] if transposed else out[:, columns]
            own += own @ self._product(own)
            return out

        def shift(value: torch.Tensor) -> torch.Tensor:
            out = value.to(torch.promote_types(value.dtype, torch.float32), copy=True)
            constant = self._constant.to(out.device, out.dtype)
            out[columns] += (out[columns] - constant) @ self._product(out)
            return out

        changes: list[tuple[torch.Tensor, Change]] = [(weight, change)]
        if bias is not None:
            changes.append((bias, shift))
        with edited(self, changes):
            yield subject

    @property
    def _constant(self) -> torch.Tensor:
        assert self.constant is not None
        return self.constant

    def _product(self, like: torch.Tensor) -> torch.Tensor:
        a, b = self.factors(like)
        return a @ b

    def check(self, subject: CausalLM) -> None:
        subject.check(self.head)
        if len(self.a) != subject.d_head:
            raise UsageError(f"{self}: heads of {subject.name} are {subject.d_head} wide, not {len(self.a)}")

    def tap(self, where: Where) -> Tap:
        return _Turn(self, where)


@dataclass(frozen=True)
class _Turn:
    edit_: QueryEdit
    where: Where

    def edit(self, value: torch.Tensor, frame: Frame) -> torch.Tensor:
        def turn(queries: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
            q = queries.to(torch.promote_types(queries.dtype, torch.float32))
            return q + (q - self.edit_._constant.to(q.device, q.dtype)) @ self.edit_._product(q)

        head = self.edit_.head.head
        out = value.clone()
        out[:, :, head] = self.where.change(value[:, :, head], frame, turn)
        return out
