"""Studies of several tasks: each is asked at one setting after another, until the model is above the floor."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Mapping
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, TypeVar

import pandas as pd

from interp.errors import BrokenData, NoAcceptedExample
from interp.studies.base import Study

if TYPE_CHECKING:
    from interp.tasks.base import Example


S = TypeVar("S", bound=Any)
"""A spec with `tasks` (settings of each, in the order in which they are tried) and `keep_at_chance`."""


class TaskStudy(Study[S]):
    """A study that goes on with the tasks that the model does above the floor."""

    judged_by = "choice"
    """Metric that the floor is judged by; where a task has no choice, another one is taken, and named in the table."""

    @abstractmethod
    def asked(self, name: str, settings: Mapping[str, Any]) -> list[Example]:
        """Examples that the floor of a task is judged on."""

    @cached_property
    def floors(self) -> pd.DataFrame:
        """Every setting that was tried of each task, the first above the floor last and `taken`.

        Columns: task, settings (JSON), n, accuracy, choice, logit_diff, judged, ci_lo, ci_hi, chance, status (`ok`, `at
        chance`, `not asked`), taken.
        """
        found = [
            self.job.table(f"parts/floor-{name}", partial(self._floor, name)) for name in self.spec.tasks
        ]
        return pd.concat(found, ignore_index=True)

    def _floor(self, name: str) -> pd.DataFrame:
        from interp.measure.effects import at_chance, floor_metric, guess
        from interp.measure.outcomes import evaluate
        from interp.measure.plans import CLEAN
        from interp.measure.stats import proportion_ci

        rows: list[dict[str, Any]] = []
        for settings in self.spec.tasks[name]:
            row: dict[str, Any] = {"task": name, "settings": json.dumps(settings, sort_keys=True), "n": 0}
            try:
                examples = self.asked(name, settings)
                with self.stage(f"floor: {name} {row['settings']}") as report:
                    found = evaluate(self.subject, examples, {CLEAN: None}, progress=report)
            except (NoAcceptedExample, BrokenData) as why:
                self.job.remark(str(why))
                rows.append(row | {"status": "not asked", "taken": False})
                continue
            values = found.values[CLEAN]
            judged = floor_metric(found, (self.judged_by,))
            low, high = proportion_ci(values[judged], found.clusters)
            done = not at_chance(found)
            row |= {m: float(values[m].mean()) for m in ("accuracy", "choice", "logit_diff")}
            row |= {"n": len(examples), "judged": judged, "ci_lo": low, "ci_hi": high}
            row |= {"chance": guess(examples, judged)}
            rows.append(row | {"status": "ok" if done else "at chance", "taken": done})
            if done:
                break
        if not rows[-1]["taken"]:
            self.job.remark(f"{name}: the model is at chance at every setting, so no effect on it is told")
            if self.spec.keep_at_chance and rows[-1]["n"]:
                rows[-1]["taken"] = True
        return pd.DataFrame(rows)

    @cached_property
    def taken(self) -> dict[str, dict[str, Any]]:
        """The tasks that the study goes on with, and their settings."""
        own = self.floors[self.floors["taken"]]
        return {r.task: json.loads(str(r.settings)) for r in own.itertuples()}
