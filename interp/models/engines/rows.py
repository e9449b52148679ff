"""Attention rows: recomputed from queries and keys for the queries asked for, and reduced block of keys by block.

The square of the context is never made. Of the queries only those asked for are read, keys are cast block by block,
and a streaming reducer (`RowReducer`) sees each block once: memory is queries x heads and one block, however long the
context. A function of whole rows gets queries x heads x keys, in one buffer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int

from interp.errors import EngineError, UsageError
from interp.models.engines.attention import AttentionCall
from interp.models.engines.base import Frame, KeyBlock, Reduction, RowBlock, RowReducer, Rows, RowShape

BLOCK = {"cpu": 2**19}
"""Numbers in a block of scores (and in the keys cast for it), by type of device: on a CPU a block stays in cache."""

_BLOCK = 2**24  # elsewhere launches cost more than memory


@dataclass(frozen=True)
class Asked:
    """The rows that one pass is asked for, on one device.

    Attributes:
        index: queries of the pass, 0 where the row is absent. absent: which those are; None if there are none.
        first, last: lowest and highest query.
    """

    index: Int[torch.Tensor, "b r"]
    absent: Bool[torch.Tensor, "b r"] | None
    first: int
    last: int

    @classmethod
    def of(cls, rows: Rows, frame: Frame, device: torch.device) -> Asked:
        """The request as this pass sees it; made once a pass and device."""
        key = "rows asked for", id(rows), frame.past, frame.width, device
        if key not in frame.memo:
            columns = rows.columns.to(device) - frame.past
            absent = (columns < 0) | (columns >= frame.width)
            index = columns.masked_fill(absent, 0)
            ends = torch.aminmax(index) if index.numel() else (0, 0)
            first, last = (int(end) for end in ends)
            frame.memo[key] = cls(index, absent if bool(absent.any()) else None, first, last)
        return frame.memo[key]


class Whole:
    """The rows themselves: a reduction that holds all keys."""

    def begin(self, shape: RowShape) -> Reduction:
        """See `RowReducer`."""
        return _Whole(shape)


class _Whole:
    def __init__(self, shape: RowShape):
        self.scores = torch.empty(*shape.rows, shape.keys, device=shape.device)
        self.end = 0

    def update(self, block: KeyBlock) -> None:
        self.end = block.first + block.scores.shape[-1]
        self.scores[..., block.first : self.end] = block.scores

    def finish(self) -> Float[torch.Tensor, "b h r k"]:
        """Probabilities; zeros in a row without visible keys."""
        scores = self.scores
        scores[..., self.end :] = float("-inf")
        if scores.requires_grad:
            seen = scores.detach().amax(-1, keepdim=True) > float("-inf")
            return torch.softmax(scores.masked_fill(~seen, 0.0), -1).masked_fill(~seen, 0.0)
        peak = scores.amax(-1, keepdim=True).clamp_(min=torch.finfo(torch.float32).min)
        weights = scores.sub_(peak).exp_()
        return weights.div_(weights.sum(-1, keepdim=True).clamp_(min=1e-30))


def block_width(device: torch.device, *per_key: int) -> int:
    """Keys in a block, where each takes so many numbers of one tensor or another."""
    return max(1, BLOCK.get(device.type, _BLOCK) // max(1, *per_key))


def reduce_rows(call: AttentionCall, rows: Rows, frame: Frame) -> Any:
    """What a request keeps of one layer's rows, from what its attention kernel is about to compute."""
    if isinstance(rows.reduce, RowReducer):
        return _stream(call, rows, rows.reduce, frame)
    return rows.reduce(RowBlock(call.layer, _stream(call, rows, Whole(), frame), frame))


def _stream(call: AttentionCall, rows: Rows, reducer: RowReducer, frame: Frame) -> Any:
    asked = Asked.of(rows, frame, call.q.device)
    heads = _heads(rows, call.layer, call.q.shape[1])
    q = _queries(call, asked, heads)
    b, r = asked.index.shape
    n = call.q.shape[1] if heads is None else len(heads)
    keys = end = call.k.shape[2]
    if call.mask is None or call.mask.ndim != 4:
        end = min(end, asked.last + 1 + keys - call.q.shape[2])  # later keys are seen by none of the rows
    width = block_width(call.q.device, b * n * r, b * q.shape[1] * q.shape[3])
    reduction = reducer.begin(RowShape(call.layer, (b, n, r), keys, call.q.device, frame))
    with_values = getattr(reducer, "needs_values", False)
    for start in range(0, end, width):
        upto = min(start + width, end)
        values = _of_keys(call, call.v, heads, start, upto).float() if with_values else None
        reduction.update(KeyBlock(_scores(call, q, asked, heads, start, upto), start, values))
    return reduction.finish()


