"""What a study of knowledge conflicts is asked for: a frozen spec, in YAML or in Python."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from interp.studies.base import StudySpec
from interp.tasks.conflict import Order
from interp.tasks.fictional import named


class Setting(BaseModel):
    """Statements that stand in front of a question, see `interp.tasks.conflict.Conflict`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    counter: Annotated[int, Field(ge=1)] = 1
    memory: Annotated[int, Field(ge=0)] = 0
    irrelevant: Annotated[int, Field(ge=0)] = 0
    order: Order = "counter_first"

    @property
    def name(self) -> str:
        """Unique among settings: statements of the context's answer, of the memory's, order, others."""
        out = f"{self.counter}:{self.memory}"
        if self.memory:
            out += f" {self.order.replace('_', ' ')}"
        return out + (f" +{self.irrelevant}" if self.irrelevant else "")


def _both(counter: int, memory: int) -> tuple[Setting, Setting]:
    return (
        Setting(counter=counter, memory=memory, order="memory_first"),
        Setting(counter=counter, memory=memory, order="counter_first"),
    )


SETTINGS = (
    Setting(),
    Setting(counter=2),
    *_both(1, 1),
    *_both(2, 1),
    *_both(1, 2),
    Setting(irrelevant=1),
    Setting(irrelevant=3),
)
"""One statement of either side, more of one, none of the other, in both orders, and behind statements of others."""


class ConflictSpec(StudySpec):
    """A study of knowledge conflicts; two runs of the same spec and weights give the same tables.

    Heads and layers are chosen on facts of one half of the subjects, and moved on facts of the other half.
    """

    SMALL: ClassVar[Mapping[str, Any]] = {
        "relations": ("capital", "continent", "largest_city", "landmark"),
        "ask": 16,
        "wordings": 2,
        "train": 10,
        "test": 14,
        "settings": (Setting(), *_both(1, 1), Setting(counter=2), Setting(irrelevant=1)),
        "sizes": (1, 8),
        "factors": (0.0, 4.0),
        "controls": 2,
        "costs": 1,
        "prose": 4,
    }

    relations: tuple[str, ...] = Field(named(), description="relations of `interp.tasks.fictional.named()`")
    ask: int = Field(48, ge=2, description="facts a relation that are asked without a context")
    wordings: int = Field(2, ge=1, description="wordings in which each of these is asked")
    train: int = Field(64, ge=4, description="known facts that heads and layers are chosen on")
    test: int = Field(96, ge=4, description="known facts of other subjects, that are moved")
    keep_unknown: bool = Field(
        False, description="take also facts that the model does not know: no memory is asked"
    )
    settings: tuple[Setting, ...] = Field(SETTINGS, description="statements in front of the question")

    mode: Literal["zero", "mean"] = Field("zero", description="how heads are cut while they are scored")
    window: int = Field(3, ge=1, description="MLP layers that are cut together")
    sizes: tuple[int, ...] = Field((1, 4, 8, 16), description="numbers of heads that are cut or scaled")
    factors: tuple[float, ...] = Field(
        (0.0, 0.25, 4.0), description="what attention is multiplied by; 0 takes the edges out"
    )
    controls: int = Field(8, ge=2, description="control sets of each kind and condition; findings ask for 8")
    match: tuple[Literal["layer", "size", "norm"], ...] = Field(("layer", "norm"), description="their kinds")
    costs: int = Field(2, ge=0, description="control sets of each kind that are also measured off target")
    prose: int = Field(12, ge=2, description="passages whose loss tells what a cut costs")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if unknown := [r for r in self.relations if r not in named()]:
            raise ValueError(
                f"relation {unknown[0]!r} has no fictional subjects; take of {', '.join(named())}"
            )
        if not self.settings or self.settings[0] != Setting():
            raise ValueError(
                "settings begin with the single statement, {'counter': 1}, which heads are scored on"
            )
        if len({s.name for s in self.settings}) < len(self.settings):
            raise ValueError("two settings are the same")
        if not self.sizes or min(self.sizes) < 1 or list(self.sizes) != sorted(set(self.sizes)):
            raise ValueError("sizes are one or more rising numbers of heads, from 1 on")
        if any(f < 0 or f == 1 for f in self.factors):
            raise ValueError("factors are 0 or more, and not 1, which changes nothing")
        return self
