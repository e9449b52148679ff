"""Tasks without a doubt about the answer, in which a likely answer is easier than an unlikely one.

Acronyms, counting and shift ciphers, after Zhang et al. (arXiv 2504.12585) and McCoy et al. (arXiv 2309.13638): the
rule gives the answer, and the work is the same whether that is a word or a string of letters, 20 or 19. Each example is
one of a pair: the twin `value_swap` differs in one thing of the context, and its answer has the other prior. Half of
the answers are meant to be likely (`meta["prior"]`); how likely they are to the model at hand is measured by
`interp.measure.priors`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal, get_args

import numpy as np

from interp.errors import UsageError
from interp.models.tokens import Tokens
from interp.tasks.base import Example, Piece, Redraw, Task, assemble, continuations, whole_number
from interp.tasks.pairs import aligned, data, digest, in_turn

Prior = Literal["high", "low", "both"]
OPTIONS = 8
"""Candidates of each example."""

Items = Sequence[str]
"""What the context lists, and the rule reads."""


class PriorTask(Task):
    """Lists and what a rule makes of them.

    Args:
        prior: of the answer: `high`, `low`, or `both` in turns.
        shots: solved questions in front, of both sorts in turns, with other answers.
    """

    opening: ClassVar[str]
    stem: ClassVar[str]
    neutral: ClassVar[tuple[str, ...]]
    """Prompts that ask for such an answer and give nothing to find it by."""

    def __init__(self, prior: Prior, shots: int, n: int, seed: int, **params: Any):
        if prior not in get_args(Prior):
            raise UsageError(f"task {self.name}: prior is {prior!r}; take of {', '.join(get_args(Prior))}")
        self.prior = prior
        self.shots = whole_number(self.name, "shots", shots, 0)
        super().__init__(n=n, seed=seed, prior=prior, shots=shots, **params)

    @property
    @abstractmethod
    def likely(self) -> list[str]:
        """Every likely answer that is asked for."""

    @abstractmethod
    def pair(self, rng: np.random.Generator) -> tuple[str, str]:
        """A likely answer, and an unlikely one a step away from it."""

    @abstractmethod
    def items(self, rng: np.random.Generator, likely: str, unlikely: str) -> tuple[Items, Items]:
        """Lists from which the rule makes one answer and the other; they differ in one item."""

    def joined(self, items: Items) -> list[Piece]:
        """A list in the context: its items are evidence."""
        return [Piece(("" if i == 0 else ",") + f" {x}", "evidence", i) for i, x in enumerate(items)]

    def make(self, index: int, rng: np.random.Generator, tokens: Tokens) -> Example:
        level = "high" if in_turn(index, 2, self.name, self.seed) else "low"
        level = level if self.prior == "both" else self.prior
        pairs: dict[str, str] = {}
        while len(pairs) < OPTIONS + self.shots:
            likely, unlikely = self.pair(rng)
            if unlikely not in pairs.values():
                pairs.setdefault(likely, unlikely)
        (asked, *more), shown = list(pairs.items())[:OPTIONS], list(pairs.items())[OPTIONS:]
        lead = "".join(self._solved(rng, pair, i % 2) for i, pair in enumerate(shown))
        lists = self.items(rng, *asked)
        others = [pair[i % 2] for i, pair in enumerate(more[: OPTIONS - 2])]
        made = [self._ask(tokens, lead, lists[i], asked[i], asked[1 - i], others, i) for i in (0, 1)]
        clean, twin = made if level == "high" else made[::-1]
        try:
            return replace(clean, corrupt=aligned(clean, {"value_swap": twin}))
        except Redraw:
            return clean

    def _solved(self, rng: np.random.Generator, pair: tuple[str, str], which: int) -> str:
        words = "".join(p.text for p in self.joined(self.items(rng, *pair)[which]))
        return f"{self.opening}{words}\n{self.stem} {pair[which]}\n\n"

    def _ask(
        self, tokens: Tokens, lead: str, items: Items, answer: str, foil: str, others: Sequence[str], low: int
    ) -> Example:
        pieces = [Piece(lead)] if lead else []
        pieces += [
            Piece(self.opening),
            *self.joined(items),
            Piece("\n"),
            Piece(self.stem, None, 0, "query"),
        ]
        prompt, ids, spans, text = assemble(tokens, pieces, f" {answer}")
        options = continuations(tokens, self.stem, [f" {x}" for x in (answer, foil, *others)])
        if options[0] != ids or len(set(options)) < len(options):
            raise Redraw("an answer tokenises differently after the stem")
        return Example(
            task=self.name,
            ids=prompt.ids,
            answer_ids=ids,
            text=text,
            offsets=prompt.offsets,
            spans=spans,
            foil_ids=options[1],
            candidates=tuple(options),
            chance=1 / len(options),
            cluster=answer,
            group=digest(text),
            meta={
                "prior": "low" if low else "high",
                "answer": answer,
                "foil": foil,
                "neutral": list(self.neutral),
                "shots": self.shots,
            },
        )


class Acronym(PriorTask):
    """The first letters of four words: a word of its own, or letters one of which is another.

    Args:
        prior: of the answer: `high`, `low`, or `both` in turns.
        shots: solved questions in front.
    """

    name = "acronym"
    source = "words chosen for this project; after Zhang et al. (arXiv 2504.12585)"
    opening = "Words:"
    stem = "First letters:"
    neutral = ("First letters:", "The first letters are:", "Four letters:")

    def __init__(self, prior: Prior = "both", shots: int = 2, n: int = 64, seed: int = 0):
        super().__init__(prior, shots, n, seed)

    @property
    def likely(self) -> list[str]:
        return list(data("prior")["answers"])

    def pair(self, rng: np.random.Generator) -> tuple[str, str]:
        return _misspelt(rng, list(data("prior")["initials"]))

    def items(self, rng: np.random.Generator, likely: str, unlikely: str) -> tuple[Items, Items]:
        words = {x: rng.permutation(ws) for x, ws in data("prior")["initials"].items()}

        def spelt(answer: str) -> Items:
            # The same letter twice takes another word each time.
            return [str(words[x][answer[:i].count(x)]) for i, x in enumerate(answer)]

        return spelt(likely), spelt(unlikely)


class ShiftCipher(PriorTask):
    """Four letters, each moved along the alphabet: the letters behind them are a word, or nearly one.

    Args:
        shift: letters that the code goes forward by, 1 to 25.
        prior: of the answer: `high`, `low`, or `both` in turns.
        shots: solved questions in front.
    """

    name = "shift_cipher"
    source = "words chosen for this project; after McCoy et al. (arXiv 2309.13638)"
    stem = "Plain:"
    neutral = ("Plain:", "The letters are:", "Four letters:")

    def __init__(self, shift: int = 1, prior: Prior = "both", shots: int = 2, n: int = 64, seed: int = 0):
        if not 1 <= whole_number(self.name, "shift", shift, 1) <= 25:
            raise UsageError(f"task shift_cipher: shift is {shift}; take 1 to 25")
        self.shift = shift
        self.opening = f"Letters moved forward by {shift}:"  # type: ignore[misc]
        super().__init__(prior, shots, n, seed, shift=shift)

    @property
    def likely(self) -> list[str]:
        return [" ".join(x) for x in data("prior")["answers"]]

    def pair(self, rng: np.random.Generator) -> tuple[str, str]:
        likely, unlikely = _misspelt(rng, [chr(65 + i) for i in range(26)])
        return " ".join(likely), " ".join(unlikely)

    def items(self, rng: np.random.Generator, likely: str, unlikely: str) -> tuple[Items, Items]:
        def coded(answer: str) -> Items:
            return [chr(65 + (ord(x) - 65 + self.shift) % 26) for x in answer.split()]

        return coded(likely), coded(unlikely)

    def joined(self, items: Items) -> list[Piece]:
        return [Piece(f" {x}", "evidence", i) for i, x in enumerate(items)]


class Counting(PriorTask):
    """How often a word stands in a list with another: a round number of times, or one more or less.

    Args:
        largest: round numbers go up to it.
        prior: of the answer: `high` (10, 20, ...), `low` (a number beside), or `both` in turns.
        shots: solved questions in front.
    """

    name = "counting"
    source = "lists generated for this project; after McCoy et al. (arXiv 2309.13638)"
    opening = "Count how often the word before the colon comes:"
    stem = "Count:"
    neutral = ("Count:", "The number of things is:", "How many?")

    def __init__(self, largest: int = 80, prior: Prior = "both", shots: int = 0, n: int = 64, seed: int = 0):
        self.largest = whole_number(self.name, "largest", largest, 10 * OPTIONS)
        if whole_number(self.name, "shots", shots, 0) > self.largest // 10 - OPTIONS:
            raise UsageError(
                f"task counting: {shots} shots of other numbers; largest={largest} has {self.largest // 10 - OPTIONS}"
            )
        super().__init__(prior, shots, n, seed, largest=largest)

    @property
    def likely(self) -> list[str]:
        return [str(10 * i) for i in range(1, self.largest // 10 + 1)]

    def pair(self, rng: np.random.Generator) -> tuple[str, str]:
        number = 10 * int(rng.integers(1, self.largest // 10 + 1))
        return str(number), str(number + int(rng.choice([-1, 1])))

    def items(self, rng: np.random.Generator, likely: str, unlikely: str) -> tuple[Items, Items]:
        counted, other = (str(w) for w in rng.permutation(data("prior")["counted"])[:2])
        a, b = int(likely), int(unlikely)
        rest = int(rng.integers(1, 4))
        order = rng.permutation(max(a, b) + rest)

        def listed(count: int) -> Items:
            names = [counted if i < count else other for i in range(len(order))]
            return [f"{counted}:", *(names[i] for i in order)]

        return listed(a), listed(b)

    def joined(self, items: Items) -> list[Piece]:
        return [Piece(f" {x}", "evidence", i) for i, x in enumerate(items)]


def _misspelt(rng: np.random.Generator, letters: Sequence[str]) -> tuple[str, str]:
    """A word, and the word with one letter changed so that it is none of the words."""
    words = data("prior")["answers"]
    likely = str(rng.choice(words))
    at = int(rng.integers(len(likely)))
    options = [likely[:at] + x + likely[at + 1 :] for x in letters]
    return likely, str(rng.choice([o for o in options if o not in words]))
