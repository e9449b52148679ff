"""The jobs of memorization on an untrained pipeline, few steps."""

from __future__ import annotations

import pytest

from tests.benchmarks import jobs_memorization
from tests.benchmarks.harness import judge, measure
from tests.pipelines import pixels

TEXTS = ("zorax poster of the digit one", "photo of seven", "a blue digit", "the red nine")


@pytest.mark.parametrize("paired", [False, True])
def test_masks_are_those_of_the_loop_and_rows_are_counted(paired: bool) -> None:
    job = jobs_memorization.wanda(pixels(), paired, TEXTS, looped=2, steps=5, tau=2)
    found = measure(job, rounds=1)
    assert found["equal"] == {"difference": 0.0, "tolerance": 0.0, "met": True}
    # Two rows of each of six calls, in two runs; two rows of two steps, and one run of the empty prompt for all.
    assert found["numbers"]["rows"] == pytest.approx(24 / (4 if paired else 4 + 2 / 4))
    results = {name: call() for name, call in job.callables().items()}
    target, base = results[jobs_memorization.LOOP]
    for key in target.norms:
        target.norms[key] = target.norms[key].flip(0)
    assert job.equal({**results, jobs_memorization.LOOP: (target, base)}) > 0
    rows, *_ = judge(job, {**found, "memory MB": {"ours": 1.0}})
    assert rows["value"] == found["numbers"]["rows"]
