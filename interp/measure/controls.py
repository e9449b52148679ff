"""Matched controls: the same cut of heads that were not chosen, by what they are alike in.

| kind | the heads drawn are | sets |
|---|---|---|
| `layer` | of the chosen heads' own layers, else of the nearest ones | seeded draws |
| `size` | any others, as many as are chosen | seeded draws |
| `norm` | nearest in the mean norm of what they write into the residual stream | seeded draws among the near ones |
| `entropy` | nearest in the mean entropy of their attention in the answer's rows | seeded draws among the near ones |
| `bottom` | the last of a ranking | one |
| `given` | of a list that is handed over: heads of other needles, say | one a list |

No set holds a chosen head, and no two sets are equal; where fewer exist than are asked for, fewer come back. What each
set was matched on, and how well, comes with it (`Matched.table`).
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar, get_args

import numpy as np
import pandas as pd

from interp.errors import UsageError
from interp.intervene.base import Scope
from interp.intervene.reference import Reference
from interp.measure.heads import head_statistics
from interp.models.sites import Component, Head, component
from interp.models.subject import CausalLM
from interp.tasks.base import Example, Task, stable_seed

Kind = Literal["layer", "size", "norm", "entropy", "bottom", "given"]
KINDS: tuple[str, ...] = get_args(Kind)
NEAR = 8
"""Parts among which one is drawn for each chosen part; more where so few make less sets than are asked for."""

Heads = tuple[Head, ...]
Part = TypeVar("Part", bound=Component)


@dataclass(frozen=True, eq=False)
class Matched(Sequence[tuple[Part, ...]], Generic[Part]):
    """Control sets; a sequence of tuples of components, each sorted.

    Attributes:
        by: kind of control.
        sets: the sets.
        table: one row a set and component: `draw`, `chosen` (the part that it stands for), `component`, `wanted` and
            `value` (what they are matched on: layer, norm, entropy in nats, score, or activation) and `gap`, their
            distance. NaN for `given`, which is matched on nothing.
    """

    by: str
    sets: tuple[tuple[Part, ...], ...]
    table: pd.DataFrame = field(repr=False)

    def __getitem__(self, i: int) -> tuple[Part, ...]:  # type: ignore[override]
        return self.sets[i]

    def __len__(self) -> int:
        return len(self.sets)

    @property
    def gaps(self) -> list[float]:
        """Mean gap of each set."""
        mean = self.table.groupby("draw")["gap"].mean()
        return [float(mean.get(draw, np.nan)) for draw in range(len(self.sets))]


def matched(
    subject: CausalLM,
    chosen: Sequence[str | Component],
    n: int,
    by: str = "layer",
    *,
    seed: int = 0,
    avoid: Sequence[Component] = (),
    data: Reference | Task | Sequence[Example] | None = None,
    scope: Scope = "all",
    ranking: pd.DataFrame | Sequence[str | Component] | None = None,
    given: Sequence[str | Component] | Sequence[Sequence[str | Component]] | None = None,
) -> Matched[Head]:
    """At most `n` distinct sets of as many other heads as are chosen.

    Args:
        by: `layer`, `size`, `norm`, `entropy`, `bottom` or `given`, see the module's docstring.
        seed: of the draws.
        avoid: further heads never to draw (other selected heads, for the smaller sets of a dose curve); `given` lists
            are taken as they are.
        data: for `norm` and `entropy`: the examples they are measured on, in one pass of the intact model.
        scope: for `norm`: tokens that it is measured on, those that are cut (see `head_statistics`).
        ranking: for `bottom`: all heads, best first, or a frame with `component` and `score` (ties are broken by the
            seed); of a frame with several methods the first counts, as in a locator's `scores_`.
        given: for `given`: heads, best first, or several such lists; of each the first that are not chosen are taken.

    Raises:
        UsageError: a component is no head, too few heads are left, or what the kind needs is missing.
    """
    heads = _heads(chosen)
    if by not in KINDS:
        raise UsageError(f"unknown kind of control '{by}'; write one of {', '.join(KINDS)}")
    taken = {*heads, *(c for c in avoid if isinstance(c, Head))}
    if by == "layer":
        return _paired(by, heads, matched_heads(subject, heads, n, seed=seed, avoid=avoid), _layer)
    if by == "size":
        free = [h for h in subject.heads() if h not in taken]
        if len(free) < len(heads):
            raise UsageError(_TOO_FEW.format(len(heads)))
        return _paired(by, heads, _drawn([(free, len(heads))], n, "size", seed), _layer)
    if by == "given":
        return _given(heads, n, given)
    if by == "bottom":
        return _bottom(heads, taken, ranking, seed)
    if data is None:
        raise UsageError(f"controls matched by {by} need data to measure heads on: data=task")
    found = head_statistics(subject, data if isinstance(data, Reference) else Reference(data), scope)
    value = {Head(r.layer, r.head): float(getattr(r, by)) for r in found.itertuples()}
    return _near(by, heads, [h for h in subject.heads() if h not in taken], n, value, seed)


def _heads(chosen: Sequence[str | Component]) -> list[Head]:
    parts = [component(c) for c in chosen]
    if not all(isinstance(c, Head) for c in parts):
        raise UsageError("matched controls are defined for heads; pass controls=0 for other components")
    return [c for c in parts if isinstance(c, Head)]


def _layer(head: Head) -> float:
    return float(head.layer)


def pairs_table(rows: Sequence[tuple[int, Part, Part]], value: Callable[[Part], float]) -> pd.DataFrame:
    """Table of `Matched`, from the number of a set, a chosen part and what stands for it."""
    frame = pd.DataFrame(rows, columns=["draw", "chosen", "component"])
    frame["wanted"] = [value(c) for c in frame["chosen"]]
    frame["value"] = [value(c) for c in frame["component"]]
    frame["gap"] = (frame["value"] - frame["wanted"]).abs()
    for name in ("chosen", "component"):
        frame[name] = [repr(c) for c in frame[name]]
    return frame


def _paired(
    by: str, heads: Sequence[Head], sets: Sequence[Heads], value: Callable[[Head], float]
) -> Matched[Head]:
    """Sets whose heads stand for the chosen ones in order of the value, which makes the gaps smallest."""
    order = sorted(heads, key=lambda h: (value(h), h))
    rows = [
        (draw, of, head)
        for draw, drawn in enumerate(sets)
        for of, head in zip(order, sorted(drawn, key=lambda h: (value(h), h)), strict=True)
    ]
    return Matched(by, tuple(tuple(sorted(s)) for s in sets), pairs_table(rows, value))


def _given(heads: Sequence[Head], n: int, given: Sequence[object] | None) -> Matched[Head]:
    if not given:
        raise UsageError("controls of kind 'given' need heads: given=other.top(10), or several such lists")
    several = all(not isinstance(item, (str, Component)) for item in given)
    lists = [_heads(part) for part in (given if several else [given])]  # type: ignore[arg-type]
    sets: dict[Heads, None] = {}
    for found in lists:
        others = [h for h in dict.fromkeys(found) if h not in set(heads)]
        if len(others) < len(heads):
            raise UsageError(
                f"a list given as control has {len(others)} heads that are not chosen, and {len(heads)} are cut"
            )
        sets[tuple(sorted(others[: len(heads)]))] = None
    return _paired("given", heads, list(sets)[:n], lambda head: float("nan"))


def _bottom(
    heads: Sequence[Head],
    taken: set[Head],
    ranking: pd.DataFrame | Sequence[str | Component] | None,
    seed: int,
) -> Matched[Head]:
    if ranking is None:
        raise UsageError("controls of kind 'bottom' need a ranking of all heads: ranking=heads.scores_")
    if isinstance(ranking, pd.DataFrame):
        first = ranking
        if "method" in ranking:
            first = ranking[ranking["method"] == ranking["method"].iloc[0]]
        named = _heads(list(first["component"]))
        score: Mapping[Head, float] = dict(zip(named, first["score"].astype(float), strict=True))
        tie = np.random.default_rng(stable_seed("controls", "bottom", seed)).permutation(len(named))
        order = [named[i] for i in np.lexsort((tie, np.array([score[h] for h in named])))]
    else:
        order = _heads(list(ranking))[::-1]
        score = {head: float(i) for i, head in enumerate(order)}
    last = [h for h in order if h not in taken]
    if len(last) < len(heads):
        raise UsageError(f"{len(heads)} heads are cut and the ranking has {len(last)} others")
    value = {h: score.get(h, float("nan")) for h in (*heads, *last)}
    return _paired("bottom", heads, [tuple(last[: len(heads)])], value.__getitem__)


def _near(
    by: str, heads: list[Head], free: list[Head], n: int, value: Mapping[Head, float], seed: int
) -> Matched[Head]:
    """For each chosen head one drawn among those of the free ones that are nearest to it and not yet drawn."""
    if len(free) < len(heads):
        raise UsageError(_TOO_FEW.format(len(heads)))
    near = NEAR
    while math.comb(near, len(heads)) < n and near < len(free):
        near += 1
    nearest = {h: sorted(free, key=lambda o, h=h: (abs(value[o] - value[h]), o)) for h in heads}  # type: ignore[misc]
    drawn = drawn_near(heads, nearest, n, near, "controls", by, seed)
    rows = [(draw, of[h], h) for draw, of in enumerate(drawn) for h in sorted(of)]
    return Matched(by, tuple(tuple(sorted(of)) for of in drawn), pairs_table(rows, value.__getitem__))


def drawn_near(
    chosen: Sequence[Part], nearest: Mapping[Part, Sequence[Part]], n: int, near: int, *seed: Any
) -> list[dict[Part, Part]]:
    """At most `n` distinct sets of one part for each chosen part, among the `near` nearest that are not yet drawn.

    Args:
        nearest: parts that may stand for each chosen part, nearest first.

    Returns:
        of each set the chosen parts, by what stands for them.
    """
    sets: dict[tuple[Part, ...], dict[Part, Part]] = {}
    for draw in range(100 * n):
        if len(sets) == n:
            break
        rng = np.random.default_rng(stable_seed(*seed, draw))
        of: dict[Part, Part] = {}
        for i in rng.permutation(len(chosen)):
            pool = list(itertools.islice((c for c in nearest[chosen[i]] if c not in of), near))
            of[pool[int(rng.integers(len(pool)))]] = chosen[i]
        sets.setdefault(tuple(sorted(of)), of)
    return list(sets.values())


_TOO_FEW = "{} heads are chosen and too few are left to draw as many controls from"


def matched_heads(
    subject: CausalLM, chosen: Sequence[Component], n: int, *, seed: int = 0, avoid: Sequence[Component] = ()
) -> list[Heads]:
    """At most `n` distinct sets of heads, each matched to `chosen` by layer and disjoint from it.

    For each chosen head one of its own layer is drawn, or of the nearest layers where the layer has too few. Where
    fewer sets exist than asked for they are enumerated.

    Args:
        avoid: further heads never to draw (other selected heads, for the smaller sets of a dose curve).

    Returns:
        the sets, sorted within; fewer than `n` where no more exist.

    Raises:
        UsageError: a component is no head, or no head is left to draw.
    """
    heads = _heads(chosen)
    taken = {*heads, *(c for c in avoid if isinstance(c, Head))}
    return _drawn(_pools(subject, heads, taken), n, seed)


def _drawn(pools: Sequence[tuple[list[Head], int]], n: int, *seed: object) -> list[Heads]:
    """At most `n` distinct sets of so many heads of each pool, enumerated where there are few."""
    total = math.prod(math.comb(len(pool), k) for pool, k in pools)
    if total <= 4 * n:
        every = itertools.product(*(itertools.combinations(pool, k) for pool, k in pools))
        sets = [tuple(sorted(itertools.chain.from_iterable(parts))) for parts in every]
        order = np.random.default_rng(stable_seed("controls", *seed)).permutation(len(sets))
        return [sets[i] for i in order[:n]]
    out: dict[Heads, None] = {}
    draw = 0
    while len(out) < n:
        rng = np.random.default_rng(stable_seed("controls", *seed, draw))
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
            raise UsageError(_TOO_FEW.format(len(heads)))
        from_layer[min(near, key=lambda i: (abs(i - head.layer), i))] += 1
    return [(free[i], k) for i, k in sorted(from_layer.items())]
