"""Real digits in three parts, and samples of which it is known how they were made."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from sklearn.datasets import load_digits

TRAIN, HELD = 1080, 360


@cache
def digits() -> tuple[torch.Tensor, np.ndarray]:
    """All digits in [0, 1] in a seeded order, and their labels."""
    values, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(values))
    return torch.tensor(values[order] / 16, dtype=torch.float32).view(-1, 1, 8, 8), labels[order]


def parts() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Training images, held-out images, and others that nobody has seen."""
    images, _ = digits()
    return images[:TRAIN], images[TRAIN : TRAIN + HELD], images[TRAIN + HELD :]


def copies(images: torch.Tensor, scatter: float, seed: int = 0) -> torch.Tensor:
    """The images with noise."""
    generator = torch.Generator().manual_seed(seed)
    return (images + scatter * torch.randn(images.shape, generator=generator)).clamp(0, 1)
