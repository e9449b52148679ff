"""Reducers of attention rows: what is kept of them while they are computed, block of keys by block.

    rows = Rows(columns, Many(top=TopKeys(), needle=Mass.of(batch, "value"), lse=LogSumExp()))
    trace = model.run(batch, rows=rows)
    trace.rows[12]["needle"]  # b h r: attention of layer 12's heads on the needle

Each is exact: equal to the same reduction of the whole softmax rows, at a memory of queries x heads and one block of
scores. A row that was not asked for, and one without a visible key, gives zeros, column -1, and a log-sum-exp of -inf.
Statistics are in fp32 whatever the model computes in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int

from interp.errors import UsageError
from interp.models.batch import Batch
from interp.models.engines.base import KeyBlock, Reduction, RowReducer, RowShape
from interp.models.engines.rows import Whole

__all__ = ["At", "FirstRows", "LogSumExp", "Many", "Mass", "Shares", "TopK", "TopKeys", "Tops", "Whole"]

Spans = Sequence[Sequence[tuple[int, int]]]
"""Half-open ranges of columns for each batch row."""

_LOWEST = torch.finfo(torch.float32).min


class _Softmax:
    """Running maximum of each row and the sum of exponentials relative to it (Milakov and Gimelshein 2018)."""

    def __init__(self, shape: RowShape):
        self.peak = torch.full(shape.rows, _LOWEST, device=shape.device)
        self.total = torch.zeros(shape.rows, device=shape.device)

    def step(self, block: KeyBlock) -> tuple[torch.Tensor, torch.Tensor]:
        """Take a block in; returns what sums so far and the block's sums are to be multiplied by."""
        peak = torch.maximum(self.peak, block.peak)
        old, new = torch.exp(self.peak - peak), torch.exp(block.peak - peak)
        self.peak, self.total = peak, old * self.total + new * block.total
        return old, new

    @property
    def lse(self) -> torch.Tensor:
        return self.peak + self.total.log()


@dataclass(frozen=True)
class TopKeys:
    """Column of the key that each row attends to most, b h r; of equal ones the lowest, -1 where there is none."""

    def begin(self, shape: RowShape) -> Reduction:
        """See `RowReducer`."""
        return _TopKeys(shape)


class _TopKeys:
    def __init__(self, shape: RowShape):
        self.values = torch.full(shape.rows, float("-inf"), device=shape.device)
        self.columns = torch.full(shape.rows, -1, device=shape.device)

    def update(self, block: KeyBlock) -> None:
        values, columns = block.top
        higher = values > self.values  # an equal score in a later block does not count
        self.values = torch.where(higher, values, self.values)
        self.columns = torch.where(higher, columns, self.columns)

    def finish(self) -> Int[torch.Tensor, "b h r"]:
        return self.columns


@dataclass(frozen=True)
class Tops:
    """The most attended keys of each row.

    Attributes:
        values: their attention, highest first; 0 where a row has fewer keys.
        columns: their columns; -1 where a row has fewer keys.
    """

    values: Float[torch.Tensor, "b h r k"]
    columns: Int[torch.Tensor, "b h r k"]


@dataclass(frozen=True)
class TopK:
    """The `k` most attended keys of each row, as `Tops`; which of equal ones is as undefined as in `torch.topk`."""

    k: int

    def __post_init__(self) -> None:
        if self.k < 1:
            raise UsageError(f"TopK({self.k}): write a number of keys of at least 1")

    def begin(self, shape: RowShape) -> Reduction:
        """See `RowReducer`."""
        return _TopK(self.k, shape)


class _TopK:
    def __init__(self, k: int, shape: RowShape):
        self.k = k
        self.softmax = _Softmax(shape)
        self.scores = torch.full((*shape.rows, k), float("-inf"), device=shape.device)
        self.columns = torch.full((*shape.rows, k), -1, device=shape.device)

    def update(self, block: KeyBlock) -> None:
        self.softmax.step(block)
        scores, at = block.scores.topk(min(self.k, block.scores.shape[-1]), -1)
        scores, columns = (
            torch.cat([self.scores, scores], -1),
            torch.cat([self.columns, at + block.first], -1),
        )
        self.scores, order = scores.topk(self.k, -1)
        self.columns = columns.gather(-1, order)

    def finish(self) -> Tops:
        none = self.scores == float("-inf")
        weights = torch.exp(self.scores - self.softmax.peak[..., None]) / self.softmax.total[..., None]
        values = weights.masked_fill(none, 0.0)
        return Tops(values, self.columns.masked_fill(none, -1))


