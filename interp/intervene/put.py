"""Put: stored activations written into a run, at chosen tokens of chosen examples.

This is activation patching (Meng et al. 2022, arXiv 2202.05262; Wang et al. 2023, arXiv 2211.00593) as an intervention:
what is written comes from another run, or is zero or a mean, and many of them run as rows of one batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int

from interp.intervene.base import Atom
from interp.intervene.where import Where, rows_of
from interp.models.batch import Batch
from interp.models.engines.base import Frame, Tap
from interp.models.sites import Site
from interp.models.subject import CausalLM


@dataclass(frozen=True, eq=False)
class Values:
    """What is put into a site, aligned with a batch.

    Args:
        batch: a batch made of examples.
        at: values of the whole site, b t and what a token has there; expanded tensors cost nothing.
        name: says where they come from, in descriptions and keys.
    """

    batch: Batch
    at: Float[torch.Tensor, "b t *unit"]
    name: str


@dataclass(frozen=True, eq=False)
class Put(Atom):
    """Values written into a site, or one head or neuron of it, where `columns` says.

    Attributes:
        site: where, with an index for one head or neuron.
        values: what is written.
        columns: which columns of each row of the values' batch.
    """

    site: Site
    values: Values
    columns: Bool[torch.Tensor, "b t"]

    def describe(self) -> dict[str, Any]:
        examples = "".join(e.key() for e in self.values.batch.examples)  # type: ignore[attr-defined]
        columns = self.columns.cpu().numpy().tobytes()
        return {
            "kind": "put",
            "site": repr(self.site),
            "values": self.values.name,
            "examples": hashlib.sha256(examples.encode()).hexdigest()[:16],
            "columns": hashlib.sha256(columns).hexdigest()[:16],
            "scope": "columns",
        }

    def group(self) -> tuple[Any, ...]:
        return self.site.whole, id(self.values)

    def touches(self, subject: CausalLM, batch: Batch) -> dict[Site, Bool[torch.Tensor, "b t"]]:
        return {self.site.whole: self.columns[rows_of(self.values.batch, batch, self)] & batch.mask.bool()}

    def __repr__(self) -> str:
        return f"put({self.values.name} at {self.site})"

    @classmethod
    def lower_group(
        cls,
        subject: CausalLM,
        batch: Batch,
        atoms: Sequence[tuple[int, Any]],
        of: Int[torch.Tensor, " b"],
        n: int,
    ) -> dict[Site, list[Tap]]:
        first: Put = atoms[0][1]
        rows = rows_of(first.values.batch, batch, first)
        return {
            first.site.whole: [
                _Write(atom, rows, Where(batch, of, n, number, "all")) for number, atom in atoms
            ]
        }


@dataclass(frozen=True)
class _Write:
    put: Put
    rows: Int[torch.Tensor, " b"]
    where: Where

    def edit(self, value: torch.Tensor, frame: Frame) -> torch.Tensor:
        put = self.put
        columns = put.columns[self.rows][:, frame.columns].to(value.device)
        mask = self.where.mask(frame).to(value.device) & columns
        row, column = mask.nonzero(as_tuple=True)
        stored, head = put.values.at, put.site.index
        at = self.rows.to(stored.device)[row.to(stored.device)], (column + frame.past).to(stored.device)
        out = value.clone()
        if head is None:
            out[row, column] = stored[at].to(value.device, value.dtype)
        else:
            out[row, column, head] = stored[(*at, head)].to(value.device, value.dtype)
        return out
