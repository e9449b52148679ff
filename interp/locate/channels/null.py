"""What composition scores are by chance: under a random rotation, and among pairs that cannot communicate.

The first null is exact and costs nothing: the mean and variance of a squared score when a uniformly random (Haar)
rotation stands between writer and reader. In trained weights nearly every pair beats it, because all heads share the
directions that all tokens use. The second null is therefore taken from the same weights: scores of anti-causal pairs,
at the same distance in layers.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from scipy import stats


def haar(
    writer: Float[torch.Tensor, "w k"], reader: Float[torch.Tensor, "r m"], d: int
) -> tuple[Float[torch.Tensor, "w r"], Float[torch.Tensor, "w r"], Float[torch.Tensor, "w r"]]:
    """Moments of squared composition scores under a random rotation, and their largest value.

    With A and B the normalised second moments of writer and reader (trace 1), CS^2 = tr(A B), and over rotations
    E = 1/d and Var = 2 (tr A^2 - 1/d)(tr B^2 - 1/d) / ((d - 1)(d + 2)). The largest value is that of aligned spectra
    (von Neumann's trace inequality).

    Args:
        writer, reader: squared singular values.
        d: width of the residual stream.

    Returns:
        mean, standard deviation, largest value.
    """
    a, b = (x.double() / x.double().sum(-1, keepdim=True) for x in (writer, reader))
    mean = torch.full((len(a), len(b)), 1.0 / d, dtype=torch.float64, device=a.device)
    spread_a, spread_b = ((x.square().sum(-1) - 1.0 / d).clamp(min=0) for x in (a, b))
    variance = 2 * spread_a[:, None] * spread_b[None] / ((d - 1) * (d + 2))
    n = min(a.shape[-1], b.shape[-1])
    most = a.sort(descending=True).values[:, :n] @ b.sort(descending=True).values[:, :n].mT
    return mean, variance.sqrt(), most


def cosine_p(cosine: np.ndarray, d: int) -> np.ndarray:
    """P-value of a cosine of two rank-one components: its square is Beta(1/2, (d-1)/2) under a random rotation."""
    out: np.ndarray = stats.beta.sf(np.square(cosine), 0.5, (d - 1) / 2)
    return out


def empirical(frame: pd.DataFrame, column: str = "value") -> pd.DataFrame:
    """Causal pairs with a p-value from the anti-causal pairs of the same mode and distance in layers, and its q-value.

    The null of a pair at distance x is all pairs at distance -x (the same two layers' gap, the other way around), and
    p = (1 + those at least as high) / (1 + all). q-values are Benjamini and Hochberg's over the causal pairs of a mode.

    Args:
        frame: of `composition`, with anti-causal pairs.
        column: what is compared: `value`, `alignment`, or `corrected` of `without_hubs`.

    Returns:
        the causal rows with `null_n`, `p` and `q`.

    Raises:
        ValueError: there are no anti-causal pairs.
    """
    gap = frame["reader_layer"] - frame["writer_layer"]
    if not (gap < 0).any():
        raise ValueError("the frame has no anti-causal pairs; compute it with anticausal=True")
    out = []
    for _, own in frame.groupby("mode", sort=False):
        distance = gap[own.index]
        for x in sorted(set(distance[distance > 0])):
            null = np.sort(own.loc[distance == -x, column].to_numpy())
            seen = own[distance == x].copy()
            higher = len(null) - np.searchsorted(null, seen[column].to_numpy(), side="left")
            seen["null_n"] = len(null)
            seen["p"] = (1 + higher) / (1 + len(null))
            out.append(seen)
    found = pd.concat(out)
    found["q"] = found.groupby("mode")["p"].transform(lambda p: stats.false_discovery_control(p))
    return found.sort_index()


def without_hubs(frame: pd.DataFrame) -> pd.DataFrame:
    """With a column `corrected`: the log score less what its writer and its reader score on average.

    Some heads write into, or read from, what all others use; their scores are high with everyone. Effects of writers
    and readers are means over the causal pairs of a mode that each takes part in, fitted together by least squares.
    """
    out = frame.copy()
    out["corrected"] = np.nan
    for _, own in frame.groupby("mode", sort=False):
        causal = own["causal"].to_numpy()
        logs = np.log(own["value"].clip(lower=1e-12).to_numpy())
        writers, w = np.unique(own["writer"], return_inverse=True)
        readers, r = np.unique(own["reader"], return_inverse=True)
        row, col = np.zeros(len(writers)), np.zeros(len(readers))
        mean = logs[causal].mean()
        for _ in range(50):  # alternating least squares of a two-way table with holes
            before = row.copy()
            row = _means(logs[causal] - mean - col[r[causal]], w[causal], len(writers))
            col = _means(logs[causal] - mean - row[w[causal]], r[causal], len(readers))
            if np.abs(row - before).max() < 1e-10:
                break
        out.loc[own.index, "corrected"] = logs - mean - row[w] - col[r]
    return out


def _means(values: np.ndarray, at: np.ndarray, n: int) -> np.ndarray:
    counts = np.bincount(at, minlength=n)
    out: np.ndarray = np.bincount(at, weights=values, minlength=n) / np.maximum(counts, 1)
    return out
