"""The screen job on a tiny model."""

from __future__ import annotations

import pytest

from interp.models.subject import CausalLM
from tests.benchmarks import jobs_screen
from tests.benchmarks.harness import measure
from tests.tiny import tiny


def test_a_screen_is_checked_against_a_cut_of_each_head():
    model = CausalLM(tiny("llama"), None, name="llama")
    job = jobs_screen.head_screen(model, n=4, length=20)
    found = measure(job, rounds=1)
    assert found["equal"]["met"]
    assert 0.5 < found["numbers"]["spearman"] <= 1
    assert set(found["ratios"]) == {"ours/bare"}
    assert [r.quantity for r in job.reaches] == ["ours/bare", "spearman"]
    # The exact effects are those of this model: other weights are told apart.
    weight = model.module(1, "self_attn.o_proj").weight
    before = weight.detach().clone()
    weight.data.mul_(1.5)
    assert job.equal({}) > 1e-2
    weight.data.copy_(before)
    assert job.equal({}) == pytest.approx(0, abs=1e-4)
