"""Every bad input that a user meets ends in one clear line on stderr and the right exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import transformers as hf
from typer.testing import CliRunner, Result

from interp.cli import app
from tests.tiny import byte_tokenizer, tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A folder with a tiny model and a tokenizer of one token a byte."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny("llama").save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def interp(*args: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in args])


def ends(result: Result, code: int, *words: str) -> None:
    """One line that says `interp: error: ...` with these words, and nothing on stdout."""
    assert result.exit_code == code, result.output
    told = [line for line in result.stderr.splitlines() if line.startswith("interp: error:")]
    assert len(told) == 1, result.stderr
    assert "Traceback" not in result.output and result.stdout == ""
    for word in words:
        assert word in told[0], told[0]


def jsonl(path: Path, *lines: object) -> Path:
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n")
    return path


COPY = {
    "prompt": "The code is blue. Asked for it, say: The code is",
    "answer": " blue",
    "candidates": [" blue", " gray", " pink", " cyan"],
    "spans": [{"start": 11, "end": 16, "role": "value", "item": 0}],
}


def test_unknown_model():
    ends(interp("locate", "no-such-model"), 3, "no model 'no-such-model'", "interp models fetch smollm2")


def test_no_network(tmp_path):
    """A hub id in a world without name resolution: at once, in a process that is not told to be offline."""
    script = (
        "import socket\n"
        "def no(*a, **k): raise socket.gaierror(-2, 'Name or service not known')\n"
        "socket.getaddrinfo = no\n"
        "import sys; sys.argv = ['interp', 'locate', 'someone/some-model']\n"
        "from interp.cli import app; app()\n"
    )
    env = {**os.environ, "HF_HOME": str(tmp_path)}
    env.pop("HF_HUB_OFFLINE", None)
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        env.pop(name, None)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=env, timeout=60)
    assert done.returncode == 3
    assert [ln for ln in done.stderr.splitlines() if "error" in ln] == [
        ln for ln in done.stderr.splitlines() if "no network" in ln
    ]
    assert "Retrying" not in done.stderr and done.stdout == ""


def test_no_tokenizer(tmp_path):
    tiny("llama").save_pretrained(tmp_path / "bare")
    ends(interp("locate", tmp_path / "bare", "-n", 1), 3, "without a tokenizer")


def test_a_sequence_longer_than_the_context(model):
    ends(interp("locate", model, "-n", 1, "--set", "length=2000"), 2, "do not fit the context", "512")


def test_no_accepted_example(model, tmp_path):
    path = jsonl(tmp_path / "t.jsonl", COPY)
    ends(interp("locate", model, "--task", path), 1, "recalls none of 1 needles", "it said")


@pytest.mark.parametrize("head", ["L3H0", "L0H4", "99-0"])
def test_a_head_that_does_not_exist(model, head, tmp_path):
    path = jsonl(tmp_path / "t.jsonl", COPY)
    ends(interp("ablate", model, head, "--task", path), 2, "tiny has")


def test_what_is_no_component(model):
    ends(interp("ablate", model, "head five"), 2, "write a head as L17H3")


def test_unknown_architecture(tmp_path):
    config = hf.BloomConfig(vocab_size=64, hidden_size=16, n_layer=2, n_head=2)
    hf.BloomForCausalLM(config).save_pretrained(tmp_path / "bloom")
    ends(
        interp("locate", tmp_path / "bloom"),
        2,
        "'bloom' is not in the site table",
        "cannot resolve",
        "Add a row",
    )


def test_a_broken_jsonl_line_with_its_number(model, tmp_path):
    path = jsonl(tmp_path / "t.jsonl", COPY, '{"prompt": "half')
    ends(interp("locate", model, "--task", path), 2, "t.jsonl", "2")


def test_a_clean_model_at_chance(model, tmp_path):
    lines = [{**COPY, "cluster": str(i)} for i in range(4)]
    result = interp("ablate", model, "L1H2", "--task", jsonl(tmp_path / "t.jsonl", *lines), "--controls", 1)
    ends(result, 1, "at chance", "accuracy among candidates 0.00")


def test_a_run_folder_of_another_spec(model, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "spec.yaml").write_text("model: other\n")
    ends(interp("atlas", model, "--quick", "--out", tmp_path / "run"), 2, "another spec", "--out")


def test_an_output_folder_that_cannot_be_written(model):
    ends(
        interp("atlas", model, "--quick", "--out", "/proc/interp-run"),
        3,
        "cannot write to '/proc/interp-run'",
    )


def test_a_spec_with_an_unknown_or_wrong_field(model, tmp_path):
    ends(interp("atlas", model, "--set", "contrls=3"), 2, "contrls")
    ends(interp("atlas", model, "--set", "controls=many"), 2, "spec field 'controls'")
    (tmp_path / "s.yaml").write_text("model: smollm2\nlocate_kinds: [poems]\n")
    ends(interp("atlas", "--spec", tmp_path / "s.yaml"), 2, "locate_kinds")
    ends(interp("atlas", "--spec", tmp_path / "none.yaml"), 2, "there is no spec")


def test_unknown_task_mode_method_and_file_ending(model):
    ends(interp("locate", model, "--task", "nih"), 2, "niah")
    ends(interp("locate", model, "--method", "copied"), 2, "copy, copy_position")
    ends(interp("ablate", model, "L0H0", "--mode", "nil"), 2, "zero, mean, resample, uniform")
    ends(interp("report", "/nonesuch"), 2, "no run folder")
