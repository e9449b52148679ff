"""What a study of priors does: every size in one frozen spec."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from interp.locate.facts.prior_layers import METHODS
from interp.studies.base import StudySpec

Part = Literal["tasks", "accuracy", "layers", "prompts", "tuning"]
PARTS: tuple[Part, ...] = ("tasks", "accuracy", "layers", "prompts", "tuning")
"""The parts of a study, in the order in which they run; what a part needs is run with it."""

Settings = dict[str, tuple[dict[str, Any], ...]]

LADDER: Settings = {
    "acronym": ({"shots": 2}, {"shots": 4}),
    "counting": ({"largest": 80}, {"largest": 120, "shots": 2}),
    "shift_cipher": ({"shots": 2}, {"shots": 4}),
}
"""Settings of each task, the shortest first; the first at which the model is above the floor is taken."""

PREFACES: dict[str, str] = {
    "do not rely": "Do not rely on prior knowledge. The right answer may be an unlikely one: go by the text alone.",
    "control: care": "Here is a short exercise. Please take all the time that you need, and work with great care.",
    "control: weather": "It rained for most of the morning. In the afternoon the sun came out, and we went for a walk.",
}
"""What is put in front of a question, by name; the controls say nothing of priors."""


class PriorSpec(StudySpec):
    """A study of priors; two runs of the same spec and weights give the same tables.

    Settings are chosen on examples of `seed`, accuracy and prompts are measured on examples of `seed + 1`. Layers are
    found and tuned on examples of `seed + 2` without the held-out answers; what tuning does is measured on the
    held-out answers of `seed + 3`.
    """

    SMALL: ClassVar[Mapping[str, Any]] = {
        "tasks": {"acronym": ({"shots": 2},), "counting": ({},)},
        "floor_n": 32,
        "n": 24,
        "locate_n": 24,
        "permutations": 200,
        "prompt_n": 12,
        "prefaces": {k: v for k, v in PREFACES.items() if k != "control: weather"},
        "tune_layers": 2,
        "tune_seeds": 1,
        "tune_random": 1,
        "tune_all": False,
        "tune_steps": 3,
        "tune_batch": 4,
        "tune_n": 12,
        "off_target": ("prose", "induction"),
        "off_n": 4,
    }

    parts: tuple[Part, ...] = PARTS

    tasks: Settings = Field(LADDER, description="settings of each task, tried in turn")
    floor_n: int = Field(64, ge=3, description="examples that a setting is judged by")
    keep_at_chance: bool = Field(
        False, description="go on also with tasks at which the model is at chance; their rows say so"
    )
    n: int = Field(80, ge=3, description="examples of each task that accuracy is measured on")
    held: float = Field(0.375, gt=0, lt=1, description="share of the answers that are held out")

    locate_n: int = Field(80, ge=8, description="examples of each task that layers are scored on")
    permutations: int = Field(1000, ge=20, description="shuffles of priors that scores are held against")

    prompt_n: int = Field(32, ge=3, description="examples of each task that are asked with each preface")
    prefaces: dict[str, str] = Field(
        PREFACES, description="texts in front of the question; names of controls begin with 'control'"
    )

    tune_by: str = Field("added", description="method of PriorLayers that chooses the layers")
    tune_layers: int = Field(3, ge=1, description="layers that are tuned together")
    tune_seeds: int = Field(3, ge=1, description="orders of the training examples")
    tune_random: int = Field(1, ge=1, description="sets of random layers for each seed")
    tune_all: bool = Field(True, description="also all layers, with the first seed")
    tune_steps: int = Field(8, ge=1, description="steps of Adam")
    tune_batch: int = Field(8, ge=1, description="examples of a step, of all tasks in turns")
    tune_rate: float = Field(1e-4, gt=0, description="step size")
    tune_n: int = Field(32, ge=3, description="examples of each task with held-out answers")
    off_target: tuple[str, ...] = Field(
        ("prose", "induction", "facts"), description="tasks that should not move"
    )
    off_n: int = Field(16, ge=2, description="examples of each of them")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if not self.tasks or not all(self.tasks.values()):
            raise ValueError("tasks is empty, or a task has no settings; write {'acronym': [{}]}")
        if unknown := [t for t in self.tasks if t not in LADDER]:
            raise ValueError(f"'{unknown[0]}' is no task of priors; take of {', '.join(LADDER)}")
        if self.tune_by not in METHODS:
            raise ValueError(f"tune_by is '{self.tune_by}'; take of {', '.join(METHODS)}")
        return self
