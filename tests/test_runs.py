"""Run folders: one spec each, whole files or none, go on where it stopped."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pandas as pd
import pytest
from pydantic import BaseModel

from interp.errors import MissingResource, UsageError
from interp.runs import HOST, STALE, Run, read_spec, write_bytes


class Spec(BaseModel):
    model: str = "m"
    seed: int = 0


FRAME = pd.DataFrame({"a": [1, 2]})


def test_what_is_there_is_not_made_again(tmp_path):
    first = Run(tmp_path / "run", Spec())
    pd.testing.assert_frame_equal(first.table("parts/a", lambda: FRAME), FRAME)
    again = Run(tmp_path / "run", Spec())
    pd.testing.assert_frame_equal(again.table("parts/a", lambda: pytest.fail("made again")), FRAME)
    assert (first.done, first.skipped, again.done, again.skipped) == (["parts/a"], [], [], ["parts/a"])
    assert json.loads((tmp_path / "run" / "provenance.json").read_text())["seconds"]["parts/a"] >= 0


def test_another_spec_other_weights_and_foreign_folders_are_refused(tmp_path):
    Run(tmp_path / "run", Spec()).provenance(fingerprint="abc")
    with pytest.raises(UsageError, match=r"another spec \(seed: 0 there, 1 here\)"):
        Run(tmp_path / "run", Spec(seed=1))
    with pytest.raises(UsageError, match="other weights"):
        Run(tmp_path / "run", Spec()).provenance(fingerprint="abd")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match="holds no run"):
        Run(tmp_path / "other", Spec())


def test_leftovers_of_a_killed_run_are_cleared(tmp_path):
    Run(tmp_path / "run", Spec())
    left = tmp_path / "run" / "scores.parquet.partial"
    left.write_bytes(b"half")
    Run(tmp_path / "run", Spec())
    assert not left.exists()


def test_what_a_live_writer_has_half_written_stays(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    Run(tmp_path, Spec())
    names = {
        f"a.parquet.{os.getpid()}-1@{HOST}.partial": True,
        f"a.parquet.{process.pid}-1@{HOST}.partial": False,
        f"a.parquet.{process.pid}-1@host.else.where.partial": True,
        f"b.parquet.{process.pid}-1@host.else.where.partial": False,
    }
    for name in names:
        (tmp_path / name).write_bytes(b"half")
    os.utime(tmp_path / list(names)[3], (time.time() - 2 * STALE,) * 2)
    Run(tmp_path, Spec())
    assert {name: (tmp_path / name).exists() for name in names} == names


def test_a_second_launcher_takes_nothing_from_one_that_writes(tmp_path, monkeypatch):
    replace, seen = os.replace, []

    def while_another_starts(partial, path):
        monkeypatch.setattr(os, "replace", replace)
        Run(tmp_path, Spec())
        seen.append(partial)
        replace(partial, path)

    Run(tmp_path, Spec())
    monkeypatch.setattr(os, "replace", while_another_starts)
    write_bytes(tmp_path / "a.json", b"whole")
    assert seen and (tmp_path / "a.json").read_bytes() == b"whole"


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_bytes(path, b"old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_folder_that_cannot_be_written(tmp_path):
    with pytest.raises(MissingResource, match="cannot write to '/proc/interp'"):
        Run(__import__("pathlib").Path("/proc/interp"), Spec())
    if os.geteuid() != 0:
        tmp_path.chmod(0o500)
        with pytest.raises(MissingResource, match="cannot write"):
            Run(tmp_path / "run", Spec())


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a read-only folder needs root")
def test_a_read_only_mount_is_found_out_before_the_work(tmp_path):
    Run(tmp_path, Spec())
    mount = ["mount", "-t", "tmpfs", "-o", "ro,size=1m", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this machine lets nothing be mounted")
    try:
        with pytest.raises(MissingResource, match="Read-only file system"):
            Run(tmp_path, Spec())
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_spec_file_that_is_no_mapping_or_no_yaml(tmp_path):
    path = tmp_path / "spec.yaml"
    path.write_text("- a\n- b\n")
    with pytest.raises(UsageError, match="is a mapping"):
        read_spec(path)
    path.write_text("a: [1\nb: 2\n")
    with pytest.raises(UsageError, match="line 2"):
        read_spec(path)
