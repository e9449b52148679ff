"""Induction: a segment of random tokens, then the same segment again up to a token; the answer is what came next.

The unit test of every tracer: no language is needed, every position is known, and the only way to the answer is to
find the earlier copy of the last token and read what followed it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import numpy as np

from interp.errors import UsageError
from interp.models.tokens import Tokens
from interp.tasks.base import Example, Ids, Span, Task, whole_number
from interp.tasks.haystack import n_leading


class Induction(Task):
    """Repeated random tokens, as ids without a text.

    Args:
        length: tokens of the segment; all are different ordinary tokens.
        n_answer: tokens of the answer.
        lead: up to so many other random tokens stand before the first copy, so that positions vary.
    """

    name = "induction"
    source = "repeated random tokens, after Olsson et al. (arXiv 2209.11895)"
    copies: ClassVar[bool] = True

    def __init__(self, length: int = 32, n_answer: int = 1, lead: int = 8, n: int = 64, seed: int = 0):
        whole_number(self.name, "n_answer", n_answer, 1)
        whole_number(self.name, "length", length, n_answer + 4)
        whole_number(self.name, "lead", lead, 0)
        self.length = length
        self.n_answer = n_answer
        self.lead = lead
        super().__init__(n=n, seed=seed, length=length, n_answer=n_answer, lead=lead)
        self._ordinary: dict[str, tuple[Ids, np.ndarray]] = {}

    def make(self, index: int, rng: np.random.Generator, tokens: Tokens) -> Example:
        special, ordinary = self._vocabulary(tokens)
        m, k = self.length, self.n_answer
        drawn = rng.choice(ordinary, size=m + k + self.lead, replace=False).tolist()
        segment, fresh, before = drawn[:m], drawn[m : m + k], drawn[m + k :][: rng.integers(self.lead + 1)]
        # The token asked for, and a later one: its value is the foil, and the query can be swapped for it.
        asked = int(rng.integers(1, m - k - 1))
        other = int(rng.integers(asked + 1, m - k))
        start = len(special) + len(before)
        head = [*special, *before]
        end = start + m + asked

        def ask(segment: list[int], again: list[int], key: int) -> Example:
            values = [tuple(segment[i : i + k]) for i in range(1, m - k + 1)]
            answer = values[key]
            return Example(
                task=self.name,
                ids=tuple([*head, *segment, *again]),
                answer_ids=answer,
                spans=(
                    Span(start + key, start + key + 1, "key", 0),
                    Span(start + key + 1, start + key + 1 + k, "value", 0),
                    Span(end, end + 1, "query", 0),
                ),
                foil_ids=values[asked if key == other else other],
                candidates=(answer, *(v for v in values if v != answer)),
                chance=1 / len(values),
                cluster=f"{self.seed}:{index}",
                group=f"{self.seed}:{index}",
                meta={"length": end + 1, "segment": m, "distance": end - (start + key + 1)},
            )

        again = segment[: asked + 1]
        clean = ask(segment, again, asked)
        swapped = [*segment[: asked + 1], *fresh, *segment[asked + 1 + k :]]
        return replace(
            clean,
            corrupt={
                "value_swap": ask(swapped, again, asked),
                "query_swap": ask(segment, [*again[:-1], segment[other]], other),
            },
        )

    def _vocabulary(self, tokens: Tokens) -> tuple[Ids, np.ndarray]:
        """Special tokens that the tokenizer puts in front of a text, and the tokens to draw from."""
        if tokens.fingerprint not in self._ordinary:
            text = tokens.encode("a")
            special = text.ids[: n_leading(text)]
            pool = np.array(ordinary_ids(tokens))
            need = self.length + self.n_answer + self.lead
            if len(pool) < need:
                raise UsageError(
                    f"induction: length {self.length} needs {need} different ordinary tokens, and this tokenizer has "
                    f"{len(pool)}"
                )
            self._ordinary[tokens.fingerprint] = special, pool
        return self._ordinary[tokens.fingerprint]


def ordinary_ids(tokens: Tokens) -> list[int]:
    """Ids of tokens that are plain text: no special or added token, no byte, no white space alone.

    Words and word pieces of ASCII letters and digits where there are enough of them, else anything that is text.
    """
    added = set(tokens.hf.get_added_vocab().values()) | tokens.special_ids
    names = tokens.hf.convert_ids_to_tokens(list(range(tokens.n_vocab)))
    known = [(i, str(t)) for i, t in enumerate(names) if t is not None and i not in added]
    plain = [i for i, t in known if t.lstrip("Ġ▁").isascii() and t.lstrip("Ġ▁").isalnum()]
    return plain if len(plain) >= 1000 else [i for i, t in known if t.strip("Ġ▁") and not t.startswith("<0x")]
