"""Do weights alone know the edges? Channel scores of all pairs against the edges that path patching found.

For a stage, a pair is a sender before the receiving heads with the best of its scores towards them; it is positive
where the path was chosen. A high AUROC may only say that both look at the same layers, so scores are permuted within
the senders' layers, and the AUROC of pairs within a layer is reported beside that of all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float

from interp.locate.channels.composition import composition, rotates
from interp.locate.channels.factors import Factors, Mode
from interp.locate.channels.null import without_hubs
from interp.locate.channels.parts import Parts, readers, writers
from interp.locate.channels.weights import Weights
from interp.models.cache import Progress
from interp.models.sites import Head
from interp.models.subject import CausalLM
from interp.tasks.base import stable_seed

SCORES = ("composition", "z", "alignment", "corrected", "component", "kernel")
"""Composition score, its z under random rotations, its share of the largest possible, the score without hubs, the best
component of the sender against the reader, and the projection kernel. Queries and keys by their side alone where the
model rotates them."""


def pair_scores(
    subject: CausalLM,
    wanted: Mapping[Mode, Sequence[Head]],
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Scores of all earlier heads towards the heads that are asked about.

    Args:
        wanted: readers by the input through which they read.

    Returns:
        writer, reader, writer_layer, reader_layer, mode and `SCORES`.
    """
    weights = Weights(subject)
    modes = [mode for mode, heads in wanted.items() if heads]
    names = ["writer", "reader", "writer_layer", "reader_layer", "mode"]
    if not modes:
        return pd.DataFrame(columns=[*names, *SCORES])
    pairs = without_hubs(composition(subject, modes, anticausal=False, weights=weights, progress=progress))
    asked = {(mode, repr(head)) for mode, heads in wanted.items() for head in heads}
    mine = [key in asked for key in zip(pairs["mode"], pairs["reader"], strict=True)]
    out = pairs[mine].rename(columns={"value": "composition"})
    senders: dict[int, Parts] = {}
    found: dict[tuple[str, str, str], tuple[float, float]] = {}
    for mode, heads in wanted.items():
        for head in heads:
            unit, reader = _reader(weights, subject, mode, head)
            for layer in range(head.layer):
                if layer not in senders:
                    senders[layer] = writers(Factors(weights.layer(layer)))
                best, kernel = _against(senders[layer], reader, unit)
                for i, name in enumerate(senders[layer].names):
                    found[name, repr(head), mode] = float(best[i]), float(kernel[i])
    keys = list(zip(out["writer"], out["reader"], out["mode"], strict=True))
    out = out.assign(component=[found[k][0] for k in keys], kernel=[found[k][1] for k in keys])
    return out[[*names, *SCORES]].reset_index(drop=True)


def _reader(weights: Weights, subject: CausalLM, mode: Mode, head: Head) -> tuple[int, Parts]:
    """The components that a head reads with, among those of its layer; a key of its group where that is shared."""
    found = readers(Factors(weights.layer(head.layer)), mode, "side" if rotates(subject) else "full")
    names = {repr(head), f"L{head.layer}KV{subject.kv_head(head.head)}"}
    return next(i for i, name in enumerate(found.names) if name in names), found


def _against(
    writer: Parts, reader: Parts, unit: int
) -> tuple[Float[torch.Tensor, " w"], Float[torch.Tensor, " w"]]:
    """Of each writing head, the best component's score towards a reader, and the projection kernel."""
    mine = reader.unit == unit
    square = (writer.rows @ reader.rows[mine].mT).square()
    reading = square @ reader.share[mine]
    best = torch.zeros(len(writer.names), dtype=reading.dtype).scatter_reduce(0, writer.unit, reading, "amax")
    kernel = writer.member.mT @ square.sum(1)
    return best.sqrt(), kernel


def auroc(score: Float[np.ndarray, " n"], positive: Bool[np.ndarray, " n"]) -> float:
    """Probability that a positive pair scores higher than a negative one; ties count half. NaN without both."""
    from scipy.stats import rankdata

    n, k = len(score), int(positive.sum())
    if not 0 < k < n:
        return float("nan")
    return float((rankdata(score)[positive].sum() - k * (k + 1) / 2) / (k * (n - k)))


def predicted(
    score: Float[np.ndarray, " n"],
    positive: Bool[np.ndarray, " n"],
    layer: Sequence[object] | np.ndarray,
    *,
    draws: int,
    seed: int = 0,
) -> dict[str, float]:
    """How well a score tells the positive pairs, and what scores permuted within layers give.

    Returns:
        auroc, expected (its mean over permutations), p (share of permutations that reach it, itself among them), within
        (AUROC of pairs of one layer, weighted by the pairs compared), n, positives.
    """
    value = auroc(score, positive)
    _, at = np.unique(np.asarray(layer), return_inverse=True)
    rng = np.random.default_rng(stable_seed("auroc", seed))
    groups = [np.flatnonzero(at == g) for g in range(at.max() + 1)]
    null = np.empty(draws)
    shuffled = np.array(score, dtype=float)
    for i in range(draws):
        for group in groups:
            shuffled[group] = score[rng.permutation(group)]
        null[i] = auroc(shuffled, positive)
    within, compared = 0.0, 0
    for group in groups:
        mine = positive[group]
        if weight := int(mine.sum() * (~mine).sum()):
            within += weight * auroc(score[group], mine)
            compared += weight
    told = not np.isnan(value)
    return {
        "auroc": value,
        "expected": float(null.mean()) if told else np.nan,
        "p": float((1 + (null >= value - 1e-12).sum()) / (1 + draws)) if told else np.nan,
        "within": within / compared if compared else np.nan,
        "n": len(score),
        "positives": int(positive.sum()),
    }
