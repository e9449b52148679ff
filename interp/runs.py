"""Run folders: a spec that names the run, tables that are written whole or not at all, and what made them.

A folder belongs to one spec; asked for another, it refuses. A table that is there is not computed again, so a run that
was killed goes on where it stopped. Files are written to a temporary name, synced and renamed; what a killed run left
half-written is cleared at the next start.
"""

from __future__ import annotations

import json
import os
import platform
import re
import socket
import threading
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from pydantic import BaseModel

from interp.errors import MissingResource, UsageError

HOST = socket.gethostname()
PARTIAL = ".partial"
STALE = 120.0
"""What a process of another host has not touched for so many seconds is of one that is dead."""
PACKAGES = ("torch", "transformers", "transformer-lens", "nnsight", "numpy", "scipy", "pandas", "plotly")


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file whole or not at all: temporary name, fsync, rename."""
    # Two may write the same file at once: each has a temporary name of its own.
    # The name says whose it is, so that only what the dead left is cleared.
    partial = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}@{HOST}{PARTIAL}")
    try:
        with open(partial, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def clear_partials(folder: Path, pattern: str = "*") -> int:
    """Remove the half-written files below a folder that killed processes left, and return how many.

    Those of a live process of this host stay, and those of another host that were touched within `STALE` seconds.

    Args:
        pattern: of the names of the whole files.
    """
    n = 0
    for path in folder.rglob(f"{pattern}{PARTIAL}"):
        if not _being_written(path):
            path.unlink(missing_ok=True)
            n += 1
    return n


def _being_written(partial: Path) -> bool:
    writer = re.search(r"\.(\d+)-\d+@(.+)" + re.escape(PARTIAL) + "$", partial.name)
    if writer is None:
        return False
    return alive(int(writer[1])) if writer[2] == HOST else age(partial) < STALE


def age(path: Path) -> float:
    """Seconds since a file was touched; 0 where it is gone."""
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


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


def write_frame(path: Path, frame: pd.DataFrame) -> None:
    """Write a table as Parquet, whole or not at all."""
    import io

    buffer = io.BytesIO()
    frame.to_parquet(buffer, index=False)
    write_bytes(path, buffer.getvalue())


def read_spec(path: Path) -> dict[str, Any]:
    """A YAML file as a mapping.

    Raises:
        UsageError: it is no mapping, or no YAML; the message has the line.
    """
    try:
        data = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise UsageError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from error
    if not isinstance(data, dict):
        raise UsageError(f"{path}: a spec is a mapping of names to values")
    return data


class Run:
    """A run folder that belongs to `spec`.

    Args:
        folder: made if it is not there.
        spec: what identifies the run.

    Raises:
        UsageError: the folder holds a run of another spec; the message says what differs.
        MissingResource: the folder cannot be written.
    """

    def __init__(self, folder: Path, spec: BaseModel):
        self.folder = folder
        self.spec = spec
        self.done: list[str] = []
        self.skipped: list[str] = []
        try:
            folder.mkdir(parents=True, exist_ok=True)
            clear_partials(folder)
            self._claim()
        except OSError as error:
            raise MissingResource(
                f"cannot write to '{folder}' ({error.strerror}); give a folder that can be written"
            ) from error

    def _claim(self) -> None:
        path = self.folder / "spec.yaml"
        wanted = self.spec.model_dump(mode="json")
        if path.exists():
            found = read_spec(path)
            differ = [k for k in sorted({*wanted, *found}) if wanted.get(k) != found.get(k)]
            if differ:
                k = differ[0]
                raise UsageError(
                    f"'{self.folder}' holds a run of another spec ({k}: {found.get(k)} there, {wanted.get(k)} here); "
                    "give another folder with --out, or remove it"
                )
        elif any(p for p in self.folder.iterdir()):
            raise UsageError(f"'{self.folder}' is not empty and holds no run; give another folder with --out")
        # Written also when it is there: a read-only folder is found out before the work, not after it.
        write_bytes(path, yaml.safe_dump(wanted, sort_keys=False, allow_unicode=True).encode())

    def table(self, name: str, make: Callable[[], pd.DataFrame]) -> pd.DataFrame:
        """The table `name`, read if it is there, else made and written."""
        path = self.folder / f"{name}.parquet"
        if path.exists():
            self.skipped.append(name)
            return pd.read_parquet(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        start = time.monotonic()
        frame = make()
        write_frame(path, frame)
        self._note(name, time.monotonic() - start)
        return frame

    def json(self, name: str, make: Callable[[], Any]) -> Any:
        """Like `table`, for a JSON file."""
        path = self.folder / f"{name}.json"
        if path.exists():
            self.skipped.append(name)
            return json.loads(path.read_text())
        start = time.monotonic()
        value = make()
        write_bytes(path, json.dumps(value, ensure_ascii=False, indent=1).encode())
        self._note(name, time.monotonic() - start)
        return value

    def _note(self, name: str, seconds: float) -> None:
        self.done.append(name)
        found = self._provenance()
        found.setdefault("seconds", {})[name] = round(seconds, 2)
        self._record(found)

    def remark(self, text: str) -> None:
        """Record something a reader of the tables must know: what was left out, and why."""
        found = self._provenance()
        found["remarks"] = sorted({*found.get("remarks", []), text})
        self._record(found)

    def _provenance(self) -> dict[str, Any]:
        path = self.folder / "provenance.json"
        return dict(json.loads(path.read_text())) if path.exists() else {}

    def _record(self, facts: dict[str, Any]) -> None:
        write_bytes(self.folder / "provenance.json", json.dumps(facts, ensure_ascii=False, indent=1).encode())

    def provenance(self, **facts: Any) -> None:
        """Record what made this run. A folder whose facts differ in `fingerprint` is refused.

        Raises:
            UsageError: the tables in the folder were made with other weights.
        """
        found = self._provenance()
        before, now = found.get("fingerprint"), facts.get("fingerprint")
        if before and now and before != now:
            raise UsageError(
                f"'{self.folder}' was made with other weights (fingerprint {before[:12]} there, {now[:12]} here); "
                "give another folder with --out"
            )
        versions = {name: metadata.version(name) for name in PACKAGES}
        from interp import __version__

        versions["interp"] = __version__
        host = {
            "host": HOST,
            "platform": platform.platform(),
            "python": platform.python_version(),
        }
        # What is there already was made by what is recorded already.
        self._record({"versions": versions, **host, **found, **facts})
