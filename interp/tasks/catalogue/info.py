"""What is known about a task without importing it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from interp.errors import UsageError

LENGTHS = (256, 512, 1024)
"""Tokens of a prompt, of tasks that are measured by length."""


@dataclass(frozen=True)
class TaskInfo:
    """What is known about a task without importing it.

    Attributes:
        target: `module:attribute`, or the class or function itself.
        params: parameters with their defaults.
        ladder: sizes that it is measured at, by parameter: one parameter at a time, the others as they are by default.
            Empty: it has one size.
        natural: whether it is asked in a natural language; else in bare symbols.
        family: the heading that it stands under.
    """

    name: str
    target: str | Callable[..., Any]
    summary: str
    source: str
    params: Mapping[str, Any] = field(default_factory=dict)
    ladder: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    natural: bool = True
    family: str = "yours"

    def load(self) -> Callable[..., Any]:
        """The class or function."""
        if not isinstance(self.target, str):
            return self.target
        module, _, attribute = self.target.partition(":")
        try:
            return getattr(import_module(module), attribute)
        except (ImportError, AttributeError) as why:
            raise UsageError(f"task {self.name}: '{self.target}' cannot be imported: {why}") from None
