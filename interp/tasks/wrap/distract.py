"""Prose that has nothing to do with the question, put before, behind or into a context.

Sentences come from this project's own prose (`interp.tasks.haystack`); prompts of bare ids get ids that stand nowhere
in them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from interp.errors import UsageError
from interp.models.tokens import Tokens
from interp.tasks.base import Example, Ids, Redraw, Task, whole_number
from interp.tasks.haystack import Ruler, Sentence, context, select
from interp.tasks.induction import ordinary_ids
from interp.tasks.wrap.base import (
    Added,
    Kept,
    Made,
    Part,
    Wrapped,
    characters,
    opening,
    question,
    refuse,
    size,
)

PLACES = ("before", "after", "between")
LEAST = 8
_PLACES = 3
"""Stretches that prose between sentences is parted into, at most."""

_TRIES = 20


@dataclass(frozen=True)
class _Prose:
    """What is put in: stretches of text, or ids; and the tokens of the old prompt that they go before (`between`)."""

    texts: tuple[str, ...] = ()
    ids: Ids = ()
    places: tuple[int, ...] = ()


class Distracted(Wrapped):
    """A task with prose about other things in its context, as spans of role `added`.

    The clean prompt and its twins get the same prose at the same place. `meta["depth"]`, where the base has one, is
    that in the longer context, and `meta["base_depth"]` what it was.

    Args:
        base: the task.
        tokens: of the prose; two fewer at most.
        where: `before` all of the prompt, `after` the context (before the question), or `between` its sentences.
        haystack: where the prose comes from, as for niah.
    """

    wrapper = "distracted"

    def __init__(
        self,
        base: Task,
        tokens: int = 64,
        where: str = "before",
        haystack: str | Sequence[str] = "all",
    ):
        self.tokens = whole_number(self.wrapper, "tokens", tokens, LEAST)
        if where not in PLACES:
            raise UsageError(f"distracted: where is {where!r}; take of {', '.join(PLACES)}")
        self.where = where
        self.pieces = select(haystack)
        named = haystack if isinstance(haystack, str) else list(self.pieces)
        super().__init__(base, tokens=tokens, where=where, haystack=named)
        self._rulers: dict[str, Ruler] = {}
        self._ordinary: dict[str, list[int]] = {}

    def plan(self, example: Example, rng: np.random.Generator, tokens: Tokens) -> _Prose:
        if self.where != "before" and question(example) is None:
            raise refuse(
                self.wrapper, example, "it has no question apart from its context; take where=before"
            )
        if example.text is None:
            if self.where == "between":
                raise refuse(self.wrapper, example, "bare ids have no sentences; take where=before or after")
            return _Prose(ids=self._ids(example, rng, tokens))
        sentences = self._sentences(example, rng, tokens)
        if self.where != "between":
            return _Prose((_text(sentences),))
        free = _boundaries(example)
        if not free:
            raise refuse(self.wrapper, example, "its context is one sentence; take where=before or after")
        count = min(_PLACES, len(free), len(sentences))
        places = sorted(rng.choice(free, size=count, replace=False).tolist())
        shares = np.array_split(np.arange(len(sentences)), count)
        return _Prose(tuple(_text([sentences[i] for i in share]) for share in shares), places=tuple(places))

    def parts(self, example: Example, plan: _Prose, tokens: Tokens) -> Made:
        n, begins = size(example), opening(example, tokens)
        in_ids = example.text is None
        prose = Added("".join(plan.texts[:1]), plan.ids, role="added")
        gap = Added() if in_ids else Added("\n\n")
        if self.where == "before":
            return Made((Kept(0, begins), prose, gap, Kept(begins, n)))
        asked = question(example)
        assert asked is not None
        if self.where == "after":
            return Made((Kept(0, asked), gap, prose, Kept(asked, n)))
        out: list[Part] = []
        at = 0
        for text, place in zip(plan.texts, plan.places, strict=True):
            stop = _boundary(example, place)
            out += [Kept(at, stop), Added(f" {text}", role="added")]
            at = stop
        return Made((*out, Kept(at, n)))

    def wrap(self, example: Example, rng: np.random.Generator, tokens: Tokens) -> Example:
        out = super().wrap(example, rng, tokens)
        evidence, asked = out.spans_of("evidence", 0), out.spans_of("question")
        if "depth" not in out.meta or not evidence or not asked:
            return out
        begins = heading_token(out)
        room = asked[0].start - begins - len(evidence[0])
        depth = {"depth": (evidence[0].start - begins) / room, "base_depth": example.meta["depth"]}
        return replace(out, meta={**out.meta, **depth})

    def about(self, example: Example, plan: _Prose) -> dict[str, Any]:
        return {"distraction": self.tokens, "where": self.where}

    def _sentences(self, example: Example, rng: np.random.Generator, tokens: Tokens) -> list[Sentence]:
        """Prose of which no sentence stands in the prompt, and that holds none of the answers."""
        if tokens.fingerprint not in self._rulers:
            self._rulers[tokens.fingerprint] = Ruler(tokens)
        every = [example, *example.corrupt.values()]
        texts = [e.text or "" for e in every]
        answers = {tokens.decode(ids).strip() for e in every for ids in (e.answer_ids, e.foil_ids) if ids}
        told = re.compile("|".join(rf"\b{re.escape(a)}\b" for a in answers if len(a) > 1) or r"(?!)")
        for _ in range(_TRIES):
            sentences, _ = context(self._rulers[tokens.fingerprint], rng, self.tokens, self.pieces)
            fresh = not any(s.text in text for s in sentences for text in texts)
            if sentences and fresh and not told.search(_text(sentences)):
                return sentences
        raise Redraw("no other prose is free of the prompt and of its answers")

    def _ids(self, example: Example, rng: np.random.Generator, tokens: Tokens) -> Ids:
        """Ids that stand neither in the prompt nor in its answers."""
        if tokens.fingerprint not in self._ordinary:
            self._ordinary[tokens.fingerprint] = ordinary_ids(tokens)
        every = [example, *example.corrupt.values()]
        used = {i for e in every for ids in (e.ids, e.answer_ids, *e.candidates, e.foil_ids) for i in ids}
        free = [i for i in self._ordinary[tokens.fingerprint] if i not in used]
        if not free:
            raise refuse(self.wrapper, example, "every token of the vocabulary stands in it")
        return tuple(rng.choice(free, size=self.tokens, replace=len(free) < self.tokens).tolist())


def _text(sentences: Sequence[Sentence]) -> str:
    return "".join(s.gap(first=i == 0) + s.text for i, s in enumerate(sentences))


def _boundary(example: Example, token: int) -> int:
    """Character at which the sentence before a token ends."""
    assert example.text is not None and example.offsets is not None
    return len(example.text[: example.offsets[token - 1][1]].rstrip())


def _boundaries(example: Example) -> list[int]:
    """Tokens of the context before which a sentence ends, in the clean prompt and in all twins, outside every span."""
    every = [example, *example.corrupt.values()]
    begins, asked = heading_token(example), question(example) or 0
    inside = set()
    for span in example.spans:
        start, stop = characters(example, span)
        last = start + len((example.text or "")[start:stop].rstrip())
        inside |= {t for t in range(span.start + 1, span.end + 1) if start < _boundary(example, t) < last}
    out = []
    for t in range(begins + 1, len(example.ids)):
        if _boundary(example, t) >= asked:
            break
        if t not in inside and all(_ends(e, t) for e in every):
            out.append(t)
    return out


def heading_token(example: Example) -> int:
    """First token behind a chat template's heading."""
    spans = example.spans_of("template")
    return spans[0].end if spans and spans[0].start <= 1 else 0


def _ends(example: Example, token: int) -> bool:
    """Whether the tokens before this one end a sentence, and white space or the like follows."""
    assert example.text is not None
    at = _boundary(example, token)
    return at > 0 and example.text[at - 1] in ".!" and example.text[at : at + 1].isspace()


def distracted(
    task: Task, tokens: int = 64, where: str = "before", haystack: str | Sequence[str] = "all"
) -> Task:
    """A task with prose about other things in its context; see `Distracted`.

    Args:
        task: any task.
        tokens: of the prose.
        where: `before`, `after` or `between`.
        haystack: where the prose comes from.
    """
    return Distracted(task, tokens, where, haystack)
