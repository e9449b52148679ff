"""Composition scores between all heads: how much of what one writes another reads (Elhage et al. 2021).

    CS(s, r) = ||W_OV^s W_R^r|| / (||W_OV^s|| ||W_R^r||),   W_R = W_QK (Q), W_QK^T (K), W_OV (V), Frobenius lengths

It lies in [0, 1] and is 1 only between matrices of rank one that meet head on. `full` is this score. `side` takes only
the reader's own side (W_Q, W_K or W_V), which rotary positions leave as it is, so it is the default where a model
rotates; for V the two differ by what the reader makes of what it read. `offset` is the full score with the rotation in
its place, ||W_OV W_Q R_D W_K^T|| / (||W_OV|| ||W_Q R_D W_K^T||), at one offset D of query and key or as the ratio of
root mean squares over several.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from interp.errors import UsageError
from interp.locate.channels.factors import MODES, Factors, Mode, grouped_squares, spectrum, squares, triangle
from interp.locate.channels.null import haar
from interp.locate.channels.rotary import Offsets, Rotation
from interp.locate.channels.weights import Weights
from interp.models.subject import CausalLM

Score = Literal["full", "side", "offset"]
Progress = Callable[[int, int, str], None]


def composition(
    subject: CausalLM,
    modes: Sequence[Mode] = MODES,
    score: Score | None = None,
    *,
    offsets: Offsets | None = None,
    fold: bool = True,
    dtype: torch.dtype = torch.float32,
    anticausal: bool = True,
    weights: Weights | None = None,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Composition scores of all pairs of heads.

    Args:
        modes: through the reader's query, key or value.
        score: `full`, `side` or `offset`; default `side` where the model rotates queries and keys, else `full`.
        offsets: query position less key position, for `offset`: some, or each with its weight.
        fold: fold norms into readers; False takes the weights as they are.
        dtype: fp32 or better.
        anticausal: also pairs whose reader stands before or beside the writer. Nothing can flow there, so they are what
            the same weights score by chance.
        weights: the model's, if they are at hand; `fold` and `dtype` are then theirs.
        progress: told about layer pairs done.

    Raises:
        UsageError: offsets without score `offset`, or the other way around.

    Returns:
        writer, reader, writer_layer, reader_layer, mode, score (its name), value, expected and sd (of a random rotation
        between the two: `interp.locate.channels.null.haar`), z, alignment (squared score over the largest that the two
        spectra allow), causal (the writer lies in an earlier layer).
    """
    chosen: Score = score or ("side" if rotates(subject) else "full")
    if (offsets is not None) != (chosen == "offset"):
        raise UsageError("score 'offset' takes offsets, and no other score does; write offsets=[0, 1, 2, 3]")
    parts = [
        _frame(subject, *found, chosen)
        for found in blocks(
            weights or Weights(subject, fold, dtype), modes, chosen, anticausal, progress, offsets
        )
    ]
    return pd.concat(parts, ignore_index=True)


def rotates(subject: CausalLM) -> bool:
    """Whether positions turn queries and keys."""
    return any("rotary" in type(m).__name__.lower() for m in subject.hf.modules())


Scores = tuple[Mode, "np.ndarray", "np.ndarray", "np.ndarray", "np.ndarray"]
Block = tuple[int, int, Mode, "np.ndarray", "np.ndarray", "np.ndarray", "np.ndarray"]


def blocks(
    weights: Weights,
    modes: Sequence[Mode],
    score: Score,
    anticausal: bool = False,
    progress: Progress | None = None,
    offsets: Offsets | None = None,
) -> Iterator[Block]:
    """Scores of layer pairs, one block of writer heads x reader heads after another.

    In memory are the factors of one reader layer, those of one writer layer, and one product of theirs.

    Yields:
        writer layer, reader layer, mode, score, mean and sd of its square under a random rotation, alignment; w r each.
    """
    subject = weights.subject
    n = subject.n_layers
    total = n * n if anticausal else n * (n - 1) // 2
    done = 0
    for reader_layer in range(n):
        turn = None if offsets is None else (Rotation.of(subject, reader_layer), offsets)
        readers = Readers(Factors(weights.layer(reader_layer)), modes, score, turn)
        for writer_layer in range(n if anticausal else reader_layer):
            for found in readers.of(Factors(weights.layer(writer_layer))):
                yield writer_layer, reader_layer, *found
            done += 1
            if progress:
                progress(done, total, "layer pairs")


