"""Channels: the outlying components of one reader as a subspace of the stream.

A channel is what a few components write and one reader reads: the span of the components' directions at the reader's
layer, one to three dimensional. Weights say that the reader would see it; whether it does is asked of data, see
`validation`.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import reduce
from typing import Literal

import pandas as pd
import torch
from jaxtyping import Float

from interp.errors import UsageError
from interp.intervene.base import Intervention
from interp.intervene.subspace import Subspace
from interp.locate.channels.components import ComponentScores
from interp.locate.channels.edits import ov_edit
from interp.locate.channels.factors import Factors, Mode
from interp.locate.channels.parts import writers
from interp.locate.channels.weights import Weights
from interp.models.sites import Head, Site

_READER = re.compile(r"^L(?P<layer>\d+)(?P<kind>H|KV)(?P<unit>\d+)$")


@dataclass(frozen=True, eq=False)
class Channel:
    """What some components of heads write and one reader reads.

    Attributes:
        reader: `L5H3`, or a KV group as `L5KV1`.
        mode: through its query, key or value.
        components: writing heads and numbers of their OV components, best first.
        space: span of what they write, in the coordinates of the stream that enters the reader's layer.
        scores: the rows of `ComponentScores.readers` that it was made of.
    """

    reader: str
    mode: Mode
    components: tuple[tuple[Head, int], ...]
    space: Subspace
    scores: pd.DataFrame

    @property
    def rank(self) -> int:
        """Number of dimensions."""
        return self.space.rank

    def __repr__(self) -> str:
        written = " + ".join(f"{head}.{i}" for head, i in self.components)
        return f"{written} -> {self.reader} ({self.mode}, {self.rank}d)"

    def cut(self, weights: Weights, factor: float = 0.0) -> Intervention:
        """The components deleted from what their heads write, or scaled; what the heads always write stays.

        Args:
            weights: those that the channel was found in.
            factor: of what is written along the components: 0 removes it, 2 adds it once more, 1 leaves it.

        Raises:
            UsageError: the factor is no number.
        """
        if not math.isfinite(factor):
            raise UsageError(f"{self}: factor={factor}; write a number: 0 removes the channel, 2 doubles it")
        scales: dict[Head, dict[int, float]] = {}
        for head, number in self.components:
            scales.setdefault(head, {})[number] = factor
        edits: list[Intervention] = [ov_edit(weights, head, own) for head, own in scales.items()]
        return reduce(lambda a, b: a + b, edits)

    def readers(self, weights: Weights) -> tuple[Head, ...]:
        """The query heads that read it: all of a KV group."""
        layer, kind, unit = _place(self.reader)
        if kind == "H":
            return (Head(layer, unit),)
        return tuple(
            Head(layer, h) for h in range(weights.subject.n_heads) if weights.subject.kv_head(h) == unit
        )


def channels(
    weights: Weights,
    scores: ComponentScores,
    *,
    level: float = 0.05,
    by: Literal["q", "q_null"] = "q",
    rank: int = 3,
    hubs: bool = False,
) -> list[Channel]:
    """Outlying components of each reader and mode, as subspaces; those with the best component first.

    Args:
        weights: those that the scores were made of.
        scores: of `component_scores`.
        level: components up to this q-value are outliers.
        by: q-values of random directions (`q`), or of anti-causal pairs (`q_null`).
        rank: components of a channel, at most; the best.
        hubs: take out hubs: components have to be outliers also apart from what they score with all readers, and their
            reader with all components (`hubs.apart`), and are ranked by that.

    Raises:
        UsageError: `rank` is not 1, 2 or 3.
    """
    if not 1 <= rank <= 3:
        raise UsageError(f"rank={rank}: channels have 1 to 3 dimensions")
    frame = scores.readers[scores.readers[by] <= level]
    if hubs:
        frame = frame[frame["q_apart"] <= level].sort_values(["p_apart", "apart"], ascending=[True, False])
    found = []
    vectors: dict[int, dict[tuple[int, int], torch.Tensor]] = {}
    for (reader, mode), own in frame.groupby(["reader", "mode"], sort=False):
        own = own.head(rank)
        components, rows = [], []
        for name, number, layer in zip(own["writer"], own["component"], own["writer_layer"], strict=True):
            if layer not in vectors:
                vectors[layer] = _written(weights, layer)
            head = Head(layer, _place(name)[2])
            components.append((head, int(number)))
            rows.append(vectors[layer][head.head, int(number)])
        space = Subspace.spanned(Site("resid_pre", _place(reader)[0]), torch.stack(rows))
        found.append(Channel(reader, mode, tuple(components), space, own))
    return found


def _written(weights: Weights, layer: int) -> dict[tuple[int, int], Float[torch.Tensor, " d"]]:
    parts = writers(Factors(weights.layer(layer)))
    places = zip(parts.unit.tolist(), parts.number.tolist(), strict=True)
    return dict(zip(places, parts.rows, strict=True))


def _place(name: str) -> tuple[int, str, int]:
    match = _READER.match(name)
    assert match is not None
    return int(match["layer"]), match["kind"], int(match["unit"])
