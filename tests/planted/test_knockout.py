"""Knockout and sufficient sets on planted models: hiding the needle from the retrieval heads is what ends recall."""

from __future__ import annotations

import pytest

import interp
from interp.intervene.ablate import ablate
from interp.measure import smallest, sufficient
from interp.models.sites import Head
from interp.models.subject import CausalLM

from .retrieval import plant, planted_task

CASES = [("gpt2", 1), ("llama", 0), ("llama", 2)]


@pytest.fixture(scope="module", params=CASES, ids=lambda p: f"{p[0]}-{p[1]}")
def case(request):
    kind, seed = request.param
    planted = plant(kind, seed=seed, n_silent=1)
    return CausalLM(planted.module, None, name=kind), planted_task(planted, 5, 0, 60), planted


def heads(places) -> list[Head]:
    return [Head(*at) for at in sorted(places)]


def accuracy(model, task, cut) -> float:
    frame = interp.measure(model, task, cut, controls=0, metrics=("accuracy",), off_target=())
    assert frame[frame.condition == "clean"]["value"].item() == 1.0
    return frame[frame.condition == "cut"]["value"].item()


def chance(task, model) -> float:
    return max(e.chance for e in task.examples(model))


def test_hiding_the_needle_from_the_retrieval_heads_ends_recall(case):
    model, task, planted = case
    top = heads(planted.retrieval)
    assert accuracy(model, task, ablate(top, "knockout", "answer", keys="value")) <= chance(task, model)
    # Other keys of the same heads: the first tokens of the context, and the questions's own.
    spans = [s for e in task.examples(model) for s in e.spans_of("value", 0)]
    others = [i for i in range(12) if not any(s.start <= i < s.end for s in spans)]
    assert len(others) >= 4
    assert accuracy(model, task, ablate(top, "knockout", "answer", keys=others)) == 1.0


def test_hiding_the_needle_from_all_other_heads_leaves_recall(case):
    model, task, planted = case
    others = [h for h in model.heads() if h not in heads(planted.retrieval)]
    assert accuracy(model, task, ablate(others, "knockout", "answer", keys="value")) == 1.0


def test_the_smallest_sufficient_set_is_the_planted_heads(case):
    """All of them keep the loss: fewer lose some of it, and a silent head, which attends as they do, adds nothing."""
    model, task, planted = case
    top, silent = heads(planted.retrieval), heads(planted.silent)
    rest = [h for h in model.heads() if h not in top + silent]
    cut = ablate([], "knockout", "answer", keys="value")
    plan = sufficient(model, [*top, *silent, *rest], range(len(top) + 2), cut, controls=2)
    frame = interp.measure(model, task, plan, metrics=("accuracy", "nll"), off_target=())
    (row,) = smallest(frame, share=0.5, metric="nll").to_dict("records")
    assert row["kept"].split() == list(map(repr, top)) and row["k"] == len(top) and row["stays"]
    assert row["control_best"] > 1 and row["n_controls"] >= 1
    keep = frame[(frame.condition == "keep") & (frame.metric == "accuracy")].set_index("k")["value"]
    assert keep[0] <= chance(task, model) and keep[len(top)] == 1.0
    plan = sufficient(model, silent + top, (1, len(silent + top)), cut, controls=0)
    frame = interp.measure(model, task, plan, metrics=("accuracy",), off_target=())
    keep = frame[frame.condition == "keep"].set_index("k")["value"]
    assert keep[1] <= chance(task, model) and keep[len(silent + top)] == 1.0
