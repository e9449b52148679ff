"""The GPU benchmark on a CPU and a tiny model: every line is there and says what it should."""

from __future__ import annotations

import json

import pytest
import torch

from tests.benchmarks import gpu


def test_a_trial_on_the_cpu(tmp_path, capsys):
    path = tmp_path / "gpu.json"
    options = ["--shape", "tiny", "--device", "cpu", "--dtype", "float32"]
    gpu.main([*options, "--lengths", "64", "128", "--repeats", "1", "--out", str(path)])
    said = capsys.readouterr().out
    found = json.loads(path.read_text())
    assert found["not installed"] == [] and found["shape"] == "tiny"
    what = {(row["job"].partition(",")[0], row["what"]) for row in found["rows"]}
    tools = ("bare forward", "interp", "torch hooks", "nnsight", "TransformerLens", "largest difference")
    for name in ("zero-ablate each of the 12 heads", "causal-trace map of hidden states"):
        assert {w for job, w in what if job == name} == set(tools)
    assert {w for job, w in what if job == "rows of 32 queries"} == {
        "bare prefill",
        "interp",
        "eager output_attentions",
    }
    assert len({row["job"] for row in found["rows"] if row["job"].startswith("rows")}) == 2
    for row in found["rows"]:
        if row["what"] == "largest difference":
            assert float(row["note"]) < 1e-4
        else:
            assert row["seconds"] > 0 and row["MB"] >= 0 and row["ratio"] > 0
    assert "bare prefill" in said and "largest" in said


def test_shapes_are_those_of_llama(rng_untouched):
    config = gpu.SHAPES["8b"]
    d, kv = config["hidden_size"], config["num_key_value_heads"] * 128
    block = 2 * d * d + 2 * d * kv + 3 * d * config["intermediate_size"]
    weights = config["num_hidden_layers"] * block + 2 * config["vocab_size"] * d
    assert weights / 1e9 == pytest.approx(8.03, abs=0.01)
    subject = gpu.model("tiny", "cpu", torch.bfloat16)
    assert subject.dtype == torch.bfloat16 and subject.context_length == 131072
    assert subject.hf.config._attn_implementation == "sdpa"


def test_what_does_not_fit_is_a_line():
    def fails() -> None:
        raise torch.OutOfMemoryError("no room")

    row = gpu.measured("interp", "rows", fails, "cpu", 1)
    assert row == {"job": "rows", "what": "interp", "note": "out of memory"}
    assert gpu.over(row, {"seconds": 1.0}) == row


def test_no_gpu_is_said(capsys):
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    with pytest.raises(SystemExit):
        gpu.main(["--shape", "tiny"])
    assert "there is no CUDA device" in capsys.readouterr().err


@pytest.mark.gpu
def test_a_trial_on_the_gpu(tmp_path):
    path = tmp_path / "gpu.json"
    gpu.main(["--shape", "tiny", "--lengths", "256", "--repeats", "1", "--out", str(path)])
    rows = json.loads(path.read_text())["rows"]
    assert {"interp", "torch hooks", "eager output_attentions"} <= {row["what"] for row in rows}
    assert all(row["seconds"] > 0 for row in rows if "seconds" in row)
