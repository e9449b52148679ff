"""Detection without the training image: what a pipeline gives away about a prompt while it denoises.

One run of the prompts gives all signals. Where a prompt has a picture of its own, the noise predicted with it is far
from the noise predicted without one (Wen et al. 2024), a single step goes far (Webster 2023), all seeds are pushed the
same way (NeMo, Hintersdorf et al. 2024) and end in the same image. How well a signal tells prompts apart depends on the
other prompts: compare with prompts of as rare words, not with ordinary ones alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from interp.errors import UsageError
from interp.measure.memorization.distances import Encoder, distances, features, pixels
from interp.measure.memorization.similarity import Similarity, pairwise, pearson
from interp.models.cache import Progress, quiet

if TYPE_CHECKING:
    from interp.models.pipeline import Pipeline, Step

Pushed = Literal["noise", "data"]

SIGNALS = {"first": 1, "all": 1, "one_step": 1, "similarity": 1, "spread": -1}
"""Columns of `Signals.table`, and whether memorized prompts have more of it (1) or less (-1)."""


@dataclass(frozen=True, eq=False)
class Signals:
    """What a run of prompts gives away.

    Attributes:
        table: one row a prompt and seed: item (number of the prompt), prompt, seed, first and all (norm of the
            conditional minus the unconditional noise, at the first step and as the mean over all), one_step (mean
            square of the guided noise at the first step: up to the schedule's constant, the mean squared difference
            between the latents that one step gives and the noise they came from), similarity (of where the seed is
            pushed to the most similar other seed's) and spread (median distance of the prompt's images to each other;
            NaN where the run was stopped early).
        steps: one row a prompt, seed and step: item, seed, step, timestep, magnitude.
        images: what was sampled, prompts x seeds; None where the run was stopped early.
    """

    table: pd.DataFrame
    steps: pd.DataFrame
    images: Float[torch.Tensor, "i s c h w"] | None


def signals(
    subject: Pipeline,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    steps: int = 25,
    stop: int | None = None,
    guidance: float = 1.5,
    similarity: Similarity = pearson,
    at: int = 0,
    of: Pushed = "noise",
    encoder: Encoder = pixels,
    batch: int = 32,
    progress: Progress = quiet,
) -> Signals:
    """All signals of each prompt, from one run of each prompt and seed; with `stop=1`, from two rows of the UNet each.

    Args:
        seeds: the same for all prompts, two or more for the signals that compare seeds.
        stop: steps that are run; None for all, which the spread needs.
        guidance: of the run and of `one_step`; both halves are run in any case.
        similarity: of where two seeds are pushed, see `pushed` for `of`. at: number of the step at which that is taken.
            NeMo takes noise differences of the first step. Where all seeds of ordinary prompts are pushed to one mean
            at first, as in a pipeline of few kinds of pictures, predicted pictures of a later step tell more.
        encoder: of images, for the spread.

    Raises:
        UsageError: no prompts or seeds, or a step `at` that is not run.
    """
    if not len(prompts) or not len(seeds):
        raise UsageError(f"{len(prompts)} prompts and {len(seeds)} seeds: at least one of each is needed")
    if not 0 <= at < (steps if stop is None else min(stop, steps)):
        raise UsageError(f"at={at}: that step is not run; write a number from 0 to below `stop`")
    n, s = len(prompts), len(seeds)
    seen = _Seen(subject, n * s, guidance, at, of)
    latents = subject.denoise(
        [p for p in prompts for _ in seeds],
        list(seeds) * n,
        steps=steps,
        stop=stop,
        guidance=guidance,
        both=True,
        each=seen,
        batch=batch,
        progress=progress,
    )
    by_step = pd.DataFrame(seen.rows).sort_values(["row", "step"], ignore_index=True)
    magnitude = by_step.groupby("row")["magnitude"]
    table = pd.DataFrame(
        {
            "item": np.repeat(np.arange(n), s),
            "prompt": [p for p in prompts for _ in seeds],
            "seed": list(seeds) * n,
            "first": magnitude.first().to_numpy(),
            "all": magnitude.mean().to_numpy(),
            "one_step": seen.one_step.numpy(),
            "similarity": np.nan,
            "spread": np.nan,
        }
    )
    if s > 1:
        where = torch.stack([seen.difference[row] for row in range(n * s)]).unflatten(0, (n, s))
        table["similarity"] = pairwise(where, similarity).nan_to_num(-torch.inf).amax(2).flatten().numpy()
    images = None
    if stop is None:
        images = subject.decode(latents).cpu().unflatten(0, (n, s))
        table["spread"] = np.repeat(spread(images, encoder=encoder), s)
    at = by_step.pop("row").to_numpy()
    by_step.insert(0, "item", at // s)
    by_step.insert(1, "seed", np.asarray(seeds)[at % s])
    return Signals(table, by_step, images)


@dataclass
class _Seen:
    """What is kept of the steps: numbers, and where one of them pushes."""

    subject: Pipeline
    n: int
    guidance: float
    at: int
    of: Pushed
    rows: list[dict[str, Any]] = field(default_factory=list)
    difference: dict[int, torch.Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.one_step = torch.zeros(self.n)

    def __call__(self, step: Step) -> None:
        assert step.unconditional is not None
        gap = (step.conditional - step.unconditional).float()
        norms = gap.flatten(1).norm(dim=1).cpu().tolist()
        for row, norm in zip(step.items.tolist(), norms, strict=True):
            self.rows.append({"row": row, "step": step.index, "timestep": step.timestep, "magnitude": norm})
        if step.index == 0:
            guided = step.unconditional.float() + self.guidance * gap
            self.one_step[step.items.cpu()] = guided.square().flatten(1).mean(1).cpu()
        if step.index == self.at:
            moved = pushed(self.subject, step, self.of).cpu()
            self.difference |= dict(zip(step.items.tolist(), moved, strict=True))


def pushed(subject: Pipeline, step: Step, of: Pushed = "noise") -> Float[torch.Tensor, "b c h w"]:
    """Where a step pushes each row, each channel stretched to reach from 0 to 1.

    Args:
        of: `noise`, the noise difference of NeMo: predicted noise minus what it was predicted from. `data`: the picture
            that the prediction stands for, (x - sigma eps) / alpha.
    """
    if of == "noise":
        return stretched(step.conditional - step.x)
    one = torch.ones(1, 1, 1, 1, device=step.x.device, dtype=step.x.dtype)
    alpha, sigma = (subject.add_noise(*pair, step.timestep) for pair in ((one, 0 * one), (0 * one, one)))
    return stretched((step.x - sigma * step.conditional) / alpha)


def stretched(x: Float[torch.Tensor, "b c h w"]) -> Float[torch.Tensor, "b c h w"]:
    """Each channel scaled to reach from 0 to 1, in fp32 or better; a flat one is 0."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    low, high = x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
    return (x - low) / (high - low).clamp(min=1e-12)


