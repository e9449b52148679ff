"""What happens at a site, whichever engine gets there: its taps run in order, and each must do so once a pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import nn

from interp.errors import EngineError
from interp.models.engines.attention import AttentionCall
from interp.models.engines.base import Frame, Record, Reduce, Tap, Taps
from interp.models.families import Part
from interp.models.sites import Site

if TYPE_CHECKING:
    from interp.models.subject import CausalLM


def as_list(taps: Tap | Sequence[Tap]) -> list[Tap]:
    """Taps of one site as a list."""
    return list(taps) if isinstance(taps, (list, tuple)) else [taps]  # type: ignore[list-item]


class Visits:
    """Taps by site in order of execution, counters of how often each fired, and what was recorded.

    Raises:
        UsageError: a site does not exist in the subject.
        EngineError: two taps of one site record.
    """

    def __init__(self, subject: CausalLM, taps: Taps, frame: Frame):
        self.subject = subject
        self.frame = frame
        self.records: dict[Site, Any] = {}
        self.fired: dict[Site, int] = {}
        self.taps: dict[Site, list[Tap]] = {}
        for site in sorted(taps):
            subject.check(site)
            self.taps[site] = as_list(taps[site])
            if sum(isinstance(t, (Record, Reduce)) for t in self.taps[site]) > 1:
                raise EngineError(f"two taps record {site}, and a trace holds one; make them one `Reduce`")
            self.fired[site] = 0

    def visit(self, site: Site, value: torch.Tensor) -> torch.Tensor:
        """Run the taps of one site on its tensor and return what goes on from there."""
        self.fired[site] += 1
        for tap in self.taps[site]:
            if isinstance(tap, (Record, Reduce)):
                self.records[site] = tap.read(value, self.frame)
                continue
            edit = getattr(tap, "edit", None)
            out = edit(value, self.frame) if edit is not None else tap(value)  # type: ignore[operator]
            if out is None:
                if edit is None:
                    self.records[site] = value.detach()
            elif out.shape != value.shape:
                raise EngineError(
                    f"tap at {site} returned shape {tuple(out.shape)}, not {tuple(value.shape)}"
                )
            else:
                value = out.to(value.dtype)
        return value

    def visit_part(self, site: Site, whole: torch.Tensor) -> torch.Tensor:
        """Visit a site that may be one head or neuron of `whole`; `whole` itself comes back where nothing changed."""
        view = whole if site.index is None else narrow(site, whole)
        out = self.visit(site, view)
        if out is view:
            return whole
        if site.index is None:
            return out
        changed = whole.clone()
        narrow(site, changed).copy_(out)
        return changed

    def visit_attention(self, site: Site, call: AttentionCall) -> AttentionCall:
        """Run the taps at `attention` on the kernel's call and return what goes on from there."""
        self.fired[site] += 1
        for tap in self.taps[site]:
            if isinstance(tap, (Record, Reduce)):
                self.records[site] = call if isinstance(tap, Record) else tap.fn(call, self.frame)  # type: ignore[arg-type]
                continue
            edit = getattr(tap, "edit", None)
            out: Any = edit(call, self.frame) if edit is not None else tap(call)  # type: ignore
            if out is not None:
                call = out
            elif edit is None:
                self.records[site] = call
        return call

    def visit_heads(self, site: Site, heads: torch.Tensor) -> torch.Tensor:
        """Visit queries or keys, which the kernel gets as b h t d and taps see as b t h d."""
        whole = heads.transpose(1, 2)
        out = self.visit_part(site, whole)
        return heads if out is whole else out.transpose(1, 2)

    def visit_share(
        self,
        site: Site,
        z: Float[torch.Tensor, "b t h d_head"],
        weight: Float[torch.Tensor, "h d_head d"],
        output: Float[torch.Tensor, "b t d"],
    ) -> torch.Tensor:
        """Visit heads' shares of an output projection; an edit of them is added to its output."""
        heads = slice(None) if site.index is None else slice(site.index, site.index + 1)
        share = torch.einsum("bthd,hdm->bthm", z[..., heads, :], weight[heads])
        view = share if site.index is None else share[..., 0, :]
        out = self.visit(site, view)
        if out is view:
            return output
        change = out - view
        return output + (change.sum(-2) if site.index is None else change)

    def check_fired(self) -> None:
        """Raise `EngineError` unless every tap fired exactly once in each forward pass."""
        wrong = {s: n for s, n in self.fired.items() if n != self.frame.forwards}
        if wrong:
            told = ", ".join(f"{s} fired {n}x" for s, n in wrong.items())
            raise EngineError(
                f"taps must fire once in each of {self.frame.forwards} forward passes, but {told}"
            )


def narrow(site: Site, view: torch.Tensor) -> torch.Tensor:
    """One head (second-last dimension) or one neuron (last) of a site's tensor."""
    assert site.index is not None
    return view[..., site.index] if site.kind == "neurons" else view[..., site.index, :]


def cut(part: Part, x: torch.Tensor, n_heads: int, n_kv_heads: int, d_head: int) -> torch.Tensor:
    """The view of a module's tensor that its sites index; see `interp.models.families.Place`."""
    lead = x.shape[:-1]
    match part:
        case "":
            return x
        case "heads":
            return x.view(*lead, n_heads, d_head)
        case "kv":
            return x.view(*lead, n_kv_heads, d_head)
        case "fused_q" | "fused_k" | "fused_v":
            return x.view(*lead, 3, n_heads, d_head)[..., "qkv".index(part[-1]), :, :]
        case _:
            return x.view(*lead, n_heads, 3, d_head)[..., "qkv".index(part[-1]), :]


def by_heads(projection: nn.Module, n_heads: int, d_head: int, layer: int | None) -> torch.Tensor:
    """Weight of an output projection as W_O of each head, h d_head d.

    Raises:
        EngineError: the weight is quantised.
    """
    weight: Any = projection.weight
    if not weight.is_floating_point():
        raise EngineError(f"layer {layer}: a quantised output projection cannot be taken apart by heads")
    # GPT-2 keeps (in, out), nn.Linear (out, in).
    weight = weight if type(projection).__name__ == "Conv1D" else weight.T
    found: torch.Tensor = weight.reshape(n_heads, d_head, -1)
    return found
