"""Matched controls of MLPs and neurons: the same cut of parts that were not chosen, by what they are alike in.

| of | the controls are | matched on | sets |
|---|---|---|---|
| neighbouring MLPs | the same layers, moved up or down together | mean norm of what MLPs write | all, nearest first |
| MLPs with gaps | other layers, one for each | mean norm of what the MLP writes | seeded draws among the nearest |
| neurons | other neurons of the same layer | mean size of the activation | seeded draws among the nearest |

No set holds a chosen part, and no two sets are equal; where fewer exist than are asked for, fewer come back, and
`n_distinct` says how many there are. What each set was matched on, and how well, comes with it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float

from interp.errors import UsageError
from interp.intervene.base import Scope
from interp.intervene.reference import Reference
from interp.measure.controls import NEAR, Matched, drawn_near, pairs_table
from interp.models.batch import plan
from interp.models.engines.base import Frame, Reduce
from interp.models.sites import MLP, Component, Neuron, Site, component
from interp.models.subject import CausalLM
from interp.tasks.base import Example, Task

_TOKENS = 4096
_NEAR_LAYERS = 4
"""Layers among which one is drawn for each: models have tens of them, so `NEAR` would be far from near."""


@dataclass(frozen=True, eq=False)
class MatchedParts(Matched[Component]):
    """Control sets of MLPs or neurons, matched by `norm` or `activation`.

    Attributes:
        n_distinct: how many sets there are to draw from.
    """

    n_distinct: int


def matched_windows(
    subject: CausalLM,
    chosen: Sequence[str | Component],
    n: int,
    data: Reference | Task | Sequence[Example],
    *,
    scope: Scope = "all",
    seed: int = 0,
    avoid: Sequence[Component] = (),
) -> MatchedParts:
    """At most `n` distinct sets of as many other layers as are chosen, whose MLPs write as much.

    Neighbouring layers are moved together, so that a window stays one; the windows that write as much come first. A set
    with gaps is no window: for each of its layers another one is drawn among the nearest in norm.

    Args:
        data: what norms are measured on, in one pass of the intact model.
        scope: tokens that count: `all`, span roles, positions.
        seed: of the draws.
        avoid: further layers never to take.

    Raises:
        UsageError: a component is no MLP, or no other window fits into the model, or too few layers are left.
    """
    named = {component(c) for c in chosen}
    parts = sorted(c for c in named if isinstance(c, MLP))
    if len(parts) != len(named) or not parts:
        raise UsageError("matched windows are defined for MLP layers; write M12, or use matched_neurons")
    for part in parts:
        subject.check(part)
    layers = [p.layer for p in parts]
    taken = {*layers, *(c.layer for c in avoid if isinstance(c, MLP))}
    if layers[-1] - layers[0] >= len(layers):
        return _drawn_layers(subject, parts, n, _reference(data), scope, seed, taken)
    shifts = range(-layers[0], subject.n_layers - layers[-1])
    free = [s for s in shifts if not taken & {layer + s for layer in layers}]
    if not free:
        raise UsageError(f"no other window of {len(layers)} layers fits beside {' '.join(map(repr, parts))}")
    norm = mlp_norms(subject, _reference(data), scope)

    def gap(shift: int) -> float:
        return abs(float(np.mean([norm[i + shift] for i in layers]) - np.mean([norm[i] for i in layers])))

    order = sorted(free, key=lambda s: (gap(s), abs(s), s))[:n]
    rows = [(draw, MLP(i), MLP(i + s)) for draw, s in enumerate(order) for i in layers]
    sets = tuple(tuple(MLP(i + s) for i in layers) for s in order)
    table = pairs_table(rows, lambda c: float(norm[c.layer]))
    return MatchedParts("norm", sets, table, len(free))


def _drawn_layers(
    subject: CausalLM,
    parts: Sequence[MLP],
    n: int,
    data: Reference,
    scope: Scope,
    seed: int,
    taken: set[int],
) -> MatchedParts:
    """Layers drawn one by one near in norm to each chosen one."""
    free = [MLP(i) for i in range(subject.n_layers) if i not in taken]
    if len(free) < len(parts):
        raise UsageError(
            f"{len(free)} layers are left beside {' '.join(map(repr, parts))}: too few to draw as many"
        )
    norm = mlp_norms(subject, data, scope)
    nearest = {c: sorted(free, key=lambda o, c=c: (abs(norm[o.layer] - norm[c.layer]), o)) for c in parts}  # type: ignore[misc]
    near = _NEAR_LAYERS
    while near ** len(parts) < 2 * n and near < len(free):
        near += 1
    drawn = drawn_near(parts, nearest, n, near, "layers", seed)
    rows = [(draw, of[c], c) for draw, of in enumerate(drawn) for c in sorted(of)]
    sets = tuple(tuple(sorted(of)) for of in drawn)
    table = pairs_table(rows, lambda c: float(norm[c.layer]))
    return MatchedParts("norm", sets, table, math.comb(len(free), len(parts)))


def matched_neurons(
    subject: CausalLM,
    chosen: Sequence[str | Component],
    n: int,
    data: Reference | Task | Sequence[Example],
    *,
    scope: Scope = "all",
    seed: int = 0,
    avoid: Sequence[Component] = (),
) -> MatchedParts:
    """At most `n` distinct sets of neurons of the same layers that are as active.

    Args:
        data: what activations are measured on, in one pass of the intact model.
        scope: tokens that count: `all`, span roles (`subject`), positions.
        seed: of the draws.
        avoid: further neurons never to draw (those of other facts).

    Raises:
        UsageError: a component is no neuron, or a layer has too few others.
    """
    parts = list(dict.fromkeys(component(c) for c in chosen))
    neurons = [c for c in parts if isinstance(c, Neuron)]
    if len(neurons) != len(parts) or not neurons:
        raise UsageError("matched neurons are defined for neurons; write L12N100, or use matched_windows")
    for neuron in neurons:
        subject.check(neuron)
    layers = sorted({c.layer for c in neurons})
    size = mlp_activity(subject, _reference(data), layers, scope)
    taken = {*neurons, *(c for c in avoid if isinstance(c, Neuron))}
    nearest: dict[Neuron, list[Neuron]] = {}
    pools = {i: [c for j in range(subject.d_mlp) if (c := Neuron(i, j)) not in taken] for i in layers}
    for c in neurons:
        if len(pools[c.layer]) < sum(o.layer == c.layer for o in neurons):
            raise UsageError(
                f"layer {c.layer} has {len(pools[c.layer])} neurons that are not chosen: too few"
            )
        own = size[c.layer][c.i]
        nearest[c] = sorted(pools[c.layer], key=lambda o, own=own: (abs(size[o.layer][o.i] - own), o))  # type: ignore[misc]
    near, most = NEAR, max(len(pool) for pool in pools.values())
    while near ** len(neurons) < 2 * n and near < most:
        near += 1
    drawn = drawn_near(neurons, nearest, n, near, "neurons", seed)
    rows = [(draw, of[c], c) for draw, of in enumerate(drawn) for c in sorted(of)]
    sets = tuple(tuple(sorted(of)) for of in drawn)
    counts = [(len(pool), sum(c.layer == i for c in neurons)) for i, pool in pools.items()]
    table = pairs_table(rows, lambda c: float(size[c.layer][c.i]))
    return MatchedParts("activation", sets, table, math.prod(math.comb(*pair) for pair in counts))


def _reference(data: Reference | Task | Sequence[Example]) -> Reference:
    return data if isinstance(data, Reference) else Reference(data)


def mlp_norms(subject: CausalLM, data: Reference, scope: Scope = "all") -> Float[np.ndarray, " l"]:
    """Mean length of what each layer's MLP adds to the residual stream, over the tokens of a scope."""
    found = _means(subject, data, "mlp_out", range(subject.n_layers), scope)
    return np.array([float(found[i]) for i in range(subject.n_layers)])


