"""A sweep and its folder: what is to be done, what is done, and the merged table.

A folder belongs to one spec. It holds `spec.yaml`, `keys.json` (the key of each unit), the store, and `results.parquet`
once merged. A store may be shared: with `store=` several sweeps, or several launchers of one, use the same results.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from interp.errors import NoAcceptedExample, UsageError
from interp.runs import Run, write_bytes, write_frame
from interp.sweep.executors import Executor, executor
from interp.sweep.spec import SweepSpec, Unit, read_sweep
from interp.sweep.store import Store
from interp.sweep.worker import Done, Job, Settings

WAIT = 1.0
"""Seconds between two looks at units that another launcher holds."""

Told = Callable[[Done, Job, int, int], None]
"""Told about each unit that ended, with how many are settled, of how many."""


class Sweep:
    """The units of a spec in a folder.

    Args:
        folder: of this sweep; made if it is not there.
        store: folder of results; default `folder/store`.

    Raises:
        UsageError: the folder holds another spec.
        MissingResource: it cannot be written.
    """

    def __init__(self, spec: SweepSpec, folder: str | Path, store: str | Path | None = None):
        self.spec = spec
        self.folder = Path(folder)
        Run(self.folder, spec)
        self.store = Store(store or self.folder / "store")
        self._jobs: tuple[Job, ...] | None = None

    @property
    def settings(self) -> Settings:
        """What workers are told."""
        return Settings(str(self.store.folder), self.spec.device, self.spec.threads)

    def jobs(self) -> tuple[Job, ...]:
        """All units with their keys, in the order of the spec; models are loaded and tasks made, nothing is run.

        Raises:
            UsageError, MissingResource: a model, a task or a parameter is not there; the message names the unit.
        """
        if self._jobs is None:
            bench = self.settings.bench()
            self._jobs = tuple(self._job(unit, bench) for unit in self.spec.units())
            keys = {job.unit.canonical(): [job.key, job.locator_key, dict(job.facts)] for job in self._jobs}
            write_bytes(self.folder / "keys.json", json.dumps(keys, indent=1).encode())
        return self._jobs

    @staticmethod
    def _job(unit: Unit, bench: Any) -> Job:
        try:
            own = bench.identity(unit)
        except UsageError as error:
            raise UsageError(f"{unit.label}: {error}") from error
        return Job(unit, own.key, own.locator_key, own.facts)

    def known_jobs(self) -> tuple[Job, ...]:
        """The jobs as they were found before, without loading a model; empty where they never were."""
        path = self.folder / "keys.json"
        if self._jobs is not None or not path.exists():
            return self._jobs or ()
        keys: Mapping[str, Any] = json.loads(path.read_text())
        return tuple(
            Job(unit, *keys[unit.canonical()]) for unit in self.spec.units() if unit.canonical() in keys
        )

    def run(
        self, how: str | Executor = "serial", *, failed: bool = False, told: Told | None = None
    ) -> Counter[str]:
        """Run what is not done, and wait for what other launchers do.

        Args:
            how: an executor, or its name.
            failed: try units again that failed.
            told: told about each unit that ends.

        Returns:
            how many units are done, there (already), failed.

        Raises:
            DiskFull: the store cannot be written.
        """
        jobs = {job.key: job for job in self.jobs()}
        self.store.clear()
        settings = Settings(self.settings.store, self.spec.device, self.spec.threads, failed)
        runner = executor(how) if isinstance(how, str) else how
        count: Counter[str] = Counter()
        for done in self._settled(jobs, runner, settings):
            count[done.state] += 1
            if told is not None:
                told(done, jobs[done.key], sum(count.values()), len(jobs))
        return count

    def _settled(self, jobs: Mapping[str, Job], runner: Executor, settings: Settings) -> Iterator[Done]:
        left = []
        for key, job in jobs.items():
            if self.store.done(key):
                yield Done(key, "there")
            else:
                left.append(job)
        while left:
            held = []
            for done in runner.run(left, settings):
                if done.state == "held":
                    held.append(jobs[done.key])
                else:
                    yield done
            # Who holds them ends them, or dies; in both cases there is something to do later.
            left = held
            if left:
                time.sleep(WAIT)

    def status(self) -> pd.DataFrame:
        """One row a unit: label, state (done, failed, running, waiting), seconds, error, key."""
        rows = []
        for job in self.known_jobs() or self.jobs():
            about = self.store.about(job.key)
            state = (
                "done"
                if self.store.done(job.key)
                else "running"
                if self.store.claimed(job.key)
                else "failed"
                if self.store.failed(job.key)
                else "waiting"
            )
            rows.append(
                {
                    "unit": job.unit.label,
                    "state": state,
                    "cpu_seconds": about.get("cpu_seconds"),
                    "error": about.get("error", "") if state == "failed" else "",
                    "key": job.key,
                }
            )
        return pd.DataFrame(rows)

    def to_frame(self) -> pd.DataFrame:
        """The results of all units that are done, in the order of the spec.

        Raises:
            NoAcceptedExample: none is.
        """
        parts = [
            self.store.frame(job.key) for job in self.known_jobs() or self.jobs() if self.store.done(job.key)
        ]
        if not parts:
            raise NoAcceptedExample(f"no unit of '{self.spec.name}' is done yet; run it first")
        return pd.concat(parts, ignore_index=True)

    def merge(self) -> Path:
        """Write the merged table, `results.parquet`, and return its path."""
        path = self.folder / "results.parquet"
        write_frame(path, self.to_frame())
        return path


def sweep(
    spec: SweepSpec | Mapping[str, Any] | str | Path,
    folder: str | Path | None = None,
    how: str | Executor = "serial",
    *,
    store: str | Path | None = None,
    failed: bool = False,
    told: Told | None = None,
) -> Sweep:
    """Run what is left of a sweep, and give it back.

    Args:
        spec: the spec, its fields, or a YAML file.
        folder: default `runs/NAME`.
        how: an executor, or its name.
        store: folder of results, if it is shared.
        failed: try units again that failed.
        told: told about each unit that ends.

    Raises:
        UsageError: a fault in the spec. MissingResource: no such model, or no room on the disk.
    """
    if not isinstance(spec, SweepSpec):
        spec = read_sweep(spec) if isinstance(spec, str | Path) else SweepSpec(**spec)
    made = Sweep(spec, folder or Path("runs") / spec.name.replace(" ", "-"), store)
    made.run(how, failed=failed, told=told)
    return made
