"""A planted model in a folder, as a sweep loads it, and a small spec for it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from interp.sweep.run import Sweep
from interp.tasks.symbols import symbols
from tests.zoo.planted import Planted, planted


@pytest.fixture(scope="module", autouse=True)
def _threads() -> Iterator[None]:
    """A bench sets the threads of torch; the next module finds them as they were."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def circuit(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Planted]:
    """Folder of a circuit with one retrieval head, and the circuit."""
    made = planted(3, retrieval=1)
    folder = tmp_path_factory.mktemp("planted") / "model"
    made.module.save_pretrained(folder)
    symbols(128).hf.save_pretrained(folder)
    return folder, made


@pytest.fixture(scope="session")
def fields(circuit: tuple[Path, Planted]) -> dict[str, Any]:
    """A sweep of four units: two tasks, heads that are found and heads drawn at random."""
    return {
        "name": "planted",
        "models": [str(circuit[0])],
        "tasks": [{"task": "mqar", "set": {"n": 16}, "product": {"pairs": [4, 8]}}],
        "locators": [
            {"locator": "retrieval_heads", "fit_on": {"task": "mqar", "set": {"n": 8}}},
            "random_heads",
        ],
        "cuts": [{"cut": "heads", "set": {"doses": [1], "controls": 2}}],
    }


def results(made: Sweep) -> pd.DataFrame:
    """The merged table without the commit, which changes while people work on the source."""
    return made.to_frame().drop(columns="commit")
