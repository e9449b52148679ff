"""The question in other words, from a list of rewordings written for this project (`data/rewordings.json`).

The context, the stem of the answer and the names that a question holds stay; what changes is how it is asked. Only
questions that the list knows can be reworded; others are refused by name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from interp.errors import UsageError
from interp.models.tokens import Tokens
from interp.tasks.base import Example, Task
from interp.tasks.pairs import data
from interp.tasks.wrap.base import (
    Added,
    Cover,
    Kept,
    Made,
    Part,
    Wrapped,
    characters,
    question_end,
    refuse,
)

_SLOT = re.compile(r"( ?\{\w+\})")
_LABEL = re.compile(r"\s*(?:[A-Z][A-Za-z]*:)?(?=\s)")


@dataclass(frozen=True)
class Wording:
    """A question with `{slots}`, and how else it can be asked."""

    question: str
    others: tuple[str, ...]

    @property
    def pattern(self) -> str:
        """A regular expression of the question; a group is a slot with the space before it, if there is one."""
        parts = [p for p in _SLOT.split(self.question) if p]
        return "".join(
            rf"(?P<{_slot(p)}>{' ' * p.startswith(' ')}[^?]+?)" if _SLOT.fullmatch(p) else re.escape(p)
            for p in parts
        )


def _slot(part: str) -> str:
    return part.strip(" {}")


@cache
def wordings() -> tuple[Wording, ...]:
    """Every question that can be reworded, those with most words of their own first."""
    known = [Wording(q, tuple(others)) for q, others in data("rewordings")["questions"].items()]
    return tuple(sorted(known, key=lambda w: -len(_SLOT.sub("", w.question))))


@cache
def _patterns() -> tuple[re.Pattern[str], ...]:
    return tuple(re.compile(rf" ?{w.pattern}") for w in wordings())


def known(text: str) -> tuple[Wording, re.Match[str]] | None:
    """The wording of a question, and where its slots are; None where the list does not know it.

    >>> wording, match = known(" Who is the keeper of Elm Farm?")
    >>> wording.question, match["x"]
    ('Who is the keeper of {x}?', ' Elm Farm')
    """
    for wording, pattern in zip(wordings(), _patterns(), strict=True):
        if match := pattern.fullmatch(text):
            return wording, match
    return None


class Reworded(Wrapped):
    """A task with its question in other words.

    Args:
        base: the task.
        form: which rewording of a question, 0 or more (counted round); default drawn example by example.
    """

    wrapper = "reworded"

    def __init__(self, base: Task, form: int | None = None):
        if form is not None and (isinstance(form, bool) or not isinstance(form, int) or form < 0):
            raise UsageError(f"reworded: form is {form!r}; take a whole number, 0 or more")
        self.form = form
        super().__init__(base, form=form)

    def plan(self, example: Example, rng: np.random.Generator, tokens: Tokens) -> str:
        start, end = self._where(example)
        assert example.text is not None
        found = known(example.text[start:end])
        if found is None:
            text = " ".join(example.text[start:end].split())
            raise refuse(self.wrapper, example, f"there is no rewording of the question '{text}'")
        others = found[0].others
        return others[int(rng.integers(len(others))) if self.form is None else self.form % len(others)]

    def parts(self, example: Example, plan: str, tokens: Tokens) -> Made:
        start, end = self._where(example)
        assert example.text is not None
        found = known(example.text[start:end])
        if found is None:
            raise refuse(self.wrapper, example, "a twin asks a question of another wording")
        out: list[Part] = [Kept(0, start)]
        for part in (p for p in _SLOT.split(f" {plan}") if p):
            if _SLOT.fullmatch(part):
                a, b = found[1].span(_slot(part))
                out.append(Kept(start + a, start + b))
            else:
                out.append(Added(part))
        covers = (Cover(1, len(out) - 1, "question"),)
        return Made((*out, Kept(end, len(example.text))), covers, frozenset({"question"}))

    def about(self, example: Example, plan: str) -> dict[str, Any]:
        return {"reworded": plan}

    def _where(self, example: Example) -> tuple[int, int]:
        """Characters of the question, behind its label and with the space before it."""
        spans, end = example.spans_of("question"), question_end(example)
        if end is None or example.text is None:
            raise refuse(self.wrapper, example, "it has no question in words")
        if len(spans) > 1:
            raise refuse(self.wrapper, example, "its question stands in it more than once; reword it first")
        start = characters(example, spans[0])[0]
        label = _LABEL.match(example.text, start, end)
        end = start + len(example.text[start:end].rstrip())
        return (label.end() if label and label.end() < end else start), end


def reworded(task: Task, form: int | None = None) -> Task:
    """A task with its question in other words; see `Reworded`.

    Args:
        task: a task whose questions are on the list.
        form: which rewording; default drawn.
    """
    return Reworded(task, form)
