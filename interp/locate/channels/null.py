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
from jaxtyping import Float, Int
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


def reading_p(
    square: Float[np.ndarray, " n"], spectrum: Float[np.ndarray, "n k"], d: int
) -> Float[np.ndarray, " n"]:
    """P-value of the squared share of a reader's length that lies along one random direction.

    The share exceeds x where sum_j (t_j - x) z_j^2 > 0, with z standard normal and t the reader's normalised spectrum,
    zeros included. The tail is Lugannani and Rice's saddle-point approximation (1980): within about a tenth however
    far out, where moments matched to a Beta are off by orders of magnitude.

    Args:
        square: x of each test.
        spectrum: squared singular values of its reader.
        d: width of the residual stream.
    """
    # Near the middle the root of the saddle point lies below what fp32 can tell from 0.
    x, own = square.astype(np.float64), spectrum.astype(np.float64)
    t = own / own.sum(-1, keepdims=True)
    a, times = t - x[:, None], np.ones_like(t)
    if d > t.shape[1]:  # the directions that the reader does not see
        a = np.concatenate([a, -x[:, None]], 1)
        times = np.concatenate([times, np.full((len(x), 1), d - t.shape[1])], 1)
    top, bottom = a.max(-1), a.min(-1)
    out = np.where(top <= 0, 0.0, 1.0)
    inside = (top > 0) & (bottom < 0)
    a, times = a[inside], times[inside]
    low, high = 1 / (2 * bottom[inside]), 1 / (2 * top[inside])
    for _ in range(80):  # the derivative of the cumulant function rises from -inf to inf in between
        s = (low + high) / 2
        above = (times * a / (1 - 2 * s[:, None] * a)).sum(-1) > 0
        low, high = np.where(above, low, s), np.where(above, s, high)
    share = 1 - 2 * s[:, None] * a
    cumulant = -0.5 * (times * np.log(share)).sum(-1)
    w = np.sign(s) * np.sqrt(np.maximum(-2 * cumulant, 0))
    u = s * np.sqrt((times * 2 * (a / share) ** 2).sum(-1))
    skew = (times * 8 * a**3).sum(-1) / (times * 2 * a**2).sum(-1) ** 1.5
    middle = np.abs(w) < 1e-3  # the two terms below cancel there; this is their limit
    safe_w, safe_u = np.where(middle, 1.0, w), np.where(middle, 1.0, u)
    tail = stats.norm.sf(w) + stats.norm.pdf(w) * (1 / safe_u - 1 / safe_w)
    out[inside] = np.clip(np.where(middle, 0.5 - skew / (6 * np.sqrt(2 * np.pi)), tail), 0, 1)
    return out


def benjamini_hochberg(p: Float[np.ndarray, " n"], tests: int) -> Float[np.ndarray, " n"]:
    """q-values of some p-values out of more tests.

    Tests left out could only make them smaller, so they are never too small.

    Raises:
        ValueError: fewer tests than p-values.
    """
    if tests < len(p):
        raise ValueError(f"{len(p)} p-values cannot come out of {tests} tests")
    order = np.argsort(p, kind="stable")
    scaled = p[order] * tests / np.arange(1, len(p) + 1)
    q = np.empty(len(p))
    q[order] = np.minimum.accumulate(scaled[::-1])[::-1].clip(max=1)
    return q


def decoys(
    causal: Int[np.ndarray, " bins"], anticausal: Int[np.ndarray, " bins"]
) -> tuple[Float[np.ndarray, " bins"], Float[np.ndarray, " bins"]]:
    """P- and q-values of scores in each bin of a histogram, from that of pairs that cannot communicate.

    p = (1 + anti-causal pairs as high) / (1 + all of them) cannot be small enough for millions of tests. q is therefore
    the false discovery rate by counting, as with knockoffs (Barber and Candes 2015): at a threshold as many causal
    pairs are there by chance as anti-causal ones are, so q is the least (1 + anti-causal) / causal over all thresholds
    up to the score. A whole bin counts as as high.

    Args:
        causal, anticausal: counts by score, lowest first; of as many pairs.
    """
    above, null = (x[::-1].cumsum()[::-1] for x in (causal, anticausal))
    rate = (1 + null) / np.maximum(above, 1) * (causal.sum() / max(anticausal.sum(), 1))
    return (1 + null) / (1 + anticausal.sum()), np.minimum.accumulate(rate).clip(max=1)


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
