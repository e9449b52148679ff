"""Channels: the outlying components of one reader as a subspace of the stream, and what attention makes of it.

A channel is what a few components write and one reader reads: the span of the components' directions at the reader's
layer, one to three dimensional. Weights say that the reader would see it. Whether it does is asked of data: with the
components deleted, how does the reader's attention change?
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Literal

import pandas as pd
import torch
from jaxtyping import Float

from interp.errors import UsageError
from interp.intervene.base import Intervention
from interp.intervene.subspace import Subspace
from interp.locate.channels.components import ComponentScores, writers
from interp.locate.channels.edits import ov_edit
from interp.locate.channels.factors import Factors, Mode
from interp.locate.channels.weights import Weights
from interp.models.batch import role_tokens
from interp.models.engines.base import Rows
from interp.models.sites import Head, Site
from interp.tasks.base import Example

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

    def cut(self, weights: Weights) -> Intervention:
        """The components deleted from what their heads write; what the heads always write stays."""
        scales: dict[Head, dict[int, float]] = {}
        for head, number in self.components:
            scales.setdefault(head, {})[number] = 0.0
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
) -> list[Channel]:
    """Outlying components of each reader and mode, as subspaces; those with the best component first.

    Args:
        weights: those that the scores were made of.
        scores: of `component_scores`.
        level: components up to this q-value are outliers.
        by: q-values of random directions (`q`), or of anti-causal pairs (`q_null`).
        rank: components of a channel, at most; the best.

    Raises:
        UsageError: `rank` is not 1, 2 or 3.
    """
    if not 1 <= rank <= 3:
        raise UsageError(f"rank={rank}: channels have 1 to 3 dimensions")
    frame = scores.readers[scores.readers[by] <= level]
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


def attention_change(weights: Weights, channel: Channel, examples: Sequence[Example]) -> pd.DataFrame:
    """How the attention of a channel's reader changes when the channel is cut, at the last token of each prompt.

    Args:
        weights: those that the channel was found in.
        channel: through queries or keys.
        examples: prompts; run as one batch.

    Returns:
        one row an example, reading head and span role: example, reader, role (`` for the whole row), before and after
        (attention on the role's tokens), change, moved (total variation distance of the two rows).

    Raises:
        UsageError: a channel through values, which attention does not show.
    """
    if channel.mode == "V":
        raise UsageError(
            f"{channel}: attention does not show what is read through values; measure the output"
        )
    subject = weights.subject
    batch = subject.batch(examples, forced=False)
    heads = channel.readers(weights)
    layer = heads[0].layer
    columns = torch.full((len(examples), 1), batch.width - 1)
    rows = Rows(columns, heads={layer: [h.head for h in heads]})
    before = subject.run(batch, rows=rows, keep=1).rows[layer]
    with subject.apply(channel.cut(weights)):
        after = subject.run(batch, rows=rows, keep=1).rows[layer]
    found = []
    for n, example in enumerate(examples):
        pad = int(batch.pad[n])
        roles = {"": list(range(len(example.ids)))}
        roles |= {role: role_tokens(example, role) for role in sorted({span.role for span in example.spans})}
        for k, head in enumerate(heads):
            a, b = before[n, k, 0].double().cpu(), after[n, k, 0].double().cpu()
            moved = float((a - b).abs().sum() / 2)
            for role, tokens in roles.items():
                at = torch.tensor(tokens, dtype=torch.long) + pad
                low, high = float(a[at].sum()), float(b[at].sum())
                found.append(
                    {"example": n, "reader": repr(head), "role": role, "before": low, "after": high}
                    | {"change": high - low, "moved": moved}
                )
    return pd.DataFrame(found)
