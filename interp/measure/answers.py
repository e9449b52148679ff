"""Scores of a generated answer against its references, and what a guess would score.

Texts are compared as SQuAD does (arXiv 1606.05250): lower case, without punctuation, articles and extra space. Where
there is no tokenizer, token ids take the place of words. All scores lie in [0, 1]:

- `exact`: 1 where the output is a reference.
- `f1`: harmonic mean of the precision and recall of the output's words; the best over references.
- `contains`: share of the parts of the answer (`meta["parts"]`; else the answer is one part) that stand in the output.
- `number`: 1 where the output's last number is `meta["number"]`; NaN for examples without one.
"""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from interp.models.subject import CausalLM
from interp.tasks.arithmetic import to_number
from interp.tasks.base import Example, Ids

SCORES = ("exact", "f1", "contains", "number")

_PUNCTUATION = str.maketrans("", "", string.punctuation)

Words = tuple[str, ...] | Ids


def words(text: str) -> tuple[str, ...]:
    """The words of a text that count.

    >>> words("The  Eiffel Tower, of course!")
    ('eiffel', 'tower', 'of', 'course')
    """
    return tuple(re.sub(r"\b(a|an|the)\b", " ", text.lower().translate(_PUNCTUATION)).split())


@dataclass(frozen=True)
class Reference:
    """What counts as right: whole answers, the parts of the first, and a number."""

    answers: tuple[Words, ...]
    parts: tuple[Words, ...]
    number: int | None = None

    @classmethod
    def of(cls, subject: CausalLM, example: Example) -> Reference:
        """The references of an example."""
        whole = tuple(said(subject, ids) for ids in (example.answer_ids, *example.alternatives))
        parts = tuple(words(p) for p in example.meta.get("parts", ())) if subject.has_tokens else ()
        return cls(whole, parts or whole[:1], example.meta.get("number"))


def said(subject: CausalLM, ids: Sequence[int]) -> Words:
    """What was generated, as words; as the ids themselves where there is no tokenizer."""
    return words(subject.tokens.decode(ids)) if subject.has_tokens else tuple(ids)


def score_output(output: Words, reference: Reference, text: str = "") -> dict[str, float]:
    """All scores of an output.

    Args:
        text: the output as it was written, for `number`.

    >>> right = Reference((("eiffel", "tower"),), (("eiffel", "tower"),))
    >>> {k: round(v, 2) for k, v in score_output(("tall", "eiffel", "tower"), right).items()}
    {'exact': 0.0, 'f1': 0.8, 'contains': 1.0, 'number': nan}
    """
    number = math.nan if reference.number is None else float(to_number(text) == reference.number)
    return {
        "exact": float(output in reference.answers),
        "f1": max(f1(output, answer) for answer in reference.answers),
        "contains": float(np.mean([_stands_in(part, output) for part in reference.parts])),
        "number": number,
    }


def f1(output: Words, answer: Words) -> float:
    """Harmonic mean of the precision and recall of words; 1 where both have none.

    >>> f1(("a", "b", "b"), ("b", "c"))
    0.4
    """
    if not output or not answer:
        return float(output == answer)
    shared = sum((Counter(output) & Counter(answer)).values())
    return 2 * shared / (len(output) + len(answer))


def _stands_in(part: Words, output: Words) -> bool:
    n = len(part)
    return any(output[i : i + n] == part for i in range(len(output) - n + 1))


def guess_levels(
    subject: CausalLM,
    examples: Sequence[Example],
    outputs: Sequence[Words],
    texts: Sequence[str],
    metrics: Sequence[str],
) -> dict[str, float]:
    """What each metric comes to without the right evidence: the larger of two guesses.

    One gives every output to every other example (the exact mean over all pairs): a model that answers in the right
    style, to another question. The other names one of the candidates at random, where an example has a closed set:
    a model that takes any name or value of the context. For `number` that is the example's `chance`.
    """
    references = [Reference.of(subject, e) for e in examples]
    pairs: dict[str, list[float]] = {m: [] for m in metrics}
    for i, (output, text) in enumerate(zip(outputs, texts, strict=True)):
        for j, reference in enumerate(references):
            if i != j:
                scores = score_output(output, reference, text)
                for metric in metrics:
                    pairs[metric].append(scores[metric])
    closed: dict[str, list[float]] = {m: [] for m in metrics}
    for example, reference in zip(examples, references, strict=True):
        if not example.candidates:
            continue
        guesses = [score_output(said(subject, c), reference) for c in example.candidates]
        for metric in metrics:
            one = example.chance if metric == "number" else float(np.mean([g[metric] for g in guesses]))
            closed[metric].append(one)
    return {m: max(_mean(pairs[m]), _mean(closed[m])) for m in metrics}


def _mean(values: Sequence[float]) -> float:
    """Mean of what is there; 0 where nothing is."""
    found = [v for v in values if not math.isnan(v)]
    return float(np.mean(found)) if found else 0.0
