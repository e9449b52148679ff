"""The tasks there are, by name; one is imported when it is first asked for.

    >>> task("niah", length=256, kinds="words", n=8)
    niah(n=8, seed=0, length=256, depth='uniform', kinds=['words'], needles=1, haystack='all')

A task of your own is a function that yields Examples, or a class like those of `interp.tasks`; `register` gives it a
name. A path that ends in .jsonl is a task too (`interp.tasks.jsonl`).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interp.errors import UsageError
from interp.tasks.catalogue import BUILT_IN, TaskInfo

if TYPE_CHECKING:
    from interp.tasks.base import Task


NAMES: dict[str, TaskInfo] = {info.name: info for info in BUILT_IN}
"""Every task by name; `register` adds to it."""

FILES: dict[str, TaskInfo] = {
    "facts_file": TaskInfo(
        "facts_file",
        "interp.tasks.facts_file:FactsFile",
        "facts of a file shaped like known_1000, a relation of LRE or patterns of ParaRel",
        "a file of the user's",
        {"path": None, "shape": None, "facts": None, "skip": False, "n": None, "seed": 0},
    ),
    "samples": TaskInfo(
        "samples",
        "interp.tasks.harness:Samples",
        "documents of samples that lm-evaluation-harness logs, or of prepared files of RULER",
        "a file of the user's, of lm-evaluation-harness or RULER",
        {"path": None, "shape": None, "spans": False, "n": None, "seed": 0},
    ),
}
"""Tasks that are nothing without a file, `path`."""


def task(name: str | Path, **params: Any) -> Task:
    """A task by name, or from a file of examples that ends in .jsonl.

    Args:
        name: of `NAMES` or `FILES`, or a path.
        params: parameters of the task; those left out keep the defaults that `NAMES` shows.

    Raises:
        UsageError: there is no such task, or it has no such parameter.
    """
    if str(name).endswith(".jsonl"):
        from interp.tasks.jsonl import JsonlTask

        _check(str(name), params, {"n": None, "seed": 0})
        return JsonlTask(name, **params)
    info = NAMES.get(str(name)) or FILES.get(str(name))
    if info is None:
        raise UsageError(
            f"no task '{name}'{_hint(str(name), NAMES)}; there are {', '.join(NAMES)}, or a path to a .jsonl file"
        )
    _check(info.name, params, info.params)
    if info.name in FILES and not params.get("path"):
        raise UsageError(f"task {info.name} reads a file; pass path=...")
    made = info.load()
    if isinstance(made, type):
        return made(**params)
    from interp.tasks.user import FunctionTask

    return FunctionTask(made, info.name, **{**info.params, **params})


def register(
    name: str,
    target: str | Callable[..., Any],
    summary: str = "",
    *,
    source: str = "given by the user",
    replace: bool = False,
) -> TaskInfo:
    """Give a task of your own a name.

    Args:
        target: a `Task` class; or a function `f(tokens, rng, **params)` that yields Examples, where `tokens` is the
            model's `Tokens` and `rng` a seeded numpy generator; or `module:attribute` of one, imported here.
        summary: one line; default the first line of the docstring.
        replace: allow a name that is taken.

    Raises:
        UsageError: the name is taken, or the target is neither class nor function.
    """
    if name in NAMES and not replace:
        raise UsageError(f"there is a task '{name}' already; take another name, or pass replace=True")
    if not name or name.endswith(".jsonl"):
        raise UsageError(f"'{name}' is no name for a task; names that end in .jsonl are files")
    made = TaskInfo(name, target, summary, source).load()
    if not callable(made):
        raise UsageError(f"task {name}: {made!r} is neither a class nor a function that yields examples")
    found = {
        p.name: p.default for p in inspect.signature(made).parameters.values() if p.kind not in _VARIADIC
    }
    if not isinstance(made, type):
        # A function is given the tokenizer and the generator; how many examples, and the seed, are ours.
        found = {"n": 64, "seed": 0, **dict(list(found.items())[2:])}
    doc = (inspect.getdoc(made) or "").partition("\n")[0]
    params = {k: None if v is inspect.Parameter.empty else v for k, v in found.items()}
    NAMES[name] = TaskInfo(name, target, summary or doc, source, params)
    return NAMES[name]


_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def _check(name: str, given: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    for param in given:
        if param not in known:
            raise UsageError(
                f"task {name} has no parameter '{param}'{_hint(param, known)}; it has {', '.join(known) or 'none'}"
            )


def _hint(word: str, known: Mapping[str, Any]) -> str:
    near = get_close_matches(word, list(known), 1)
    return f" (did you mean '{near[0]}'?)" if near else ""
