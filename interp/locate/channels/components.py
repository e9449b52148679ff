"""Which direction that a head writes is read by whom: scores of singular components, one by one.

The score of two heads is a mean over all pairs of components, CS^2 = sum s_i^2 t_j^2 <v_i, u_j>^2 / (sum s^2 sum t^2):
a channel of one direction drowns in it. Here each component v_i of a writer's OV is held against each reader,

    ||v_i^T W_R|| / ||W_R||   (a component and a reader),     |<v_i, u_j>|   (two components),

both from one product of orthonormal bases a layer pair, and so is the projection kernel, the sum of squared cosines of
the principal angles between what a head can write and what another can read. The matrix of all cosines is never kept:
of each kind the strongest, and a histogram of each layer pair.

Readers are the singular components of QK (Q and K) and OV (V). Where positions rotate queries and keys QK depends on
the offset, so there the reader is its side alone, W_Q or W_K (of a KV group: `L5KV1`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from scipy import stats

from interp.errors import UsageError
from interp.locate.channels.composition import rotates
from interp.locate.channels.factors import MODES, Factors, Mode
from interp.locate.channels.hubs import Hubs, apart, chance
from interp.locate.channels.null import benjamini_hochberg, cosine_p, decoys, haar, reading_p
from interp.locate.channels.parts import Parts, Score, readers, writers
from interp.locate.channels.weights import Weights
from interp.models.subject import CausalLM

BINS = 512
"""Bins of a histogram between 0 and 1."""
TILE = 2**28
"""Bytes of writers' components that are held at once."""
Kind = Literal["pairs", "readers"]
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, eq=False)
class ComponentScores:
    """The strongest components, and what is needed to judge them.

    Attributes:
        pairs: the strongest |cos| of each mode, best first: writer, component, reader, reader_component, writer_layer,
            reader_layer, mode, value, writer_share and reader_share (of their heads' squared lengths), p and q (exact
            null of random directions, Benjamini and Hochberg over all tests), p_null and q_null (from the anti-causal
            pairs of the same mode, p at the same distance in layers, q at all: `null.decoys`; NaN without).
        readers: the same of a component against a whole reader, without `reader_component` and `reader_share`; `p` is
            `null.reading_p`. Besides the strongest it holds the best of every writing head and of every reader.
            `apart` is the score less what its hubs make of it (`hubs.apart`), with p_apart and q_apart.
        kernel: projection kernel of all pairs: writer, reader, writer_layer, reader_layer, mode, value, expected (rank
            x rank / d), z, causal. `null.empirical` takes it.
        tests: number of causal pairs tested, by kind.
        histograms: counts in `BINS` bins between 0 and 1, by kind, mode, writer layer and reader layer.
        score: `full` or `side`, for Q and K.
        flags: what makes the scores of a layer approximate, see `LayerHeads`.
        d: width of the residual stream.
    """

    pairs: pd.DataFrame
    readers: pd.DataFrame
    kernel: pd.DataFrame
    tests: dict[Kind, int]
    histograms: dict[tuple[Kind, Mode, int, int], Int[np.ndarray, " bins"]] = field(repr=False)
    score: Score
    flags: dict[int, tuple[str, ...]]
    d: int

    def spectrum(self, mode: Mode) -> pd.DataFrame:
        """Cosines of all pairs of components in a mode, beside both nulls.

        Returns:
            low and high end of each bin, counts `causal` and `anticausal` (the reader in an earlier layer than the
            writer: what a head makes of its own values is no chance), and `expected`: what random directions would
            give of as many causal pairs.
        """
        causal, anti = np.zeros(BINS, int), np.zeros(BINS, int)
        for (kind, found, writer, reader), counts in self.histograms.items():
            if (kind, found) == ("pairs", mode) and writer != reader:
                (causal if writer < reader else anti)[:] += counts
        edges = np.linspace(0, 1, BINS + 1)
        mass = np.diff(stats.beta.cdf(edges**2, 0.5, (self.d - 1) / 2))
        return pd.DataFrame(
            {
                "low": edges[:-1],
                "high": edges[1:],
                "causal": causal,
                "anticausal": anti,
                "expected": causal.sum() * mass,
            }
        )


