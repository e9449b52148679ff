"""Distances between images in the space of an encoder: pixels, or a small trained encoder."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int

from interp.errors import UsageError

Encoder = Callable[[torch.Tensor], torch.Tensor]
"""Images in [0, 1], n c h w, to features, n d; distances are Euclidean between features."""

ROWS = 1024


def pixels(images: Float[torch.Tensor, "n c h w"]) -> Float[torch.Tensor, "n d"]:
    """Pixels one after the other: the plain L2 distance."""
    return images.flatten(1).float()


def features(images: Float[torch.Tensor, "n c h w"], encoder: Encoder = pixels) -> Float[torch.Tensor, "n d"]:
    """Features of images on the CPU, in batches and without a graph.

    Raises:
        UsageError: there are no images, or the features are not finite.
    """
    if not len(images):
        raise UsageError("there is no image to encode")
    with torch.no_grad():
        out = torch.cat([encoder(some).float().cpu() for some in images.split(ROWS)])
    if not out.isfinite().all():
        raise UsageError("features of images are not finite: look at the images, or take another encoder")
    return out


def distances(a: Float[torch.Tensor, "n d"], b: Float[torch.Tensor, "m d"]) -> Float[torch.Tensor, "n m"]:
    """Euclidean distances of all pairs; equal features are at distance zero exactly."""
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")


def nearest(
    queries: Float[torch.Tensor, "n d"],
    among: Float[torch.Tensor, "m d"],
    k: int = 1,
    *,
    others: bool = False,
) -> tuple[Float[torch.Tensor, "n k"], Int[torch.Tensor, "n k"]]:
    """Distance to the k nearest, nearest first, and which those are.

    Args:
        others: the queries are `among` itself, and none is its own neighbour.

    Raises:
        UsageError: there are fewer than k to choose from.
    """
    if not 1 <= k <= len(among) - others:
        raise UsageError(f"{k} nearest neighbours were asked for, among {len(among) - others} images")
    found = []
    for at in range(0, len(queries), ROWS):
        part = distances(queries[at : at + ROWS], among)
        if others:
            rows = torch.arange(len(part))
            part[rows, rows + at] = torch.inf
        found.append(part.topk(k, largest=False))
    return torch.cat([f.values for f in found]), torch.cat([f.indices for f in found])


def unique(images: Float[torch.Tensor, "n c h w"]) -> Float[torch.Tensor, "m c h w"]:
    """Each image once, in the order of first sight: an image that was trained on often is still one neighbour."""
    seen: dict[bytes, int] = {}
    flat = images.detach().cpu().contiguous().flatten(1).numpy()
    for i, row in enumerate(flat):
        seen.setdefault(row.tobytes(), i)
    return images[list(seen.values())]
