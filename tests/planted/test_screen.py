"""Screens on planted models: what one gradient sees of a perfect circuit, what it misses, and that it says so."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

import interp
from interp.locate.screen import Screen

from .placement import Place
from .retrieval import Planted, plant, planted_task

CASES = [(kind, seed) for kind in ("gpt2", "llama") for seed in range(4)]


@cache
def screened(
    kind: str, seed: int, scope: str, steps: int = 1, metric: str = "logit_diff"
) -> tuple[Planted, Screen]:
    """All heads verified."""
    planted = plant(kind, seed=seed)
    model = interp.load(planted.module, tokenizer=None)
    examples = planted_task(planted, 8, 0, 60).examples(None)
    return planted, interp.screen(
        model,
        examples,
        scope=scope,
        metric=metric,
        steps=steps,
        top=planted.n_layers * planted.n_heads,
        sample=0,
    )


def worst(frame: Any, column: str, k: int) -> set[Place]:
    """The k heads whose cut costs most."""
    best = frame.sort_values(column, kind="stable")[:k]
    return set(zip(best.layer, best.unit, strict=True))


@pytest.mark.parametrize(("kind", "seed"), CASES)
@pytest.mark.parametrize("metric", ["logit_diff", "logprob"])
@pytest.mark.parametrize("scope", ["all", "answer"])
def test_the_heads_that_write_the_answer_come_first(kind, seed, scope, metric):
    planted, found = screened(kind, seed, scope, metric=metric)
    k = len(planted.retrieval)
    assert worst(found.frame, "approx", k) == planted.retrieval
    if scope == "answer":  # one layer of heads acts there, and on a stream that is read almost linearly
        assert worst(found.frame, "exact", k) == planted.retrieval
        assert found.agreement.spearman > 0.9


@pytest.mark.parametrize(("kind", "seed"), CASES)
def test_one_gradient_misses_heads_behind_a_saturated_softmax(kind, seed):
    """Supporting heads decide where retrieval heads look; those are sure, so the gradient there vanishes (AtP*)."""
    planted, found = screened(kind, seed, "all")
    both = planted.retrieval | planted.support
    assert worst(found.frame, "exact", len(both)) == both
    assert not planted.support <= worst(found.frame, "approx", len(both))
    assert found.agreement.spearman < 0.9


@pytest.mark.parametrize(("kind", "seed"), CASES)
def test_steps_along_each_layer_find_them(kind, seed):
    planted, found = screened(kind, seed, "all", steps=8)
    both = planted.retrieval | planted.support
    assert worst(found.frame, "approx", len(both)) == both