def spread(images: Float[torch.Tensor, "i s c h w"], *, encoder: Encoder = pixels) -> Float[np.ndarray, " i"]:
    """Median distance between the images of each item, over pairs of seeds; NaN for a single one."""
    out = []
    for own in images:
        if len(own) < 2:
            out.append(np.nan)
            continue
        found = features(own, encoder)
        first, second = torch.triu_indices(len(own), len(own), 1)
        out.append(float(np.median(distances(found, found)[first, second].numpy())))
    return np.array(out)


def attribution(
    subject: Pipeline,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    at: Sequence[int] = (0,),
    steps: int = 25,
    guidance: float = 1.5,
    batch: int = 32,
) -> pd.DataFrame:
    """How much each token's embedding moves the magnitude: norm of its gradient (Wen et al. 2024, token attribution).

    The embedding is the text encoder's output, in which a token also holds what comes before it.

    Args:
        at: numbers of the steps of the run at which the gradient is taken.

    Returns:
        one row a prompt and token, padding left out: item, prompt, position, token, gradient (mean over seeds and
        steps), share (of the prompt's sum).
    """
    if not len(prompts) or not len(seeds) or not at:
        raise UsageError("attribution needs at least one prompt, one seed and one step")
    n, s = len(prompts), len(seeds)
    times = subject.timesteps(steps).tolist()
    embedded = subject.embed(list(prompts))
    total = torch.zeros(n, embedded.shape[1])

    def take(step: Step) -> None:
        if step.index not in at:
            return
        assert step.unconditional is not None
        items = step.items.cpu() // s
        given = embedded[items.to(embedded.device)].detach().requires_grad_()
        with torch.enable_grad():
            noise = subject.noise(step.x.detach(), times[step.index], given)
            norms = (noise - step.unconditional.detach()).float().flatten(1).norm(dim=1)
            (gradient,) = torch.autograd.grad(norms.sum(), given)
        total.index_add_(0, items, gradient.float().norm(dim=2).cpu() / (s * len(at)))

    subject.denoise(
        embedded.repeat_interleave(s, 0),
        list(seeds) * n,
        steps=steps,
        stop=max(at) + 1,
        guidance=guidance,
        both=True,
        each=take,
        batch=batch,
    )
    tokenizer = subject.pipe.tokenizer
    rows = []
    for i, prompt in enumerate(prompts):
        ids = tokenizer(prompt, truncation=True, max_length=tokenizer.model_max_length).input_ids
        own = total[i, : len(ids)]
        for position, token in enumerate(tokenizer.convert_ids_to_tokens(ids)):
            row = {"item": i, "prompt": prompt, "position": position, "token": token}
            rows.append(row | {"gradient": float(own[position]), "share": float(own[position] / own.sum())})
    return pd.DataFrame(rows)
