"""NeMo's rule written plainly: one prompt, one set of units and one unit after the other, and hooks on the modules.

It shares nothing with `interp.locate.memorization` but the similarity, which is pluggable.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch


class Naive:
    """The search for one pipeline; `runs` counts UNet rows."""

    def __init__(
        self,
        subject: Any,
        modules: Sequence[Any],
        similarity: Callable[..., torch.Tensor],
        steps: int,
        at: int,
        of: str = "noise",
    ):
        self.subject, self.modules, self.similarity = subject, list(modules), similarity
        self.steps, self.at, self.of, self.runs = steps, at, of, 0

    def hooked(self, blocked: Sequence[Sequence[int]]) -> list[Any]:
        handles = []
        for module, units in zip(self.modules, blocked, strict=True):

            def hook(_: Any, __: Any, out: torch.Tensor, units: Sequence[int] = units) -> torch.Tensor:
                out = out.clone()
                out[:, :, list(units)] *= 0
                return out

            handles.append(module.register_forward_hook(hook))
        return handles

    @torch.no_grad()
    def difference(self, prompt: str, seed: int, blocked: Sequence[Sequence[int]]) -> torch.Tensor:
        """One run up to the step with diffusers' own parts: no guidance, the text alone."""
        pipe = self.subject.pipe
        ids = pipe.tokenizer(
            [prompt], padding="max_length", max_length=pipe.tokenizer.model_max_length, return_tensors="pt"
        ).input_ids
        text = pipe.text_encoder(ids)[0]
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(1, *self.subject.latent_shape, generator=generator, dtype=text.dtype)
        pipe.scheduler.set_timesteps(self.steps)
        handles = self.hooked(blocked)
        try:
            for t in pipe.scheduler.timesteps[: self.at + 1]:
                self.runs += 1
                noise, before = pipe.unet(x, t, encoder_hidden_states=text).sample, x
                x = pipe.scheduler.step(noise, t, x).prev_sample
        finally:
            for handle in handles:
                handle.remove()
        moved, share = noise - before, pipe.scheduler.alphas_cumprod[t].double()
        if self.of == "data":
            moved = (before - (1 - share).sqrt() * noise) / share.sqrt()
        low, high = moved.amin((2, 3), keepdim=True), moved.amax((2, 3), keepdim=True)
        return (moved - low) / (high - low)

    @torch.no_grad()
    def activity(self, prompt: str) -> list[torch.Tensor]:
        """Mean over tokens of |output| of each module, read while the UNet runs."""
        out: list[torch.Tensor] = []
        handles = [
            m.register_forward_hook(lambda _, __, y: out.append(y[0].abs().mean(0))) for m in self.modules
        ]
        self.difference(prompt, 0, [[] for _ in self.modules])
        for handle in handles:
            handle.remove()
        return out[: len(self.modules)]

    def gate(self, prompt: str, seeds: Sequence[int], threshold: float) -> list[int]:
        whole = {s: self.difference(prompt, s, [[] for _ in self.modules]) for s in seeds}
        return [
            s
            for s in seeds
            if max(float(self.similarity(whole[s], whole[t])) for t in seeds if t != s) > threshold
        ]

    def find(
        self,
        prompt: str,
        reference: Sequence[str],
        seeds: Sequence[int],
        threshold: float,
        rungs: Sequence[tuple[float, int]],
    ) -> dict[str, Any] | None:
        """The units of a prompt, or None where it is skipped."""
        chosen = self.gate(prompt, seeds, threshold)
        if not chosen:
            return None
        known = [torch.stack(layer) for layer in zip(*(self.activity(p) for p in reference), strict=True)]
        own = self.activity(prompt)
        whole = {s: self.difference(prompt, s, [[] for _ in self.modules]) for s in chosen}

        def left(blocked: Sequence[Sequence[int]]) -> float:
            return max(float(self.similarity(whole[s], self.difference(prompt, s, blocked))) for s in chosen)

        limit = threshold
        rung = -1
        for theta, k in rungs:
            rung, blocked = rung + 1, []
            for values, active in zip(known, own, strict=True):
                z = (active - values.mean(0)).abs() / values.std(0)
                # Entries may stand twice, as in the reference.
                blocked.append(
                    (z > theta).nonzero().flatten().tolist() + active.topk(min(k, len(z))).indices.tolist()
                )
            similar = left(blocked)
            if similar <= threshold:
                break
        else:
            limit = similar
        initial = [sorted(set(b)) for b in blocked]
        for layer in reversed(range(len(blocked))):
            if not blocked[layer]:
                continue
            trial = [b if i != layer else [] for i, b in enumerate(blocked)]
            if left(trial) < limit:
                blocked = trial
        for layer in reversed(range(len(blocked))):
            for unit in list(blocked[layer]):
                trial = [list(b) for b in blocked]
                trial[layer].remove(unit)
                if left(trial) < limit:
                    blocked = trial
        return {
            "seeds": len(chosen),
            "rung": rung,
            "initial": initial,
            "initial_similarity": similar,
            "units": [sorted(set(b)) for b in blocked],
            "similarity": left(blocked),
        }
