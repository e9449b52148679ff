"""What an engine is: one verb, `run(batch, taps)`, and the capabilities it declares.

A *tap* sits at a `Site`. It is a plain callable on the site's tensor: returning None records the tensor, returning a
tensor replaces it. `Record` and `Reduce` keep less than everything; `Edit` also sees the `Frame` (which columns of
which batch this forward pass covers), which position-wise interventions need. Several taps at one site run in the
order given, edits first where `run` composes them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int

from interp.errors import UsageError
from interp.models.batch import Batch
from interp.models.engines.resume import Checkpoint
from interp.models.sites import Site

PlainTap = Callable[[torch.Tensor], "torch.Tensor | None"]


@dataclass
class Frame:
    """One forward pass as its taps see it.

    Attributes:
        batch: the batch that is run.
        past: columns that lie in the KV cache; this pass covers columns `[past, past + width)`.
        width: columns of this pass.
        forwards: number of forward passes so far, this one included.
        cached: whether a KV cache is read and written.
    """

    batch: Batch
    past: int = 0
    width: int = 0
    forwards: int = 0
    cached: bool = False
    memo: dict[Any, Any] = field(default_factory=dict)

    @property
    def columns(self) -> slice:
        """Columns of the whole batch that this pass covers."""
        return slice(self.past, self.past + self.width)


class Edit(Protocol):
    """A tap that sees the frame; it returns the replacement, or None to leave the tensor as it is."""

    def edit(self, value: Any, frame: Frame) -> Any: ...


@dataclass(frozen=True)
class Record:
    """Keep a site's tensor: at all columns of the pass, or at the `positions` asked for.

    Args:
        positions: columns to keep for each row, shape (b, r).
    """

    positions: Int[torch.Tensor, "b r"] | None = None

    def read(self, value: torch.Tensor, frame: Frame) -> torch.Tensor:
        """The part that is kept."""
        if self.positions is None:
            return value.detach()
        # The tensor ends with the pass; of logits only the last columns are there.
        first = frame.past + frame.width - value.shape[1]
        index = self.positions.to(value.device) - first
        if bool(((index < 0) | (index >= value.shape[1])).any()):
            raise UsageError(
                f"columns {first} to {first + value.shape[1] - 1} are there to be recorded, others not"
            )
        rows = torch.arange(value.shape[0], device=value.device)[:, None]
        return value[rows, index].detach()


@dataclass(frozen=True)
class Reduce:
    """Keep `fn(value, frame)` in place of the tensor: statistics are reduced inside the forward pass."""

    fn: Callable[[torch.Tensor, Frame], Any]

    def read(self, value: torch.Tensor, frame: Frame) -> Any:
        """What is kept."""
        return self.fn(value, frame)


Tap = PlainTap | Record | Reduce | Edit
Taps = Mapping[Site, "Tap | Sequence[Tap]"]


@dataclass
class RowBlock:
    """Attention rows of one layer, as a reducer of whole rows gets them.

    Attributes:
        layer: the layer.
        probs: post-softmax attention of the rows asked for, in fp32; b h r k. Rows that were not asked for (padding
            of the request) hold zeros.
        frame: the pass.
    """

    layer: int
    probs: Float[torch.Tensor, "b h r k"]
    frame: Frame


@dataclass(frozen=True)
class RowShape:
    """What a streaming reducer is told of a layer's rows before the first block of keys.

    Attributes:
        layer: the layer.
        rows: how many rows there are: batch, heads, queries.
        keys: how many keys they run over.
        device: where their scores lie.
        frame: the pass.
    """

    layer: int
    rows: tuple[int, int, int]
    keys: int
    device: torch.device
    frame: Frame


@dataclass
class KeyBlock:
    """Scores of the rows over one block of keys; what several reducers need of it is computed once.

    Attributes:
        scores: scaled, softcapped and masked, before the softmax, in fp32; -inf where a key is invisible, and in all
            of a row that was not asked for. Not to be written to.
        first: column of the block's first key.
        values: values of the keys, in fp32, one a KV head of the heads that are read; only where a reducer
            `needs_values`.
    """

    scores: Float[torch.Tensor, "b h r k"]
    first: int
    values: Float[torch.Tensor, "b kv k d"] | None = None

    @cached_property
    def top(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Highest score of each row and its column; of equal scores the lowest column."""
        values, columns = self.scores.max(-1)
        return values, columns + self.first

    @cached_property
    def peak(self) -> Float[torch.Tensor, "b h r"]:
        """Highest score of each row; a finite number also where no key is visible."""
        return self.top[0].clamp(min=torch.finfo(torch.float32).min)

    @cached_property
    def weights(self) -> Float[torch.Tensor, "b h r k"]:
        """exp(scores - peak)."""
        return (self.scores - self.peak[..., None]).exp_()

    @cached_property
    def total(self) -> Float[torch.Tensor, "b h r"]:
        """Sum of the weights of each row."""
        return self.weights.sum(-1)


