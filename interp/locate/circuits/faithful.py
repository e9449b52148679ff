"""Faithfulness: how much of a model's behaviour the first items of an order carry, as curves and their areas.

f = (m(circuit) - m(empty)) / (m(full) - m(empty)), m being the metric's mean over examples, everything outside the
circuit ablated at once and exactly: edges (`interp.locate.circuits.patched`) or nodes. The sizes and the two areas are
those of MIB (Mueller et al. 2025, arXiv 2504.13151): CPR, the area under f (high where few items carry much of the
behaviour, or more than all of it), and CMD, the area under |1 - f| (0 where every size behaves as the model does), by
trapezoids over the share of items, from the first size to the last. With all edges f is 1 and without any 0 by
definition; nodes keep the clean embeddings, which the empty circuit does not, so that levels share their zero.

The ablation is part of the result: with `resample` items outside carry the values of the example's corrupt twin, so the
question is what tells the two apart; with `mean` those of a reference set. A circuit is only as good as random orders
are bad: `controls` draws them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int

from interp.errors import UsageError
from interp.intervene.ablate import ablate
from interp.intervene.base import Intervention
from interp.intervene.put import Put, Values
from interp.intervene.reference import Reference
from interp.locate.circuits.circuit import By, ranked
from interp.locate.circuits.graph import Edge, Graph, Logits, Node, edge, node
from interp.locate.circuits.patched import EdgeRuns
from interp.locate.circuits.streams import Ablation, Pairs, Written, instead, questions, source_of
from interp.measure.metrics import METRICS
from interp.measure.stats import LEVEL
from interp.models.sites import MLP, Head, Site
from interp.models.subject import CausalLM
from interp.tasks.base import Example, Task, stable_seed

SIZES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Shares of all items at which MIB reads the curve."""

RESAMPLES = 2000
Level = Literal["edge", "node"]
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, eq=False)
class Faithfulness:
    """Curves of an order and of its random controls.

    Attributes:
        frame: one row an order and size: order (its name, or `random 0`, ...), level, ablation, reference, metric,
            share, items, kept (those that are left where only connected edges count), value (mean metric), f, ci_lo,
            ci_hi (95 %, clusters resampled), n, n_clusters.
        areas: one row an order: order, cpr, cpr_lo, cpr_hi, cmd, cmd_lo, cmd_hi.
        full, empty: mean metric with everything, and with nothing.
    """

    frame: pd.DataFrame
    areas: pd.DataFrame
    full: float
    empty: float

    @property
    def cpr(self) -> float:
        """Area under f of the order itself."""
        return float(self.areas["cpr"].iloc[0])

    @property
    def cmd(self) -> float:
        """Area under |1 - f| of the order itself."""
        return float(self.areas["cmd"].iloc[0])


