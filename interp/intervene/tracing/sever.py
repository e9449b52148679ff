"""Severed variants: what a sublayer adds at some tokens is held at its corrupted value while a state is restored.

Meng et al. 2022 (arXiv 2202.05262), section 2.2: a restored state brings the answer back by what it does later. If it
no longer does once the later MLPs of its token are held at what they added in the corrupted run, then it does so
through them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int

from interp.errors import UsageError
from interp.intervene.base import Atom
from interp.intervene.tracing.noise import SAMPLE
from interp.models.batch import Batch
from interp.models.engines.base import Frame, Record, Tap
from interp.models.sites import Site
from interp.models.subject import CausalLM


@dataclass(frozen=True, eq=False)
class Held:
    """What a kind of sublayer added in the runs of all draws.

    Attributes:
        kind: `mlp_out` or `attn_out`.
        values: by layer, draws x tokens x d; the draw of a row is its example's `meta[SAMPLE]`.
    """

    kind: str
    values: Mapping[int, Float[torch.Tensor, "s t d"]]

    @classmethod
    def of(cls, subject: CausalLM, batch: Batch, kind: str) -> Held:
        """Record a batch whose rows are the draws in order, under the interventions that are applied."""
        sites = {Site(kind, i): Record() for i in range(subject.n_layers)}
        trace = subject.run(batch, sites, keep=1)
        return cls(kind, {i: trace[Site(kind, i)] for i in range(subject.n_layers)})


@dataclass(frozen=True)
class Sever(Atom):
    """A sublayer of some layers held at the values of each draw's own run.

    Attributes:
        held: the values.
        layers: in which layers.
        positions: at which tokens, counted from the first token of the prompt.
    """

    held: Held
    layers: tuple[int, ...]
    positions: tuple[int, ...]

    def describe(self) -> dict[str, Any]:
        digest = hashlib.sha256()
        for layer in self.layers:
            digest.update(self.held.values[layer].detach().float().cpu().contiguous().numpy().data)
        return {
            "kind": "sever",
            "components": [repr(Site(self.held.kind, i)) for i in self.layers],
            "mode": "sever",
            "scope": "positions " + " ".join(map(str, self.positions)),
            "reference": digest.hexdigest()[:16],
        }

    def group(self) -> tuple[Any, ...]:
        return (id(self.held),)

    def touches(self, subject: CausalLM, batch: Batch) -> dict[Site, Bool[torch.Tensor, "b t"]]:
        mask = batch.scope_columns(self.positions, 0, batch.width)
        return {Site(self.held.kind, i): mask for i in self.layers}

    @classmethod
    def lower_group(
        cls,
        subject: CausalLM,
        batch: Batch,
        atoms: Sequence[tuple[int, Any]],
        of: Int[torch.Tensor, " b"],
        n: int,
    ) -> dict[Site, list[Tap]]:
        held: Held = atoms[0][1].held
        draws = torch.tensor([_draw(e, held) for e in batch.examples], device=batch.ids.device)
        rows_of: dict[int, list[torch.Tensor]] = {}
        tokens_of: dict[int, list[torch.Tensor]] = {}
        for number, atom in atoms:
            rows = (of == number).nonzero()[:, 0].to(batch.ids.device)
            if len(rows):
                batch.check_positions(atom.positions, rows)
            at = torch.tensor(atom.positions, dtype=torch.long, device=batch.ids.device)
            for layer in atom.layers:
                rows_of.setdefault(layer, []).append(rows.repeat_interleave(len(at)))
                tokens_of.setdefault(layer, []).append(at.repeat(len(rows)))
        return {
            Site(held.kind, i): [
                _Hold(held.values[i], batch, draws, torch.cat(rows), torch.cat(tokens_of[i]))
            ]
            for i, rows in rows_of.items()
        }


def _draw(example: Any, held: Held) -> int:
    number = int(example.meta.get(SAMPLE, 0))
    known = len(next(iter(held.values.values())))
    if number >= known:
        raise UsageError(f"a severed {held.kind} holds {known} draws and a row is draw {number}")
    return number


@dataclass(frozen=True)
class _Hold:
    values: torch.Tensor
    batch: Batch
    draws: torch.Tensor
    rows: torch.Tensor
    tokens: torch.Tensor

    def edit(self, value: torch.Tensor, frame: Frame) -> torch.Tensor:
        columns = self.batch.pad[self.rows] + self.tokens - frame.past
        here = (columns >= 0) & (columns < frame.width)
        row, column, token = (t[here] for t in (self.rows, columns, self.tokens))
        source = self.values.to(value.device, value.dtype)
        out = value.clone()
        draw = self.draws[row].to(value.device)
        out[row.to(value.device), column.to(value.device)] = source[draw, token.to(value.device)]
        return out
