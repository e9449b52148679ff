"""What a study of edits does: every size in one frozen spec."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from interp.studies.base import StudySpec

Part = Literal["scan", "localise", "rome", "controls", "memit", "drift", "fluency"]
PARTS: tuple[Part, ...] = ("scan", "localise", "rome", "controls", "memit", "drift", "fluency")
"""The parts of a study, in the order in which they run; what a part needs is run with it."""

RELATIONS = (
    "capital",
    "city_country",
    "continent",
    "currency",
    "landmark",
    "language",
    "largest_city",
    "sport",
    "us_state_capital",
    "us_state_largest_city",
)
"""Relations of named things, as in CounterFact."""


class EditingSpec(StudySpec):
    """A study of edits; two runs of the same spec and weights give the same tables, but for `cost`.

    Layers, windows and weights are chosen on facts of their own (`train`); no subject is in both sets, and the
    neighbours of an edit are facts that the model knows and that nobody edits. Neighbours that a train fact has too are
    left out of the scores.
    """

    SMALL: ClassVar[Mapping[str, Any]] = {
        "relations": ("capital", "landmark"),
        "ask": 20,
        "n": 4,
        "train": 2,
        "contexts": 2,
        "steps": 8,
        "layer_step": 10,
        "memit_ends": 1,
        "memit_weights": (1.0,),
        "at_once": (1, 4),
        "noise": 2,
        "passages": 2,
        "fluency_n": 1,
        "fluency_tokens": 20,
    }

    parts: tuple[Part, ...] = PARTS

    relations: tuple[str, ...] = RELATIONS
    wording: int = Field(
        0, ge=0, description="number of the wording that is edited; the others are paraphrases"
    )
    ask: int | None = Field(None, ge=2, description="facts of each relation that are asked; none for all")
    keep_unknown: bool = Field(
        False,
        description="take facts that the model does not know too: what an edit of them does is no forgetting",
    )
    n: int = Field(50, ge=2, description="facts that are edited")
    train: int = Field(10, ge=2, description="other facts that layers, windows and weights are chosen on")
    neighbours: int = Field(5, ge=1, description="known facts of other subjects, for each edit")

    contexts: int = Field(
        5, ge=0, description="texts before the prompt that an edit has to hold in, beside none"
    )
    steps: int = Field(20, ge=2, description="steps of the search of a value, at most")
    layer_step: int = Field(3, ge=1, description="every so many layers are tried")

    width: int = Field(5, ge=1, description="layers that MEMIT edits")
    memit_ends: int = Field(
        2, ge=1, description="last layers of windows that are tried: the best ones of ROME"
    )
    memit_weights: tuple[float, ...] = Field((0.1, 1.0), description="weights of other keys that are tried")
    at_once: tuple[int, ...] = Field(
        (1, 10, 50), description="facts that MEMIT writes at once; each covers all n"
    )

    noise: int = Field(5, ge=1, description="draws of the noise of the traces")
    passages: int = Field(
        16, ge=2, description="passages that drift is measured on, apart from the text of the moments"
    )
    fluency_n: int = Field(5, ge=1, description="edits that text is generated under")
    fluency_tokens: int = Field(100, ge=10)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if not self.relations:
            raise ValueError("relations is empty; name one or more")
        if not self.memit_weights or min(self.memit_weights) < 0:
            raise ValueError("memit_weights needs one number of 0 or more")
        if not self.at_once or min(self.at_once) < 1:
            raise ValueError("at_once needs one number of 1 or more")
        return self
