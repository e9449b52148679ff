"""Units by the objective's gradient: at the open gate, or averaged while gates are opened.

The score of a unit is an estimate of how much the objective of an item rises when the unit is closed. Gradient times
activation reads it off at the intact model, where a recited sequence has a likelihood of nearly one, and so a gradient
of nearly zero. Integrated gradients (Sundararajan et al. 2017; by layer as in Dai et al. 2022) follow
the objective all the way, so that the scores of a path sum to what closing all of it costs (completeness).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from interp.errors import UsageError
from interp.locate.memorization.gating import gate_gradients, gated, open_gates, together
from interp.locate.memorization.units import UnitLocator, unit_table
from interp.measure.memorization.objective import loss
from interp.models.cache import Progress
from interp.models.parts import Part
from interp.models.subject import CausalLM

if TYPE_CHECKING:
    from interp.models.pipeline import Pipeline

Path = Literal["layer", "joint"]
PATHS: tuple[Path, ...] = get_args(Path)
PerPart = dict[Part, Float[torch.Tensor, "items units"]]


class GradientActivation(UnitLocator[Sequence[Any]]):
    """Minus gradient times activation, summed over tokens: what closing a unit costs if the model were linear.

    Args:
        kind: of the parts, see `interp.models.parts.parts`.
        draws, seed: of (t, eps) in a pipeline, see `interp.measure.memorization.objective.loss`.

    After `fit(subject, items, reference=others)` (see `UnitLocator`): scores_ has the methods `gradient` (signed
    rise of the objective when the unit is closed) and `gradient_size` (absolute values).
    """

    def __init__(self, kind: str = "ff_out", draws: int = 8, seed: int = 0):
        self.kind = kind
        self.draws = draws
        self.seed = seed

    def _learn(self, sides: tuple[Sequence[Any], ...], progress: Progress) -> None:
        signed = [self._at_open_gates(side, progress) for side in sides]
        sizes = [{part: values.abs() for part, values in side.items()} for side in signed]
        self.scores_ = pd.concat(
            [unit_table("gradient", *signed), unit_table("gradient_size", *sizes)], ignore_index=True
        )

    def _at_open_gates(self, items: Sequence[Any], progress: Progress) -> PerPart:
        """One backward pass an item; items share passes."""
        found: dict[Part, list[torch.Tensor]] = {part: [] for part in self.parts_}
        size = together(self.subject_, items, self.draws)
        for at in range(0, len(items), size):
            some = items[at : at + size]
            gates = open_gates(self.subject_, self.parts_, len(some))
            _, grads = gate_gradients(self.subject_, some, gates, draws=self.draws, seed=self.seed)
            for part, grad in grads.items():
                found[part].append(-grad)
            progress(min(at + size, len(items)), len(items), "gradients")
        return {part: torch.cat(rows) for part, rows in found.items()}


class IntegratedGradients(UnitLocator[Sequence[Any]]):
    """Gradients averaged while gates are opened from 0 to 1, all layers and steps in shared passes.

    The nodes are those of Gauss and Legendre: on a smooth path few of them integrate better than many midpoints.

    Args:
        path: `layer`, each part's gates are opened while all others are open; or `joint`, those of all parts together,
            which takes as many times fewer passes as there are parts, but runs through states that no input leads to.
        steps: nodes of a path.
        kind: of the parts, see `interp.models.parts.parts`.
        draws, seed: of (t, eps) in a pipeline, see `interp.measure.memorization.objective.loss`.

    After `fit(subject, items, reference=others)` (see `UnitLocator`): scores_ has the method `integrated`, and
        completeness_: one row an item and path: item, path (a part, or `joint`), total (sum of the scores), cost (what
        closing all of it costs) and gap, their difference.
            Where the gap is not small against the cost, nodes were too few and the scores mean little: a deep model's
            joint path is rough (on SmolLM2-135M with 8 nodes the gap was larger than the cost).

    Raises:
        UsageError: no such path, or fewer than one step.
    """

    def __init__(
        self, path: Path = "layer", steps: int = 8, kind: str = "ff_out", draws: int = 8, seed: int = 0
    ):
        self.path = path
        self.steps = steps
        self.kind = kind
        self.draws = draws
        self.seed = seed

    def _check(self, subject: CausalLM | Pipeline) -> None:
        if self.path not in PATHS:
            raise UsageError(f"path={self.path!r}: write one of {', '.join(PATHS)}")
        if self.steps < 1:
            raise UsageError(f"steps={self.steps}: at least one node of a path is needed")

    def _learn(self, sides: tuple[Sequence[Any], ...], progress: Progress) -> None:
        """Integrate, and compare with the exact costs of whole paths."""
        found = [self._integrate(side, progress) for side in sides]
        self.scores_ = unit_table("integrated", *found)
        self.completeness_ = self._complete(sides[0], found[0])

    def _paths(self) -> tuple[tuple[Part, ...], ...]:
        """Parts whose gates are opened together."""
        return (self.parts_,) if self.path == "joint" else tuple((part,) for part in self.parts_)

    def _integrate(self, items: Sequence[Any], progress: Progress) -> PerPart:
        subject = self.subject_
        nodes, weights = np.polynomial.legendre.leggauss(self.steps)
        jobs = [
            (i, path, node / 2 + 0.5, weight / 2)
            for path in self._paths()
            for i in range(len(items))
            for node, weight in zip(nodes, weights, strict=True)
        ]
        out = {part: torch.zeros_like(v) for part, v in open_gates(subject, self.parts_, len(items)).items()}
        for some, done in _chunks(jobs, together(subject, items, self.draws)):
            gates = open_gates(subject, self.parts_, len(some))
            for row, (_, path, node, _) in enumerate(some):
                for part in path:
                    gates[part][row] = node
            _, grads = gate_gradients(
                subject, [items[i] for i, *_ in some], gates, draws=self.draws, seed=self.seed
            )
            for row, (i, path, _, weight) in enumerate(some):
                for part in path:
                    out[part][i] -= weight * grads[part][row]
            progress(done, len(jobs), "integrated gradients")
        return out

    def _complete(self, items: Sequence[Any], found: PerPart) -> pd.DataFrame:
        subject = self.subject_
        paths = self._paths()
        jobs = [(i, path) for path in ((), *paths) for i in range(len(items))]
        losses: list[float] = []
        for some, _ in _chunks(jobs, together(subject, items, self.draws)):
            gates = open_gates(subject, self.parts_, len(some))
            for row, (_, path) in enumerate(some):
                for part in path:
                    gates[part][row] = 0
            with torch.no_grad(), gated(subject, gates):
                those = [items[i] for i, _ in some]
                losses += loss(subject, those, draws=self.draws, seed=self.seed).tolist()
        rows = []
        for number, path in enumerate(paths, start=1):
            for i in range(len(items)):
                total = sum(float(found[part][i].sum()) for part in path)
                cost = losses[number * len(items) + i] - losses[i]
                name = self.path if self.path == "joint" else repr(path[0])
                rows.append({"item": i, "path": name, "total": total, "cost": cost, "gap": total - cost})
        return pd.DataFrame(rows)


def _chunks(jobs: Sequence[Any], size: int) -> Iterator[tuple[Sequence[Any], int]]:
    """Jobs that share a pass, and how many are done after them."""
    for at in range(0, len(jobs), size):
        yield jobs[at : at + size], min(at + size, len(jobs))
