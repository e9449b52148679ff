"""Tasks of working memory in tokens: what they have in common.

After WorM (Sikarwar and Zhang, arXiv 2307.10768), whose ten tasks are pictures and recurrent networks: things are
shown one after another, and one question tells whether they were kept. `items` is the size of the set and `position`
the place of what is asked for (from 1), so that set-size and serial-position curves can be drawn
(`interp.measure.recall_curves`).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from interp.errors import UsageError
from interp.models.tokens import Tokens
from interp.tasks.base import Example, Piece, Task, continuations, whole_number
from interp.tasks.compose import Asked, compose
from interp.tasks.pairs import Alike, data, in_turn

ORDINALS = (
    *("first", "second", "third", "fourth", "fifth", "sixth"),
    *("seventh", "eighth", "ninth", "tenth", "eleventh", "twelfth"),
)


@dataclass(frozen=True)
class Posed:
    """A question with its twins, the words that it is about, and what is recorded of it."""

    clean: Asked
    twins: Mapping[str, Asked]
    words: frozenset[str]
    meta: Mapping[str, Any]


class WorkingMemory(Task):
    """Base of the tasks of working memory: wordings in turn, and solved questions in front.

    Args:
        items: things to keep.
        most: so many at most.
        shots: solved questions of the same wording in front, about other words.
    """

    def __init__(self, *, items: int, most: int, shots: int, n: int, seed: int, **params: Any):
        self.items = whole_number(self.name, "items", items, 2)
        self.shots = whole_number(self.name, "shots", shots, 0)
        if items > most or shots > 4:
            raise UsageError(f"task {self.name}: {items} items and {shots} shots; take {most} and 4 at most")
        super().__init__(n=n, seed=seed, items=items, shots=shots, **params)
        self._pools: dict[str, Alike] = {}

    @abstractmethod
    def pose(
        self, turn: int, rng: np.random.Generator, tokens: Tokens, wording: Any, besides: Collection[str]
    ) -> Posed:
        """One question.

        Args:
            turn: what goes in turn (positions, right answers) goes by it.
            wording: one of the task's wordings.
            besides: words that it must not be about.
        """

    def make(self, index: int, rng: np.random.Generator, tokens: Tokens) -> Example:
        wordings = data("working_memory")[self.name]
        template = list(wordings)[in_turn(index, len(wordings), self.name, self.seed, "template")]
        posed = self.pose(index, rng, tokens, wordings[template], ())
        taken, lead = set(posed.words), ""
        # Two turns that begin with an even one hold both answers of a question with two.
        start = 2 * int(rng.integers(2**30))
        for k in range(self.shots):
            shown = self.pose(start + k, rng, tokens, wordings[template], taken)
            taken |= shown.words
            lead += "".join(p.text for p in shown.clean.pieces) + f" {shown.clean.answer}\n\n"
        front = (Piece(lead),) if lead else ()
        return compose(
            self.name,
            tokens,
            replace(posed.clean, pieces=(*front, *posed.clean.pieces)),
            {kind: replace(twin, pieces=(*front, *twin.pieces)) for kind, twin in posed.twins.items()},
            cluster=template,
            meta={"template": template, "items": self.items, "shots": self.shots, **posed.meta},
            copies=self.copies,
        )

    def words(self, tokens: Tokens, pool: str, least: int) -> Alike:
        """Words of a pool for all questions of an example."""
        if tokens.fingerprint not in self._pools:
            self._pools[tokens.fingerprint] = Alike(tokens, pool, least * (1 + self.shots), self.name)
        return self._pools[tokens.fingerprint]


def listed_words(words: Sequence[str], roles: Sequence[tuple[str, int]]) -> list[Piece]:
    """Words with commas between them, each with its role and item."""
    out: list[Piece] = []
    for word, (role, item) in zip(words, roles, strict=True):
        out += [*([Piece(",")] if out else []), Piece(f" {word}", role, item)]
    return out


def exchanged(words: Sequence[str], i: int, j: int) -> list[str]:
    """The words with two of them in each other's place."""
    out = list(words)
    out[i], out[j] = out[j], out[i]
    return out


def alike_ordinals(tokens: Tokens, place: int, n: int) -> list[int]:
    """Other places among `n` whose ordinal number has as many tokens as that of `place`; all count from 0."""
    lengths = [len(ids) for ids in continuations(tokens, "the", [f" {o}" for o in ORDINALS[:n]])]
    return [i for i in range(n) if i != place and lengths[i] == lengths[place]]
