"""Activation patching: put activations of one run into another, cell by cell, and see what comes back.

`denoise` runs the corrupt prompt and patches clean activations in (what suffices to restore the answer); `noise` runs
the clean prompt and patches corrupt ones in (what is necessary). A cell is a layer with a token position, a span role
or a head. Recovery of a cell is (value - corrupt) / (clean - corrupt) of the metric, so 0 is the corrupt run and 1 the
clean one, in both directions. Many cells run as rows of one batch; each equals a run of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch

from interp.errors import NoAcceptedExample, UsageError
from interp.measure.metrics import score_answer
from interp.models.batch import Batch
from interp.models.engines.base import Frame, Record, Tap
from interp.models.sites import INDEXED, QUERY_HEADS, Site
from interp.models.subject import CausalLM
from interp.tasks.base import Example, Task

Direction = Literal["denoise", "noise"]
Over = Literal["position", "role", "head"]
TOKENS = 4096
"""Padded tokens of a batch of cells."""

LAST = "last"
"""Role of the position that predicts the answer."""


@dataclass(frozen=True)
class Cell:
    """One patch: a layer and what of it is patched."""

    layer: int
    positions: tuple[int, ...]
    position: int = -1
    role: str = ""
    head: int = -1


@dataclass(frozen=True)
class _CellTap:
    """Writes the source's values into rows whose cell lies in this layer."""

    cells: Sequence[tuple[int, Cell]]
    source: torch.Tensor

    def edit(self, value: torch.Tensor, frame: Frame) -> torch.Tensor:
        out = value.clone()
        for row, cell in self.cells:
            at = torch.tensor(cell.positions, device=value.device)
            source = self.source.to(value.device, value.dtype)
            if cell.head >= 0:
                out[row, at, cell.head] = source[at, cell.head]
            else:
                out[row, at] = source[at]
        return out


def cells(subject: CausalLM, example: Example, kind: str, over: Over, layers: Sequence[int]) -> list[Cell]:
    """The cells of one example.

    Args:
        over: `position` (each prompt token), `role` (each span role, the last token and the other tokens), or `head`
            (each query head at all prompt positions).
    """
    n = len(example.ids)
    if over == "head":
        every = tuple(range(n))
        return [Cell(i, every, head=h) for i in layers for h in range(subject.n_heads)]
    if over == "position":
        return [Cell(i, (p,), position=p, role=_role(example, p)) for i in layers for p in range(n)]
    groups: dict[str, list[int]] = {}
    for p in range(n):
        groups.setdefault(_role(example, p), []).append(p)
    return [Cell(i, tuple(ps), role=role) for i in layers for role, ps in groups.items()]


def _role(example: Example, position: int) -> str:
    if position == len(example.ids) - 1:
        return LAST
    inside = [s for s in example.spans if s.start <= position < s.end]
    return min(inside, key=len).role if inside else "other"


