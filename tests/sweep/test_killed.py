"""Drivers and workers that are killed at random moments: nothing is lost, done twice or left behind."""

from __future__ import annotations

import json
import multiprocessing as mp
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from interp.runs import alive
from interp.sweep.executors import executor
from interp.sweep.executors.ray import OnRay
from interp.sweep.run import Sweep, sweep
from interp.sweep.spec import SweepSpec
from interp.sweep.store import Store
from tests.sweep.conftest import results

PATIENCE = 120.0
"""Seconds for what has to happen soon."""


@pytest.fixture(scope="module")
def whole(fields: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """The table of a run that nobody killed."""
    return results(sweep(fields, tmp_path_factory.mktemp("whole") / "run"))


@pytest.fixture(scope="module")
def spans(drivers: Any, fields: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    """Seconds of a serial driver from its start to its end, so that moments can be drawn from all of it."""
    begun = time.monotonic()
    driver = start(drivers, fields, tmp_path_factory.mktemp("span") / "run", "serial")
    driver.join(PATIENCE)
    assert driver.exitcode == 0
    return {"serial": time.monotonic() - begun}


@pytest.fixture(scope="module")
def drivers() -> Any:
    """Starts drivers as processes of their own, which share what takes long to import."""
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(
        ["interp.sweep.run", "interp.models.load", "transformers", "tests.sweep.test_killed"]
    )
    return context


def drive(fields: dict[str, Any], folder: Path, how: str) -> None:
    """What a driver does."""
    Sweep(SweepSpec(**fields), folder).run(executor(how, workers=1) if how == "ray" else how)


def start(drivers: Any, fields: dict[str, Any], folder: Path, how: str) -> BaseProcess:
    driver: BaseProcess = drivers.Process(target=drive, args=(fields, folder, how))
    driver.start()
    return driver


def holders(store: Store) -> set[int]:
    """Processes that hold units, alive or not."""
    pids = set()
    for claim in store.folder.rglob("*.claim"):
        try:
            pids.add(int(json.loads(claim.read_text())["pid"]))
        except (OSError, ValueError):
            continue
    return pids


def wait(until: Callable[[], Any], seconds: float = PATIENCE) -> None:
    """Wait for something, which has to come."""
    end = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.002)


def files(store: Store) -> dict[str, int]:
    """Results of units and rankings that are there, with the times at which they were written."""
    return {path.stem: path.stat().st_mtime_ns for path in store.folder.rglob("*.parquet")}


def gone_on_with(made: Sweep, before: dict[str, int], whole: pd.DataFrame) -> None:
    """Start again; what was there stays as it is, the rest is done once, and nothing else is left."""
    made = Sweep(made.spec, made.folder)
    jobs = made.jobs()
    done = sum(job.key in before for job in jobs)
    assert made.run() == {k: n for k, n in (("there", done), ("done", len(jobs) - done)) if n}
    after = files(made.store)
    assert {key: after[key] for key in before} == before
    names = {job.key for job in jobs} | {job.locator_key for job in jobs}
    assert {path.name for path in made.store.folder.rglob("*.*")} == {
        f"{name}.{suffix}" for name in names for suffix in ("json", "parquet")
    }
    assert not list(made.folder.rglob("*.partial"))
    pd.testing.assert_frame_equal(results(made), whole)


def slow_but(first: int, n: int) -> list[Any]:
    """Seeds, of which only the first few are for `make test`."""
    return [pytest.param(i, marks=[] if i < first else pytest.mark.slow) for i in range(n)]


@pytest.mark.parametrize("seed", slow_but(2, 10))
def test_a_serial_driver_that_is_killed(
    drivers: Any,
    fields: dict[str, Any],
    tmp_path: Path,
    whole: pd.DataFrame,
    spans: dict[str, float],
    seed: int,
) -> None:
    made = Sweep(SweepSpec(**fields), tmp_path / "run")
    driver = start(drivers, fields, made.folder, "serial")
    time.sleep(random.Random(seed).uniform(0, spans["serial"]))
    driver.kill()
    driver.join()
    gone_on_with(made, files(made.store), whole)


@pytest.mark.parametrize("seed", slow_but(1, 7))
def test_a_driver_on_ray_that_is_killed(
    drivers: Any, fields: dict[str, Any], tmp_path: Path, whole: pd.DataFrame, seed: int
) -> None:
    draw = random.Random(seed)
    made = Sweep(SweepSpec(**fields), tmp_path / "run")
    driver = start(drivers, fields, made.folder, "ray")
    workers: set[int] = set()

    def begun() -> bool:
        workers.update(holders(made.store))
        # The model takes most of the time: every second moment is one of the short time after that.
        return bool(workers if seed % 2 else files(made.store))

    wait(begun)
    time.sleep(draw.uniform(0, 3.0 if seed % 2 else 0.6))
    driver.kill()
    driver.join()
    assert workers
    # No worker outlives its driver for long; what one ends until then is as good as any.
    wait(lambda: not any(alive(pid) for pid in workers), 30)
    gone_on_with(made, files(made.store), whole)


@pytest.mark.parametrize("seed", slow_but(1, 7))
def test_a_worker_on_ray_that_is_killed(
    fields: dict[str, Any], tmp_path: Path, whole: pd.DataFrame, seed: int
) -> None:
    draw = random.Random(seed)
    made = Sweep(SweepSpec(**fields), tmp_path / "run")
    jobs = made.jobs()
    killed: list[int] = []

    def ended() -> bool:
        return all(made.store.done(job.key) for job in jobs)

    def kill() -> None:
        wait(lambda: holders(made.store) if seed % 2 else files(made.store))
        time.sleep(draw.uniform(0, 2.0 if seed % 2 else 0.2))
        wait(lambda: holders(made.store) or ended())
        for pid in sorted(holders(made.store))[:1]:
            killed.append(pid)
            os.kill(pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    seen: dict[str, int] = {}

    def told(done: Any, *_: Any) -> None:
        seen.update({key: stamp for key, stamp in files(made.store).items() if key not in seen})

    count = made.run(OnRay(workers=1 + seed % 2), told=told)
    killer.join()
    # A worker may be killed when its unit's table is written and its claim is not yet gone: then that is there.
    assert count["done"] + count["there"] == len(jobs) and count["there"] <= len(killed)
    assert files(made.store) == seen  # nothing was written again
    gone_on_with(made, seen, whole)
