"""Ties between heads, MLP neurons and tokens: cosines of what one writes and another reads.

A neuron writes one direction (its row of the down projection) and reads one, or two with its gate; a token's embedding
is written and its unembedding read. Heads write and read their singular components (`parts`). Any writer and any later
reader of these are two unit vectors, so all have the null of two random directions, and the counts of pairs that cannot
communicate. So the output of a fact's neuron and the query of a retrieval head can be held against each other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from interp.errors import UsageError
from interp.locate.channels.components import BINS, TILE
from interp.locate.channels.composition import rotates
from interp.locate.channels.factors import Factors
from interp.locate.channels.null import benjamini_hochberg, cosine_p, decoys
from interp.locate.channels.parts import Parts, Score, readers, writers
from interp.locate.channels.weights import Weights
from interp.models.subject import CausalLM

Writer = Literal["heads", "neurons", "embed"]
Reader = Literal["Q", "K", "V", "up", "gate", "logits"]
WRITERS: tuple[Writer, ...] = get_args(Writer)
READERS: tuple[Reader, ...] = get_args(Reader)
CHUNK = 4096
"""Directions on each side of one product."""
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, eq=False)
class Side:
    """Unit vectors of one layer that are written, or read.

    Attributes:
        kind: of writers, or the mode of readers.
        layer: -1 for embeddings, the number of layers for logits.
        at: when it happens, in half layers; what is written can be read later.
        parts: unit vectors, with the units that they belong to and their numbers in them.
    """

    kind: str
    layer: int
    at: float
    parts: Parts


def ties(
    subject: CausalLM,
    from_: Sequence[Writer] = WRITERS,
    to: Sequence[Reader] = READERS,
    *,
    tokens: Sequence[int] | None = None,
    top: int = 200,
    score: Score | None = None,
    fold: bool = True,
    anticausal: bool = True,
    weights: Weights | None = None,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """The strongest cosines between writers and later readers.

    Args:
        from_: `heads` (OV components), `neurons`, `embed` (tokens).
        to: through a head's `Q`, `K` or `V`, a neuron's `up` or `gate`, or the `logits` of tokens. Neurons without gate
            have `up` alone.
        tokens: ids that are embedded and unembedded; default all.
        top: how many of each kind of writer and mode are kept.
        score: components of QK (`full`) or of its side; default `side` where the model rotates queries and keys.
        fold: fold norms into readers; False takes the weights as they are.
        anticausal: also count pairs whose reader stands before the writer, for `p_null`.
        weights: the model's, if they are at hand; `fold` is then theirs.
        progress: told about layers of readers done.

    Returns:
        writer (`L5H3`, `M7`, `embed`), component (of the head, neuron, or token id), reader (`L9H2`, `L9KV0`, `M9`,
        `logits`), reader_component, writer_layer, reader_layer, kind (of the writer), mode, value (|cos|), p and q
        (random directions; Benjamini and Hochberg over all tests), p_null and q_null (`null.decoys`, from anti-causal
        pairs of the same kind and mode, p at the same distance in layers, where one layer is held against distance 1,
        q at all; NaN for tokens, which nothing stands behind); best first.

    Raises:
        UsageError: no writers, no readers, unknown ones, or nothing to keep.
    """
    if not from_ or not to or set(from_) - set(WRITERS) or set(to) - set(READERS) or top < 1:
        raise UsageError(
            f"ties from {from_!r} to {to!r}, top {top}: write some of {', '.join(WRITERS)}, "
            f"of {', '.join(READERS)}, and top >= 1"
        )
    own = weights or Weights(subject, fold)
    run = _Run(own, tuple(from_), tuple(to), tokens, score or ("side" if rotates(subject) else "full"))
    run.top, run.anticausal = top, anticausal
    for done, total in run.blocks():
        if progress:
            progress(done, total, "layers of readers")
    return run.result()


class _Run:
    """Cosines being gathered."""

    top: int
    anticausal: bool

    def __init__(
        self,
        weights: Weights,
        from_: tuple[Writer, ...],
        to: tuple[Reader, ...],
        tokens: Sequence[int] | None,
        score: Score,
    ):
        self.weights, self.from_, self.to, self.tokens, self.score = weights, from_, to, tokens, score
        self.tests = 0
        self.counts: dict[tuple[str, str, int], np.ndarray] = {}
        self.kept: dict[tuple[str, str], pd.DataFrame] = {}

    def blocks(self) -> Iterator[tuple[int, int]]:
        n = self.weights.subject.n_layers
        step = self._step()
        total, done = -(-n // step) * (n + 1), 0
        for first in range(0, n, step):
            tile = [side for i in range(first, min(first + step, n)) for side in self._writers(i)]
            if first == 0 and "embed" in self.from_:
                tile.append(Side("embed", -1, -1, self._token_parts(self.weights.embed(), "embed")))
            for j in range(n + 1):
                for reader in self._readers(j):
                    for writer in tile:
                        self._pair(writer, reader)
                done += 1
                yield done, total

    def _step(self) -> int:
        """Layers of writers that are held at once."""
        subject = self.weights.subject
        rows = subject.n_heads * subject.d_head * ("heads" in self.from_)
        rows += subject.d_mlp * ("neurons" in self.from_)
        size = max(rows, 1) * subject.d_model * self.weights.dtype.itemsize
        return max(1, min(subject.n_layers, TILE // size))

    def _writers(self, layer: int) -> Iterator[Side]:
        if "heads" in self.from_:
            yield Side("heads", layer, 2 * layer + 0.5, writers(Factors(self.weights.layer(layer))))
        if "neurons" in self.from_:
            yield Side(
                "neurons", layer, 2 * layer + 1.5, _single(self.weights.neurons(layer).out, f"M{layer}")
            )

    def _readers(self, layer: int) -> Iterator[Side]:
        subject = self.weights.subject
        if layer == subject.n_layers:
            if "logits" in self.to:
                yield Side("logits", layer, 2 * layer, self._token_parts(self.weights.unembed().mT, "logits"))
            return
        modes = [mode for mode in self.to if mode in ("Q", "K", "V")]
        if modes:
            factors = Factors(self.weights.layer(layer))
            for head_mode in modes:
                yield Side(head_mode, layer, 2 * layer, readers(factors, head_mode, self.score))
        if "up" in self.to or "gate" in self.to:
            neurons = self.weights.neurons(layer)
            # Beside the attention, not behind it: the two read the same stream.
            at = 2 * layer + (0 if subject.family.parallel else 1)
            for mode, read in (("up", neurons.up), ("gate", neurons.gate)):
                if mode in self.to and read is not None:
                    yield Side(mode, layer, at, _single(read.mT, f"M{layer}"))

    def _token_parts(self, rows: Float[torch.Tensor, "v d"], name: str) -> Parts:
        if self.tokens is None:
            return _single(rows, name)
        ids = torch.tensor(list(self.tokens), device=rows.device)
        found = _single(rows[ids], name)
        return Parts(found.rows, found.unit, ids[found.number], found.share, found.names)

    def _pair(self, writer: Side, reader: Side) -> None:
        causal, gap = writer.at < reader.at, reader.layer - writer.layer
        if not causal and (not self.anticausal or gap >= 0):
            return
        key = (writer.kind, reader.kind, max(gap, 1) if causal else gap)
        for a in range(0, len(writer.parts.rows), CHUNK):
            rows = writer.parts.rows[a : a + CHUNK]
            for b in range(0, len(reader.parts.rows), CHUNK):
                cosine = (rows @ reader.parts.rows[b : b + CHUNK].mT).abs_().clamp_(max=1)
                counts = torch.histc(cosine.float().cpu(), BINS, 0, 1).long().numpy()
                self.counts[key] = self.counts.get(key, 0) + counts
                if causal:
                    self.tests += cosine.numel()
                    self._keep(writer, reader, cosine, a, b)

    def _keep(self, writer: Side, reader: Side, cosine: Float[torch.Tensor, "n m"], a: int, b: int) -> None:
        key = (writer.kind, reader.kind)
        kept = self.kept.get(key)
        best = cosine.flatten().topk(min(self.top, cosine.numel()))
        if kept is not None and len(kept) == self.top:
            above = best.values > float(kept["value"].iloc[-1])
        else:
            above = torch.ones_like(best.values, dtype=torch.bool)
        if not bool(above.any()):
            return
        at = best.indices[above]
        i = torch.div(at, cosine.shape[1], rounding_mode="floor") + a
        j = at % cosine.shape[1] + b
        w, r = writer.parts, reader.parts
        rows = pd.DataFrame(
            {
                "writer": [w.names[u] for u in w.unit[i].tolist()],
                "component": w.number[i].tolist(),
                "reader": [r.names[u] for u in r.unit[j].tolist()],
                "reader_component": r.number[j].tolist(),
                "writer_layer": writer.layer,
                "reader_layer": reader.layer,
                "kind": writer.kind,
                "mode": reader.kind,
                "value": best.values[above].double().tolist(),
            }
        )
        rows = rows if kept is None else pd.concat([kept, rows])
        self.kept[key] = rows.nlargest(self.top, "value")

    def result(self) -> pd.DataFrame:
        if not self.kept:
            raise UsageError(
                f"nothing in {', '.join(self.from_)} stands before anything in {', '.join(self.to)}"
            )
        frame = pd.concat(list(self.kept.values()), ignore_index=True)
        frame["p"] = cosine_p(frame["value"].to_numpy(), self.weights.subject.d_model)
        frame["q"] = benjamini_hochberg(frame["p"].to_numpy(), self.tests)
        frame[["p_null", "q_null"]] = np.nan
        gap = (frame["reader_layer"] - frame["writer_layer"]).clip(lower=1)
        bins = (frame["value"] * BINS).astype(int).clip(upper=BINS - 1)
        for (kind, mode), own in frame.groupby(["kind", "mode"]):
            ahead, behind = (
                {x: c for (a, b, x), c in self.counts.items() if (a, b) == (kind, mode) and sign * x > 0}
                for sign in (1, -1)
            )
            if not behind:
                continue
            q = decoys(np.sum(list(ahead.values()), axis=0), np.sum(list(behind.values()), axis=0))[1]
            frame.loc[own.index, "q_null"] = q[bins[own.index]]
            for distance, rows in own.groupby(gap[own.index]):
                if -distance in behind:
                    p = decoys(ahead[distance], behind[-distance])[0]
                    frame.loc[rows.index, "p_null"] = p[bins[rows.index]]
        return frame.sort_values(["p", "value"], ascending=[True, False], ignore_index=True)


def _single(rows: Float[torch.Tensor, "n d"], name: str) -> Parts:
    """Directions of one unit, numbered as they stand; those without length are left out."""
    length = rows.norm(dim=1)
    number = (length > rows.shape[1] * torch.finfo(rows.dtype).eps * length.max()).nonzero()[:, 0]
    kept = length[number]
    share = kept.square() / kept.square().sum()
    return Parts(rows[number] / kept[:, None], torch.zeros_like(number), number, share, (name,))
