"""A store of results: one file a unit, named by everything that its numbers depend on, shared by any number of runs.

A unit's table is `ab/<key>.parquet`; beside it `<key>.json` says how, where and how long, and `<key>.error.json` why it
failed. Files are written whole or not at all, and two that are written for one key hold the same, so results need no
lock; a claim (`<key>.claim`) only keeps two launchers from doing the same work at the same time.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock

from interp.errors import MissingResource
from interp.runs import HOST, STALE, age, alive, clear_partials, write_bytes, write_frame

BEAT = 10.0
"""Seconds between two signs of life of a claim."""


class DiskFull(MissingResource):
    """The store cannot be written: no unit is at fault, and nothing more is tried."""


class Store:
    """A folder of units' results.

    Raises:
        DiskFull: it cannot be written.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise full(self.folder, error) from error

    def path(self, key: str, suffix: str = ".parquet") -> Path:
        """Where a file of a unit is."""
        return self.folder / key[:2] / f"{key}{suffix}"

    def done(self, key: str) -> bool:
        """Whether a unit has its result."""
        return self.path(key).exists()

    def failed(self, key: str) -> bool:
        """Whether a unit was tried and raised, and has no result."""
        return self.path(key, ".error.json").exists() and not self.done(key)

    def put(self, key: str, frame: pd.DataFrame, about: Mapping[str, Any]) -> None:
        """Record a result; the table comes last, since what has one is done.

        Raises:
            DiskFull: the store cannot be written.
        """
        try:
            self.path(key).parent.mkdir(exist_ok=True)
            write_bytes(self.path(key, ".json"), _text(about))
            write_frame(self.path(key), frame)
            self.path(key, ".error.json").unlink(missing_ok=True)
        except OSError as error:
            raise full(self.folder, error) from error

    def fail(self, key: str, about: Mapping[str, Any]) -> None:
        """Record that a unit raised.

        Raises:
            DiskFull: the store cannot be written.
        """
        try:
            self.path(key).parent.mkdir(exist_ok=True)
            write_bytes(self.path(key, ".error.json"), _text(about))
        except OSError as error:
            raise full(self.folder, error) from error

    def forget_failure(self, key: str) -> None:
        """Let a failed unit be tried again."""
        self.path(key, ".error.json").unlink(missing_ok=True)

    def frame(self, key: str) -> pd.DataFrame:
        """A unit's result."""
        return pd.read_parquet(self.path(key))

    def about(self, key: str) -> dict[str, Any]:
        """What is recorded beside a unit's result, or of its failure; empty where there is neither."""
        for suffix in (".json", ".error.json"):
            if self.path(key, suffix).exists():
                return dict(json.loads(self.path(key, suffix).read_text()))
        return {}

    # -- claims and leftovers ----------------------------------------------------------------------------------------

    @contextmanager
    def claim(self, key: str) -> Iterator[bool]:
        """Hold a unit while it is worked on; False where another live launcher holds it.

        A sign of life is given as long as the block runs, so that a launcher on another host can tell.
        """
        path = self.path(key, ".claim")
        if not self._take(path):
            yield False
            return
        over = threading.Event()

        def beat() -> None:
            while not over.wait(BEAT):
                try:
                    os.utime(path)
                except OSError:
                    return

        alive = threading.Thread(target=beat, daemon=True)
        alive.start()
        try:
            yield True
        finally:
            over.set()
            alive.join()
            path.unlink(missing_ok=True)

    def claimed(self, key: str) -> bool:
        """Whether a live launcher works on a unit."""
        return _live(self.path(key, ".claim"))

    def _take(self, path: Path) -> bool:
        try:
            path.parent.mkdir(exist_ok=True)
            if _create(path):
                return True
            if _live(path):
                return False
            with self._alone():
                self._bury(path)
                return _create(path)
        except OSError as error:
            raise full(self.folder, error) from error

    def _alone(self) -> FileLock:
        """Held while claims of the dead are removed: two that find one dead would remove each other's new one."""
        return FileLock(self.folder / "lock")

    @staticmethod
    def _bury(path: Path) -> bool:
        """Remove a claim unless somebody who lives holds it by now."""
        if _live(path) or not path.exists():
            return False
        path.unlink(missing_ok=True)
        return True

    def clear(self) -> int:
        """Remove what killed runs left: half-written files, and claims of launchers that are dead.

        Files that are being written at this moment have just been touched and stay.

        Returns:
            how many.
        """
        n = clear_partials(self.folder)
        dead = [path for path in self.folder.rglob("*.claim") if not _live(path)]
        if dead:
            with self._alone():
                for path in dead:
                    n += self._bury(path)
        return n


def full(folder: Path, error: OSError) -> DiskFull:
    """The error of a store that cannot be written."""
    return DiskFull(
        f"cannot write to the store '{folder}' ({error.strerror}); what is done is kept: make room, and run again"
    )


def _text(about: Mapping[str, Any]) -> bytes:
    return json.dumps(about, ensure_ascii=False, indent=1, default=str).encode()


def _create(claim: Path) -> bool:
    """Write a claim of this process, unless there is one."""
    try:
        with open(claim, "x") as file:
            json.dump({"host": HOST, "pid": os.getpid()}, file)
    except FileExistsError:
        return False
    return True


def _live(claim: Path) -> bool:
    """Whether the launcher of a claim lives: by its process on this host, by its last sign of life on others."""
    try:
        owner = json.loads(claim.read_text() or "{}")
    except FileNotFoundError:
        return False
    except ValueError:
        owner = {}
    if not owner:
        # It is being written, or its writer died in between.
        return age(claim) < BEAT
    if owner.get("host") == HOST:
        return alive(int(owner.get("pid", -1)))
    return age(claim) < STALE