def reduce_probs(probs: Float[torch.Tensor, "b h t k"], rows: Rows, layer: int, frame: Frame) -> Any:
    """What a request keeps of one layer's rows, from its whole attention pattern.

    Raises:
        EngineError: the reducer needs scores or values, which a pattern does not tell.
    """
    asked = Asked.of(rows, frame, probs.device)
    heads = _heads(rows, layer, probs.shape[1])
    if heads is not None:
        probs = probs[:, heads]
    index = asked.index[:, None, :, None].expand(-1, probs.shape[1], -1, probs.shape[3])
    picked = probs.gather(2, index).float()
    if asked.absent is not None:
        picked = picked.masked_fill(asked.absent[:, None, :, None], 0.0)
    if not isinstance(rows.reduce, RowReducer):
        return rows.reduce(RowBlock(layer, picked, frame))
    for needed, what in (("needs_scores", "attention scores"), ("needs_values", "the keys' values")):
        if getattr(rows.reduce, needed, False):
            raise EngineError(
                f"{rows.reduce!r} needs {what}, and this engine reads probabilities; take engine 'hooks'"
            )
    b, h, r, k = picked.shape
    reduction = rows.reduce.begin(RowShape(layer, (b, h, r), k, picked.device, frame))
    reduction.update(KeyBlock(picked.log(), 0))
    return reduction.finish()


def _heads(rows: Rows, layer: int, n: int) -> list[int] | None:
    heads = rows.heads.get(layer)
    if heads is None:
        return None
    if wrong := [h for h in heads if not 0 <= h < n]:
        raise UsageError(f"rows of heads {wrong} in layer {layer}, which has heads 0 to {n - 1}")
    return list(heads)


def _queries(call: AttentionCall, asked: Asked, heads: Sequence[int] | None) -> torch.Tensor:
    """The queries asked for, scaled, in fp32, with those of one KV head together: b kv (h/kv r) d."""
    b, d = call.q.shape[0], call.q.shape[3]
    q = call.q if heads is None else call.q[:, heads]
    batch = torch.arange(b, device=q.device)[:, None]
    q = q.transpose(1, 2)[batch, asked.index].transpose(1, 2).float() * call.scaling  # b h r d
    groups = call.k.shape[1] if heads is None else len(heads)
    return q.reshape(b, groups, -1, d)


def _of_keys(
    call: AttentionCall, x: torch.Tensor, heads: Sequence[int] | None, start: int, end: int
) -> Float[torch.Tensor, "b kv k d"]:
    """Keys or values `[start, end)`; where heads are chosen, one for each of them."""
    x = x[:, :, start:end]
    if heads is None:
        return x
    per = call.q.shape[1] // x.shape[1]
    return x[:, [h // per for h in heads]]


def _scores(
    call: AttentionCall, q: torch.Tensor, asked: Asked, heads: Sequence[int] | None, start: int, end: int
) -> Float[torch.Tensor, "b h r k"]:
    """Scores over the keys `[start, end)`, masked."""
    k = _of_keys(call, call.k, heads, start, end).float()
    scores = torch.matmul(q, k.transpose(2, 3))
    b, r = asked.index.shape
    scores = scores.view(b, -1, r, end - start)
    if call.softcap is not None:
        scores = scores.div_(call.softcap).tanh_() * call.softcap
    mask = _mask(call, asked, heads, start, end)
    if mask is not None:
        scores = scores.masked_fill_(~mask, float("-inf")) if mask.dtype == torch.bool else scores.add_(mask)
    if asked.absent is not None:
        scores = scores.masked_fill_(asked.absent[:, None, :, None], float("-inf"))
    return scores


def _mask(
    call: AttentionCall, asked: Asked, heads: Sequence[int] | None, start: int, end: int
) -> torch.Tensor | None:
    """Boolean (True: visible) or additive mask over the keys `[start, end)`, b 1|h r k; None where all are visible."""
    b, t, s = call.q.shape[0], call.q.shape[2], call.k.shape[2]
    device = asked.index.device
    if call.mask is not None and call.mask.ndim == 4:
        mask = call.mask[..., start:end]
        if heads is not None and mask.shape[1] > 1:
            mask = mask[:, heads]
        rows = torch.arange(b, device=device)[:, None]
        return mask.expand(b, *mask.shape[1:]).transpose(1, 2)[rows, asked.index].transpose(1, 2)
    if call.mask is None and call.window is None and end <= asked.first + 1 + s - t:
        return None
    keys = torch.arange(start, end, device=device)
    query = (asked.index + (s - t))[:, :, None]
    visible = keys <= query
    if call.window is not None:
        visible &= keys > query - call.window
    if call.mask is not None:  # flash kernels take the 2-D padding mask
        visible &= call.mask[:, None, start:end].bool()
    return visible[:, None]
