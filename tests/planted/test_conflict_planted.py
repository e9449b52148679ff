"""Planted conflicts: the heads of either side are found among decoys, and cutting them turns the answer."""

from __future__ import annotations

import numpy as np
import pytest

from interp.intervene.ablate import ablate
from interp.intervene.attention import set_attention
from interp.locate.facts import context_heads
from interp.locate.facts.context_heads import ContextHeads
from interp.measure.conflict import CONTEXT, MEMORY, Taken, taken
from interp.models.sites import Head
from tests.planted.conflicts import conflicts, with_decoys
from tests.planted.facts import Planted, planted

FAMILY = [(0, "gpt2"), (1, "llama"), (2, "gpt2"), (3, "llama")]


def truth(model: Planted) -> tuple[Head, set[Head]]:
    """The head of the context, and those of the memory."""
    return Head(*model.copying), {Head(*h) for h in model.extraction}


@pytest.mark.parametrize(("seed", "kind"), FAMILY)
def test_heads_are_found_among_decoys(seed: int, kind: str) -> None:
    model = planted(seed, kind)
    subject, decoys = with_decoys(model)
    copying, extraction = truth(model)
    examples = conflicts(model, np.random.default_rng(0), 20)
    found = ContextHeads(level=0.1).fit(subject, examples)
    assert found.top(1) == found.top(1, "read") == (copying,)
    assert set(found.top(2, "memory")) == set(found.top(2, "recall")) == extraction
    assert found.carriers("context")[0] == copying
    own = found.heads_.set_index("component")
    for decoy in decoys:
        # It looks where the copying head looks and writes as much, and the balance hardly notices.
        assert abs(own.loc[repr(decoy), "cut"]) < 0.1 * own.loc[repr(copying), "cut"]
    # Of two heads of the memory each has the facts of its own relation.
    r = np.array([e.ids[-1] for e in examples])
    for head in extraction:
        lost = found.per_example_["cut"][:, head.layer, head.head]
        mine = r == r[np.argmin(lost)]
        assert lost[mine].max() < -3 and abs(lost[~mine]).max() < 1.5


@pytest.mark.parametrize(("seed", "kind"), FAMILY[:2])
def test_cuts_turn_the_answer_and_those_of_decoys_do_not(seed: int, kind: str) -> None:
    model = planted(seed, kind)
    subject, decoys = with_decoys(model)
    copying, extraction = truth(model)
    examples = conflicts(model, np.random.default_rng(1), 10)
    plan = {
        "": None,
        "context": ablate([copying], scope="answer"),
        "blind": ablate([copying], "knockout", "answer", keys="counter_value"),
        "less": set_attention(copying, "counter_value", how="scale", factor=1e-30),
        "memory": ablate(sorted(extraction), scope="answer"),
        "decoys": ablate(decoys, scope="answer"),
    }
    found = taken(subject, examples, plan)
    margin = dict(zip(plan, found.margin.T, strict=True))
    for name in ("context", "blind", "less"):
        assert (margin[name] - margin[""]).min() > 3 and (margin[name] > 2.5).all()
    assert (margin["memory"] - margin[""]).max() < -3 and (margin["memory"] < -2.5).all()
    assert abs(margin["decoys"] - margin[""]).mean() < 0.8
    share = {s: found.share(s).mean(axis=0) for s in (MEMORY, CONTEXT)}
    assert share[MEMORY][1:4].tolist() == [1, 1, 1] and share[CONTEXT][4] == 1


def test_noise_in_the_weights_ends_it() -> None:
    hits = {}
    for blur in (0.1, 1.2):
        right = []
        for seed, kind in FAMILY[:2]:
            model = planted(seed, kind, blur)
            found = ContextHeads().fit(model.subject, conflicts(model, np.random.default_rng(0), 10))
            copying, extraction = truth(model)
            right.append(found.top(1) == (copying,) and set(found.top(2, "memory")) == extraction)
        hits[blur] = sum(right)
    assert hits == {0.1: 2, 1.2: 0}


def test_a_score_that_mistakes_the_sides_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    real = context_heads.taken

    def turned(*args: object, **kwargs: object) -> Taken:
        found = real(*args, **kwargs)  # type: ignore[arg-type]
        return Taken(found.examples, found.conditions, found.sides, found.context, found.memory)

    monkeypatch.setattr(context_heads, "taken", turned)
    model = planted(0, "gpt2")
    found = ContextHeads().fit(model.subject, conflicts(model, np.random.default_rng(0), 10))
    copying, _ = truth(model)
    assert found.top(1) != (copying,) and found.top(1, "memory") == (copying,)
