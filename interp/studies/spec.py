"""What a study of retrieval heads does: every size in one frozen spec."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from interp.studies.base import StudySpec
from interp.tasks.needles import KINDS

Mode = Literal["zero", "mean", "resample", "uniform", "mean_query"]
TaskName = Literal[
    "needle", "paraphrase", "multi_key", "multi_value", "multi_hop", "reading", "arithmetic", "arithmetic_cot",
    "induction", "facts", "prose",
]  # fmt: skip
Part = Literal["scores", "map", "dose", "sufficient", "specificity", "agreement"]
PARTS: tuple[Part, ...] = ("scores", "map", "dose", "sufficient", "specificity", "agreement")
"""The parts of a study, in the order in which they run; `scores` is always run, as the others need it."""

MECHANISM = "retrieval heads"

ONE_PASS = (
    "copy", "copy_position", "copy_topk", "needle_mass", "r2", "anchor", "qr", "temporal", "spatial", "dla", "locos",
)  # fmt: skip
"""Scores that cost the grid one pass; `qr` adds a short null question to it."""

OWN_PASSES = ("cri", "induction", "echo")
"""Scores that take passes of their own, one a head (`cri`) or over other sequences."""


class HeadsSpec(StudySpec):
    """A study of retrieval heads; two runs of the same spec and weights give the same tables.

    Heads are chosen on needles of `kinds` in the train half of the haystack; everything is measured on needles of
    `held_kinds` in the test half.
    """

    SMALL: ClassVar[Mapping[str, Any]] = {
        "lengths": (128, 256, 512),
        "depths": 3,
        "needles": 4,
        "own_lengths": (128,),
        "own_needles": 2,
        "map_needles": 2,
        "map_modes": ("mean",),
        "map_controls": 2,
        "doses": (1, 5, 10, 20),
        "dose_length": 256,
        "dose_n": 16,
        "dose_controls": 5,
        "other_controls": 1,
        "keep": (1, 5, 20, 50),
        "keep_scores": ("copy", "needle_mass"),
        "keep_n": 8,
        "keep_controls": 2,
        "tasks": ("needle", "multi_key", "induction", "arithmetic", "facts", "prose"),
        "task_scores": ("copy", "needle_mass"),
        "task_length": 128,
        "task_n": 8,
        "task_controls": 2,
    }

    parts: tuple[Part, ...] = PARTS

    method: str = Field("copy", description="score that ranks the heads of the main cut")
    decoding: Literal["greedy", "forced"] = Field(
        "greedy", description="score the model's own right output, or the forced answer"
    )
    kinds: tuple[str, ...] = ("words", "numbers")
    held_kinds: tuple[str, ...] = ("names", "phrases")

    scores: tuple[str, ...] = Field(ONE_PASS, description="scores on the whole grid")
    lengths: tuple[int, ...] = (128, 256, 512, 1024, 1536, 2048, 3072, 4096)
    depths: int = Field(6, ge=1)
    needles: int = Field(8, ge=1)
    several: bool = Field(
        True, description="the grid also with several needles a context, to compare the modes"
    )
    own_scores: tuple[str, ...] = Field(OWN_PASSES, description="scores on a part of the grid")
    own_lengths: tuple[int, ...] = (256, 512)
    own_needles: int = Field(4, ge=1)

    top: int = Field(10, ge=1, description="heads of the main cut")
    map_needles: int = Field(4, ge=1)
    map_modes: tuple[Mode, ...] = ("uniform", "mean")
    map_controls: int = Field(3, ge=0)

    doses: tuple[int, ...] = (1, 2, 5, 10, 20, 50)
    dose_mode: Mode = "mean"
    dose_length: int = 512
    dose_n: int = Field(48, ge=2)
    dose_controls: int = Field(20, ge=0, description="draws matched by layer")
    other_controls: int = Field(5, ge=0, description="draws matched by norm, and by entropy")

    keep: tuple[int, ...] = (1, 2, 5, 10, 20, 50, 100)
    keep_scores: tuple[str, ...] = ("copy", "needle_mass", "qr", "locos", "cri")
    keep_n: int = Field(32, ge=2)
    keep_controls: int = Field(5, ge=0)

    tasks: tuple[TaskName, ...] = (
        "needle", "paraphrase", "multi_key", "multi_value", "multi_hop", "reading", "induction", "arithmetic",
        "arithmetic_cot", "facts", "prose",
    )  # fmt: skip
    task_scores: tuple[str, ...] = ("copy", "needle_mass", "qr", "locos", "induction")
    task_mode: Mode = "mean"
    task_length: int = Field(256, description="prompt tokens of the tasks in a haystack")
    task_n: int = Field(24, ge=2)
    task_controls: int = Field(3, ge=0)

    @field_validator("kinds", "held_kinds")
    @classmethod
    def _known(cls, kinds: tuple[str, ...]) -> tuple[str, ...]:
        if unknown := [k for k in kinds if k not in KINDS]:
            raise ValueError(f"no kind of needle '{unknown[0]}'; take of {', '.join(KINDS)}")
        return kinds

    @field_validator("lengths", "own_lengths", "doses", "keep", "kinds", "held_kinds", "scores")
    @classmethod
    def _some(cls, value: tuple[Any, ...]) -> tuple[Any, ...]:
        if not value:
            raise ValueError("is empty; name at least one")
        return value

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if set(self.kinds) & set(self.held_kinds):
            both = sorted(set(self.kinds) & set(self.held_kinds))[0]
            raise ValueError(
                f"kind '{both}' is in kinds and in held_kinds; heads are measured on other needles"
            )
        if twice := [s for s in self.own_scores if s in self.scores]:
            raise ValueError(f"'{twice[0]}' is in scores and in own_scores; name it once")
        every = (*self.scores, *self.own_scores)
        for name, wanted in (("method", (self.method,)), ("keep_scores", self.keep_scores),
                             ("task_scores", self.task_scores)):  # fmt: skip
            if absent := [s for s in wanted if s not in every]:
                raise ValueError(f"{name} has '{absent[0]}', which is none of the scores {', '.join(every)}")
        return self
