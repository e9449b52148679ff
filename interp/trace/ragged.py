"""Attention of many branches at once: suffixes of different lengths over the keys and values of shared prefixes.

A `Group` holds branches that start at the same column of the same rows, so its queries form one regular block. The
prefix is never copied for a short suffix: all branches of a row read the one cached block of keys, and the two softmax
parts (prefix, own suffix) are joined exactly. Long suffixes go through the model's own kernel, with keys concatenated.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int

from interp.models.engines.attention import AttentionCall

SHORT = 64
"""Queries of a suffix up to which its scores are kept in memory instead of going through the kernel."""

SCORES = 2**23
"""Scores of a group that are kept in memory at once."""


@dataclass
class Group:
    """Branches that start at one column of the same rows.

    Attributes:
        start: first column of the suffixes.
        rows: rows of the batch, in the order in which each branch holds them.
        branches: numbers of the branches.
        hidden: residual stream of their suffixes.
        joining: that of branches which have joined since it was put together.
    """

    start: int
    rows: Int[torch.Tensor, " r"]
    branches: list[int]
    hidden: Float[torch.Tensor, "g r m d"]
    joining: list[torch.Tensor] = field(default_factory=list)

    def join(self, branch: int, hidden: Float[torch.Tensor, "r m d"]) -> None:
        """One more branch; `settle` before the next layer."""
        self.branches.append(branch)
        self.joining.append(hidden[None].to(self.hidden.device))

    def settle(self) -> None:
        """Put the branches that have joined beside the others, all at once."""
        if self.joining:
            self.hidden = torch.cat([self.hidden, *self.joining])
            self.joining = []


@dataclass(frozen=True)
class Prefix:
    """Keys and values of the whole batch in one layer, and its attention mask.

    Attributes:
        k, v: b kv T d_head, after rotation.
        mask: None (plain causal), boolean or additive; b|1 1 w T, of queries from column `first` on.
        pad: padding columns of each row.
        first: first column that was run as a query.
    """

    k: Float[torch.Tensor, "b kv t d"]
    v: Float[torch.Tensor, "b kv t d"]
    mask: torch.Tensor | None
    pad: Int[torch.Tensor, " b"]
    first: int = 0

    def bias(self, rows: torch.Tensor, queries: slice, keys: slice) -> Float[torch.Tensor, "r q k"] | None:
        """Additive mask of some columns against others, or None where all are visible."""
        device = self.k.device
        if self.mask is None:
            if keys.stop <= queries.start + 1:
                return None
            q = torch.arange(queries.start, queries.stop, device=device)
            k = torch.arange(keys.start, keys.stop, device=device)
            return _additive(k[None] <= q[:, None])[None]
        return _additive(self._mask(rows, queries, keys)[:, 0])

    def _mask(self, rows: torch.Tensor, queries: slice, keys: slice) -> torch.Tensor:
        assert self.mask is not None
        part = self.mask[:, :, queries.start - self.first : queries.stop - self.first, keys]
        return part if len(part) == 1 else part[rows.to(part.device)]

    def kernel_mask(self, rows: torch.Tensor, queries: slice, keys: slice) -> torch.Tensor | None:
        """The mask as the model's kernel takes it; None only where plain causal attention of the kernel is meant."""
        if self.mask is not None:
            return self._mask(rows, queries, keys)
        if queries == keys or queries.stop - queries.start == 1:
            return None
        q = torch.arange(queries.start, queries.stop, device=self.k.device)
        k = torch.arange(keys.start, keys.stop, device=self.k.device)
        return (k[None] <= q[:, None])[None, None]


def _additive(mask: torch.Tensor) -> torch.Tensor:
    if mask.dtype != torch.bool:
        return mask.float()
    return torch.zeros(mask.shape, device=mask.device).masked_fill_(~mask, float("-inf"))


Kernel = Callable[..., Any]