def component_scores(
    subject: CausalLM,
    modes: Sequence[Mode] = MODES,
    *,
    fold: bool = True,
    top: int = 200,
    score: Score | None = None,
    dtype: torch.dtype = torch.float32,
    anticausal: bool = True,
    weights: Weights | None = None,
    progress: Progress | None = None,
) -> ComponentScores:
    """Scores of the components of all heads against later heads, and of pairs of components.

    Args:
        modes: through the reader's query, key or value.
        fold: fold norms into readers; False takes the weights as they are.
        top: how many of each mode and kind are kept.
        score: components of QK (`full`) or of its side; default `side` where the model rotates queries and keys.
        dtype: fp32 or better.
        anticausal: also count pairs whose reader stands before or beside the writer, for `p_null`.
        weights: the model's, if they are at hand; `fold` and `dtype` are then theirs.
        progress: told about layer pairs done.

    Raises:
        UsageError: fewer than two layers, or nothing to keep.
    """
    if subject.n_layers < 2 or top < 1:
        raise UsageError("component scores take a model of two layers or more, and top >= 1")
    chosen: Score = score or ("side" if rotates(subject) else "full")
    run = _Run(subject, tuple(modes), chosen, weights or Weights(subject, fold, dtype), top, anticausal)
    for done, total in run.blocks():
        if progress:
            progress(done, total, "layer pairs")
    return run.result()


