"""Where one atom of many conditions acts in a pass: rows or tokens of its condition, at the columns of its scope."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int

from interp.intervene.base import Scope
from interp.models.batch import Batch
from interp.models.engines.base import Frame


@dataclass(frozen=True)
class Where:
    """Rows (or tokens) that meet the condition `number`, at the columns that `scope` covers.

    Attributes:
        batch: the batch that is run.
        of: which condition holds, for each row (shape b) or each column of each row (shape b t).
        n: number of conditions.
        number: of the condition that is meant.
        scope: `all`, `answer` or span roles.
    """

    batch: Batch
    of: Int[torch.Tensor, b * t]
    n: int
    number: int
    scope: Scope

    @property
    def everywhere(self) -> bool:
        """Whether it is known without looking that every token is meant."""
        return self.n == 1 and self.scope == "all"

    def mask(self, frame: Frame) -> Bool[torch.Tensor, "b t"]:
        """The tokens that are meant, among the columns of a pass."""
        key = (self.scope, frame.past, frame.width)
        if key not in frame.memo:
            frame.memo[key] = self.batch.scope_columns(self.scope, frame.past, frame.width)
        of = self.of[:, None] if self.of.ndim == 1 else self.of[:, frame.columns]
        covered: torch.Tensor = frame.memo[key]
        return (of == self.number) & covered

    def change(
        self,
        value: torch.Tensor,
        frame: Frame,
        fn: Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor],
    ) -> torch.Tensor:
        """`value` with the tokens that are meant replaced by `fn` of them.

        Args:
            value: b t and whatever a token has.
            fn: gets the tokens, and the mask (b t) that chose them (then they are flat, n ...) or None where all are
                meant (then they are b t ...).
        """
        if self.everywhere:
            return fn(value, None)
        mask = self.mask(frame).to(value.device)
        out = value.clone()
        out[mask] = fn(value[mask], mask).to(value.dtype)
        return out
