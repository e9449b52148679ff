"""Examples as tensors: left-padded ids, mask, explicit positions, and where the answers are predicted.

All engines get the same `Batch`. Column `c` of row `b` holds token `c - pad[b]` of that row. The last forced answer
token is never fed: nothing is read after it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from jaxtyping import Bool, Int

from interp.errors import UsageError


class Prompt(Protocol):
    """What a batch needs of an `Example`."""

    @property
    def ids(self) -> tuple[int, ...]: ...
    @property
    def answer_ids(self) -> tuple[int, ...]: ...
    @property
    def spans(self) -> tuple[Any, ...]: ...


@dataclass(frozen=True, eq=False)
class Batch:
    """A left-padded batch.

    Attributes:
        ids, mask, positions: token ids, 1 where there is a token, position ids (0 under padding).
        pad: padding columns of each row.
        answer_start: column of each row that predicts its first answer token (the last prompt token).
        examples: what the rows were made from; empty for a batch of bare ids.
        forced: whether the answers are fed after the prompts.
    """

    ids: Int[torch.Tensor, "b t"]
    mask: Int[torch.Tensor, "b t"]
    positions: Int[torch.Tensor, "b t"]
    pad: Int[torch.Tensor, " b"]
    answer_start: Int[torch.Tensor, " b"]
    examples: tuple[Prompt, ...] = ()
    forced: bool = True

    @classmethod
    def of(
        cls, examples: Sequence[Prompt], *, forced: bool = True, pad_id: int = 0, device: Any = "cpu"
    ) -> Batch:
        """Prompts, each followed by its answer but the last token (`forced`), or prompts only."""
        if not examples or not all(e.ids for e in examples):
            raise UsageError("a batch needs at least one example, and each prompt at least one token")
        rows = [e.ids + (e.answer_ids[:-1] if forced else ()) for e in examples]
        batch = cls.of_ids(rows, pad_id=pad_id, device=device)
        start = [len(e.ids) - 1 for e in examples]
        return cls(
            batch.ids,
            batch.mask,
            batch.positions,
            batch.pad,
            batch.pad + torch.tensor(start, device=device),
            tuple(examples),
            forced,
        )

    @classmethod
    def of_ids(cls, rows: Sequence[Sequence[int]], *, pad_id: int = 0, device: Any = "cpu") -> Batch:
        """Bare id sequences; each row's last token counts as the one that predicts the answer."""
        if not rows or not all(len(r) for r in rows):
            raise UsageError("a batch needs at least one row, and each row at least one token")
        width = max(len(r) for r in rows)
        ids = torch.full((len(rows), width), pad_id, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for i, row in enumerate(rows):
            ids[i, width - len(row) :] = torch.tensor(list(row), dtype=torch.long)
            mask[i, width - len(row) :] = 1
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        pad = width - mask.sum(1)
        start = torch.full((len(rows),), width - 1)
        ids, mask, positions, pad, start = (t.to(device) for t in (ids, mask, positions, pad, start))
        return cls(ids, mask, positions, pad, start, forced=False)

    def __len__(self) -> int:
        return self.ids.shape[0]

    @property
    def width(self) -> int:
        """Columns, padding included."""
        return self.ids.shape[1]

    def answer_columns(self, row: int) -> range:
        """Columns of a row whose logits predict its answer tokens."""
        start = int(self.answer_start[row])
        return range(start, start + (len(self.examples[row].answer_ids) if self.examples else 1))

    @property
    def keep(self) -> int:
        """How many last columns hold every row that predicts an answer."""
        return self.width - int(self.answer_start.min())

    def scope_columns(
        self, scope: str | Sequence[str | int], past: int, width: int
    ) -> Bool[torch.Tensor, "b w"]:
        """Which of the columns `[past, past + width)` a scope covers.

        Args:
            scope: `all` (every position), `answer` (every position that predicts an answer token, generated ones
                included), or one or more of these, span roles, as `role` or `role.item`, and token positions (0 is the
                first token of the prompt).

        Raises:
            UsageError: an example of the batch has no span of that role, or no such position; or there are no examples.
        """
        columns = torch.arange(past, past + width, device=self.ids.device)
        if scope == "all":
            return torch.ones(len(self), width, dtype=torch.bool, device=self.ids.device)
        if scope == "answer":
            return columns[None] >= self.answer_start[:, None]
        roles = [scope] if isinstance(scope, str) else list(scope)
        out = torch.zeros(len(self), width, dtype=torch.bool, device=self.ids.device)
        for role in roles:
            if isinstance(role, int):
                self.check_positions([role])
                out |= columns[None] == (self.pad + role)[:, None]
                continue
            if role in ("all", "answer"):
                out |= self.scope_columns(role, past, width)
                continue
            if not self.examples:
                raise UsageError(
                    f"scope '{role}': a batch of bare ids has no spans; write all, answer or positions"
                )
            for row, example in enumerate(self.examples):
                tokens = role_tokens(example, role)
                if not tokens:
                    have = sorted({s.role for s in example.spans})
                    raise UsageError(
                        f"scope '{role}': an example has no span of that role; write all, answer or one of "
                        f"{' '.join(have) or '(it has no spans)'}"
                    )
                at = torch.tensor(tokens, device=columns.device) + self.pad[row]
                out[row] |= torch.isin(columns, at)
        return out

    def check_positions(self, positions: Sequence[int], rows: Int[torch.Tensor, " n"] | None = None) -> None:
        """Raise `UsageError` unless each row (or each of these) has tokens at these positions."""
        pad = self.pad if rows is None else self.pad[rows]
        have = self.width - int(pad.max())
        for position in positions:
            if not 0 <= position < have:
                raise UsageError(f"position {position}: the shortest row has positions 0 to {have - 1}")

    def select(self, rows: Int[torch.Tensor, " n"]) -> Batch:
        """These rows, each as often as it is named, with the columns as they are."""
        rows = rows.to(self.ids.device)
        names = ("ids", "mask", "positions", "pad", "answer_start")
        examples = tuple(self.examples[i] for i in rows.tolist()) if self.examples else ()
        return replace(self, examples=examples, **{name: getattr(self, name)[rows] for name in names})

    def to(self, device: Any) -> Batch:
        """The same batch on another device."""
        names = ("ids", "mask", "positions", "pad", "answer_start")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})


def role_tokens(example: Prompt, role: str) -> list[int]:
    """Tokens of an example's spans of a role, as `role` or `role.item`; in order, each once."""
    name, _, item = role.partition(".")
    mine = (s for s in example.spans if s.role == name and (not item or str(s.item) == item))
    return sorted({i for span in mine for i in range(span.start, span.end)})


_SHARE: ContextVar[float] = ContextVar("share of a batch's tokens", default=1.0)


@contextmanager
def smaller_batches(share: float) -> Iterator[None]:
    """Every batch that is planned inside has this share of its usual tokens: what is done where memory ran out.

    Sums are then taken in another order, so results may differ in their last digits.
    """
    token = _SHARE.set(_SHARE.get() * share)
    try:
        yield
    finally:
        _SHARE.reset(token)


def plan(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Indices grouped into batches of similar length, each of at most `budget` padded tokens (at least one row)."""
    budget = int(budget * _SHARE.get())
    order = sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
    groups: list[list[int]] = []
    for i in order:
        if groups and (len(groups[-1]) + 1) * lengths[i] <= budget:
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups
