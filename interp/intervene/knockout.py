"""Knockout: edges from some rows of a head to named keys removed, and the rest of the row renormalised.

The edges' scores become minus infinity before the softmax, so what is left sums to one again (attention knockout, Geva
et al. 2023, arXiv 2304.14767). A row that is left without a key has nothing to normalise: its head's output is zero
there. The mask of a layer that is cut is made for each head; the pass of a whole prompt therefore takes heads x queries
x keys bits in it, while `subject.each` runs, and masks, the rows from the first that is cut on.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool

from interp.errors import EngineError, UsageError
from interp.intervene.base import Scope
from interp.intervene.where import Units
from interp.models.batch import Batch, Prompt, role_tokens
from interp.models.engines.attention import PREFIX, AttentionCall
from interp.models.engines.base import Frame
from interp.models.subject import CausalLM

NEEDLE = "evidence, else value"
"""Name of the keys that are meant where none are given."""

_KERNELS = ("sdpa", "eager")


@dataclass(frozen=True)
class Keys:
    """Which keys are knocked out, and which rows that leaves with none.

    Attributes:
        batch: the batch that is run.
        keys: span roles, token positions, `all` or `answer`; None for each example's evidence, or its value where it
            has no evidence.
        window: keys that a row of the layer sees, its own included; None for all before it.
    """

    batch: Batch
    keys: Scope | None
    window: int | None = None

    def columns(self, end: int) -> Bool[torch.Tensor, "b s"]:
        """The keys that are knocked out, among the first `end` columns.

        Raises:
            UsageError: an example has no such span or position.
        """
        if self.keys is not None:
            return self.batch.scope_columns(self.keys, 0, end)
        if not self.batch.examples:
            raise UsageError("knockout: a batch of bare ids has no evidence; name keys by their positions")
        out = torch.zeros(len(self.batch), end, dtype=torch.bool, device=self.batch.ids.device)
        for row, example in enumerate(self.batch.examples):
            at = torch.tensor(_needle(example), device=out.device) + self.batch.pad[row]
            out[row, at] = True
        return out

    def of(self, frame: Frame) -> Bool[torch.Tensor, "b s"]:
        """The keys that are knocked out, among the columns up to the end of a pass; found once a pass."""
        key = "knocked out", self.keys, frame.past, frame.width
        if key not in frame.memo:
            frame.memo[key] = self.columns(frame.past + frame.width)
        found: torch.Tensor = frame.memo[key]
        return found

    def reached(self) -> Bool[torch.Tensor, "b t"]:
        """Columns of the batch whose rows may lose a key: those from the first one knocked out on."""
        return self.columns(self.batch.width).cumsum(1) > 0

    def blind(self, frame: Frame) -> Bool[torch.Tensor, "b t"]:
        """Columns of a pass whose rows have no key left."""
        key = "blind", self.keys, self.window, frame.past, frame.width
        if key not in frame.memo:
            end = frame.past + frame.width
            before = torch.nn.functional.pad(self.of(frame).cumsum(1), (1, 0))
            column = torch.arange(end, device=before.device)
            first = self.batch.pad[:, None].expand(-1, end)
            if self.window is not None:
                first = torch.maximum(first, column[None] - self.window + 1)
            seen = column[None] + 1 - first
            lost = before[:, 1:] - before.gather(1, first)
            frame.memo[key] = ((lost == seen) & (seen > 0))[:, frame.columns]
        found: torch.Tensor = frame.memo[key]
        return found


def _needle(example: Prompt) -> list[int]:
    found = role_tokens(example, "evidence") or role_tokens(example, "value")
    if not found:
        have = " ".join(sorted({s.role for s in example.spans})) or "no spans"
        raise UsageError(
            f"knockout: an example has neither evidence nor value (it has {have}); write keys=role or positions"
        )
    return found


def window_of(subject: CausalLM, layer: int) -> int | None:
    """Keys that a row of a layer sees by the model's config; None for all before it."""
    types = getattr(subject.config, "layer_types", None)
    if types is not None and types[layer] != "sliding_attention":
        return None
    size: int | None = getattr(subject.config, "sliding_window", None)
    return size


def check_kernel(subject: CausalLM, what: str = "mode 'knockout'") -> None:
    """Raise `EngineError` if the model's attention kernel takes no mask of rows by keys."""
    kernel = str(subject.config._attn_implementation).removeprefix(PREFIX)
    if kernel not in _KERNELS:
        raise EngineError(
            f"{what} edits the attention mask, which kernel '{kernel}' does not take; "
            "load with attn_implementation='sdpa'"
        )


@dataclass(frozen=True)
class Knockout:
    """A tap at `attention`: the edges are masked, but in rows that would be left without a key (see `Silence`)."""

    where: Units
    keys: Keys

    def edit(self, call: AttentionCall, frame: Frame) -> AttentionCall:
        device = call.q.device
        cut = self.where.mask(frame).to(device).transpose(1, 2)  # b h t
        # A cache may have dropped the first keys of a window, so columns are counted from the end.
        gone = self.keys.of(frame)[:, -call.k.shape[2] :].to(device)[:, None, None]
        mask = mask_of(call)
        visible = visible_in(mask)
        blind = ~(visible & ~gone).any(-1)  # b 1|h t
        told = self.keys.blind(frame).to(device)[:, None]
        real = _real(self.keys.batch, frame).to(device)[:, None]
        if bool(((blind != told) & cut & real).any()):
            raise EngineError(
                f"attention[{call.layer}]: rows see other keys than the model's config and this knockout say; "
                "name all keys in one knockout, and edit the mask in no other way beside it"
            )
        edges = (cut & ~blind)[..., None] & gone
        hidden = (
            mask & ~edges
            if mask.dtype == torch.bool
            else mask.masked_fill(edges, torch.finfo(mask.dtype).min)
        )
        return call.with_(mask=hidden)


@dataclass(frozen=True)
class Silence:
    """A tap at `z`: zero where a knockout leaves a row without a key."""

    where: Units
    keys: Keys

    def edit(self, value: torch.Tensor, frame: Frame) -> torch.Tensor | None:
        blind = self.keys.blind(frame)[..., None] & self.where.mask(frame)
        return value.masked_fill(blind.to(value.device)[..., None], 0.0)


def _real(batch: Batch, frame: Frame) -> Bool[torch.Tensor, "b t"]:
    """Columns of a pass that hold a token."""
    columns = torch.arange(frame.past, frame.past + frame.width, device=batch.ids.device)
    return columns[None] >= batch.pad[:, None]


def mask_of(call: AttentionCall) -> torch.Tensor:
    """The mask of a call, b|1 h|1 t s: boolean (True: visible) or additive; made where the kernel needs none."""
    if call.mask is not None:
        if call.mask.ndim != 4:
            raise EngineError(
                f"attention[{call.layer}]: a mask of {call.mask.ndim} dimensions cannot hide single edges"
            )
        return call.mask
    t, s = call.q.shape[2], call.k.shape[2]
    query = torch.arange(s - t, s, device=call.q.device)[:, None]
    key = torch.arange(s, device=call.q.device)[None]
    visible = key <= query
    if call.window is not None:
        visible &= key > query - call.window
    return visible[None, None]


def visible_in(mask: torch.Tensor) -> Bool[torch.Tensor, "b _h t s"]:
    """Which keys each row of a boolean or additive mask sees."""
    return mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
