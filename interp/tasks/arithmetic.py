"""Additions of several numbers, answered at once or worked out step by step: a task that no copying solves.

`style="direct"` shows solved problems and asks for the sum; `style="cot"` shows them with their steps, and the forced
answer is the worked solution (after chain-of-thought prompting, arXiv 2201.11903). Both styles pose the same problems;
what a model generates is judged by its last number (`interp.measure.generation`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Literal, get_args

import numpy as np

from interp.errors import UsageError
from interp.models.tokens import Tokens
from interp.tasks.base import Example, Ids, Piece, Redraw, Task, assemble, stable_seed, whole_number
from interp.tasks.recall import apart, options_after

Style = Literal["direct", "cot"]
Form = Literal["digits", "words"]
CANDIDATES = 10
_FINAL = "The answer is"
_ONES = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
]
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]


class Arithmetic(Task):
    """Sums of several numbers.

    Args:
        terms: numbers to add, 2 or more.
        largest: the numbers are 1 to this; `terms` times it is 900 at most.
        style: `direct` or `cot`.
        form: numbers as `digits` or as `words`.
        shots: solved problems in front, others than the one asked.
    """

    name = "arithmetic"
    source = "additions generated for this project; steps after Wei et al. (arXiv 2201.11903)"

    def __init__(
        self,
        terms: int = 2,
        largest: int = 20,
        style: Style = "direct",
        form: Form = "digits",
        shots: int = 4,
        n: int = 64,
        seed: int = 0,
    ):
        for name, value, known in (("style", style, get_args(Style)), ("form", form, get_args(Form))):
            if value not in known:
                raise UsageError(f"task arithmetic: {name} is {value!r}; take of {', '.join(known)}")
        self.terms = whole_number(self.name, "terms", terms, 2)
        self.largest = whole_number(self.name, "largest", largest, 5)
        if terms * largest > 900:
            raise UsageError(
                f"task arithmetic: {terms} numbers up to {largest} may add up to more than 900; take less"
            )
        self.style, self.form = style, form
        self.shots = whole_number(self.name, "shots", shots, 0)
        super().__init__(n=n, seed=seed, terms=terms, largest=largest, style=style, form=form, shots=shots)

    def make(self, index: int, rng: np.random.Generator, tokens: Tokens) -> Example:
        # A generator that knows nothing of style and form: they pose the same problems.
        same = np.random.default_rng(stable_seed(self.name, self.terms, self.largest, self.seed, index))
        problems: dict[tuple[int, ...], None] = {}
        while len(problems) <= self.shots:
            problems[tuple(same.integers(1, self.largest + 1, size=self.terms).tolist())] = None
        own, *shown = problems
        lead = [Piece("".join(f"{self._asked(p)} {self._solved(p)}\n\n" for p in shown))] if shown else []
        others = same.permutation([d for d in range(-12, 13) if d and sum(own) + d > 0])[: CANDIDATES - 1]
        options = self._options(tokens, own, [sum(own) + int(d) for d in others])
        clean = self._example(tokens, lead, own, options)
        for at in rng.permutation(self.terms):
            for value in rng.permutation(np.arange(1, self.largest + 1)):
                swapped = [*own[:at], int(value), *own[at + 1 :]]
                if value != own[at]:
                    twin = self._swap(
                        tokens, clean, lead, swapped, [sum(own), *(sum(own) + int(d) for d in others)]
                    )
                    if twin is not None:
                        return replace(clean, corrupt={"value_swap": twin})
        raise Redraw("no other number is as long in tokens")

    def _asked(self, numbers: Sequence[int]) -> str:
        plus = " + " if self.form == "digits" else " plus "
        return f"Question: What is {plus.join(map(self._write, numbers))}?\nAnswer:"

    def _solved(self, numbers: Sequence[int], final: int | None = None) -> str:
        """The answer's text; `final` takes the place of the right sum at its end."""
        sums = [*accumulate(numbers)]
        end = self._write(sums[-1] if final is None else final)
        if self.style == "direct":
            return end
        plus, equals = ("+", "=") if self.form == "digits" else ("plus", "is")
        steps = [
            f"{self._write(a)} {plus} {self._write(b)} {equals} {self._write(c)}."
            for a, b, c in zip(sums, numbers[1:], sums[1:], strict=False)
        ]
        return " ".join([*steps, f"{_FINAL} {end}."])

    def _write(self, number: int) -> str:
        return str(number) if self.form == "digits" else in_words(number)

    def _options(self, tokens: Tokens, own: Sequence[int], wrong: Sequence[int]) -> dict[str, Ids]:
        texts = [self._solved(own), *(self._solved(own, other) for other in wrong)]
        return options_after(tokens, "Answer:", list(dict.fromkeys(texts)))

    def _example(
        self, tokens: Tokens, lead: list[Piece], numbers: Sequence[int], options: dict[str, Ids]
    ) -> Example:
        plus = "+" if self.form == "digits" else "plus"
        pieces = [*lead, Piece("Question: What is", within="question", item=0)]
        for i, number in enumerate(numbers):
            if i:
                pieces.append(Piece(f" {plus}", within="question", item=0))
            pieces.append(Piece(f" {self._write(number)}", f"term{i}", 0, "question"))
        pieces += [Piece("?", within="question", item=0), Piece("\nAnswer:")]
        text = self._solved(numbers)
        prompt, answer, spans, whole = assemble(tokens, pieces, f" {text}")
        if answer != options[text]:
            raise Redraw("the answer tokenises differently after the prompt")
        spans = tuple(
            sorted(
                replace(s, role="term", item=int(s.role[4:])) if s.role.startswith("term") else s
                for s in spans
            )
        )
        return Example(
            task=self.name,
            ids=prompt.ids,
            answer_ids=answer,
            text=whole,
            offsets=prompt.offsets,
            spans=spans,
            foil_ids=options[apart(options, text)],
            candidates=tuple(options.values()),
            chance=1 / len(options),
            cluster=" ".join(map(str, numbers)),
            group=" ".join(map(str, numbers)),
            meta={
                "style": self.style,
                "form": self.form,
                "terms": list(numbers),
                "number": sum(numbers),
                "answer": self._write(sum(numbers)),
                "shots": self.shots,
                "length": len(prompt),
            },
        )

    def _swap(
        self, tokens: Tokens, clean: Example, lead: list[Piece], numbers: Sequence[int], wrong: Sequence[int]
    ) -> Example | None:
        """The problem with another number of as many tokens in it; None where it is not aligned."""
        twin = self._example(
            tokens, lead, numbers, self._options(tokens, numbers, [w for w in wrong if w != sum(numbers)])
        )
        if len(twin.ids) != len(clean.ids) or twin.spans != clean.spans:
            return None
        foil = self._options(tokens, numbers, [sum(clean.meta["terms"])])
        return replace(twin, foil_ids=list(foil.values())[1])


def in_words(number: int) -> str:
    """A number from 0 to 999 in words.

    >>> in_words(42), in_words(217)
    ('forty-two', 'two hundred and seventeen')
    """
    hundreds, rest = divmod(number, 100)
    tens, ones = divmod(rest, 10)
    small = _ONES[rest] if rest < 20 else _TENS[tens - 2] + (f"-{_ONES[ones]}" if ones else "")
    if not hundreds:
        return small
    return f"{_ONES[hundreds]} hundred" + (f" and {small}" if rest else "")


def to_number(text: str) -> int | None:
    """The last number of a text, in digits or in words; None where there is none.

    >>> to_number("2 + 3 = 5. The answer is 5."), to_number("it is twenty-one"), to_number("no idea")
    (5, 21, None)
    """
    found = _NUMBER.findall(text.lower())
    if not found:
        return None
    return int(found[-1]) if found[-1].isdigit() else _BY_WORDS[found[-1]]


_BY_WORDS = {in_words(i): i for i in range(1000)}
_NUMBER = re.compile(rf"\d+|\b(?:{'|'.join(sorted(_BY_WORDS, key=len, reverse=True))})\b")
