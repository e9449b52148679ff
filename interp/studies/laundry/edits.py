"""Edits at the last token, as data: parts of heads that are scaled, and coordinates that are moved.

An edit has a size, which is what is tuned, and may have one for each length of list. All act where the answer is
predicted (scope `answer`), so that many of them share one prefill.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from interp.intervene.base import Intervention
from interp.intervene.coordinates import scale_coordinates, set_coordinates, shift_coordinates
from interp.intervene.edit import WeightEdit
from interp.intervene.subspace import Subspace
from interp.locate.channels.edits import ov_edit
from interp.locate.channels.factors import Factors
from interp.locate.channels.weights import Weights
from interp.models.sites import Head, Site
from interp.tasks.base import stable_seed

NAMED = 10
"""Parts of an edit that its name has."""

Size = float | Mapping[int, float]
"""One number, or one for each number of listed things."""


@dataclass(frozen=True)
class Part:
    """What is scaled of a head: some of its OV components, or all that it writes.

    Attributes:
        head: the head.
        components: numbers of its OV components, strongest first; none stands for the whole head.
        weight: the factor is 1 + weight * (size - 1).
    """

    head: Head
    components: tuple[int, ...] = ()
    weight: float = 1.0

    def __repr__(self) -> str:
        name = repr(self.head) + "".join(f".{i}" for i in self.components)
        return name if self.weight == 1 else f"{name}*{self.weight:+.2f}"


class Directions:
    """Written directions of a model's OV components, found once a layer."""

    def __init__(self, weights: Weights):
        self.weights = weights
        self._found: dict[int, Float[torch.Tensor, "h k d"]] = {}
        self._whole: dict[int, Subspace] = {}

    def of(self, head: Head, components: Sequence[int] | None = None) -> Float[torch.Tensor, "k d"]:
        """Unit vectors that a head's components write, all or some of them."""
        if head.layer not in self._found:
            self._found[head.layer] = Factors(self.weights.layer(head.layer)).ov.write
        every = self._found[head.layer][head.head]
        return every if components is None else every[list(components)]

    def along(self, part: Part) -> Subspace:
        """Where components of a head act: what it adds to the stream, along them."""
        site = Site("head_out", part.head.layer, part.head.head)
        return Subspace.spanned(site, self.of(part.head, part.components))

    def whole(self, layer: int) -> Subspace:
        """Where whole heads of a layer act: all numbers of its z."""
        if layer not in self._whole:
            subject = self.weights.subject
            self._whole[layer] = Subspace(Site("z", layer), torch.eye(subject.n_heads * subject.d_head))
        return self._whole[layer]


@dataclass(frozen=True)
class Scaled:
    """Parts of heads that are multiplied at the last token."""

    kind: str
    parts: tuple[Part, ...]
    size: Size = 1.0

    @property
    def name(self) -> str:
        """What is edited, without the size; of many parts the first, and how many more there are."""
        more = len(self.parts) - NAMED
        return " ".join(map(repr, self.parts[:NAMED])) + (f" and {more} more" if more > 0 else "")

    @property
    def dims(self) -> int | None:
        """Dimensions that are scaled; None where whole heads are."""
        return sum(len(p.components) for p in self.parts) if all(p.components for p in self.parts) else None

    def factors(self, items: int) -> list[float]:
        """Factor of each part, for a length of list."""
        return [1 + p.weight * (size_at(self.size, items) - 1) for p in self.parts]

    def at(self, items: int, directions: Directions) -> Intervention:
        """The intervention for lists of so many things."""
        heads: dict[int, np.ndarray] = {}
        subject = directions.weights.subject
        found: list[Intervention] = []
        for part, factor in zip(self.parts, self.factors(items), strict=True):
            if part.components:
                found.append(scale_coordinates(directions.along(part), factor, "answer"))
                continue
            # Whole heads of a layer are scaled at once, so that one tap serves all conditions.
            own = heads.setdefault(part.head.layer, np.ones((subject.n_heads, subject.d_head)))
            own[part.head.head] *= factor
        found += [scale_coordinates(directions.whole(i), own.ravel(), "answer") for i, own in heads.items()]
        return _sum(found)

    def as_weights(self, items: int, weights: Weights) -> Intervention:
        """The same scales in the weights, which hold at every token."""
        pairs = zip(self.parts, self.factors(items), strict=True)
        return _sum(_weights_of(p, f, weights) for p, f in pairs)

    def resized(self, size: Size) -> Scaled:
        """The same with another size."""
        return replace(self, size=size)

    def finer(self, share: float) -> float:
        """A size whose change is a share of this one's."""
        return 1 + share * (size_at(self.size) - 1)


