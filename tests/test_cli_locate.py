"""`interp locate`: scores by name, a file in the reference's format, a folder to go on from, a rule for stopping."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import interp as library
from interp.cli import app
from tests.tiny import byte_tokenizer, tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny("llama").save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def locate(model: Path, *options: object) -> Any:
    fixed = ["locate", model, "--mode", "forced", "--set", "length=400", "--set", "kinds=words"]
    return CliRunner().invoke(app, [str(a) for a in [*fixed, *options]])


def test_scores_by_name_in_one_table(model: Path, tmp_path: Path) -> None:
    done = locate(model, "-n", 4, "--method", "r2", "--scores", "copy,locos", "--top", 3, "--json")
    assert done.exit_code == 0, done.output
    rows = json.loads(done.stdout)
    assert len(rows) == 3 and {"component", "score", "copy", "locos"} <= set(rows[0]) and "r2" not in rows[0]
    task = library.task("niah", length=400, kinds="words", n=4)
    heads = library.RetrievalHeads("r2", mode="forced", scores=("copy", "locos")).fit(
        library.load(model), task
    )
    assert [r["component"] for r in rows] == [repr(h) for h in heads.top(3)]
    own = heads.scores_.set_index(["method", "component"])["score"]
    for row in rows:
        assert row["score"] == pytest.approx(own["r2", row["component"]])
        assert row["locos"] == pytest.approx(own["locos", row["component"]])
    # The threshold is one of copy scores, so no other is counted by it.
    assert "score 0.1 or more" not in done.stderr and "tokens run" in done.stderr


def test_a_file_in_the_references_format(model: Path, tmp_path: Path) -> None:
    done = locate(model, "-n", 4, "--save", tmp_path / "heads.json")
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "heads.json").read_text())
    assert len(found) == 12 and all(len(scores) == 4 for scores in found.values())
    assert library.read_heads(tmp_path / "heads.json").scores_["n"].eq(4).all()


def test_it_stops_and_goes_on(model: Path, tmp_path: Path) -> None:
    first = locate(model, "-n", 40, "--until", "stability", "--top", 3, "--folder", tmp_path / "parts")
    assert first.exit_code == 0, first.output
    assert "no error rate" in first.stderr
    files = sorted((tmp_path / "parts").iterdir())
    times = [f.stat().st_mtime_ns for f in files]
    again = locate(model, "-n", 40, "--until", "stability", "--top", 3, "--folder", tmp_path / "parts")
    assert again.stdout == first.stdout
    assert [f.stat().st_mtime_ns for f in files] == times
    # Scores without bounds have a rule of their own.
    free = locate(model, "-n", 20, "--until", "confidence", "--top", 3, "--method", "locos")
    assert free.exit_code == 0 and "confidence 95%" in free.stderr, free.output
    wrong = locate(model, "-n", 4, "--until", "soon")
    assert wrong.exit_code == 2 and "confidence or stability" in wrong.stderr
