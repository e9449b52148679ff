"""Facts written one at a time and many at once, kept as files, and what taking them back leaves behind."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from interp.intervene.base import Intervention
from interp.intervene.edit import WeightEdit
from interp.intervene.facts import FactEdit, Moments, Prefixes, Residuals, Search, memit, residuals, rome
from interp.intervene.facts.memit import SEARCH
from interp.measure.edits import EditRecord, score_edits
from interp.models.cache import Progress
from interp.models.subject import CausalLM
from interp.studies.editing.spec import EditingSpec
from interp.tasks.base import Example, stable_seed

PASSES = 5
"""Forward passes that are timed, beside each edit."""

OTHER_FACT, RANDOM_VALUE = "other fact", "random value"
CONTROLS = (OTHER_FACT, RANDOM_VALUE)


def contexts(subject: CausalLM, spec: EditingSpec) -> Prefixes:
    """What edits have to hold in."""
    if not spec.contexts:
        return Prefixes()
    return Prefixes.written(subject, spec.contexts, seed=spec.seed)


def searches(spec: EditingSpec) -> dict[str, Search]:
    """How ROME and MEMIT search."""
    return {"rome": Search(steps=spec.steps), "memit": replace(SEARCH, steps=spec.steps)}


def scored(
    subject: CausalLM,
    records: Sequence[EditRecord],
    edits: Sequence[Intervention] | Intervention,
    method: str,
    at_once: int,
) -> pd.DataFrame:
    """`score_edits` of a condition."""
    return score_edits(subject, records, edits).assign(method=method, at_once=at_once)


# -- one at a time ---------------------------------------------------------------------------------------------------


def by_rome(
    subject: CausalLM,
    records: Sequence[EditRecord],
    files: Sequence[Path],
    layer: int,
    moments: Moments,
    prefixes: Prefixes,
    search: Search,
    report: Progress | None,
) -> pd.DataFrame:
    """Each fact written alone, saved, put into the weights and taken back; one row an edit."""
    rows = []
    for number, (record, file) in enumerate(zip(records, files, strict=True)):
        began = time.perf_counter()
        edit = rome(subject, record.rewrite, layer, moments, prefixes=prefixes, search=search)
        seconds = time.perf_counter() - began
        row = {"method": "rome", "at_once": 1, "record": record.name, "relation": record.relation}
        rows.append(
            row | kept(subject, edit, file) | {"seconds": seconds, "forward": pass_seconds(subject, record)}
        )
        if report:
            report(number + 1, len(records), "edits")
    return pd.DataFrame(rows)


def kept(subject: CausalLM, edit: FactEdit, file: Path) -> dict[str, Any]:
    """Save an edit, read it, put it into the weights and take it back, and say what of that is exact."""
    edit.save(file)
    found = FactEdit.load(file, subject)
    before = subject.weights_hash
    prompts = [Example("edit", r.ids, r.target) for r in edit.rewrites]
    batch = subject.batch(prompts)
    intact = subject.run(batch, keep=batch.keep).logits
    with subject.apply(found):
        applied = subject.run(batch, keep=batch.keep).logits
    with found.applied(subject):
        written = subject.run(batch, keep=batch.keep).logits
        says = [
            tuple(subject.generate(subject.batch([p], forced=False), len(p.answer_ids))[0]) == p.answer_ids
            for p in prompts
        ]
    again = subject.run(batch, keep=batch.keep).logits
    last = [steps[-1] for steps in edit.history]
    real = batch.mask[:, -batch.keep :].bool().to(written.device)
    return {
        "layer": max(e.layer for e in edit.edits),
        "layers": len(edit.edits),
        "steps": float(np.mean([len(steps) for steps in edit.history])),
        "nll": float(np.mean([step["nll"] for step in last])),
        "norm": float(np.mean([step["norm"] for step in last])),
        "bytes": file.stat().st_size,
        "dense_bytes": sum(_dense(subject, e.layer) for e in edit.edits),
        "loaded": [e.digest for e in found.edits] == [e.digest for e in edit.edits],
        "changed": float((applied - intact)[real].abs().max()),
        "in_weights": float((written - applied)[real].abs().max()),
        "says": float(np.mean(says)),
        "restored": subject.weights_hash == before and torch.equal(again, intact),
    }


def _dense(subject: CausalLM, layer: int) -> int:
    """Bytes of the whole matrix that an edit changes."""
    weight: torch.Tensor = subject.module(layer, subject.family.sites["neurons"].module).weight  # type: ignore[assignment]
    return weight.numel() * weight.element_size()


def pass_seconds(subject: CausalLM, record: EditRecord) -> float:
    """Median time of a forward pass of the edited prompt."""
    batch = subject.batch([Example("edit", record.rewrite.ids, ())], forced=False)
    times = []
    for _ in range(PASSES):
        began = time.perf_counter()
        subject.run(batch, keep=1)
        times.append(time.perf_counter() - began)
    return float(np.median(times))


def together(edits: Sequence[FactEdit]) -> WeightEdit:
    """Edits of one layer, each made on the intact model, all of them on."""
    (layer,) = {e.layer for edit in edits for e in edit.edits}
    factors = [e for edit in edits for e in edit.edits]
    return WeightEdit(layer, "down", torch.cat([e.a for e in factors], 1), torch.cat([e.b for e in factors]))


def control(edits: Sequence[FactEdit], number: int, kind: str, seed: int) -> WeightEdit:
    """What an edit is held against: another record's edit, or the same key with a random direction of equal length."""
    (own,) = edits[number].edits
    (other,) = edits[(number + 1) % len(edits)].edits
    if kind == OTHER_FACT:
        return other
    generator = torch.Generator().manual_seed(stable_seed(RANDOM_VALUE, number, seed)[0])
    b = torch.randn(own.b.shape, generator=generator)
    return WeightEdit(own.layer, "down", own.a, b * (own.b.norm() / b.norm()).cpu())


