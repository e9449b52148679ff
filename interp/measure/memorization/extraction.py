"""Extraction: which samples are copies of training images, by thresholds that honest images calibrate.

A copy is nearer to a training image than held-out images of the same kind ever are: the threshold is a low quantile
(1 %) of the distance of held-out images to their nearest training image, so it is the false-positive rate of images
that are new for sure. The same is done for the ratio of that distance to the mean distance to the 50 nearest ones
(Carlini et al. 2023, whose rule flags half of that mean), which allows for images that are near to everything.
Duplicates in the training images count once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int

from interp.errors import UsageError
from interp.measure.memorization.distances import Encoder, distances, features, nearest, pixels, unique
from interp.measure.stats import proportion_ci


class Item(Protocol):
    """An image, whose it is and how often it was shown; `ImageItem` is one."""

    @property
    def name(self) -> str: ...
    @property
    def image(self) -> Float[torch.Tensor, "c h w"]: ...
    @property
    def group(self) -> str: ...
    @property
    def split(self) -> str: ...
    @property
    def exposures(self) -> int: ...
    @property
    def mask(self) -> Bool[torch.Tensor, "h w"] | None: ...


class Near(NamedTuple):
    """The nearest training image: its distance, which one it is, and the mean distance of the k nearest ones."""

    distance: Float[np.ndarray, " n"]
    at: Int[np.ndarray, " n"]
    around: Float[np.ndarray, " n"]

    @property
    def ratio(self) -> Float[np.ndarray, " n"]:
        """Calibrated distance: 1 where the nearest is as far as the others."""
        return self.distance / np.maximum(self.around, np.finfo(float).tiny)


class Yardstick:
    """What counts as a copy of a training image.

    Args:
        train: training images in [0, 1]. heldout: images of the same kind that were never trained on.
        encoder: the space in which distances are taken.
        quantile: of the held-out images' distances: the share of them that would be called copies.
        neighbours: of the ratio; fewer where there are fewer training images.
        mask: pixels that count, for template memorization: what varies between the copies is left out. All else is set
            to black before it is encoded.

    Attributes:
        train, train_features: each training image once.
        threshold, ratio_threshold: below these an image is a copy.
        null, null_ratio: distance and ratio of each held-out image.

    Raises:
        UsageError: no images, fewer than 1 / quantile held-out ones, or one that is among the training images.
    """

    def __init__(
        self,
        train: Float[torch.Tensor, "n c h w"],
        heldout: Float[torch.Tensor, "m c h w"],
        *,
        encoder: Encoder = pixels,
        quantile: float = 0.01,
        neighbours: int = 50,
        mask: Bool[torch.Tensor, "h w"] | None = None,
    ):
        if not 0 < quantile < 1 or len(heldout) < 1 / quantile:
            raise UsageError(
                f"{len(heldout)} held-out images cannot tell a quantile of {quantile}: give at least 1 / quantile"
            )
        if mask is not None and not mask.any():
            raise UsageError("the mask has no pixel: mark the part of the template that stays the same")
        self._images = unique(train), unique(heldout)
        if len(unique(torch.cat(self._images))) < len(self._images[0]) + len(self._images[1]):
            raise UsageError(
                "held-out images are among the training images: a threshold needs images that are new"
            )
        self.encoder = encoder
        self.quantile = quantile
        self.mask = mask
        self.train = unique(self.seen(train))
        self.train_features = features(self.train, encoder)
        self.neighbours = min(neighbours, len(self.train))
        near = self.measure(heldout)
        self.null, self.null_ratio = near.distance, near.ratio
        self.threshold = float(np.quantile(self.null, quantile))
        self.ratio_threshold = float(np.quantile(self.null_ratio, quantile))

    def seen(self, images: Float[torch.Tensor, "n c h w"]) -> Float[torch.Tensor, "n c h w"]:
        """The images with the mask on."""
        return images if self.mask is None else images * self.mask.to(images.device)

    def within(self, mask: Bool[torch.Tensor, "h w"]) -> Yardstick:
        """The same images and encoder, calibrated under a mask."""
        train, heldout = self._images
        return Yardstick(
            train,
            heldout,
            encoder=self.encoder,
            quantile=self.quantile,
            neighbours=self.neighbours,
            mask=mask,
        )

    def measure(self, images: Float[torch.Tensor, "n c h w"]) -> Near:
        """How near each image is to the training images."""
        found = features(self.seen(images), self.encoder)
        near, at = nearest(found, self.train_features, self.neighbours)
        near = near.double()
        return Near(near[:, 0].numpy(), at[:, 0].numpy(), near.mean(1).numpy())

    def copies(self, images: Float[torch.Tensor, "n c h w"]) -> np.ndarray:
        """Whether each image is a copy of any training image."""
        return np.asarray(self.measure(images).distance < self.threshold)

    def __repr__(self) -> str:
        return (
            f"Yardstick({len(self.train)} training images, {len(self.null)} held out, "
            f"threshold {self.threshold:.3g}, ratio {self.ratio_threshold:.3g})"
        )


def extraction(
    samples: Float[torch.Tensor, "i s c h w"],
    items: Sequence[Item],
    yardstick: Yardstick,
    *,
    images: Mapping[str, Float[torch.Tensor, "m c h w"]] | None = None,
) -> pd.DataFrame:
    """One row a sample: how near it is to its item's own image and to any training image.

    Args:
        items: one with a mask is judged by the pixels in it, with thresholds of their own.
        samples: s samples of each item's prompt, in [0, 1].
        images: by name, of items that have several (a control's word stands with many): the nearest of them is the own.

    Returns:
        item, group, split, exposures, sample, own (distance to the own image), nearest (to any training image), top1
        (that one is the own), own_ratio and ratio (the same over the mean distance to the k nearest training images),
        extracted (own below the threshold), extracted_ratio (own ratio below its threshold), copied (nearest below the
        threshold).

    Raises:
        UsageError: not one stack of samples for each item, or two items of one name.
    """
    if len(samples) != len(items):
        raise UsageError(f"{len(samples)} stacks of samples for {len(items)} items: give one each")
    if len({item.name for item in items}) < len(items):
        raise UsageError("two items have one name: rates are over items, which their names tell apart")
    rows: list[dict[str, Any]] = []
    masked: dict[bytes, Yardstick] = {}
    for item, own_samples in zip(items, samples, strict=True):
        judge = yardstick
        if item.mask is not None:
            key = item.mask.cpu().numpy().tobytes()
            judge = masked[key] = masked.get(key) or yardstick.within(item.mask)
        own_images = item.image[None] if images is None or item.name not in images else images[item.name]
        own_features = features(judge.seen(own_images), judge.encoder)
        near = judge.measure(own_samples)
        gaps = distances(features(judge.seen(own_samples), judge.encoder), own_features)
        own = gaps.amin(1).double().numpy()
        own_ratio = Near(own, near.at, near.around).ratio
        first = distances(judge.train_features[torch.as_tensor(near.at)], own_features).amin(1).numpy()
        about = {"item": item.name, "group": item.group, "split": item.split, "exposures": item.exposures}
        for s in range(len(own_samples)):
            rows.append(
                {
                    **about,
                    "sample": s,
                    "own": own[s],
                    "nearest": near.distance[s],
                    "top1": bool(first[s] == 0),
                    "own_ratio": own_ratio[s],
                    "ratio": near.ratio[s],
                    "extracted": bool(own[s] < judge.threshold),
                    "extracted_ratio": bool(own_ratio[s] < judge.ratio_threshold),
                    "copied": bool(near.distance[s] < judge.threshold),
                }
            )
    return pd.DataFrame(rows)


def rates(
    table: pd.DataFrame, *, by: Sequence[str] = ("group",), of: Iterable[str] = ("extracted", "copied")
) -> pd.DataFrame:
    """Shares of samples and of items that were extracted, with intervals over items.

    Args:
        table: rows of `extraction`; whatever else it holds can stand in `by` (a condition, say).
        of: columns of 0 and 1.

    Returns:
        the columns of `by`, metric (`extracted_image`: share of samples, the memorization rate MR; `extracted_any`
        and `extracted_most`: share of items of which one sample, or more than half of them, was), value, ci_lo, ci_hi
        (95 %, items are the clusters), n_items, n.
    """
    rows = []
    for key, part in table.groupby(list(by), sort=False, dropna=False):
        for column in of:
            items = part.groupby("item", sort=False)[column].mean()
            for suffix, values, clusters in (
                ("image", part[column], part["item"]),
                ("any", items > 0, items.index),
                ("most", items > 0.5, items.index),
            ):
                told = np.asarray(values, dtype=float)
                low, high = proportion_ci(told, list(clusters))
                row = dict(zip(by, key, strict=True)) | {"metric": f"{column}_{suffix}"}
                row |= {"value": told.mean(), "ci_lo": low, "ci_hi": high}
                rows.append(row | {"n_items": len(items), "n": len(told)})
    return pd.DataFrame(rows)
