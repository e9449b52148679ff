"""Fixtures of the whole test suite."""

from __future__ import annotations

import os

# Before anything imports them: no test asks the Hub for anything, and two workers share two cores.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pytest
from hypothesis import settings
from jaxtyping import install_import_hook

import tests.shapes

# Before interp is imported: signatures with shapes are checked at every call.
install_import_hook(["interp", "probes"], f"{tests.shapes.__name__}.checked")

if TYPE_CHECKING:
    from interp.models.pipeline import Pipeline
    from interp.models.subject import CausalLM

IN_CI = bool(os.environ.get("CI"))

# Time limits for single examples fail on a busy machine; and what CI says of a commit should not change.
settings.register_profile("interp", deadline=None, derandomize=IN_CI, print_blob=True)
settings.load_profile("interp")


def missing(what: str) -> NoReturn:
    """Skip for lack of a resource; where CI runs it has to be there."""
    if IN_CI:
        pytest.fail(what)
    pytest.skip(what)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests by the resources they ask for, so that `-m "not model"` cannot miss one."""
    for item in items:
        fixtures = getattr(item, "fixturenames", ())
        if "smollm2_path" in fixtures:
            item.add_marker(pytest.mark.model)
        if "browser" in fixtures:
            item.add_marker(pytest.mark.browser)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("no CUDA device")


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """Folder of the default model, fetched into the cache first where it is not there."""
    from interp.errors import MissingResource
    from interp.models import registry

    try:
        return registry.fetch("smollm2")
    except MissingResource as why:
        missing(str(why))


@pytest.fixture(scope="session")
def smollm2(smollm2_path: Path) -> CausalLM:
    """The default model, in fp32 on the CPU. Shared by all tests of a worker: leave it as it was."""
    import interp

    return interp.load("smollm2")


@pytest.fixture(scope="session")
def digits_pipeline() -> Pipeline:
    """A tiny pipeline that has memorized pictures, by the recipe `preset("tiny")`; trained into the cache first.

    Shared by all tests of a worker: leave it as it was.
    """
    from interp.models.zoo.digits.subject import digits_pipeline

    return digits_pipeline("tiny")


@pytest.fixture(scope="session")
def browser() -> str:
    """Path of a Chromium, found as the figure export finds it."""
    for name in (os.environ.get("BROWSER_PATH"), "chromium", "chromium-browser", "google-chrome"):
        found = shutil.which(name) if name else None
        if found:
            return found
    missing("no Chromium: install it (Debian: apt-get install chromium) or set BROWSER_PATH")


@pytest.fixture(scope="session")
def tiny_model() -> Callable[..., Any]:
    """`tiny(family, seed=0)` with each model built once; edits have to be undone."""
    from functools import cache

    from tests.tiny import tiny

    return cache(tiny)


@pytest.fixture
def rng_untouched() -> Iterator[None]:
    """Fails the test when the global random state of torch, numpy or Python differs after it."""
    import random

    import numpy as np
    import torch

    def states() -> list[Any]:
        return [torch.get_rng_state().tolist(), str(np.random.get_state()), random.getstate()]

    before = states()
    yield
    assert states() == before, "the global random state was touched"
