"""What single units are worth: the objective of each item with one unit closed, exactly.

In a language model the units of `ff_out` go through `CausalLM.each`, which runs for each what lies above it. In a
pipeline many units are closed at once, each in its own rows of a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float

from interp.errors import UsageError
from interp.intervene.ablate import Ablate
from interp.locate.memorization.gating import gated, open_gates, together
from interp.locate.memorization.gradients import IntegratedGradients
from interp.locate.memorization.units import UnitLocator, unit_table
from interp.measure.memorization.objective import loss
from interp.models.cache import Progress, quiet
from interp.models.parts import Part, weight_of
from interp.models.sites import Neuron
from interp.models.subject import CausalLM
from interp.tasks.base import Example

if TYPE_CHECKING:
    from interp.models.pipeline import Pipeline

Unit = tuple[Part, int]


class LeaveOneOut(UnitLocator[Sequence[Any]]):
    """How much the objective of an item rises when a unit is closed at all tokens.

    Args:
        screen: measure only this many units, the first by size of their score from `by`; None: all. What is not
            measured has no row in `scores_`.
        kind: of the parts, see `interp.models.parts.parts`.
        draws, seed: of (t, eps) in a pipeline, see `interp.measure.memorization.objective.loss`.
        by: a fitted locator of the same units; None: integrated gradients by layer, fitted on the way.

    After `fit(subject, items, reference=others)` (see `UnitLocator`): scores_ has the method `leave_one_out`.
    """

    def __init__(
        self,
        screen: int | None = None,
        kind: str = "ff_out",
        draws: int = 8,
        seed: int = 0,
        by: UnitLocator[Any] | None = None,
    ):
        self.screen = screen
        self.kind = kind
        self.draws = draws
        self.seed = seed
        self.by = by

    def _learn(self, sides: tuple[Sequence[Any], ...], progress: Progress) -> None:
        """Close each unit once."""
        chosen = self._screened(*sides)
        found = []
        for side in sides:
            rises = leave_one_out(
                self.subject_, side, chosen, draws=self.draws, seed=self.seed, progress=progress
            )
            found.append(self._spread(chosen, rises))
        table = unit_table("leave_one_out", *found)
        names = {f"{part!r}.{unit}" for part, unit in chosen}
        self.scores_ = table[table["component"].isin(names)].reset_index(drop=True)

    def _screened(self, data: Sequence[Any], reference: Sequence[Any] | None = None) -> list[Unit]:
        every = [(p, u) for p in self.parts_ for u in range(weight_of(self.subject_, p).shape[1])]
        if self.screen is None:
            return every
        if not 1 <= self.screen <= len(every):
            raise UsageError(f"screen={self.screen}: there are {len(every)} units to measure")
        found = self.by or IntegratedGradients("layer", kind=self.kind, draws=self.draws, seed=self.seed).fit(
            self.subject_, data, reference=reference
        )
        ranked = found.ranking().assign(size=lambda t: t["score"].abs())
        first = ranked.sort_values("size", ascending=False, kind="stable")["component"][: self.screen]
        names = set(first)
        return [(part, unit) for part, unit in every if f"{part!r}.{unit}" in names]

    def _spread(
        self, chosen: Sequence[Unit], rises: torch.Tensor
    ) -> dict[Part, Float[torch.Tensor, "items units"]]:
        out = {p: torch.zeros(rises.shape[1], weight_of(self.subject_, p).shape[1]) for p in self.parts_}
        for (part, unit), own in zip(chosen, rises, strict=True):
            out[part][:, unit] = own
        return out


def leave_one_out(
    subject: CausalLM | Pipeline,
    items: Sequence[Any],
    units: Sequence[Unit],
    *,
    draws: int = 8,
    seed: int = 0,
    progress: Progress = quiet,
) -> Float[torch.Tensor, "units items"]:
    """The objective of each item with each unit closed, less that of the intact model."""
    if isinstance(subject, CausalLM) and all(part.kind == "ff_out" for part, _ in units):
        return _each(subject, items, units, progress)
    with torch.no_grad():
        intact = loss(subject, items, draws=draws, seed=seed).cpu()
    jobs = [(i, unit) for unit in units for i in range(len(items))]
    found: list[torch.Tensor] = []
    size = together(subject, items, draws)
    parts = tuple(dict.fromkeys(part for part, _ in units))
    for at in range(0, len(jobs), size):
        some = jobs[at : at + size]
        gates = open_gates(subject, parts, len(some))
        for row, (_, (part, unit)) in enumerate(some):
            gates[part][row, unit] = 0
        with torch.no_grad(), gated(subject, gates):
            found.append(loss(subject, [items[i] for i, _ in some], draws=draws, seed=seed).cpu())
        progress(min(at + size, len(jobs)), len(jobs), "units left out")
    return torch.cat(found).view(len(units), len(items)) - intact


def _each(subject: CausalLM, items: Sequence[Any], units: Sequence[Unit], progress: Progress) -> torch.Tensor:
    """The same through the suffix wavefront, which runs the layers above a unit only."""
    examples = []
    for item in items:
        given = max(1, item.prefix)
        examples.append(Example("memorized", tuple(item.ids[:given]), tuple(item.ids[given:])))
    cuts = [None, *(Ablate((Neuron(part.number, unit),)) for part, unit in units)]
    out = torch.zeros(len(cuts), len(items))
    batch = subject.batch(examples)
    first = batch.width - batch.keep
    for number, logits in subject.each(cuts, batch, progress=progress):
        for row, example in enumerate(examples):
            columns = batch.answer_columns(row)
            rows = logits[row, columns.start - first : columns.stop - first].float().log_softmax(-1)
            answer = torch.tensor(example.answer_ids, device=rows.device)
            out[number, row] = -rows.gather(-1, answer[:, None]).mean()
    return out[1:] - out[0]
