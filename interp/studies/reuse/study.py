"""The circuit-reuse study, part by part: from a spec to a folder of tables, going on where it stopped.

`tasks`: which tasks the model does above the floor, and at which setting. `circuits`: heads that carry each task, by
stage. `overlap`: what circuits share, against chance. `matrix`: each circuit cut on each task, beside random heads.
`repair`: heads of Colored Objects made to look where they should. Circuits are found on one seed, measured on another.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from interp.errors import BrokenData, NoAcceptedExample
from interp.runs import Run, write_frame
from interp.studies.reuse.spec import ReuseSpec

if TYPE_CHECKING:
    from interp.models.sites import Head
    from interp.models.subject import CausalLM
    from interp.tasks.base import Example, Task

Report = Callable[[int, int, str], None]
Stage = Callable[[str], AbstractContextManager[Report | None]]

HAYSTACKS = {"niah": ("train", "test")}
"""Tasks whose circuits are found in one half of the haystack and measured in the other."""


def run(
    spec: ReuseSpec, folder: str | Path, *, subject: CausalLM | None = None, stage: Stage | None = None
) -> Run:
    """Run a study into a folder, going on where an earlier run of the same spec stopped.

    Args:
        folder: holds spec.yaml, provenance.json, the tables, and under parts/ what a killed run goes on from.
        subject: the model, if it is loaded already.
        stage: shows progress; called with the name of each stage, gives a `report(done, total, what)`.

    Returns:
        the run; its `done` and `skipped` name the parts.

    Raises:
        UsageError: the folder holds another study or other weights.
    """
    job = Run(Path(folder), spec)
    _Study(spec, job, subject, stage or (lambda name: nullcontext(None))).tables()
    return job


class _Study:
    """The parts of one study."""

    def __init__(self, spec: ReuseSpec, job: Run, subject: CausalLM | None, stage: Stage):
        self.spec = spec
        self.job = job
        self.stage = stage
        self._given = subject

    @cached_property
    def subject(self) -> CausalLM:
        """The model, loaded when it is first needed."""
        if self._given is not None:
            return self._given
        from interp.models.load import load

        with self.stage("load model"):
            return load(self.spec.model, device=self.spec.device, dtype=self.spec.dtype)

    def tables(self) -> None:
        """Every part of the spec, in order."""
        s, parts = self.subject, self.spec.parts
        dtype = str(s.dtype).removeprefix("torch.")
        self.job.provenance(
            model=s.name, fingerprint=s.fingerprint, dtype=dtype, device=str(s.device), seed=self.spec.seed
        )
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

    def write(self, name: str, frame: pd.DataFrame) -> None:
        """A table made of parts, written again each time."""
        write_frame(self.job.folder / f"{name}.parquet", frame)

    # -- tasks -------------------------------------------------------------------------------------------------------

    @cached_property
    def floors(self) -> pd.DataFrame:
        """Every setting that was tried of each task, the first above the floor last and `taken`."""
        found = [
            self.job.table(f"parts/floor-{name}", partial(self._floor, name)) for name in self.spec.tasks
        ]
        return pd.concat(found, ignore_index=True)

    def _floor(self, name: str) -> pd.DataFrame:
        from interp.measure.effects import at_chance, floor_metric
        from interp.measure.outcomes import evaluate
        from interp.measure.plans import CLEAN
        from interp.measure.stats import proportion_ci

        rows: list[dict[str, Any]] = []
        for settings in self.spec.tasks[name]:
            row: dict[str, Any] = {"task": name, "settings": json.dumps(settings, sort_keys=True), "n": 0}
            try:
                examples = self.task(name, settings, self.spec.n, held=False).examples(self.subject)
                with self.stage(f"floor: {name} {row['settings']}") as report:
                    found = evaluate(self.subject, examples, {CLEAN: None}, progress=report)
            except (NoAcceptedExample, BrokenData) as why:
                self.job.remark(str(why))
                rows.append(row | {"status": "not asked", "taken": False})
                continue
            judged = floor_metric(found, ("accuracy",))
            low, high = proportion_ci(found.values[CLEAN][judged], found.clusters)
            done = not at_chance(found)
            row |= {m: float(found.values[CLEAN][m].mean()) for m in ("choice", "accuracy", "logit_diff")}
            row |= {"n": len(examples), "judged": judged, "ci_lo": low, "ci_hi": high}
            row |= {"chance": sum(e.chance for e in examples) / len(examples)}
            rows.append(row | {"status": "ok" if done else "at chance", "taken": done})
            if done:
                break
        if self.spec.keep_at_chance and rows[-1]["n"]:
            rows[-1]["taken"] = True
        return pd.DataFrame(rows)

    @cached_property
    def taken(self) -> dict[str, dict[str, Any]]:
        """The tasks that the study goes on with, and their settings."""
        own = self.floors[self.floors["taken"]]
        return {r.task: json.loads(str(r.settings)) for r in own.itertuples()}

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
            made: list[CrossTask] = []
            kinds = ("effects", "matrix", "contrasts")
            frames = [
                self.job.table(f"parts/{kind}-{name}", partial(self._cell, made, name, kind))
                for kind in kinds
            ]
            rows.append(CrossTask(*frames))
        if rows:
            found = gathered(rows)
            self.write("effects", found.effects)
            self.write("matrix", found.matrix)
            self.write("contrasts", found.contrasts)

    def _cell(self, made: list[Any], name: str, kind: str) -> pd.DataFrame:
        from interp.measure.cross_task import cut_on

        spec = self.spec
        if not made:
            with self.stage(f"cross-task matrix: {name}") as report:
                task = self.task(name, self.taken[name], spec.n, held=True)
                made.append(
                    cut_on(
                        self.subject,
                        self.circuits,
                        name,
                        task,
                        mode=spec.mode,
                        scope=spec.scope,
                        controls=spec.controls,
                        match=spec.match,
                        seed=spec.seed,
                        progress=report,
                    )
                )
        frame: pd.DataFrame = getattr(made[0], kind)
        return frame

    # -- repair ------------------------------------------------------------------------------------------------------

    def repair(self) -> None:
        """Colored Objects with the attention of some heads set by hand."""
        from interp.studies.reuse import repair

        spec, subject = self.spec, self.subject
        search = self.job.table("repair_search", self._searched)
        sizes = self.job.table("repair_sizes", partial(self._sized, search))
        made: list[tuple[pd.DataFrame, pd.DataFrame]] = []

        def once(number: int) -> pd.DataFrame:
            if not made:
                with self.stage("repair: test") as report:
                    made.append(
                        repair.tested(
                            subject,
                            self._split("test"),
                            self._sets(search, sizes),
                            controls=spec.repair_controls,
                            seed=spec.seed,
                            progress=report,
                        )
                    )
            return made[0][number]

        self.job.table("repair_split", partial(once, 1))
        effects = self.job.table("repair", partial(once, 0))
        self.write("repair_contrast", repair.against_random(effects))

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
