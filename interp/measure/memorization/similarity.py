"""Similarity of pairs of images: Pearson, cosine, SSIM and MS-SSIM. One call compares many pairs.

MS-SSIM with its usual window (11 pixels, 3 scales) needs 41 pixels a side or more, so tiny models take Pearson or SSIM
with a smaller window. All give 1 for equal images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from jaxtyping import Float
from torch.nn.functional import avg_pool2d, conv2d

from interp.errors import UsageError

Similarity = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Two stacks of images, n c h w, to one number a pair."""

C1, C2 = 0.01**2, 0.03**2
"""Constants of SSIM for values in [0, 1] (Wang et al. 2004)."""


def cosine(a: Float[torch.Tensor, "n c h w"], b: Float[torch.Tensor, "n c h w"]) -> Float[torch.Tensor, " n"]:
    """Cosine of the images as vectors; 0 where one is zero."""
    return torch.nn.functional.cosine_similarity(a.flatten(1).float(), b.flatten(1).float())


def pearson(
    a: Float[torch.Tensor, "n c h w"], b: Float[torch.Tensor, "n c h w"]
) -> Float[torch.Tensor, " n"]:
    """Correlation over all pixels and channels; it knows nothing of brightness and contrast. 0 where one is flat."""
    x, y = (i - i.mean(1, keepdim=True) for i in (a.flatten(1).float(), b.flatten(1).float()))
    return torch.nn.functional.cosine_similarity(x, y)


def ssim(
    a: Float[torch.Tensor, "n c h w"],
    b: Float[torch.Tensor, "n c h w"],
    *,
    kernel: int = 5,
    sigma: float = 1.5,
    scales: Sequence[float] = (1.0,),
) -> Float[torch.Tensor, " n"]:
    """Structural similarity under a Gaussian window, or over several scales with these exponents (MS-SSIM).

    At all scales but the last only contrast and structure count, and their mean is taken as 0 where it is negative.

    Args:
        kernel: side of the window, in pixels. sigma: of its Gaussian.
        scales: exponents, from the full size on; each next scale halves the sides.

    Raises:
        UsageError: the images are smaller than the window at the last scale.
    """
    least = (kernel - 1) * 2 ** (len(scales) - 1) + 1
    if min(a.shape[-2:]) < least:
        raise UsageError(
            f"images of {a.shape[-2]} x {a.shape[-1]} are too small for a window of {kernel} at {len(scales)} scales, "
            f"which needs {least}: take pearson, or ssim with a smaller kernel"
        )
    c = a.shape[1]
    line = torch.arange(kernel, device=a.device) - (kernel - 1) / 2
    line = torch.exp(-(line**2) / (2 * sigma**2))
    window = torch.outer(line, line) / line.sum() ** 2
    window = window.expand(c, 1, kernel, kernel).float()
    a, b = a.float(), b.float()
    out = torch.ones(len(a), device=a.device)
    for i, exponent in enumerate(scales):
        moments = conv2d(torch.cat([a, b, a * a, b * b, a * b]), window, groups=c).chunk(5)
        mean_a, mean_b = moments[:2]
        var_a, var_b = moments[2] - mean_a**2, moments[3] - mean_b**2
        structure = (2 * (moments[4] - mean_a * mean_b) + C2) / (var_a + var_b + C2)
        if last := i == len(scales) - 1:
            structure = structure * (2 * mean_a * mean_b + C1) / (mean_a**2 + mean_b**2 + C1)
        score = structure.flatten(1).mean(1)
        if len(scales) > 1:
            score = score.clamp(min=0) ** exponent
        out = out * score
        if not last:
            a, b = avg_pool2d(a, 2), avg_pool2d(b, 2)
    return out


ms_ssim = partial(ssim, kernel=11, scales=(0.33, 0.33, 0.33))
"""MS-SSIM as NeMo takes it: window of 11, three scales of equal exponents."""


def pairwise(
    images: Float[torch.Tensor, "i s c h w"], similarity: Similarity
) -> Float[torch.Tensor, "i s s"]:
    """Similarity of all pairs among the s images of each item; NaN on the diagonal.

    Raises:
        UsageError: fewer than two images an item.
    """
    n, s = images.shape[:2]
    if s < 2:
        raise UsageError("pairs need at least two images an item: take more seeds")
    first, second = torch.triu_indices(s, s, 1, device=images.device)
    found = similarity(images[:, first].flatten(0, 1), images[:, second].flatten(0, 1)).view(n, -1)
    out = found.new_full((n, s, s), torch.nan)
    out[:, first, second] = out[:, second, first] = found
    return out
