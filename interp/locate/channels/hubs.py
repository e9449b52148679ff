"""Components that are read by everyone, and readers of everything: what a pair scores apart from its hubs.

In trained weights some directions are used by all heads. A component along one scores high with every reader, and that
is no channel between two of them. Log scores are taken as excess over what a random direction would have, and a pair
is expected to have what its component has with its median later reader, and its reader with the median earlier
component, in one additive table. Medians, since a channel to a few readers (the heads of one KV group read alike) must
not count as a hub of its own. They are read off a histogram of each component and reader; the table is never kept.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int
from scipy import stats

WIDTH, LOW, BINS = 0.05, -3.2, 128
"""Width of the bins of excess log scores, the low end of the first, and their number."""


class Hubs:
    """Histograms of the rows and columns of a table of excess log scores, block by block."""

    def __init__(self) -> None:
        self._rows: dict[int, np.ndarray] = {}
        self._columns: dict[int, np.ndarray] = {}

    def add(self, writer_layer: int, reader_layer: int, excess: Float[np.ndarray, "n u"]) -> None:
        """One causal layer pair: log scores of components and readers, less those of chance."""
        n, u = excess.shape
        bins = ((excess - LOW) / WIDTH).astype(int).clip(0, BINS - 1)
        for found, layer, at, size in (
            (self._rows, writer_layer, np.arange(n)[:, None], n),
            (self._columns, reader_layer, np.arange(u)[None], u),
        ):
            counts = np.bincount((at * BINS + bins).ravel(), minlength=size * BINS).reshape(size, BINS)
            found[layer] = found[layer] + counts if layer in found else counts

    def expected(
        self,
        writer_layer: int,
        reader_layer: int,
        writer: Int[np.ndarray, " m"],
        reader: Int[np.ndarray, " m"],
    ) -> Float[np.ndarray, " m"]:
        """Excess log scores that pairs of two layers have if they are like the others of their writers and readers.

        Args:
            writer, reader: numbers of the components and readers in their layers.
        """
        middle = _medians(sum(c.sum(0) for c in self._columns.values())[None])
        out: np.ndarray = (
            _medians(self._rows[writer_layer][writer])
            + _medians(self._columns[reader_layer][reader])
            - middle
        )
        return out


def _medians(counts: Int[np.ndarray, "n bins"]) -> Float[np.ndarray, " n"]:
    """Lower median of each histogram, the middle of its bin."""
    half = (counts.sum(1, keepdims=True) + 1) // 2
    out: np.ndarray = LOW + WIDTH * ((counts.cumsum(1) >= half).argmax(1) + 0.5)
    return out


def chance(spectrum: Float[np.ndarray, "n k"], d: int) -> Float[np.ndarray, " n"]:
    """Median log score of a random direction with a reader.

    Exact for a reader whose k singular values are equal, where the squared score is Beta(k/2, (d-k)/2) / k; others are
    taken for one of 1 / sum t^2 equal ones.

    Args:
        spectrum: squared singular values of each reader.
        d: width of the residual stream.
    """
    t = spectrum / spectrum.sum(-1, keepdims=True)
    k = 1 / np.square(t).sum(-1)
    out: np.ndarray = np.log(stats.beta.median(k / 2, (d - k) / 2) / k) / 2
    return out


def apart(value: Float[np.ndarray, " m"], expected: Float[np.ndarray, " m"]) -> Float[np.ndarray, " m"]:
    """Scores less what their hubs make of them; hubs of less than chance raise nothing, so no score grows."""
    out: np.ndarray = value * np.exp(-expected.clip(min=0))
    return out
