"""What a run of the tasks does: which tasks, at which sizes, in one frozen spec."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from pydantic import Field, model_validator

from interp.studies.base import StudySpec
from interp.tasks.catalogue import LENGTHS, TaskInfo
from interp.tasks.registry import NAMES

Ladder = dict[str, tuple[Any, ...]]
"""Sizes by parameter: one parameter at a time, the others as they are by default."""

GRID: dict[str, dict[str, Any]] = {
    "niah_grid": {"lengths": list(LENGTHS), "depths": 5, "needles": 2, "n": None}
}
"""A grid has as many examples as it has cells, so `n` cannot be asked of it."""


def natural() -> tuple[str, ...]:
    """Every task that is asked in a natural language, in the order of the families."""
    return tuple(info.name for info in NAMES.values() if info.natural)


def is_file(name: str) -> bool:
    """Whether a task is a file of examples."""
    return name.endswith(".jsonl")


def info(name: str) -> TaskInfo:
    """What is known of a task; of a file of examples, its name."""
    return TaskInfo(name, "", "", "a file of the user's") if is_file(name) else NAMES[name]


@dataclass(frozen=True)
class Rung:
    """A task at one size.

    Attributes:
        param: the parameter that the ladder varies; empty where the task has one size.
        size: its value.
        place: number of the size in its ladder, from 0.
        settings: all parameters that are not as they are by default.
    """

    task: str
    param: str
    size: Any
    place: int
    settings: Mapping[str, Any]

    def __str__(self) -> str:
        return f"{self.task} {self.param}={self.written}" if self.param else self.task

    @property
    def written(self) -> str:
        """The size as tables have it."""
        return self.size if isinstance(self.size, str) else json.dumps(self.size) if self.param else ""

    @property
    def at(self) -> float:
        """The size as a number; NaN where it is none."""
        number = isinstance(self.size, int | float) and not isinstance(self.size, bool)
        return float(self.size) if number else float("nan")

    @property
    def question(self) -> str:
        """What is asked: two rungs with one question have the same examples."""
        return json.dumps([self.task, dict(self.settings)], sort_keys=True, default=str)


class RecallSpec(StudySpec):
    """A run of the tasks; two runs of the same spec and weights give the same tables.

    The ladders are those of the catalogue, fixed before any model was measured, and are written out in the spec.
    """

    SMALL: ClassVar[Mapping[str, Any]] = {"n": 4}

    tasks: tuple[str, ...] = Field(
        default_factory=natural, min_length=1, description="names, or files of examples; default all in words"
    )
    n: int = Field(32, ge=2, description="examples a rung")
    ladders: dict[str, Ladder] = Field(
        {}, description="sizes of a task in place of the catalogue's: {niah: {length: [256, 512]}}"
    )
    params: dict[str, dict[str, Any]] = Field(
        {}, description="parameters of a task in place of its defaults: {niah: {kinds: words}}"
    )

    @model_validator(mode="before")
    @classmethod
    def _written_out(cls, data: dict[str, Any]) -> dict[str, Any]:
        """What the catalogue says of the tasks, so that the spec of a run says every rung."""
        names = data.get("tasks", natural())
        given = {field: data.get(field, {}) for field in ("ladders", "params")}
        if not isinstance(names, list | tuple) or not all(isinstance(v, Mapping) for v in given.values()):
            return data  # the fields say what they take
        ladders = {name: dict(NAMES[name].ladder) for name in names if name in NAMES and NAMES[name].ladder}
        params = {name: settings for name, settings in GRID.items() if name in names}
        return {**data, "ladders": {**ladders, **given["ladders"]}, "params": {**params, **given["params"]}}

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if len(set(self.tasks)) < len(self.tasks):
            raise ValueError("tasks names something twice")
        for name in self.tasks:
            if name not in NAMES and not is_file(name):
                raise ValueError(f"there is no task '{name}'; `interp tasks list` shows those that there are")
        for field, given in (("ladders", self.ladders), ("params", self.params)):
            for name, values in given.items():
                if name not in self.tasks:
                    raise ValueError(f"{field}: '{name}' is not among the tasks")
                if name in NAMES and (unknown := [p for p in values if p not in NAMES[name].params]):
                    raise ValueError(f"{field}: task {name} has no parameter '{unknown[0]}'")
        if empty := [f"{t}.{p}" for t, ladder in self.ladders.items() for p, s in ladder.items() if not s]:
            raise ValueError(f"ladders: {empty[0]} has no sizes")
        return self

    def rungs(self, name: str) -> list[Rung]:
        """The sizes of a task, ladder by ladder; one without a ladder has one."""
        fixed, ladder, defaults = self.params.get(name, {}), self.ladders.get(name, {}), info(name).params
        if not ladder:
            return [Rung(name, "", None, 0, fixed)]
        out = []
        for param, sizes in ladder.items():
            for place, size in enumerate(sizes):
                settings = {**fixed, param: size}
                # The default size is one question, whichever ladder it stands in.
                settings = {k: v for k, v in settings.items() if v != defaults.get(k, v) or k not in defaults}
                out.append(Rung(name, param, size, place, settings))
        return out
