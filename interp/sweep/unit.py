"""Run one unit: its model, its task, what its locator finds, what its cut does to the task.

A `Bench` is what a worker keeps between units: the model that is loaded, the tasks that were made, the rankings that
were found. The same unit gives the same rows on any bench, in any process.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from interp.errors import UsageError
from interp.measure.effects import measure
from interp.measure.known import known_to
from interp.measure.outcomes import Progress
from interp.models.subject import CausalLM
from interp.runs import HOST, PACKAGES
from interp.sweep.mechanisms import CUTS, LOCATORS, Found
from interp.sweep.spec import ModelItem, TaskItem, Unit
from interp.sweep.store import Store
from interp.tasks.base import Task

VERSION = 1
"""Of what a unit is; part of every key."""

AWAY = 10_000
"""A locator without a task of its own is fitted on the unit's, drawn with a seed that is so far away."""

WAIT = 0.5
"""Seconds between two looks at a ranking that another launcher makes."""

METRICS = ("accuracy", "choice", "logit_diff", "logprob")


@dataclass(frozen=True)
class Identity:
    """What a unit's numbers depend on.

    Attributes:
        key: name of its result.
        facts: fingerprint, data, dtype, versions of locator and cut: the same for the same numbers.
        locator_key: name of its ranking.
    """

    key: str
    locator_key: str
    facts: Mapping[str, Any]


@dataclass
class Bench:
    """What a worker keeps between units.

    Args:
        store: where rankings are kept, so that units that need the same one find it once.
        device: of the models.
        threads: of torch, part of every key.
    """

    store: Store
    device: str = "auto"
    threads: int = 1
    _model: tuple[ModelItem, CausalLM] | None = None
    _tasks: dict[tuple[str, int], Task] = field(default_factory=dict)

    def subject(self, item: ModelItem) -> CausalLM:
        """The model of a unit; the one before it is let go."""
        if self._model is None or self._model[0] != item:
            from interp.models.load import load

            self._model = None
            self._tasks.clear()
            torch.set_num_threads(self.threads)
            made = load(item.model, device=self.device, **item.set)
            if not isinstance(made, CausalLM):
                raise UsageError(f"sweep: '{item.model}' is no language model")
            self._model = item, made
        return self._model[1]

    def task(self, item: TaskItem, seed: int) -> Task:
        """A task as it is drawn, before what the model does not know is left out."""
        key = item.model_dump_json(), seed
        if key not in self._tasks:
            import interp

            given = dict(item.set)
            self._tasks[key] = (
                interp.task(item.task, **given)
                if item.task.endswith(".jsonl")
                else interp.task(item.task, **{"seed": seed, **given})
            )
        return self._tasks[key]

    def identity(self, unit: Unit) -> Identity:
        """Key and facts of a unit; no forward pass is made.

        Raises:
            UsageError, MissingResource: the model, a task or a parameter of one is not there.
        """
        subject = self.subject(unit.model)
        locator, cut = LOCATORS[unit.locator.name], CUTS[unit.cut.name]
        on = self._on(unit)
        facts: dict[str, Any] = {
            "fingerprint": subject.fingerprint,
            "dtype": str(subject.dtype).removeprefix("torch."),
            "data": data_of(self.task(unit.task, unit.seed), subject),
            "located_on": "" if on is None else data_of(self.task(*on), subject),
            "threads": self.threads,
            "locator_version": locator.version,
            "cut_version": cut.version,
            "version": VERSION,
        }
        shared = {k: v for k, v in facts.items() if k not in ("data", "cut_version")}
        told = unit.model_dump(mode="json")
        known = bool(on and on[0].known)
        located = {"unit": [told["model"], told["locator"], unit.seed, known], **shared}
        return Identity(_hash({"unit": told, **facts}), _hash(located), facts)

    def _on(self, unit: Unit) -> tuple[TaskItem, int] | None:
        if not LOCATORS[unit.locator.name].fitted:
            return None
        return (
            (unit.task, unit.seed + AWAY)
            if unit.locator.fit_on is None
            else (unit.locator.fit_on, unit.seed + AWAY)
        )

    def _ready(self, item: TaskItem, seed: int, subject: CausalLM) -> Task:
        task = self.task(item, seed)
        if not item.known:
            return task
        key = f"known {item.model_dump_json()}", seed
        if key not in self._tasks:
            self._tasks[key] = known_to(subject, task)
        return self._tasks[key]

    # -- running -----------------------------------------------------------------------------------------------------

    def run(self, unit: Unit, identity: Identity | None = None, progress: Progress | None = None) -> Result:
        """The rows of a unit, and what is recorded beside them.

        Raises:
            InterpError: what the locator, the cut or the task cannot do.
        """
        identity = identity or self.identity(unit)
        begun, cpu = time.time(), time.process_time()
        subject = self.subject(unit.model)
        ranking = self.ranking(unit, identity, progress)
        located = time.process_time() - cpu
        on = self._on(unit)
        task = self._ready(unit.task, unit.seed, subject)
        found = Found(subject, ranking, task, None if on is None else self._ready(*on, subject), unit.seed)
        cut = CUTS[unit.cut.name]
        conditions = cut.plan(found, **{**cut.params, **unit.cut.set})
        frame = measure(
            subject,
            task,
            conditions,
            metrics=_metrics(task, subject),
            off_target=(),
            role=unit.task.role or ("off_target" if unit.task.task == "prose" else "target"),
            mechanism=cut.takes,
            locator=unit.locator.label,
            seed=unit.seed,
            floor="mark",
            progress=progress,
        )
        spent = {
            "cpu_seconds": time.process_time() - cpu,
            "locate_cpu_seconds": located,
            "wall_seconds": time.time() - begun,
            "examples": len(task.examples(subject)),
            "conditions": len(conditions) + 1,
            "forwards": (len(conditions) + 1) * len(task.examples(subject)),
        }
        return Result(_labelled(frame, unit, identity), {**self.about(unit, identity), **spent, "at": begun})

    def ranking(self, unit: Unit, identity: Identity, progress: Progress | None = None) -> pd.DataFrame:
        """What a unit's locator finds, from the store where it was found before, or where another launcher finds it."""
        key = identity.locator_key
        while not self.store.done(key):
            with self.store.claim(key) as mine:
                if mine and not self.store.done(key):
                    self.store.put(key, self._located(unit, progress), self._of_ranking(unit, identity))
            if not mine:
                time.sleep(WAIT)
        return self.store.frame(key)

    def _located(self, unit: Unit, progress: Progress | None) -> pd.DataFrame:
        subject, on = self.subject(unit.model), self._on(unit)
        kind = LOCATORS[unit.locator.name]
        data = None if on is None else self._ready(*on, subject)
        made = kind.locate(subject, data, unit.seed, progress, **{**kind.params, **unit.locator.set})
        return made[["component", "score"]].astype({"component": str}).reset_index(drop=True)

    def _of_ranking(self, unit: Unit, identity: Identity) -> dict[str, Any]:
        return {"ranking": unit.locator.label, **self.about(unit, identity)}

    def about(self, unit: Unit, identity: Identity) -> dict[str, Any]:
        """What is recorded beside a result: what made it, where."""
        return {
            "unit": unit.model_dump(mode="json"),
            "label": unit.label,
            **identity.facts,
            "versions": versions(),
            "commit": commit(),
            "host": HOST,
            "pid": os.getpid(),
            "python": platform.python_version(),
            "device": str(self.subject(unit.model).device),
        }