def faithfulness(
    subject: CausalLM,
    task: Task | Sequence[Example],
    order: pd.DataFrame | Iterable[str | Edge | Node],
    *,
    ablation: Ablation = "resample",
    reference: Reference | Task | Sequence[Example] | None = None,
    corruption: str | None = None,
    sizes: Sequence[float] = SIZES,
    by: By = "size",
    connected: bool = False,
    controls: int = 0,
    metric: str = "logit_diff",
    name: str = "order",
    seed: int = 0,
    tokens: int | None = None,
    progress: Progress | None = None,
) -> Faithfulness:
    """Curve, CPR and CMD of an order of edges or nodes.

    Args:
        order: scores of `edge_scores` or `node_scores`, or edges or nodes in order. What it lacks comes last.
        ablation: what items outside the circuit carry: `resample` or `mean`.
        reference: for `mean`: which data; default the examples themselves, pooled.
        corruption: for `resample`: which corrupt twin; default the first that all examples have.
        sizes: shares of all items, rising; each is rounded down to whole items.
        by: how scores are ordered: `size` or `loss`; see `ranked`.
        connected: drop edges on no path from the embeddings to the logits before running. Resampled they carry nothing,
            and the curve stays; a writer whose inputs are means does not write its mean, and with means it changes.
        controls: so many random orders of the same items.
        metric: of `interp.measure.metrics`.
        name: of the order, in the frame.
        seed: of the random orders and of the resampling.
        tokens: padded tokens of a batch, at most.
        progress: told about runs.

    Raises:
        UsageError: edges of a post-norm family, sizes that do not rise, items named twice, no such metric, ...

    Example:
        faithfulness(model, task, edge_scores(model, task), controls=3).areas
    """
    if metric not in METRICS:
        raise UsageError(f"faithfulness: no metric '{metric}'; take {', '.join(METRICS)}")
    if not len(sizes) or any(not 0 <= s <= 1 for s in sizes) or list(sizes) != sorted(set(sizes)):
        raise UsageError(
            f"sizes={tuple(sizes)}: write shares of all items from 0 to 1, each above the one before"
        )
    examples, twin = questions(subject, task, corruption)
    source = source_of(examples, ablation, reference, twin)
    names = ranked(order, by) if isinstance(order, pd.DataFrame) else [str(i) for i in order]
    level: Level = "edge" if any("->" in i for i in names) else "node"
    if connected and level == "node":
        raise UsageError("nodes have no edges that could connect them; leave connected=False")
    graph = Graph.of(subject, edges=level == "edge")
    orders = {name: _complete(graph, level, names)}
    size = len(orders[name])
    for draw in range(controls):
        rng = np.random.default_rng(stable_seed("faithfulness", seed, draw))
        orders[f"random {draw}"] = rng.permutation(size)
    counts = [int(s * size + 1e-9) for s in sizes]
    circuits = [_circuit(graph, level, ranks[:k], connected) for ranks in orders.values() for k in counts]
    # Orders end alike, and small sizes can be the same number of items: each circuit is run once.
    known: dict[bytes, int] = {}
    which = [known.setdefault(c.tobytes(), len(known)) for c in circuits]
    distinct = [circuits[which.index(i)] for i in range(len(known))]
    values = np.zeros((2 + len(distinct), len(examples)))
    batches = list(Pairs.of(subject, examples, twin, tokens))
    run = _edge_runs if level == "edge" else _node_runs
    done = 0
    for group, pairs in batches:
        for i, logits in run(subject, pairs, distinct, source):
            values[i, group] = pairs.scores(logits, metric)
            done += 1
            if progress:
                progress(done, len(batches) * len(values), "runs")
    values = values[[0, 1, *(2 + i for i in which)]]
    clusters = [e.cluster or e.key() for e in examples]
    about = {"level": level, "ablation": ablation, "reference": source.name, "metric": metric}
    rows = [
        {"order": label, **about, "share": s, "items": k}
        for label in orders
        for s, k in zip(sizes, counts, strict=True)
    ]
    frame = pd.DataFrame(rows).assign(kept=[int(c.sum()) - (level == "node") for c in circuits])
    curves = _Curves.of(values, clusters, seed)
    frame = frame.assign(value=values[2:].mean(1), f=curves.f, ci_lo=curves.low(), ci_hi=curves.high())
    frame = frame.assign(n=len(examples), n_clusters=len(set(clusters)))
    areas = pd.DataFrame([{"order": label, **curves.areas(i, sizes)} for i, label in enumerate(orders)])
    return Faithfulness(frame, areas, float(values[0].mean()), float(values[1].mean()))


# -- items -----------------------------------------------------------------------------------------------------------


def _complete(graph: Graph, level: Level, names: Sequence[str]) -> Int[np.ndarray, " n"]:
    """Numbers of the items in their order, those that it lacks behind them.

    An edge's number counts the edges of the graph, a node's its heads and MLPs.
    """
    if level == "edge":
        edges = [edge(n) for n in names]
        graph.matrix(edges)  # they are all of this graph
        first = np.cumsum(graph.seen) - graph.seen
        ranks = np.array(
            [first[graph.reader_at[e.reader]] + graph.writer_at[e.writer] for e in edges], dtype=int
        )
        size = graph.n_edges
    else:
        nodes = [node(n) for n in names]
        for unknown in sorted(set(nodes) - set(graph.writers) - {Logits()}, key=repr):
            raise UsageError(f"no node {unknown} in {graph}")
        # Embeddings and logits are part of every circuit of nodes.
        ranks = np.array([graph.writer_at[n] - 1 for n in nodes if isinstance(n, Head | MLP)], dtype=int)
        size = len(graph.writers) - 1
    if len(set(ranks.tolist())) < len(ranks):
        raise UsageError(f"an order names each {level} once")
    return np.concatenate([ranks, np.setdiff1d(np.arange(size), ranks)])


def _circuit(graph: Graph, level: Level, ranks: Int[np.ndarray, " k"], connected: bool) -> np.ndarray:
    """The matrix of edges, or for each writer whether it is kept (the embeddings always are)."""
    if level == "node":
        kept = np.zeros(len(graph.writers), dtype=bool)
        kept[0] = True
        kept[1 + ranks] = True
        return kept
    chosen = np.zeros(graph.n_edges, dtype=bool)
    chosen[ranks] = True
    matrix = np.zeros_like(graph.full)
    matrix[graph.full] = chosen
    return graph.connected(matrix) if connected else matrix


# -- runs ------------------------------------------------------------------------------------------------------------

_Runs = Iterator[tuple[int, torch.Tensor]]


