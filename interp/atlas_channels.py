"""The channel part of an atlas: which heads talk to which, and what deleting what some heads read does to a task.

Channels come from the weights alone. Whether they matter is asked of a task: the components that the retrieval heads
read are deleted from what their writers write, best first, and as many other components of the same writers, of nearly
the same strength, are deleted instead.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from interp.intervene.base import Compose
from interp.intervene.edit import WeightEdit
from interp.locate.channels.edits import ov_edit
from interp.locate.channels.factors import Factors
from interp.locate.channels.locator import Channels
from interp.locate.channels.weights import Weights
from interp.measure.plans import Condition
from interp.models.sites import Head, component
from interp.models.subject import CausalLM
from interp.tasks.base import stable_seed

NEAREST = 8
"""A control takes the place of a component by one of so many of the same head that are nearest in strength."""


@dataclass(frozen=True)
class Part:
    """An OV component of a head, by its number, strongest first.

    >>> Part(Head(17, 8), 6)
    L17H8.6
    """

    head: Head
    number: int

    def __repr__(self) -> str:
        return f"{self.head}.{self.number}"


@dataclass(frozen=True)
class Deletion(Compose):
    """Components deleted from what their heads write, everywhere; it says of itself what `measure` asks of a cut."""

    components: tuple[Part, ...]
    mode: str = "delete"
    scope: str = "all"
    keys_name: str = ""
    reference: None = None
    reference_name: str = ""

    def describe(self) -> dict[str, str]:
        """What rows tell of its scope."""
        return {"scope": self.scope}


def table(found: Channels) -> pd.DataFrame:
    """Components against the heads that read them, with the channel that each is of.

    Returns:
        rows of `ComponentScores.readers`, best first, with `channel` (its number in `Channels.channels_`) and `place`
        (in the channel, from 0); both are -1 for what is of none.
    """
    out = found.readers_.assign(channel=-1, place=-1)
    for number, channel in enumerate(found.channels_):
        out.loc[channel.scores.index, "channel"] = number
        out.loc[channel.scores.index, "place"] = range(len(channel.scores))
    return out


def spectra(found: Channels) -> pd.DataFrame:
    """Histograms of all cosines of components beside both nulls, mode by mode."""
    parts = [found.components_.spectrum(mode).assign(mode=mode) for mode in found.modes]
    return pd.concat(parts, ignore_index=True)


def read_by(subject: CausalLM, edges: pd.DataFrame, heads: Sequence[Head]) -> list[Part]:
    """The components of the channels that these heads, or their KV groups, read; those of the best channels first.

    Args:
        edges: of `table`.
    """
    names = {repr(h) for h in heads} | {f"L{h.layer}KV{subject.kv_head(h.head)}" for h in heads}
    own = edges[(edges["channel"] >= 0) & edges["reader"].isin(names)].sort_values(["channel", "place"])
    parts = []
    for writer, number in zip(own["writer"], own["component"], strict=True):
        head = component(writer)
        assert isinstance(head, Head)
        parts.append(Part(head, int(number)))
    return list(dict.fromkeys(parts))


@dataclass
class Deletions:
    """Deletes components, and draws others of the same heads in their place.

    Attributes:
        weights: of the model.
    """

    weights: Weights
    _strength: dict[int, np.ndarray] = field(default_factory=dict)
    _each: dict[tuple[Head, frozenset[int]], WeightEdit] = field(default_factory=dict)

    def cut(self, parts: Sequence[Part]) -> Deletion:
        """These components deleted from what their heads write."""
        numbers: dict[Head, set[int]] = {}
        for part in parts:
            numbers.setdefault(part.head, set()).add(part.number)
        edits = []
        for head, own in numbers.items():
            key = head, frozenset(own)
            if key not in self._each:
                self._each[key] = ov_edit(self.weights, head, dict.fromkeys(sorted(own), 0.0))
            edits.append(self._each[key])
        return Deletion(tuple(edits), tuple(parts))

    def strengths(self, layer: int) -> np.ndarray:
        """Singular values of the OV of a layer's heads, strongest first."""
        if layer not in self._strength:
            self._strength[layer] = Factors(self.weights.layer(layer)).ov.s.double().numpy(force=True)
        return self._strength[layer]

    def others(
        self, parts: Sequence[Part], avoid: Sequence[Part], draw: int, seed: int
    ) -> tuple[list[Part], float]:
        """Another component of the same head for each, near it in strength, none of those to avoid.

        Returns:
            the components, and the mean distance of log strengths; fewer where a head has no more.
        """
        rng = np.random.default_rng(stable_seed("other components", seed, draw, *map(repr, parts)))
        taken, out, gaps = set(avoid), [], []
        for part in parts:
            s = self.strengths(part.head.layer)[part.head.head]
            free = [i for i in range(len(s)) if s[i] > 1e-6 * s[0] and Part(part.head, i) not in taken]
            if not free:
                continue
            free.sort(key=lambda i: abs(np.log(s[i] / s[part.number])))
            chosen = free[int(rng.integers(min(NEAREST, len(free))))]
            taken.add(Part(part.head, chosen))
            out.append(Part(part.head, chosen))
            gaps.append(abs(float(np.log(s[chosen] / s[part.number]))))
        return out, float(np.mean(gaps)) if gaps else float("nan")

    def plan(
        self, parts: Sequence[Part], sizes: Sequence[int], controls: int, seed: int
    ) -> Iterator[Condition]:
        """The first k components deleted, for each k, and as many others of the same heads."""
        longest = parts[: max(sizes)]
        for k in sorted({min(k, len(longest)) for k in sizes}):
            yield self._condition("cut", parts[:k])
            for draw in range(controls):
                rest, gap = self.others(parts[:k], longest, draw, seed)
                if rest:
                    more = {"draw": draw, "n_distinct": controls, "control": "component", "gap": gap}
                    yield self._condition("control", rest, k=k, **more)

    def _condition(self, what: str, parts: Sequence[Part], **more: object) -> Condition:
        # A `Condition` is typed for cuts of heads; of what it is made of only what `Deletion` has is asked.
        return Condition(self.cut(parts), what, **({"k": len(parts)} | more))  # type: ignore[arg-type]
