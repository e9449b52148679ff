"""Items that a model holds, or does not: an image with its prompt, a sequence of tokens with its first part."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from interp.errors import UsageError
from interp.tasks.base import Example, Ids

Split = Literal["locate", "test", ""]
"""Half of the items is located with, the other half is measured on."""


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
