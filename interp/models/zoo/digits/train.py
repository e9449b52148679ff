"""Training of the tiny pipeline, and the folder that it is kept in."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from jaxtyping import Float, Int
from torch import Tensor

from interp.models.cache import Progress, quiet
from interp.models.zoo.digits.build import build
from interp.models.zoo.digits.data import Recipe, digit_set, rng_of

_CLIP = 1.0

Each = Callable[[int, StableDiffusionPipeline], None]
"""Called while training as `each(pictures shown so far, the pipeline)`; it may look and must not change."""


def train(
    recipe: Recipe, *, at: Iterable[float] = (), each: Each | None = None, progress: Progress = quiet
) -> StableDiffusionPipeline:
    """Train a tiny pipeline: noise prediction on all showings in a shuffled order, AdamW with a cosine schedule.

    Args:
        recipe: what it sees, and the settings.
        at: parts of the training, 0 to 1, after which `each` is called.
        each: looks at the pipeline on the way (in eval mode).
        progress: told the pictures shown.

    Equal recipes give equal weights at one thread count; the global random state stays as it was.
    """
    data = digit_set(recipe)
    pipe = build(
        prediction=__import__("os").environ.get("PRED", "epsilon"),
        seed=int(rng_of("weights", recipe.seed).integers(2**31)),
    )
    numbers, captions = data.order()
    images = torch.from_numpy(data.images)[:, None] * 2 - 1
    seen = torch.from_numpy(numbers)
    ids = _ids(pipe, captions)
    empty = _ids(pipe, [""])[0]
    draws = torch.Generator().manual_seed(int(rng_of("noise", recipe.seed).integers(2**31)))
    modules = (pipe.unet, pipe.text_encoder)
    weights = [w for module in modules for w in module.parameters()]
    optimiser = torch.optim.AdamW(weights, lr=recipe.rate, weight_decay=recipe.weight_decay, fused=True)
    steps = -(-len(seen) // recipe.batch)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _rate(step / steps, recipe.warmup))
    stops = sorted({min(steps, max(0, round(part * steps))) for part in at})
    for module in modules:
        module.train()
    for step in range(steps + 1):
        if step in stops and each is not None:
            for module in modules:
                module.eval()
            each(min(step * recipe.batch, len(seen)), pipe)
            for module in modules:
                module.train()
        if step == steps:
            break
        rows = slice(step * recipe.batch, (step + 1) * recipe.batch)
        x, tokens = images[seen[rows]], ids[rows]
        dropped = torch.rand(len(x), generator=draws) < recipe.dropout
        tokens = torch.where(dropped[:, None], empty, tokens)
        loss = _loss(pipe, x, tokens, draws)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, _CLIP)
        optimiser.step()
        schedule.step()
        progress(
            min((step + 1) * recipe.batch, len(seen)), len(seen), f"training, loss {float(loss.detach()):.3f}"
        )
    for module in modules:
        module.eval().requires_grad_(True)
    return pipe


def _loss(
    pipe: Any, x: Float[Tensor, "b c h w"], tokens: Int[Tensor, "b n"], draws: torch.Generator
) -> Tensor:
    """Mean squared error of the predicted noise at one timestep and one noise a picture."""
    steps = pipe.scheduler.config.num_train_timesteps
    # One timestep from each of the batch's equal parts of the schedule: less spread than independent ones.
    part = (torch.randperm(len(x), generator=draws) + torch.rand(len(x), generator=draws)) / len(x)
    t = (part * steps).long().clamp(max=steps - 1)
    eps = torch.randn(x.shape, generator=draws)
    noisy = pipe.scheduler.add_noise(x, eps, t)
    predicted = pipe.unet(noisy, t, pipe.text_encoder(tokens).last_hidden_state).sample
    if pipe.scheduler.config.prediction_type == "v_prediction":
        eps = pipe.scheduler.get_velocity(x, eps, t)
    return (predicted - eps).square().mean()


def _ids(pipe: Any, captions: list[str]) -> Int[Tensor, "b n"]:
    """Token ids, padded as the pipeline pads its prompts."""
    fed = pipe.tokenizer(
        captions, padding="max_length", max_length=pipe.tokenizer.model_max_length, truncation=True
    )
    return torch.tensor(fed["input_ids"])


def _rate(done: float, warmup: float) -> float:
    """Share of the learning rate: a straight rise, then half a cosine down to zero."""
    if done < warmup:
        return done / warmup
    return 0.5 * (1 + math.cos(math.pi * (done - warmup) / (1 - warmup)))
