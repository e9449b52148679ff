"""A store of results: one file a unit, named by everything that its numbers depend on, shared by any number of runs.

A unit's table is `ab/<key>.parquet`; beside it `<key>.json` says how, where and how long, and `<key>.error.json` why it
failed. Files are written whole or not at all, and two that are written for one key hold the same, so launchers need no
lock; a claim (`<key>.claim`) only keeps two of them from doing the same work at the same time.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd

from interp.errors import MissingResource
from interp.runs import write_bytes, write_frame

HOST = socket.gethostname()
BEAT = 10.0
"""Seconds between two signs of life of a claim."""

STALE = 120.0
"""A claim of another host without a sign of life for so many seconds is one of a dead launcher."""

PARTIAL = ".partial"


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
            for _ in range(2):
                try:
                    with open(path, "x") as file:
                        json.dump({"host": HOST, "pid": os.getpid()}, file)
                    return True
                except FileExistsError:
                    if _live(path):
                        return False
                    path.unlink(missing_ok=True)
        except OSError as error:
            raise full(self.folder, error) from error
        return False

    def clear(self) -> int:
        """Remove what killed runs left: half-written files, and claims of launchers that are dead.

        Files that are being written at this moment have just been touched and stay.

        Returns:
            how many.
        """
        n = 0
        for path in [*self.folder.rglob("*" + PARTIAL), *self.folder.rglob("*.claim")]:
            dead = not _live(path) if path.suffix == ".claim" else _age(path) > STALE or not _written(path)
            if dead:
                path.unlink(missing_ok=True)
                n += 1
        return n


def full(folder: Path, error: OSError) -> DiskFull:
    """The error of a store that cannot be written."""
    return DiskFull(
        f"cannot write to the store '{folder}' ({error.strerror}); what is done is kept: make room, and run again"
    )


def _text(about: Mapping[str, Any]) -> bytes:
    return json.dumps(about, ensure_ascii=False, indent=1, default=str).encode()


def _age(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


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
        return _age(claim) < BEAT
    if owner.get("host") == HOST:
        return alive(int(owner.get("pid", -1)))
    return _age(claim) < STALE


def alive(pid: int) -> bool:
    """Whether a process of this host runs."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    try:
        # A killed process that nobody has waited for still has its number.
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (OSError, IndexError):
        return True


def _written(partial: Path) -> bool:
    """Whether a claim says that someone works on the unit of a half-written file."""
    key = partial.name.split(".")[0]
    return _live(partial.with_name(f"{key}.claim"))
