"""The jobs of attention rows on a tiny model: ours and every peer give the same numbers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from interp.models.subject import CausalLM
from interp.tasks.base import Span
from tests.benchmarks import jobs_rows
from tests.benchmarks.harness import measure
from tests.tiny import tiny


@pytest.fixture(scope="module")
def model() -> CausalLM:
    return CausalLM(tiny("llama"), None, name="llama")


def test_rows(model):
    job = jobs_rows.rows(model, length=40, queries=4, whole=True)
    assert measure(job, rounds=1)["equal"]["met"]
    results = {name: call() for name, call in job.callables().items()}
    assert results["ours"][2].shape == (1, 4, 4)
    # The equality check sees a key that is not the most attended one.
    other = {layer: (keys + 1) % 36 for layer, keys in results["ours"].items()}
    assert job.equal({**results, "ours": other}) > 1e-2
    assert set(job.memory) == {"ours", "bare", "eager output_attentions"}
    alone = jobs_rows.rows(model, length=40, queries=4)
    assert not alone.peers and set(alone.memory) == {"ours", "bare"}
    assert model.config._attn_implementation == "sdpa"


def test_copy_score(model):
    job = jobs_rows.copy_score(model, length=60, answer=6)
    found = measure(job, rounds=1)
    assert found["equal"]["met"] and found["numbers"]["passes"] == 1
    results = {name: call() for name, call in job.callables().items()}
    off = results["decode loop"].copy()
    off[1, 2] += 1 / 6
    assert job.equal({**results, "decode loop": off}) == pytest.approx(1 / 6)
    assert model.config._attn_implementation == "sdpa"


def test_the_reference_loop_counts_copying_steps(model):
    """Against one eager forward pass over the whole sequence, on a needle that holds what the model says."""
    said = jobs_rows.copied(model, 62, 12)
    assert len(said.ids) + 11 == 62 and len(said.spans[0]) == len(said.answer_ids) == 12
    value = Span(0, len(said.ids), "value", 0)  # with the whole prompt as the needle there are hits
    example = replace(said, spans=(value,))
    score = jobs_rows.reference_score(model, example)

    def attentions() -> tuple[torch.Tensor, ...]:
        return model.hf(input_ids=torch.tensor([example.full_ids[:-1]]), output_attentions=True).attentions

    with torch.no_grad():
        layers = jobs_rows.eager(model, attentions)
    want = np.zeros_like(score)
    for layer, attention in enumerate(layers):
        for step, token in enumerate(example.answer_ids):
            keys = attention[0, :, len(example.ids) - 1 + step].argmax(-1).tolist()
            for head, key in enumerate(keys):
                want[layer, head] += (value.start <= key < value.end and example.ids[key] == token) / len(
                    value
                )
    np.testing.assert_allclose(score, want)
    assert score.sum() * len(value) == pytest.approx(3.0)


def test_memory_is_measured_without_fragmentation():
    assert jobs_rows.mapped(lambda: 7)() == 7