@dataclass(frozen=True, eq=False)
class Moved:
    """Coordinates of a channel at the last token, set to their mean and so many standard deviations.

    Attributes:
        space: the channel in the stream that its reader's layer gets.
        mean, deviation: of its coordinates at the last token of train prompts.
        axis: which coordinate is set; the others stay as they are.
    """

    kind: str
    label: str
    space: Subspace
    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    axis: int
    size: Size = 0.0
    shifted: bool = False

    @property
    def name(self) -> str:
        """What is edited, without the size."""
        return f"{self.label}, coordinate {self.axis} {'shifted' if self.shifted else 'set'}"

    @property
    def dims(self) -> int | None:
        """Dimensions that are moved."""
        return 1

    def at(self, items: int, directions: Directions) -> Intervention:
        """The intervention for lists of so many things."""
        step = size_at(self.size, items) * self.deviation[self.axis]
        numbers = [0.0 if self.shifted else float("nan")] * self.space.rank
        numbers[self.axis] = step if self.shifted else self.mean[self.axis] + step
        return (shift_coordinates if self.shifted else set_coordinates)(self.space, numbers, "answer")

    def resized(self, size: Size) -> Moved:
        """The same with another size."""
        return replace(self, size=size)

    def finer(self, share: float) -> float:
        """A size whose change is a share of this one's."""
        return share * size_at(self.size)


@dataclass(frozen=True)
class InWeights:
    """An edit made in the weights, so that it holds at every token."""

    edit: Scaled

    @property
    def kind(self) -> str:
        """That of the edit, and that it is one of weights."""
        return f"{self.edit.kind}, in the weights"

    def at(self, items: int, directions: Directions) -> Intervention:
        """The intervention for lists of so many things."""
        return self.edit.as_weights(items, directions.weights)


Edit = Scaled | Moved


def size_at(size: Size, items: int | None = None) -> float:
    """The size for lists of so many things."""
    if not isinstance(size, Mapping):
        return size
    if items is None:
        raise ValueError("an edit with a size for each length has no single one")
    return size[items]


def _weights_of(part: Part, factor: float, weights: Weights) -> WeightEdit:
    if part.components:
        return ov_edit(weights, part.head, {i: factor for i in part.components})
    subject = weights.subject
    output = subject.out_weight(part.head.layer)[part.head.head]
    return WeightEdit.of_head(subject, part.head, (factor - 1) * torch.eye(len(output)), output)


def _sum(parts: Any) -> Intervention:
    found: Intervention = reduce(lambda a, b: a + b, parts)
    return found


# -- controls --------------------------------------------------------------------------------------------------------


def random_components(
    edit: Scaled, avoid: Mapping[Head, Sequence[int]], d_head: int, draw: int, seed: int
) -> Scaled:
    """The same factors on as many other components of the same heads; of whole heads there are none to draw."""
    rng = np.random.default_rng(stable_seed("components", seed, draw, edit.name))
    parts: list[Part] = []
    for part in edit.parts:
        free = [i for i in range(d_head) if i not in {*part.components, *avoid.get(part.head, ())}]
        drawn = rng.choice(free, size=min(len(part.components), len(free)), replace=False)
        parts.append(replace(part, components=tuple(sorted(map(int, drawn)))))
    return replace(edit, kind=f"{edit.kind}: other components", parts=tuple(parts))


def other_heads(
    edit: Scaled, avoid: Sequence[Head], n_heads: int, n_layers: int, draw: int, seed: int
) -> Scaled:
    """The same factors on other heads, of the same layers where these have enough; of components their first ones.

    Heads to avoid are drawn only where no others are left, the edit's own never. Where an edit has most of the heads,
    its factors change places among them.
    """
    rng = np.random.default_rng(stable_seed("heads", seed, draw, edit.name))
    kind = f"{edit.kind}: other heads"
    if len(edit.parts) > n_heads * n_layers // 2:
        order = rng.permutation(len(edit.parts))
        swapped = [replace(p, head=edit.parts[i].head) for p, i in zip(edit.parts, order, strict=True)]
        return replace(edit, kind=kind, parts=tuple(swapped))
    taken = {p.head for p in edit.parts}
    every = [Head(i, h) for i in range(n_layers) for h in range(n_heads)]
    parts: list[Part] = []
    for part in edit.parts:
        left = [h for h in every if h not in taken]
        free = [h for h in left if h not in avoid] or left
        near = min(abs(h.layer - part.head.layer) for h in free)
        free = [h for h in free if abs(h.layer - part.head.layer) == near]
        head = free[int(rng.integers(len(free)))]
        taken.add(head)
        parts.append(replace(part, head=head, components=tuple(range(len(part.components)))))
    return replace(edit, kind=kind, parts=tuple(parts))


@dataclass(frozen=True)
class Pushed:
    """A random direction added to what attention writes in each layer of an edit, as long as its change on average.

    Attributes:
        lengths: for each length of list, of each layer.
    """

    kind: str
    edit: Scaled
    lengths: Mapping[int, Mapping[int, float]]
    draw: int
    seed: int
    size: Size = 1.0

    @property
    def name(self) -> str:
        """What is edited, without the size."""
        return f"random directions as long, draw {self.draw}"

    @property
    def dims(self) -> int | None:
        """Dimensions that are moved."""
        return len(next(iter(self.lengths.values())))

    def at(self, items: int, directions: Directions) -> Intervention:
        """The intervention for lists of so many things."""
        rng = np.random.default_rng(stable_seed("directions", self.seed, self.draw, self.edit.name))
        d = directions.weights.subject.d_model
        found = []
        for layer, length in sorted(self.lengths[items].items()):
            drawn = rng.standard_normal((1, d)).astype(np.float32)
            found.append(
                shift_coordinates(Subspace.spanned(Site("attn_out", layer), drawn), length, "answer")
            )
        return _sum(found)
