"""Put: stored activations written into a run, at chosen tokens of chosen examples.

This is activation patching (Meng et al. 2022, arXiv 2202.05262; Wang et al. 2023, arXiv 2211.00593) as an intervention:
what is written comes from another run, or is zero or a mean, and many of them run as rows of one batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int

from interp.errors import UsageError
from interp.intervene.base import Atom
from interp.intervene.where import Where
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

    @cached_property
    def rows(self) -> dict[int, int]:
        """Row of each example, by identity."""
        return {id(example): row for row, example in enumerate(self.batch.examples)}


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
        return {self.site.whole: self.columns[self._rows(batch)] & batch.mask.bool()}

    def __repr__(self) -> str:
        return f"put({self.values.name} at {self.site})"

    def _rows(self, batch: Batch) -> Int[torch.Tensor, " b"]:
        """For each row of a batch the row of the values that belongs to its example."""
        known = self.values.rows
        if not batch.examples or not all(id(e) in known for e in batch.examples):
            raise UsageError(f"{self}: it holds values of other examples than those of this batch")
        if batch.width != self.values.batch.width:
            raise UsageError(
                f"{self}: the batch has {batch.width} columns, the values' {self.values.batch.width}"
            )
        return torch.tensor([known[id(e)] for e in batch.examples], device=self.columns.device)

    @classmethod
    def lower_group(
        cls,
        subject: CausalLM,
        batch: Batch,
        atoms: Sequence[tuple[int, Any]],
        of: Int[torch.Tensor, " b"],
        n: int,
    ) -> dict[Site, list[Tap]]:
        site = atoms[0][1].site.whole
        return {
            site: [
                _Write(atom, atom._rows(batch), Where(batch, of, n, number, "all")) for number, atom in atoms
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
