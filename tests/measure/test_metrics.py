"""Metrics of a forced answer on logits written by hand."""

from __future__ import annotations

import math

import pytest
import torch

from interp.measure.metrics import score_answer, score_at
from interp.tasks.base import Example


def example(**changes) -> Example:
    base = {
        "answer_ids": (2, 5, 1),
        "foil_ids": (2, 4, 1),
        "candidates": ((2, 5, 1), (2, 4, 1), (2, 3, 0)),
        "chance": 1 / 3,
    }
    return Example("t", (7, 8), **{**base, **changes})


def rows(*best: int, v: int = 9, height: float = 3.0) -> torch.Tensor:
    logits = torch.zeros(len(best), v)
    for i, b in enumerate(best):
        logits[i, b] = height
    return logits


def test_all_metrics_of_one_answer():
    logits = rows(2, 4, 1)
    logits[1, 5], logits[1, 3] = 2.0, 2.5
    got = score_answer(logits, example())
    z = [math.log(math.exp(3) + 8), math.log(math.exp(3) + math.exp(2) + math.exp(2.5) + 6)]
    logprob = (3 - z[0]) + (2 - z[1]) + (3 - z[0])
    assert got["accuracy"] == 0.0
    assert got["logit_diff"] == pytest.approx(2 - 3)  # at the second token, where answer and foil part
    assert got["rank"] == 3.0  # 4 and 3 both stand above 5
    assert got["logprob"] == pytest.approx(logprob, abs=1e-5)
    assert got["nll"] == pytest.approx(-logprob / 3, abs=1e-5)


def test_accuracy_needs_every_token_unless_scored_at_one():
    assert score_answer(rows(2, 5, 1), example())["accuracy"] == 1.0
    assert score_answer(rows(2, 5, 0), example())["accuracy"] == 0.0
    assert score_answer(rows(2, 5, 0), example(meta={"score_at": 1}))["accuracy"] == 1.0
    assert score_answer(rows(2, 4, 1), example(meta={"score_at": 1}))["accuracy"] == 0.0
    assert score_answer(rows(3, 5, 1), example(meta={"score_at": 1}))["accuracy"] == 0.0


def test_an_alternative_counts_where_the_forced_tokens_allow_to_tell():
    other = example(alternatives=((2, 6),))
    assert score_answer(rows(2, 6, 1), other)["accuracy"] == 1.0
    assert score_answer(rows(3, 6, 1), example(alternatives=((3, 6),)))["accuracy"] == 0.0
    assert score_answer(rows(3, 6, 1), example(alternatives=((3,),)))["accuracy"] == 1.0


def test_choice_is_among_candidates_and_right_by_an_alternative_too():
    unlisted = rows(2, 7, 1)  # a token that no candidate has wins, and among candidates the answer does
    unlisted[1, 5], unlisted[1, 4] = 2.0, 1.0
    got = score_answer(unlisted, example())
    assert (got["accuracy"], got["choice"]) == (0.0, 1.0)
    beaten = rows(2, 4, 1)
    beaten[1, 5] = 2.0
    assert score_answer(beaten, example())["choice"] == 0.0
    assert score_answer(beaten, example(alternatives=((2, 4),)))["choice"] == 1.0
    assert (
        score_answer(beaten, example(alternatives=((3, 4),)))["choice"] == 0.0
    )  # it parts before that token
    assert score_answer(beaten, example(alternatives=((2,),)))["choice"] == 0.0
    assert score_answer(torch.zeros(3, 9), example())["choice"] == 0.0  # all alike: nothing was chosen


def test_no_foil_and_no_candidates_give_nan_and_not_zero():
    got = score_answer(rows(2, 5, 1), example(foil_ids=(), candidates=()))
    assert all(math.isnan(got[m]) for m in ("logit_diff", "rank", "choice"))


def test_score_at_is_the_first_token_that_tells_candidates_apart():
    assert score_at(example()) == 1
    assert score_at(example(candidates=((2, 5, 1), (3, 5, 1)))) == 0
    assert score_at(example(candidates=())) == 0
    assert score_at(example(candidates=((2, 5), (2, 5, 1)))) == 1
