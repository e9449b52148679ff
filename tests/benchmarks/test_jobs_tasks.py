"""The job of all tasks, at few examples."""

from __future__ import annotations

import pytest

from interp.tasks import NAMES, task
from tests.benchmarks import jobs_tasks
from tests.benchmarks.harness import judge, measure, status

pytestmark = pytest.mark.model


def test_every_task_is_made_at_the_length_that_is_told(smollm2):
    for name in NAMES:
        made = [len(e.ids) for e in jobs_tasks.stream(name, 6, smollm2.tokens)]
        assert len(made) == 6 and max(made) <= jobs_tasks.LENGTH, name


def test_a_task_of_few_questions_goes_on_with_other_seeds(smollm2):
    whole = len(task("reading", n="all"))
    made = [e.text for e in jobs_tasks.stream("reading", 2 * whole, smollm2.tokens)]
    assert len(made) == 2 * whole and made[:whole] != made[whole:]


def test_the_slowest_task_and_the_one_that_grows_most_are_judged(smollm2):
    job = jobs_tasks.tasks(smollm2, n=20, names=("niah", "ioi"), apart=False)
    found = measure(job, rounds=2)
    numbers = found["numbers"]
    assert numbers["tokens"] == numbers["tokens niah"] == 256 > numbers["tokens ioi"]
    assert numbers["seconds"] == max(numbers["seconds niah"], numbers["seconds ioi"]) > 0
    assert [reach["value"] for reach in judge(job, found)] == [
        numbers[what] for what in ("seconds", "MB", "tokens")
    ]


def test_what_is_kept_is_seen_as_growth(smollm2, monkeypatch):
    kept = []
    monkeypatch.setattr(
        jobs_tasks,
        "stream",
        lambda name, n, tokens: (kept.append(bytearray(2**20)) or e for e in [example] * n),
    )
    example = task("ioi", n=1).examples(smollm2.tokens)[0]
    assert 80 < jobs_tasks.generated("ioi", 100, smollm2.tokens)["MB"] < 100


@pytest.mark.slow
def test_a_process_of_its_own_says_the_same(smollm2):
    (made,) = jobs_tasks.tasks(smollm2, n=20, names=("ioi",)).ours().values()
    longest = max(len(e.ids) for e in jobs_tasks.stream("ioi", 20, smollm2.tokens))
    assert made["tokens"] == longest and made["seconds"] > 0 and status("VmRSS") > 1
