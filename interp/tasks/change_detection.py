"""Change detection: a list, the list once more, and the question whether anything has changed.

After WorM (Sikarwar and Zhang, arXiv 2307.10768). Chance is one half; yes is as often the right answer as no, and half
of the wordings ask whether the lists are the same, half whether they differ.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Literal, get_args

import numpy as np

from interp.errors import UsageError
from interp.models.tokens import Tokens
from interp.tasks.base import Piece
from interp.tasks.compose import Asked
from interp.tasks.pairs import in_turn
from interp.tasks.working_memory import Posed, WorkingMemory, exchanged, listed_words

Change = Literal["item", "order"]


class ChangeDetection(WorkingMemory):
    """Has anything changed?

    The first list stands in the context, the second in the question, where its words are the `query`. What has changed,
    or changes in the twins, is `evidence` of item 0 in the first list and `query` of item 0 in the second; the other
    words of the first are `distractor_value`s. Twins flip the answer: `query_swap` in the second list, `value_swap` in
    the first.

    Args:
        items: words of the list, 2 to 12.
        change: `item` (another word takes a place) or `order` (two words change places).
        shots: solved questions in front.
    """

    name = "change_detection"
    source = "wordings and words written for this project; after WorM (arXiv 2307.10768)"

    def __init__(self, items: int = 4, change: Change = "item", shots: int = 2, n: int = 64, seed: int = 0):
        if change not in get_args(Change):
            known = ", ".join(get_args(Change))
            raise UsageError(f"task change_detection: change is {change!r}; take of {known}")
        self.change = change
        super().__init__(items=items, most=12, shots=shots, n=n, seed=seed, change=change)

    def pose(
        self, turn: int, rng: np.random.Generator, tokens: Tokens, wording: Any, besides: Collection[str]
    ) -> Posed:
        goods = self.words(tokens, "goods", self.items + 1)
        *words, spare = goods.draw(rng, self.items + 1, besides)
        # Two turns that begin with an even one are about one place, with both answers.
        place = in_turn(turn // 2, self.items, self.name, self.seed, "place")
        differs = in_turn(turn, 2, self.name, self.seed, "answer")
        other = int(rng.choice([i for i in range(self.items) if i != place]))
        if self.change == "order":
            changed = exchanged(words, place, other)
        else:
            changed = [spare if i == place else w for i, w in enumerate(words)]
        places = {place, other} if self.change == "order" else {place}

        def ask(first: Sequence[str], second: Sequence[str]) -> Asked:
            items = [0 if i in places else i + 1 for i in range(self.items)]
            shown = [("distractor_value" if item else "evidence", item) for item in items]
            again = [("query", item) for item in items]
            pieces = [
                Piece(wording["first"]),
                *listed_words(first, shown),
                Piece(".\n\n"),
                Piece(f"Question: {wording['second']}", within="question", item=0),
                *listed_words(second, again),
                Piece(f". {wording['question']}", within="question", item=0),
                Piece("\nAnswer:"),
            ]
            same, different = ("Yes", "No") if wording["same"] == "Yes" else ("No", "Yes")
            return Asked(tuple(pieces), same if first == second else different, ("Yes", "No"))

        before, after = words, changed if differs else words
        twins = {
            "query_swap": ask(before, words if differs else changed),
            "value_swap": ask(changed, after),
        }
        meta = {
            "position": place + 1,
            "change": self.change,
            "differs": bool(differs),
            "words": words,
            "word_tokens": goods.size,
        }
        return Posed(ask(before, after), twins, frozenset((*words, spare)), meta)
