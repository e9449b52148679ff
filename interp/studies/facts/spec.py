"""What a study of fact recall does: every size in one frozen spec."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

from pydantic import Field, field_validator, model_validator

from interp.studies.base import StudySpec
from interp.tasks.facts import names


class FactsSpec(StudySpec):
    """A study of fact recall; two runs of the same spec and weights give the same tables.

    The prompts of a scenario have one order, relations in turn and new subjects first; every part takes the first ones.
    """

    SMALL: ClassVar[Mapping[str, Any]] = {
        "relations": ("capital", "continent", "language"),
        "wordings": 1,
        "asked": 12,
        "subjects": 10,
        "sentences": 30,
        "prompts": 3,
        "step": 5,
        "noise_prompts": 2,
        "noise_draws": 2,
        "noise_step": 10,
        "severed": 2,
        "flow": 6,
        "cut": 3,
        "resamples": 500,
    }

    relations: tuple[str, ...] = Field((), description="relations of facts; default all")
    shots: tuple[int, ...] = Field((0, 3), description="solved examples in front of the census' questions")
    wordings: int = Field(1, ge=1, description="wordings that the census asks without shots; with shots one")
    asked: int | None = Field(None, ge=1, description="questions a relation of the census; default all")

    subjects: int | None = Field(
        64, ge=1, description="real subjects a relation that scenarios are made of; None for all"
    )
    sentences: int = Field(300, ge=1, description="openings of plain sentences")
    rank: int = Field(0, ge=0, le=2)
    confident: float = Field(0.75, gt=0, le=1)
    unsure: float = Field(0.25, ge=0, lt=1)
    probability: float = Field(0.1, ge=0, le=1)
    popular: float | None = Field(0.5, ge=0, le=1)

    prompts: int = Field(20, ge=2, description="prompts a scenario that are traced with another subject")
    window: int | None = Field(
        None, ge=2, description="layers of the wide windows; default 10 of 48, scaled to the model"
    )
    step: int = Field(3, ge=1, description="layers from one centre of the wide windows to the next")
    noise_prompts: int = Field(8, ge=2, description="prompts a scenario that are traced with noise")
    noise_draws: int = Field(4, ge=1)
    noise_step: int = Field(5, ge=1, description="layers from one centre to the next, with noise")
    severed: int = Field(10, ge=2, description="prompts a scenario of the severed variants")

    flow: int = Field(60, ge=2, description="prompts a scenario of knockout, extraction and enrichment")
    knockout_window: int = Field(9, ge=1)
    attributes: int = Field(50, ge=1, description="tokens of the lens that count as attributes of the state")
    cut: int = Field(24, ge=2, description="prompts a scenario on which each MLP is cut")
    resamples: int = Field(2000, ge=100, description="of every interval")

    @field_validator("relations")
    @classmethod
    def _known(cls, relations: tuple[str, ...]) -> tuple[str, ...]:
        if unknown := [r for r in relations if r not in names(every=True)]:
            raise ValueError(f"no relation '{unknown[0]}'; take of {', '.join(names(every=True))}")
        if len(set(relations)) < len(relations):
            raise ValueError("names a relation twice")
        return relations

    @field_validator("shots")
    @classmethod
    def _shots(cls, shots: tuple[int, ...]) -> tuple[int, ...]:
        if not shots or min(shots) < 0 or len(set(shots)) < len(shots):
            raise ValueError("takes different numbers from 0 on")
        return shots

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.unsure >= self.confident:
            raise ValueError(f"unsure={self.unsure} is not below confident={self.confident}")
        return self
