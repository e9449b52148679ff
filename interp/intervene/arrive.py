"""Arrive: activations computed elsewhere, written at the same tokens of a site by many conditions in one step."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int

from interp.intervene.base import Atom
from interp.intervene.where import rows_of
from interp.models.batch import Batch
from interp.models.engines.base import Frame, Tap
from interp.models.sites import Site
from interp.models.subject import CausalLM


@dataclass(frozen=True, eq=False)
class Tokens:
    """Tokens of a batch.

    Attributes:
        batch: a batch made of examples.
        row, column: of each token.
    """

    batch: Batch
    row: Int[torch.Tensor, " n"]
    column: Int[torch.Tensor, " n"]

    @cached_property
    def mask(self) -> Bool[torch.Tensor, "b t"]:
        """The tokens as a mask over the batch."""
        mask = torch.zeros_like(self.batch.mask, dtype=torch.bool)
        mask[self.row, self.column] = True
        return mask


@dataclass(frozen=True, eq=False)
class Arrive(Atom):
    """Values written over a site, or over some heads of it.

    Attributes:
        site: the whole site.
        heads: heads that are written, in the order of `values`; none: all that a token has there.
        tokens: at which tokens.
        values: what is written.
        name: says where they come from.
    """

    site: Site
    heads: tuple[int, ...]
    tokens: Tokens
    values: Float[torch.Tensor, "n ..."]
    name: str

    def describe(self) -> dict[str, Any]:
        digest = hashlib.sha256(self.values.detach().float().cpu().contiguous().numpy().data)
        digest.update(self.tokens.mask.cpu().numpy().tobytes())
        return {
            "kind": "arrive",
            "site": repr(self.site),
            "heads": list(self.heads),
            "from": self.name,
            "values": digest.hexdigest()[:16],
            "scope": "columns",
        }

    def group(self) -> tuple[Any, ...]:
        return (self.site,)

    def touches(self, subject: CausalLM, batch: Batch) -> dict[Site, Bool[torch.Tensor, "b t"]]:
        return {self.site: self.tokens.mask[rows_of(self.tokens.batch, batch, self)]}

    def __repr__(self) -> str:
        return f"arrive({self.name} at {self.site})"

    @classmethod
    def lower_group(
        cls,
        subject: CausalLM,
        batch: Batch,
        atoms: Sequence[tuple[int, Any]],
        of: Int[torch.Tensor, " b"],
        n: int,
    ) -> dict[Site, list[Tap]]:
        return {atoms[0][1].site: [_Write(batch, tuple(atoms), of)]}


@dataclass(frozen=True, eq=False)
class _Write:
    """One copy of the site's tensor for all conditions, where a tap for each would copy it as often."""

    batch: Batch
    atoms: tuple[tuple[int, Arrive], ...]
    of: Int[torch.Tensor, " b"]

    def edit(self, value: torch.Tensor, frame: Frame) -> torch.Tensor:
        out = value.clone()
        shared = {id(atom.tokens): atom for _, atom in self.atoms}
        known = {key: rows_of(atom.tokens.batch, self.batch, atom) for key, atom in shared.items()}
        for number, atom in self.atoms:
            tokens = atom.tokens
            mine = (self.of == number).nonzero()[:, 0]
            at, which = (tokens.row[:, None] == known[id(tokens)][mine]).nonzero(as_tuple=True)
            column = tokens.column[at] - frame.past
            here = (column >= 0) & (column < frame.width)
            at, row, column = (t[here] for t in (at, mine[which], column))
            new = atom.values[at.to(atom.values.device)].to(out.device, out.dtype)
            row, column = row.to(out.device), column.to(out.device)
            if atom.heads:
                heads = torch.tensor(atom.heads, device=out.device)
                out[row[:, None], column[:, None], heads] = new
            else:
                out[row, column] = new
        return out