def attend(
    group: Group,
    q: Float[torch.Tensor, "g r h mq d"],
    k: Float[torch.Tensor, "g r kv m d"],
    v: Float[torch.Tensor, "g r kv m d"],
    prefix: Prefix,
    kernel: Kernel,
    call: AttentionCall,
) -> Float[torch.Tensor, "g r mq h d"]:
    """Attention of a group's branches over the prefix and their own suffix.

    Args:
        q: queries; of the last `mq` columns where fewer are read than the suffix is long.
        kernel: the model's, `kernel(q, k, v, mask)` -> b t h d.
        call: scaling and softcap of the layer.
    """
    rows = group.rows.to(q.device)
    first = min(int(prefix.pad[rows.to(prefix.pad.device)].min()), group.start)
    g, mq, m = q.shape[0], q.shape[3], k.shape[3]
    if (group.start == first and mq == m) or mq > SHORT:
        return _through_kernel(group, q, k, v, prefix, kernel, rows, first)
    per = max(1, SCORES // (q[0].numel() // q.shape[-1] * (group.start - first + m)))
    parts = [
        _two_parts(group, q[i : i + per], k[i : i + per], v[i : i + per], prefix, call, rows, first)
        for i in range(0, g, per)
    ]
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def keys_of(
    prefix: torch.Tensor, own: Float[torch.Tensor, "g r kv m d"], rows: torch.Tensor, columns: slice
) -> Float[torch.Tensor, "g r kv s d"]:
    """Keys (or values) of the prefix's columns followed by each branch's own."""
    shared = prefix[:, :, columns][rows].to(own.dtype)
    return torch.cat([shared.expand(len(own), *shared.shape), own], dim=3)


def _through_kernel(
    group: Group,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    prefix: Prefix,
    kernel: Kernel,
    rows: torch.Tensor,
    first: int,
) -> torch.Tensor:
    g, r, mq, end = q.shape[0], q.shape[1], q.shape[3], group.start + k.shape[3]
    if group.start > first:
        k = keys_of(prefix.k, k, rows, slice(first, group.start))
        v = keys_of(prefix.v, v, rows, slice(first, group.start))
    mask = prefix.kernel_mask(rows, slice(end - mq, end), slice(first, end))
    if mask is not None and len(mask) > 1:
        mask = mask.repeat(g, 1, 1, 1)
    out = kernel(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), mask)
    return out.view(g, r, *out.shape[1:])


def _two_parts(
    group: Group,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    prefix: Prefix,
    call: AttentionCall,
    rows: torch.Tensor,
    first: int,
) -> torch.Tensor:
    g, r, h, mq, d = q.shape
    kv, m = k.shape[2:4]
    share = h // kv
    end = group.start + m
    columns = slice(end - mq, end)
    q = q.view(g, r, kv, share, mq, d)
    own = torch.matmul(q.reshape(g, r, kv, share * mq, d), k.transpose(-1, -2)).float()
    own = _scored(own.view(g, r, kv, share, mq, m), call)
    bias = prefix.bias(rows, columns, slice(group.start, end))
    if bias is not None:
        own += bias[None, :, None, None]
    top = own.amax(-1)
    if group.start == first:
        weights = (own - top[..., None]).exp_()
        out = torch.matmul(weights.view(g, r, kv, share * mq, m).to(v.dtype), v).view(g, r, kv, share, mq, d)
        out = out / weights.sum(-1)[..., None].to(out.dtype)
        return out.permute(0, 1, 4, 2, 3, 5).reshape(g, r, mq, h, d)
    # Branches of one row are queries of one block here: the prefix is read once and never copied.
    before = slice(first, group.start)
    keys, values = prefix.k[:, :, before][rows], prefix.v[:, :, before][rows]
    queries = q.permute(1, 2, 3, 0, 4, 5).reshape(r, kv, share * g * mq, d)
    past = torch.matmul(queries, keys.to(q.dtype).transpose(-1, -2)).float()
    past = _scored(past.view(r, kv, share, g, mq, -1), call)
    bias = prefix.bias(rows, columns, before)
    if bias is not None:
        past += bias[:, None, None, None]
    top = torch.maximum(top, past.amax(-1).permute(3, 0, 1, 2, 4))
    past = past.sub_(top.permute(1, 2, 3, 0, 4)[..., None]).exp_()
    own = own.sub_(top[..., None]).exp_()
    total = own.sum(-1) + past.sum(-1).permute(3, 0, 1, 2, 4)
    out = torch.matmul(own.view(g, r, kv, share * mq, m).to(v.dtype), v).view(g, r, kv, share, mq, d)
    read = torch.matmul(past.view(r, kv, share * g * mq, -1).to(v.dtype), values.to(v.dtype))
    out = out + read.view(r, kv, share, g, mq, d).permute(3, 0, 1, 2, 4, 5)
    out = out / total[..., None].to(out.dtype)
    return out.permute(0, 1, 4, 2, 3, 5).reshape(g, r, mq, h, d)


def _scored(scores: torch.Tensor, call: AttentionCall) -> torch.Tensor:
    scores = scores * call.scaling
    if call.softcap is not None:
        scores = torch.tanh(scores / call.softcap) * call.softcap
    return scores
