"""Units of parts, ranked: what the locators of neurons share, from the table of scores to the edit.

A unit is an input column of a part: for `ff_out`, a neuron. A locator gives each unit a number for each item; the score
is the mean over the target items, less that over the reference items where there are some.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, cast

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from interp.errors import UsageError
from interp.locate.memorization.base import Data, ItemLocator
from interp.models.parts import Part

if TYPE_CHECKING:
    from interp.intervene.weights import Stack

Values = Mapping[Part, Float[torch.Tensor, "items units"]]
"""A number of each item for each unit of each part."""
Others = Mapping[Part, Float[torch.Tensor, "others units"]]
"""The same of other items, which may be more or fewer."""


class UnitLocator(ItemLocator[Data]):
    """Base of locators whose components are units of parts, of either kind of subject.

    After `fit` (see `ItemLocator`):
        scores_: one row a unit and method: component (`ff_out[3].17`), part, unit, method, score, se, target, null, n;
            se is over items, and NaN where there is a single one or where items have no numbers of their own.
        parts_: what was scored.
    """

    def units(self, k: int, method: str | None = None) -> tuple[tuple[Part, int], ...]:
        """The k units that score highest, over all parts.

        Raises:
            UsageError: there are fewer, or no such method.
        """
        return top_units(self.ranking(method), self.parts_, k)

    def edit(self, k: int | None = None, *, share: float | None = None, method: str | None = None) -> Stack:
        """The highest units set to zero: their columns of the weights.

        Args:
            k: how many. share: in place of it, of all units that are scored.

        Raises:
            UsageError: neither or both are given, or none or more than there are.
        """
        from interp.intervene.weights import Prune, Stack

        chosen: dict[Part, list[int]] = {}
        for part, unit in self.units(self._count(k, share, len(self.ranking(method))), method):
            chosen.setdefault(part, []).append(unit)
        edits = (Prune.units(self.subject_, part, units) for part, units in sorted(chosen.items()))
        return Stack(tuple(edits))

    @staticmethod
    def _count(k: int | None, share: float | None, n: int) -> int:
        if (k is None) == (share is None):
            raise UsageError("say how much is cut: k=10, or share=0.01, and not both")
        if share is None:
            assert k is not None
            return k
        if not 0 < share <= 1 or int(share * n) < 1:
            raise UsageError(f"share={share} of {n} is none of them, or more than there are")
        return int(share * n)


def top_units(ranked: pd.DataFrame, parts: Sequence[Part], k: int) -> tuple[tuple[Part, int], ...]:
    """The first k units of a table with part and unit.

    Raises:
        UsageError: there are fewer.
    """
    if not 1 <= k <= len(ranked):
        raise UsageError(f"{k} units were asked for, but {len(ranked)} are scored")
    by_name = {repr(part): part for part in parts}
    return tuple((by_name[str(r.part)], cast(int, r.unit)) for r in ranked[:k].itertuples())


def unit_table(method: str, target: Values, reference: Others | None = None) -> pd.DataFrame:
    """One row a unit: component, part, unit, method, score, se, target, null, n (target items)."""
    frames = []
    for part, values in target.items():
        a = values.detach().double().cpu().numpy()
        b = None if reference is None else reference[part].detach().double().cpu().numpy()
        null = np.zeros(a.shape[1]) if b is None else b.mean(0)
        spread = _variance(a) + (0.0 if b is None else _variance(b))
        frames.append(
            pd.DataFrame(
                {
                    "part": repr(part),
                    "unit": np.arange(a.shape[1]),
                    "method": method,
                    "score": a.mean(0) - null,
                    "se": np.sqrt(spread),
                    "target": a.mean(0),
                    "null": null,
                    "n": len(a),
                }
            )
        )
    out = pd.concat(frames, ignore_index=True)
    out.insert(0, "component", out["part"] + "." + out["unit"].astype(str))
    return out


def _variance(values: np.ndarray) -> np.ndarray:
    """Of the mean over items."""
    if len(values) < 2:
        return np.full(values.shape[1], np.nan)
    return np.asarray(values.var(0, ddof=1) / len(values))
