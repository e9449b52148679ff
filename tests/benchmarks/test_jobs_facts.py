"""The jobs of facts on a tiny model: equal to the loops they are measured against, and as cheap as they say."""

from __future__ import annotations

import numpy as np
import pytest

from interp.models.subject import CausalLM
from tests.benchmarks import jobs_facts
from tests.benchmarks.harness import judge, measure
from tests.tiny import tiny


@pytest.fixture(scope="module")
def model() -> CausalLM:
    return CausalLM(tiny("llama"), None, name="llama")


@pytest.mark.parametrize(
    ("build", "saving"),
    [
        (jobs_facts.whole_map, "token-layers"),
        (jobs_facts.knockout, "token-layers"),
        (jobs_facts.value, "columns"),
    ],
)
def test_jobs_equal_the_reference_and_count_what_they_save(model, build, saving):
    job = build(model)
    found = measure(job, rounds=1)
    assert found["equal"]["met"], found["equal"]
    numbers = found["numbers"]
    # A model of three layers: what is run once weighs more than in a deep one.
    assert numbers["saving counted"] > 0.5 * numbers[f"saving in {saving}"] > 0.5
    found["memory MB"] = dict.fromkeys(job.memory, 1.0)
    judged = judge(job, found)
    assert judged and all(reach["value"] > 0 for reach in judged)


def test_the_equality_check_sees_cells_that_were_mistaken(model):
    for build in (jobs_facts.whole_map, jobs_facts.knockout):
        job = build(model)
        results = {name: call() for name, call in job.callables().items()}
        loop = results["torch hooks"]
        shuffled = dict(zip(loop, reversed(loop.values()), strict=True))
        assert max(loop.values()) - min(loop.values()) > 1e-4
        assert job.equal({**results, "torch hooks": shuffled}) > job.tolerance
    job = jobs_facts.value(model, steps=4)
    results = {name: call() for name, call in job.callables().items()}
    losses = results["torch hooks"]
    assert len(results["ours"]) == 4 and len(losses) == 3 and min(np.abs(np.diff(losses))) > 0.01
    assert job.equal({**results, "torch hooks": [*losses[:2], losses[2] + 0.01]}) > job.tolerance


def test_the_model_is_left_as_it_was(model):
    wanted = [weight.requires_grad for weight in model.hf.parameters()]
    jobs_facts.value(model).peers["torch hooks"]()
    assert [weight.requires_grad for weight in model.hf.parameters()] == wanted
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.blocks.modules())
