"""Retention: what a pipeline still does after an edit that should only make it forget.

Four numbers: the Frechet distance of samples to held-out images, the share of samples that a classifier takes for what
their prompt asked for (class alignment), the denoising error on held-out images, and extraction of the memorized items
that were not to be forgotten (`interp.measure.memorization.extraction`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int

from interp.errors import UsageError
from interp.measure.memorization.distances import Encoder, features, pixels
from interp.measure.memorization.objective import loss
from interp.measure.stats import bootstrap_ci, proportion_ci, sign_flip
from interp.tasks.base import stable_seed

if TYPE_CHECKING:
    from interp.models.pipeline import Pipeline
    from interp.models.subject import CausalLM

BEFORE = "before"


def frechet(a: Float[torch.Tensor, "n d"], b: Float[torch.Tensor, "m d"]) -> float:
    """Frechet distance of two sets of features, each taken as a normal distribution (squared 2-Wasserstein distance).

    |mean a - mean b|^2 + tr(A + B - 2 (A B)^(1/2)), with the eigenvalues of A^(1/2) B A^(1/2), which are real.

    Raises:
        UsageError: fewer than two of either.
    """
    if min(len(a), len(b)) < 2:
        raise UsageError("the Frechet distance needs at least two images on each side")
    x, y = a.double(), b.double()
    first, second = (torch.cov(z.T).reshape(z.shape[1], z.shape[1]) for z in (x, y))
    values, vectors = torch.linalg.eigh(first)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root @ second @ root).clamp(min=0).sqrt().sum()
    gap = (x.mean(0) - y.mean(0)).square().sum()
    return float((gap + first.trace() + second.trace() - 2 * cross).clamp(min=0))


def frechet_floor(
    real: Float[torch.Tensor, "n d"], n: int, *, draws: int = 20, seed: int = 0
) -> Float[np.ndarray, " draws"]:
    """Frechet distances of n real images to the other real ones, for random choices: what no sampler can beat.

    The distance of finite sets is never zero, and it falls with their number: compare sets of one size with this.
    """
    if not 2 <= n <= len(real) - 2:
        raise UsageError(f"n={n}: of {len(real)} real images, two at least must stand on each side")
    rng = np.random.default_rng(stable_seed("frechet", n, seed))
    out = []
    for _ in range(draws):
        order = torch.from_numpy(rng.permutation(len(real)))
        out.append(frechet(real[order[:n]], real[order[n:]]))
    return np.array(out)


class Judge:
    """Says which class an image shows: logistic regression or any scikit-learn classifier on features.

    Args:
        images: training images in [0, 1], of all classes. labels: theirs.
        encoder: what the classifier sees. classifier: an unfitted one; default an RBF support vector machine.

    `accuracy(images, labels)` on held-out images is the ceiling of class alignment: report it beside.
    """

    def __init__(
        self,
        images: Float[torch.Tensor, "n c h w"],
        labels: Sequence[Any] | Int[np.ndarray, " n"],
        *,
        encoder: Encoder = pixels,
        classifier: Any = None,
    ):
        from sklearn.base import clone
        from sklearn.svm import SVC

        if len(images) != len(labels):
            raise UsageError(f"{len(images)} images and {len(labels)} labels: a judge learns from pairs")
        self.encoder = encoder
        self.classifier = clone(classifier) if classifier is not None else SVC(C=10.0)
        self.classifier.fit(features(images, encoder).numpy(), np.asarray(labels))

    def classes(self, images: Float[torch.Tensor, "n c h w"]) -> np.ndarray:
        """The class of each image."""
        return np.asarray(self.classifier.predict(features(images, self.encoder).numpy()))

    def right(
        self, images: Float[torch.Tensor, "n c h w"], labels: Sequence[Any] | Int[np.ndarray, " n"]
    ) -> Float[np.ndarray, " n"]:
        """1 where an image shows what it should."""
        if len(images) != len(labels):
            raise UsageError(f"{len(images)} images and {len(labels)} labels: give one each")
        return (self.classes(images) == np.asarray(labels)).astype(float)

    def accuracy(
        self, images: Float[torch.Tensor, "n c h w"], labels: Sequence[Any] | Int[np.ndarray, " n"]
    ) -> float:
        """Share of images whose class is told right."""
        return float(self.right(images, labels).mean())


def sampled(
    samples: Float[torch.Tensor, "i s c h w"],
    labels: Sequence[Any],
    real: Float[torch.Tensor, "n c h w"],
    *,
    judge: Judge,
    encoder: Encoder = pixels,
    seed: int = 0,
) -> pd.DataFrame:
    """What samples of ordinary prompts are worth: class alignment and Frechet distance.

    Args:
        samples: s samples of each prompt. labels: the class that each prompt asks for. real: held-out images.

    Returns:
        rows `alignment` (interval over prompts) and `frechet` (with `floor`, the mean of real images of the same
        number), each with value, ci_lo, ci_hi, n.
    """
    if len(samples) != len(labels):
        raise UsageError(f"{len(samples)} stacks of samples for {len(labels)} labels: give one each")
    flat, per = samples.flatten(0, 1), samples.shape[1]
    prompts = np.repeat(np.arange(len(samples)), per)
    right = judge.right(flat, np.repeat(np.asarray(labels), per))
    low, high = proportion_ci(right, prompts)
    made, known = features(flat, encoder), features(real, encoder)
    held = min(len(flat), len(real) // 2)
    row = {"metric": "alignment", "value": right.mean(), "ci_lo": low, "ci_hi": high, "n": len(right)}
    other = {
        "metric": "frechet",
        "value": frechet(made, known),
        "ci_lo": np.nan,
        "ci_hi": np.nan,
        "n": len(right),
    }
    other["floor"] = float(frechet_floor(known, held, seed=seed).mean())
    return pd.DataFrame([row, other])


def held_out_loss(
    subject: CausalLM | Pipeline, items: Sequence[Any], *, draws: int = 8, seed: int = 0
) -> Float[np.ndarray, " items"]:
    """The training objective on items that were never trained on, one number an item, without a graph."""
    with torch.no_grad():
        return loss(subject, items, draws=draws, seed=seed).double().cpu().numpy()


def compared(
    values: Mapping[str, Float[np.ndarray, " n"]], clusters: Sequence[str], *, seed: int = 0
) -> pd.DataFrame:
    """Numbers of the same items under several conditions, paired with those of `before`.

    Args:
        values: by condition, one of which is `before`.

    Returns:
        one row a condition: condition, value, ci_lo, ci_hi, delta (to `before`), delta_lo, delta_hi, p (sign flips over
        clusters), n.
    """
    if BEFORE not in values:
        raise UsageError(f"no condition {BEFORE!r} to compare with; there are {', '.join(values)}")
    rows = []
    for condition, own in values.items():
        delta = own - values[BEFORE]
        low, high = bootstrap_ci(own, clusters, seed=seed)
        row = {
            "condition": condition,
            "value": own.mean(),
            "ci_lo": low,
            "ci_hi": high,
            "delta": delta.mean(),
        }
        row["delta_lo"], row["delta_hi"] = (
            bootstrap_ci(delta, clusters, seed=seed) if delta.any() else (0.0, 0.0)
        )
        rows.append(row | {"p": sign_flip(delta, clusters, seed=seed), "n": len(own)})
    return pd.DataFrame(rows)
