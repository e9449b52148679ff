"""Where units run: here, on Ray, or as Slurm jobs; all by one protocol, imported when they are asked for."""

from __future__ import annotations

from importlib import import_module

from interp.errors import MissingResource, UsageError
from interp.sweep.executors.base import Executor

EXECUTORS = {
    "serial": ("interp.sweep.executors.serial", "Serial", ""),
    "ray": ("interp.sweep.executors.ray", "OnRay", "ray"),
    "slurm": ("interp.sweep.executors.slurm", "OnSlurm", "slurm"),
}
"""Module, class and extra of each."""


def executor(name: str, **options: object) -> Executor:
    """An executor by name.

    Raises:
        UsageError: there is no such executor, or it has no such option.
        MissingResource: its package is not installed.
    """
    if name not in EXECUTORS:
        raise UsageError(f"no executor '{name}'; there are {', '.join(EXECUTORS)}")
    module, attribute, extra = EXECUTORS[name]
    try:
        made: Executor = getattr(import_module(module), attribute)(**options)
    except ImportError as error:
        raise MissingResource(
            f"executor {name} needs a package that is not installed ({error.name}): "
            f"pip install 'interp-memory[{extra}]'"
        ) from error
    except TypeError as error:
        raise UsageError(f"executor {name}: {error}") from error
    return made
