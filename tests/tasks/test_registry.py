"""Tasks by name: what is known without importing them, errors that name the mend, and tasks of the user's own."""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import tests.tokenizers
from interp.errors import BrokenData, UsageError
from interp.models.tokens import Tokens
from interp.tasks import NAMES, TaskInfo, register, task
from interp.tasks.base import Example, Piece, Task, assemble

TOKENS = tests.tokenizers.tokens("gpt2")


@pytest.fixture(autouse=True)
def names_as_they_were() -> Iterator[None]:
    before = dict(NAMES)
    yield
    NAMES.clear()
    NAMES.update(before)


@pytest.mark.parametrize("info", NAMES.values(), ids=list(NAMES))
def test_what_is_known_is_true(info: TaskInfo) -> None:
    made = info.load()
    assert isinstance(made, type) and issubclass(made, Task)
    assert made.name == info.name and made.source == info.source
    found = {n: p.default for n, p in inspect.signature(made).parameters.items()}
    assert found == dict(info.params)
    assert info.summary and "\n" not in info.summary
    built = task(info.name)
    assert {**built.config(), **{"task": info.name}} == built.config()
    assert set(info.params) <= set(built.config())


def test_the_registry_does_not_import_torch() -> None:
    watched = "('torch', 'transformers', 'interp.tasks.niah')"
    code = f"import sys, interp.tasks; print([m for m in {watched} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("nih", {}, r"no task 'nih' \(did you mean 'niah'\?\); there are induction, mqar, joint_recall"),
        ("zzz", {}, r"no task 'zzz'; there are"),
        ("niah", {"lenght": 3}, r"task niah has no parameter 'lenght' \(did you mean 'length'\?\); it has length"),
        ("facts", {"depth": 3}, "task facts has no parameter 'depth'.*; it has relations"),
    ],
)  # fmt: skip
def test_unknown_names(name: str, params: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        task(name, **params)


def pets(tokens: Tokens, rng: np.random.Generator, animal: str = "cat", many: int = 5) -> Iterator[Example]:
    """Who has which animal.

    More is not said.
    """
    for _ in range(many):
        owner = ["Ann", "Bob", "Eve"][rng.integers(3)]
        pieces = [
            Piece(owner, "key", 0),
            Piece(" has a"),
            Piece(f" {animal}", "value", 0),
            Piece(f". {owner} has a"),
        ]
        prompt, answer, spans, text = assemble(tokens, pieces, f" {animal}")
        yield Example("pets", prompt.ids, answer, text, prompt.offsets, spans, chance=0.5)


def test_a_function_becomes_a_task(rng_untouched: None) -> None:
    info = register("pets", pets)
    assert info.summary == "Who has which animal."
    assert info.params == {"n": 64, "seed": 0, "animal": "cat", "many": 5}
    made = task("pets", animal="dog", many=40, n=30, seed=3)
    first = made.examples(TOKENS)
    assert len(made) == len(first) == 30 and made.copies
    assert made.examples(TOKENS) is first
    assert made.config() == {"task": "pets", "n": 30, "seed": 3, "animal": "dog", "many": 40}
    again = task("pets", animal="dog", many=40, n=20, seed=3).examples(TOKENS)
    assert [e.key() for e in again] == [e.key() for e in first[:20]]
    other = task("pets", animal="dog", many=40, n=30, seed=4).examples(TOKENS)
    assert [e.key() for e in other] != [e.key() for e in first]
    short = task("pets")
    assert len(short.examples(TOKENS)) == len(short) == 5
    with pytest.raises(UsageError, match=r"task pets has no parameter 'mny' \(did you mean 'many'\?\)"):
        task("pets", mny=3)


def test_a_class_becomes_a_task() -> None:
    class Pets(Task):
        name = "my_pets"
        source = "mine"

        def __init__(self, size: int = 2, n: int = 3, seed: int = 0):
            super().__init__(n=n, seed=seed, size=size)

        def make(self, index: int, rng: np.random.Generator, tokens: Tokens) -> Example:
            return next(pets(tokens, rng))

    register("my_pets", Pets, "pets of a class")
    made = task("my_pets", size=4)
    assert isinstance(made, Pets) and len(made.examples(TOKENS)) == 3
    assert NAMES["my_pets"].params == {"size": 2, "n": 3, "seed": 0}


def test_names_are_taken_once() -> None:
    with pytest.raises(UsageError, match="there is a task 'niah' already"):
        register("niah", pets)
    register("niah", pets, replace=True)
    assert task("niah", n=2).examples(TOKENS)[0].task == "pets"
    with pytest.raises(UsageError, match=r"names that end in \.jsonl are files"):
        register("pets.jsonl", pets)
    with pytest.raises(UsageError, match=r"'no\.such\.module:thing' cannot be imported"):
        register("nothing", "no.such.module:thing")
    with pytest.raises(UsageError, match="is neither a class nor a function"):
        register("nothing", "interp.tasks.registry:NAMES")


def test_a_function_is_held_against_the_contract() -> None:
    def broken(tokens: Tokens, rng: np.random.Generator) -> Iterator[Example]:
        yield Example("broken", (1, 2), (3,), chance=2.0)

    def empty(tokens: Tokens, rng: np.random.Generator) -> Iterator[Example]:
        yield from ()

    register("broken", broken)
    register("empty", empty)
    with pytest.raises(BrokenData, match=r"broken: chance is 2\.0"):
        task("broken").examples(TOKENS)
    with pytest.raises(BrokenData, match="task empty: its function yields no example"):
        task("empty").examples(TOKENS)
