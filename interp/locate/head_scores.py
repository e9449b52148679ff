"""Scores of heads, wherever they come from: a file, a frame, a fitted locator.

`HeadScores` holds them in one frame that names every head once, with a finite score; what does not is refused.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from interp.errors import BrokenData, UsageError
from interp.locate.base import Scored
from interp.measure.stats import cluster_se

if TYPE_CHECKING:
    from interp.models.sites import Component

_HEAD = re.compile(r"^(0|[1-9]\d*)-(0|[1-9]\d*)$")
_MOST = 1 << 22
"""An index beyond it is a slip, not a model."""


@dataclass(frozen=True)
class HeadScores(Scored):
    """Scores of heads that were read from a file, or taken from a fitted locator.

    Attributes:
        scores_: component, method, layer, head, kv_head (where known), score, se, n; for scores of KV heads there is no
            `head`, and a list without scores has NaN scores, best first.
        per_instance_: method -> array (accepted instances, layers, heads), where the source has it.
        clusters_: cluster of each instance; None where the source does not say.
        unit: what a row is: a query head, or a KV head, which query heads share.
    """

    scores_: pd.DataFrame
    name: str
    format: str
    per_instance_: dict[str, np.ndarray] = field(default_factory=dict)
    clusters_: tuple[str, ...] | None = None
    unit: Literal["head", "kv_head"] = "head"

    @property
    def methods(self) -> list[str]:
        """Names of the scores, the primary one first."""
        return list(dict.fromkeys(self.scores_["method"]))

    def listed(self, method: str | None = None) -> bool:
        """Whether this is a bare list: an order of some heads, without scores."""
        return bool(self.ranking(method)["score"].isna().all())

    def top(self, k: int, method: str | None = None) -> tuple[Component, ...]:
        """The k heads with the highest score.

        Raises:
            UsageError: there are fewer, or the scores belong to KV heads, which are no components.
        """
        if self.unit == "kv_head":
            raise UsageError(
                f"{self.name} scores KV heads, and cuts are made at query heads; read it with the model's number of "
                "heads: read_heads(path, heads=32)"
            )
        return super().top(k, method)


def checked(frame: pd.DataFrame, where: str) -> pd.DataFrame:
    """A frame like `scores_` that names every head once with a finite score."""
    gone = [c for c in ("layer", "head", "score") if c not in frame]
    if gone:
        raise BrokenData(
            f"{where}: has no column {', '.join(gone)}; scores_ has component, method, layer, head, score"
        )
    if not len(frame):
        raise BrokenData(f"{where}: has no rows")
    frame = frame.reset_index(drop=True)
    for column in ("layer", "head", "score"):
        if not pd.api.types.is_numeric_dtype(frame[column]) or pd.api.types.is_bool_dtype(frame[column]):
            raise BrokenData(f"{where}: column {column} holds what is no number")
    bad = ~np.isfinite(frame["score"].to_numpy(float))
    if bad.any():
        raise BrokenData(
            f"{where}: row {int(bad.argmax())} has a score of {frame['score'][int(bad.argmax())]}"
        )
    for column in ("layer", "head"):
        wrong = ((frame[column] % 1 != 0) | (frame[column] < 0) | (frame[column] >= _MOST)).to_numpy()
        if wrong.any():
            row = int(wrong.argmax())
            raise BrokenData(f"{where}: row {row} has {column} {frame[column][row]}; it counts from 0")
    frame = frame.astype({"layer": int, "head": int})
    if "method" not in frame:
        frame.insert(0, "method", "score")
    names = pd.Series([f"L{la}H{h}" for la, h in zip(frame["layer"], frame["head"], strict=True)])
    if "component" not in frame:
        frame.insert(0, "component", names)
    wrong = (frame["component"] != names).to_numpy()
    if wrong.any():
        row = int(wrong.argmax())
        raise BrokenData(
            f"{where}: row {row} is {frame['component'][row]}, and its layer and head say {names[row]}"
        )
    for _, own in frame.groupby("method", sort=False):
        places = list(zip(own["layer"], own["head"], strict=True))
        once(where, places)
        whole(where, places)
    return frame


def once(where: str, places: Sequence[tuple[int, int]]) -> None:
    """Refuse a head that stands twice."""
    if len(set(places)) < len(places):
        layer, head = next(p for i, p in enumerate(places) if p in places[:i])
        raise BrokenData(f"{where}: head {layer}-{head} stands twice")


def rows(places: Sequence[tuple[int, int]], method: str, scores: Any) -> pd.DataFrame:
    """A frame of (layer, head) places and their scores, without standard errors."""
    return pd.DataFrame(
        {
            "component": [f"L{la}H{h}" for la, h in places],
            "method": method,
            "layer": [p[0] for p in places],
            "head": [p[1] for p in places],
            "score": scores,
            "se": math.nan,
            "n": 1,
        }
    )


def means(values: np.ndarray, method: str) -> pd.DataFrame:
    """The frame of per-instance scores (n, layers, heads): mean and standard error, each instance by itself."""
    n, layers, heads = values.shape
    frame = rows([(la, h) for la in range(layers) for h in range(heads)], method, values.mean(0).reshape(-1))
    return frame.assign(se=cluster_se(values, [str(i) for i in range(n)]).reshape(-1), n=n)


def place(where: str, key: Any) -> tuple[int, int]:
    """Layer and head of a name as the field writes it, "16-19"."""
    match = _HEAD.match(key) if isinstance(key, str) else None
    if not match:
        raise BrokenData(f'{where}: {key!r:.40} names no head; heads are written "layer-head", as in "16-19"')
    layer, head = int(match[1]), int(match[2])
    if max(layer, head) >= _MOST:
        raise BrokenData(f"{where}: {key!r:.40} is no head of any model")
    return layer, head


def whole(where: str, places: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Layers and heads of a model whose every head is named."""
    layers, heads = (1 + max(p[i] for p in places) for i in (0, 1))
    if layers * heads != len(places):
        there = set(places)
        gone = next((la, h) for la in range(layers) for h in range(heads) if (la, h) not in there)
        raise BrokenData(
            f"{where}: head {gone[0]}-{gone[1]} is missing ({len(places)} heads, {layers} x {heads} by their names); "
            "scores name every head"
        )
    return layers, heads
