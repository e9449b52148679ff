"""Units that are loud on the target items: |a| times the length of what they write, the baseline of all the others.

It asks what a unit does, and not what that is good for: a neuron that writes where nothing reads scores like one that
holds the item.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float

from interp.locate.memorization.units import UnitLocator, unit_table
from interp.models.cache import Progress
from interp.models.parts import Part, Pass, weight_of
from interp.trace.passes import ROWS, Corpus, corpus_of, stream


class Activation(UnitLocator[Corpus | Sequence[Any]]):
    """Mean over tokens of |a_j| ||W_:j||: how much unit j writes on the items.

    Args:
        kind: of the parts, see `interp.models.parts.parts`.
        steps, stop, guidance: of a pipeline's runs, of which the conditional half counts; each step weighs the same.
        batch: items of one pass.

    After `fit(subject, items, reference=others)` (see `UnitLocator`): scores_ has the method `activation`. Of a
    sequence only the tokens count that predict its suffix.
    """

    def __init__(
        self,
        kind: str = "ff_out",
        steps: int = 25,
        stop: int | None = 10,
        guidance: float = 1.0,
        batch: int = ROWS,
    ):
        self.kind = kind
        self.steps = steps
        self.stop = stop
        self.guidance = guidance
        self.batch = batch

    def _learn(self, sides: tuple[Corpus | Sequence[Any], ...], progress: Progress) -> None:
        self.scores_ = unit_table("activation", *(self._sizes(side, progress) for side in sides))

    def _sizes(
        self, data: Corpus | Sequence[Any], progress: Progress
    ) -> dict[Part, Float[torch.Tensor, "items units"]]:
        """Sums of |a| over the tokens of each item."""
        subject = self.subject_
        options = (
            {"steps": self.steps, "stop": self.stop, "guidance": self.guidance}
            if subject.kind == "pipeline"
            else {}
        )
        corpus = corpus_of(subject, data, **options)
        sums = _Sizes(len(corpus))
        stream(subject, corpus, self.parts_, sums, batch=self.batch, progress=progress)
        return {
            part: sums.sums[part] / sums.tokens[part][:, None] * weight_of(subject, part).float().norm(dim=0)
            for part in self.parts_
        }


class _Sizes:
    """Sums |a| over the tokens of each item."""

    def __init__(self, items: int):
        self.items = items
        self.sums: dict[Part, torch.Tensor] = {}
        self.tokens: dict[Part, torch.Tensor] = {}

    def __call__(self, part: Part, x: torch.Tensor, pass_: Pass) -> None:
        valid = torch.ones(x.shape[:2], dtype=torch.bool) if pass_.valid is None else pass_.valid
        counted = (valid & pass_.conditional.to(valid.device)[:, None]).to(x.device, torch.float32)
        if part not in self.sums:
            self.sums[part] = x.new_zeros(self.items, x.shape[-1], dtype=torch.float32)
            self.tokens[part] = self.sums[part].new_zeros(self.items)
        items = pass_.items.to(x.device)
        self.sums[part].index_add_(0, items, (counted[:, None] @ x.float().abs())[:, 0])
        self.tokens[part].index_add_(0, items, counted.sum(1))
