"""What an executor is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from interp.sweep.worker import Done, Job, Settings


class Executor(Protocol):
    """Runs jobs somewhere and says what came of each, in the order in which they end.

    It calls `interp.sweep.worker.work` in each worker, on a bench that the worker keeps, so that a model is loaded
    once.
    A worker that dies takes nothing with it but the unit at hand, which is run again.
    """

    def run(self, jobs: Sequence[Job], settings: Settings) -> Iterator[Done]:
        """Run the jobs.

        Raises:
            DiskFull: the store cannot be written; nothing more is tried.
        """
        ...
