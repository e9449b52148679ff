"""`interp sweep` as a user types it: run, status, merge, and specs that cannot be."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from typer.testing import CliRunner, Result

from interp.cli import app
from interp.sweep.run import Sweep
from interp.sweep.spec import read_sweep, ready


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def spec(fields: dict[str, Any], tmp_path: Path) -> Path:
    path = tmp_path / "planted.yaml"
    path.write_text(yaml.safe_dump(fields))
    return path


def call(*words: str) -> Result:
    return CliRunner().invoke(app, ["sweep", *words])


def test_a_sweep_is_run_gone_on_with_and_merged(spec: Path, tmp_path: Path) -> None:
    first = call("run", str(spec), "--json")
    assert first.exit_code == 0, first.output
    told = json.loads(first.stdout)
    assert (told["done"], told["there"], told["failed"]) == (4, 0, 0)
    assert "4/4 done" in first.stderr and "left" in first.stderr
    again = json.loads(call("run", str(spec), "--json").stdout)
    assert (again["done"], again["there"]) == (0, 4)
    table = pd.read_parquet(again["table"])
    sweep = Sweep(read_sweep(spec), tmp_path / "runs" / "planted")
    pd.testing.assert_frame_equal(table, sweep.to_frame())
    job = sweep.jobs()[0]
    sweep.store.path(job.key).unlink()
    states = Counter(row["state"] for row in json.loads(call("status", str(spec), "--json").stdout))
    assert states == {"done": 3, "waiting": 1}
    merged = json.loads(call("merge", str(spec), "--json").stdout)
    assert (merged["units"], merged["of"]) == (3, 4)
    assert len(pd.read_parquet(merged["table"])) < len(table)


def test_units_run_where_they_are_sent_and_figures_are_drawn(spec: Path) -> None:
    sent = ("--executor", "slurm", "--option", "cluster=local", "--option", "workers=2")
    told = json.loads(call("run", str(spec), *sent, "--json").stdout)
    assert told["done"] == 4 and list(Path("runs/planted/slurm").glob("*.out"))
    files = [Path(row["file"]) for row in json.loads(call("figures", str(spec), "--json").stdout)]
    assert files and all(path.stat().st_size for path in files)
    assert {path.suffix for path in files} >= {".html", ".csv"}
    assert {path.parent for path in files} == {Path("runs/planted/figures")}
    for words, says in (
        (("--executor", "condor"), "no executor 'condor'; there are serial, ray, slurm"),
        (("--executor", "ray", "--option", "nodes=2"), "executor ray: "),
    ):
        refused = call("run", str(spec), *words)
        assert refused.exit_code == 2 and says in " ".join(refused.stderr.split())


def test_a_unit_that_fails_is_told_and_the_rest_is_run(spec: Path) -> None:
    # A ranking of fewer heads than the dose: the cut says so, for every unit.
    result = call("run", str(spec), "--set", "cuts.0.set.doses=[1000]")
    assert result.exit_code == 1 and "--retry-failed" in result.stderr
    status = call("status", str(spec), "--set", "cuts.0.set.doses=[1000]", "--json")
    rows = json.loads(status.stdout)
    assert {row["state"] for row in rows} == {"failed"}
    assert all("a dose is 1000" in row["error"] for row in rows)
    assert not Path("runs/planted/results.parquet").exists()


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("--set", "colour=red"), 2, "unknown key 'colour'"),
        (("--set", "cuts.0.cut=nothing"), 2, "there is no 'nothing'"),
        (("--set", "locators.0.locator=retrieval_head"), 2, "did you mean 'retrieval_heads'?"),
        (("--set", "models.0=no-such-folder/model"), 3, "no-such-folder"),
    ],
)
def test_a_spec_that_cannot_be_is_refused_before_anything_is_run(
    spec: Path, words: tuple[str, ...], code: int, says: str
) -> None:
    result = call("run", str(spec), *words)
    assert result.exit_code == code and says in " ".join(result.stderr.split())
    assert not list(Path(".").rglob("*.parquet"))


def test_a_name_that_is_no_spec_lists_the_ready_ones() -> None:
    result = call("status", "no-such-spec")
    assert result.exit_code == 3 and all(name in result.stderr for name in ready())
    listed = json.loads(call("list", "--json").stdout)
    assert [row["name"] for row in listed] == list(ready()) and all(row["units"] > 0 for row in listed)
