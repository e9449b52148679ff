"""The sweep jobs on a tiny model: ours and every peer give the same numbers, and counts are what they say."""

from __future__ import annotations

import pytest

from interp.models.sites import Head
from interp.models.subject import CausalLM
from tests.benchmarks import jobs_sweep
from tests.benchmarks.harness import judge, measure
from tests.benchmarks.jobs_trace import TokenLayers
from tests.tiny import tiny


@pytest.fixture(scope="module")
def model() -> CausalLM:
    return CausalLM(tiny("llama"), None, name="llama")


def test_head_sweep(model):
    job = jobs_sweep.head_sweep(model, n=3, length=10, sample=2, of_layer=None)
    found = measure(job, rounds=1)
    assert found["equal"]["met"] and found["units"] == {
        "ours": 12,
        "bare": 1,
        "torch hooks": 2,
        "nnsight": 2,
        "TransformerLens": 2,
    }
    results = {name: call() for name, call in job.callables().items()}
    assert list(results["ours"]) == [Head(0, 0), Head(2, 1)]
    for name in ("nnsight", "TransformerLens"):
        for head, logits in results["torch hooks"].items():
            assert (results[name][head] - logits).abs().max() < 1e-4
    # The equality check sees a head that was not cut.
    assert job.equal({**results, "ours": {h: results["bare"][:, -1] for h in results["ours"]}}) > 1e-3
    assert judge(job, found)[0]["quantity"] == "ours/bare"


def test_dose_curve(model):
    job = jobs_sweep.dose_curve(model, length=40, sizes=(1, 3), draws=4, sample=3)
    found = measure(job, rounds=1)
    assert found["equal"]["met"]
    # One prompt of 40 tokens, and its last token again under each of the 8 conditions.
    assert found["numbers"] == {"prefill": pytest.approx((40 + 8) / (8 * 40))}
    counter = TokenLayers(model)
    with counter.counted():
        job.ours()
    assert 43 * 3 < counter.count <= (43 + 8 * 4) * 3  # whatever it says it ran
    results = {name: call() for name, call in job.callables().items()}
    naive = results["torch hooks"]
    swapped = dict(zip(naive, reversed(naive.values()), strict=True))
    assert job.equal({**results, "torch hooks": swapped}) > 1e-3
    assert judge(job, found)[0]["met"] is False


def test_samples_are_spread_from_first_to_last():
    assert jobs_sweep.spread(30, 5) == [0, 7, 14, 22, 29]
    assert jobs_sweep.spread(3, 5) == [0, 1, 2]
