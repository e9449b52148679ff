"""In this process, one unit after another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from interp.measure.outcomes import Progress
from interp.sweep.worker import Done, Job, Settings, work


class Serial:
    """Runs jobs here; torch's own threads use the cores.

    Args:
        progress: told about the forward work of the unit at hand.
    """

    def __init__(self, progress: Progress | None = None):
        self.progress = progress

    def run(self, jobs: Sequence[Job], settings: Settings) -> Iterator[Done]:
        bench = settings.bench()
        for job in jobs:
            yield work(job, bench, settings, self.progress)
