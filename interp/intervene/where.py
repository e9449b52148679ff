"""Where a cut or an edit of many conditions acts in a pass: rows of its condition, at the columns of its scope."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int

from interp.errors import UsageError
from interp.intervene.base import Scope
from interp.models.batch import Batch
from interp.models.engines.base import Frame


def covered(batch: Batch, scope: Scope, frame: Frame) -> Bool[torch.Tensor, "b t"]:
    """Columns of a pass that a scope covers; found once a pass."""
    key = scope, frame.past, frame.width
    if key not in frame.memo:
        frame.memo[key] = batch.scope_columns(scope, frame.past, frame.width)
    found: torch.Tensor = frame.memo[key]
    return found


def rows_of(own: Batch, batch: Batch, what: object) -> Int[torch.Tensor, " b"]:
    """For each row of a batch the row of another one, which values were stored for, that holds its example.

    Args:
        own: the batch of the values.
        what: needs them, in errors.

    Raises:
        UsageError: the batch has other examples, or another width.
    """
    if batch is own:
        return torch.arange(len(batch), device=own.ids.device)
    known = {id(example): row for row, example in enumerate(own.examples)}
    if not batch.examples or not all(id(e) in known for e in batch.examples):
        raise UsageError(f"{what} holds values of other examples than those of this batch")
    if batch.width != own.width:
        raise UsageError(
            f"{what}: the batch has {batch.width} columns, that of its values {own.width}: run the same one"
        )
    return torch.tensor([known[id(e)] for e in batch.examples], device=own.ids.device)


@dataclass(frozen=True)
class Where:
    """Rows that meet the condition `number`, at the columns that `scope` covers.

    Attributes:
        batch: the batch that is run.
        of: which condition holds for each row.
        n: number of conditions.
        number: of the condition that is meant.
        scope: `all`, `answer` or span roles.
    """

    batch: Batch
    of: Int[torch.Tensor, " b"]
    n: int
    number: int
    scope: Scope

    @property
    def everywhere(self) -> bool:
        """Whether it is known without looking that every token is meant."""
        return self.n == 1 and self.scope == "all"

    def mask(self, frame: Frame) -> Bool[torch.Tensor, "b t"]:
        """The tokens that are meant, among the columns of a pass."""
        return (self.of == self.number)[:, None] & covered(self.batch, self.scope, frame)

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


@dataclass(frozen=True)
class Units:
    """Units of a site that are cut: those of the condition that holds in a row, at the columns that `scope` covers.

    Attributes:
        batch: the batch that is run.
        member: which units each condition has.
        of: which condition holds for each row.
        scope: `all`, `answer` or span roles.
    """

    batch: Batch
    member: Bool[torch.Tensor, "c u"]
    of: Int[torch.Tensor, " b"]
    scope: Scope

    def mask(self, frame: Frame) -> Bool[torch.Tensor, "b t u"]:
        """The units that are cut at each column of a pass."""
        return self.member[self.of[:, None]] & covered(self.batch, self.scope, frame)[..., None]
