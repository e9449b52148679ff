"""As Slurm jobs, through submitit: each takes a shard of the units, and what it does is seen by the files it makes.

A job that dies has its unfinished units submitted again. One that Slurm puts back in the queue starts over and skips
what is done. Where the driver dies its jobs go on, and the next driver waits for what they hold.
"""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import sleep
from typing import Any, Literal, get_args

import submitit
from submitit.core.utils import FailedJobError, FailedSubmissionError
from submitit.helpers import DelayedSubmission
from submitit.local.local import LocalJob

from interp.errors import MissingResource, UsageError
from interp.sweep.store import DiskFull, Store, full
from interp.sweep.worker import Done, Job, Settings, give_up, unsettled, work

Cluster = Literal["slurm", "local", "debug"]
"""Slurm; processes on this machine; this process (for tests)."""

AGAIN = 2
"""Times that a unit whose job died is submitted again before it counts as failed."""

LOOK = 1.0
"""Seconds between two looks at what is there."""


@dataclass(frozen=True)
class Shard:
    """What one Slurm job does.

    Attributes:
        at: a file that has the key of the unit at hand, so that it is known what a job died of.
    """

    jobs: tuple[Job, ...]
    settings: Settings
    at: Path

    def __call__(self) -> tuple[list[Done], str]:
        """Run the units; what came of each, and why the store could not be written, if it could not."""
        came: list[Done] = []
        try:
            bench = self.settings.bench()
            for job in self.jobs:
                try:
                    self.at.write_text(job.key)
                except OSError as error:
                    raise full(self.at.parent, error) from error
                came.append(work(job, bench, self.settings))
        except DiskFull as error:
            return came, str(error)
        return came, ""

    def checkpoint(self) -> Any:
        """What is put back in the queue when time is up: the same, which skips what is done."""
        return DelayedSubmission(self)


