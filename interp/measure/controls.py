"""Matched controls: the same cut of components that were not chosen.

Heads are matched by layer: for each chosen head one of its own layer that was not chosen, or of the nearest layers
where the layer has too few. Sets are distinct; where fewer exist than asked for they are enumerated, and the number
says so.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from interp.errors import UsageError
from interp.models.sites import Component, Head
from interp.models.subject import CausalLM
from interp.tasks.base import stable_seed


def matched_heads(
    subject: CausalLM, chosen: Sequence[Component], n: int, *, seed: int = 0, avoid: Sequence[Component] = ()
) -> list[tuple[Head, ...]]:
    """At most `n` distinct sets of heads, each matched to `chosen` by layer and disjoint from it.

    Args:
        avoid: further heads never to draw (other selected heads, for the smaller sets of a dose curve).

    Returns:
        the sets, sorted within; fewer than `n` where no more exist.

    Raises:
        UsageError: a component is no head, or no head is left to draw.
    """
    if not all(isinstance(c, Head) for c in chosen):
        raise UsageError(
            "matched controls are defined for heads so far; pass controls=0 for other components"
        )
    heads = [c for c in chosen if isinstance(c, Head)]
    taken = {*heads, *(c for c in avoid if isinstance(c, Head))}
    pools = _pools(subject, heads, taken)
    total = math.prod(math.comb(len(pool), k) for pool, k in pools)
    if total <= 4 * n:
        every = itertools.product(*(itertools.combinations(pool, k) for pool, k in pools))
        sets = [tuple(sorted(itertools.chain.from_iterable(parts))) for parts in every]
        order = np.random.default_rng(stable_seed("controls", seed)).permutation(len(sets))
        return [sets[i] for i in order[:n]]
    out: dict[tuple[Head, ...], None] = {}
    draw = 0
    while len(out) < n:
        rng = np.random.default_rng(stable_seed("controls", seed, draw))
        parts = [pool[i] for pool, k in pools for i in rng.choice(len(pool), size=k, replace=False)]
        out[tuple(sorted(parts))] = None
        draw += 1
    return list(out)


def _pools(subject: CausalLM, heads: Sequence[Head], taken: set[Head]) -> list[tuple[list[Head], int]]:
    """The free heads of each layer to draw from, and how many: the chosen head's own layer, else the nearest one."""
    free = {
        i: [Head(i, j) for j in range(subject.n_heads) if Head(i, j) not in taken]
        for i in range(subject.n_layers)
    }
    from_layer: Counter[int] = Counter()
    for head in sorted(heads):
        near = [i for i in free if from_layer[i] < len(free[i])]
        if not near:
            raise UsageError(
                f"{len(heads)} heads are chosen and too few are left to draw as many controls from"
            )
        from_layer[min(near, key=lambda i: (abs(i - head.layer), i))] += 1
    return [(free[i], k) for i, k in sorted(from_layer.items())]
