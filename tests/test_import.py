"""Importing costs next to nothing, and the public names are where they are said to be."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest

import interp

HEAVY = ("torch", "transformers", "transformer_lens", "nnsight", "pandas", "plotly", "sklearn", "scipy")


def imported_by(code: str) -> set[str]:
    """Top-level modules that a new process has imported after `code`."""
    code += "\nimport json, sys; print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    "code",
    [
        "import interp; dir(interp)",
        "import interp.cli",
        "import interp.errors",
        "import interp.models.registry",
    ],
)
def test_light(code: str) -> None:
    assert not imported_by(code).intersection(HEAVY)


def test_help_is_light() -> None:
    code = (
        "import sys\n"
        "from interp.cli import app\n"
        "for arguments in ([], ['models'], ['tasks'], ['models', 'fetch']):\n"
        "    try:\n"
        "        app([*arguments, '--help'])\n"
        "    except SystemExit as left:\n"
        "        assert not left.code\n"
    )
    assert not imported_by(code).intersection(HEAVY)


def test_import_takes_under_a_second() -> None:
    def seconds(code: str) -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        return time.perf_counter() - start

    # The quickest of three: the machine may be busy with other tests.
    assert min(seconds("import interp") for _ in range(3)) < 1


def test_import_touches_nothing() -> None:
    code = (
        "import logging, warnings, os, random\n"
        "before = (logging.root.level, list(logging.root.handlers), list(warnings.filters), dict(os.environ),\n"
        "          random.getstate())\n"
        "import interp\n"
        "assert before == (logging.root.level, list(logging.root.handlers), list(warnings.filters),\n"
        "                  dict(os.environ), random.getstate())\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", interp.__all__)
def test_public_name(name: str) -> None:
    value = getattr(interp, name)
    assert value is getattr(interp, name), "the same object each time"
    assert name in dir(interp)
    # Classes and functions carry the name that they are exported under.
    if isinstance(value, type):
        assert value.__name__ == name
    assert value.__doc__


def test_unknown_name() -> None:
    with pytest.raises(AttributeError, match=r"module 'interp' has no attribute 'lode'"):
        _ = interp.lode  # type: ignore[attr-defined]


def test_libraries_import_without_warnings() -> None:
    """The tests turn warnings into errors; these imports must not be what trips them."""
    code = "import transformers, transformer_lens, nnsight, plotly.io, sklearn.linear_model, pandas, pyarrow"
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, capture_output=True)
