"""Causal maps of many prompts, draw by draw, resumable prompt by prompt."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict

from interp.errors import NoAcceptedExample, UsageError
from interp.intervene.tracing.cells import How, Traced, trace_cells
from interp.intervene.tracing.noise import noise_level
from interp.models.subject import CausalLM
from interp.runs import Run
from interp.tasks.base import Example, Task
from interp.trace.each import Progress, Spent


class TraceSpec(BaseModel):
    """What identifies a run of maps: the model's name, the prompts by content, how they are traced."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    subject: str
    prompts: tuple[str, ...]
    by: tuple[str, ...]
    how: dict[str, Any]


def trace_maps(
    subject: CausalLM,
    task: Task | Sequence[Example],
    how: How,
    *,
    by: Sequence[str] = (),
    n: int | None = None,
    folder: str | Path | None = None,
    budget: int | None = None,
    progress: Progress | None = None,
    spent: Spent | None = None,
) -> pd.DataFrame:
    """Causal maps of many prompts, for `aggregate`.

    Args:
        how: how they are traced; without `sigma` the noise is three standard deviations of the embeddings of all
            subject tokens of the data, as the reference has it.
        by: fields of the examples' `meta` that become columns (the relation, the scenario).
        n: use at most so many examples.
        folder: a run folder: prompts whose table is there are not traced again.
        budget, spent: see `interp.trace.each`.

    Returns:
        one row a prompt, cell, metric, target and draw: example, cluster, kind, severed, window, layer, position,
        token, role (of the span), place, corruption, metric, target, token_id, draw, value, low, high, and `by`.

    Raises:
        NoAcceptedExample: there is no prompt.
        UsageError: a prompt cannot be traced so, or the folder holds other maps.
    """
    examples = list(task.examples(subject) if isinstance(task, Task) else task)[:n]
    if not examples:
        raise NoAcceptedExample("there is no example to trace")
    for name in by:
        if any(name not in e.meta for e in examples):
            raise UsageError(f"by={name!r}: an example has no such field in its meta")
    if how.noise and how.sigma is None:
        how = replace(how, sigma=noise_level(subject, examples, how.role))
    run = None
    if folder is not None:
        prompts = tuple(_name(e, how) for e in examples)
        spec = TraceSpec(subject=subject.name, prompts=prompts, by=tuple(by), how=asdict(how))
        run = Run(Path(folder), spec)
        run.provenance(fingerprint=subject.fingerprint)
    parts = []
    for number, example in enumerate(examples):

        def make(number: int = number, example: Example = example) -> pd.DataFrame:
            def report(part: int, whole: int, what: str) -> None:
                if progress:
                    progress(100 * number + 100 * part // whole, 100 * len(examples), "prompts")

            traced = trace_cells(subject, example, how, budget=budget, progress=report, spent=spent)
            about = {name: example.meta[name] for name in by}
            return _draws(subject, traced).assign(
                example=number, cluster=example.cluster or example.key(), **about
            )

        parts.append(make() if run is None else run.table(f"prompts/{number:05d}", make))
        if progress:
            progress(100 * (number + 1), 100 * len(examples), "prompts")
    return pd.concat(parts, ignore_index=True)


def _name(example: Example, how: How) -> str:
    """Hash of all that a map of a prompt hangs on: the prompt, the twins that corrupt it, the token that is scored."""
    twins = [(name, example.corrupt[name].ids) for name in how.corruption if name in example.corrupt]
    more = [twins, example.meta.get("score_at")]
    if more == [[], None]:
        return example.key()
    return hashlib.sha256(json.dumps([example.key(), *more]).encode()).hexdigest()[:16]


def _draws(subject: CausalLM, traced: Traced) -> pd.DataFrame:
    """One row a cell, metric, target and draw."""
    draws = traced.value.shape[-1]
    frame = traced.table(subject)
    out = frame.loc[frame.index.repeat(draws)].reset_index(drop=True)
    out["draw"] = np.tile(np.arange(draws), len(frame))
    out["value"] = traced.value.ravel()
    out["low"] = np.tile(traced.low.ravel(), len(traced.cells))
    out["high"] = np.tile(np.repeat(traced.high.ravel(), draws), len(traced.cells))
    return out
