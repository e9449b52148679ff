"""Activation patching: put activations of one run into another, cell by cell, and see what comes back.

`denoise` runs the corrupt prompt and patches clean activations in (what suffices to restore the answer); `noise` runs
the clean prompt and patches corrupt ones in (what is necessary). A cell is a layer with a token position, a span role
or a head. Recovery of a cell is (value - corrupt) / (clean - corrupt) of the metric, so 0 is the corrupt run and 1 the
clean one, in both directions. All cells of a map run by `subject.each`: only the suffix from the cell on, and only the
layers above it; each equals a run of its own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int

from interp.errors import NoAcceptedExample, UsageError
from interp.intervene.base import Atom
from interp.measure.metrics import score_answer
from interp.models.batch import Batch
from interp.models.engines.base import Frame, Record, Tap
from interp.models.sites import INDEXED, QUERY_HEADS, Site
from interp.models.subject import CausalLM
from interp.tasks.base import Example, Task

Direction = Literal["denoise", "noise"]
Over = Literal["position", "role", "head"]

LAST = "last"
"""Role of the position that predicts the answer."""


@dataclass(frozen=True, eq=False)
class Source:
    """Activations of one prompt at one kind of site: what patches write.

    Attributes:
        kind: kind of site.
        values: by layer, one row a token, t *unit shape.
        first: token that they begin with.
    """

    kind: str
    values: Mapping[int, torch.Tensor]
    first: int = 0
    name: str = field(init=False, repr=False)

    def __post_init__(self) -> None:
        digest = hashlib.sha256(f"{self.kind} {self.first}".encode())
        for layer, value in sorted(self.values.items()):
            digest.update(f"{layer} {tuple(value.shape)}".encode())
            digest.update(value.detach().float().cpu().contiguous().numpy().data)
        object.__setattr__(self, "name", digest.hexdigest()[:16])

    @classmethod
    def of(
        cls,
        subject: CausalLM,
        example: Example,
        kind: str,
        layers: Iterable[int] | None = None,
        *,
        cache: Any = None,
        past: int = 0,
    ) -> Source:
        """Record a prompt and its forced answer, on a KV cache of the first `past` tokens where there is one."""
        return cls.with_logits(subject, example, kind, layers, cache=cache, past=past)[0]

    @classmethod
    def with_logits(
        cls,
        subject: CausalLM,
        example: Example,
        kind: str,
        layers: Iterable[int] | None = None,
        **options: Any,
    ) -> tuple[Source, Float[torch.Tensor, "m v"]]:
        """The same, and the logits of that run that predict the answer."""
        chosen = list(range(subject.n_layers) if layers is None else layers)
        trace = subject.run([example], {Site(kind, i): Record() for i in chosen}, **options)
        values = {i: trace[Site(kind, i)][0] for i in chosen}
        return cls(kind, values, options.get("past", 0)), trace.logits[0]


@dataclass(frozen=True)
class Patch(Atom):
    """Activations of another run written over those of this one.

    Attributes:
        source: what is written.
        layers: in which layers; several are a window.
        positions: at which tokens, counted from the first token of the prompt.
        head: only this head (or neuron); default all that the site holds.

    Raises:
        UsageError: the source holds no such layer, token or head.
    """

    source: Source
    layers: tuple[int, ...]
    positions: tuple[int, ...]
    head: int | None = None

    def __post_init__(self) -> None:
        kind, values, first = self.source.kind, self.source.values, self.source.first
        for layer in self.layers:
            site = Site(kind, layer, self.head)
            if layer not in values:
                raise UsageError(f"a patch of {site}: its source holds layers {sorted(values)}")
            tokens, units = values[layer].shape[:2]
            if self.head is not None and not 0 <= self.head < units:
                raise UsageError(f"a patch of {site}: its source holds indices 0 to {units - 1} there")
            if outside := [p for p in self.positions if not 0 <= p - first < tokens]:
                raise UsageError(
                    f"a patch of {site} at token {outside[0]}: its source holds tokens {first} to {first + tokens - 1}"
                )

    def describe(self) -> dict[str, Any]:
        return {
            "kind": "patch",
            "components": [repr(Site(self.source.kind, i, self.head)) for i in self.layers],
            "mode": "patch",
            "scope": "positions " + " ".join(map(str, self.positions)),
            "reference": self.source.name,
        }

    def group(self) -> tuple[Any, ...]:
        return (id(self.source),)

    def touches(self, subject: CausalLM, batch: Batch) -> dict[Site, Bool[torch.Tensor, "b t"]]:
        mask = batch.scope_columns(self.positions, 0, batch.width)
        return {Site(self.source.kind, i): mask for i in self.layers}

    @classmethod
    def lower_group(
        cls,
        subject: CausalLM,
        batch: Batch,
        atoms: Sequence[tuple[int, Any]],
        of: Int[torch.Tensor, " b"],
        n: int,
    ) -> dict[Site, list[Tap]]:
        source: Source = atoms[0][1].source
        rows: dict[int, list[int]] = {}
        for row, number in enumerate(of.tolist()):
            rows.setdefault(number, []).append(row)
        written: dict[int, list[tuple[int, int, int]]] = {}
        for number, atom in atoms:
            if mine := rows.get(number):
                batch.check_positions(atom.positions, torch.tensor(mine, device=batch.pad.device))
            head = -1 if atom.head is None else atom.head
            own = [(row, token, head) for row in rows.get(number, ()) for token in atom.positions]
            for layer in atom.layers:
                written.setdefault(layer, []).extend(own)
        return {
            Site(source.kind, layer): [_Write.of(source, layer, batch, places)]
            for layer, places in written.items()
        }


@dataclass(frozen=True)
class _Write:
    """Rows, columns and heads that are overwritten, and from which token of the source."""

    values: torch.Tensor
    rows: torch.Tensor
    columns: torch.Tensor
    tokens: torch.Tensor
    heads: torch.Tensor  # -1: all

    @classmethod
    def of(cls, source: Source, layer: int, batch: Batch, places: Sequence[tuple[int, int, int]]) -> _Write:
        """Of rows, tokens and heads."""
        every = torch.tensor(places, dtype=torch.long, device=batch.ids.device).reshape(-1, 3)
        row, token, head = every.unbind(1)
        return cls(source.values[layer], row, batch.pad[row] + token, token - source.first, head)

    def edit(self, value: torch.Tensor, frame: Frame) -> torch.Tensor:
        columns = self.columns - frame.past
        here = (columns >= 0) & (columns < frame.width)
        source = self.values.to(value.device, value.dtype)
        out = value.clone()
        whole = here & (self.heads < 0)
        if bool(whole.any()):
            row, column, token = (t[whole].to(value.device) for t in (self.rows, columns, self.tokens))
            out[row, column] = source[token]
        part = here & (self.heads >= 0)
        if bool(part.any()):
            row, column, token, head = (
                t[part].to(value.device) for t in (self.rows, columns, self.tokens, self.heads)
            )
            out[row, column, head] = source[token, head]
        return out


@dataclass(frozen=True)
class Cell:
    """One patch: a layer and what of it is patched."""

    layer: int
    positions: tuple[int, ...]
    position: int = -1
    role: str = ""
    head: int = -1


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
        Recovery is a ratio of means, NaN where clean and corrupt are alike; token and role are empty where examples
        differ in them.

    Raises:
        UsageError: the site has no such cells, or an example lacks the corruption or the metric.
    """
    for name, value, known in (
        ("direction", direction, ("denoise", "noise", "both")),
        ("over", over, (None, "position", "role", "head")),
    ):
        if value not in known:
            raise UsageError(f"{name}={value!r}: write one of {', '.join(map(repr, known))}")
    examples = list(task.examples(subject) if isinstance(task, Task) else task)[:n]
    if not examples:
        raise NoAcceptedExample("there is no example to patch")
    twin = corruption or _common_corruption(examples)
    directions: tuple[Direction, ...] = ("denoise", "noise") if direction == "both" else (direction,)
    every = sorted(set(range(subject.n_layers) if layers is None else layers))
    if not every:
        raise UsageError("layers is empty: name one, or leave it out for all")
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
    into, other = (dirty, clean) if direction == "denoise" else (clean, dirty)
    source, logits = Source.with_logits(subject, other, kind, layers)
    value_of_source = _metric(logits, clean, metric)
    every = cells(subject, clean, kind, over, layers)
    # Before the first token that differs both runs are the same, so a patch there changes nothing.
    same = next(i for i, (a, b) in enumerate(zip(clean.ids, dirty.ids, strict=True)) if a != b)
    items: list[Patch | None] = [None]
    items += [
        None
        if max(cell.positions) < same
        else Patch(source, (cell.layer,), cell.positions, None if cell.head < 0 else cell.head)
        for cell in every
    ]
    values: dict[int, float] = {}
    for i, logits in subject.each(items, [into]):
        values[i] = _metric(logits[0], clean, metric)
        report(len(values), len(items))
    ends = (value_of_source, values[0]) if direction == "denoise" else (values[0], value_of_source)
    labels = subject.tokens.pieces(clean.ids) if subject.has_tokens else [str(i) for i in clean.ids]
    return [
        {
            "kind": kind,
            "direction": direction,
            "layer": cell.layer,
            "position": cell.position,
            "token": labels[cell.position] if cell.position >= 0 else "",
            "role": cell.role,
            "head": cell.head,
            "value": values[i],
            "clean": ends[0],
            "corrupt": ends[1],
        }
        for i, cell in enumerate(every, start=1)
    ]