class OnSlurm:
    """Runs jobs on Slurm.

    Args:
        workers: shards, each a Slurm job.
        partition: of Slurm.
        time: minutes that a shard may take before Slurm ends it and it is queued again.
        gpus: of a shard.
        cluster: `slurm`, or without one `local`: each shard a process of this machine.
        more: other parameters of `submitit.AutoExecutor`, such as `slurm_account` or `mem_gb`.

    Raises:
        UsageError: numbers that make no sense.
    """

    def __init__(
        self,
        workers: int = 1,
        partition: str | None = None,
        time: int = 60,
        gpus: int = 0,
        cluster: Cluster = "slurm",
        **more: Any,
    ):
        for name, number in (("workers", workers), ("time", time)):
            if number < 1:
                raise UsageError(f"executor slurm: {name} is {number}; take a whole number from 1")
        if cluster not in get_args(Cluster):
            raise UsageError(
                f"executor slurm: no cluster '{cluster}'; there are {', '.join(get_args(Cluster))}"
            )
        self.workers = workers
        self.partition = partition
        self.time = time
        self.gpus = gpus
        self.cluster = cluster
        self.more: Mapping[str, Any] = more
        self._deaths: Counter[str] = Counter()

    def run(self, jobs: Sequence[Job], settings: Settings) -> Iterator[Done]:
        """Run the jobs.

        Raises:
            DiskFull: the store cannot be written; nothing more is tried.
            MissingResource: there is no Slurm, it takes no job, or jobs die before they come to a unit.
        """
        store = Store(settings.store)
        left = yield from unsettled(jobs, store, settings)
        if not left:
            return
        for job in left:
            # From here on a failure that is recorded is a new one.
            store.forget_failure(job.key)
        told = replace(settings.sent(), failed=False)
        folder = store.folder.resolve().parent / "slurm"
        queue = self._queue(folder, settings)
        size = -(-len(left) // self.workers)
        parts = [left[i : i + size] for i in range(0, len(left), size)]
        running: dict[Any, Shard] = {}
        try:
            running = submit(queue, [shard(part, told, folder) for part in parts])
            yield from self._watch(queue, running, store)
        finally:
            for handle in running:
                handle.cancel(check=False)
            store.clear()

    def _queue(self, folder: Path, settings: Settings) -> Any:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            queue = submitit.AutoExecutor(folder, cluster=self.cluster)
        except OSError as error:
            raise full(folder, error) from error
        except RuntimeError as error:
            raise MissingResource(
                f"executor slurm: there is no Slurm here ({error}); cluster='local' runs shards on this machine"
            ) from error
        try:
            queue.update_parameters(
                name="interp",
                timeout_min=self.time,
                cpus_per_task=settings.threads,
                gpus_per_node=self.gpus or None,
                slurm_partition=self.partition,
                **self.more,
            )
        except (NameError, AssertionError, TypeError) as error:
            raise UsageError(f"executor slurm: {str(error).splitlines()[0]}") from error
        return queue

    def _watch(self, queue: Any, running: dict[Any, Shard], store: Store) -> Iterator[Done]:
        pending = {handle: list(shard.jobs) for handle, shard in running.items()}
        stillborn = 0
        while running:
            for handle, part in list(running.items()):
                # Asked first: what is there when it has ended stays all that there is.
                ended = handle.done()
                for job in list(pending[handle]):
                    done = made(job, store)
                    if done is not None:
                        pending[handle].remove(job)
                        yield done
                if not ended:
                    continue
                del running[handle]
                left, at = pending.pop(handle), _at(part)
                try:
                    came, why_not = outcome(handle)
                except ShardDied as death:
                    dead = next((job for job in left if job.key == at), None)
                    if not at:
                        stillborn += 1
                        if stillborn > AGAIN:
                            raise MissingResource(
                                f"executor slurm: no job comes to its units; {death}"
                            ) from None
                    if dead is not None:
                        self._deaths[dead.key] += 1
                        if self._deaths[dead.key] > AGAIN:
                            del self._deaths[dead.key]
                            left.remove(dead)
                            yield give_up(dead, store, f"{AGAIN + 1} jobs died on it; the last time {death}")
                    if left:
                        again = submit(queue, [shard(left, part.settings, part.at.parent)])
                        running.update(again)
                        pending.update({handle: list(shard.jobs) for handle, shard in again.items()})
                    continue
                if why_not:
                    raise DiskFull(why_not)
                states = {done.key: done for done in came}
                yield from (states[job.key] for job in left)
            if running:
                sleep(LOOK)


class ShardDied(Exception):
    """A Slurm job ended before its shard did; it says how."""


def shard(jobs: Sequence[Job], settings: Settings, folder: Path) -> Shard:
    """A shard with a name of its own."""
    return Shard(tuple(jobs), settings, folder / f"{uuid.uuid4().hex}.at")


def submit(queue: Any, shards: Sequence[Shard]) -> dict[Any, Shard]:
    """Submit shards together, as one array.

    Raises:
        DiskFull: what they are told cannot be written. MissingResource: Slurm takes no job.
    """
    try:
        with queue.batch():
            handles = [queue.submit(one) for one in shards]
    except OSError as error:
        raise full(queue.folder, error) from error
    except (FailedJobError, FailedSubmissionError) as error:
        raise MissingResource(
            f"executor slurm: Slurm takes no job ({' '.join(str(error).split())})"
        ) from error
    return dict(zip(handles, shards, strict=True))


def made(job: Job, store: Store) -> Done | None:
    """What came of a unit, by its files."""
    if store.done(job.key):
        return Done(job.key, "done", float(store.about(job.key).get("wall_seconds", 0.0)))
    if store.failed(job.key):
        return Done(job.key, "failed", error=str(store.about(job.key).get("error", "")))
    return None


def outcome(handle: Any) -> tuple[list[Done], str]:
    """What a job that has ended says.

    Raises:
        ShardDied: nothing.
    """
    # A shared file system may show a result late; that of this machine does not.
    silent = isinstance(handle, LocalJob) and not handle.paths.result_pickle.exists()
    if silent or handle.exception() is not None:
        last = (handle.stderr() or "").strip().splitlines()[-1:]
        raise ShardDied(
            f"Slurm job {handle.job_id} ended as {handle.state} ({' '.join(last) or 'no message'})"
        )
    came: tuple[list[Done], str] = handle.result()
    return came


def _at(part: Shard) -> str:
    """Key of the unit that a shard was at when it ended; empty where it came to none."""
    try:
        key = part.at.read_text()
        part.at.unlink()
    except OSError:
        return ""
    return key
