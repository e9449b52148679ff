"""The published Wanda contrast, word for word: one prompt at a time, a target run and a base run, all steps.

Written from the rule, with hooks on a diffusers pipeline alone; nothing of `interp` is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


class Norms:
    """Column norms of what `ff.net.2` reads, by call and layer: a_j <- sqrt(a_j^2 + |X_j|^2), tokens of length one."""

    def __init__(self, pipe: Any):
        self.pipe = pipe
        self.layers = {n: m for n, m in pipe.unet.named_modules() if n.endswith("ff.net.2")}
        self.norms: dict[tuple[int, str], torch.Tensor] = {}
        self.rows = self.call = 0

    def run(self, prompt: str, seed: int, steps: int, guidance: float, half: int | None = None) -> None:
        """One prompt through the whole pipeline; `half`: 0 the unconditional rows alone, 1 the conditional ones."""
        self.call = -1

        def begin(module: Any, args: Any, kwargs: Any) -> None:
            self.call += 1
            self.rows += len(args[0] if args else kwargs["sample"])

        def hook(name: str) -> Any:
            def keep(module: Any, args: Any) -> None:
                x = args[0].detach().double()
                x = x if half is None else x.chunk(2)[half]
                x = x.flatten(0, 1)
                x = x / x.norm(dim=1, keepdim=True)
                old = self.norms.get((self.call, name), torch.zeros(x.shape[1], dtype=x.dtype))
                self.norms[self.call, name] = (old**2 + x.norm(dim=0) ** 2).sqrt()

            return keep

        handles = [m.register_forward_pre_hook(hook(n)) for n, m in self.layers.items()]
        handles.append(self.pipe.unet.register_forward_pre_hook(begin, with_kwargs=True))
        generator = torch.Generator().manual_seed(seed)
        try:
            self.pipe(
                prompt,
                num_inference_steps=steps,
                guidance_scale=guidance,
                generator=generator,
                output_type="latent",
            )
        finally:
            for handle in handles:
                handle.remove()


def norms(
    pipe: Any,
    prompts: Sequence[str],
    *,
    seed: int = 0,
    steps: int,
    guidance: float,
    half: int | None = None,
) -> Norms:
    """Norms over prompts, one run each."""
    out = Norms(pipe)
    for prompt in prompts:
        out.run(prompt, seed, steps, guidance, half)
    return out


def union_mask(target: Norms, base: Norms, share: float, tau: int) -> dict[str, torch.Tensor]:
    """By layer, the union over the first tau calls of top-share-of-each-row and stronger-on-target."""
    out = {}
    for name, module in target.layers.items():
        weight = module.weight.detach().abs().double()
        mask = torch.zeros_like(weight, dtype=torch.bool)
        for call in range(tau):
            on, off = weight * target.norms[call, name], weight * base.norms[call, name]
            for row, (mine, other) in enumerate(zip(on.tolist(), off.tolist(), strict=True)):
                best = sorted(range(len(mine)), key=lambda j, of=mine: -of[j])  # type: ignore[misc]
                for j in best[: int(share * len(mine))]:
                    mask[row, j] |= mine[j] > other[j]
        out[name] = mask
    return out
