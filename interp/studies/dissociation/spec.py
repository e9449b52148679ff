"""What a study of double dissociation is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from interp.studies.base import StudySpec

Part = Literal["facts", "layers", "profile", "neurons", "matrix"]
PARTS: tuple[Part, ...] = ("facts", "layers", "profile", "neurons", "matrix")
"""The parts of a study, in the order in which they run; what a part needs is run with it."""


class DissociationSpec(StudySpec):
    """A study of double dissociation; two runs of the same spec and weights give the same tables.

    Layers, neurons and heads are chosen on half of the subjects, relations that take turns, and contexts of one half of
    the haystack; all effects are of the other halves, but those that are said to be of the facts they were chosen on.
    """

    SMALL: ClassVar[Mapping[str, Any]] = {
        "relations": ("capital", "city_country", "continent", "largest_city"),
        "asked": 24,
        "facts_n": 8,
        "reference_n": 3,
        "reference_length": 64,
        "windows": (5,),
        "neuron_layers": 1,
        "exact": 12,
        "check": 4,
        "neuron_facts": 4,
        "heads_n": 8,
        "needle_length": 96,
        "needle_n": 6,
        "induction_n": 6,
        "prose_n": 4,
        "profile_n": 3,
        "profile_length": 64,
        "controls": 2,
    }

    parts: tuple[Part, ...] = PARTS

    relations: tuple[str, ...] | None = Field(
        None, description="relations that are asked; default all of `facts`"
    )
    wordings: tuple[int, ...] = Field(
        (0, 1), description="numbers of the wordings that each fact is asked in"
    )
    asked: int = Field(40, ge=2, description="subjects asked of each relation, at most")
    least: int = Field(8, ge=2, description="known subjects from which on a relation is used")
    facts_n: int = Field(40, ge=2, description="facts of each set: fitted, held out, of other relations")

    corruption: str = Field("subject_swap", description="of the causal maps: `noise`, or a twin")
    samples: int = Field(4, ge=1, description="draws of the noise")
    reference_n: int = Field(
        8, ge=1, description="needles, induction prompts, passages that layers are held against"
    )
    reference_length: int = Field(96, ge=64, description="tokens of these needles")
    layers: tuple[int, ...] = Field((3,), description="numbers of best layers that are cut together")
    windows: tuple[int, ...] = Field(
        (5,), description="widths of the window of layers that is cut, the best of each"
    )

    neuron_layers: int = Field(3, ge=1, description="best layers that are searched for neurons")
    neurons: int = Field(64, ge=1, description="best neurons that are cut together")
    exact: int = Field(24, ge=1, description="neurons a prompt that are zeroed one by one")
    check: int = Field(8, ge=0, description="as many more, drawn from the others")
    neuron_facts: int = Field(12, ge=2, description="facts whose own neurons are cut")
    own: int = Field(8, ge=1, description="neurons of each of them")

    heads: str | None = Field(
        None, description="list of retrieval heads, best first; default they are scored here"
    )
    heads_k: int = Field(10, ge=1, description="retrieval heads that are cut")
    heads_n: int = Field(32, ge=2, description="needles that heads are scored on")
    heads_mode: Literal["zero", "mean"] = "mean"

    needle_length: int = Field(256, ge=64)
    needle_n: int = Field(12, ge=2)
    induction_length: int = Field(24, ge=8)
    induction_n: int = Field(20, ge=2)
    prose_n: int = Field(12, ge=2, description="passages of 32 tokens, and the 32 tokens that follow")

    profile_n: int = Field(
        8,
        ge=2,
        description="needles and passages that every layer is cut on; of facts and induction twice as many",
    )
    profile_length: int = Field(128, ge=64, description="tokens of the needles among them")
    controls: int = Field(5, ge=0, description="matched sets of each cut")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if not self.wordings or not self.parts:
            raise ValueError("parts and wordings need one entry or more")
        if not self.layers or min((*self.layers, *self.windows)) < 1:
            raise ValueError("layers need one entry or more, and numbers of layers are 1 or more")
        return self
