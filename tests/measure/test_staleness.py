"""Which update is answered: planted choices, and choices read off a model's logits."""

from __future__ import annotations

import numpy as np
import pytest

import tests.tokenizers
from interp.errors import NoAcceptedExample, UsageError
from interp.measure.outcomes import evaluate
from interp.measure.staleness import ages, choices, stale_rank
from interp.tasks import task
from interp.tasks.base import Example
from tests.subjects import examples as bare
from tests.subjects import subject


def updated(**params: int) -> list[Example]:
    return task("updates", **params).examples(tests.tokenizers.tokens("smollm"))


def test_ages_count_back_from_the_current_value() -> None:
    tokens = tests.tokenizers.tokens("smollm")
    for e in updated(n=8, updates=5):
        told = {tokens.decode(ids).strip(): age for ids, age in ages(e).items()}
        assert told == {value: 4 - i for i, value in enumerate(e.meta["history"])}


def test_the_histogram_is_that_of_the_planted_ages() -> None:
    examples = updated(n=40, updates=4)
    wanted = np.repeat([0, 1, 1, 3], 10)
    chosen = [
        next(i for i, c in enumerate(e.candidates) if ages(e)[c] == a)
        for e, a in zip(examples, wanted, strict=True)
    ]
    got = stale_rank(examples, chosen)
    assert got["age"].tolist() == [0, 1, 2, 3] and set(got["updates"]) == {4}
    assert got["share"].tolist() == [0.25, 0.5, 0.0, 0.25]
    assert got["chance"].tolist() == [0.25] * 4 and set(got["n"]) == {40} and set(got["n_clusters"]) == {16}
    assert (
        (got["ci_lo"] <= got["share"]).all() and (got["share"] <= got["ci_hi"]).all() and got["ci_hi"][2] > 0
    )


def test_numbers_of_updates_have_histograms_of_their_own() -> None:
    few, many = updated(n=8, updates=2), updated(n=16, updates=3)
    got = stale_rank([*few, *many], [0] * 24)
    assert got[["updates", "age", "share", "n"]].to_numpy().tolist() == [
        [2, 0, 1, 8],
        [2, 1, 0, 8],
        [3, 0, 1, 16],
        [3, 1, 0, 16],
        [3, 2, 0, 16],
    ]


def test_answers_about_other_keys_have_no_age() -> None:
    examples = task("consolidation", n=8, hops=2).examples(tests.tokenizers.tokens("smollm"))
    other = [next(i for i, c in enumerate(e.candidates) if c not in ages(e)) for e in examples]
    got = stale_rank(examples, other, within="versions")
    assert got["age"].tolist() == [-1, 0, 1] and got["share"].tolist() == [1, 0, 0]
    assert got["chance"].tolist() == [0.5, 0.25, 0.25]


def test_choices_agree_with_the_metric_on_a_model() -> None:
    model = subject("llama")
    examples = bare((24, 17, 40, 30, 21))
    got = choices(model, examples)
    values = evaluate(model, examples, {"clean": None}).values["clean"]["choice"]
    assert ((got == 0) == (values == 1)).all() and set(got) <= {0, 1}


def test_what_cannot_be_told_is_refused() -> None:
    examples = updated(n=2)
    with pytest.raises(UsageError, match="2 examples and 1 choices; give one each"):
        stale_rank(examples, [0])
    with pytest.raises(UsageError, match="have no 'versions' in their meta"):
        stale_rank(examples, [0, 0], within="versions")
    with pytest.raises(UsageError, match="no span has the role stale_value"):
        ages(bare()[0])
    with pytest.raises(NoAcceptedExample):
        choices(subject("llama"), [])
