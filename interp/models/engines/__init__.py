"""Engines by name; each is imported when it is first asked for."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from interp.errors import UsageError

if TYPE_CHECKING:
    from interp.models.engines.base import Engine
    from interp.models.subject import CausalLM

ENGINES: dict[str, str] = {
    "hooks": "interp.models.engines.hooks:HooksEngine",
    "lens": "interp.models.engines.lens:LensEngine",
    "nnsight": "interp.models.engines.nnsight:NnsightEngine",
}
"""Where each engine lives: `module:class`."""


def make(name: str, subject: CausalLM) -> Engine:
    """An engine for a subject.

    Raises:
        UsageError: there is no engine of that name.
    """
    if name not in ENGINES:
        raise UsageError(f"no engine '{name}'; write one of {', '.join(ENGINES)}")
    module, _, cls = ENGINES[name].partition(":")
    engine: Engine = getattr(import_module(module), cls)(subject)
    return engine
