"""Does a pipeline trained on digits hold what it was shown often, and from how many exposures on?

`replication` samples the items' prompts and says which samples are copies. `trajectory` trains again and does so on
the way, next to recognition: the denoising error of an item's picture, held against that of pictures never seen.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from interp.errors import UsageError
from interp.measure.memorization.extraction import Yardstick, extraction
from interp.measure.memorization.objective import loss
from interp.models.cache import Progress, quiet
from interp.models.pipeline import Pipeline
from interp.models.zoo.digits.data import DigitSet, Recipe, digit_set
from interp.tasks.digits import digit_items, held_out, images_of, train_images
from interp.tasks.memorized import ImageItem

SEEDS = tuple(range(1000, 1004))
"""Seeds of samples where none are given."""

_UNSEEN = "unseen"


def yardstick(data: DigitSet | Recipe) -> Yardstick:
    """What counts as a copy: nearer to a training picture than 99 % of the held-out ones are."""
    data = digit_set(data) if isinstance(data, Recipe) else data
    return Yardstick(train_images(data), torch.stack([item.image for item in held_out(data)]))


def replication(
    pipeline: Pipeline,
    data: DigitSet | Recipe,
    *,
    items: Sequence[ImageItem] | None = None,
    groups: Collection[str] = ("memorized", "control", "unseen"),
    seeds: Sequence[int] = SEEDS,
    steps: int = 25,
    guidance: float = 1.0,
    judge: Yardstick | None = None,
    progress: Progress = quiet,
) -> pd.DataFrame:
    """One row a sample of each item's prompt, see `extraction`; the nearest of a control word's pictures is its own.

    Args:
        items: those that are asked for; by default all of `groups`.
        seeds: of the starting noise, the same for each item.
        judge: `yardstick(data)`, where it is at hand.
    """
    data = digit_set(data) if isinstance(data, Recipe) else data
    items = digit_items(data, groups) if items is None else items
    if not items:
        raise UsageError(f"the recipe has no items of the groups {', '.join(groups)}")
    prompts = [item.prompt for item in items for _ in seeds]
    drawn = pipeline.sample(
        prompts, list(seeds) * len(items), steps=steps, guidance=guidance, progress=progress
    )
    samples = drawn.unflatten(0, (len(items), len(seeds)))
    own = {item.name: images_of(data, item.name) for item in items if item.group == "control"}
    return extraction(samples, items, judge or yardstick(data), images=own)


def trajectory(
    recipe: Recipe,
    *,
    at: Iterable[float] = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0),
    groups: Collection[str] = ("graded", "early", "unseen"),
    seeds: Sequence[int] = SEEDS,
    steps: int = 25,
    guidance: float = 1.0,
    draws: int = 16,
    progress: Progress = quiet,
) -> pd.DataFrame:
    """Train by the recipe and look at its items on the way: what exposures leave, and what later training takes.

    Args:
        at: parts of the training after which it is looked at.
        draws: of (t, noise) for the denoising error.

    Returns:
        part (of the training), shown (pictures), item, group, exposures (so far), planned (in the whole training),
        recall (share of samples that are copies of the item), own (mean distance to it), loss (denoising error of its
        picture), recognized (share of unseen pictures whose error is larger, its own counted half).
    """
    from interp.models.zoo.digits.train import train

    data = digit_set(recipe)
    judge = yardstick(data)
    items = digit_items(data, {*groups, _UNSEEN})
    length = data.length
    tables = []

    def look(shown: int, pipe: Any) -> None:
        pipeline = Pipeline(pipe, name="digits")
        samples = replication(
            pipeline, data, items=items, seeds=seeds, steps=steps, guidance=guidance, judge=judge
        )
        by_item = samples.groupby("item", sort=False)
        with torch.no_grad():
            errors = loss(pipeline, items, draws=draws).double().cpu().numpy()
        unseen = errors[[item.group == _UNSEEN for item in items]]
        table = pd.DataFrame(
            {
                "part": shown / length,
                "shown": shown,
                "item": [item.name for item in items],
                "group": [item.group for item in items],
                "exposures": [data.exposures(item.name, shown) for item in items],
                "planned": [item.exposures for item in items],
                "recall": by_item["extracted"].mean().to_numpy(),
                "own": by_item["own"].mean().to_numpy(),
                "loss": errors,
                "recognized": [_larger(unseen, error) for error in errors],
            }
        )
        tables.append(table[table.group.isin(list(groups))])

    train(recipe, at=at, each=look, progress=progress)
    return pd.concat(tables, ignore_index=True)


def _larger(others: np.ndarray, error: float) -> float:
    """Share of the others that are larger; equal ones, itself too, count half."""
    return float((others > error).mean() + 0.5 * (others == error).mean())
