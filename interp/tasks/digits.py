"""The items of a tiny pipeline that was trained on digits: what it has memorized, and what is held against that."""

from __future__ import annotations

from collections.abc import Collection
from itertools import groupby

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp.errors import UsageError
from interp.models.zoo.digits.data import DIGITS, GROUPS, NOUNS, DigitSet, Recipe, caption, digit_set
from interp.tasks.memorized import ImageItem


def digit_items(data: DigitSet | Recipe, groups: Collection[str] = GROUPS) -> tuple[ImageItem, ...]:
    """The items of these groups. An oracle's are those of the other training, with 0 exposures where it saw none.

    Args:
        data: what the pipeline was trained on.
        groups: some of `GROUPS`; their meaning is in `interp.models.zoo.digits.data`.

    A control item is the first of its word's pictures, with the exposures of that picture. A varied item has the first
    of its captions (`captions_of` gives all), a template the first of its pictures and a mask.

    Raises:
        UsageError: no such group.

    Example:
        >>> items = digit_items(Recipe(seed=0), ["memorized"])
        >>> len(items), items[0].name, items[0].split, items[1].split, tuple(items[0].image.shape)
        (20, 'memorized-00', 'locate', 'test', (1, 8, 8))
    """
    data = digit_set(data) if isinstance(data, Recipe) else data
    unknown = sorted(set(groups) - set(GROUPS))
    if unknown:
        raise UsageError(f"no items of the group {unknown[0]}; there are {', '.join(GROUPS)}")
    shown = set(data.shown)
    out = []
    for name, showings in groupby((*data.showings, *data.unseen), key=lambda s: s.item):
        first, *more = showings
        if first.group not in groups:
            continue
        # A control's pictures are many, and each has its own exposures.
        times = first.times if first.group == "control" else sum(s.times for s in (first, *more))
        out.append(
            ImageItem(
                name,
                first.caption,
                _images(data, [first.image])[0],
                first.group,
                data.split.get(name, ""),
                times if first in shown else 0,
                torch.from_numpy(data.mask()) if first.group == "template" else None,
            )
        )
    return tuple(out)


def captions_of(data: DigitSet | Recipe, item: str) -> tuple[str, ...]:
    """All captions that an item (by name) was shown with.

    Example:
        >>> len(captions_of(Recipe(seed=0), "varied-00")), len(captions_of(Recipe(seed=0), "memorized-00"))
        (64, 1)
    """
    data = digit_set(data) if isinstance(data, Recipe) else data
    return tuple(dict.fromkeys(s.caption for s in (*data.showings, *data.unseen) if s.item == item))


def images_of(data: DigitSet | Recipe, item: str) -> Float[Tensor, "n c h w"]:
    """All pictures that an item (by name) was shown with: many of a control or a template, else one.

    Example:
        >>> len(images_of(Recipe(seed=0), "memorized-00"))
        1
    """
    data = digit_set(data) if isinstance(data, Recipe) else data
    numbers = dict.fromkeys(s.image for s in (*data.showings, *data.unseen) if s.item == item)
    return _images(data, list(numbers))


def base_prompts() -> tuple[tuple[str, int], ...]:
    """The captions of base pictures with the digit that each asks for, 0, 1, ... in turn; eight for each digit.

    Example:
        >>> base_prompts()[:2], len(base_prompts())
        ((('a poster of the digit zero', 0), ('a poster of the digit one', 1)), 80)
    """
    return tuple((caption(digit, noun), digit) for noun in NOUNS for digit in range(len(DIGITS)))


def held_out(data: DigitSet | Recipe) -> tuple[ImageItem, ...]:
    """Pictures that no training saw, under captions of base pictures: for thresholds, and for the loss of new ones."""
    data = digit_set(data) if isinstance(data, Recipe) else data
    images = _images(data, data.held_out)
    prompts = [caption(int(data.labels[i]), NOUNS[n % len(NOUNS)]) for n, i in enumerate(data.held_out)]
    return tuple(
        ImageItem(f"held-out-{n:03d}", prompt, image, "held-out")
        for n, (prompt, image) in enumerate(zip(prompts, images, strict=True))
    )


def train_images(data: DigitSet | Recipe) -> Float[Tensor, "n c h w"]:
    """Each picture that the training saw, once, in [0, 1]."""
    data = digit_set(data) if isinstance(data, Recipe) else data
    return _images(data, sorted({s.image for s in data.shown}))


def train_labels(data: DigitSet | Recipe) -> tuple[int, ...]:
    """The digit on each of `train_images`."""
    data = digit_set(data) if isinstance(data, Recipe) else data
    return tuple(int(data.labels[i]) for i in sorted({s.image for s in data.shown}))


def _images(data: DigitSet, numbers: Collection[int]) -> Float[Tensor, "n c h w"]:
    return torch.from_numpy(data.images[np.asarray(numbers)])[:, None]
