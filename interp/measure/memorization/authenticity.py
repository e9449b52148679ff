"""AuthPct and C_T: tests of a whole set of samples for copying. They miss memorization; look at extraction first.

Both ask whether samples lie nearer to the training images than they should. Neither sees a few images that are copied
often among many honest samples, and a training image that stands twice in the training set hides its copies from
AuthPct altogether, since its own nearest neighbour is at distance zero. That is why duplicates count once here unless
asked otherwise. Sources: Alaa et al. 2022 (AuthPct), Meehan et al. 2020 (C_T), Stein et al. 2023 (both fail to detect
memorization reliably).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from scipy import stats

from interp.errors import UsageError
from interp.measure.memorization.distances import Encoder, features, nearest, pixels, unique

COMPONENTS = 64
"""Principal components that C_T keeps of longer features."""

LEAST = 20
"""Samples that a cell of C_T needs to count."""


def authentic(
    samples: Float[torch.Tensor, "n c h w"],
    train: Float[torch.Tensor, "m c h w"],
    *,
    encoder: Encoder = pixels,
    once: bool = True,
) -> Bool[np.ndarray, " n"]:
    """Whether each sample is farther from its nearest training image than that one is from the next training image.

    AuthPct is 100 times the mean.

    Args:
        once: duplicates in the training images count once.
    """
    known = features(unique(train) if once else train, encoder)
    near, at = nearest(features(samples, encoder), known)
    between, _ = nearest(known, known, others=True)
    return (near[:, 0] > between[at[:, 0], 0]).numpy()


@dataclass(frozen=True)
class CopyTest:
    """C_T of a set of samples.

    Attributes:
        value: mean z over the cells, weighted by their share of the test images; far below zero means copying, far
            above zero that the samples miss the training images.
        cells: one row a cell: cell, n_train, n_test, n_samples, z, and counted (enough samples).
    """

    value: float
    cells: pd.DataFrame


def copy_test(
    samples: Float[torch.Tensor, "n c h w"],
    train: Float[torch.Tensor, "m c h w"],
    test: Float[torch.Tensor, "k c h w"],
    *,
    encoder: Encoder = pixels,
    cells: int = 3,
    components: int = COMPONENTS,
    least: int = LEAST,
    seed: int = 0,
) -> CopyTest:
    """C_T: are samples nearer to the training images than test images are, cell by cell?

    The space is cut into cells by k-means on the training images. In each, the Mann-Whitney U of the distances to the
    nearest training image, of samples against test images, is brought to a standard normal z.

    Args:
        test: images that were never trained on. least: a cell counts if it has more samples than this.
        seed: of the cells.

    Raises:
        UsageError: a cell has no test images, or none has samples enough.
    """
    from sklearn.cluster import KMeans
    from sklearn.decomposition import PCA

    known, new, made = (features(x, encoder).double().numpy() for x in (train, test, samples))
    if known.shape[1] > components:
        axes = PCA(components, random_state=seed).fit(known)
        known, new, made = (axes.transform(x) for x in (known, new, made))
    means = KMeans(cells, n_init=10, random_state=seed).fit(known)
    where = [means.predict(x) for x in (known, new, made)]
    rows = []
    for cell in range(cells):
        own_train, own_test, own_made = (
            torch.from_numpy(x[at == cell]) for x, at in zip((known, new, made), where, strict=True)
        )
        if not len(own_test):
            raise UsageError(f"cell {cell} of C_T has no test image: take fewer cells than {cells}")
        counted, z = len(own_made) > least, np.nan
        if len(own_made):
            z = _z(nearest(own_made, own_train)[0].numpy(), nearest(own_test, own_train)[0].numpy())
        row = {"cell": cell, "n_train": len(own_train), "n_test": len(own_test), "n_samples": len(own_made)}
        rows.append(row | {"z": z, "counted": counted})
    table = pd.DataFrame(rows)
    used = table[table["counted"]]
    if used.empty:
        raise UsageError(
            f"no cell of C_T has more than {least} samples: make more samples or take fewer cells"
        )
    return CopyTest(float(np.average(used["z"], weights=used["n_test"])), table)


def _z(made: np.ndarray, new: np.ndarray) -> float:
    """Mann-Whitney U of the first against the second as a standard normal; ties are not corrected for."""
    n, m = made.size, new.size
    u = stats.mannwhitneyu(made.ravel(), new.ravel(), alternative="less").statistic
    return float((u - (n * m / 2 - 0.5)) / np.sqrt(n * m * (n + m + 1) / 12))
