"""Serial recall: a list of words, and the question for the one at a place, or for the one after another.

After WorM (Sikarwar and Zhang, arXiv 2307.10768), where a probe asks for one of several things that were shown in
order. Asked by its place, a word can be found by counting only; asked by the word before it, by induction.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal, get_args

import numpy as np

from interp.errors import UsageError
from interp.models.tokens import Tokens
from interp.tasks.base import Piece
from interp.tasks.compose import Asked
from interp.tasks.pairs import in_turn
from interp.tasks.recall import asked
from interp.tasks.working_memory import (
    ORDINALS,
    Posed,
    WorkingMemory,
    alike_ordinals,
    exchanged,
    listed_words,
)

Probe = Literal["position", "after"]


class SerialRecall(WorkingMemory):
    """Which word stands at a place of a list?

    The word asked for is `value` of item 0, the others are `distractor_value`s; with the probe `after`, the word before
    it is `key`. Candidates are the words of the list but the one that the question names; the foil is a neighbour.
    Twins: `value_swap` exchanges the word and the foil; `query_swap` asks for another place (with the probe `position`
    only where another ordinal number has as many tokens).

    Args:
        items: words of the list, 2 to 12; with the probe `after` 3 or more.
        probe: `position` (the third word) or `after` (the word after another).
        shots: solved questions in front.
    """

    name = "serial_recall"
    source = "wordings and words written for this project; after WorM (arXiv 2307.10768)"
    copies: ClassVar[bool] = True

    def __init__(self, items: int = 6, probe: Probe = "position", shots: int = 0, n: int = 64, seed: int = 0):
        if probe not in get_args(Probe):
            raise UsageError(f"task serial_recall: probe is {probe!r}; take of {', '.join(get_args(Probe))}")
        self.probe = probe
        super().__init__(items=items, most=len(ORDINALS), shots=shots, n=n, seed=seed, probe=probe)
        if probe == "after" and items < 3:
            raise UsageError("task serial_recall: the word after another needs 3 items or more")

    def pose(
        self, turn: int, rng: np.random.Generator, tokens: Tokens, wording: Any, besides: Collection[str]
    ) -> Posed:
        goods = self.words(tokens, "goods", self.items)
        words = goods.draw(rng, self.items, besides)
        after = self.probe == "after"
        first = 1 if after else 0
        place = first + in_turn(turn, self.items - first, self.name, self.seed, "place")
        key = place - 1 if after else -1
        near = [i for i in (place - 1, place + 1) if 0 <= i < self.items and i != key]
        foil = int(rng.choice(near or [i for i in range(self.items) if i not in (place, key)]))

        def ask(words: Sequence[str], place: int, wrong: str = "") -> Asked:
            key = place - 1 if after else -1
            numbers = [place, *(i for i in range(self.items) if i != place)]
            items = {i: number for number, i in enumerate(numbers)}
            roles = [
                ("key", 0) if i == key else ("distractor_value" if items[i] else "value", items[i])
                for i in range(self.items)
            ]
            query = words[key] if after else ORDINALS[place]
            question, stem = wording[self.probe]
            end = asked(question, stem, {"query": (query, "query")})
            pieces = (Piece(wording["intro"]), *listed_words(words, roles), Piece("."), *end)
            options = [words[place], *(w for i, w in enumerate(words) if i not in (place, key))]
            return Asked(pieces, words[place], tuple(options), wrong)

        # Where a twin has the same closed set, it is that of the clean prompt.
        twins = {"value_swap": replace(ask(exchanged(words, place, foil), place), options=())}
        later = [i for i in range(1, self.items) if i != place]
        others = later if after else alike_ordinals(tokens, place, self.items)
        if others:
            other = foil if foil in others else int(rng.choice(others))
            swap = ask(words, other)
            twins["query_swap"] = swap if after else replace(swap, options=())
        meta = {
            "position": place + 1,
            "probe": self.probe,
            "words": words,
            "word_tokens": goods.size,
        }
        return Posed(ask(words, place, words[foil]), twins, frozenset(words), meta)