def patch(
    subject: CausalLM,
    task: Task | Sequence[Example],
    kind: str | Iterable[str] = "resid_post",
    *,
    corruption: str | None = None,
    direction: Direction | Literal["both"] = "denoise",
    over: Over | None = None,
    layers: Iterable[int] | None = None,
    metric: str = "logit_diff",
    n: int | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> pd.DataFrame:
    """Patch every cell between each example and its corruption, and average over examples.

    Args:
        kind: one or more kinds of site: `resid_pre`, `resid_mid`, `resid_post`, `attn_out`, `mlp_out`, `z`, ...
        corruption: which corrupt twin; default the first that all examples have.
        direction: `denoise`, `noise` or `both`.
        over: what a cell is; default heads for `z`, positions for one example, roles for several.
        layers: default all.
        metric: of `interp.measure.metrics`; the clean answer against the foil.
        n: use at most so many examples.

    Returns:
        the patch frame: kind, direction, layer, position, token, role, head, value, clean, corrupt, recovery, n.
        Recovery is a ratio of means, NaN where clean and corrupt are alike.

    Raises:
        UsageError: the site has no such cells, or an example lacks the corruption or the metric.
    """
    examples = list(task.examples(subject) if isinstance(task, Task) else task)[:n]
    if not examples:
        raise NoAcceptedExample("there is no example to patch")
    twin = corruption or _common_corruption(examples)
    directions: tuple[Direction, ...] = ("denoise", "noise") if direction == "both" else (direction,)
    every = sorted(set(range(subject.n_layers) if layers is None else layers))
    jobs = [
        (e, k, d)
        for e in examples
        for k in ([kind] if isinstance(kind, str) else list(kind))
        for d in directions
    ]
    rows: list[dict[str, Any]] = []
    for done, (example, site_kind, way) in enumerate(jobs):

        def report(part: int, whole: int, done: int = done, what: str = f"{site_kind} {way}") -> None:
            if progress:
                progress(100 * done + 100 * part // whole, 100 * len(jobs), what)

        chosen = _over(over, site_kind, len(examples))
        rows += _one(subject, example, site_kind, twin, way, chosen, every, metric, report)
    return _mean(pd.DataFrame(rows))


def _over(over: Over | None, kind: str, n: int) -> Over:
    if kind in QUERY_HEADS:
        if over in (None, "head"):
            return "head"
    elif over == "head":
        raise UsageError(
            f"site '{kind}' has no query heads; patch z by head, or '{kind}' by position or role"
        )
    return over or ("position" if n == 1 else "role")


def _common_corruption(examples: Sequence[Example]) -> str:
    shared = [k for k in examples[0].corrupt if all(k in e.corrupt for e in examples)]
    if not shared:
        raise UsageError(f"the examples of {examples[0].task} share no corruption to patch between")
    return shared[0]


def _one(
    subject: CausalLM,
    example: Example,
    kind: str,
    corruption: str,
    direction: Direction,
    over: Over,
    layers: Sequence[int],
    metric: str,
    report: Callable[[int, int], None],
) -> list[dict[str, Any]]:
    if kind in ("logits", "attention", "embed") or (kind in INDEXED - QUERY_HEADS and over == "head"):
        raise UsageError(f"site '{kind}' cannot be patched by {over}")
    if corruption not in example.corrupt:
        raise UsageError(
            f"{example.task}: no corruption '{corruption}'; it has {', '.join(example.corrupt) or 'none'}"
        )
    clean, dirty = _pair(example, corruption)
    ends = {name: _run(subject, e, kind, layers) for name, e in (("clean", clean), ("corrupt", dirty))}
    base = {name: _metric(logits, clean, metric) for name, (logits, _) in ends.items()}
    source = ends["clean" if direction == "denoise" else "corrupt"][1]
    into = dirty if direction == "denoise" else clean
    every = cells(subject, clean, kind, over, layers)
    labels = subject.tokens.pieces(clean.ids) if subject.has_tokens else [str(i) for i in clean.ids]
    out = []
    for chunk in _chunks(every, max(1, TOKENS // len(clean.full_ids))):
        for cell, logits in zip(chunk, _patched(subject, into, kind, chunk, source), strict=True):
            out.append(
                {
                    "kind": kind,
                    "direction": direction,
                    "layer": cell.layer,
                    "position": cell.position,
                    "token": labels[cell.position] if cell.position >= 0 else "",
                    "role": cell.role,
                    "head": cell.head,
                    "value": _metric(logits, clean, metric),
                    **base,
                }
            )
        report(len(out), len(every))
    return out


def _pair(example: Example, corruption: str) -> tuple[Example, Example]:
    """The clean example, and the corrupt prompt with the clean answer forced: both are asked the same."""
    twin = example.corrupt[corruption]
    foil = example.foil_ids
    if not foil and twin.answer_ids != example.answer_ids:
        foil = twin.answer_ids
    clean = replace(example, foil_ids=foil)
    return clean, replace(clean, ids=twin.ids, text=twin.text, spans=twin.spans or example.spans)


def _run(
    subject: CausalLM, example: Example, kind: str, layers: Sequence[int]
) -> tuple[torch.Tensor, dict[int, torch.Tensor]]:
    trace = subject.run([example], {Site(kind, i): Record() for i in layers})
    return trace.logits[0], {i: trace[Site(kind, i)][0] for i in layers}


def _patched(
    subject: CausalLM, into: Example, kind: str, chunk: Sequence[Cell], source: dict[int, torch.Tensor]
) -> torch.Tensor:
    batch: Batch = subject.batch([into] * len(chunk))
    by_layer: dict[int, list[tuple[int, Cell]]] = {}
    for row, cell in enumerate(chunk):
        by_layer.setdefault(cell.layer, []).append((row, cell))
    taps: dict[Site, Tap] = {Site(kind, i): _CellTap(rows, source[i]) for i, rows in by_layer.items()}
    return subject.run(batch, taps).logits


def _metric(logits: torch.Tensor, example: Example, metric: str) -> float:
    value = score_answer(logits, example).get(metric)
    if value is None or np.isnan(value):
        raise UsageError(
            f"{example.task}: metric '{metric}' is not defined for its examples; give another metric"
        )
    return value


def _chunks(items: Sequence[Cell], size: int) -> Iterator[Sequence[Cell]]:
    for i in range(0, len(items), size):
        yield items[i : i + size]


def _mean(rows: pd.DataFrame) -> pd.DataFrame:
    by = ["kind", "direction", "layer", "position", "token", "role", "head"]
    out = rows.groupby(by, sort=False).agg(
        value=("value", "mean"), clean=("clean", "mean"), corrupt=("corrupt", "mean"), n=("value", "size")
    )
    gap = out["clean"] - out["corrupt"]
    out["recovery"] = ((out["value"] - out["corrupt"]) / gap).where(gap.abs() > 1e-9)
    return out.reset_index()[[*by, "value", "clean", "corrupt", "recovery", "n"]]
