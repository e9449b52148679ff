"""What an engine is: one verb, `run(batch, taps)`, and the capabilities it declares.

A *tap* sits at a `Site`. It is a plain callable on the site's tensor: returning None records the tensor, returning a
tensor replaces it. `Record` and `Reduce` keep less than everything; `Edit` also sees the `Frame` (which columns of
which batch this forward pass covers), which position-wise interventions need. Several taps at one site run in the
order given, edits first where `run` composes them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
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
    """Attention rows of one layer, as a reducer gets them.

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
class Rows:
    """A request for attention rows: which query columns, and what to keep of them.

    Args:
        columns: query columns for each batch row, -1 where a row has fewer; shape (b, r).
        reduce: called once a layer inside the forward pass; default keeps the probabilities themselves.
        layers: which layers; default all.
    """

    columns: Int[torch.Tensor, "b r"]
    reduce: Callable[[RowBlock], Any] = lambda block: block.probs
    layers: frozenset[int] | None = None


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
