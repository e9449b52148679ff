"""The context stands several times: once more ("just read twice"), or as often as wanted.

A model with a small memory has to guess, while it reads, what will be asked for; when it reads the context again it
knows. After the JRT-prompt of Arora et al. (arXiv 2407.05483), which names what will be asked for before the first
copy: here the question itself does (`cue`).
"""

from __future__ import annotations

from typing import Any

from interp.models.tokens import Tokens
from interp.tasks.base import Example, Task, whole_number
from interp.tasks.wrap.base import (
    Added,
    Kept,
    Made,
    Part,
    Wrapped,
    copy_stride,
    opening,
    question,
    question_end,
    refuse,
    size,
)


class Repeated(Wrapped):
    """A task whose context stands `times` times before the question.

    Where nothing is asked apart from the context, the whole prompt stands so often. All copies carry all their spans:
    `item` is the same, and `hop` grows by `meta["copy_stride"]` from one copy to the next, which is 1 unless hops count
    steps already: the copy is `hop // copy_stride`, the step `hop % copy_stride`. A question stands once (`hop` as it
    was), or with `cue` as copy 0 in front and copy 1 at the end.

    Args:
        base: the task.
        times: copies, 1 or more.
        cue: whether the question stands in front too.
    """

    wrapper = "repeated"
    after = "read twice after Arora et al. (arXiv 2407.05483)"

    def __init__(self, base: Task, times: int = 2, cue: bool = False):
        self.times = whole_number(self.wrapper, "times", times, 1)
        self.cue = bool(cue)
        super().__init__(base, times=times, cue=self.cue)

    def parts(self, example: Example, plan: Any, tokens: Tokens) -> Made:
        n, begins = size(example), opening(example, tokens)
        asked = question(example)
        gap = _gap(example, asked)
        context, rest = (n, []) if asked is None else (asked, [Kept(asked, n, int(self.cue))])
        out: list[Part] = [Kept(0, begins)]
        if self.cue:
            out += self._cue(example, asked, gap)
        for copy in range(self.times):
            out += [*([gap] if copy else []), Kept(begins, context, copy)]
        return Made(tuple(p for p in (*out, *rest) if p != Kept(0, 0)))

    def _cue(self, example: Example, asked: int | None, gap: Added) -> list[Part]:
        end = question_end(example)
        if asked is None or end is None or example.text is None:
            raise refuse(self.wrapper, example, "it has no question to stand in front; take cue=false")
        start = asked + len(example.text[asked:end]) - len(example.text[asked:end].lstrip())
        return [Kept(start, end), gap]

    def about(self, example: Example, plan: Any) -> dict[str, Any]:
        return {"copies": self.times, "copy_stride": copy_stride(example)}


class ReadTwice(Repeated):
    """A task whose context stands twice before the question."""

    wrapper = "read_twice"

    def __init__(self, base: Task, cue: bool = False):
        super().__init__(base, 2, cue)


def _gap(example: Example, asked: int | None) -> Added:
    """What parts two copies: an empty line if the context has paragraphs, else a line break."""
    if example.text is None:
        return Added()
    return Added("\n\n" if asked is None or "\n\n" in example.text[: asked + 2] else "\n")


def read_twice(task: Task, cue: bool = False) -> Task:
    """A task whose context is read twice; see `Repeated`.

    Args:
        task: any task.
        cue: whether the question stands in front of the first copy too.

    >>> import interp
    >>> read_twice(interp.task("induction", n=2)).name
    'read_twice(induction)'
    """
    return ReadTwice(task, cue)


def repeated(task: Task, times: int = 2, cue: bool = False) -> Task:
    """A task whose context stands `times` times; see `Repeated`.

    Args:
        task: any task.
        times: copies of the context.
        cue: whether the question stands in front of the first copy too.
    """
    return Repeated(task, times, cue)
