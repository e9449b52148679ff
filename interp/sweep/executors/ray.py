"""On Ray Core: workers that keep their model, on this machine or on a cluster that is there already.

Each worker is an actor with a bench; it is handed one unit at a time, one of the model it has loaded where there is
one. An actor that dies is replaced and its unit run again.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Ray reads these when it is imported: nothing is reported home, loopback needs no token that lies in the home folder,
# and a worker without a GPU is told so by Ray in any version.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")

import ray
import torch
from ray.exceptions import RayActorError, RayTaskError

from interp.errors import MissingResource, UsageError
from interp.runs import alive
from interp.sweep.spec import ModelItem
from interp.sweep.store import Store
from interp.sweep.worker import Done, Job, Settings, give_up, unsettled, work

DEATHS = 2
"""Workers that may die on a unit before it counts as failed."""

OBJECTS = 100 * 2**20
"""Bytes of Ray's own store, through which only units and their outcomes go; models are loaded by each worker."""

SCRATCH = Path("/tmp") / f"interp-ray-{os.getuid()}"
"""Where Ray's sockets and logs are; a short path, since that of a socket must be."""

LINGER = 5.0
"""Seconds that a dead worker's process may take to be gone."""


class Hand:
    """What runs in a worker's process."""

    def __init__(self, settings: Settings):
        self.settings = settings
        self.bench = settings.bench()

    def ready(self) -> int:
        """Its process id, once it is up."""
        return os.getpid()

    def work(self, job: Job) -> Done:
        """Run a unit."""
        return work(job, self.bench, self.settings)


@dataclass
class Worker:
    """An actor as the driver sees it: what it is doing, and the model that it has loaded."""

    actor: Any
    job: Job | None = None
    model: ModelItem | None = None


