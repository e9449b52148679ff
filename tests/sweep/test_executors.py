"""Units on Ray and as Slurm jobs: the numbers of a serial run, workers that die, units they die of, a full disk."""

from __future__ import annotations

import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import ray
import torch

from interp.errors import MissingResource, UsageError
from interp.sweep.executors import executor
from interp.sweep.executors.ray import OnRay, Worker, scratch, take
from interp.sweep.executors.slurm import OnSlurm
from interp.sweep.run import Sweep, sweep
from interp.sweep.spec import SweepSpec
from interp.sweep.store import DiskFull, Store
from interp.sweep.worker import Job, Settings, work
from tests.sweep.conftest import results

# Submitit leaves the logs of a shard that runs in this process to Python to close.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed file .*DEBUG_:ResourceWarning")


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
    gc.collect()


@pytest.fixture(scope="module")
def serial(fields: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """The table of a serial run."""
    return results(sweep(fields, tmp_path_factory.mktemp("serial") / "run"))


@pytest.fixture
def made(fields: dict[str, Any], tmp_path: Path) -> Sweep:
    """The same sweep, planned and not run."""
    made = Sweep(SweepSpec(**fields), tmp_path / "run")
    made.jobs()
    return made


class Killer:
    """Kills the workers of a unit, so many times, as soon as each has it.

    Its ranking is held meanwhile, so that no worker gets through with the unit before it is killed.
    """

    def __init__(self, store: Store, job: Job, times: int):
        self.store, self.job, self.times = store, job, times
        self.pids: list[int] = []
        self._held = ExitStack()
        self._thread = threading.Thread(target=self._kill)

    def __enter__(self) -> Killer:
        assert self._held.enter_context(self.store.claim(self.job.locator_key))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join()

    def _kill(self) -> None:
        with self._held:
            until = time.monotonic() + 120
            while len(self.pids) < self.times and time.monotonic() < until:
                pid = self._pid()
                if pid is not None and pid not in self.pids:
                    self.pids.append(pid)
                    os.kill(pid, signal.SIGKILL)
                time.sleep(0.01)

    def _pid(self) -> int | None:
        try:
            return int(json.loads(self.store.path(self.job.key, ".claim").read_text())["pid"])
        except (OSError, ValueError):
            return None


def clean(store: Store) -> bool:
    """Whether nothing is left of what was being done."""
    return not [*store.folder.rglob("*.claim"), *store.folder.rglob("*.partial")]


# -- Ray ---------------------------------------------------------------------------------------------------------------


def test_on_ray_a_worker_that_dies_is_replaced_and_a_unit_it_dies_of_is_failed(
    made: Sweep, serial: pd.DataFrame
) -> None:
    bad = made.jobs()[0]
    with Killer(made.store, bad, 2) as killer:
        assert made.run(OnRay(workers=2)) == {"done": 3, "failed": 1}
    assert len(set(killer.pids)) == 2 and not ray.is_initialized() and clean(made.store)
    row = made.status().set_index("key").loc[bad.key]
    assert row["state"] == "failed"
    assert row["error"].startswith("2 workers died on it; the last time a worker died: The actor died")
    assert made.store.about(bad.key)["label"] == bad.unit.label
    # The second worker that dies may have ended other units before it took this one.
    assert os.getpid() not in {made.store.about(job.key)["pid"] for job in made.jobs()[1:]}
    pd.testing.assert_frame_equal(results(made), serial[serial["unit"] != bad.key].reset_index(drop=True))
    assert made.run(failed=True) == {"there": 3, "done": 1}
    pd.testing.assert_frame_equal(results(made), serial)


def test_no_worker_is_started_for_what_is_done_failed_or_held(
    made: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, third, _ = made.jobs()
    settings = made.settings
    assert work(first, settings.bench(), settings).state == "done"
    made.store.fail(second.key, {"error": "ValueError: planted"})
    started: list[str] = []
    monkeypatch.setattr(OnRay, "_start", lambda *_: started.append("ray"))
    monkeypatch.setattr(OnSlurm, "_queue", lambda *_: started.append("slurm"))
    for run in (OnRay(), OnSlurm()):
        with made.store.claim(third.key):
            came = list(run.run([first, second, third], settings))
        assert [done.state for done in came] == ["there", "failed", "held"]
        assert came[1].error == "ValueError: planted"
    assert not started


def test_a_worker_takes_units_of_its_model_and_waits_for_no_ranking(made: Sweep, tmp_path: Path) -> None:
    jobs = list(made.jobs())
    other = jobs[0].unit.model.model_copy(update={"model": "other"})
    away = Job(jobs[3].unit.model_copy(update={"model": other}), "a" * 32, "b" * 32, {})
    left = [away, *jobs[1:]]
    busy, idle = Worker(None, jobs[0], jobs[0].unit.model), Worker(None, None, jobs[0].unit.model)
    # The second unit needs the ranking that the busy worker makes.
    assert [take(left, idle, [busy, idle], made.store).key for _ in range(4)] == [
        jobs[2].key,
        jobs[3].key,
        jobs[1].key,
        away.key,
    ]
    fresh = Worker(None)
    left = [jobs[2], away]
    assert take(left, fresh, [busy, fresh], made.store) is away  # a model that no other worker has


def test_what_another_machine_would_make_of_a_unit_is_compared_with_the_plan(made: Sweep) -> None:
    job = made.jobs()[0]
    planned = Job(job.unit, "c" * 32, job.locator_key, {**job.facts, "dtype": "bfloat16"})
    settings = made.settings.sent()
    assert Path(settings.store).is_absolute() and settings.cwd == os.getcwd()
    done = work(planned, settings.bench(), settings)
    assert done.state == "failed" and "dtype is float32 and not bfloat16" in done.error


def test_scratch_folders_of_dead_drivers_are_removed() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    own = scratch()
    dead = own.parent / str(process.pid)
    (dead / "session").mkdir(parents=True)
    assert scratch() == own and own.is_dir() and not dead.exists()
    shutil.rmtree(own)


# -- Slurm -------------------------------------------------------------------------------------------------------------


def test_slurm_jobs_give_the_numbers_of_a_serial_run_also_where_one_dies(
    made: Sweep, serial: pd.DataFrame
) -> None:
    with Killer(made.store, made.jobs()[0], 1) as killer:
        assert made.run(executor("slurm", cluster="local")) == {"done": 4}
    pids = {made.store.about(job.key)["pid"] for job in made.jobs()}
    assert len(killer.pids) == 1 and len(pids) == 1 and pids.isdisjoint({*killer.pids, os.getpid()})
    assert clean(made.store) and not list((made.folder / "slurm").glob("*.at"))
    pd.testing.assert_frame_equal(results(made), serial)


def test_shards_in_this_process(made: Sweep, serial: pd.DataFrame) -> None:
    seen: list[str] = []
    run = OnSlurm(workers=3, cluster="debug")
    assert made.run(run, told=lambda done, *_: seen.append(done.state)) == {"done": 4}
    assert seen == ["done"] * 4 and len(list((made.folder / "slurm").glob("*.out"))) == 2
    pd.testing.assert_frame_equal(results(made), serial)


@pytest.mark.slow
def test_a_unit_that_slurm_jobs_die_of_is_failed(made: Sweep, serial: pd.DataFrame) -> None:
    bad = made.jobs()[0]
    with Killer(made.store, bad, 3) as killer:
        assert made.run(OnSlurm(cluster="local")) == {"done": 3, "failed": 1}
    assert len(set(killer.pids)) == 3
    error = made.status().set_index("key").loc[bad.key, "error"]
    assert error.startswith("3 jobs died on it; the last time Slurm job")
    pd.testing.assert_frame_equal(results(made), serial[serial["unit"] != bad.key].reset_index(drop=True))


@pytest.mark.slow
def test_jobs_that_come_to_no_unit_end_the_run(made: Sweep) -> None:
    with pytest.raises(MissingResource, match=r"no job comes to its units; Slurm job .* ended as"):
        made.run(OnSlurm(cluster="local", local_setup=["exit 3"]))
    assert not list(made.store.folder.rglob("*.error.json")) and clean(made.store)


def test_there_is_no_slurm_here(made: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(MissingResource, match=r"there is no Slurm here .* cluster='local'"):
        made.run("slurm")


# -- both --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "match"),
    [
        ("ray", {"workers": 0}, "workers is 0"),
        ("ray", {"gpus": 1.5}, r"gpus is 1\.5"),
        ("ray", {"cpus": -1}, "cpus is -1"),
        ("ray", {"partition": "long"}, "executor ray: .*'partition'"),
        ("slurm", {"workers": 0}, "workers is 0"),
        ("slurm", {"time": 0}, "time is 0"),
        ("slurm", {"cluster": "cloud"}, "no cluster 'cloud'; there are slurm, local, debug"),
    ],
)
def test_options_that_make_no_sense(name: str, options: dict[str, Any], match: str) -> None:
    with pytest.raises(UsageError, match=match):
        executor(name, **options)


def test_an_option_that_submitit_lacks(made: Sweep) -> None:
    with pytest.raises(UsageError, match=r"executor slurm: .*'nodez'"):
        made.run(OnSlurm(cluster="local", nodez=2))


def test_an_executor_whose_package_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    monkeypatch.delitem(sys.modules, "interp.sweep.executors.slurm")
    with pytest.raises(
        MissingResource, match=r"not installed \(submitit\): pip install 'interp-memory\[slurm\]'"
    ):
        executor("slurm")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, with 1 MiB of room."""
    folder = tmp_path / "small"
    folder.mkdir()
    told = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if told.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {told.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Fill a small disk up to the room for a unit or two; the file to remove to make room."""
    room = os.statvfs(folder).f_bavail * 4096
    ballast = folder / "ballast"
    # A ranking takes a page, a unit some ten, and the facts beside each another one.
    ballast.write_bytes(b"0" * (room - 26 * 4096))
    return ballast


@pytest.mark.parametrize("how", ["serial", "slurm"])
def test_a_full_disk_ends_the_run_and_what_is_done_is_kept(
    fields: dict[str, Any], tmp_path: Path, small_disk: Path, serial: pd.DataFrame, how: str
) -> None:
    made = Sweep(SweepSpec(**fields), tmp_path / "run", small_disk)
    made.jobs()
    ballast = fill(small_disk)
    with pytest.raises(DiskFull, match=r"No space left on device.*make room, and run again"):
        made.run(OnSlurm(cluster="debug") if how == "slurm" else how)
    assert clean(made.store)
    assert not list(small_disk.rglob("*.error.json"))  # the disk's failure is no unit's
    done = sum(made.store.done(job.key) for job in made.jobs())
    assert 0 < done < 4
    ballast.unlink()
    assert made.run() == {"there": done, "done": 4 - done}
    pd.testing.assert_frame_equal(results(made), serial)


def test_a_full_disk_on_ray_that_runs_already_and_stays(
    fields: dict[str, Any], tmp_path: Path, small_disk: Path, serial: pd.DataFrame
) -> None:
    made = Sweep(SweepSpec(**fields), tmp_path / "run", small_disk)
    made.jobs()
    ballast = fill(small_disk)
    ray.init(
        address="local",
        num_cpus=1,
        include_dashboard=False,
        log_to_driver=False,
        configure_logging=False,
        _temp_dir=str(scratch()),
    )
    try:
        with pytest.raises(MissingResource, match="a worker takes 1 CPUs and 1 GPUs; Ray has 1 and 0"):
            made.run(OnRay(gpus=1))
        with pytest.raises(DiskFull, match="No space left on device"):
            made.run("ray")
        assert ray.is_initialized()
    finally:
        ray.shutdown()
        shutil.rmtree(scratch())
    assert clean(made.store) and not list(small_disk.rglob("*.error.json"))
    done = [job.key for job in made.jobs() if made.store.done(job.key)]
    assert 0 < len(done) < 4 and os.getpid() not in {made.store.about(key)["pid"] for key in done}
    ballast.unlink()
    assert made.run() == {"there": len(done), "done": 4 - len(done)}
    pd.testing.assert_frame_equal(results(made), serial)


def test_settings_of_a_worker_elsewhere(tmp_path: Path) -> None:
    told = Settings("store", failed=True).sent()
    assert told.elsewhere and told.failed and told.store == str(Path("store").resolve())
