"""Wrappers: a task whose prompts are those of another task, changed, with everything known about them kept.

    >>> import interp
    >>> from interp.tasks.wrap import distracted, read_twice
    >>> task = read_twice(distracted(interp.task("niah", length=128, n=2), tokens=32))
    >>> task.name
    'read_twice(distracted(niah))'

To hide what stands in a prompt is no wrapper but an intervention: `interp.hide`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from difflib import get_close_matches
from typing import Any

from interp.errors import UsageError
from interp.tasks.base import Task
from interp.tasks.wrap.base import Wrapped, copy_stride
from interp.tasks.wrap.chat import chat
from interp.tasks.wrap.distract import distracted
from interp.tasks.wrap.pause import pause
from interp.tasks.wrap.repeat import read_twice, repeated
from interp.tasks.wrap.reword import reworded

WRAPPERS: dict[str, Callable[..., Task]] = {
    "read_twice": read_twice,
    "repeated": repeated,
    "distracted": distracted,
    "reworded": reworded,
    "pause": pause,
    "chat": chat,
}
"""Every wrapper by name."""


def wrap(task: Task, name: str, **params: Any) -> Task:
    """A task in the wrapper of that name.

    Raises:
        UsageError: there is no such wrapper, or it has no such parameter.
    """
    if name not in WRAPPERS:
        near = get_close_matches(name, WRAPPERS, 1)
        hint = f" (did you mean '{near[0]}'?)" if near else ""
        raise UsageError(f"no wrapper '{name}'{hint}; there are {', '.join(WRAPPERS)}")
    known = list(inspect.signature(WRAPPERS[name]).parameters)[1:]
    for param in params:
        if param not in known:
            raise UsageError(f"wrapper {name} has no parameter '{param}'; it has {', '.join(known)}")
    return WRAPPERS[name](task, **params)


__all__ = [
    "WRAPPERS",
    "Wrapped",
    "chat",
    "copy_stride",
    "distracted",
    "pause",
    "read_twice",
    "repeated",
    "reworded",
    "wrap",
]
