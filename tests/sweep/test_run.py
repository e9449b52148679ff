"""Sweeps of a planted model: rows of direct measurements, gone on with, failures recorded, memory that runs out."""

from __future__ import annotations

import shutil
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

import interp
from interp.errors import MissingResource, NoAcceptedExample, UsageError
from interp.measure.plans import dose
from interp.models.batch import plan, smaller_batches
from interp.sweep import store as stores
from interp.sweep.executors import executor
from interp.sweep.executors.serial import Serial
from interp.sweep.run import Sweep, sweep
from interp.sweep.spec import SweepSpec
from interp.sweep.store import DiskFull
from interp.sweep.unit import AWAY, Bench
from interp.sweep.worker import out_of_memory, work
from tests.zoo.planted import Planted

LABELS = {"unit", "cut", "located_on", "fingerprint", "data", "dtype", "threads", "versions", "commit"}
"""Columns that a sweep adds to those of `measure`."""


@pytest.fixture(scope="module")
def once(fields: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a sweep that was run."""
    return sweep(fields, tmp_path_factory.mktemp("once") / "run").folder


@pytest.fixture
def ran(once: Path, fields: dict[str, Any], tmp_path: Path) -> Sweep:
    """A copy of it, for a test to do with as it likes."""
    return Sweep(SweepSpec(**fields), shutil.copytree(once, tmp_path / "copied"))


def test_rows_are_those_of_a_direct_measurement(
    ran: Sweep, circuit: tuple[Path, Planted], fields: dict[str, Any]
) -> None:
    model = interp.load(str(circuit[0]))
    heads = interp.RetrievalHeads(scores=("copy",)).fit(model, interp.task("mqar", n=8, seed=AWAY))
    assert set(heads.top(1)) == set(circuit[1].retrieval)
    task = interp.task("mqar", n=16, pairs=8, seed=0)
    ranked = heads.top(4)
    cuts = dose(model, ranked, (1,), interp.ablate([], "zero", "answer"), controls=2, data=task)
    wanted = interp.measure(
        model, task, cuts, metrics=("accuracy", "choice", "logit_diff", "logprob"), off_target=()
    )
    found = ran.to_frame()
    own = found[found["locator"].eq("retrieval_heads") & found["task"].str.contains("pairs=8")]
    assert set(found.columns) == set(wanted.columns) | LABELS
    same = [
        "condition",
        "control",
        "draw",
        "k",
        "components",
        "metric",
        "value",
        "delta",
        "ci_lo",
        "ci_hi",
        "n",
    ]
    pd.testing.assert_frame_equal(own[same].reset_index(drop=True), wanted[same])


def test_the_planted_head_is_found_and_cutting_it_destroys_recall(
    ran: Sweep, circuit: tuple[Path, Planted]
) -> None:
    rows = ran.to_frame().query("metric == 'accuracy' and locator == 'retrieval_heads'")
    assert (rows[rows["condition"] == "clean"]["value"] == 1).all()
    cut = rows[rows["condition"] == "cut"]
    assert set(cut["components"]) == {repr(circuit[1].retrieval[0])} and (cut["value"] < 0.2).all()
    assert (rows[rows["condition"] == "control"]["value"] > 0.9).all()


def test_nothing_is_run_twice_and_what_is_lost_is_run_again(ran: Sweep, fields: dict[str, Any]) -> None:
    before = ran.to_frame()
    assert Counter(ran.status()["state"]) == {"done": 4}
    again = Sweep(ran.spec, ran.folder)
    assert again.run() == {"there": 4}
    lost = again.jobs()[2]
    ran.store.path(lost.key).unlink()
    assert Counter(again.status()["state"]) == {"done": 3, "waiting": 1}
    assert again.run() == {"there": 3, "done": 1}
    pd.testing.assert_frame_equal(again.to_frame(), before)
    pd.testing.assert_frame_equal(pd.read_parquet(again.merge()), before)


def test_a_store_is_shared_and_a_ranking_is_found_once(fields: dict[str, Any], tmp_path: Path) -> None:
    first = sweep(fields, tmp_path / "a", store=tmp_path / "store")
    rankings = {job.locator_key for job in first.jobs()}
    assert len(rankings) == 2  # of retrieval heads and of random ones, for two tasks
    stamps = {key: first.store.path(key).stat().st_mtime_ns for key in rankings}
    more = sweep({**fields, "tasks": [{"task": "mqar", "set": {"n": 16, "pairs": 4}}, "induction"]},
                 tmp_path / "b", store=tmp_path / "store")  # fmt: skip
    assert Counter(d["state"] for d in more.status().to_dict("records")) == {"done": 4}
    assert {key: first.store.path(key).stat().st_mtime_ns for key in rankings} == stamps
    assert {j.key for j in more.jobs()} & {j.key for j in first.jobs()}


@pytest.mark.parametrize(
    "change",
    [
        {"seeds": [1]},
        {"threads": 2},
        {"cuts": [{"cut": "heads", "set": {"doses": [1], "controls": 1}}]},
        {"locators": ["random_heads"]},
        {"tasks": [{"task": "mqar", "set": {"n": 17, "pairs": 4}}]},
    ],
)
def test_what_numbers_depend_on_is_in_the_key(
    fields: dict[str, Any], tmp_path: Path, change: dict[str, Any]
) -> None:
    one = {
        **fields,
        "tasks": [{"task": "mqar", "set": {"n": 16, "pairs": 4}}],
        "locators": fields["locators"][:1],
    }
    keys = {job.key for job in Sweep(SweepSpec(**one), tmp_path / "a").jobs()}
    renamed = Sweep(SweepSpec(**{**one, "name": "other"}), tmp_path / "b")
    assert keys == {job.key for job in renamed.jobs()}
    assert keys.isdisjoint({job.key for job in Sweep(SweepSpec(**{**one, **change}), tmp_path / "c").jobs()})


def test_a_unit_that_raises_is_recorded_and_tried_again_on_request(
    fields: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Sweep(SweepSpec(**fields), tmp_path / "run")
    bad, usual = made.jobs()[1].key, Bench.run

    def run(self: Bench, unit: Any, identity: Any = None, progress: Any = None) -> Any:
        if identity.key == bad:
            raise ZeroDivisionError("planted")
        return usual(self, unit, identity, progress)

    with monkeypatch.context() as patch:
        patch.setattr(Bench, "run", run)
        assert made.run() == {"done": 3, "failed": 1}
        assert made.run() == {"there": 3, "failed": 1}
    row = made.status().set_index("key").loc[bad]
    assert row["state"] == "failed" and row["error"] == "ZeroDivisionError: planted"
    assert "in run" in made.store.about(bad)["trace"]
    assert len(set(made.to_frame()["unit"])) == 3
    assert made.run() == {"there": 3, "failed": 1}  # not by itself
    assert made.run(failed=True) == {"there": 3, "done": 1}
    assert made.store.about(bad)["batch_share"] == 1.0


def test_a_dose_that_a_ranking_has_not_is_a_failure_with_its_reason(
    fields: dict[str, Any], tmp_path: Path
) -> None:
    made = sweep({**fields, "cuts": [{"cut": "heads", "set": {"doses": [99]}}]}, tmp_path / "run")
    assert set(made.status()["state"]) == {"failed"}
    assert made.status()["error"].str.contains("a dose is 99; take whole numbers from 1 to 4").all()
    with pytest.raises(NoAcceptedExample, match="run it first"):
        made.to_frame()


def test_where_memory_runs_out_batches_are_halved(
    fields: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ran: Sweep
) -> None:
    made = Sweep(SweepSpec(**fields), tmp_path / "halved")
    usual = Bench.run

    def run(self: Bench, *args: Any) -> Any:
        if len(plan([64] * 32, 2048)) < 4:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")
        return usual(self, *args)

    monkeypatch.setattr(Bench, "run", run)
    assert made.run() == {"done": 4}
    assert {made.store.about(job.key)["batch_share"] for job in made.jobs()} == {0.25}
    found, wanted = made.to_frame(), ran.to_frame()
    # Of a head that is cut nothing is left but ties among candidates, which rounding breaks.
    told = [frame[frame["metric"] != "choice"].reset_index(drop=True) for frame in (found, wanted)]
    pd.testing.assert_frame_equal(*told, check_exact=False, atol=1e-4)
    monkeypatch.setattr(
        Bench, "run", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("out of memory"))
    )
    job = made.jobs()[0]
    made.store.path(job.key).unlink()
    assert work(job, made.settings.bench(), made.settings).state == "failed"
    assert not out_of_memory(RuntimeError("shapes do not fit")) and out_of_memory(MemoryError())


def test_batches_are_smaller_inside_and_as_before_outside() -> None:
    whole = plan([10] * 8, 80)
    with smaller_batches(0.5), smaller_batches(0.5):
        assert [len(g) for g in plan([10] * 8, 80)] == [2] * 4
    assert plan([10] * 8, 80) == whole and len(whole) == 1


@pytest.mark.parametrize("at", [2, 3])
def test_a_full_disk_ends_the_run_and_nothing_is_half_done(
    fields: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """Where a ranking is written, and where a unit's rows are."""
    made = Sweep(SweepSpec(**fields), tmp_path / "run")
    made.jobs()
    usual = stores.write_frame
    written: list[Path] = []

    def write(path: Path, frame: pd.DataFrame) -> None:
        if len(written) == at:
            raise OSError(28, "No space left on device")
        written.append(path)
        usual(path, frame)

    with monkeypatch.context() as patch:
        patch.setattr(stores, "write_frame", write)
        with pytest.raises(DiskFull, match="No space left"):
            made.run()
    assert not list(made.store.folder.rglob("*.claim")) and not list(made.store.folder.rglob("*.partial"))
    assert not list(made.store.folder.rglob("*.error.json"))  # the disk's failure is no unit's
    done = sum(made.store.done(job.key) for job in made.jobs())
    assert 0 < done < 4
    assert made.run() == {"there": done, "done": 4 - done}
    assert isinstance(DiskFull(""), MissingResource)


def test_two_launchers_of_one_store_do_each_unit_once(
    fields: dict[str, Any], tmp_path: Path, ran: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    fits: list[Any] = []
    usual = interp.RetrievalHeads.fit

    def fit(self: Any, *args: Any, **how: Any) -> Any:
        fits.append(self)
        return usual(self, *args, **how)

    monkeypatch.setattr(interp.RetrievalHeads, "fit", fit)
    spec = SweepSpec(**fields)
    launchers = [Sweep(spec, tmp_path / f"run{i}", tmp_path / "store") for i in range(2)]
    for launcher in launchers:
        launcher.jobs()
    counts: list[Counter[str]] = []
    threads = [threading.Thread(target=lambda one=one: counts.append(one.run())) for one in launchers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(count["done"] for count in counts) == 4 and all(sum(count.values()) == 4 for count in counts)
    assert len(fits) == 1  # the ranking that two tasks share is found once, too
    pd.testing.assert_frame_equal(launchers[0].to_frame(), ran.to_frame())


def test_what_a_sweep_needs_and_has_not_is_named(fields: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(MissingResource, match="nowhere"):
        sweep({**fields, "models": [str(tmp_path / "nowhere")]}, tmp_path / "a")
    with pytest.raises(UsageError, match="passes"):
        sweep({**fields, "tasks": [{"task": "mqar", "set": {"passes": 0}}]}, tmp_path / "b")
    with pytest.raises(UsageError, match="holds a run of another spec"):
        folder = tmp_path / "c"
        Sweep(SweepSpec(**fields), folder)
        Sweep(SweepSpec(**{**fields, "seeds": [5]}), folder)
    with pytest.raises(UsageError, match="no executor 'cloud'; there are serial, ray, slurm"):
        executor("cloud")
    with pytest.raises(UsageError, match="executor serial"):
        executor("serial", workers=3)


def test_the_package_is_called_and_progress_is_told(fields: dict[str, Any], tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    notes: list[str] = []
    made = interp.sweep(  # type: ignore[operator]
        fields,
        tmp_path / "run",
        Serial(progress=lambda done, total, what: notes.append(what)),
        told=lambda done, job, at, of: seen.append((done.state, at, of)),
    )
    assert seen == [("done", i + 1, 4) for i in range(4)] and notes
    assert made.to_frame()["fingerprint"].nunique() == 1
    about = made.store.about(made.jobs()[0].key)
    assert about["conditions"] == 4 and about["examples"] == 16 and about["forwards"] == 64
    assert {"host", "device", "versions", "commit", "cpu_seconds", "wall_seconds"} <= set(about)
