"""The store: whole files, claims of the living and of the dead, and what killed runs leave."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import pytest

from interp.errors import MissingResource
from interp.runs import HOST, STALE, alive
from interp.sweep import store as stores
from interp.sweep.store import Store

KEY = "ab" + "0" * 30
FRAME = pd.DataFrame({"metric": ["accuracy"], "value": [0.5]})


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def claimed_by(store: Store, owner: dict[str, object], age: float = 0.0) -> Path:
    path = store.path(KEY, ".claim")
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(owner))
    os.utime(path, (time.time() - age,) * 2)
    return path


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_result_comes_back_and_clears_a_failure(store: Store) -> None:
    store.fail(KEY, {"error": "ValueError: no"})
    assert store.failed(KEY) and not store.done(KEY) and store.about(KEY) == {"error": "ValueError: no"}
    store.put(KEY, FRAME, {"label": "a unit"})
    assert store.done(KEY) and not store.failed(KEY) and store.about(KEY) == {"label": "a unit"}
    pd.testing.assert_frame_equal(store.frame(KEY), FRAME)
    assert store.path(KEY).parent.name == "ab"
    assert sorted(p.suffix for p in store.path(KEY).parent.iterdir()) == [".json", ".parquet"]


def test_only_one_holds_a_claim_and_it_goes_with_the_work(store: Store) -> None:
    with store.claim(KEY) as mine:
        assert mine and store.claimed(KEY)
        with store.claim(KEY) as other:
            assert not other
        assert store.claimed(KEY)  # who was refused takes nothing away
    assert not store.claimed(KEY) and not list(store.folder.rglob("*.claim"))
    with pytest.raises(RuntimeError), store.claim(KEY):
        raise RuntimeError
    assert not store.claimed(KEY)


@pytest.mark.parametrize(
    ("owner", "age", "live"),
    [
        ({"host": HOST, "pid": os.getpid()}, 10 * STALE, True),  # a long unit of a process that lives
        ({"host": HOST, "pid": "dead"}, 0.0, False),
        ({"host": "elsewhere", "pid": 1}, 0.0, True),
        ({"host": "elsewhere", "pid": 1}, 2 * STALE, False),
        ({}, 0.0, True),  # being written
        ({}, 2 * STALE, False),
    ],
)
def test_claims_of_the_dead_are_taken_over(
    store: Store, owner: dict[str, object], age: float, live: bool
) -> None:
    if owner.get("pid") == "dead":
        owner = {**owner, "pid": dead_pid()}
    claimed_by(store, owner, age)
    assert store.claimed(KEY) == live
    with store.claim(KEY) as mine:
        assert mine != live


def test_a_sign_of_life_is_given_while_the_work_goes_on(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores, "BEAT", 0.02)
    with store.claim(KEY):
        path = store.path(KEY, ".claim")
        os.utime(path, (0, 0))
        deadline = time.time() + 10
        while path.stat().st_mtime < 1 and time.time() < deadline:
            time.sleep(0.01)
        assert path.stat().st_mtime > 1


def test_leftovers_of_the_dead_are_cleared_and_those_of_the_living_stay(store: Store) -> None:
    folder = store.path(KEY).parent
    folder.mkdir()
    half = folder / f"{KEY}.parquet.{os.getpid()}-1@{HOST}.partial"
    half.write_bytes(b"half")
    claimed_by(store, {"host": HOST, "pid": os.getpid()})
    assert store.clear() == 0 and half.exists()
    half.rename(folder / f"{KEY}.parquet.{dead_pid()}-1@{HOST}.partial")
    claimed_by(store, {"host": HOST, "pid": dead_pid()})
    assert store.clear() == 2 and not list(folder.iterdir())


def test_of_many_that_find_a_claim_dead_one_takes_it(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    live = stores._live

    def slow(claim: Path) -> bool:
        found = live(claim)
        time.sleep(random.uniform(0, 0.01))  # others come between the look and what follows from it
        return found

    monkeypatch.setattr(stores, "_live", slow)
    dead = {"host": HOST, "pid": dead_pid()}
    path = claimed_by(store, dead)
    for _ in range(8):
        path.write_text(json.dumps(dead))
        start = threading.Barrier(6)

        def take(start: threading.Barrier = start) -> bool:
            start.wait()
            return store._take(path)

        with ThreadPoolExecutor(6) as pool:
            clearing = pool.submit(lambda start=start: (start.wait(), store.clear()))
            taken = [each.result() for each in [pool.submit(take) for _ in range(5)]]
            clearing.result()
        assert taken.count(True) == 1 and json.loads(path.read_text())["pid"] == os.getpid()


def test_processes_are_told_from_the_dead() -> None:
    assert alive(os.getpid()) and not alive(dead_pid())
    process = subprocess.Popen([sys.executable, "-c", ""])
    deadline = time.time() + 10
    while alive(process.pid) and time.time() < deadline:
        time.sleep(0.01)
    assert not alive(process.pid)  # it has ended, though nobody has waited for it
    process.wait()


def test_a_store_that_cannot_be_written_says_so(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(stores, "write_bytes", full)
    with pytest.raises(MissingResource, match=r"No space left on device.*make room, and run again"):
        store.put(KEY, FRAME, {})
    assert not store.done(KEY)
