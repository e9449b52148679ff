"""The residual stream of a planted model: orthogonal subspaces, token codes, and kernels that peak at one offset.

A planted model is written in *canonical* coordinates, where each subspace is a block of axes, and is then turned by a
random orthonormal basis, so that nothing in the finished weights is aligned with an axis. All columns of the basis
are orthogonal to the vector of ones: LayerNorm's centring then changes nothing, as RMSNorm never does.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

Array = np.ndarray

CODE = 24
"""Axes of a token code. Codes of different tokens have a cosine of at most `COHERENCE`."""

COHERENCE = 0.5

CONST = 4.0
"""Length of the direction that is the same everywhere; it keeps the norm of the residual stream about constant."""


def spread_codes(rng: np.random.Generator, n: int, dim: int = CODE) -> Float[Array, "n dim"]:
    """Unit vectors, no two of which have a cosine above `COHERENCE`."""
    kept = np.zeros((0, dim))
    while len(kept) < n:
        new = rng.standard_normal(dim)
        new /= np.linalg.norm(new)
        if not len(kept) or (kept @ new).max() <= COHERENCE:
            kept = np.vstack([kept, new])
    return kept


def orthonormal(rng: np.random.Generator, rows: int, cols: int) -> Float[Array, "rows cols"]:
    """Random matrix with orthonormal columns."""
    return np.linalg.qr(rng.standard_normal((rows, cols)))[0]


def residual_basis(rng: np.random.Generator, d_model: int) -> Float[Array, "d_model canon"]:
    """Orthonormal columns that span everything but the vector of ones; `canon` is `d_model - 1`."""
    start = np.column_stack([np.ones(d_model), rng.standard_normal((d_model, d_model - 1))])
    return np.linalg.qr(start)[0][:, 1:]


@dataclass(frozen=True)
class Kernel:
    """`k(x) = sum_f weight_f cos(freq_f x)`: 1 at x = 0, at most `1 - gap` at every other offset of the context."""

    freq: Float[Array, " f"]
    weight: Float[Array, " f"]
    gap: float


def _gap(freq: Array, weight: Array, context: int) -> float:
    away = np.arange(1, context)
    return float(1.0 - (np.cos(np.outer(away, freq)) @ weight).max())


def free_kernel(rng: np.random.Generator, n_freq: int, context: int, draws: int = 200) -> Kernel:
    """The best of many random kernels: for learned positions, whose frequencies may be chosen."""
    best: Kernel | None = None
    weight = np.full(n_freq, 1.0 / n_freq)
    for _ in range(draws):
        freq = rng.uniform(0.05, np.pi, n_freq)
        gap = _gap(freq, weight, context)
        if best is None or gap > best.gap:
            best = Kernel(freq, weight, gap)
    assert best is not None
    return best


def rotary_kernel(rng: np.random.Generator, freq: Array, context: int, draws: int = 400) -> Kernel:
    """The best weights for given frequencies: for rotary positions, whose frequencies come from the base."""
    best: Kernel | None = None
    for _ in range(draws):
        weight = rng.dirichlet(np.ones(len(freq)))
        gap = _gap(freq, weight, context)
        if best is None or gap > best.gap:
            best = Kernel(freq, weight, gap)
    assert best is not None
    return best


@dataclass(frozen=True)
class Canon:
    """Which canonical axes hold what.

    `token`, `previous` and `two_back` hold the codes of the tokens at this place, one and two places earlier; `output`
    is all that the unembedding reads; `carried` and `carried_key` hold codes of tokens far earlier, in models with
    semantic heads only (empty in others); `position` holds the kernel's pairs (cosines, then sines) and last a slow
    cosine, for learned positions only; `spare` is where heads write that should change nothing but the norm.
    """

    token: slice
    previous: slice
    two_back: slice
    output: slice
    carried: slice
    carried_key: slice
    position: slice
    const: int
    bos: int
    hot: int
    spare: slice
    size: int

    @staticmethod
    def of(d_model: int, n_position: int, *, carries: bool = False) -> Canon:
        """Lay the blocks out one after another in `d_model - 1` axes; what is left over is `spare`."""
        codes = 6 * CODE if carries else 4 * CODE
        at = codes + n_position
        if d_model - 1 < at + 4 + CODE:
            raise ValueError(f"d_model {d_model} has no room for the subspaces")
        token, previous, two_back, output = (slice(i * CODE, (i + 1) * CODE) for i in range(4))
        carried, carried_key = (slice(i * CODE, (i + 1) * CODE) if carries else slice(0, 0) for i in (4, 5))
        return Canon(
            token=token,
            previous=previous,
            two_back=two_back,
            output=output,
            carried=carried,
            carried_key=carried_key,
            position=slice(codes, at),
            const=at,
            bos=at + 1,
            hot=at + 2,
            spare=slice(at + 3, d_model - 1),
            size=d_model - 1,
        )