def _pair(example: Example, corruption: str) -> tuple[Example, Example]:
    """The clean example, and the corrupt prompt with the clean answer forced: both are asked the same."""
    twin = example.corrupt[corruption]
    foil = example.foil_ids
    if not foil and twin.answer_ids != example.answer_ids:
        foil = twin.answer_ids
    if len(twin.ids) != len(example.ids) or twin.ids == example.ids:
        what = "is the clean prompt" if twin.ids == example.ids else f"has {len(twin.ids)} tokens"
        raise UsageError(
            f"{example.task}: corruption '{corruption}' {what}; patching needs another one of {len(example.ids)} tokens"
        )
    clean = replace(example, foil_ids=foil)
    return clean, replace(clean, ids=twin.ids, text=twin.text, spans=twin.spans or example.spans)


def _metric(logits: torch.Tensor, example: Example, metric: str) -> float:
    value = score_answer(logits, example).get(metric)
    if value is None or np.isnan(value):
        raise UsageError(
            f"{example.task}: metric '{metric}' is not defined for its examples; give another metric"
        )
    return value


def _mean(rows: pd.DataFrame) -> pd.DataFrame:
    # At a position examples differ in token and role; where nothing else names the cell, the role does.
    cell = rows["role"].where(rows["position"] < 0, "")
    out = rows.groupby(
        [rows["kind"], rows["direction"], rows["layer"], rows["position"], cell.rename("cell"), rows["head"]],
        sort=False,
    ).agg(
        token=("token", _shared),
        role=("role", _shared),
        value=("value", "mean"),
        clean=("clean", "mean"),
        corrupt=("corrupt", "mean"),
        n=("value", "size"),
    )
    gap = out["clean"] - out["corrupt"]
    out["recovery"] = ((out["value"] - out["corrupt"]) / gap).where(gap.abs() > 1e-9)
    names = ["kind", "direction", "layer", "position", "token", "role", "head"]
    return out.reset_index()[[*names, "value", "clean", "corrupt", "recovery", "n"]]


def _shared(labels: pd.Series) -> str:
    return str(labels.iloc[0]) if labels.nunique() == 1 else ""
