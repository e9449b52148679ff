"""KV-prefix reuse: one prefill of a prompt, and every `answer`-scope condition branches off its cache.

A cut of scope `answer` leaves the prompt's keys and values alone up to the last token, so all conditions of an example
share one prefill. The branches are packed into one sequence: each condition's tokens see the prompt and their own
predecessors, by a block-diagonal mask, so that keys and values of the prompt are neither copied nor read again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float

from interp.errors import UsageError
from interp.intervene.base import Intervention, lower_conditions
from interp.models.batch import Batch
from interp.models.subject import CausalLM
from interp.tasks.base import Example

MAX_PACKED = 512
"""Tokens packed into one pass: bounds the memory of the logits."""


class Prefix:
    """The KV cache of an example's prompt without its last token, from which answer rows branch.

    Args:
        subject: the model, with no intervention applied.
        example: prompt and forced answer.
    """

    def __init__(self, subject: CausalLM, example: Example):
        from transformers import DynamicCache

        if subject._edits:
            raise UsageError(
                "a shared prefix is the intact model's; measure conditions instead of applying them"
            )
        subject.check_length(len(example.full_ids))
        self.subject = subject
        self.example = example
        self.length = len(example.ids) - 1
        self.suffix = example.ids[-1:] + example.answer_ids[:-1]
        # A cache of full layers for every family: sliding windows are kept by the mask, and it can be cropped.
        self.cache: Any = DynamicCache()
        if self.length:
            batch = Batch.of_ids([example.ids[:-1]], device=subject.device)
            subject.run(batch, keep=1, cache=self.cache)

    def run(self, conditions: Sequence[Intervention | None]) -> Float[torch.Tensor, "c m v"]:
        """Logits of the rows that predict the answer, under each condition (None: intact), in fp32.

        Raises:
            UsageError: a condition reaches outside the scope `answer`.
        """
        for condition in conditions:
            if condition is not None and any(
                atom.describe()["scope"] != "answer" for atom in condition.atoms()
            ):
                raise UsageError(
                    f"{condition} changes the prompt; only conditions of scope 'answer' share a prefix"
                )
        per = max(1, MAX_PACKED // len(self.suffix))
        parts = [self._packed(conditions[i : i + per]) for i in range(0, len(conditions), per)]
        return torch.cat(parts)

    def _packed(self, conditions: Sequence[Intervention | None]) -> torch.Tensor:
        c, m, s = len(conditions), len(self.suffix), self.length
        device = self.subject.device
        flat = Batch.of_ids([[*self.example.ids[:-1], *self.suffix * c]], device=device)
        place = torch.arange(m, device=device).repeat(c)
        positions = torch.cat([torch.arange(s, device=device), s + place])[None]
        batch = Batch(
            flat.ids, flat.mask, positions, flat.pad, torch.tensor([s], device=device), (self.example,), True
        )
        of = torch.zeros(1, s + c * m, dtype=torch.long, device=device)
        of[0, s:] = torch.arange(c, device=device).repeat_interleave(m)
        taps = lower_conditions(self.subject, batch, conditions, of)
        mask = self._mask(of[0, s:], place)
        try:
            trace = self.subject.run(batch, taps, keep=c * m, cache=self.cache, past=s, mask=mask)
        finally:
            self.cache.crop(-(self.cache.get_seq_length() - s))
        return trace.logits[0].view(c, m, -1).float()

    def _mask(self, condition: torch.Tensor, place: torch.Tensor) -> Any:
        """Additive masks, 1 1 t s+t: the whole prompt, and the same condition's earlier tokens."""
        own = (condition[:, None] == condition[None]) & (place[:, None] >= place[None])
        seen = torch.cat([own.new_ones(len(place), self.length), own], dim=1)
        at = torch.cat([torch.arange(self.length, device=place.device), self.length + place])
        distance = (self.length + place)[:, None] - at[None]
        config = self.subject.config
        window = getattr(config, "sliding_window", None)
        if getattr(config, "use_sliding_window", True) is False:
            window = None
        near = seen if window is None else seen & (distance < window)
        full, sliding = (self._additive(visible) for visible in (seen, near))
        types = getattr(config, "layer_types", None)
        if types is None:
            return sliding  # one kind of layer, windowed where the config says so
        if "sliding_attention" in types:
            return {"full_attention": full, "sliding_attention": sliding}
        return full

    def _additive(self, visible: torch.Tensor) -> torch.Tensor:
        dtype = self.subject.dtype
        mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
        return mask.masked_fill_(~visible, torch.finfo(dtype).min)[None, None]