@dataclass(frozen=True)
class Result:
    """A unit's rows, and what is recorded beside them."""

    frame: pd.DataFrame
    about: dict[str, Any]


def data_of(task: Task, subject: CausalLM) -> str:
    """Hash of a task's examples, ids, answers, spans and twins' ids."""
    own = hashlib.sha256()
    for example in task.examples(subject):
        own.update(example.key().encode())
        for kind, twin in sorted(example.corrupt.items()):
            own.update(f"{kind}{twin.key()}".encode())
    return own.hexdigest()[:16]


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:32]


def _metrics(task: Task, subject: CausalLM) -> tuple[str, ...]:
    return METRICS if any(e.candidates for e in task.examples(subject)) else ("nll",)


def _labelled(frame: pd.DataFrame, unit: Unit, identity: Identity) -> pd.DataFrame:
    """Rows of `measure` with what tells units apart, and what made them."""
    return frame.assign(
        unit=identity.key,
        task=unit.task.label,
        cut=unit.cut.label,
        located_on="" if unit.locator.fit_on is None else unit.locator.fit_on.label,
        fingerprint=identity.facts["fingerprint"],
        data=identity.facts["data"],
        dtype=identity.facts["dtype"],
        threads=identity.facts["threads"],
        versions=json.dumps(versions(), sort_keys=True),
        commit=commit(),
    )


@cache
def versions() -> dict[str, str]:
    """Versions of the packages that numbers depend on."""
    from interp import __version__

    return {"interp": __version__, **{name: metadata.version(name) for name in PACKAGES}}


@cache
def commit() -> str:
    """Commit of the source, with a `+` where it was changed since; empty where there is no repository."""

    def git(*words: str) -> str:
        try:
            done = subprocess.run(
                ["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10
            )
        except (OSError, subprocess.TimeoutExpired):
            return ""
        return done.stdout.strip() if done.returncode == 0 else ""

    head = git("rev-parse", "--short=12", "HEAD")
    return head + ("+" if head and git("status", "--porcelain", "--untracked-files=no") else "")
