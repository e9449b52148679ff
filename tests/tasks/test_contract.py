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
from tests.tasks.strategies import GUESSED, NO_GUESS, PARAMS

FAMILIES = list(tests.tokenizers.KINDS)


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


@pytest.mark.parametrize("name", PARAMS)
@settings(max_examples=9)
@given(data=st.data(), family=st.sampled_from(FAMILIES))
def test_contract(name: str, data: st.DataObject, family: str) -> None:
    check(task(name, **data.draw(PARAMS[name])), tests.tokenizers.tokens(family))


def test_every_task_is_drawn_and_guessed() -> None:
    assert set(PARAMS) == set(NAMES) - {"niah_grid"}
    assert {name for name, _ in GUESSED} | set(NO_GUESS) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_contract_with_the_default_model(name: str, smollm2_tokens: Tokens) -> None:
    check(task(name, n=24), smollm2_tokens)


@pytest.mark.parametrize("name", PARAMS)
@settings(max_examples=1)
@given(data=st.data(), family=st.sampled_from(FAMILIES))
def test_more_examples_keep_the_first_ones(name: str, data: st.DataObject, family: str) -> None:
    params = data.draw(PARAMS[name])
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
for name in NAMES:
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
    assert outputs.pop().count("\n") == len(NAMES)


@pytest.mark.parametrize(("name", "params"), GUESSED)
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
