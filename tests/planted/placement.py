"""Which head plays which part: random sizes, and a place for every planted head and decoy that the circuit allows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

Place = tuple[int, int]
"""(layer, query head)."""

READS = {
    "support": "any",
    "retrieval": "previous",
    "silent": "previous",
    "duplicate": "token",
    "ahead": "two_back",
    "two_back": "any",
    "salient": "any",
    "sink": "any",
    "offset": "any",
    "previous": "any",
    "carry": "any",
    "carry_key": "any",
    "semantic": "carried_key",
    "place": "any",
}
"""Part -> the subspace that its keys must hold; heads of one KV group share their keys. "any": position only."""

EARLY = ("support", "two_back", "carry", "carry_key")
LATE = ("retrieval", "silent", "ahead", "semantic")

DECOYS: tuple[tuple[str, ...], ...] = (
    ("duplicate",),
    ("two_back", "ahead"),
    ("salient",),
    ("sink",),
    ("offset",),
    ("previous",),
)
"""Decoy parts; `ahead` stands on what `two_back` writes, so these two come together."""


class NoRoom(ValueError):
    """The model is too small for the heads asked for."""


@dataclass
class Placement:
    """Sizes of a model and the part of each head that has one; the other heads are random.

    Attributes:
        part: head -> its part, numbered (`duplicate`, `duplicate.1`, ...).
        reads: (layer, KV group) -> subspace that the group's keys hold; groups without an entry are random.
        border: the last early layer; the retrieval heads lie above it.
    """

    n_layers: int
    n_heads: int
    n_kv: int
    border: int
    part: dict[Place, str] = field(default_factory=dict)
    reads: dict[Place, str] = field(default_factory=dict)

    def group(self, head: int) -> int:
        """KV group of a query head."""
        return head * self.n_kv // self.n_heads

    def heads_of(self, *kinds: str) -> list[Place]:
        """Heads of these kinds, numbering ignored."""
        return sorted(place for place, name in self.part.items() if name.split(".")[0] in kinds)

    def put(self, name: str, rng: np.random.Generator) -> bool:
        """Give the part to a random free head that allows it; False where there is none."""
        kind = name.split(".")[0]
        first = self.border + 1 if kind in LATE else 0
        last = self.border if kind in EARLY else self.n_layers - 1
        free = []
        for layer in range(first, last + 1):
            for head in range(self.n_heads):
                held = self.reads.get((layer, self.group(head)))
                if (layer, head) not in self.part and (READS[kind] == "any" or held in (None, READS[kind])):
                    free.append((layer, head))
        if not free:
            return False
        layer, head = free[int(rng.integers(len(free)))]
        self.part[layer, head] = name
        # Position is in the keys of every group that holds something; "token" is what an early group can hold.
        self.reads.setdefault((layer, self.group(head)), "token" if READS[kind] == "any" else READS[kind])
        return True


def decoy_names(rng: np.random.Generator, n: int | None) -> list[str]:
    """Names of the first `n` decoys in random order, numbered from the second round on; None: one of each kind."""
    names: list[str] = []
    turn = 0
    while n is None or len(names) < n:
        for i in rng.permutation(len(DECOYS)):
            names += [kind if turn == 0 else f"{kind}.{turn}" for kind in DECOYS[i]]
        turn += 1
        if n is None:
            return names
    return names[:n]


def place(
    rng: np.random.Generator,
    *,
    grouped: bool,
    n_planted: int | None,
    n_decoys: int | None,
    n_silent: int,
    n_semantic: int = 0,
    n_place: int = 0,
    tries: int = 200,
) -> Placement:
    """Draw sizes and give every part a head.

    Args:
        rng: source of all choices.
        grouped: several query heads share keys and values.
        n_planted: number of retrieval heads; None: 1 to 4.
        n_decoys: number of typed decoys; None: as many of the kinds as there is room for.
        n_silent: number of heads that attend as retrieval heads do and write nothing that is read.
        n_semantic: number of semantic heads; two heads that carry codes to where they look come with them.
        n_place: number of heads that attend to a fixed place.

    Raises:
        NoRoom: no drawn size holds them all.
    """
    for _ in range(tries):
        n_layers = int(rng.integers(2, 6))
        if grouped:
            n_heads = int(rng.choice([4, 6, 8, 9, 10, 12]))
            n_kv = n_heads // int(rng.choice([g for g in (2, 3, 4) if n_heads % g == 0]))
        else:
            n_heads = n_kv = int(rng.integers(4, 13))
        drawn = Placement(n_layers, n_heads, n_kv, border=int(rng.integers(0, n_layers - 1)))
        names = decoy_names(rng, n_decoys)
        n_heads_planted = int(rng.integers(1, 5)) if n_planted is None else n_planted
        needed: Sequence[str] = (
            ["support"] * int(rng.integers(1, 3)) + ["retrieval"] * n_heads_planted + ["silent"] * n_silent
        )
        if n_semantic:
            needed = [*needed, "carry", "carry_key", *["semantic"] * n_semantic]
        needed = [*needed, *(f"place.{i}" if i else "place" for i in range(n_place))]
        if not all(drawn.put(name, rng) for name in needed):
            continue
        placed = [drawn.put(name, rng) for name in names if name.split(".")[0] != "ahead"]
        if drawn.heads_of("two_back"):
            placed += [drawn.put(name, rng) for name in names if name.split(".")[0] == "ahead"]
        if n_decoys is None or sum(placed) == n_decoys:
            return drawn
    raise NoRoom(f"no drawn size holds {n_planted=}, {n_decoys=}, {n_silent=}, {n_semantic=}, {n_place=}")
