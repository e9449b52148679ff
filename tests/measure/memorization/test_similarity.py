"""Similarities against their definitions, window by window."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from interp.errors import UsageError
from interp.measure.memorization.similarity import cosine, ms_ssim, pairwise, pearson, ssim


def some(n: int, c: int, side: int, seed: int) -> torch.Tensor:
    return torch.rand(n, c, side, side, generator=torch.Generator().manual_seed(seed))


def naive_ssim(a: np.ndarray, b: np.ndarray, kernel: int, sigma: float) -> tuple[float, float]:
    """SSIM and its contrast-structure part, as means over windows and channels."""
    line = np.exp(-((np.arange(kernel) - (kernel - 1) / 2) ** 2) / (2 * sigma**2))
    window = np.outer(line, line) / line.sum() ** 2
    full, part = [], []
    for x, y in zip(a, b, strict=True):
        for i in range(x.shape[0] - kernel + 1):
            for j in range(x.shape[1] - kernel + 1):
                p, q = x[i : i + kernel, j : j + kernel], y[i : i + kernel, j : j + kernel]
                mp, mq = (window * p).sum(), (window * q).sum()
                vp, vq = (window * (p - mp) ** 2).sum(), (window * (q - mq) ** 2).sum()
                both = (window * (p - mp) * (q - mq)).sum()
                structure = (2 * both + 0.0009) / (vp + vq + 0.0009)
                part.append(structure)
                full.append(structure * (2 * mp * mq + 0.0001) / (mp**2 + mq**2 + 0.0001))
    return float(np.mean(full)), float(np.mean(part))


def test_ssim_equals_its_definition() -> None:
    a, b = some(3, 2, 9, 0), some(3, 2, 9, 1)
    found = ssim(a, b, kernel=5)
    expected = [naive_ssim(x, y, 5, 1.5)[0] for x, y in zip(a.numpy(), b.numpy(), strict=True)]
    assert found.tolist() == pytest.approx(expected, abs=1e-5)


def test_ms_ssim_is_the_product_over_scales() -> None:
    b = some(2, 1, 48, 3)
    a = (0.7 * b + 0.3 * some(2, 1, 48, 2)).clamp(0, 1)
    expected = []
    for x, y in zip(a, b, strict=True):
        parts, out = (x.double(), y.double()), 1.0
        for scale in range(3):
            full, structure = naive_ssim(parts[0].numpy(), parts[1].numpy(), 11, 1.5)
            out *= max(full if scale == 2 else structure, 0) ** 0.33
            parts = tuple(torch.nn.functional.avg_pool2d(p[None], 2)[0] for p in parts)
        expected.append(out)
    assert ms_ssim(a, b).tolist() == pytest.approx(expected, abs=1e-4)
    with pytest.raises(
        UsageError, match=r"40 x 40 are too small for a window of 11 at 3 scales, which needs 41"
    ):
        ms_ssim(a[..., :40, :40], b[..., :40, :40])


def test_equal_images_are_alike_and_opposites_are_not() -> None:
    a = some(4, 1, 8, 0)
    for similarity in (cosine, pearson, ssim):
        assert similarity(a, a).tolist() == pytest.approx([1.0] * 4, abs=1e-5)
    assert pearson(a, 1 - a).tolist() == pytest.approx([-1.0] * 4, abs=1e-5)
    assert pearson(a, 0.3 * a + 0.5).tolist() == pytest.approx([1.0] * 4, abs=1e-5)
    assert cosine(a, 1 - a).min() > 0.4
    flat = torch.full_like(a, 0.5)
    assert pearson(a, flat).eq(0).all()
    expected = [
        np.corrcoef(x.ravel(), y.ravel())[0, 1]
        for x, y in zip(a.numpy(), some(4, 1, 8, 1).numpy(), strict=True)
    ]
    assert pearson(a, some(4, 1, 8, 1)).tolist() == pytest.approx(expected, abs=1e-5)


def test_pairs_are_all_pairs_of_one_item() -> None:
    images = some(6, 1, 8, 0).unflatten(0, (2, 3))
    found = pairwise(images, pearson)
    assert found.diagonal(dim1=1, dim2=2).isnan().all()
    for i in range(2):
        for s in range(3):
            for t in range(3):
                if s != t:
                    assert found[i, s, t] == pytest.approx(
                        float(pearson(images[i, [s]], images[i, [t]])), abs=1e-6
                    )
    with pytest.raises(UsageError, match="two images an item"):
        pairwise(images[:, :1], pearson)
