"""A small encoder trained on the images themselves, where no copy detector can be loaded.

Two views of one image (shifted, brighter or darker, blurred by noise) come to lie together on the unit sphere, those of
others apart (SimCLR, Chen et al. 2020). It stands in for SSCD: it forgives what a copy may change. It knows nothing of
what a copy is; `Yardstick` calibrates it on held-out images as it does pixels. About ten seconds for 8 x 8 pixels.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float
from torch import nn
from torch.nn.functional import conv2d, cross_entropy, grid_sample, max_pool2d, normalize, silu

from interp.errors import UsageError
from interp.models.cache import Progress
from interp.tasks.base import stable_seed

TEMPERATURE = 0.1


class TrainedEncoder(nn.Module):
    """Two convolutions and a projection onto the unit sphere; a callable from images in [0, 1] to features."""

    def __init__(
        self, channels: int, size: tuple[int, int], width: int, dim: int, generator: torch.Generator
    ):
        super().__init__()
        self.mean, self.scale = 0.0, 1.0
        # Halved once, and then as often as leaves about four pixels a side.
        self.pools = max(1, int(math.log2(max(min(size) / 4, 2))))
        rest = [side // 2**self.pools for side in size]

        def weight(out: int, *into: int) -> nn.Parameter:
            drawn = torch.randn(out, *into, generator=generator)
            return nn.Parameter(drawn * math.sqrt(2 / math.prod(into)))

        self.first = weight(width, channels, 3, 3)
        self.second = weight(2 * width, width, 3, 3)
        self.last = weight(dim, 2 * width * math.prod(rest))
        self.bias = nn.ParameterList(nn.Parameter(torch.zeros(n)) for n in (width, 2 * width))

    def forward(self, images: Float[torch.Tensor, "n c h w"]) -> Float[torch.Tensor, "n d"]:
        x = (images.to(self.first.device).float() - self.mean) / self.scale
        x = silu(conv2d(x, self.first, self.bias[0], padding=1))
        x = silu(conv2d(max_pool2d(x, 2), self.second, self.bias[1], padding=1))
        for _ in range(self.pools - 1):
            x = max_pool2d(x, 2)
        return normalize(x.flatten(1) @ self.last.T, dim=1)


def train_encoder(
    images: Float[torch.Tensor, "n c h w"],
    *,
    dim: int = 64,
    width: int = 32,
    steps: int = 300,
    batch: int = 128,
    seed: int = 0,
    progress: Progress | None = None,
) -> TrainedEncoder:
    """Train an encoder on images in [0, 1]; take training images, each once, and none that is held out.

    Args:
        dim: of the features. width: channels of the first convolution.
        steps, batch: of AdamW, with a rate that falls to zero.

    Raises:
        UsageError: fewer than two images, or a side below four pixels.
    """
    if len(images) < 2 or min(images.shape[-2:]) < 4:
        raise UsageError(f"an encoder needs two images of 4 x 4 pixels or more, not {tuple(images.shape)}")
    entropy = stable_seed("encoder", seed)
    generator = torch.Generator().manual_seed(entropy[0])
    rng = np.random.default_rng(entropy)
    height, across = images.shape[-2:]
    model = TrainedEncoder(images.shape[1], (height, across), width, dim, generator)
    images = images.detach().cpu().float()
    model.mean, model.scale = float(images.mean()), float(images.std().clamp(min=1e-6))
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    batch = min(batch, len(images))
    for step in range(steps):
        chosen = images[torch.from_numpy(rng.choice(len(images), batch, replace=False))]
        views = torch.cat([model(view(chosen, generator)) for _ in range(2)])
        logits = views @ views.T / TEMPERATURE
        logits.fill_diagonal_(-torch.inf)
        loss = cross_entropy(logits, (torch.arange(2 * batch) + batch) % (2 * batch))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if progress:
            progress(step + 1, steps, "encoder")
    return model.eval().requires_grad_(False)


def view(
    images: Float[torch.Tensor, "n c h w"], generator: torch.Generator
) -> Float[torch.Tensor, "n c h w"]:
    """Images shifted by up to a pixel in eight, turned by up to 10 degrees, with other contrast and with noise."""
    n = len(images)

    def draw(low: float, high: float, *shape: int) -> torch.Tensor:
        return low + (high - low) * torch.rand(n, *shape, generator=generator)

    angle = draw(-math.pi / 18, math.pi / 18)
    matrix = torch.stack(
        [angle.cos(), -angle.sin(), draw(-0.25, 0.25), angle.sin(), angle.cos(), draw(-0.25, 0.25)], 1
    )
    grid = nn.functional.affine_grid(matrix.view(n, 2, 3), list(images.shape), align_corners=False)
    moved = grid_sample(images, grid, padding_mode="border", align_corners=False)
    changed = (moved - 0.5) * draw(0.6, 1.4, 1, 1, 1) + 0.5 + draw(-0.15, 0.15, 1, 1, 1)
    return changed + 0.1 * torch.randn(images.shape, generator=generator)
