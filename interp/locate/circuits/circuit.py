"""A circuit: a named set of nodes or of edges, chosen from scores, stored as JSON, and checked when it is read."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd

from interp.errors import BrokenData, UsageError
from interp.locate.circuits.graph import Edge, Graph, Logits, Node, edge, layer_of, node, nodes_of
from interp.models.sites import MLP, Head
from interp.runs import write_bytes

FORMAT = "interp.circuit/1"
By = Literal["size", "loss"]
"""Order of scores: by absolute value, or those first that cost the metric most when they are ablated."""


@dataclass(frozen=True)
class Circuit:
    """A named set of nodes or of edges.

    Attributes:
        name: what tables and figures call it.
        items: all nodes, or all edges.
        graph: the model's graph; nodes alone need none.

    Raises:
        UsageError: nodes and edges are mixed, or an item is not in the graph.

    Example:
        Circuit("mine", {Head(9, 2), MLP(0)})
    """

    name: str
    items: frozenset[Node] | frozenset[Edge]
    graph: Graph | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "items", frozenset(self.items))
        kinds = {isinstance(i, Edge) for i in self.items}
        if len(kinds) > 1:
            raise UsageError(f"circuit '{self.name}' mixes nodes and edges; make two of it")
        if self.level == "edge":
            if self.graph is None:
                raise UsageError(f"circuit '{self.name}' has edges, so it needs its graph=Graph.of(subject)")
            self.graph.matrix(self.items)  # type: ignore[arg-type]
        elif self.graph is not None:
            known = {*self.graph.writers, Logits()}
            for item in sorted(self.items - known, key=repr):
                raise UsageError(f"circuit '{self.name}': no {item} in {self.graph}")

    @property
    def level(self) -> Literal["node", "edge"]:
        """Whether it is a set of nodes or of edges; an empty one is a set of nodes."""
        return "edge" if any(isinstance(i, Edge) for i in self.items) else "node"

    @cached_property
    def nodes(self) -> frozenset[Node]:
        """The nodes, or those at the ends of the edges; an edge into a KV group ends in each of its heads."""
        if self.level == "node":
            return self.items  # type: ignore[return-value]
        assert self.graph is not None
        return nodes_of(self.edges, self.graph.n_heads // self.graph.n_kv_heads)

    @property
    def edges(self) -> tuple[Edge, ...]:
        """The edges in order of execution; none of a set of nodes."""
        if self.graph is None or self.level == "node":
            return ()
        return tuple(self.graph.named(self.graph.matrix(self.items)))  # type: ignore[arg-type]

    @property
    def heads(self) -> tuple[Head, ...]:
        """Its heads, in order."""
        return tuple(sorted(n for n in self.nodes if isinstance(n, Head)))

    @property
    def mlps(self) -> tuple[MLP, ...]:
        """Its MLPs, in order."""
        return tuple(sorted(n for n in self.nodes if isinstance(n, MLP)))

    def save(self, path: str | Path) -> None:
        """Write it as JSON, whole or not at all."""
        record = {
            "format": FORMAT,
            "name": self.name,
            "level": self.level,
            "graph": asdict(self.graph) if self.graph else None,
            "items": [repr(i) for i in self._ordered()],
        }
        write_bytes(Path(path), (json.dumps(record, indent=1) + "\n").encode())

    @classmethod
    def load(cls, path: str | Path, graph: Graph | None = None) -> Circuit:
        """Read it again.

        Args:
            graph: of the model that it is for; the file's graph must be the same.

        Raises:
            BrokenData: it is no such file, or something in it is no node or edge of its graph.
            UsageError: it is a circuit of a model of another shape.
        """
        path = Path(path)
        try:
            record = json.loads(path.read_text())
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as why:
            raise BrokenData(f"{path}: no circuit can be read: {why}") from why
        if not isinstance(record, dict) or record.get("format") != FORMAT:
            raise BrokenData(f"{path} is no circuit of format '{FORMAT}'")
        parse: dict[Any, Callable[[str], Any]] = {"node": node, "edge": edge}
        names, level, shape = record.get("items"), record.get("level"), record.get("graph")
        if level not in parse or not isinstance(names, list) or not isinstance(record.get("name"), str):
            raise BrokenData(f"{path}: a circuit has a name, a level (node or edge) and a list of items")
        if not all(isinstance(n, str) for n in names) or len(set(names)) < len(names):
            raise BrokenData(f"{path}: items are texts, each once")
        try:
            own = Graph(**shape) if shape else None
            found = cls(record["name"], frozenset(map(parse[level], names)), own)
        except (TypeError, UsageError) as why:
            raise BrokenData(f"{path}: {why}") from why
        if graph is not None and own not in (None, graph):
            raise UsageError(f"{path} is a circuit of {own}, the model has {graph}")
        return found if graph is None else cls(found.name, found.items, graph)

    def _ordered(self) -> list[Node] | list[Edge]:
        if self.level == "edge":
            return list(self.edges)
        return sorted(self.nodes, key=_execution)

    def __len__(self) -> int:
        return len(self.items)

    def __contains__(self, item: str | Node | Edge) -> bool:
        if isinstance(item, str):
            item = edge(item) if "->" in item else node(item)
        return item in self.items

    def __repr__(self) -> str:
        nodes = sorted(self.nodes, key=_execution)
        what = f"{len(self.items)} edges, " if self.level == "edge" else ""
        shown = " ".join(map(repr, nodes[:_SHOWN])) + (" ..." if len(nodes) > _SHOWN else "")
        return f"Circuit({self.name}: {what}{len(self.heads)} heads, {len(self.mlps)} MLPs: {shown})"


_SHOWN = 24


def _execution(item: Node) -> tuple[float, bool, int]:
    """Place of a node in the order of execution."""
    layer = float("inf") if isinstance(item, Logits) else layer_of(item, 0)
    return layer, isinstance(item, MLP), item.head if isinstance(item, Head) else -1


def ranked(scores: pd.DataFrame, by: By = "size") -> list[str]:
    """Names of all edges or nodes of a table of scores, the most important first; ties keep the table's order.

    Args:
        scores: column `edge` or `node`, and `score`: the estimated change of the metric when the item is ablated.
        by: `size` (largest absolute score first) or `loss` (lowest score first: what the metric needs most; items
            whose ablation helps come last).

    Raises:
        UsageError: no such table or order, or scores that are no numbers.
    """
    names = next((c for c in ("edge", "node") if c in scores), None)
    if names is None or "score" not in scores:
        raise UsageError("scores have a column 'edge' or 'node' and a column 'score'")
    if by not in get_args(By):
        raise UsageError(f"by={by!r}: write one of {', '.join(get_args(By))}")
    values = scores["score"].to_numpy(float)
    if np.isnan(values).any():
        raise UsageError("scores hold NaN; drop those rows, or score all items")
    order = np.argsort(-np.abs(values) if by == "size" else values, kind="stable")
    return [str(n) for n in scores[names].to_numpy()[order]]


def select(
    scores: pd.DataFrame | Iterable[str],
    n: int,
    graph: Graph,
    *,
    by: By = "size",
    connected: bool = False,
    name: str = "",
) -> Circuit:
    """The circuit of the n first edges or nodes.

    Args:
        scores: a table of scores, or the names in order.
        connected: leave out edges that are on no path from the embeddings to the logits, so that fewer may be left.
        name: of the circuit.

    Raises:
        UsageError: there are fewer than n, or nodes are asked to be connected.
    """
    names = ranked(scores, by) if isinstance(scores, pd.DataFrame) else list(scores)
    if not 0 <= n <= len(names):
        raise UsageError(f"{n} items were asked for, but {len(names)} are ranked")
    chosen = names[:n]
    label = name or f"top {n} by {by}"
    if not any("->" in c for c in names):
        if connected:
            raise UsageError("nodes have no edges that could connect them; leave connected=False")
        return Circuit(label, frozenset(map(node, chosen)), graph)
    matrix = graph.matrix(chosen)
    kept = graph.connected(matrix) if connected else matrix
    return Circuit(label, frozenset(graph.named(kept)), graph)


def auroc(scores: pd.DataFrame | Iterable[str], reference: Circuit, *, by: By = "size") -> float:
    """How well an order of edges finds a reference circuit's: area under the ROC curve, 0.5 by chance.

    Every edge of the graph counts, once: an edge that the order lacks, reference edges too, comes last, tied with all
    others that it lacks. Equal scores count half.

    Args:
        scores: a table of scores, or names in order, the most important first.
        reference: a circuit of edges.

    Raises:
        UsageError: the reference has no edges, or all of its graph; or an edge is named twice.
    """
    graph = reference.graph
    if graph is None or not 0 < len(reference.edges) < graph.n_edges:
        raise UsageError("a reference circuit has some edges of its graph, but not all")
    positive = graph.matrix(reference.edges)[graph.full]
    matrix = np.full(graph.full.shape, -np.inf)
    if isinstance(scores, pd.DataFrame):
        names = ranked(scores, by)
        values = scores.set_index("edge")["score"]
        given = {n: abs(v) if by == "size" else -v for n, v in values.items()}
    else:
        names = list(scores)
        given = {n: float(-i) for i, n in enumerate(names)}
    if len(given) < len(names):
        raise UsageError("an edge is ranked twice")
    own = [edge(str(n)) for n in given]
    graph.matrix(own)  # all of them are of this graph
    matrix[[graph.reader_at[e.reader] for e in own], [graph.writer_at[e.writer] for e in own]] = list(
        given.values()
    )
    from scipy.stats import rankdata

    ranks = rankdata(matrix[graph.full])
    p = int(positive.sum())
    return float((ranks[positive].sum() - p * (p + 1) / 2) / (p * (len(positive) - p)))
