"""The circuit-reuse study, part by part: from a spec to a folder of tables, going on where it stopped.

`tasks`: which tasks the model does above the floor, and at which setting. `circuits`: heads that carry each task, by
stage. `overlap`: what circuits share, against chance. `matrix`: each circuit cut on each task, beside random heads.
`repair`: heads of Colored Objects made to look where they should. Circuits are found on one seed, measured on another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import pandas as pd

from interp.studies.floors import TaskStudy
from interp.studies.reuse.spec import ReuseSpec

if TYPE_CHECKING:
    from interp.models.sites import Head
    from interp.tasks.base import Example, Task

HAYSTACKS = {"niah": ("train", "test")}
"""Tasks whose circuits are found in one half of the haystack and measured in the other."""

KINDS = ("effects", "matrix", "contrasts")
"""Tables of the cross-task matrix, in the order in which `CrossTask` has them."""


class ReuseStudy(TaskStudy[ReuseSpec]):
    """The parts of a study of circuit reuse."""

    def tables(self) -> None:
        """Every part of the spec, in order."""
        parts = self.spec.parts
        if {"tasks", "circuits", "overlap", "matrix"} & set(parts):
            self.write("tasks", self.floors)
        if {"circuits", "overlap", "matrix"} & set(parts):
            self.write("circuits", self.scores)
        if "overlap" in parts:
            self.overlap()
        if "matrix" in parts:
            self.matrix()
        if "repair" in parts:
            self.repair()

    # -- tasks -------------------------------------------------------------------------------------------------------

    judged_by = "accuracy"

    def asked(self, name: str, settings: Mapping[str, Any]) -> list[Example]:
        """Examples that the floor of a task is judged on."""
        return self.task(name, settings, self.spec.n, held=False).examples(self.subject)

    def task(self, name: str, settings: Mapping[str, Any], n: int, *, held: bool) -> Task:
        """A task: to find heads on, or `held` out to measure."""
        from interp.tasks.registry import task

        own = dict(settings)
        if name in HAYSTACKS:
            own.setdefault("haystack", HAYSTACKS[name][held])
        return task(name, n=n, seed=self.spec.seed + held, **own)

    # -- circuits ----------------------------------------------------------------------------------------------------

    @cached_property
    def scores(self) -> pd.DataFrame:
        """Scores of every head on every task, by stage, and which are the circuit."""
        parts = [
            self.job.table(f"parts/circuit-{name}", partial(self._circuit, name)).assign(task=name)
            for name in self.taken
        ]
        return pd.concat(parts or [pd.DataFrame()], ignore_index=True)

    def _circuit(self, name: str) -> pd.DataFrame:
        from interp.studies.reuse.circuits import LOCATORS, marked, n_heads

        spec, subject = self.spec, self.subject
        examples = self.task(name, self.taken[name], spec.locate_n, held=False).examples(subject)
        with self.stage(f"circuit: {name}") as report:
            scores = LOCATORS[spec.method](subject, examples, spec, report)
        return marked(scores, n_heads(subject, spec)).assign(method=spec.method)

    @cached_property
    def circuits(self) -> dict[str, list[Head]]:
        """Heads of each task's circuit."""
        from interp.studies.reuse.circuits import heads_of

        return {name: heads_of(self.scores[self.scores["task"] == name]) for name in self.taken}

    def overlap(self) -> None:
        """What the circuits share: whole, stage by stage, and all of them together."""
        from interp.locate.circuits.sharing import core, overlaps
        from interp.studies.reuse.circuits import heads_of

        if len(self.circuits) < 2:
            self.job.remark("fewer than two tasks are above the floor, so there is no overlap to tell")
            return
        every = self.subject.heads()
        frames = [overlaps(self.circuits, every).assign(stage="all")]
        for stage in dict.fromkeys(self.scores["stage"]):
            own = self.scores[self.scores["stage"] == stage]
            sets = {name: heads_of(own[own["task"] == name], stage) for name in dict.fromkeys(own["task"])}
            if len(sets) > 1:
                frames.append(overlaps(sets, every).assign(stage=stage))
        self.write("overlap", pd.concat(frames, ignore_index=True))
        self.write("core", core(self.circuits, every))

    # -- matrix ------------------------------------------------------------------------------------------------------

    def matrix(self) -> None:
        """Every circuit cut on held-out examples of every task."""
        from interp.measure.cross_task import CrossTask, gathered

        rows = []
        for name in self.taken:
            files = [f"parts/{kind}-{name}" for kind in KINDS]
            rows.append(CrossTask(*self.together(files, partial(self._crossed, name))))
        if rows:
            found = gathered(rows)
            for kind in KINDS:
                self.write(kind, getattr(found, kind))

    def _crossed(self, name: str) -> list[pd.DataFrame]:
        """The tables of one task: every circuit cut on it."""
        from interp.measure.cross_task import cut_on

        spec = self.spec
        with self.stage(f"cross-task matrix: {name}") as report:
            found = cut_on(
                self.subject,
                self.circuits,
                name,
                self.task(name, self.taken[name], spec.n, held=True),
                mode=spec.mode,
                scope=spec.scope,
                controls=spec.controls,
                match=spec.match,
                seed=spec.seed,
                progress=report,
            )
        return [getattr(found, kind) for kind in KINDS]

    # -- repair ------------------------------------------------------------------------------------------------------

    def repair(self) -> None:
        """Colored Objects with the attention of some heads set by hand."""
        from interp.studies.reuse.repair import against_random

        search = self.job.table("repair_search", self._searched)
        sizes = self.job.table("repair_sizes", partial(self._sized, search))
        effects, _ = self.together(("repair", "repair_split"), partial(self._repaired, search, sizes))
        self.write("repair_contrast", against_random(effects))

    def _repaired(self, search: pd.DataFrame, sizes: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
        from interp.studies.reuse.repair import tested

        with self.stage("repair: test") as report:
            return tested(
                self.subject,
                self._split("test"),
                self._sets(search, sizes),
                controls=self.spec.repair_controls,
                seed=self.spec.seed,
                progress=report,
            )

    def _searched(self) -> pd.DataFrame:
        from interp.studies.reuse.repair import tried

        with self.stage("repair: every head") as report:
            return tried(self.subject, self._split("train"), self.spec.repair_to, report)

    def _sized(self, search: pd.DataFrame) -> pd.DataFrame:
        from interp.studies.reuse.repair import sized

        with self.stage("repair: how many heads") as report:
            return sized(self.subject, self._split("validation"), search, self.spec.repair_sizes, report)

    def _sets(self, search: pd.DataFrame, sizes: pd.DataFrame) -> dict[str, tuple[str, Sequence[Head]]]:
        """Repairs that are tested: what validation chose, and the paper's number of all heads and of ioi's, by role."""
        from interp.studies.reuse.repair import best

        (row,) = sizes[sizes["chosen"]].to_dict("records")
        sets: dict[str, tuple[str, Sequence[Head]]] = {
            "chosen on validation": (row["to"], best(search, row["to"], int(row["k"])))
        }
        k = min(self.spec.repair_paper, len(self.subject.heads()) // 2)
        for role in self.spec.repair_to:
            sets[f"top {k} to {role}"] = (role, best(search, role, k))
        if {"circuits", "overlap", "matrix"} & set(self.spec.parts) and "ioi" in self.taken:
            # The paper's own repair: heads that ioi uses and Colored Objects does not.
            for role in self.spec.repair_to:
                heads = best(search, role, k, self.circuits["ioi"])
                sets[f"{len(heads)} of ioi to {role}"] = (role, heads)
        return sets

    def _split(self, use: str) -> list[Example]:
        """Examples of Colored Objects; each of the three splits has a seed of its own."""
        from interp.tasks.registry import task

        spec = self.spec
        n = {"train": spec.repair_train, "validation": spec.repair_validation, "test": spec.repair_test}[use]
        number = ("train", "validation", "test").index(use)
        seed = 3 * spec.seed + number + 1000
        return task("colored_objects", shots=spec.repair_shots, n=n, seed=seed).examples(self.subject)


run = ReuseStudy.run
