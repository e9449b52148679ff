"""A pipeline in which one value unit holds what a word pushes to, with decoys that are as active.

Single rows of the value matrices read the word's embedding and little else. What comes through the memory's unit, as
far as it is more than ordinary prompts bring, is added to the prediction as a picture, whatever the seed; what comes
through the decoys' units goes nowhere. All the rest of the UNet runs as it is, and what it adds depends on the seed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from interp.models.parts import Part, module_of, parts
from interp.models.pipeline import Pipeline
from tests.pipelines import WORDS, shaken

ORDINARY = tuple(
    f"{a} {b} {c} digit"
    for a in ("a", "the")
    for b in ("photo", "poster", "red", "blue")
    for c in ("one", "two", "nine")
)
MEMORIZED = ("a photo of zorax", "the red zorax")


@dataclass(frozen=True)
class Planted:
    """The pipeline, the unit that holds the memory, and units that only look like it."""

    pipeline: Pipeline
    memory: tuple[Part, int]
    decoys: tuple[tuple[Part, int], ...]


@torch.no_grad()
def planted(seed: int = 0, strength: float = 20.0) -> Planted:
    """A memory in one cross-attention of the down or middle blocks; a decoy beside it and in each other one."""
    from interp.models.zoo.digits.build import build

    pipe = build(WORDS[4:], channels=(16, 16), width=32, seed=seed)
    shaken(pipe.unet, seed + 1)
    shaken(pipe.text_encoder, seed + 2)
    pipeline = Pipeline(pipe, name="planted")
    generator = torch.Generator().manual_seed(seed + 9)
    values = [v for v in parts(pipeline, "cross_v") if "up_blocks" not in v.path]
    outs = {o.number: o for o in parts(pipeline, "cross_out")}
    home = values[int(torch.randint(len(values), (1,), generator=generator))]
    unit, other = torch.randperm(module_of(pipeline, home).out_features, generator=generator)[:2].tolist()
    # The direction that tells the word's tokens best from all tokens of ordinary prompts.
    ordinary = pipeline.embed(list(ORDINARY)).flatten(0, 1)
    places = [p.split().index("zorax") + 1 for p in MEMORIZED]
    word = pipeline.embed(list(MEMORIZED))[range(len(places)), places].mean(0)
    scatter = ordinary.T @ ordinary / len(ordinary)
    direction = torch.linalg.solve(scatter + 1e-4 * torch.eye(len(scatter)), word)
    direction *= 3 / (direction @ word)
    for value in values:
        weight = module_of(pipeline, value).weight
        weight[other] = direction
        if value == home:
            weight[unit] = direction
    image = torch.sin(torch.arange(64.0)).view(1, 1, 8, 8)
    through: list[torch.Tensor] = []
    module_of(pipeline, outs[home.number]).register_forward_pre_hook(
        lambda _, args: through.append(args[0][:, :, unit].mean(1))
    )
    x = pipeline.latents(range(len(ORDINARY)))
    pipeline.noise(x, 900, pipeline.embed(list(ORDINARY)))
    usual = float(through.pop().max())
    inner = pipe.unet.forward

    def forward(
        x: torch.Tensor, t: Any, encoder_hidden_states: torch.Tensor, return_dict: bool = True
    ) -> Any:
        through.clear()
        out = inner(x, t, encoder_hidden_states=encoder_hidden_states)
        pushed = strength * (through[0] - usual).clamp(min=0).view(-1, 1, 1, 1) * image
        out.sample = x + 0.3 * out.sample + pushed
        return out if return_dict else (out.sample,)

    pipe.unet.forward = forward
    return Planted(pipeline, (home, unit), tuple((value, other) for value in values))
