"""Making 10,000 examples of up to 256 tokens of every task, with their twins: time, and whether memory stays flat."""

from __future__ import annotations

import ctypes
import gc
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import count, islice
from typing import Any

import numpy as np

from interp.models.subject import CausalLM
from interp.models.tokens import Tokens
from interp.tasks import NAMES, task
from interp.tasks.base import Example
from tests.benchmarks.harness import Builder, Job, Reach, Results, last_line, status

LENGTH = 256
SIZES: Mapping[str, Mapping[str, Any]] = {
    "niah_grid": {"lengths": (LENGTH,)},
    "order": {"items": 6},
    "prose": {"prompt": LENGTH},
    "reading": {"shots": 1},
}
"""Of tasks without a `length` of 512 that would be longer, or shorter than need be; all others are as by default."""

EARLY = 1000
FIXED = ("niah_grid", "reading", "facts")
"""Tasks of so many questions and no more: all of them, with one seed after another."""


def stream(name: str, n: int, tokens: Tokens) -> Iterator[Example]:
    """`n` examples of a task, none of them kept."""
    sized = {"length": LENGTH} if NAMES[name].params.get("length") == 512 else SIZES.get(name, {})
    if name not in FIXED:
        return task(name, n=n, **sized).stream(tokens)
    n_all = {} if name == "niah_grid" else {"n": "all"}
    return islice((e for seed in count() for e in task(name, seed=seed, **n_all, **sized).stream(tokens)), n)


def generated(name: str, n: int, tokens: Tokens) -> dict[str, float]:
    """What `n` examples of a task cost.

    Returns:
        `seconds` of CPU time; `MB` that the resident memory grows from a tenth of the examples to all of them;
        `tokens` of the longest prompt.
    """
    longest, early = 0, 0.0
    start = time.process_time()
    for i, example in enumerate(stream(name, n, tokens), 1):
        longest = max(longest, len(example.ids))
        if i == n * EARLY // 10_000:
            early = _resident()
    seconds = time.process_time() - start
    del example
    return {"seconds": seconds, "MB": _resident() - early, "tokens": float(longest)}


def _resident() -> float:
    """Resident MB after what can be given back was given back."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return status("VmRSS")


def in_child(name: str, n: int, model: str) -> dict[str, float]:
    """`generated`, in a process of its own, so that memory freed by one task does not hide another's growth."""
    code = (
        "import json, sys, interp; from tests.benchmarks.jobs_tasks import generated; name, n, model = sys.argv[1:]; "
        "print(json.dumps(generated(name, int(n), interp.load(model).tokens)))"
    )
    return json.loads(last_line("-c", code, name, str(n), model))


def tasks(subject: CausalLM, n: int = 10_000, names: Sequence[str] = tuple(NAMES), apart: bool = True) -> Job:
    """Make examples of every task.

    Args:
        apart: each task in a process of its own, which loads the model by its name.
    """

    one = (
        partial(in_child, n=n, model=subject.name)
        if apart
        else partial(generated, n=n, tokens=subject.tokens)
    )
    rounds: list[dict[str, dict[str, float]]] = []

    def ours() -> dict[str, dict[str, float]]:
        rounds.append({name: one(name) for name in names})
        return rounds[-1]

    def numbers(_: Results) -> dict[str, float]:
        whats = rounds[0][names[0]]
        each = {(w, x): float(np.median([made[x][w] for made in rounds])) for x in names for w in whats}
        worst = {what: max(each[what, name] for name in names) for what in whats}
        return {f"{what} {name}": value for (what, name), value in each.items()} | worst

    return Job(
        f"make {n:,} examples of up to {LENGTH} tokens of each of {len(names)} tasks, with their twins",
        (
            Reach("the slowest task in at most 60 s of CPU time", "seconds", "<=", 60.0),
            Reach(
                f"at most 32 MB more at the end than after {n * EARLY // 10_000:,} examples", "MB", "<=", 32.0
            ),
            Reach(f"no prompt longer than {LENGTH} tokens", "tokens", "<=", float(LENGTH)),
        ),
        ours=ours,
        warm=lambda: None,
        numbers=numbers,
        notes=(
            "numbers of a task are medians over the rounds; each task in a process of its own",
            f"tasks that hold fewer questions ({', '.join(x for x in FIXED if x in names)}) are asked all of them with "
            "one seed after another",
        ),
    )


JOBS: dict[str, Builder] = {"tasks": tasks}
