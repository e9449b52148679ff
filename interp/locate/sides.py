"""The two sides of a comparison of heads: one score of each source, on grids that can be laid over each other."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pandas as pd

from interp.errors import UsageError
from interp.locate.base import Scored
from interp.locate.head_scores import HeadScores
from interp.locate.interop import as_heads
from interp.measure.reliability import by_group

Source: TypeAlias = HeadScores | Scored | pd.DataFrame | str | Path
"""What can be compared: a fitted locator, what `read_heads` gave, a frame like `scores_`, or a path."""


@dataclass(frozen=True)
class Side:
    """One score of one source: a grid of scores (layers, heads or KV groups), or the order of a bare list.

    Attributes:
        grid: None for a list without scores.
        order: (layer, head) best first.
        kv_heads: KV heads a layer, where known.
        unit: what a column of the grid is: `head` or `kv_head`.
        values: scores of each instance (instances, layers, query heads), where known.
        clusters: the cluster of each instance.
    """

    name: str
    method: str
    grid: np.ndarray | None
    order: list[tuple[int, int]]
    kv_heads: int | None
    unit: str
    values: np.ndarray | None = None
    clusters: tuple[str, ...] | None = None

    @property
    def total(self) -> int:
        """Heads of the grid; 0 without one."""
        return 0 if self.grid is None else self.grid.size


def _side(heads: HeadScores, method: str | None, name: str | None, kv_heads: int | None) -> Side:
    ranked = heads.ranking(method)
    chosen = str(ranked["method"].iloc[0])
    column = "head" if heads.unit == "head" else "kv_head"
    order = list(zip(ranked["layer"].astype(int), ranked[column].astype(int), strict=True))
    if heads.listed(chosen):
        return Side(name or heads.name, chosen, None, order, None, heads.unit)
    grid = np.zeros((1 + max(p[0] for p in order), 1 + max(p[1] for p in order)))
    grid[tuple(np.array(order).T)] = ranked["score"].to_numpy(float)
    groups = kv_heads
    if heads.unit == "kv_head":
        groups = grid.shape[1]
    elif groups is None and "kv_head" in ranked:
        groups = int(ranked["kv_head"].max()) + 1
    values = heads.per_instance_.get(chosen)
    return Side(name or heads.name, chosen, grid, order, groups, heads.unit, values, heads.clusters_)


def sides(
    a: Source,
    b: Source,
    method: str | tuple[str, str] | None,
    names: tuple[str, str] | None,
    kv_heads: int | None,
    *,
    alike: bool = True,
) -> tuple[Side, Side]:
    """Both sources as sides, of one shape if they have to be `alike`.

    Raises:
        UsageError: models of different shapes, two lists without scores, a head that the other side does not have.
    """
    asked = method if isinstance(method, tuple) else (method, method)
    called = names or (None, None)
    one, two = (_side(as_heads(s), m, n, kv_heads) for s, m, n in zip((a, b), asked, called, strict=True))
    if one.grid is None and two.grid is None:
        raise UsageError(
            f"{one.name} and {two.name} are both lists without scores; one side has to name every head"
        )
    if alike:
        for side, other in ((one, two), (two, one)):
            if side.grid is None:
                _inside(side, other)
        shapes = [s.grid.shape for s in (one, two) if s.grid is not None]
        if one.unit == two.unit and len(set(shapes)) > 1:
            raise UsageError(
                f"{one.name} has {shapes[0][0]} x {shapes[0][1]} heads and {two.name} {shapes[1][0]} x {shapes[1][1]}; "
                "heads of different models are not the same heads; compare_depth (--relative-depth) compares where "
                "they lie"
            )
    return one, two


def _inside(listed: Side, scored: Side) -> None:
    assert scored.grid is not None
    layers, heads = scored.grid.shape
    beyond = next((p for p in listed.order if p[0] >= layers or p[1] >= heads), None)
    if beyond or listed.unit != scored.unit:
        what = f"head {beyond[0]}-{beyond[1]}" if beyond else "query heads"
        raise UsageError(
            f"{listed.name} names {what}, and {scored.name} has {layers} x {heads} {scored.unit}s"
        )


def units(one: Side, two: Side) -> list[tuple[str, Side, Side]]:
    """Heads with heads, and KV groups with KV groups where they are known."""
    known = {s.kv_heads for s in (one, two) if s.kv_heads is not None}
    out = [("head", one, two)] if one.unit == two.unit == "head" else []
    if one.grid is None or two.grid is None or not known:
        return out
    if len(known) > 1:
        raise UsageError(f"{one.name} has {one.kv_heads} KV heads a layer and {two.name} {two.kv_heads}")
    groups = known.pop()
    if out and groups == one.grid.shape[1]:
        return out  # every head has its own keys and values
    if len(one.grid) != len(two.grid):
        raise UsageError(
            f"{one.name} has {len(one.grid)} layers and {two.name} {len(two.grid)}; the models differ"
        )
    return [*out, ("kv_group", _grouped(one, groups), _grouped(two, groups))]


def _grouped(side: Side, groups: int) -> Side:
    assert side.grid is not None
    grid = side.grid if side.unit == "kv_head" else by_group(side.grid, groups)
    return Side(side.name, side.method, grid, [], groups, "kv_head", side.values, side.clusters)
