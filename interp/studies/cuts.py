"""The parts of a study that cut: the map, dose curves, sufficient sets, and cut x task."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import pandas as pd

from interp.measure.plans import Condition, dose, sufficient, with_controls
from interp.studies.spec import MECHANISM
from interp.studies.tables import adjusted, areas, by_locator, joined, map_effects, rows_of

if TYPE_CHECKING:
    from interp.measure.effects import Role
    from interp.studies.heads import HeadsStudy
    from interp.tasks.base import Example, Task

OTHERS = ("norm", "entropy")
"""Kinds of control beside those matched by layer that a dose curve has, and `bottom`."""

GENERATED = {"reading": ("f1", "exact"), "arithmetic": ("number",), "arithmetic_cot": ("number",)}
"""Tasks whose answers are generated, and their metrics."""

HAYSTACK = ("paraphrase", "multi_key", "multi_value", "multi_hop")
"""Tasks in a haystack that take a length and a half of the prose."""


def needle_map(study: HeadsStudy) -> None:
    """Held-out needles of the whole grid, uncut, with the top heads cut and with matched others cut."""
    spec, subject = study.spec, study.subject
    units: dict[str, list[Example]] = {}
    for example in study.grid("map").examples(subject):
        units.setdefault(example.cluster, []).append(example)
    ranked = study.ranked(spec.method, study.top)
    plan = [Condition(None, "clean")]
    for mode in spec.map_modes:
        cut = study.cut(mode, "answer").with_components(ranked)
        plan += with_controls(subject, cut, controls=spec.map_controls, seed=spec.seed)

    def unit(number: int, name: str) -> pd.DataFrame:
        from interp.measure.outcomes import evaluate

        conditions = {c.name: c.intervention for c in plan}
        with study.stage(f"needle map: haystack {number + 1} of {len(units)}") as report:
            found = evaluate(subject, units[name], conditions, progress=report)
        return rows_of(found, plan).assign(unit=name, run=found.prefill_tokens)

    parts = [study.job.table(f"parts/map-{i:02}", partial(unit, i, name)) for i, name in enumerate(units)]
    cells = pd.concat(parts, ignore_index=True)
    study.write("cells", cells)
    study.write("map", map_effects(cells, seed=spec.seed))


def dose_curves(study: HeadsStudy) -> None:
    """Held-out needles of one length under cuts of the first k heads of every score type, with controls."""
    spec, subject = study.spec, study.subject

    def make() -> tuple[pd.DataFrame, pd.DataFrame]:
        sizes = study.sizes(spec.doses)
        cut = study.cut(spec.dose_mode, "answer")
        main = study.scores[study.scores["method"] == spec.method]
        plan: dict[str, list[Condition]] = {}
        for method in study.methods:
            plan[method] = dose(subject, study.ranked(method, max(sizes)), sizes, cut, controls=0)
        for kinds, draws in ((("layer",), spec.dose_controls), ((*OTHERS, "bottom"), spec.other_controls)):
            more = dose(
                subject,
                study.ranked(spec.method, max(sizes)),
                sizes,
                cut,
                controls=draws,
                match=kinds,
                data=study.reference,
                ranking=main,
                seed=spec.seed,
            )
            plan[spec.method] += [c for c in more if c.condition == "control"]
        task = study.niah("held", spec.dose_length, spec.dose_n)
        rows, measured = study.measured(task, plan, "dose curves")
        return rows, areas(measured, plan, seed=spec.seed)

    study.together(("dose", "dose_areas"), make)


def sufficient_sets(study: HeadsStudy) -> None:
    """Only the first k heads of a score type may see the needle: the edges of all others to it are knocked out."""
    spec, subject = study.spec, study.subject

    def make() -> tuple[pd.DataFrame, pd.DataFrame]:
        from interp.intervene.ablate import ablate

        sizes = study.sizes(spec.keep)
        cut = ablate([], "knockout", "answer", seed=spec.seed)
        plan = {
            method: sufficient(
                subject,
                study.ranked(method, max(sizes)),
                (0, *sizes),
                cut,
                controls=spec.keep_controls if method == spec.method else 0,
                seed=spec.seed,
            )
            for method in dict.fromkeys((spec.method, *spec.keep_scores))
        }
        task = study.niah("held", spec.dose_length, spec.keep_n)
        rows, measured = study.measured(task, plan, "sufficient sets")
        return rows, areas(measured, plan, seed=spec.seed)

    study.together(("sufficient", "sufficient_areas"), make)


def specificity(study: HeadsStudy) -> None:
    """The top heads of several score types cut everywhere, on tasks that should fall and tasks that should not."""
    parts = []
    for name in study.spec.tasks:
        part = study.job.table(f"parts/task-{name}", partial(study.maybe, partial(_on, study, name)))
        if len(part):
            parts.append(part)
    study.write("specificity", adjusted(pd.concat(parts, ignore_index=True)) if parts else pd.DataFrame())


def _on(study: HeadsStudy, name: str) -> pd.DataFrame:
    """Effects of all cuts on one task."""
    spec, subject = study.spec, study.subject
    task, role = _task(study, name)
    cut = study.cut(spec.task_mode, "all")
    plan = {
        method: with_controls(
            subject,
            cut.with_components(study.ranked(method, study.top)),
            controls=spec.task_controls if method == spec.method else 0,
            seed=spec.seed,
        )
        for method in dict.fromkeys((spec.method, *spec.task_scores))
    }
    if name not in GENERATED:
        return study.measured(task, plan, f"cut everywhere: {name}", role=role)[0].assign(task=name)
    from interp.measure.generation import measure_generated

    with study.stage(f"cut everywhere: {name}") as report:
        told = measure_generated(
            subject,
            task,
            joined(plan),
            metrics=GENERATED[name],
            role=role,
            mechanism=MECHANISM,
            locator=spec.method,
            seed=spec.seed,
            floor="mark",
            progress=report,
        )
    return by_locator(told.effects, plan, ("cut",)).assign(task=name)


def _task(study: HeadsStudy, name: str) -> tuple[Task, Role]:
    """A task by the name that the spec has for it, and what it is for."""
    from interp.measure.known import known_to
    from interp.tasks.base import FixedTask
    from interp.tasks.registry import task

    spec = study.spec
    n = {"n": spec.task_n, "seed": spec.seed}
    if name == "needle":
        return study.niah("held", spec.task_length, spec.task_n), "target"
    if name in HAYSTACK:
        return task(name, length=spec.task_length, haystack="test", **n), "target"
    if name in ("reading", "induction"):
        return task(name, **n), "target"
    if name in ("arithmetic", "arithmetic_cot"):
        return task("arithmetic", style="cot" if name.endswith("cot") else "direct", **n), "control_task"
    if name == "facts":
        with study.stage("facts the model knows") as report:
            asked = task("facts", n=3 * spec.task_n, seed=spec.seed)
            known = known_to(study.subject, asked, progress=report).examples(study.subject)
        return FixedTask(known[: spec.task_n], name="facts"), "control_task"
    return task("prose", **n), "off_target"


PARTS: dict[str, Callable[[HeadsStudy], None]] = {
    "map": needle_map,
    "dose": dose_curves,
    "sufficient": sufficient_sets,
    "specificity": specificity,
}
"""What makes each part that cuts."""
