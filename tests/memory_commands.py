"""Commands of `interp memorization` as tests give them."""

from __future__ import annotations

import json
from typing import Any

from typer.testing import CliRunner

from interp.cli import app


def run(*arguments: object) -> Any:
    """What a command ends with."""
    return CliRunner().invoke(app, ["memorization", *(str(a) for a in arguments)], catch_exceptions=False)


def told(*arguments: object) -> Any:
    """What a command that goes well says in JSON."""
    done = run(*arguments)
    assert done.exit_code == 0, (done.output, done.exception)
    return json.loads(done.stdout)