class Reduction(Protocol):
    """Rows of one layer being reduced, block of keys by block."""

    def update(self, block: KeyBlock) -> None:
        """Take in the next block; blocks come in the order of their keys."""

    def finish(self) -> Any:
        """The result."""


@runtime_checkable
class RowReducer(Protocol):
    """Reduces attention rows while they are computed, never whole; see `interp.trace.reducers`.

    Attributes `needs_scores` and `needs_values`, where a reducer has them and they are true, say that probabilities do
    not tell it enough: it reads the scores before the softmax, or the keys' values.
    """

    def begin(self, shape: RowShape) -> Reduction:
        """A reduction of one layer's rows."""


def _probs(block: RowBlock) -> torch.Tensor:
    return block.probs


@dataclass(frozen=True)
class Rows:
    """A request for attention rows: which query columns, and what to keep of them.

    Args:
        columns: query columns for each batch row, -1 where a row has fewer; shape (b, r).
        reduce: a streaming reducer, which gets the scores block by block of keys, or a function of whole rows; either
            runs once a layer inside the forward pass. Default keeps the probabilities themselves.
        layers: which layers; default those of `heads`, else all.
        heads: query heads to read, in this order, by layer; in a layer it does not name, all.

    Raises:
        UsageError: `heads` names a layer that `layers` leaves out.
    """

    columns: Int[torch.Tensor, "b r"]
    reduce: RowReducer | Callable[[RowBlock], Any] = _probs
    layers: frozenset[int] | None = None
    heads: Mapping[int, Sequence[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.heads and self.layers is None:
            object.__setattr__(self, "layers", frozenset(self.heads))
        if left := sorted(set(self.heads) - (self.layers or frozenset())):
            raise UsageError(f"rows of heads in layers {left}, but `layers` is {sorted(self.layers or ())}")


@dataclass
class Trace:
    """What a run returns.

    Attributes:
        logits: logits of the last `keep` columns, b keep v.
        rows: result of the row reducer, by layer.
        cache: KV cache after the run, where one was used.
        checkpoint: where a run that was stopped can go on.
        names: what the caller called the sites that are tapped.
    """

    logits: Float[torch.Tensor, "b keep v"]
    records: dict[Site, Any] = field(default_factory=dict)
    rows: dict[int, Any] = field(default_factory=dict)
    cache: Any = None
    checkpoint: Checkpoint | None = None
    names: dict[str, Site] = field(default_factory=dict)

    def __getitem__(self, site: Site | str) -> Any:
        return self.records[self._site(site)]

    def __contains__(self, site: Site | str) -> bool:
        return self._site(site) in self.records

    def _site(self, site: Site | str) -> Site:
        return self.names[site] if isinstance(site, str) and site in self.names else Site.parse(site)


@runtime_checkable
class Engine(Protocol):
    """Runs a model under taps.

    Capabilities: `rows` (attention rows; `hooks` makes no square matrix for them), `attention` (edits of q, k, v,
    mask), `cache` (KV cache in and out), `generate`, `grad`, `resume` (start and stop), `weights`. What an engine
    lacks it refuses by name.
    """

    name: str

    @property
    def capabilities(self) -> frozenset[str]: ...

    def run(
        self,
        batch: Batch,
        taps: Taps,
        *,
        rows: Rows | None = None,
        keep: int | None = None,
        cache: Any = None,
        use_cache: bool = False,
        mask: Any = None,
        past: int = 0,
        start: Checkpoint | None = None,
        stop: int | None = None,
    ) -> Trace: ...
