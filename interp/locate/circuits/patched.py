"""Edge-patched runs: every edge outside a circuit carries a reference, all of them at once, exactly.

The reference is another run (the corrupt twin's: resample ablation) or a mean. In a run the input of each reader is its
reference plus, for each of its edges in the circuit, what the writer writes in this run beyond its reference. With
D the stack of these differences and E the circuit as a matrix, readers by writers, the inputs of a layer's readers are
one product E @ D. They go through the model's own norm and the reader's own part of the projection; all that follows
(rotation, norms of queries and keys, masks, kernel, the MLP) is the model's forward pass. So the full circuit is the
clean run, and the empty one the reference itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float

from interp.intervene.reference import Reference
from interp.locate.circuits.circuit import Circuit
from interp.locate.circuits.graph import Edge, Input, edge
from interp.locate.circuits.streams import (
    Ablation,
    Pairs,
    Projection,
    Written,
    mlp_site,
    out_bias,
    questions,
    readable,
    shares,
    source_of,
)
from interp.models.batch import Batch
from interp.models.engines.base import Frame, Tap
from interp.models.sites import Site
from interp.models.subject import CausalLM
from interp.tasks.base import Example, Task

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class _Edit:
    fn: Callable[[torch.Tensor], torch.Tensor | None]

    def edit(self, value: torch.Tensor, frame: Frame) -> torch.Tensor | None:
        return self.fn(value)


class EdgeRuns:
    """Edge-patched runs of one batch against one reference.

    Args:
        subject: of a pre-norm family.
        batch: what is run.
        reference: what edges outside the circuit carry.

    Raises:
        UsageError: the family is post-norm, or an edit is applied that would be lost.

    Example:
        runs = EdgeRuns(model, batch, Written.of_run(model, corrupt))
        logits = runs.logits(circuit)
    """

    def __init__(self, subject: CausalLM, batch: Batch, reference: Written):
        self.subject, self.batch, self.reference = subject, batch, reference
        self.graph = readable(subject, batch)
        self._projections: dict[tuple[int, Input], Projection] = {}
        self.into, self.mid = [], []
        x = reference.embed.float()
        for i in range(subject.n_layers):
            attention = shares(subject, i, reference.z[i]).sum(1).to(x.device) + _on(out_bias(subject, i), x)
            self.into.append(x)
            self.mid.append(x if self.graph.parallel else x + attention)
            x = x + attention + reference.mlp[i].to(x.device).float()
        self.into.append(x)
        shape = (len(batch), len(self.graph.writers), batch.width, subject.d_model)
        self._beyond = x.new_empty(shape)

    def logits(
        self, circuit: Circuit | Iterable[str | Edge] | Bool[np.ndarray, "r w"]
    ) -> Float[torch.Tensor, "b keep v"]:
        """Logits of the columns that predict answers, with the edges of a circuit (or matrix) alone intact."""
        if isinstance(circuit, np.ndarray):
            matrix = circuit & self.graph.full
        else:
            matrix = self.graph.matrix(circuit.edges if isinstance(circuit, Circuit) else circuit)
        edges = torch.from_numpy(matrix).to(self._beyond)
        return self.subject.run(self.batch, self._taps(edges)).logits

    def _taps(self, edges: Float[torch.Tensor, "r w"]) -> dict[Site, list[Tap]]:
        graph, n = self.graph, self.subject.n_layers
        taps: dict[Site, list[Tap]] = {}

        def at(kind: str, layer: int, fn: Callable[[torch.Tensor], torch.Tensor | None]) -> None:
            taps.setdefault(Site(kind, layer), []).append(_Edit(fn))

        at("resid_pre", 0, lambda x: self._wrote(0, x - self.reference.embed))
        for layer in range(n):
            for part in ("q", "k", "v"):
                at(part, layer, self._reading(edges, layer, part))
            site = mlp_site(self.subject, layer)
            mask = edges[graph.block(layer, "mlp"), : graph.before(layer, mlp=True)]
            at(site.kind, layer, self._input(mask, self.mid[layer]))
            at("z", layer, self._heads(layer))
            at("mlp_out", layer, self._mlp(layer))
        at("resid_post", n - 1, self._input(edges[graph.block(n, "logits")], self.into[n]))
        return taps

    def _wrote(self, at: int, beyond: torch.Tensor) -> None:
        self._beyond[:, at] = beyond

    def _heads(self, layer: int) -> Callable[[torch.Tensor], None]:
        def heads(z: torch.Tensor) -> None:
            first = self.graph.before(layer)
            found = shares(self.subject, layer, z - self.reference.z[layer].to(z))
            self._beyond[:, first : first + self.graph.n_heads] = found

        return heads

    def _mlp(self, layer: int) -> Callable[[torch.Tensor], None]:
        at = self.graph.before(layer) + self.graph.n_heads
        return lambda x: self._wrote(at, x - self.reference.mlp[layer].to(x))

    def _summed(self, mask: Float[torch.Tensor, "u w"], x: torch.Tensor) -> Float[torch.Tensor, "b u t d"]:
        """Inputs of readers that read at one place: the reference, and what comes through their edges."""
        beyond = self._beyond[:, : mask.shape[1]]
        used = mask.any(0)
        if not bool(used.all()):
            beyond, mask = beyond[:, used], mask[:, used]
        return x[:, None] + torch.einsum("uw,bwtd->butd", mask, beyond)

    def _input(self, mask: torch.Tensor, x: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
        return lambda value: self._summed(mask, x)[:, 0].to(value.device)

    def _reading(
        self, edges: torch.Tensor, layer: int, part: Input
    ) -> Callable[[torch.Tensor], torch.Tensor]:
        mask = edges[self.graph.block(layer, part), : self.graph.before(layer)]
        if (layer, part) not in self._projections:
            self._projections[layer, part] = Projection.of(self.subject, layer, part)
        projection = self._projections[layer, part]
        return lambda value: projection.read(self._summed(mask, self.into[layer])).to(value.device)


def _on(value: torch.Tensor | float, x: torch.Tensor) -> torch.Tensor | float:
    return value.to(x.device) if isinstance(value, torch.Tensor) else value


def edge_effects(
    subject: CausalLM,
    task: Task | Sequence[Example],
    edges: Iterable[str | Edge],
    *,
    corruption: str | None = None,
    ablation: Ablation = "resample",
    reference: Reference | Task | Sequence[Example] | None = None,
    metric: str = "logit_diff",
    progress: Progress | None = None,
) -> pd.DataFrame:
    """The exact change of the metric when one edge alone is ablated and all that follows from it happens.

    It is what attribution estimates; each edge costs a forward pass.

    Returns:
        rows edge, writer, reader, input, exact (mean over examples), n.
    """
    examples, twin = questions(subject, task, corruption)
    source = source_of(examples, ablation, reference, twin)
    items = [edge(e) for e in edges]
    sums = np.zeros(len(items))
    batches = list(Pairs.of(subject, examples, twin))
    for done, (_, pairs) in enumerate(batches):
        runs = EdgeRuns(subject, pairs.clean, Written.of(subject, pairs, source))

        def measured(matrix: np.ndarray, runs: EdgeRuns = runs, pairs: Pairs = pairs) -> float:
            return float(pairs.scores(runs.logits(matrix), metric).sum())

        whole = measured(runs.graph.full)
        for i, item in enumerate(items):
            sums[i] += measured(runs.graph.full & ~runs.graph.matrix([item])) - whole
            if progress:
                progress(done * len(items) + i + 1, len(batches) * len(items), "edges")
    return pd.DataFrame(
        {
            "edge": [repr(e) for e in items],
            "writer": [repr(e.writer) for e in items],
            "reader": [repr(e.reader.node) for e in items],
            "input": [e.reader.input for e in items],
            "exact": sums / len(examples),
            "n": len(examples),
        }
    )
