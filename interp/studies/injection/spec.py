"""What a study of injected memorization is asked for: a frozen spec, in YAML or in Python."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from interp.studies.base import StudySpec

METHODS = (
    "activation",
    "gradient",
    "gradient_size",
    "integrated",
    "leave_one_out",
    "wanda",
    "slimming",
    "hard_concrete",
    "balanced_subnet",
    "contrastive",
)
"""Rankings of neurons, the baseline first."""


class Effort(BaseModel):
    """How much is done with one model.

    Attributes:
        shares: neurons that hold a sequence, of each layer's. together: those that hold many at once; 0: left out.
        rate, updates: of training what is held, see `Fit`.
        doses: shares of all neurons, or of a row's weights, that are cut; of single injections too with `every`.
        sequences: that are injected, each for itself. seeds: of their neurons.
        held: sequences of a memory, half of them to locate it by. never: sequences that the model never saw.
        passages: of prose, that perplexity is of; as many others are what locators compare with.
        path, nodes: of integrated gradients. screen: neurons that are left out one by one; 0: all.
        gates, subnet: steps of learned gates and of BalancedSubnet. rewrite: steps of rewriting output vectors.
        factors: passages that curvature is of; 0: no K-FAC. subspace: whether directions are projected out.
        attacked: sequences of a group that are attacked. prompt: steps of a soft prompt.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    shares: tuple[float, ...] = (0.001, 0.01)
    together: float = Field(default=0, ge=0, le=1)
    rate: float = Field(default=0.1, gt=0)
    updates: int = Field(default=200, ge=1)
    doses: tuple[float, ...] = (0.001, 0.003, 0.01)
    every: bool = False
    sequences: int = Field(default=2, ge=2)
    seeds: tuple[int, ...] = (0, 1)
    held: int = Field(default=12, ge=4)
    never: int = Field(default=6, ge=2)
    passages: int = Field(default=4, ge=2)
    path: str = "joint"
    nodes: int = Field(default=8, ge=1)
    screen: int = Field(default=64, ge=0)
    gates: int = Field(default=15, ge=1)
    subnet: int = Field(default=4, ge=1)
    rewrite: int = Field(default=10, ge=1)
    factors: int = Field(default=32, ge=0)
    subspace: bool = False
    attacked: int = Field(default=6, ge=2)
    prompt: int = Field(default=20, ge=1)

    @field_validator("shares", "doses")
    @classmethod
    def _rising(cls, values: tuple[float, ...]) -> tuple[float, ...]:
        if not values or list(values) != sorted(set(values)) or not 0 < values[0] <= values[-1] < 1:
            raise ValueError("takes rising shares between 0 and 1")
        return values


LARGE = Effort()
LITTLE = Effort(
    shares=(0.01, 0.03),
    together=0.1,
    rate=0.3,
    updates=600,
    doses=(0.003, 0.01, 0.03, 0.1),
    every=True,
    sequences=6,
    held=16,
    never=8,
    passages=16,
    path="layer",
    screen=0,
    gates=150,
    subnet=40,
    rewrite=50,
    factors=96,
    subspace=True,
    attacked=8,
    prompt=100,
)
"""For the small model, where all of it is cheap."""


class InjectionSpec(StudySpec):
    """A study of memorization in a language model, and in a small one that is trained for it.

    Doses are chosen on the sequences that a memory is located by, and on passages that are not measured again.
    """

    SMALL: ClassVar[Mapping[str, Any]] = {
        "large": Effort(
            shares=(0.01,), doses=(0.001, 0.01), seeds=(0,), held=4, never=2, passages=2, screen=16, gates=6,
            subnet=2, rewrite=2, factors=4, attacked=2, prompt=4,
        ),
        "little": LITTLE.model_copy(
            update={
                "shares": (0.03,), "doses": (0.01, 0.1), "sequences": 3, "seeds": (0,), "held": 8, "never": 4,
                "passages": 4, "gates": 30, "subnet": 8, "rewrite": 10, "factors": 16, "attacked": 4, "prompt": 20,
            }
        ),
        "passages": 12,
        "exposed": (0, 1, 4, 16),
        "each": 3,
        "showing": 40,
        "later": 20,
    }  # fmt: skip

    small: str = Field("quick", description="preset of the small model; none: left out")
    large: Effort = Field(LARGE, description="how much is done with the model")
    little: Effort = Field(LITTLE, description="how much is done with the small one")
    methods: tuple[str, ...] = Field(METHODS, description="rankings of neurons")
    length: int = Field(32, ge=12, description="tokens of a sequence")
    prefix: int = Field(8, ge=4, description="tokens of it that are given")
    top: tuple[float, ...] = Field(
        (0.001, 0.01, 0.02, 0.05, 0.1), description="shares of a ranking that are taken"
    )

    masses: tuple[float, ...] = Field((0.9, 0.6), description="shares of the curvature that K-FAC keeps")
    ranks: tuple[int, ...] = Field((1, 4), description="directions that are taken out of each layer")
    erased: float = Field(
        0.1, gt=0, lt=1, description="recited of the located sequences that counts as erased"
    )
    worth: float = Field(
        1.1, gt=1, description="perplexity of prose, over that before, that still counts as kept"
    )
    attacks: int = Field(2, ge=1, description="edits of each memory that are attacked")
    vectors: int = Field(4, ge=1, description="of a soft prompt")

    passages: int | None = Field(None, ge=4, description="of the list, that are screened; default all")
    recited: int = Field(24, ge=8, description="tokens that a passage has to be recited for")

    exposed: tuple[int, ...] = Field(
        (0, 1, 2, 4, 8, 16, 32), description="exposures; none: no exposure curves"
    )
    each: int = Field(8, ge=2, description="sequences of each number of exposures")
    showing: int = Field(240, ge=2, description="steps in which they are shown")
    later: int = Field(240, ge=0, description="steps of text alone after them")

    @field_validator("methods")
    @classmethod
    def _known(cls, methods: tuple[str, ...]) -> tuple[str, ...]:
        if unknown := [m for m in methods if m not in METHODS]:
            raise ValueError(f"no method '{unknown[0]}'; take of {', '.join(METHODS)}")
        if not methods or len(set(methods)) < len(methods):
            raise ValueError("takes methods, each once")
        return methods

    @model_validator(mode="after")
    def _fits(self) -> Self:
        from interp.models.zoo.small_lm import PRESETS

        if self.small and self.small not in PRESETS:
            raise ValueError(f"no preset '{self.small}' of the small model; there are {', '.join(PRESETS)}")
        if self.length < self.prefix + 4:
            raise ValueError(
                f"length={self.length} leaves fewer than 4 tokens after a prefix of {self.prefix}"
            )
        if not self.top or not 0 < min(self.top) <= max(self.top) <= 1:
            raise ValueError("top are rising shares between 0 and 1")
        if self.exposed and (0 not in self.exposed or len(set(self.exposed)) < len(self.exposed)):
            raise ValueError("exposed are numbers of exposures, each once, 0 among them")
        return self
