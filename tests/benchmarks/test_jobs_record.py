"""The record job on a tiny model."""

from __future__ import annotations

from interp.models.subject import CausalLM
from tests.benchmarks import jobs_record
from tests.benchmarks.harness import judge, measure
from tests.tiny import tiny


def test_what_is_recorded_is_what_a_plain_hook_sees():
    job = jobs_record.record(CausalLM(tiny("llama"), None, name="llama"), n=2, length=10)
    found = measure(job, rounds=1)
    assert found["equal"] == {"difference": 0.0, "tolerance": 0.0, "met": True}
    results = {name: call() for name, call in job.callables().items()}
    assert results["ours"].shape == (2, 10, 48)
    for name in ("nnsight", "TransformerLens"):
        assert (results[name] - results["ours"]).abs().max() < 2e-5
    assert job.equal({**results, "ours": results["ours"].roll(1, 1)}) > 0.01
    (reach,) = judge(job, found)
    assert reach["value"] == found["ratios"]["ours/bare"]["cpu"]["median"]
