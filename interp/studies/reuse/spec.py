"""What a study of circuit reuse does: every size in one frozen spec."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from interp.studies.base import StudySpec

Part = Literal["tasks", "circuits", "overlap", "matrix", "repair"]
PARTS: tuple[Part, ...] = ("tasks", "circuits", "overlap", "matrix", "repair")
"""The parts of a study, in the order in which they run; what a part needs is run with it."""

Method = Literal["path_patch", "patch", "screen"]
Stage = Literal["logits", "q", "k", "v"]
Settings = dict[str, tuple[dict[str, Any], ...]]

LADDER: Settings = {
    "ioi": ({},),
    "induction": ({"length": 24},),
    "laundry": ({"items": 4}, {"items": 3}, {"items": 2}),
    "niah": ({"length": 96},),
    "colored_objects": ({"shots": 1}, {"shots": 2}, {"shots": 3}, {"shots": 5}),
}
"""Settings of each task, hardest or shortest first; the first at which the model is above the floor is taken."""


class ReuseSpec(StudySpec):
    """A study of circuit reuse; two runs of the same spec and weights give the same tables.

    Settings and circuits are chosen on examples of `seed`, everything is measured on examples of `seed + 1`; needles
    also have another half of the haystack.
    """

    SMALL: ClassVar[Mapping[str, Any]] = {
        "tasks": {"ioi": ({},), "induction": ({"length": 12},), "laundry": ({"items": 2},)},
        "n": 16,
        "locate_n": 6,
        "stages": ("logits", "q"),
        "controls": 2,
        "match": ("layer",),
        "repair_train": 8,
        "repair_validation": 8,
        "repair_test": 16,
        "repair_sizes": (1, 4),
    }

    parts: tuple[Part, ...] = PARTS

    tasks: Settings = Field(LADDER, description="settings of each task, tried in turn")
    n: int = Field(48, ge=2, description="examples that the floor, and the matrix, are measured on")
    keep_at_chance: bool = Field(
        False, description="locate circuits also where the model is at chance; their rows tell no effect"
    )

    method: Method = Field("path_patch", description="how heads are scored")
    stages: tuple[Stage, ...] = Field(
        ("logits", "q", "v"), description="of path_patch: what the heads of the stage before are read through"
    )
    top: float = Field(0.02, gt=0, lt=1, description="share of all heads that each stage adds to the circuit")
    locate_n: int = Field(16, ge=2, description="examples that heads are scored on")

    mode: Literal["zero", "mean"] = "mean"
    scope: Literal["all", "answer"] = "all"
    controls: int = Field(5, ge=0, description="random sets of each kind and circuit")
    match: tuple[Literal["layer", "size"], ...] = ("layer", "size")

    repair_shots: int = Field(1, ge=0)
    repair_train: int = Field(48, ge=2, description="examples that heads are chosen on")
    repair_validation: int = Field(
        48, ge=2, description="examples that the tokens and the number are chosen on"
    )
    repair_test: int = Field(160, ge=8)
    repair_to: tuple[str, ...] = Field(
        ("distractor_value", "value"), description="roles that attention is set to, each in its turn"
    )
    repair_sizes: tuple[int, ...] = (1, 2, 4, 8)
    repair_paper: int = Field(
        4, ge=1, description="heads of the repair that is always measured, as in the paper"
    )
    repair_controls: int = Field(20, ge=1)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if not self.tasks or not all(self.tasks.values()):
            raise ValueError("tasks is empty, or a task has no settings; write {'ioi': [{}]}")
        if not self.stages or self.stages[0] != "logits":
            raise ValueError("stages begin with 'logits'")
        if not self.repair_sizes or min(self.repair_sizes) < 1 or not self.repair_to:
            raise ValueError("repair_sizes and repair_to need one entry or more, sizes of 1 or more")
        return self
