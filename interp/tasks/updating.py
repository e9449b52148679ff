"""Updating: several people have some of a thing, get more and lose some, and the question is how many one has now.

After WorM (Sikarwar and Zhang, arXiv 2307.10768), whose memory-updating task changes slots one after another. The
answer stands nowhere in the text by design: it must be kept up with, or worked out from all that happened to one slot.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from interp.models.tokens import Tokens
from interp.tasks.base import Piece, Redraw, whole_number
from interp.tasks.compose import Asked
from interp.tasks.pairs import in_turn
from interp.tasks.recall import asked
from interp.tasks.updates import rounds, said, some
from interp.tasks.working_memory import Posed, WorkingMemory

LARGEST = 9
STEPS = (-3, -2, -1, 1, 2, 3)
_TRIES = 200


@dataclass(frozen=True)
class Change:
    """What happens to one slot; the first change of each is what it starts with."""

    key: str
    by: int


class Updating(WorkingMemory):
    """How many are there now?

    Amounts stay between 0 and 9, and the candidates are these ten numbers, so chance is 1/10; the foil is the amount
    before the last change. Of the slot asked for, the last change is `evidence` of item 0 with its `key` and `change`;
    earlier ones are `stale` (`stale_key`, `stale_value`), their hop counts back, and the largest hop is the start.
    Those of other slots are `distractor`s. Twins: `value_swap` starts with another amount; `key_swap` lets the last
    change happen to another slot, so that the foil is right; `query_swap` asks for another slot.

    Args:
        items: slots, 2 to 6.
        updates: changes of each slot, 1 to 6; rounds over all slots, none twice in a row.
        shots: solved questions in front.
    """

    name = "updating"
    source = "wordings written for this project; after WorM (arXiv 2307.10768)"

    def __init__(self, items: int = 2, updates: int = 1, shots: int = 0, n: int = 64, seed: int = 0):
        self.updates = whole_number(self.name, "updates", updates, 1)
        super().__init__(items=items, most=6, shots=shots, n=n, seed=seed, updates=updates)

    def pose(
        self, turn: int, rng: np.random.Generator, tokens: Tokens, wording: Any, besides: Collection[str]
    ) -> Posed:
        keys = some(rng, self.words(tokens, "names", 1), self.items, besides)
        place = in_turn(turn, self.items, self.name, self.seed, "place")
        changes, start, moved = self._changes(rng, keys, place)

        def ask(changes: Sequence[Change], key: str, wrong: int) -> Asked:
            end = asked(wording["question"], wording["stem"], {"key": (key, "query")})
            pieces = (*_told(wording, changes, key), *end)
            options = tuple(str(i) for i in range(LARGEST + 1))
            return Asked(pieces, str(amounts(changes, key)[-1]), options, str(wrong))

        own = amounts(changes, keys[0])
        twins = {
            "value_swap": ask(start, keys[0], own[-1]),
            "key_swap": ask(moved, keys[0], own[-1]),
            "query_swap": ask(changes, keys[1], own[-1]),
        }
        meta = {
            "position": place + 1,
            "updates": self.updates,
            "asked": keys[0],
            "amounts": own,
            "since": len(changes) - 1 - max(i for i, c in enumerate(changes) if c.key == keys[0]),
        }
        return Posed(ask(changes, keys[0], own[-2]), twins, frozenset(keys), meta)

    def _changes(
        self, rng: np.random.Generator, keys: Sequence[str], place: int
    ) -> tuple[list[Change], list[Change], list[Change]]:
        """What happens, in the order of the text, and the same with another start and with the last change moved."""
        first = [str(k) for k in rng.permutation(keys)]
        order = [*first, *rounds(rng, keys, self.updates, place)]
        last = max(i for i, key in enumerate(order) if key == keys[0])
        for _ in range(_TRIES):
            changes = _walks(rng, order)
            at = order.index(keys[0])
            start = list(changes)
            start[at] = Change(keys[0], int(rng.integers(1, LARGEST + 1)))
            moved = list(changes)
            moved[last] = Change(keys[1], changes[last].by)
            ends = [amounts(changes, key)[-1] for key in keys]
            fits = all(
                0 <= a <= LARGEST for way in (changes, start, moved) for k in keys for a in amounts(way, k)
            )
            if fits and start[at].by != changes[at].by and ends[0] != ends[1]:
                return changes, start, moved
        raise Redraw(f"no amounts stay between 0 and {LARGEST}")


def _walks(rng: np.random.Generator, order: Sequence[str]) -> list[Change]:
    """A start and steps for each slot that stay within bounds."""
    held: dict[str, int] = {}
    out = []
    for key in order:
        steps = [s for s in STEPS if 0 <= held[key] + s <= LARGEST] if key in held else range(1, LARGEST + 1)
        by = int(steps[rng.integers(len(steps))])
        held[key] = held.get(key, 0) + by
        out.append(Change(key, by))
    return out


def amounts(changes: Sequence[Change], key: str) -> list[int]:
    """How many a slot holds, from its start on."""
    return np.cumsum([c.by for c in changes if c.key == key]).tolist()


def _told(wording: dict[str, str], changes: Sequence[Change], asked: str) -> list[Piece]:
    items = {
        k: i for i, k in enumerate([asked, *(k for k in dict.fromkeys(c.key for c in changes) if k != asked)])
    }
    out: list[Piece] = []
    for i, change in enumerate(changes):
        age = sum(c.key == change.key for c in changes[i + 1 :])
        starts = change.key not in {c.key for c in changes[:i]}
        item = items[change.key]
        prefix, whole = (
            ("distractor_", "distractor") if item else ("stale_", "stale") if age else ("", "evidence")
        )
        line = wording["start" if starts else "up" if change.by > 0 else "down"]
        words = {
            "key": (change.key, f"{prefix}key"),
            "value": (str(abs(change.by)), f"{prefix}value" if prefix else "change"),
        }
        pieces = said(line, words, item, whole, age)
        if out:
            pieces[0] = replace(pieces[0], text=" " + pieces[0].text)
        out += pieces
    return out
