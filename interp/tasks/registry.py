"""The tasks there are, by name; one is imported when it is first asked for.

    >>> task("niah", length=256, kinds="words", n=8)
    niah(n=8, seed=0, length=256, depth='uniform', kinds=['words'], needles=1, haystack='all')

A task of your own is a function that yields Examples, or a class like those of `interp.tasks`; `register` gives it a
name. A path that ends in .jsonl is a task too (`interp.tasks.jsonl`).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interp.errors import UsageError

if TYPE_CHECKING:
    from interp.tasks.base import Task


@dataclass(frozen=True)
class TaskInfo:
    """What is known about a task without importing it.

    Attributes:
        target: `module:attribute`, or the class or function itself.
        params: parameters with their defaults.
    """

    name: str
    target: str | Callable[..., Any]
    summary: str
    source: str
    params: Mapping[str, Any] = field(default_factory=dict)

    def load(self) -> Callable[..., Any]:
        """The class or function."""
        if not isinstance(self.target, str):
            return self.target
        module, _, attribute = self.target.partition(":")
        try:
            return getattr(import_module(module), attribute)
        except (ImportError, AttributeError) as why:
            raise UsageError(f"task {self.name}: '{self.target}' cannot be imported: {why}") from None


_BUILT_IN = (
    TaskInfo(
        "induction",
        "interp.tasks.induction:Induction",
        "repeated random tokens; the answer followed the last token earlier on",
        "repeated random tokens, after Olsson et al. (arXiv 2209.11895)",
        {"length": 32, "n_answer": 1, "lead": 8, "n": 64, "seed": 0},
    ),
    TaskInfo(
        "niah",
        "interp.tasks.niah:Niah",
        "a key-value sentence in natural prose, and the question for its value",
        "prose, keys and values written for this project; after Wu et al. (arXiv 2404.15574) and RULER",
        {
            "length": 512,
            "depth": "uniform",
            "kinds": ("names", "words", "numbers", "phrases"),
            "needles": 1,
            "haystack": "all",
            "n": 64,
            "seed": 0,
        },
    ),
    TaskInfo(
        "niah_grid",
        "interp.tasks.grid:NiahGrid",
        "needles over a grid of lengths and depths, laid out so that prefills are shared",
        "needles and prose of niah; grid after Wu et al. (arXiv 2404.15574)",
        {
            "lengths": (256, 512, 1024, 2048),
            "depths": 5,
            "needles": 4,
            "haystacks": None,
            "kinds": ("names", "words", "numbers", "phrases"),
            "haystack": "all",
            "mode": "exact",
            "n": None,
            "seed": 0,
        },
    ),
    TaskInfo(
        "facts",
        "interp.tasks.facts:Facts",
        "closed-book facts of many relations, in several wordings",
        "closed-book facts compiled for this project, as of 2024",
        {"relations": None, "templates": None, "shots": 0, "n": None, "seed": 0},
    ),
    TaskInfo(
        "prose",
        "interp.tasks.prose:Prose",
        "natural prose to continue: the cost of a cut off target",
        "Python's documentation (pydoc_data.topics), or a file of the user's",
        {"prompt": 128, "answer": 64, "file": None, "n": 16, "seed": 0},
    ),
    TaskInfo(
        "multi_key",
        "interp.tasks.multi:MultiKey",
        "one of several key-value sentences of one form in natural prose",
        "needles and prose written for this project; after RULER (arXiv 2404.06654)",
        {
            "length": 512,
            "depth": "uniform",
            "kinds": ("names", "words", "numbers", "phrases"),
            "needles": 4,
            "haystack": "all",
            "n": 64,
            "seed": 0,
        },
    ),
    TaskInfo(
        "multi_value",
        "interp.tasks.multi:MultiValue",
        "all values of one key, listed in the order of the text",
        "statements and prose written for this project; after RULER (arXiv 2404.06654)",
        {
            "length": 512,
            "values": 3,
            "others": 1,
            "kinds": ("names", "words", "numbers"),
            "haystack": "all",
            "shots": 1,
            "n": 64,
            "seed": 0,
        },
    ),
    TaskInfo(
        "multi_hop",
        "interp.tasks.hops:MultiHop",
        "the value at the end of a chain of statements, in sentences or as variables",
        "chains and prose written for this project; after RULER (arXiv 2404.06654)",
        {
            "length": 512,
            "hops": 1,
            "chains": 3,
            "style": "story",
            "ask": "value",
            "haystack": "all",
            "shots": 1,
            "n": 64,
            "seed": 0,
        },
    ),
    TaskInfo(
        "paraphrase",
        "interp.tasks.paraphrase:Paraphrase",
        "which of several persons is meant, by an association that no word of the context gives away",
        "associations written for this project; after NoLiMa (arXiv 2502.05167)",
        {
            "length": 512,
            "depth": "uniform",
            "relations": None,
            "names": 4,
            "haystack": "all",
            "shots": 1,
            "n": 64,
            "seed": 0,
        },
    ),
    TaskInfo(
        "reading",
        "interp.tasks.reading:Reading",
        "questions about short passages, whose answers stand in them",
        "passages and questions written for this project; metric after SQuAD (arXiv 1606.05250)",
        {"shots": 2, "n": 64, "seed": 0},
    ),
    TaskInfo(
        "arithmetic",
        "interp.tasks.arithmetic:Arithmetic",
        "sums of several numbers, at once or step by step: no copying solves them",
        "additions generated for this project; steps after Wei et al. (arXiv 2201.11903)",
        {
            "terms": 2,
            "largest": 20,
            "style": "direct",
            "form": "digits",
            "shots": 4,
            "n": 64,
            "seed": 0,
        },
    ),
    TaskInfo(
        "ioi",
        "interp.tasks.ioi:IOI",
        "two names, one of them again; the answer is the other one",
        "sentences and names written for this project; after Wang et al. (arXiv 2211.00593)",
        {"families": None, "order": "both", "n": 64, "seed": 0},
    ),
    TaskInfo(
        "laundry",
        "interp.tasks.laundry:Laundry",
        "a list, and all but one of its things again; the answer is the one left over",
        "lists and wordings written for this project; no replication of Merullo et al. (arXiv 2406.09519)",
        {"items": (2, 3, 4, 5, 6), "families": ("A", "B"), "n": 64, "seed": 0},
    ),
    TaskInfo(
        "colored_objects",
        "interp.tasks.colored_objects:ColoredObjects",
        "several objects, each with a color, and the question for the color of one",
        "scenes written for this project; after Merullo et al. (arXiv 2310.08744)",
        {"shots": 1, "objects": 3, "n": 64, "seed": 0},
    ),
    TaskInfo(
        "conflict",
        "interp.tasks.conflict:Conflict",
        "a fact asked for behind statements of another answer: memory against context",
        "facts compiled for this project; after Xie et al. (arXiv 2305.13300)",
        {
            "counter": 1,
            "memory": 0,
            "irrelevant": 0,
            "order": "both",
            "relations": None,
            "n": 64,
            "seed": 0,
        },
    ),
    TaskInfo(
        "acronym",
        "interp.tasks.prior:Acronym",
        "the first letters of four words, which are a likely answer or not",
        "words chosen for this project; after Zhang et al. (arXiv 2504.12585)",
        {"prior": "both", "shots": 2, "n": 64, "seed": 0},
    ),
    TaskInfo(
        "shift_cipher",
        "interp.tasks.prior:ShiftCipher",
        "four letters moved along the alphabet, which spell a likely answer or not",
        "words chosen for this project; after McCoy et al. (arXiv 2309.13638)",
        {"shift": 1, "prior": "both", "shots": 2, "n": 64, "seed": 0},
    ),
    TaskInfo(
        "counting",
        "interp.tasks.prior:Counting",
        "how often a word stands in a list: a round number, or one beside it",
        "lists generated for this project; after McCoy et al. (arXiv 2309.13638)",
        {"largest": 80, "prior": "both", "shots": 0, "n": 64, "seed": 0},
    ),
)

NAMES: dict[str, TaskInfo] = {info.name: info for info in _BUILT_IN}
"""Every task by name; `register` adds to it."""

FILES: dict[str, TaskInfo] = {
    "facts_file": TaskInfo(
        "facts_file",
        "interp.tasks.facts_file:FactsFile",
        "facts of a file shaped like known_1000, a relation of LRE or patterns of ParaRel",
        "a file of the user's",
        {"path": None, "shape": None, "facts": None, "skip": False, "n": None, "seed": 0},
    )
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
