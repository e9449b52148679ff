"""What a laundry-list study does: every size in one frozen spec."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

from pydantic import Field, field_validator, model_validator

from interp.studies.base import StudySpec
from interp.tasks.laundry import FAMILIES, LARGEST


class LaundrySpec(StudySpec):
    """A study of the laundry list; two runs of the same spec and weights give the same tables.

    Heads, channels and edits are chosen on train prompts, sizes of edits on validation prompts, and test prompts are
    run once, at the end. Some templates of each family are in the test prompts only.
    """

    SMALL: ClassVar[Mapping[str, Any]] = {
        "items": (3, 5),
        "screened": 4,
        "train": 8,
        "validation": 8,
        "test": 16,
        "in_weights": 8,
        "neutral": 4,
        "heads": 3,
        "movers": 6,
        "cut": 3,
        "counts": (1, 3),
        "sizes": (2, 4),
        "steps": (-2, 2),
        "learn": 4,
        "kept": (20,),
        "finer": (0.75, 1),
        "draws": 1,
        "grid": 3,
        "grid_prompts": 4,
    }

    items: tuple[int, ...] = Field(tuple(range(3, 11)), description="lengths of lists")
    families: tuple[str, ...] = FAMILIES
    held: int = Field(2, ge=0, description="templates of each family that only the test has")
    screened: int = Field(
        8, ge=2, description="train prompts a length that heads and components are screened on"
    )
    train: int = Field(64, ge=2, description="prompts a length that edits are ranked on")
    validation: int = Field(80, ge=2, description="prompts a length that sizes are tuned on")
    test: int = Field(500, ge=2, description="prompts a length that are run once, at the end")
    in_weights: int = Field(
        100, ge=2, description="of them, prompts a length that edits of weights are run on"
    )
    neutral: int = Field(16, ge=2, description="passages of prose that edits should leave alone")

    heads: int = Field(8, ge=1, description="inhibiting heads that are looked into")
    movers: int = Field(12, ge=1, description="heads that attend to the list")
    rank: int = Field(3, ge=1, le=3, description="dimensions of a channel, at most")
    level: float = Field(0.01, gt=0, lt=1, description="components up to this q-value are of a channel")
    cut: int = Field(8, ge=1, description="channels that are cut")

    counts: tuple[int, ...] = Field(
        (1, 2, 3, 5, 8), description="heads or components that are scaled together"
    )
    sizes: tuple[float, ...] = Field((1.5, 2, 3, 4, 6), description="factors")
    steps: tuple[float, ...] = Field(
        (-4, -2, 2, 4), description="standard deviations that coordinates are set off by"
    )
    learn: int = Field(15, ge=0, description="steps of learning one factor a head; 0 leaves it out")
    kept: tuple[int, ...] = Field(
        (20, 60), description="learned factors that are kept, beside all: the largest"
    )
    finer: tuple[float, ...] = Field(
        (0.5, 0.75, 1, 1.25, 1.5),
        description="sizes tried on validation, as shares of the best change on train",
    )
    draws: int = Field(3, ge=1, description="draws of each kind of control")
    grid: int = Field(
        9, ge=2, description="points of a traversal along its first axis; of others as many or 5"
    )
    grid_prompts: int = Field(16, ge=1, description="validation prompts a length that a grid is walked on")

    @field_validator("items", "families", "counts", "sizes", "steps", "finer")
    @classmethod
    def _some(cls, value: tuple[Any, ...]) -> tuple[Any, ...]:
        if not value:
            raise ValueError("is empty; name at least one")
        if len(set(value)) < len(value):
            raise ValueError("names something twice")
        return value

    @field_validator("items")
    @classmethod
    def _lists(cls, items: tuple[int, ...]) -> tuple[int, ...]:
        if not all(2 <= n <= LARGEST for n in items):
            raise ValueError(f"lists have 2 to {LARGEST} things")
        return items

    @field_validator("families")
    @classmethod
    def _known(cls, families: tuple[str, ...]) -> tuple[str, ...]:
        if unknown := [f for f in families if f not in FAMILIES]:
            raise ValueError(f"no family '{unknown[0]}'; take of {', '.join(FAMILIES)}")
        return families

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.screened > self.train:
            raise ValueError(
                f"screened is {self.screened} and train {self.train}: screened prompts are train prompts"
            )
        if self.in_weights > self.test:
            raise ValueError(f"in_weights is {self.in_weights} and test {self.test}: they are test prompts")
        return self
