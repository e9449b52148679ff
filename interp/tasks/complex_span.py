"""Complex span: words to remember with judgements about numbers between them, and the question for one of the words.

After WorM (Sikarwar and Zhang, arXiv 2307.10768) and the span tasks of psychology: what must be kept is parted by work
that has nothing to do with it. The judgements are given with their right answers; only the word is asked for.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal, get_args

import numpy as np

from interp.errors import UsageError
from interp.models.tokens import Tokens
from interp.tasks.base import Piece, whole_number
from interp.tasks.compose import Asked
from interp.tasks.pairs import in_turn
from interp.tasks.recall import asked, phrase
from interp.tasks.working_memory import ORDINALS, Posed, WorkingMemory, alike_ordinals, exchanged

Judgement = Literal["parity", "size", "sum"]


class ComplexSpan(WorkingMemory):
    """Which word was to be remembered first, second, ...?

    The sentence with the word asked for is `evidence`, the word `value` of item 0; other words are `distractor_value`s,
    and judgements `filler`, numbered in order. Candidates are the words to remember. Twins: `value_swap` exchanges the
    word and the foil, its neighbour; `query_swap` asks for another place (where another ordinal number has as many
    tokens).

    Args:
        items: words to remember, 2 to 12.
        load: judgements after each word; 0 is a plain list.
        judgement: `parity` (is 14 even?), `size` (is 14 larger than 9?) or `sum` (is 4 + 5 equal to 8?).
        shots: solved questions in front.
    """

    name = "complex_span"
    source = "wordings and words written for this project; after WorM (arXiv 2307.10768)"
    copies: ClassVar[bool] = True

    def __init__(
        self,
        items: int = 4,
        load: int = 1,
        judgement: Judgement = "parity",
        shots: int = 0,
        n: int = 64,
        seed: int = 0,
    ):
        self.load = whole_number(self.name, "load", load, 0)
        if judgement not in get_args(Judgement):
            known = ", ".join(get_args(Judgement))
            raise UsageError(f"task complex_span: judgement is {judgement!r}; take of {known}")
        self.judgement = judgement
        super().__init__(
            items=items, most=len(ORDINALS), shots=shots, n=n, seed=seed, load=load, judgement=judgement
        )

    def pose(
        self, turn: int, rng: np.random.Generator, tokens: Tokens, wording: Any, besides: Collection[str]
    ) -> Posed:
        goods = self.words(tokens, "goods", self.items)
        words = goods.draw(rng, self.items, besides)
        place = in_turn(turn, self.items, self.name, self.seed, "place")
        foil = int(rng.choice([i for i in (place - 1, place + 1) if 0 <= i < self.items]))
        work = [[judged(rng, self.judgement) for _ in range(self.load)] for _ in words]

        def ask(words: Sequence[str], place: int, wrong: str = "") -> Asked:
            numbers = [place, *(i for i in range(self.items) if i != place)]
            pieces: list[Piece] = []
            for i, word in enumerate(words):
                item = numbers.index(i)
                role, whole = ("distractor_value", "distractor") if item else ("value", "evidence")
                store = phrase(wording["store"], {"value": (word, role)}, item, whole)
                if pieces:
                    store[0] = replace(store[0], text=" " + store[0].text)
                pieces += store
                pieces += [Piece(f" {text}", "filler", i * self.load + k) for k, text in enumerate(work[i])]
            end = asked(wording["question"], wording["stem"], {"query": (ORDINALS[place], "query")})
            options = (words[place], *(w for i, w in enumerate(words) if i != place))
            return Asked((*pieces, *end), words[place], options, wrong)

        # The twins have the clean prompt's closed set.
        twins = {"value_swap": replace(ask(exchanged(words, place, foil), place), options=())}
        others = alike_ordinals(tokens, place, self.items)
        if others:
            other = foil if foil in others else int(rng.choice(others))
            twins["query_swap"] = replace(ask(words, other), options=())
        meta = {
            "position": place + 1,
            "load": self.load,
            "judgement": self.judgement,
            "words": words,
            "word_tokens": goods.size,
        }
        return Posed(ask(words, place, words[foil]), twins, frozenset(words), meta)


def judged(rng: np.random.Generator, kind: Judgement) -> str:
    """A question about numbers with its right answer, yes as often as no."""
    yes = bool(rng.integers(2))
    answer = "Yes" if yes else "No"
    if kind == "parity":
        return f"Is {2 * int(rng.integers(5, 50)) + (not yes)} even? {answer}."
    if kind == "size":
        small, large = sorted(int(i) for i in rng.choice(np.arange(10, 100), size=2, replace=False))
        return f"Is {large if yes else small} larger than {small if yes else large}? {answer}."
    a, b = (int(i) for i in rng.integers(1, 10, size=2))
    told = a + b + (0 if yes else int(rng.choice([-1, 1])))
    return f"Is {a} + {b} equal to {told}? {answer}."
