"""What happens at a site, whichever engine gets there: its taps run in order, and each must do so once a pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from interp.errors import EngineError
from interp.models.engines.base import Frame, Record, Reduce, Tap, Taps
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
