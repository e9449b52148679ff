"""The trace jobs on a tiny model, and the prompts and the formula they rest on."""

from __future__ import annotations

import pytest

from interp.models.subject import CausalLM
from interp.tasks.base import Example, Span
from tests.benchmarks import jobs_trace
from tests.benchmarks.harness import judge, measure
from tests.tiny import tiny


@pytest.fixture(scope="module")
def model() -> CausalLM:
    return CausalLM(tiny("llama"), None, name="llama")


@pytest.mark.parametrize("kind", ["resid_post", "mlp_out"])
def test_a_map_equals_the_loops_cell_by_cell(model, kind):
    job = jobs_trace.trace_job(model, kind, faster=8.0 if kind == "resid_post" else None, sample=6)
    found = measure(job, rounds=1)
    assert found["equal"]["met"]
    assert found["units"] == {
        "ours": 36,
        "bare": 1,
        "torch hooks": 6,
        "nnsight": 6,
        "TransformerLens": 6,
    }
    results = {name: call() for name, call in job.callables().items()}
    assert set(results["nnsight"]) < set(results["ours"]) and len(results["ours"]) == 36
    loop = results["torch hooks"]
    # The equality check sees cells that were mistaken for each other.
    shuffled = dict(zip(loop, reversed(loop.values()), strict=True))
    assert max(loop.values()) - min(loop.values()) > 1e-4
    assert job.equal({**results, "torch hooks": shuffled}) > 1e-5
    # Nothing before the subject changes: those cells are the corrupt run.
    assert len({results["ours"][layer, 0] for layer in range(3)}) == 1
    assert found["numbers"]["saving counted"] > 0.5 * found["numbers"]["saving in token-layers"]
    assert len(judge(job, found)) == (3 if kind == "resid_post" else 1)


def test_the_saving_is_the_formula_of_the_reference_cost():
    """Summed over cells one by one, instead of in closed form."""
    example = Example("x", tuple(range(7)), (1,), spans=(Span(2, 4, "subject"),))
    layers, n, s, t = [0, 3, 11], 12, jobs_trace.SAMPLES, 7
    loop = sum((s + 1) * t * n for _ in layers for _ in range(t))
    hidden = sum(s * (t - i) * (n - 1 - layer) for layer in layers for i in range(2, t))
    assert jobs_trace.saving(n, example, "resid_post", layers) == pytest.approx(loop / hidden)
    first = {layer: jobs_trace.window_of(layer, n)[0] for layer in layers}
    assert first == {0: 0, 3: 0, 11: 6}
    windows = sum(s * (t - i) * (n - first[layer]) for layer in layers for i in range(2, t))
    assert jobs_trace.saving(n, example, "mlp_out", layers) == pytest.approx(loop / windows)


def test_windows_are_those_of_the_reference_code():
    assert jobs_trace.window_of(0, 30) == [0, 1, 2, 3, 4]
    assert jobs_trace.window_of(14, 30) == list(range(9, 19))
    assert jobs_trace.window_of(29, 30) == list(range(24, 30))


@pytest.mark.parametrize("text", list(jobs_trace.SHAPES))
def test_prompts_are_as_long_as_they_say_and_the_model_knows_the_answer(smollm2, model, text):
    example = jobs_trace.prompt(smollm2, text)
    (span,) = example.spans
    random = jobs_trace.prompt(model, text)
    for shaped in (example, random):
        assert (len(shaped.ids), shaped.spans[0].start) == jobs_trace.SHAPES[text]
    assert smollm2.tokens.decode(example.ids[span.start : span.end]).strip().endswith("Eiffel Tower")
    (answer,) = example.answer_ids
    known = smollm2.run([example], keep=1).logits[0, -1].softmax(-1)
    assert known.argmax() == answer and known[answer] > 0.4