def mlp_activity(
    subject: CausalLM, data: Reference, layers: Sequence[int], scope: Scope = "all"
) -> dict[int, Float[np.ndarray, " m"]]:
    """Mean size of each neuron's activation, over the tokens of a scope."""
    return {i: v.numpy() for i, v in _means(subject, data, "neurons", layers, scope).items()}


def _means(
    subject: CausalLM, data: Reference, kind: str, layers: Sequence[int] | range, scope: Scope
) -> dict[int, torch.Tensor]:
    """Mean over tokens: of the length at `mlp_out`, of each unit's size at `neurons`; in fp32, by layer."""
    examples = data.examples(subject)
    total: dict[int, torch.Tensor] = {}
    count = 0
    for group in plan([len(e.full_ids) for e in examples], _TOKENS):
        batch = subject.batch([examples[i] for i in group])
        meant = batch.scope_columns(scope, 0, batch.width) & batch.mask.bool()

        def sizes(value: torch.Tensor, frame: Frame, meant: torch.Tensor = meant) -> torch.Tensor:
            tokens = value[meant.to(value.device)].float()
            return tokens.norm(dim=-1).sum() if kind == "mlp_out" else tokens.abs().sum(0)

        trace = subject.run(batch, {Site(kind, i): Reduce(sizes) for i in layers}, keep=1)
        for i in layers:
            found = trace[Site(kind, i)].double().cpu()
            total[i] = total[i] + found if i in total else found
        count += int(meant.sum())
    return {i: value / count for i, value in total.items()}
