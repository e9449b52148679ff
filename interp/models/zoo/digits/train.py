"""Training of the tiny pipeline: noise is taken out of all showings in a shuffled order, once each."""

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
from interp.models.zoo.digits.muon import Muon

_CLIP = 1.0

Each = Callable[[int, StableDiffusionPipeline], None]
"""Called while training as `each(pictures shown so far, the pipeline)`; it may look and must not change."""


def train(
    recipe: Recipe, *, at: Iterable[float] = (), each: Each | None = None, progress: Progress = quiet
) -> StableDiffusionPipeline:
    """Train a tiny pipeline. Equal recipes give equal weights at one number of threads.

    Args:
        recipe: what it sees, and the settings.
        at: parts of the training, 0 to 1, after which `each` is called.
        each: looks at the pipeline on the way, in eval mode.
        progress: told the pictures shown.
    """
    data = digit_set(recipe)
    pipe = build(seed=_seed(recipe, "weights"), prediction=recipe.prediction)
    modules = (pipe.unet, pipe.text_encoder)
    numbers, captions = data.order()
    images = torch.from_numpy(data.images)[:, None] * 2 - 1
    seen, ids, empty = torch.from_numpy(numbers), _ids(pipe, captions), _ids(pipe, [""])
    draws = torch.Generator().manual_seed(_seed(recipe, "noise"))
    optimiser = Muon(modules, recipe.rate, recipe.matrix_rate, recipe.weight_decay)
    steps = -(-len(seen) // recipe.batch)
    stops = {round(part * steps) for part in at}
    for step in range(steps + 1):
        shown = min(step * recipe.batch, len(seen))
        if step in stops and each is not None:
            each(shown, pipe)
        if step == steps:
            break
        rows = slice(shown, shown + recipe.batch)
        dropped = torch.rand(len(seen[rows]), 1, generator=draws) < recipe.dropout
        loss = _loss(pipe, images[seen[rows]], torch.where(dropped, empty, ids[rows]), draws)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(optimiser.weights, _CLIP)
        optimiser.step(_rate(step / steps, recipe.warmup))
        progress(
            min(shown + recipe.batch, len(seen)), len(seen), f"training, loss {float(loss.detach()):.3f}"
        )
    optimiser.zero_grad()
    return pipe


def _seed(recipe: Recipe, what: str) -> int:
    return int(rng_of(what, recipe.seed).integers(2**31))


def _loss(
    pipe: Any, x: Float[Tensor, "b c h w"], tokens: Int[Tensor, "b n"], draws: torch.Generator
) -> Tensor:
    """Mean squared error of what is predicted, at one timestep and one noise a picture."""
    steps = pipe.scheduler.config.num_train_timesteps
    # One timestep from each of the batch's equal parts of the schedule: less spread than independent ones.
    part = (torch.randperm(len(x), generator=draws) + torch.rand(len(x), generator=draws)) / len(x)
    t = (part * steps).long().clamp(max=steps - 1)
    eps = torch.randn(x.shape, generator=draws)
    noisy = pipe.scheduler.add_noise(x, eps, t)
    # Neither module drops anything out, so eval mode, which both are in, is training mode too.
    predicted = pipe.unet(noisy, t, pipe.text_encoder(tokens).last_hidden_state).sample
    velocity = pipe.scheduler.config.prediction_type == "v_prediction"
    target = pipe.scheduler.get_velocity(x, eps, t) if velocity else eps
    return (predicted - target).square().mean()


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
