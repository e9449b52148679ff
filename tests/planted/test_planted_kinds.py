"""Heads that literal scores miss or mistake: semantic heads, fixed places, silent heads; and MHA with rotary positions.

Held against plain transformers and hooks, as `test_planted_models.py` holds the rest.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from interp.errors import UsageError
from interp.tasks.base import check_example

from .naive import accuracy, copy_score, forward, judge, mean_score
from .retrieval import KINDS, NoRoom, Planted, plant, planted_task

SEEDS = range(2)
N = 4
LENGTH = 100


def greedy(planted: Planted, n: int = N, length: int = LENGTH) -> float:
    """Share of questions that the model answers."""
    return accuracy(planted, planted_task(planted, n, 0, length).examples(None))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", SEEDS)
def test_a_semantic_head_recalls_without_attending_to_what_it_emits(kind: str, seed: int) -> None:
    planted = plant(kind, seed=seed, n_planted=0, n_silent=2, n_semantic=2)
    examples = planted_task(planted, N, 0, LENGTH).examples(None)
    for example in examples:
        attention, said = forward(planted, example)
        assert said == example.answer_ids
        (value,) = example.spans_of("value", 0)
        (evidence,) = example.spans_of("evidence", 0)
        summary = [i + planted.lag for i in range(value.start, value.end)]
        assert value.end <= summary[0], "no summary place lies in the value"
        assert summary[-1] == evidence.end - 1
        for layer, head in planted.semantic:
            rows = attention[layer, head, list(example.answer_rows)]
            assert rows.argmax(-1).tolist() == summary
            assert rows.amax(-1).min() > 0.9
            assert not {example.ids[i] for i in summary} & set(example.answer_ids)
    scores = mean_score(examples, [forward(planted, e)[0] for e in examples], copy_score)
    assert {scores[at] for at in planted.semantic} == {0.0}
    assert {scores[at] for at in planted.silent} == {1.0}, "the literal score takes heads that do nothing"
    for cut, left in (
        (planted.semantic, 0.0),
        (planted.carriers, 0.0),
        (planted.silent, 1.0),
        (planted.support, 1.0),
        (frozenset(planted.decoys.values()), 1.0),
    ):
        assert accuracy(planted, examples, cut) == left
    # What is carried is written into the context: a cut at the answer's rows is too late for it.
    assert accuracy(planted, examples, planted.semantic, answer_only=True) == 0.0
    assert accuracy(planted, examples, planted.carriers, answer_only=True) == 1.0


@pytest.mark.parametrize("kind", KINDS)
def test_literal_and_semantic_heads_stand_in_for_one_another(kind: str) -> None:
    planted = plant(kind, seed=2, n_planted=2, n_semantic=2)
    examples = planted_task(planted, N, 0, LENGTH).examples(None)
    assert accuracy(planted, examples) == 1.0
    assert accuracy(planted, examples, planted.semantic) >= 0.5
    assert accuracy(planted, examples, planted.retrieval) >= 0.5
    assert accuracy(planted, examples, planted.semantic | planted.retrieval) == 0.0


@pytest.mark.parametrize("seed", SEEDS)
def test_a_fixed_place_is_looked_at_whatever_stands_there(seed: int) -> None:
    planted = plant("gpt2", seed=seed, n_place=2)
    assert set(planted.places) == {"place", "place.1"}
    for example in planted_task(planted, N, 0, 60).examples(None):
        attention, said = forward(planted, example)
        assert said == example.answer_ids
        for name, at in planted.places.items():
            layer, head = planted.decoys[name]
            rows = attention[layer, head, at:]
            assert (rows.argmax(-1) == at).all()
            assert rows.amax(-1).min() > 0.9
    # Where all needles stand there it looks at the needle, and copies one token of it.
    at = planted.places["place"]
    task = planted_task(planted, N, 0, 60, distance=60 - 1 - at)
    examples = task.examples(None)
    assert {e.spans_of("value", 0)[0].start for e in examples} == {at}
    scores = mean_score(examples, [forward(planted, e)[0] for e in examples], copy_score)
    assert scores[planted.decoys["place"]] == pytest.approx(
        np.mean([1 / len(e.answer_ids) for e in examples])
    )
    assert accuracy(planted, examples, [planted.decoys["place"]]) == 1.0


@pytest.mark.parametrize("seed", SEEDS)
def test_rotary_heads_with_keys_of_their_own(seed: int) -> None:
    planted = plant("llama-mha", seed=seed)
    assert planted.n_kv_heads == planted.n_heads
    examples = planted_task(planted, N, 0, 60).examples(None)
    passes = [forward(planted, e) for e in examples]
    assert [said for _, said in passes] == [e.answer_ids for e in examples]
    assert judge(mean_score(examples, [a for a, _ in passes]), planted).sound
    assert accuracy(planted, examples, planted.retrieval) == 0.0
    assert accuracy(planted, examples, list(planted.decoys.values())) == 1.0


@pytest.mark.parametrize(("kind", "n_semantic"), [("llama-mha", 0), *((kind, 2) for kind in KINDS)])
def test_recall_falls_with_noise(kind: str, n_semantic: int) -> None:
    """Literal circuits have a test of their own in `test_planted_models.py`."""
    n_planted = 0 if n_semantic else None
    curve = []
    for noise in (0.0, 0.2, 0.6):
        models = [
            plant(kind, seed=s, noise=noise, n_planted=n_planted, n_semantic=n_semantic) for s in (0, 1)
        ]
        curve.append(np.mean([greedy(planted) for planted in models]))
    print(f"\n{kind}, {n_semantic} semantic heads: {np.round(curve, 2)}")
    assert curve[0] == 1.0
    assert all(a >= b for a, b in pairwise(curve))
    assert curve[-1] == 0.0


@pytest.mark.parametrize("kind", KINDS)
def test_twins_and_the_question(kind: str) -> None:
    planted = plant(kind, seed=0)
    for example in planted_task(planted, N, 0, 60, question=6).examples(None):
        check_example(example, copies=True)
        (question,) = example.spans_of("question")
        (evidence,) = example.spans_of("evidence", 0)
        assert (question.start, question.end) == (60 - 7, 60)
        assert all(
            span.end <= question.start for span in example.spans if span.item == 0 and span.role == "value"
        )
        assert len(set(example.ids)) == len(example.ids) - 1, "only the key stands twice"
        dropped = example.corrupt["needle_drop"]
        assert (dropped.answer_ids, dropped.candidates) == (example.answer_ids, example.candidates)
        assert not set(dropped.ids) & set(example.answer_ids)
        assert len(set(dropped.ids)) == len(dropped.ids), "the key stands nowhere but in the question"
        changed = [i for i, (a, b) in enumerate(zip(example.ids, dropped.ids, strict=True)) if a != b]
        assert changed == list(range(evidence.start, evidence.end))
        assert forward(planted, example)[1] == example.answer_ids
        assert accuracy(planted, [replace(dropped, spans=())]) == 0.0


def test_what_is_not_asked_for_draws_nothing() -> None:
    """A seed of the first families is the model that it was before there were others, number for number."""
    planted = plant("llama", seed=3)
    assert (planted.lag, planted.places, planted.semantic, planted.carriers) == (
        0,
        {},
        frozenset(),
        frozenset(),
    )
    assert sorted(planted.retrieval) == [(2, 5), (3, 3), (3, 4)]
    total = sum(float(p.detach().abs().sum(dtype=torch.float64)) for p in planted.module.parameters())
    assert total == pytest.approx(161903.37, rel=1e-5)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="it cannot look at a fixed place"):
        plant("llama", seed=0, n_place=1)
    with pytest.raises(NoRoom, match="n_semantic=200"):
        plant("llama", seed=0, n_semantic=200)
    planted = plant("llama", seed=0, n_semantic=1)
    with pytest.raises(UsageError, match="do not fit into 60 tokens"):
        planted_task(planted, 1, 0, 60)
    with pytest.raises(UsageError, match="places before the end of 100 tokens"):
        planted_task(planted, 1, 0, 100, distance=3)
