"""The Example contract, over all tasks, parameters and kinds of tokenizer."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tests.tokenizers
from interp.models.tokens import Tokens
from interp.tasks import NAMES, task
from interp.tasks.base import Example, Task, check_example, is_copy

FAMILIES = list(tests.tokenizers.KINDS)

seeds = st.integers(0, 2**31)
needles = st.fixed_dictionaries(
    {
        # Three needles, each in sixty small tokens, and their question have to fit.
        "length": st.integers(300, 450),
        "depth": st.one_of(
            st.just("uniform"), st.floats(0, 1), st.lists(st.floats(0, 1), min_size=1, max_size=3)
        ),
        "kinds": st.lists(
            st.sampled_from(["names", "words", "numbers", "phrases"]), min_size=1, max_size=4, unique=True
        ),
        "needles": st.integers(1, 3),
        "haystack": st.sampled_from(["all", "train", "test", "soup"]),
        "n": st.just(3),
        "seed": seeds,
    }
)
induction = st.fixed_dictionaries(
    {
        "length": st.integers(8, 60),
        "n_answer": st.integers(1, 4),
        "lead": st.integers(0, 20),
        "n": st.just(4),
        "seed": seeds,
    }
)
facts = st.fixed_dictionaries({"shots": st.integers(0, 4), "n": st.just(12), "seed": seeds})
prose = st.fixed_dictionaries(
    {"prompt": st.integers(1, 100), "answer": st.integers(1, 50), "n": st.just(4), "seed": seeds}
)
several = {
    # Four statements in fifty small tokens each, and their question have to fit.
    "length": st.integers(400, 500),
    "haystack": st.sampled_from(["all", "train", "test", "soup"]),
    "n": st.just(3),
    "seed": seeds,
}
depths = st.one_of(st.just("uniform"), st.floats(0, 1))
multi_key = st.fixed_dictionaries({**several, "needles": st.integers(2, 3), "depth": depths})
# Room for six statements and a solved question with as many.
several = {**several, "length": st.integers(700, 800), "shots": st.integers(0, 1)}
multi_value = st.fixed_dictionaries({**several, "values": st.integers(2, 4), "others": st.integers(0, 2)})
multi_hop = st.fixed_dictionaries(
    {
        **several,
        "hops": st.integers(0, 2),
        "chains": st.integers(2, 3),
        "style": st.sampled_from(["variables", "story"]),
        "ask": st.sampled_from(["value", "chain"]),
    }
)
paraphrase = st.fixed_dictionaries({**several, "names": st.integers(2, 4), "depth": depths})
reading = st.fixed_dictionaries({"shots": st.integers(0, 3), "n": st.just(4), "seed": seeds})
arithmetic = st.fixed_dictionaries(
    {
        "terms": st.integers(2, 4),
        "largest": st.sampled_from([9, 20, 99]),
        "style": st.sampled_from(["direct", "cot"]),
        "form": st.sampled_from(["digits", "words"]),
        "shots": st.integers(0, 3),
        "n": st.just(4),
        "seed": seeds,
    }
)
ioi = st.fixed_dictionaries(
    {
        "families": st.sampled_from([None, "telling", ["giving", "trading"]]),
        "order": st.sampled_from(["both", "ABBA", "BABA"]),
        "n": st.just(4),
        "seed": seeds,
    }
)
laundry = st.fixed_dictionaries(
    {
        "items": st.one_of(st.integers(2, 20), st.lists(st.integers(2, 8), min_size=1, max_size=4)),
        "families": st.sampled_from(["A", "B", ["A", "B"]]),
        "n": st.just(4),
        "seed": seeds,
    }
)
colored_objects = st.fixed_dictionaries(
    {"shots": st.integers(0, 6), "objects": st.integers(2, 4), "n": st.just(4), "seed": seeds}
)
conflict = st.fixed_dictionaries(
    {
        "counter": st.integers(1, 2),
        "memory": st.integers(0, 2),
        "irrelevant": st.integers(0, 2),
        "order": st.sampled_from(["both", "memory_first", "counter_first"]),
        "n": st.just(3),
        "seed": seeds,
    }
)
priors = {"prior": st.sampled_from(["both", "high", "low"]), "n": st.just(4), "seed": seeds}
acronym = st.fixed_dictionaries({**priors, "shots": st.integers(0, 3)})
shift_cipher = st.fixed_dictionaries({**priors, "shots": st.integers(0, 3), "shift": st.integers(1, 25)})
counting = st.fixed_dictionaries({**priors, "shots": st.integers(0, 2), "largest": st.just(100)})
asked = st.one_of(
    st.tuples(st.just("niah"), needles),
    st.tuples(st.just("induction"), induction),
    st.tuples(st.just("facts"), facts),
    st.tuples(st.just("prose"), prose),
    st.tuples(st.just("multi_key"), multi_key),
    st.tuples(st.just("multi_value"), multi_value),
    st.tuples(st.just("multi_hop"), multi_hop),
    st.tuples(st.just("paraphrase"), paraphrase),
    st.tuples(st.just("reading"), reading),
    st.tuples(st.just("arithmetic"), arithmetic),
    st.tuples(st.just("ioi"), ioi),
    st.tuples(st.just("laundry"), laundry),
    st.tuples(st.just("colored_objects"), colored_objects),
    st.tuples(st.just("conflict"), conflict),
    st.tuples(st.just("acronym"), acronym),
    st.tuples(st.just("shift_cipher"), shift_cipher),
    st.tuples(st.just("counting"), counting),
)


def check(made: Task, tokens: Tokens) -> list[Example]:
    examples = made.examples(tokens)
    assert len(examples) == len(made)
    for example in examples:
        check_example(example, tokens, copies=made.copies)
        assert example.task == made.name
        assert example.cluster and example.group
        assert is_copy(example) == made.copies
        assert not tokens.special_ids & set(example.answer_ids)
        if example.candidates:
            assert example.candidates[0] == example.answer_ids
            assert example.foil_ids in example.candidates
        if example.text is not None:
            whole = tokens.encode(example.text)
            assert example.offsets == whole.offsets
        for kind, twin in example.corrupt.items():
            assert (twin.answer_ids != example.answer_ids) == (kind != "needle_drop")
            assert twin.candidates[0] == twin.answer_ids
    return examples


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=12)
@given(asked=asked)
def test_contract(family: str, asked: tuple[str, dict[str, Any]]) -> None:
    name, params = asked
    check(task(name, **params), tests.tokenizers.tokens(family))


@pytest.mark.parametrize("name", NAMES)
def test_contract_with_the_default_model(name: str, smollm2_tokens: Tokens) -> None:
    check(task(name, n=24), smollm2_tokens)


@settings(max_examples=10)
@given(asked=asked, family=st.sampled_from(FAMILIES))
def test_more_examples_keep_the_first_ones(asked: tuple[str, dict[str, Any]], family: str) -> None:
    name, params = asked
    tokens = tests.tokenizers.tokens(family)
    few = task(name, **params).examples(tokens)
    more = task(name, **{**params, "n": params["n"] + 3}).examples(tokens)
    assert [vars_of(e) for e in few] == [vars_of(e) for e in more[: len(few)]]
    other = task(name, **{**params, "seed": params["seed"] + 1}).examples(tokens)
    assert [e.key() for e in few] != [e.key() for e in other]


def vars_of(example: Example) -> dict[str, Any]:
    return {**vars(example), "corrupt": {k: vars_of(t) for k, t in example.corrupt.items()}}


@pytest.mark.parametrize("name", NAMES)
def test_global_random_state_is_left_alone(name: str, rng_untouched: None) -> None:
    task(name, n=4).examples(tests.tokenizers.tokens("gpt2"))


PRINT_KEYS = """
import hashlib, sys
import tests.tokenizers
from interp.tasks import NAMES, task
tokens = tests.tokenizers.tokens("llama")
names = "facts induction niah prose multi_key multi_value multi_hop paraphrase reading ioi laundry colored_objects"
names += " conflict acronym shift_cipher counting"
for name in names.split():
    examples = task(name, n=6, seed=3).examples(tokens)
    twins = [t for e in examples for t in e.corrupt.values()]
    state = [(e.key(), e.text, e.chance, e.cluster, e.group, sorted(e.meta.items(), key=str)) for e in examples + twins]
    print(name, hashlib.sha256(repr(state).encode()).hexdigest())
