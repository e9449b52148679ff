"""Tokens that say nothing before the answer: time to compute, and nothing to read.

After pause tokens (Goyal et al., arXiv 2310.02226), which a model is trained with there, and dots in place of a chain
of thought (Pfau et al., arXiv 2404.15758).
"""

from __future__ import annotations

from typing import Any

from interp.errors import UsageError
from interp.models.tokens import Tokens
from interp.tasks.base import Example, Ids, Redraw, Task, whole_number
from interp.tasks.haystack import n_leading
from interp.tasks.wrap.base import Added, Kept, Made, Wrapped, question, question_end, refuse, size

PLACES = ("end", "stem")


class Pause(Wrapped):
    """A task with pause tokens, as one span of role `pause`.

    Args:
        base: the task.
        count: how many.
        unit: the text of one, with the space before it; it may be a special token of the model's own.
        at: `end` (right before the answer), or `stem` (on a line between the question and the stem of the answer).
    """

    wrapper = "pause"
    after = "pauses after Goyal et al. (arXiv 2310.02226)"

    def __init__(self, base: Task, count: int = 8, unit: str = " .", at: str = "end"):
        self.count = whole_number(self.wrapper, "count", count, 1)
        if at not in PLACES:
            raise UsageError(f"pause: at is {at!r}; take of {', '.join(PLACES)}")
        if not isinstance(unit, str) or not unit.strip():
            raise UsageError(f"pause: unit is {unit!r}; take a text such as ' .'")
        self.unit, self.at = unit, at
        super().__init__(base, count=count, unit=unit, at=at)

    def parts(self, example: Example, plan: Any, tokens: Tokens) -> Made:
        n = size(example)
        if example.text is None:
            place = n if self.at == "end" else question(example)
            pause = [Added(ids=_ids(tokens, self.unit) * self.count, role="pause")]
        else:
            place = n if self.at == "end" else question_end(example)
            # A line of its own between question and stem; nothing but the tokens before an answer.
            line = [] if self.at == "end" else [Added("\n")]
            pause = [*line, Added(self.unit * self.count, role="pause")]
        if place is None:
            raise refuse(self.wrapper, example, "it has no question apart from its context; take at=end")
        rest = [Kept(place, n)] if place < n else []
        return Made((Kept(0, place), *pause, *rest))

    def wrap(self, example: Example, rng: Any, tokens: Tokens) -> Example:
        out = super().wrap(example, rng, tokens)
        if len(out.spans_of("pause")[-1]) != self.count * len(_ids(tokens, self.unit)):
            raise Redraw("pause tokens merge with one another")
        return out

    def about(self, example: Example, plan: Any) -> dict[str, Any]:
        return {"pauses": self.count}


def _ids(tokens: Tokens, unit: str) -> Ids:
    """Ids of a pause behind a word."""
    before = tokens.encode("a")
    return tokens.encode("a" + unit).ids[len(before) :] if before.ids[n_leading(before) :] else ()


def pause(task: Task, count: int = 8, unit: str = " .", at: str = "end") -> Task:
    """A task with pause tokens before the answer; see `Pause`.

    Args:
        task: any task.
        count: how many.
        unit: the text of one.
        at: `end` or `stem`.
    """
    return Pause(task, count, unit, at)
