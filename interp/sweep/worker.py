"""What is done for one unit, wherever it runs: claim it, run it, record what came of it."""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from interp.errors import UsageError
from interp.measure.outcomes import Progress
from interp.models.batch import smaller_batches
from interp.runs import HOST
from interp.sweep.spec import Unit
from interp.sweep.store import DiskFull, Store
from interp.sweep.unit import Bench, Identity, Result

HALVINGS = 6
"""Times that batches are halved where memory runs out, before the unit counts as failed."""

State = Literal["done", "failed", "held", "there"]
"""Of a unit: run now, raised, held by another launcher, or there already."""


@dataclass(frozen=True)
class Job:
    """A unit with its key: data that can be sent anywhere."""

    unit: Unit
    key: str
    locator_key: str
    facts: Mapping[str, Any]

    @property
    def identity(self) -> Identity:
        """What its numbers depend on."""
        return Identity(self.key, self.locator_key, self.facts)


@dataclass(frozen=True)
class Settings:
    """What every worker is told.

    Attributes:
        store: its folder.
        device, threads: of the models.
        failed: try units again that failed.
        elsewhere: the worker may be on another machine than the one that planned; what it makes of a unit is
            compared with the plan before the unit is run.
        cwd: relative paths in a spec start there; empty where the worker is in it.
    """

    store: str
    device: str = "auto"
    threads: int = 1
    failed: bool = False
    elsewhere: bool = False
    cwd: str = ""

    def sent(self) -> Settings:
        """The same for a worker in another process, perhaps on another machine."""
        return replace(self, store=str(Path(self.store).resolve()), elsewhere=True, cwd=os.getcwd())

    def bench(self) -> Bench:
        """A bench of its own for a worker."""
        if self.cwd and Path(self.cwd).is_dir():
            os.chdir(self.cwd)
        return Bench(Store(self.store), self.device, self.threads)


@dataclass(frozen=True)
class Done:
    """What came of a unit."""

    key: str
    state: State
    seconds: float = 0.0
    error: str = ""


def settled(job: Job, store: Store, settings: Settings) -> Done | None:
    """What came of a unit, where nothing is to be run for it now."""
    if store.done(job.key):
        return Done(job.key, "there")
    if store.failed(job.key) and not settings.failed:
        return Done(job.key, "failed", error=str(store.about(job.key).get("error", "")))
    if store.claimed(job.key):
        return Done(job.key, "held")
    return None


def unsettled(jobs: Sequence[Job], store: Store, settings: Settings) -> Generator[Done, None, list[Job]]:
    """Say what came of the units for which nothing is to be run, and return the others."""
    left = []
    for job in jobs:
        already = settled(job, store, settings)
        if already is None:
            left.append(job)
        else:
            yield already
    return left


def work(job: Job, bench: Bench, settings: Settings, progress: Progress | None = None) -> Done:
    """Run a unit unless its result is there, and record it; a unit that raises is recorded as failed.

    Raises:
        DiskFull: the store cannot be written.
    """
    store, begun = bench.store, time.monotonic()
    already = settled(job, store, settings)
    if already is not None:
        return already
    with store.claim(job.key) as mine:
        if not mine:
            return Done(job.key, "held")
        # Another launcher may have ended it between the look and the claim.
        if store.done(job.key):
            return Done(job.key, "there")
        try:
            if settings.elsewhere:
                _as_planned(job, bench)
            result = _run(job, bench, progress)
        except DiskFull:
            raise
        except Exception as error:
            told = " ".join(f"{type(error).__name__}: {error}".split())
            store.fail(job.key, {"error": told, "trace": traceback.format_exc(), **_of(job)})
            return Done(job.key, "failed", time.monotonic() - begun, told)
        store.put(job.key, result.frame, result.about)
    return Done(job.key, "done", time.monotonic() - begun)


def give_up(job: Job, store: Store, reason: str) -> Done:
    """Record a unit whose workers die as failed, unless somebody has its result by now.

    Raises:
        DiskFull: the store cannot be written.
    """
    if store.done(job.key):
        return Done(job.key, "there")
    store.fail(job.key, {"error": reason, "trace": "", **_of(job)})
    return Done(job.key, "failed", error=reason)


def _as_planned(job: Job, bench: Bench) -> None:
    here = bench.identity(job.unit)
    if here.key != job.key:
        other = [
            f"{name} is {here.facts.get(name)} and not {planned}"
            for name, planned in job.facts.items()
            if here.facts.get(name) != planned
        ]
        raise UsageError(
            f"this worker on {HOST} would run another unit than the one that was planned: {', '.join(other)}"
        )


def _run(job: Job, bench: Bench, progress: Progress | None) -> Result:
    share = 1.0
    for _ in range(HALVINGS):
        try:
            with smaller_batches(share):
                result = bench.run(job.unit, job.identity, progress)
            result.about["batch_share"] = share
            return result
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            share /= 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    with smaller_batches(share):
        return bench.run(job.unit, job.identity, progress)


def out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on any device.

    >>> out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"))
    True
    """
    text = str(error).lower()
    return (
        isinstance(error, MemoryError | torch.OutOfMemoryError)
        or "out of memory" in text
        or "can't allocate memory" in text
    )


def _of(job: Job) -> dict[str, Any]:
    return {"unit": job.unit.model_dump(mode="json"), "label": job.unit.label, **job.facts}
