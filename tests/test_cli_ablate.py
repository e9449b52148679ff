"""`interp ablate`: what the options cut, and what each kind of control is held against."""

from __future__ import annotations

import json

import pandas as pd
import pytest
from typer.testing import CliRunner

from interp.cli import app, work
from tests.measure.test_effects import solvable
from tests.subjects import subject


@pytest.fixture
def ablate(monkeypatch):
    s = subject("llama")
    task = solvable(s, 4)
    monkeypatch.setattr(work, "_load", lambda *args: s)
    monkeypatch.setattr(work, "build", lambda *args: task)
    return lambda *args: CliRunner().invoke(app, ["ablate", "tiny", "L1H2", "--scope", "answer", *args])


def test_a_knockout_of_keys_beside_two_kinds_of_control(ablate):
    options = ["--mode", "knockout", "--controls", "2"]
    found = ablate(*options, "--keys", "key+value", "--match", "layer, entropy", "--json")
    assert found.exit_code == 0, found.output
    rows = pd.DataFrame(json.loads(found.stdout))
    cut = rows[rows["condition"] == "cut"]
    assert set(cut["mode"]) == {"knockout"} and set(cut["keys"]) == {"key+value"}
    assert rows[rows["metric"] == "nll"].empty and set(rows["role"]) == {"target"}
    drawn = rows[(rows["condition"] == "control") & (rows["metric"] == "logprob")]
    assert drawn["control"].tolist() == ["layer"] * 2 + ["entropy"] * 2
    table = ablate(*options, "--match", "layer,entropy").stdout
    assert "entropy" in table and "layer" in table


def test_what_the_options_cannot_mean_is_said(ablate):
    for args, told in (
        (("--keys", "value"), "takes no keys"),
        (("--match", "depth"), "layer, size, norm, entropy, bottom, given"),
        (("--match", "bottom"), "need a ranking"),
    ):
        found = ablate(*args)
        assert found.exit_code == 2 and told in found.stderr