class OnRay:
    """Runs jobs on Ray.

    Args:
        address: of a cluster that runs (`auto`, `host:port`); None starts Ray on this machine, and ends it.
        workers: how many; default what there is room for.
        gpus: of a worker; a fraction lets several share one.
        cpus: of a worker; default the threads of a unit.

    Raises:
        UsageError: numbers that make no sense.
    """

    def __init__(
        self,
        address: str | None = None,
        workers: int | None = None,
        gpus: float = 0.0,
        cpus: float | None = None,
    ):
        if workers is not None and workers < 1:
            raise UsageError(f"executor ray: workers is {workers}; take a whole number from 1")
        if gpus < 0 or (gpus > 1 and gpus != int(gpus)):
            raise UsageError(f"executor ray: gpus is {gpus}; take a part of one, or whole ones")
        if cpus is not None and cpus <= 0:
            raise UsageError(f"executor ray: cpus is {cpus}; take more than 0")
        self.address = address
        self.workers = workers
        self.gpus = gpus
        self.cpus = cpus
        self._deaths: Counter[str] = Counter()

    def run(self, jobs: Sequence[Job], settings: Settings) -> Iterator[Done]:
        """Run the jobs.

        Raises:
            DiskFull: the store cannot be written; nothing more is tried.
            UsageError: models go to the GPU and workers have none. MissingResource: no cluster, or no room on it.
        """
        store = Store(settings.store)
        # Ray takes seconds to start: not for units that others hold.
        left = yield from unsettled(jobs, store, settings)
        if not left:
            return
        self._fits(settings)
        own = not ray.is_initialized()
        if own:
            self._start(settings)
        workers: list[Worker] = []
        try:
            yield from self._spread(left, settings.sent(), store, workers)
        finally:
            for worker in workers:
                ray.kill(worker.actor)
            if own:
                ray.shutdown()
                shutil.rmtree(SCRATCH / str(os.getpid()), ignore_errors=True)
            store.clear()

    # -- Ray itself --------------------------------------------------------------------------------------------------

    def _fits(self, settings: Settings) -> None:
        to_gpu = settings.device != "cpu" and torch.cuda.is_available()
        if to_gpu and not self.gpus and self.address is None:
            raise UsageError(
                "executor ray: models go to the GPU here and workers have none; "
                "give a worker a part of it (gpus=0.5), or set 'device: cpu' in the spec"
            )

    def _start(self, settings: Settings) -> None:
        """Start Ray here, or join a cluster."""
        told: dict[str, Any] = {"address": self.address}
        if self.address is None:
            cpus = self._cpus(settings) * (self.workers or 1)
            told = {
                "address": "local",
                "include_dashboard": False,
                "num_cpus": max(os.cpu_count() or 1, int(-(-cpus // 1))),
                "object_store_memory": OBJECTS,
                "_temp_dir": str(scratch()),
            }
        try:
            ray.init(**told, logging_level=logging.ERROR, log_to_driver=False, configure_logging=False)
        except (ConnectionError, ValueError, RuntimeError) as error:
            where = "Ray does not start here" if self.address is None else f"no cluster at '{self.address}'"
            raise MissingResource(f"executor ray: {where} ({' '.join(str(error).split())})") from error

    def _cpus(self, settings: Settings) -> float:
        return self.cpus or settings.threads

    def _room(self, settings: Settings) -> int:
        """Workers that there is room for.

        Raises:
            MissingResource: for none.
        """
        there = ray.cluster_resources()
        room = int(there.get("CPU", 0) // self._cpus(settings))
        if self.gpus:
            gpus = there.get("GPU", 0)
            room = min(room, int(gpus * int(1 / self.gpus) if self.gpus < 1 else gpus // self.gpus))
        if not room:
            raise MissingResource(
                f"executor ray: a worker takes {self._cpus(settings):g} CPUs and {self.gpus:g} GPUs; Ray has "
                f"{there.get('CPU', 0):g} and {there.get('GPU', 0):g}"
            )
        return room

    # -- units -------------------------------------------------------------------------------------------------------

    def _spread(
        self, jobs: Sequence[Job], settings: Settings, store: Store, workers: list[Worker]
    ) -> Iterator[Done]:
        hands = ray.remote(Hand).options(
            num_cpus=self._cpus(settings), num_gpus=self.gpus, max_restarts=0, max_task_retries=0
        )
        waiting: dict[Any, Worker] = {}

        def hire() -> None:
            worker = Worker(hands.remote(settings))
            workers.append(worker)
            waiting[worker.actor.ready.remote()] = worker

        room = self._room(settings)
        for _ in range(min(len(jobs), room if self.workers is None else min(self.workers, room))):
            hire()
        left = list(jobs)
        stillborn = 0
        while waiting:
            (ref,), _ = ray.wait(list(waiting), num_returns=1)
            worker = waiting.pop(ref)
            job, worker.job = worker.job, None
            try:
                came = ray.get(ref)
            except RayActorError as error:
                workers.remove(worker)
                ray.kill(worker.actor)
                reason = f"a worker died: {' '.join(str(error).split())}"
                if job is None:
                    stillborn += 1
                    if stillborn > DEATHS:
                        raise MissingResource(f"executor ray: no worker comes up; {reason}") from error
                else:
                    self._deaths[job.key] += 1
                    if self._deaths[job.key] < DEATHS:
                        _gone(job, store)
                        left.insert(0, job)
                    else:
                        del self._deaths[job.key]
                        yield give_up(job, store, f"{DEATHS} workers died on it; the last time {reason}")
                if left:
                    hire()
                continue
            except RayTaskError as error:
                # What a worker raises is no unit's fault: the disk is full, or it cannot be run there at all.
                cause = error.cause if isinstance(error.cause, Exception) else error
                raise cause from None
            if job is not None:
                yield came
            if left:
                worker.job = take(left, worker, workers, store)
                worker.model = worker.job.unit.model
                waiting[worker.actor.work.remote(worker.job)] = worker


def take(left: list[Job], worker: Worker, workers: Sequence[Worker], store: Store) -> Job:
    """The job for an idle worker, taken from what is left.

    One of the model that it has loaded; else of one that no other has; and where it can, one that does not wait for a
    ranking that another worker is making.
    """
    others = [w for w in workers if w is not worker]
    loaded = [w.model for w in others]
    making = {w.job.locator_key for w in others if w.job and not store.done(w.job.locator_key)}

    def less_fit(i: int) -> tuple[bool, bool, bool]:
        job = left[i]
        return job.unit.model != worker.model, job.unit.model in loaded, job.locator_key in making

    return left.pop(min(range(len(left)), key=less_fit))


def _gone(job: Job, store: Store) -> None:
    """Wait until a dead worker's process is gone, and with it its claim."""
    until = time.monotonic() + LINGER
    while store.claimed(job.key) and time.monotonic() < until:
        time.sleep(0.05)


def scratch() -> Path:
    """A folder for Ray's sockets and logs, named after this process; those of dead processes are removed.

    Raises:
        MissingResource: it cannot be made.
    """
    folder = SCRATCH / str(os.getpid())
    try:
        SCRATCH.mkdir(mode=0o700, exist_ok=True)
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise MissingResource(f"executor ray: cannot make '{folder}' ({error.strerror})") from error
    for other in SCRATCH.iterdir():
        if other.name.isdigit() and not alive(int(other.name)):
            shutil.rmtree(other, ignore_errors=True)
    return folder
