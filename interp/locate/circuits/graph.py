"""The graph of a transformer's residual stream: who writes, who reads, and the edges between them.

Every *writer* adds to the residual stream: the embeddings, each query head, each MLP. Every *reader* reads the sum of
what was written before it: the queries of each head, the keys and the values of each KV group, each MLP, the logits. An
edge is a writer and a reader that comes after it. With grouped queries a key is read once for all heads of its group,
so the graph has one edge there and not one a head. What a reader sees is a prefix of the writers in order of execution;
where attention and MLP are parallel, neither sees the other of its layer.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from interp.errors import UsageError
from interp.models.sites import MLP, Head
from interp.models.subject import CausalLM

Input = Literal["q", "k", "v", "mlp", "logits"]


@dataclass(frozen=True, order=True)
class Embed:
    """The embeddings (of tokens and, where they are learned, positions): all that enters the first layer."""

    def __repr__(self) -> str:
        return "embed"


@dataclass(frozen=True, order=True)
class Logits:
    """The final norm and the unembedding."""

    def __repr__(self) -> str:
        return "logits"


@dataclass(frozen=True, order=True)
class KV:
    """Keys or values of one KV group, which several query heads may share.

    >>> KV(5, 1)
    L5KV1
    """

    layer: int
    group: int

    def __repr__(self) -> str:
        return f"L{self.layer}KV{self.group}"


Node = Embed | Head | MLP | Logits
Writer = Embed | Head | MLP


@dataclass(frozen=True)
class Reader:
    """One input that reads the residual stream.

    >>> Reader(Head(9, 2), "q"), Reader(KV(9, 0), "v"), Reader(MLP(9), "mlp"), Reader(Logits(), "logits")
    (L9H2.q, L9KV0.v, M9, logits)
    """

    node: Head | KV | MLP | Logits
    input: Input

    def __repr__(self) -> str:
        return f"{self.node}.{self.input}" if self.input in ("q", "k", "v") else repr(self.node)


@dataclass(frozen=True)
class Edge:
    """What one reader gets of one writer.

    >>> Edge(Head(4, 1), Reader(KV(9, 0), "k"))
    L4H1->L9KV0.k
    """

    writer: Writer
    reader: Reader

    def __repr__(self) -> str:
        return f"{self.writer}->{self.reader}"


_WRITER = re.compile(r"^(?:embed|L(\d+)H(\d+)|M(\d+))$")
_READER = re.compile(r"^(?:logits|L(\d+)H(\d+)\.q|L(\d+)KV(\d+)\.([kv])|M(\d+))$")


def node(text: str | Node) -> Node:
    """Read `embed`, `L5H3`, `M7` or `logits`.

    Raises:
        UsageError: it is none of these.
    """
    if not isinstance(text, str):
        return text
    if text == "logits":
        return Logits()
    return _writer(text)


def _writer(text: str) -> Writer:
    found = _WRITER.match(text)
    if not found:
        raise UsageError(f"'{text}' is no node; write embed, a head as L5H3, an MLP as M7, or logits")
    layer, head, mlp = found.groups()
    if mlp is not None:
        return MLP(int(mlp))
    return Embed() if layer is None else Head(int(layer), int(head))


def reader(text: str | Reader) -> Reader:
    """Read `L9H2.q`, `L5KV1.k`, `L5KV1.v`, `M7` or `logits`.

    Raises:
        UsageError: it is none of these.
    """
    if isinstance(text, Reader):
        return text
    found = _READER.match(text)
    if not found:
        raise UsageError(f"'{text}' is no reader; write L9H2.q, L9KV0.k, L9KV0.v, M9 or logits")
    layer, head, kv_layer, group, side, mlp = found.groups()
    if layer is not None:
        return Reader(Head(int(layer), int(head)), "q")
    if kv_layer is not None:
        return Reader(KV(int(kv_layer), int(group)), "k" if side == "k" else "v")
    return Reader(Logits(), "logits") if mlp is None else Reader(MLP(int(mlp)), "mlp")


def edge(text: str | Edge) -> Edge:
    """Read an edge.

    >>> edge("embed->L9KV0.v").reader.node
    L9KV0

    Raises:
        UsageError: it is no edge.
    """
    if isinstance(text, Edge):
        return text
    parts = text.split("->")
    if len(parts) != 2:
        raise UsageError(f"'{text}' is no edge; write writer->reader, as in L4H1->L9H2.q")
    return Edge(_writer(parts[0]), reader(parts[1]))


@dataclass(frozen=True)
class Graph:
    """All nodes and edges of a model's shape.

    Edges are numbered reader by reader, and for each reader writer by writer, both in order of execution. A set of
    edges is also a boolean matrix, readers by writers.

    Attributes:
        parallel: attention and MLP of a layer read the same residual stream.
    """

    n_layers: int
    n_heads: int
    n_kv_heads: int
    parallel: bool = False

    @classmethod
    def of(cls, subject: CausalLM, *, edges: bool = True) -> Graph:
        """The graph of a model.

        Args:
            edges: False where only nodes are asked for, which every family has.

        Raises:
            UsageError: what a sub-block adds to the residual stream goes through a norm of its sum, so that no head
                has a share of its own.
        """
        family = subject.family
        if family.post_norm and edges:
            raise UsageError(
                f"{subject.name} ({family.name}) norms what attention writes, the sum over its heads: no edge from one "
                "head can be told apart; cut whole nodes, or take a pre-norm family"
            )
        return cls(subject.n_layers, subject.n_heads, subject.n_kv_heads, family.parallel)

    @cached_property
    def writers(self) -> tuple[Writer, ...]:
        """Embeddings, then layer by layer the heads and the MLP."""
        out: list[Writer] = [Embed()]
        for layer in range(self.n_layers):
            out += [*(Head(layer, h) for h in range(self.n_heads)), MLP(layer)]
        return tuple(out)

    @cached_property
    def readers(self) -> tuple[Reader, ...]:
        """Layer by layer the queries of each head, keys and values of each group, the MLP; then the logits."""
        out: list[Reader] = []
        for layer in range(self.n_layers):
            out += [Reader(Head(layer, h), "q") for h in range(self.n_heads)]
            out += [Reader(KV(layer, g), "k") for g in range(self.n_kv_heads)]
            out += [Reader(KV(layer, g), "v") for g in range(self.n_kv_heads)]
            out.append(Reader(MLP(layer), "mlp"))
        return (*out, Reader(Logits(), "logits"))

    @cached_property
    def writer_at(self) -> dict[Node, int]:
        """Number of each writer."""
        return {w: i for i, w in enumerate(self.writers)}

    @cached_property
    def reader_at(self) -> dict[Reader, int]:
        """Number of each reader."""
        return {r: i for i, r in enumerate(self.readers)}

    def before(self, layer: int, *, mlp: bool = False) -> int:
        """How many writers the attention of a layer sees, or its MLP; with the number of layers: all."""
        seen = 1 + layer * (self.n_heads + 1)
        return seen + self.n_heads if mlp and not self.parallel else seen

    def block(self, layer: int, part: Input) -> slice:
        """Numbers of a layer's readers of one kind; of the logits' with the number of layers."""
        size = self.n_heads + 2 * self.n_kv_heads + 1
        if part == "logits":
            return slice(self.n_layers * size, self.n_layers * size + 1)
        ends = np.cumsum([0, self.n_heads, self.n_kv_heads, self.n_kv_heads, 1]) + layer * size
        i = ("q", "k", "v", "mlp").index(part)
        return slice(int(ends[i]), int(ends[i + 1]))

    @cached_property
    def seen(self) -> Int[np.ndarray, " r"]:
        """How many writers each reader sees."""
        out = []
        for layer in range(self.n_layers):
            out += [self.before(layer)] * (self.n_heads + 2 * self.n_kv_heads)
            out.append(self.before(layer, mlp=True))
        return np.array([*out, len(self.writers)])

    @cached_property
    def full(self) -> Bool[np.ndarray, "r w"]:
        """The matrix of all edges."""
        return np.arange(len(self.writers))[None] < self.seen[:, None]

    @property
    def n_edges(self) -> int:
        """How many edges there are."""
        return int(self.seen.sum())

    @property
    def edges(self) -> Iterator[Edge]:
        """All edges, in the order of their numbers."""
        for r, n in zip(self.readers, self.seen, strict=True):
            for w in self.writers[:n]:
                yield Edge(w, r)

    def matrix(self, edges: Iterable[str | Edge]) -> Bool[np.ndarray, "r w"]:
        """A set of edges as a matrix.

        Raises:
            UsageError: an edge is not in this graph.
        """
        out = np.zeros((len(self.readers), len(self.writers)), dtype=bool)
        for item in edges:
            own = edge(item)
            r, w = self.reader_at.get(own.reader), self.writer_at.get(own.writer)
            if r is None or w is None:
                what = own.reader if r is None else own.writer
                raise UsageError(
                    f"edge {own}: no {what} in a model of {self.n_layers} layers x {self.n_heads} heads "
                    f"({self.n_kv_heads} KV)"
                )
            if not self.full[r, w]:
                raise UsageError(f"edge {own}: {own.reader} reads before {own.writer} writes")
            out[r, w] = True
        return out

    def named(self, matrix: Bool[np.ndarray, "r w"]) -> list[Edge]:
        """The edges of a matrix, in the order of their numbers."""
        return [Edge(self.writers[w], self.readers[r]) for r, w in np.argwhere(matrix)]

    def frame(self, **columns: Float[np.ndarray, "r w"]) -> pd.DataFrame:
        """One row an edge: edge, writer, reader, input, writer_layer, reader_layer, and these numbers.

        The layer of the embeddings is -1, that of the logits the number of layers.
        """
        r, w = np.nonzero(self.full)
        readers = np.array([repr(x.node) for x in self.readers], dtype=object)
        inputs = np.array([x.input for x in self.readers], dtype=object)
        whole = np.array([repr(x) for x in self.readers], dtype=object)
        writers = np.array([repr(x) for x in self.writers], dtype=object)
        out = pd.DataFrame({"edge": writers[w] + "->" + whole[r], "writer": writers[w], "reader": readers[r]})
        out["input"] = inputs[r]
        out["writer_layer"] = np.array([layer_of(x, self.n_layers) for x in self.writers])[w]
        out["reader_layer"] = np.array([layer_of(x.node, self.n_layers) for x in self.readers])[r]
        for name, values in columns.items():
            out[name] = values[r, w]
        return out

    def connected(self, matrix: Bool[np.ndarray, "r w"]) -> Bool[np.ndarray, "r w"]:
        """Those of the edges that lie on a path from the embeddings to the logits.

        A head is reached through any of its queries, keys and values; what reaches the keys or values of a group goes
        on through each of its heads.
        """
        h, kv = self.n_heads, self.n_kv_heads
        reached = np.zeros(len(self.writers), dtype=bool)
        reached[0] = True

        def into(layer: int, part: Input) -> Bool[np.ndarray, " u"]:
            return np.asarray((matrix[self.block(layer, part)] & reached).any(1))

        for layer in range(self.n_layers):
            at = self.before(layer)
            groups = into(layer, "k") | into(layer, "v")
            reached[at : at + h] = into(layer, "q") | np.repeat(groups, h // kv)
            # Heads that were reached just now reach the MLP, unless it is parallel and has no edge from them.
            reached[at + h] = into(layer, "mlp")[0]
        leads = np.zeros(len(self.readers), dtype=bool)
        leads[-1] = True
        for layer in reversed(range(self.n_layers)):
            at = self.before(layer)
            leads[self.block(layer, "mlp")] = (matrix[:, at + h] & leads).any()
            heads = np.asarray((matrix[:, at : at + h] & leads[:, None]).any(0))
            leads[self.block(layer, "q")] = heads
            groups = heads.reshape(kv, -1).any(1)
            leads[self.block(layer, "k")] = leads[self.block(layer, "v")] = groups
        return np.asarray(matrix & reached[None] & leads[:, None])

    def __repr__(self) -> str:
        kv = f" ({self.n_kv_heads} KV)" if self.n_kv_heads < self.n_heads else ""
        return (
            f"Graph({self.n_layers} layers x {self.n_heads} heads{kv}{', parallel' if self.parallel else ''}: "
            f"{len(self.writers)} writers, {len(self.readers)} readers, {self.n_edges} edges)"
        )


def layer_of(item: Node | KV, n_layers: int) -> int:
    """Layer of a node; -1 for the embeddings, the number of layers for the logits."""
    if isinstance(item, Embed):
        return -1
    return n_layers if isinstance(item, Logits) else item.layer


def nodes_of(edges: Sequence[Edge], heads_per_group: int) -> frozenset[Node]:
    """The nodes at the ends of edges; an edge into a KV group ends in each head of the group."""
    found: set[Node] = set()
    for item in edges:
        found.add(item.writer)
        end = item.reader.node
        if isinstance(end, KV):
            first = end.group * heads_per_group
            found |= {Head(end.layer, first + i) for i in range(heads_per_group)}
        else:
            found.add(end)
    return frozenset(found)
