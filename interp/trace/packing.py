"""Packed tokens: whose they are, and how the edits of an intervention reach them.

Edits are written for padded batches. Here a site's tensor holds tokens of many branches in one row; the rows that a
site's edits are about are unpacked into a padded batch of their own, edited there, and put back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int

from interp.models.engines.attention import AttentionCall
from interp.models.engines.base import Frame, Tap
from interp.models.engines.visits import narrow
from interp.models.sites import Site


@dataclass
class Packed:
    """Where each token of a packed call comes from.

    Attributes:
        row, column: in the batch.
        owner: number of its branch's row among all rows of the chunk's branches.
    """

    row: Int[torch.Tensor, " n"]
    column: Int[torch.Tensor, " n"]
    owner: Int[torch.Tensor, " n"]

    def pick(self, where: torch.Tensor) -> Packed:
        """Some of the tokens."""
        return Packed(self.row[where], self.column[where], self.owner[where])

    @classmethod
    def join(cls, parts: Sequence[Packed]) -> Packed:
        """The tokens of several parts, in order."""
        if len(parts) == 1:
            return parts[0]
        return cls(*(torch.cat([getattr(p, name) for p in parts]) for name in ("row", "column", "owner")))


@dataclass
class Edited:
    """The branches' rows whose intervention edits a site, as a batch of its own, and the taps lowered for it."""

    local: Int[torch.Tensor, " owners"]  # number in the batch of the edited, -1 for rows that are not
    frame: Frame
    taps: list[Tap]

    def edit(self, site: Site, value: Float[torch.Tensor, "1 n ..."], packed: Packed) -> torch.Tensor:
        """The packed tensor with the edits in it; the same object where there are none."""
        local = self.local[packed.owner]
        at = (local >= 0).nonzero()[:, 0]
        if not len(at):
            return value
        place = local[at].to(value.device), (packed.column[at] - self.frame.past).to(value.device)
        at = at.to(value.device)
        padded = value.new_zeros(len(self.frame.batch), self.frame.width, *value.shape[2:])
        padded[place] = value[0, at]
        out = run_taps(site, self.taps, padded, self.frame)
        if out is padded:
            return value
        value = value.clone()
        value[0, at] = out[place]
        return value


def joined(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """One tensor of several along the first dimension; a single one is not copied."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def run_taps(site: Site, taps: Sequence[Tap], value: torch.Tensor, frame: Frame) -> torch.Tensor:
    """Edits of a site in order; nothing is recorded in a wave."""
    for tap in taps:
        edit = getattr(tap, "edit", None)
        out = edit(value, frame) if edit is not None else tap(value)  # type: ignore[operator]
        if out is not None:
            value = out.to(value.dtype)
    return value


def edit_kernel(site: Site, call: AttentionCall, taps: Sequence[Tap], frame: Frame) -> AttentionCall:
    """Edits at `attention`, `q_rot` or `k_rot` of a call whose queries are the frame's columns."""
    if site.kind == "attention":
        for tap in taps:
            edit = getattr(tap, "edit", None)
            out: Any = edit(call, frame) if edit is not None else tap(call)  # type: ignore
            call = call if out is None else out
        return call
    t = call.q.shape[2]
    heads = call.q if site.kind == "q_rot" else call.k[:, :, -t:]
    whole = heads.transpose(1, 2)
    view = whole if site.index is None else narrow(site, whole)
    new = run_taps(site, taps, view, frame)
    if site.index is not None:
        changed = whole.clone()
        narrow(site, changed).copy_(new)
        new = changed
    if site.kind == "q_rot":
        return call.with_(q=new.transpose(1, 2))
    return call.with_(k=torch.cat([call.k[:, :, :-t], new.transpose(1, 2)], dim=2))