"""


def test_same_bytes_in_every_process() -> None:
    outputs = {
        subprocess.run(
            [sys.executable, "-c", PRINT_KEYS],
            env={"PYTHONHASHSEED": seed, "PATH": "", "HF_HUB_OFFLINE": "1", "PYTHONPATH": "."},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("0", "1", "4711")
    }
    assert len(outputs) == 1
    assert outputs.pop().count("\n") == 16


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("niah", {"length": 200, "n": 40, "needles": 2}),
        ("facts", {"n": 600}),
        ("facts", {"n": 73, "relations": "atomic_number", "templates": 0}),
        ("induction", {"n": 100, "length": 12}),
        ("multi_key", {"n": 30}),
        ("multi_value", {"n": 30}),
        ("multi_hop", {"n": 30, "chains": 4}),
        ("paraphrase", {"n": 30}),
        ("reading", {"n": 60}),
        ("arithmetic", {"n": 60}),
        ("laundry", {"n": 60, "items": [4, 5, 6]}),
        ("colored_objects", {"n": 60, "objects": 4}),
        ("acronym", {"n": 60}),
        ("shift_cipher", {"n": 60}),
        ("counting", {"n": 60}),
    ],
)
def test_a_uniform_guesser_scores_chance(name: str, params: dict[str, Any]) -> None:
    """Guessing among the candidates, scored as answers are scored, comes out at the examples' chance."""
    rng = np.random.default_rng(0)
    examples = task(name, **params).examples(tests.tokenizers.tokens("smollm"))
    draws = 200
    hits = []
    for example in examples:
        upto = example.meta.get("score_at", len(example.answer_ids) - 1) + 1
        right = [c[:upto] == example.answer_ids[:upto] for c in example.candidates]
        hits.append(np.mean([right[i] for i in rng.integers(len(right), size=draws)]))
    chance = np.mean([e.chance for e in examples])
    spread = np.sqrt(chance * (1 - chance) / (draws * len(examples)))
    assert abs(np.mean(hits) - chance) < 4 * spread
    assert chance < 0.3