# -- many at once ----------------------------------------------------------------------------------------------------


def searched(
    subject: CausalLM,
    records: Sequence[EditRecord],
    end: int,
    prefixes: Prefixes,
    search: Search,
    report: Progress | None,
) -> pd.DataFrame:
    """Residuals as rows: record, delta, history (JSON), seconds."""
    rows = []
    for number, record in enumerate(records):
        began = time.perf_counter()
        found = residuals(subject, [record.rewrite], end, prefixes=prefixes, search=search)
        seconds = time.perf_counter() - began
        history = json.dumps([dict(step) for step in found.history[0]])
        row = {"record": record.name, "delta": found.deltas[0].tolist(), "history": history}
        rows.append({**row, "seconds": seconds})
        if report:
            report(number + 1, len(records), "residuals")
    return pd.DataFrame(rows)


def found_in(frame: pd.DataFrame, end: int, prefixes: Prefixes, search: Search) -> Residuals:
    """Residuals of such rows."""
    deltas = torch.tensor(np.stack([np.asarray(d, dtype=np.float32) for d in frame["delta"]]))
    history = tuple(tuple(json.loads(h)) for h in frame["history"])
    return Residuals(end, deltas, history, prefixes, search)


def window(end: int, width: int) -> tuple[int, ...]:
    """Layers of a window that ends at a layer, cut off at the first."""
    return tuple(range(max(0, end - width + 1), end + 1))


def by_memit(
    subject: CausalLM,
    records: Sequence[EditRecord],
    found: Residuals,
    layers: Sequence[int],
    moments: Moments,
    weight: float,
) -> tuple[FactEdit, float]:
    """Facts written at once, and the seconds that the weights took."""
    began = time.perf_counter()
    edit = memit(subject, [r.rewrite for r in records], layers, moments, weight=weight, found=found)
    return edit, time.perf_counter() - began


def groups(n: int, size: int) -> list[list[int]]:
    """Numbers below n in groups of a size; the last one may be smaller.

    >>> groups(5, 2)
    [[0, 1], [2, 3], [4]]
    """
    return [list(range(i, min(n, i + size))) for i in range(0, n, size)]
