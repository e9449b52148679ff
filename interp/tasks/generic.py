"""Openings of plain sentences: next words that no fact decides, as a contrast to facts.

After the generic set of Saynova et al. (Findings of ACL 2025, PrISM), over the text of the task `prose` instead of an
encyclopedia: sentences that do not begin a paragraph, cut to their first ten words, with few capitals, whose last word
is a plain one. What stands in front, an article and the word after it or else one word, takes the subject's place.
Before it comes a short sentence of this package, since models keep a sink of attention at the first token of a text.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from interp.errors import NoAcceptedExample
from interp.tasks.base import Piece, stable_seed
from interp.tasks.prose import sentence_starts, topics

WORDS = (5, 10)
"""Fewest and most words of an opening, its last one included."""

CAPITALS = 3
LEADS = ("Here is a line of text. ", "The page goes on. ", "This is what comes next. ", "Some more was written. ",
         "Now to the next point. ")  # fmt: skip
"""What stands before an opening; none is the start of another."""

_ARTICLES = frozenset(
    ("a", "an", "the", "this", "that", "these", "those", "each", "every", "all", "some", "any", "no")
)


@dataclass(frozen=True)
class Opening:
    """The start of a sentence.

    Attributes:
        subject: its first word, or first two where the first is an article or the like.
        rest: what follows, with the space in front.
        last: the word that comes next in the text.
        topic: where the sentence stands.
        lead: a sentence in front, with the space behind it.
    """

    subject: str
    rest: str
    last: str
    topic: str
    lead: str = LEADS[0]

    def pieces(self, subject: str | None = None) -> list[Piece]:
        """The prompt, with another subject if one is given."""
        # The space before a word goes with it: it is that word's first token, or the start of it.
        return [
            Piece(self.lead.rstrip(), None, 0, "query"),
            Piece(" " + (subject or self.subject), "subject", 0, "query"),
            Piece(self.rest, None, 0, "query"),
        ]


def with_subject(prompt: str, subject: str, other: str) -> list[Piece]:
    """The pieces of an opening's prompt about `subject`, with another one in its place."""
    lead = next(text for text in LEADS if prompt.startswith(text + subject))
    return Opening(other, prompt[len(lead) + len(subject) :], "", "", lead).pieces()


def openings(n: int, texts: Mapping[str, str] | None = None, seed: int = 0) -> list[Opening]:
    """The first `n` openings in a seeded order, or as many as there are.

    Args:
        texts: texts by name, a paragraph a line; default Python's own documentation.

    Raises:
        NoAcceptedExample: no sentence of the texts will do.
    """
    found: dict[str, Opening] = {}
    for topic, text in (texts if texts is not None else topics()).items():
        for paragraph in text.split("\n"):
            starts = sentence_starts(paragraph)
            for start, stop in pairwise([*starts[1:], len(paragraph)]):
                made = _opening(paragraph[start:stop].strip(), topic)
                if made is not None:
                    found.setdefault(made.subject + made.rest, made)
    if not found:
        raise NoAcceptedExample("no sentence of the text opens with enough plain words")
    every = list(found.values())
    order = np.random.default_rng(stable_seed("openings", seed)).permutation(len(every))
    return [replace(every[i], lead=_lead(every[i], seed)) for i in order[:n]]


def _lead(opening: Opening, seed: int) -> str:
    rng = np.random.default_rng(stable_seed("lead", opening.subject + opening.rest, seed))
    return LEADS[rng.integers(len(LEADS))]


def _opening(sentence: str, topic: str) -> Opening | None:
    """The opening of a sentence; None where it will not do.

    >>> _opening("The lock is held by one thread at a time and no more.", "threads")  # doctest: +ELLIPSIS
    Opening(subject='The lock', rest=' is held by one thread at a', last='time', topic='threads', lead='Here...')
    """
    words = sentence.split()[: WORDS[1]]
    if len(words) < WORDS[0]:
        return None
    *words, last = words
    size = 2 if words[0].casefold() in _ARTICLES else 1
    subject = " ".join(words[:size])
    plain = last.isalpha() and last.islower() and all(w.isalpha() for w in words[:size])
    if not plain or not words[0][0].isupper() or sum(c.isupper() for c in " ".join(words)) > CAPITALS:
        return None
    return Opening(subject, " " + " ".join(words[size:]), last, topic)