@dataclass(frozen=True, eq=False)
class Mass:
    """Attention of each row on a set of keys, b h r; in [0, 1].

    Args:
        spans: half-open ranges of columns for each batch row, padding counted; what they cover twice counts once.
    """

    spans: Spans

    @classmethod
    def of(cls, batch: Batch, role: str | Sequence[str]) -> Mass:
        """On the tokens that spans of one or more roles cover, as `role` or `role.item`.

        Raises:
            UsageError: an example of the batch has no span of that role.
        """
        member = batch.scope_columns(role, 0, batch.width)
        return cls([[(c, c + 1) for c in row.nonzero()[:, 0].tolist()] for row in member])

    def begin(self, shape: RowShape) -> Reduction:
        """See `RowReducer`."""
        return _Mass(_checked("Mass", self.spans, shape), shape)


def _checked(what: str, spans: Spans, shape: RowShape) -> list[list[tuple[int, int]]]:
    """The spans of each batch row, disjoint.

    Raises:
        UsageError: they are of another batch, or reach beyond the keys.
    """
    if len(spans) != shape.rows[0]:
        raise UsageError(f"{what} has spans for {len(spans)} rows, and the batch has {shape.rows[0]}")
    for start, end in (span for own in spans for span in own):
        if not 0 <= start <= end <= shape.keys:
            raise UsageError(f"{what} on columns {start} to {end - 1}: there are {shape.keys} keys")
    return [_union(own) for own in spans]


