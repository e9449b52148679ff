"""`interp memorization train`: what it prints is what the library measures, and where it writes is whole or refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from interp.cli import app
from interp.measure.memorization.exposures import replication
from interp.models import cache
from interp.models.pipeline import Pipeline
from interp.models.zoo.digits.data import GROUPS
from interp.models.zoo.digits.subject import folder, preset


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["memorization", "train", *(str(a) for a in arguments)])


def test_the_trained_folder_is_checked_and_copied(digits_pipeline: Pipeline, tmp_path: Path) -> None:
    out = tmp_path / "mine"
    done = run("--preset", "tiny", "--guidance", 1.5, "--out", out, "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["folder"] == str(out) and told["fingerprint"] == digits_pipeline.fingerprint
    assert cache.damaged(out) == []
    table = replication(digits_pipeline, preset("tiny"), groups=GROUPS, guidance=1.5)
    for row in told["rates"]:
        if row["metric"] == "extracted_image":
            assert row["value"] == pytest.approx(table[table.group == row["group"]].extracted.mean())
    assert {row["group"] for row in told["rates"]} == {"memorized", "control", "unseen"}


def test_without_a_check_the_folder_is_told(digits_pipeline: Pipeline) -> None:
    done = run("--preset", "tiny", "--no-check", "--json")
    assert json.loads(done.stdout)["folder"] == str(folder(preset("tiny")))


def test_what_cannot_be_is_said_in_one_line(tmp_path: Path) -> None:
    for arguments, message in (
        (("--preset", "huge"), "no preset 'huge'; there are tiny, quick, full"),
        (("--preset", "tiny", "--out", tmp_path), "exists; give a folder that does not"),
        (("--preset", "tiny", "--seed", -1), "seed"),
    ):
        done = run(*arguments)
        assert done.exit_code == 2 and not done.stdout
        assert message in " ".join(done.stderr.split())