class Readers:
    """The heads of a layer as readers, to be held against writers of one layer after another.

    Args:
        factors: of the layer.
        modes: through the reader's query, key or value.
        score: `full` or `side`; `offset` with a rotation and offsets.
    """

    def __init__(
        self,
        factors: Factors,
        modes: Sequence[Mode] = MODES,
        score: Score = "full",
        turn: tuple[Rotation, Offsets] | None = None,
    ):
        self._sides = {mode: _Reader(factors, mode, score, turn) for mode in modes}

    def of(self, factors: Factors) -> Iterator[Scores]:
        """Scores of the writers of a layer.

        Yields:
            mode, score, mean and sd of its square under a random rotation, alignment; w r each.
        """
        writers = factors.writer
        written = spectrum(writers.mT)
        for mode, reader in self._sides.items():
            square = reader.squares(writers) / (written.sum(-1)[:, None] * reader.spectrum.sum(-1)[None])
            mean, sd, most = haar(written, reader.spectrum, writers.shape[-1])
            yield (
                mode,
                square.clamp(min=0).sqrt().numpy(),
                mean.numpy(),
                sd.numpy(),
                (square / most).numpy(),
            )


class _Reader:
    """The readers of a layer in one mode, and their spectra."""

    def __init__(
        self, factors: Factors, mode: Mode, score: Score, turn: tuple[Rotation, Offsets] | None = None
    ):
        heads = factors.heads
        self._product: torch.Tensor | None
        self._shared: torch.Tensor | None
        if turn is not None and mode != "V":
            # What the head reads with, times the mean second moment of the other side, rotated.
            rotation, offsets = turn
            other = heads.of_query_heads(heads.offered) if mode == "Q" else heads.asked
            self._own = rotation.mean(other.mT @ other, offsets, back=mode == "K")
            self._product = None
            self._shared = side = factors.side(mode)
            values, vectors = torch.linalg.eigh(self._own)
            root = vectors * values.clamp(min=0).sqrt()[:, None]
            own = side if mode == "Q" else heads.of_query_heads(side)
            self.spectrum = spectrum(own @ root)
            return
        if score == "side":
            own = factors.side(mode)
            self._product = own if mode == "Q" else None
            self._shared = None if mode == "Q" else own
            self._own = torch.eye(own.shape[-1], dtype=own.dtype, device=own.device).expand(
                len(heads.q), -1, -1
            )
            self.spectrum = spectrum(own) if mode == "Q" else heads.of_query_heads(spectrum(own))
            return
        self.spectrum = spectrum(factors.reader(mode))
        grouped = heads.share > 1 and mode != "Q"
        self._product = None if grouped else factors.reader(mode)
        self._shared = (heads.k if mode == "K" else heads.v) if grouped else None
        if grouped:
            ends = triangle(heads.asked) if mode == "K" else triangle(heads.o.mT)
            self._own = ends.mT @ ends

    def squares(self, writers: Float[torch.Tensor, "w k d"]) -> Float[torch.Tensor, "w r"]:
        """Squared lengths of what the writers write and these read."""
        if self._product is not None:
            return squares(writers, self._product)
        assert self._shared is not None
        return grouped_squares(writers, self._shared, self._own)


def _frame(
    subject: CausalLM,
    writer_layer: int,
    reader_layer: int,
    mode: Mode,
    value: np.ndarray,
    mean: np.ndarray,
    sd: np.ndarray,
    alignment: np.ndarray,
    score: Score,
) -> pd.DataFrame:
    n = subject.n_heads
    writer, reader = np.divmod(np.arange(n * n), n)
    return pd.DataFrame(
        {
            "writer": [f"L{writer_layer}H{h}" for h in writer],
            "reader": [f"L{reader_layer}H{h}" for h in reader],
            "writer_layer": writer_layer,
            "reader_layer": reader_layer,
            "mode": mode,
            "score": score,
            "value": value.reshape(-1).astype(float),
            "expected": np.sqrt(mean.reshape(-1).astype(float)),
            "z": ((value.astype(float) ** 2 - mean) / sd).reshape(-1),
            "alignment": alignment.reshape(-1).astype(float),
            "causal": writer_layer < reader_layer,
        }
    )