def _union(spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The same columns as ranges that neither touch nor overlap."""
    out: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if out and start <= out[-1][1]:
            out[-1] = out[-1][0], max(end, out[-1][1])
        else:
            out.append((start, end))
    return out


class _Mass:
    def __init__(self, spans: Sequence[Sequence[tuple[int, int]]], shape: RowShape):
        self.spans = spans
        self.softmax = _Softmax(shape)
        self.sum = torch.zeros(shape.rows, device=shape.device)

    def update(self, block: KeyBlock) -> None:
        old, new = self.softmax.step(block)
        weights, end = block.weights, block.first + block.scores.shape[-1]
        self.sum = old * self.sum
        for row, spans in enumerate(self.spans):
            for a, b in spans:
                if a < end and b > block.first:
                    part = weights[row, ..., max(a - block.first, 0) : b - block.first]
                    self.sum[row] += new[row] * part.sum(-1)

    def finish(self) -> Float[torch.Tensor, "b h r"]:
        return self.sum / self.softmax.total.clamp(min=1e-30)


@dataclass(frozen=True, eq=False)
class At:
    """Attention of each row on one key, b h r.

    Args:
        columns: the key's column for each row, -1 for none; shape (b, r) as that of the rows asked for.
    """

    columns: Int[torch.Tensor, "b r"]

    def begin(self, shape: RowShape) -> Reduction:
        """See `RowReducer`."""
        b, _, r = shape.rows
        if tuple(self.columns.shape) != (b, r):
            raise UsageError(f"At has columns for {tuple(self.columns.shape)} rows, and {(b, r)} are read")
        if self.columns.numel() and not -1 <= int(self.columns.min()) <= int(self.columns.max()) < shape.keys:
            raise UsageError(f"At column {int(self.columns.max())}: there are {shape.keys} keys")
        return _At(self.columns.to(shape.device)[:, None, :, None].expand(*shape.rows, 1), shape)


class _At:
    def __init__(self, columns: torch.Tensor, shape: RowShape):
        self.columns = columns
        self.softmax = _Softmax(shape)
        self.sum = torch.zeros(shape.rows, device=shape.device)

    def update(self, block: KeyBlock) -> None:
        old, new = self.softmax.step(block)
        at = self.columns - block.first
        here = (at >= 0) & (at < block.scores.shape[-1])
        found = block.weights.gather(-1, at.masked_fill(~here, 0)).masked_fill(~here, 0.0)
        self.sum = old * self.sum + new * found[..., 0]

    def finish(self) -> Float[torch.Tensor, "b h r"]:
        return self.sum / self.softmax.total.clamp(min=1e-30)


@dataclass(frozen=True, eq=False)
class Shares:
    """What sets of keys contribute to each row along a direction: the sum over their keys j of a[j] * (v_j . d).

    Of a head's output projection only the one direction is needed: with d = W_O u it is the heads' share of u . output,
    without the projection's bias.

    Args:
        directions: of a layer, b h r d_head, by its number; asked for once a pass.
        sets: by name half-open ranges of columns for each batch row, or None for all keys. The result is a dict of
            b h r by the same names.
    """

    directions: Callable[[int], Float[torch.Tensor, "b h r d"]]
    sets: Mapping[str, Spans | None]
    needs_values = True

    def begin(self, shape: RowShape) -> Reduction:
        """See `RowReducer`."""
        directions = self.directions(shape.layer).to(shape.device, torch.float32)
        if tuple(directions.shape[:3]) != shape.rows:
            raise UsageError(
                f"Shares has directions for {tuple(directions.shape[:3])} batch, heads and rows in layer "
                f"{shape.layer}, and {shape.rows} are read"
            )
        sets = {
            name: None if own is None else _checked("Shares", own, shape) for name, own in self.sets.items()
        }
        return _Shares(directions, sets, shape)

    def __repr__(self) -> str:
        return f"Shares({', '.join(self.sets)})"


class _Shares:
    def __init__(
        self,
        directions: torch.Tensor,
        sets: Mapping[str, list[list[tuple[int, int]]] | None],
        shape: RowShape,
    ):
        self.directions = directions
        self.sets = sets
        self.softmax = _Softmax(shape)
        self.sums = {name: torch.zeros(shape.rows, device=shape.device) for name in sets}

    def update(self, block: KeyBlock) -> None:
        assert block.values is not None
        old, new = self.softmax.step(block)
        b, h, r, k = block.scores.shape
        groups = block.values.shape[1]
        d = self.directions.reshape(b, groups, -1, self.directions.shape[-1])  # b kv (h/kv r) d
        along = torch.matmul(d, block.values.transpose(2, 3)).view(b, h, r, k)
        parts = along * block.weights
        end = block.first + k
        for name, own in self.sets.items():
            total = old * self.sums[name]
            if own is None:
                total = total + new * parts.sum(-1)
            else:
                for row, spans in enumerate(own):
                    for start, stop in spans:
                        if start < end and stop > block.first:
                            part = parts[row, ..., max(start - block.first, 0) : stop - block.first]
                            total[row] += new[row] * part.sum(-1)
            self.sums[name] = total

    def finish(self) -> dict[str, Float[torch.Tensor, "b h r"]]:
        total = self.softmax.total.clamp(min=1e-30)
        return {name: found / total for name, found in self.sums.items()}


@dataclass(frozen=True, eq=False)
class FirstRows:
    """Another reducer on the first `n` of the rows that are read."""

    n: int
    reducer: RowReducer

    @property
    def needs_scores(self) -> bool:
        """Whether the reducer does."""
        return getattr(self.reducer, "needs_scores", False)

    @property
    def needs_values(self) -> bool:
        """Whether the reducer does."""
        return getattr(self.reducer, "needs_values", False)

    def begin(self, shape: RowShape) -> Reduction:
        """See `RowReducer`."""
        b, h, r = shape.rows
        if self.n >= r:
            return self.reducer.begin(shape)
        return _FirstRows(self.n, self.reducer.begin(replace(shape, rows=(b, h, self.n))))


class _FirstRows:
    def __init__(self, n: int, reduction: Reduction):
        self.n = n
        self.reduction = reduction

    def update(self, block: KeyBlock) -> None:
        self.reduction.update(KeyBlock(block.scores[:, :, : self.n], block.first, block.values))

    def finish(self) -> Any:
        return self.reduction.finish()


@dataclass(frozen=True)
class LogSumExp:
    """Log of the sum of exponentiated scores of each row (the softmax's denominator), b h r, in nats."""

    needs_scores = True

    def begin(self, shape: RowShape) -> Reduction:
        """See `RowReducer`."""
        return _LogSumExp(shape)


class _LogSumExp:
    def __init__(self, shape: RowShape):
        self.softmax = _Softmax(shape)

    def update(self, block: KeyBlock) -> None:
        self.softmax.step(block)

    def finish(self) -> Float[torch.Tensor, "b h r"]:
        return self.softmax.lse


class Many:
    """Several reducers in one pass over the keys: a dict of their results by name.

    Example:
        Many(top=TopKeys(), needle=Mass(spans))
    """

    def __init__(self, **reducers: RowReducer):
        self.reducers = reducers

    @property
    def needs_scores(self) -> bool:
        """Whether one of them does."""
        return any(getattr(r, "needs_scores", False) for r in self.reducers.values())

    @property
    def needs_values(self) -> bool:
        """Whether one of them does."""
        return any(getattr(r, "needs_values", False) for r in self.reducers.values())

    def begin(self, shape: RowShape) -> Reduction:
        """See `RowReducer`."""
        return _Many({name: reducer.begin(shape) for name, reducer in self.reducers.items()})

    def __repr__(self) -> str:
        return f"Many({', '.join(f'{name}={reducer!r}' for name, reducer in self.reducers.items())})"


class _Many:
    def __init__(self, reductions: Mapping[str, Reduction]):
        self.reductions = reductions

    def update(self, block: KeyBlock) -> None:
        for reduction in self.reductions.values():
            reduction.update(block)

    def finish(self) -> dict[str, Any]:
        return {name: reduction.finish() for name, reduction in self.reductions.items()}