def _edge_runs(subject: CausalLM, pairs: Pairs, circuits: Sequence[np.ndarray], source: Reference) -> _Runs:
    """Logits of the full model (0), of the empty circuit (1) and of each circuit."""
    runs = EdgeRuns(subject, pairs.clean, Written.of(subject, pairs, source))
    yield 0, subject.run(pairs.clean).logits
    for i, matrix in enumerate([np.zeros_like(runs.graph.full), *circuits], start=1):
        yield i, runs.logits(matrix)


def _node_runs(subject: CausalLM, pairs: Pairs, circuits: Sequence[np.ndarray], source: Reference) -> _Runs:
    """The same for circuits of nodes, all in one call of `each`."""
    nodes = np.array(Graph.of(subject, edges=False).writers, dtype=object)[1:]
    mode: Ablation = "resample" if source.pool == "twin" else "mean"

    def without(kept: np.ndarray) -> Intervention | None:
        outside = tuple(nodes[~kept[1:]])
        return ablate(outside, mode, reference=source) if outside else None

    empty = without(np.zeros(len(nodes) + 1, dtype=bool))
    assert empty is not None
    entry = Site("resid_pre", 0)
    embed = instead(subject, pairs, source, [entry])[entry].expand(*pairs.clean.ids.shape, -1)
    empty = empty + Put(entry, Values(pairs.clean, embed, source.name), pairs.clean.mask.bool())
    yield from subject.each([None, empty, *map(without, circuits)], pairs.clean)


# -- curves ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Curves:
    """Faithfulness of every circuit, and under resampled clusters.

    Attributes:
        f: NaN where the full model and the empty circuit are alike.
        drawn: the same of each resample; none where there are fewer than two clusters.
    """

    f: Float[np.ndarray, " c"]
    drawn: Float[np.ndarray, "r c"]

    @classmethod
    def of(cls, values: Float[np.ndarray, "m n"], clusters: Sequence[str], seed: int) -> _Curves:
        """From the metric of each example in the full run, the empty one, and those of the circuits."""
        names, at = np.unique(clusters, return_inverse=True)
        sums = np.zeros((len(names), len(values)))
        np.add.at(sums, at, values.T)
        counts = np.bincount(at).astype(float)
        rng = np.random.default_rng(stable_seed("faithfulness resamples", seed))
        draws = RESAMPLES if len(names) > 1 else 0
        times = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=draws)
        return cls(_ratio(values.mean(1)[None])[0], _ratio((times @ sums) / (times @ counts)[:, None]))

    def low(self) -> Float[np.ndarray, " c"]:
        """Lower end of each interval."""
        return self._ends((1 - LEVEL) / 2)

    def high(self) -> Float[np.ndarray, " c"]:
        """Upper end."""
        return self._ends((1 + LEVEL) / 2)

    def _ends(self, q: float) -> Float[np.ndarray, " c"]:
        return _quantile(self.drawn, q) if len(self.drawn) else np.full(len(self.f), np.nan)

    def areas(self, number: int, sizes: Sequence[float]) -> dict[str, float]:
        """CPR and CMD of one order, with their intervals."""
        mine = slice(number * len(sizes), (number + 1) * len(sizes))
        out: dict[str, float] = {}
        for name, of in (("cpr", cpr), ("cmd", cmd)):
            drawn = of(sizes, self.drawn[:, mine])
            out[name] = float(of(sizes, self.f[mine]))
            ends = [
                float(_quantile(drawn, q)) if len(drawn) else np.nan
                for q in ((1 - LEVEL) / 2, (1 + LEVEL) / 2)
            ]
            out[f"{name}_lo"], out[f"{name}_hi"] = ends
        return out


def _quantile(values: Float[np.ndarray, r * c], q: float) -> np.ndarray:
    return np.asarray(np.quantile(values, q, axis=0))


def _ratio(means: Float[np.ndarray, "r m"]) -> Float[np.ndarray, "r c"]:
    full, empty = means[:, :1], means[:, 1:2]
    gap = np.where(np.abs(full - empty) > 1e-9, full - empty, np.nan)
    return np.asarray((means[:, 2:] - empty) / gap)


def cpr(sizes: Sequence[float], f: Float[np.ndarray, "*r s"]) -> Float[np.ndarray, "*r"]:
    """Area under f over the share of items, from the first size to the last; more is better.

    >>> float(cpr([0.0, 0.5, 1.0], np.array([0.0, 1.0, 1.0])))
    0.75
    """
    return np.asarray(np.trapezoid(f, np.asarray(sizes), axis=-1))


def cmd(sizes: Sequence[float], f: Float[np.ndarray, "*r s"]) -> Float[np.ndarray, "*r"]:
    """Area under |1 - f|; 0 is best, and a circuit that does more than the model counts as one that does less.

    >>> float(cmd([0.0, 0.5, 1.0], np.array([0.0, 1.5, 1.0])))
    0.5
    """
    return cpr(sizes, np.abs(1 - f))
