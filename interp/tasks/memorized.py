"""Items that a model holds, or does not: an image with its prompt, a sequence of tokens with its first part."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from jaxtyping import Bool, Float
from torch import Tensor

from interp.errors import UsageError
from interp.tasks.base import Example, Ids

Split = Literal["locate", "test", ""]
"""Half of the items is located with, the other half is measured on."""


@dataclass(frozen=True, eq=False)
class ImageItem:
    """A picture with a prompt: one that a pipeline has memorized, or one of the same kind that it has not.

    Attributes:
        name: tells it from the others.
        prompt: the caption that it was shown with, or might have been.
        image: in [0, 1].
        group: what kind it is: `memorized`, `control`, `unseen`, ...
        split: `locate`, `test`, or none.
        exposures: how often the picture was trained on; 0 for never.
        mask: the pixels that count where only a part of the picture is memorized (a template); None for all.

    Raises:
        UsageError: the image has values outside [0, 1], or the mask is of another size.
    """

    name: str
    prompt: str
    image: Float[Tensor, "c h w"]
    group: str = ""
    split: Split = ""
    exposures: int = 0
    # Not bound to the image's axes: `__post_init__` says in one line what is wrong.
    mask: Bool[Tensor, "_h _w"] | None = None

    def __post_init__(self) -> None:
        low, high = float(self.image.min()), float(self.image.max())
        if not (low >= 0 and high <= 1):
            raise UsageError(
                f"item {self.name}: its image has values from {low:.3g} to {high:.3g}; scale it to [0, 1]"
            )
        if self.mask is not None and self.mask.shape != self.image.shape[1:]:
            raise UsageError(
                f"item {self.name}: a mask of {tuple(self.mask.shape)} for an image of {tuple(self.image.shape[1:])}"
            )


@dataclass(frozen=True)
class TextItem:
    """A sequence of tokens that a language model holds, or one of the same kind that it never saw.

    Attributes:
        name: tells it from the others.
        ids: the whole sequence, special tokens of the tokenizer included.
        prefix: tokens that are given; the rest is recited.
        group: what kind it is: `memorized`, `never seen`, a category of passages.
        split: `locate`, `test`, or none.
        exposures: how often it was trained on; 0 for never.

    Raises:
        UsageError: nothing is given, or nothing is left to recite.
    """

    name: str
    ids: Ids
    prefix: int
    group: str = ""
    split: Split = ""
    exposures: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.prefix < len(self.ids):
            raise UsageError(
                f"item {self.name}: prefix {self.prefix} of {len(self.ids)} tokens; at least one token is given and "
                "one is left"
            )

    @property
    def suffix(self) -> Ids:
        """The tokens that are recited."""
        return self.ids[self.prefix :]

    @cached_property
    def example(self) -> Example:
        """The item as an example: the prefix is the prompt, the suffix its answer."""
        return Example(
            self.group or "memorized",
            self.ids[: self.prefix],
            self.suffix,
            cluster=self.name,
            group=self.name,
        )
