"""The cache folder, and folders in it that are either whole or absent.

`install` builds a folder under a lock in a staging folder beside its target, writes a manifest of all its files last,
syncs it to disk and renames it into place. A build that fails, runs out of disk or is killed leaves no target behind;
what it left in staging is cleared by the next one.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from interp.errors import MissingResource

Progress = Callable[[int, int, str], None]
"""Told about long work as `progress(done, total, what)`; `total` is 0 where it is not known."""

MANIFEST = "interp-manifest.json"
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
_NO_WRITE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)


def quiet(done: int, total: int, what: str) -> None:
    """The `Progress` that says nothing."""


def cache_dir() -> Path:
    """Folder of downloaded and converted models: `$INTERP_CACHE`, else the platform's cache folder."""
    chosen = os.environ.get("INTERP_CACHE")
    if chosen:
        return Path(chosen).expanduser().absolute()
    from platformdirs import user_cache_path

    return user_cache_path("interp", appauthor=False)


def sha256(path: Path) -> str:
    """SHA-256 of a file, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of an installed folder, or None where it is absent or a file is missing or of another size."""
    try:
        found = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        whole = all((folder / name).stat().st_size == it["bytes"] for name, it in found["files"].items())
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if whole else None


def damaged(folder: Path) -> list[str]:
    """Names of the files whose content is not what the manifest says; the manifest itself where that is unreadable."""
    found = manifest(folder)
    if found is None:
        return [MANIFEST]
    return [name for name, it in found["files"].items() if sha256(folder / name) != it["sha256"]]


def install(
    target: Path,
    build: Callable[[Path, Path], Mapping[str, Any]],
    *,
    ready: Callable[[], bool],
    bytes_needed: int = 0,
    progress: Progress = quiet,
) -> Path:
    """Make `target` exist and be whole: run `build` unless `ready()` holds, also after waiting for another process.

    Args:
        target: the folder to make.
        build: called with two empty folders: the first becomes `target`, the second is scratch. What it returns is
            kept in the manifest.
        ready: whether `target` is already as wanted; asked again under the lock.
        bytes_needed: free space that the build takes at its peak.
        progress: told when another process holds the lock.

    Raises:
        MissingResource: the folder cannot be written, or the disk is full.
    """
    from filelock import FileLock, Timeout

    with _disk_errors(target.parent, bytes_needed):
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(target.parent / f".{target.name}.lock")
        try:
            lock.acquire(timeout=1)
        except Timeout:
            progress(0, 0, f"waiting for another process that makes {target.name}")
            lock.acquire()
        try:
            _clear(target)
            if not ready():
                _build(target, build, bytes_needed)
        finally:
            lock.release()
    return target


def _clear(target: Path) -> None:
    """Remove what killed builds of `target` left; the lock is held, so no build is under way."""
    for left in target.parent.glob(f".{target.name}-staging-*"):
        # A downloader that outlived its killed parent may still write here; then the next start clears the rest.
        shutil.rmtree(left, ignore_errors=True)


def _build(target: Path, build: Callable[[Path, Path], Mapping[str, Any]], bytes_needed: int) -> None:
    free = shutil.disk_usage(target.parent).free
    if free < bytes_needed:
        raise OSError(errno.ENOSPC, f"only {free / 1e9:.2f} GB are free")
    staging = Path(tempfile.mkdtemp(prefix=f".{target.name}-staging-", dir=target.parent))
    try:
        new, scratch = staging / "new", staging / "scratch"
        new.mkdir()
        scratch.mkdir()
        about = build(new, scratch)
        files = sorted(p for p in new.rglob("*") if p.is_file())
        listed = {
            p.relative_to(new).as_posix(): {"bytes": p.stat().st_size, "sha256": sha256(p)} for p in files
        }
        (new / MANIFEST).write_text(json.dumps({**about, "files": listed}, indent=1) + "\n", encoding="utf-8")
        for path in (*files, new / MANIFEST):
            # safetensors makes its files readable to the owner only; a cache may be shared.
            path.chmod(new.stat().st_mode & 0o666)
            _sync(path)
        _sync(new)
        if target.exists():
            target.rename(staging / "old")
        new.rename(target)
        _sync(target.parent)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _sync(path: Path) -> None:
    """Have the file's (or folder's) content on the disk before its new name is."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _disk_errors(folder: Path, bytes_needed: int) -> Iterator[None]:
    """Say in one line that a folder cannot be written or that its disk is full, and what to do."""
    try:
        yield
    except Exception as error:
        # safetensors reports the system's errors as text: "I/O error: No space left on device (os error 28)".
        code = error.errno if isinstance(error, OSError) else None
        if code in _NO_SPACE or f"(os error {errno.ENOSPC})" in str(error):
            need = f"{bytes_needed / 1e9:.1f} GB" if bytes_needed else "more room"
            raise MissingResource(
                f"no space left in {folder}: {need} must be free; make room or set INTERP_CACHE to another folder"
            ) from error
        if code in _NO_WRITE:
            raise MissingResource(
                f"cannot write in {folder} ({os.strerror(code)}); set INTERP_CACHE to a folder you can write"
            ) from error
        raise
