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
        shares: neurons that hold a sequence, of each layer's. turned: the same where what they write keeps its length,
            other shares than those. together: those that hold many at once; 0: left out.
        rate, updates: of training what is held, see `Fit`. kept: passages that a memory of many sequences is trained
            to leave as they are, other ones than are measured; 0: none, and prose is lost with what is put in.
        doses: shares of all neurons, or of a row's weights, that are cut; of single injections too with `every`.
        sequences: that are injected, each for itself. seeds: of their neurons.
        held: sequences of a memory, half of them to locate it by. never: sequences that the model never saw.
        draws: of each random control.
        passages: of prose, that perplexity is of; as many others are what locators compare with.
        path, nodes: of integrated gradients. screen: neurons that are left out one by one, those of largest gradient
            times activation, and only for sequences in models of their own; 0: all.
        skipped: methods that would not be done with what is spent on them, and so would not be counted.
        gates, subnet: steps of learned gates and of BalancedSubnet. rewrite: steps of rewriting output vectors.
        factors: passages that curvature is of; 0: no K-FAC. subspace: whether directions are projected out.
        attacked: sequences of a group that are attacked. prompt: steps of a soft prompt.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    shares: tuple[float, ...] = (0.01,)
    turned: tuple[float, ...] = ()
    together: float = Field(default=0, ge=0, le=1)
    rate: float = Field(default=0.1, gt=0)
    updates: int = Field(default=200, ge=1)
    kept: int = Field(default=64, ge=0)
    doses: tuple[float, ...] = (0.001, 0.003, 0.01)
    every: bool = False
    sequences: int = Field(default=6, ge=2)
    seeds: tuple[int, ...] = (0,)
    held: int = Field(default=20, ge=4)
    never: int = Field(default=10, ge=2)
    draws: int = Field(default=3, ge=1)
    passages: int = Field(default=32, ge=2)
    path: str = "joint"
    nodes: int = Field(default=8, ge=1)
    screen: int = Field(default=64, ge=0)
    skipped: tuple[str, ...] = ()
    gates: int = Field(default=40, ge=1)
    subnet: int = Field(default=4, ge=1)
    rewrite: int = Field(default=10, ge=1)
    factors: int = Field(default=32, ge=0)
    subspace: bool = False
    attacked: int = Field(default=10, ge=2)
    prompt: int = Field(default=20, ge=1)

    @model_validator(mode="after")
    def _apart(self) -> Self:
        if set(self.turned) & set(self.shares) or not all(0 < share <= 1 for share in self.turned):
            raise ValueError("turned takes shares between 0 and 1 that are not among shares")
        return self

    @field_validator("shares", "doses")
    @classmethod
    def _rising(cls, values: tuple[float, ...]) -> tuple[float, ...]:
        if not values or list(values) != sorted(set(values)) or not 0 < values[0] <= values[-1] < 1:
            raise ValueError("takes rising shares between 0 and 1")
        return values


LARGE = Effort(skipped=("hard_concrete",))
"""In a large model hard-concrete gates still move where slimming's have settled long since."""
LITTLE = Effort(
    shares=(0.01, 0.03),
    turned=(0.2,),
    together=0.1,
    rate=0.3,
    updates=600,
    doses=(0.003, 0.01, 0.03, 0.1),
    every=True,
    sequences=6,
    seeds=(0, 1),
    held=24,
    never=12,
    draws=5,
    passages=32,
    path="layer",
    screen=0,
    gates=150,
    subnet=40,
    rewrite=50,
    factors=96,
    subspace=True,
    attacked=12,
    prompt=100,
)
"""For the small model, where all of it is cheap."""


class InjectionSpec(StudySpec):
    """A study of memorization in a language model, and in a small one that is trained for it.

    Doses are chosen on the sequences that a memory is located by, and on passages that are not measured again.
    """

    SMALL: ClassVar[Mapping[str, Any]] = {
        "methods": ("activation", "leave_one_out", "wanda", "slimming"),
        "large": Effort(
            shares=(0.01,), doses=(0.01,), sequences=2, seeds=(0,), held=4, never=2, draws=1, passages=2,
            nodes=1, screen=8, gates=1, subnet=1, rewrite=1, factors=0, attacked=2, prompt=1, updates=60, kept=4,
        ),
        "little": LITTLE.model_copy(
            update={
                "shares": (0.03,), "turned": (), "doses": (0.03, 0.1), "sequences": 2, "seeds": (0,), "held": 8,
                "never": 4, "draws": 2, "passages": 4, "screen": 16, "gates": 10, "subnet": 2, "rewrite": 5,
                "factors": 8, "attacked": 4, "prompt": 5, "updates": 300, "kept": 8,
            }
        ),
        "passages": 8,
        "exposed": (0, 1, 4, 16),
        "each": 3,
        "showing": 40,
        "later": 20,
    }  # fmt: skip

    small: str = Field(default="quick", description="preset of the small model; none: left out")
    large: Effort = Field(default=LARGE, description="how much is done with the model")
    little: Effort = Field(default=LITTLE, description="how much is done with the small one")
    methods: tuple[str, ...] = Field(default=METHODS, description="rankings of neurons")
    length: int = Field(default=32, ge=12, description="tokens of a sequence")
    prefix: int = Field(default=8, ge=4, description="tokens of it that are given")
    top: tuple[float, ...] = Field(
        default=(0.001, 0.01, 0.02, 0.05, 0.1), description="shares of a ranking that are taken"
    )

    masses: tuple[float, ...] = Field(
        default=(0.9, 0.6), description="shares of the curvature that K-FAC keeps"
    )
    ranks: tuple[int, ...] = Field(default=(1, 4), description="directions that are taken out of each layer")
    erased: float = Field(
        default=0.1, gt=0, lt=1, description="recited of the located sequences that counts as erased"
    )
    worth: float = Field(
        default=1.1, gt=1, description="perplexity of prose, over that before, that still counts as kept"
    )
    attacks: int = Field(default=2, ge=1, description="edits of each memory that are attacked")
    vectors: int = Field(default=4, ge=1, description="of a soft prompt")

    passages: int | None = Field(
        default=None, ge=4, description="of the list, that are screened; default all"
    )
    recited: int = Field(default=24, ge=8, description="tokens that a passage has to be recited for")

    exposed: tuple[int, ...] = Field(
        default=(0, 1, 2, 4, 8, 16, 32), description="exposures; none: no exposure curves"
    )
    each: int = Field(default=8, ge=2, description="sequences of each number of exposures")
    showing: int = Field(default=240, ge=2, description="steps in which they are shown")
    later: int = Field(default=240, ge=0, description="steps of text alone after them")

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