class _Run:
    """Scores being gathered, layer pair by layer pair."""

    def __init__(
        self,
        subject: CausalLM,
        modes: tuple[Mode, ...],
        score: Score,
        weights: Weights,
        top: int,
        anticausal: bool,
    ):
        self.subject, self.modes, self.score, self.weights = subject, modes, score, weights
        self.top, self.anticausal = top, anticausal
        self.tests: dict[Kind, int] = {"pairs": 0, "readers": 0}
        self.histograms: dict[tuple[Kind, Mode, int, int], np.ndarray] = {}
        self.kept: dict[tuple[Kind, Mode], pd.DataFrame] = {}
        self.spectra: dict[tuple[Mode, int], np.ndarray] = {}
        self.kernel: list[pd.DataFrame] = []
        self.hubs = {mode: Hubs() for mode in modes}
        self.flags: dict[int, tuple[str, ...]] = {}

    def blocks(self) -> Iterator[tuple[int, int]]:
        n = self.subject.n_layers
        total = n * n if self.anticausal else n * (n - 1) // 2
        done = 0
        size = self.subject.n_heads * self.subject.d_head * self.subject.d_model * self.weights.dtype.itemsize
        step = max(1, TILE // size)
        for first in range(0, n, step):
            tile = {i: writers(Factors(self.weights.layer(i))) for i in range(first, min(first + step, n))}
            for j in range(n):
                wanted = [i for i in tile if self.anticausal or i < j]
                if not wanted:
                    continue
                factors = Factors(self.weights.layer(j))
                self.flags[j] = factors.heads.flags
                for mode in self.modes:
                    reader = readers(factors, mode, self.score)
                    self.spectra[mode, j] = reader.spectra().double().numpy(force=True)
                    for i in wanted:
                        self._block(i, j, mode, tile[i], reader)
                done += len(wanted)
                yield done, total

    def _block(self, i: int, j: int, mode: Mode, writer: Parts, reader: Parts) -> None:
        """One layer pair: all squared cosines from one product, and what is kept of them."""
        square = (writer.rows @ reader.rows.mT).square_().clamp_(max=1)
        member = reader.member
        reading = square @ (member * reader.share[:, None])
        kernel = writer.member.mT @ square @ member
        self._count("pairs", mode, i, j, square)
        self._count("readers", mode, i, j, reading)
        self._kernel(i, j, mode, writer, reader, kernel)
        if i >= j:
            return
        found = square.flatten().topk(min(self.top, square.numel()))
        a, b = (
            torch.div(found.indices, square.shape[1], rounding_mode="floor"),
            found.indices % square.shape[1],
        )
        rows = self._rows(i, j, mode, writer, reader, a, reader.unit[b], found.values)
        rows["reader_component"], rows["reader_share"] = reader.number[b].tolist(), reader.share[b].tolist()
        self._keep("pairs", mode, rows)
        logs = reading.double().clamp(min=1e-24).log().numpy(force=True) / 2
        self.hubs[mode].add(i, j, logs - chance(self.spectra[mode, j], reader.rows.shape[1]))
        # Readers of different spectra differ in what is much for them: those furthest out are kept.
        mean, sd, _ = haar(square.new_ones(1, 1), reader.spectra(), reader.rows.shape[1])
        z = (reading.double() - mean) / sd.clamp(min=1e-12)
        at = _best(z, writer.unit, self.top)
        a, b = torch.div(at, z.shape[1], rounding_mode="floor"), at % z.shape[1]
        rows = self._rows(i, j, mode, writer, reader, a, b, reading[a, b])
        rows["z"], rows["at"], rows["unit"] = z[a, b].tolist(), a.tolist(), b.tolist()
        self._keep("readers", mode, rows)

    def _rows(
        self,
        i: int,
        j: int,
        mode: Mode,
        writer: Parts,
        reader: Parts,
        a: torch.Tensor,
        unit: torch.Tensor,
        square: torch.Tensor,
    ) -> pd.DataFrame:
        return pd.DataFrame(
            {
                "writer": [writer.names[h] for h in writer.unit[a].tolist()],
                "component": writer.number[a].tolist(),
                "reader": [reader.names[h] for h in unit.tolist()],
                "writer_layer": i,
                "reader_layer": j,
                "mode": mode,
                "value": square.double().sqrt().tolist(),
                "writer_share": writer.share[a].tolist(),
            }
        )

    def _count(self, kind: Kind, mode: Mode, i: int, j: int, square: torch.Tensor) -> None:
        value = square.sqrt().float().cpu()
        counts = torch.histc(value, BINS, 0, 1).long().numpy()
        self.histograms[kind, mode, i, j] = counts
        if i < j:
            self.tests[kind] += value.numel()

    def _keep(self, kind: Kind, mode: Mode, rows: pd.DataFrame) -> None:
        rows = pd.concat([self.kept[kind, mode], rows]) if (kind, mode) in self.kept else rows
        rows = rows.sort_values("value" if kind == "pairs" else "z", ascending=False, ignore_index=True)
        kept = rows.index < self.top
        if kind == "readers":
            kept |= ~rows["writer"].duplicated() | ~rows["reader"].duplicated()
        self.kept[kind, mode] = rows[kept]

    def _kernel(
        self, i: int, j: int, mode: Mode, writer: Parts, reader: Parts, kernel: Float[torch.Tensor, "w r"]
    ) -> None:
        d = writer.rows.shape[1]
        ranks = [parts.member.sum(0).double() for parts in (writer, reader)]
        size = ranks[0][:, None] * ranks[1][None]
        # The share of it, kernel / size, is the squared composition score of two flat spectra.
        spread = [(1 / rank - 1 / d).clamp(min=0) for rank in ranks]
        sd = size * (2 * spread[0][:, None] * spread[1][None] / ((d - 1) * (d + 2))).sqrt()
        w, r = np.divmod(np.arange(size.numel()), size.shape[1])
        value, expected = kernel.double().flatten(), (size / d).flatten()
        self.kernel.append(
            pd.DataFrame(
                {
                    "writer": [writer.names[h] for h in w],
                    "reader": [reader.names[h] for h in r],
                    "writer_layer": i,
                    "reader_layer": j,
                    "mode": mode,
                    "value": value.tolist(),
                    "expected": expected.tolist(),
                    "z": ((value - expected) / sd.flatten().clamp(min=1e-12)).tolist(),
                    "causal": i < j,
                }
            )
        )

    def result(self) -> ComponentScores:
        pairs = pd.concat([self.kept["pairs", m] for m in self.modes], ignore_index=True)
        single = pd.concat([self.kept["readers", m] for m in self.modes], ignore_index=True)
        d = self.subject.d_model
        pairs["p"] = cosine_p(pairs["value"].to_numpy(), d)
        single[["p", "apart", "p_apart"]] = np.nan
        for (mode, i, j), rows in single.groupby(["mode", "writer_layer", "reader_layer"]):
            unit, value = rows["unit"].to_numpy(), rows["value"].to_numpy()
            spectra = self.spectra[mode, j][unit]
            alone = apart(value, self.hubs[mode].expected(i, j, rows["at"].to_numpy(), unit))
            single.loc[rows.index, "p"] = reading_p(value**2, spectra, d)
            single.loc[rows.index, "apart"] = alone
            single.loc[rows.index, "p_apart"] = reading_p(alone**2, spectra, d)
        single = single.drop(columns=["z", "at", "unit"])
        single["q_apart"] = benjamini_hochberg(single["p_apart"].to_numpy(), self.tests["readers"])
        return ComponentScores(
            self._judged("pairs", pairs),
            self._judged("readers", single),
            pd.concat(self.kernel, ignore_index=True),
            self.tests,
            self.histograms,
            self.score,
            self.flags,
            d,
        )

    def _judged(self, kind: Kind, frame: pd.DataFrame) -> pd.DataFrame:
        """With q-values and the empirical null, best first."""
        tests = self.tests[kind]
        p_null, q_null = self._among_anticausal(kind, frame)
        frame = frame.assign(q=benjamini_hochberg(frame["p"].to_numpy(), tests), p_null=p_null, q_null=q_null)
        return frame.sort_values(["p", "value"], ascending=[True, False], ignore_index=True)

    def _among_anticausal(self, kind: Kind, frame: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
        """P-values from the anti-causal scores of the same mode and distance, q-values from those of all distances.

        There are as many anti-causal pairs at each distance as causal ones, so their sums are matched too.
        """
        p, q = np.full(len(frame), np.nan), np.full(len(frame), np.nan)
        if not self.anticausal:
            return p, q
        counts: dict[tuple[Mode, int], np.ndarray] = {}
        for (found, mode, i, j), own in self.histograms.items():
            if found == kind:
                counts[mode, j - i] = counts.get((mode, j - i), 0) + own
        gap = (frame["reader_layer"] - frame["writer_layer"]).to_numpy()
        bins = (frame["value"].to_numpy() * BINS).astype(int).clip(max=BINS - 1)
        for mode in self.modes:
            own = (frame["mode"] == mode).to_numpy()
            ahead, behind = (
                np.sum([c for (found, x), c in counts.items() if found == mode and sign * x > 0], axis=0)
                for sign in (1, -1)
            )
            q[own] = decoys(ahead, behind)[1][bins[own]]
            for distance in set(gap[own].tolist()):
                rows = own & (gap == distance)
                p[rows] = decoys(counts[mode, distance], counts[mode, -distance])[0][bins[rows]]
        return p, q


def _best(z: Float[torch.Tensor, "n u"], unit: Int[torch.Tensor, " n"], top: int) -> Int[torch.Tensor, " m"]:
    """Flat places of the highest of a block, and of the highest of each writing unit and of each reader."""
    flat = z.flatten()
    order = z.amax(1).argsort(descending=True)
    _, first = np.unique(unit[order].numpy(force=True), return_index=True)
    rows = order[torch.from_numpy(first).to(order.device)]
    columns = torch.arange(z.shape[1], device=z.device)
    own = [rows * z.shape[1] + z[rows].argmax(1), z.argmax(0) * z.shape[1] + columns]
    return torch.cat([flat.topk(min(top, len(flat))).indices, *own]).unique()
