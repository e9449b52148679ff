"""What wrappers have in common: a prompt put together from stretches of another prompt and from what is added.

A wrapper says, for one prompt, which parts the new one has (`Kept` stretches of the old one, `Added` ones). The text is
tokenised once, whole; every span is carried along with the characters that it covers, and corrupt twins are wrapped the
same way, so that all that the contract asks for holds again. Prompts of bare ids are put together token by token.

Example i of a wrapped task is example i of its base. Where a tokenizer spoils the seam between two parts, the base is
asked for another draw.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from interp.errors import BrokenData, UsageError
from interp.models.tokens import Tokens, as_tokens
from interp.tasks.base import (
    Example,
    Ids,
    Redraw,
    Span,
    Task,
    continuations,
    is_copy,
    overlapping,
    stable_seed,
)
from interp.tasks.haystack import n_leading
from interp.tasks.pairs import aligned

_LABEL = re.compile(r"(?:^|\n)[ ]*[A-Z][A-Za-z]{0,15}:[ ]*$")
"""What stands on the line of a question in front of it."""

_END = 8
"""Tokens at the end of a prompt that decide how an answer behind it is cut."""

_TAIL = 40
"""Characters at the end of a prompt behind which answers are tokenised where that end is new."""


@dataclass(frozen=True)
class Kept:
    """A stretch of the old prompt: characters of its text, or tokens where it has none; `copy` counts its copies."""

    start: int
    stop: int
    copy: int = 0


@dataclass(frozen=True)
class Added:
    """What a wrapper adds: text, or `ids` where the prompt has no text; `role` makes it a span."""

    text: str = ""
    ids: Ids = ()
    role: str | None = None
    item: int = -1


Part = Kept | Added


@dataclass(frozen=True)
class Cover:
    """A span over whole parts, from number `first` to number `last`."""

    first: int
    last: int
    role: str
    item: int = 0


@dataclass(frozen=True)
class Made:
    """The parts of a new prompt.

    Attributes:
        covers: spans over parts.
        replaced: roles of the old prompt that may be gone.
    """

    parts: tuple[Part, ...]
    covers: tuple[Cover, ...] = ()
    replaced: frozenset[str] = frozenset()


class Wrapped(Task):
    """A task whose prompts are those of another task, changed.

    A subclass says what is drawn once for a prompt and its twins (`plan`), and the parts of the new prompt (`parts`).
    Parameters, answers, candidates, chance, cluster and group are the base's; `meta` gets the new `length` and
    `distance`, and what the wrapper adds (`about`).
    """

    wrapper: ClassVar[str]
    after: ClassVar[str] = ""
    """Where the wrapper comes from."""

    def __init__(self, base: Task, **params: Any):
        self.base = base
        self.name = f"{self.wrapper}({base.name})"  # type: ignore[misc]
        self.source = base.source + (f"; {self.after}" if self.after else "")  # type: ignore[misc]
        self.copies = base.copies  # type: ignore[misc]
        # Draws must not depend on how many examples there are.
        of = {key: value for key, value in base.config().items() if key != "n"}
        super().__init__(n=base.n, seed=base.seed, base=of, **params)

    @abstractmethod
    def parts(self, example: Example, plan: Any, tokens: Tokens) -> Made:
        """The parts of the new prompt, of the clean example or of a twin of it."""

    def plan(self, example: Example, rng: np.random.Generator, tokens: Tokens) -> Any:
        """What is drawn once for a clean example and holds for its twins too."""
        return None

    def about(self, example: Example, plan: Any) -> dict[str, Any]:
        """What `meta` is told."""
        return {}

    def examples(self, source: Any) -> list[Example]:
        """The examples; there may be fewer than were asked for where a user's function yields fewer."""
        out = super().examples(source)
        self.n = len(out)
        self.copies = all(map(is_copy, out))  # type: ignore[misc]
        return out

    def stream(self, source: Any) -> Iterator[Example]:
        tokens = as_tokens(source)
        for index, example in enumerate(self.base.stream(tokens)):
            yield self._from(index, example, tokens)

    def make(self, index: int, rng: np.random.Generator, tokens: Tokens) -> Example:
        return self.wrap(self.base.make(index, rng, tokens), rng, tokens)

    def _draw(self, index: int, tokens: Tokens) -> Example:
        return self._from(index, self.base._draw(index, tokens), tokens)

    def _from(self, index: int, example: Example, tokens: Tokens) -> Example:
        """The base's example wrapped, or another draw of it where that one cannot be."""
        rng = np.random.default_rng(stable_seed(self.name, self.params, self.seed, index))
        try:
            return self.wrap(example, rng, tokens)
        except Redraw as why:
            self.redraws[str(why)] += 1
            if not redraws(self.base):
                raise BrokenData(f"task {self.name}: example {index} cannot be wrapped ({why})") from None
        return super()._draw(index, tokens)

    def __repr__(self) -> str:
        own = {k: v for k, v in self.params.items() if k != "base"}
        return f"{self.wrapper}({', '.join([repr(self.base), *(f'{k}={v!r}' for k, v in own.items())])})"

    def wrap(self, example: Example, rng: np.random.Generator, tokens: Tokens) -> Example:
        """An example of the base, changed, with its twins.

        Raises:
            Redraw: this tokenizer cuts a seam so that a twin is not aligned, or the answer is cut otherwise.
        """
        plan = self.plan(example, rng, tokens)
        stride = copy_stride(example)
        clean = self._one(example, plan, tokens, stride)
        twins = {kind: self._one(twin, plan, tokens, stride) for kind, twin in example.corrupt.items()}
        if is_copy(example):
            _copies(clean)
        moved = _meta(example, clean, stride)
        meta = {**example.meta, **moved, **self.about(example, plan)}
        return replace(clean, meta=meta, corrupt=aligned(clean, twins))

    def _one(self, example: Example, plan: Any, tokens: Tokens, stride: int) -> Example:
        made = self.parts(example, plan, tokens)
        new = (_in_ids if example.text is None else _in_text)(example, made, tokens, stride)
        new = replace(new, task=self.name, corrupt={})
        return new if new.ids[-_END:] == example.ids[-_END:] else _answered(example, new, tokens)


def redraws(task: Task) -> bool:
    """Whether a task can draw an example once more: it is generated, and not given."""
    from interp.tasks.base import FixedTask
    from interp.tasks.jsonl import JsonlTask
    from interp.tasks.user import FunctionTask

    while isinstance(task, Wrapped):
        task = task.base
    return not isinstance(task, FixedTask | FunctionTask | JsonlTask)


def copy_stride(example: Example) -> int:
    """By how much the `hop` of spans grows from one copy to the next: 1, or more where hops count steps already.

    In copy c a span of hop h has hop h + c * stride, so the copy is `hop // stride` and the step `hop % stride`.
    """
    return 1 + max((s.hop for e in (example, *example.corrupt.values()) for s in e.spans), default=0)


def characters(example: Example, span: Span) -> tuple[int, int]:
    """Characters that a span covers, with the white space before its first token that no token covers."""
    assert example.offsets is not None
    before = example.offsets[span.start - 1][1] if span.start else 0
    return min(before, example.offsets[span.start][0]), example.offsets[span.end - 1][1]


def question(example: Example) -> int | None:
    """Where the question starts: the character behind the context, or the token in prompts of bare ids.

    That is the label in front of the first `question` span, or where there is none, the `query` of item 0. None where
    nothing stands before it: then a prompt is all context, or all question.
    """
    spans = example.spans_of("question") or example.spans_of("query", 0)
    if not spans:
        return None
    if example.text is None:
        return spans[0].start or None
    at = characters(example, spans[0])[0]
    if label := _LABEL.search(example.text[:at]):
        at = label.start()
    for start, stop in (characters(example, s) for s in example.spans if s not in spans):
        if start < at < start + len(example.text[start:stop].rstrip()):
            at = start
    begins = heading(example)
    at = begins + len(example.text[begins:at].rstrip())
    return at if at > begins else None


def heading(example: Example) -> int:
    """Characters of a chat template that begin a prompt: no wrapper puts anything before them."""
    spans = example.spans_of("template")
    if not spans or characters(example, spans[0])[0] > 0:
        return 0
    return characters(example, spans[0])[1]


def question_end(example: Example) -> int | None:
    """Character behind the last `question` span; None where there is none, or no text."""
    spans = example.spans_of("question")
    return characters(example, spans[-1])[1] if spans and example.text is not None else None


def size(example: Example) -> int:
    """Characters of a prompt, or tokens where it has no text."""
    return len(example.ids) if example.text is None else len(example.text)


def opening(example: Example, tokens: Tokens) -> int:
    """Where a prompt begins: behind the heading of a chat template, or the special tokens in front of bare ids."""
    if example.text is not None:
        return heading(example)
    text = tokens.encode("a")
    special = text.ids[: n_leading(text)]
    return len(special) if example.ids[: len(special)] == special else 0


def refuse(wrapper: str, example: Example, why: str) -> UsageError:
    """That a wrapper does not go with a task, and why."""
    return UsageError(f"{wrapper} does not go with task {example.task}: {why}")


_Placed = tuple[tuple[int, int], tuple[str, int, int]]
"""A range of the new prompt, and the role, item and hop of the span that it is."""


def _in_ids(example: Example, made: Made, tokens: Tokens, stride: int) -> Example:
    ids: list[int] = []
    starts = []
    for part in made.parts:
        starts.append(len(ids))
        ids += example.ids[part.start : part.stop] if isinstance(part, Kept) else part.ids
    ranges = {s: (s.start, s.end) for s in example.spans}
    placed = _placed(ranges, made, [*starts, len(ids)], stride, dict.fromkeys(ranges, 0))
    return replace(
        example, ids=tuple(ids), spans=tuple(sorted(Span(at[0], at[1], *name) for at, name in placed))
    )


def _in_text(example: Example, made: Made, tokens: Tokens, stride: int) -> Example:
    assert example.text is not None
    texts = [example.text[p.start : p.stop] if isinstance(p, Kept) else p.text for p in made.parts]
    starts = np.cumsum([0, *map(len, texts)]).tolist()
    ranges = {s: characters(example, s) for s in example.spans}
    # White space at the end of a span may be left out: a line break that closes a sentence's last token.
    spare = {s: b - a - len(example.text[a:b].rstrip()) for s, (a, b) in ranges.items()}
    placed = _placed(ranges, made, starts, stride, spare)
    text = "".join(texts)
    prompt = tokens.encode(text)
    found = overlapping(prompt, [at for at, _ in placed])
    spans = [Span(at[0], at[1], *name) for at, (_, name) in zip(found, placed, strict=True)]
    return replace(
        example, ids=prompt.ids, text=text, offsets=prompt.offsets, spans=tuple(sorted(set(spans)))
    )


def _placed(
    ranges: Mapping[Span, tuple[int, int]],
    made: Made,
    starts: Sequence[int],
    stride: int,
    spare: Mapping[Span, int],
) -> list[_Placed]:
    """Ranges in the new prompt, with role, item and hop: of the old spans wherever they are kept, and of what is added.

    Args:
        ranges: of the old spans.
        starts: where each part starts in the new prompt, and where the last one ends.
        spare: how much of the end of each span may be missing.
    """
    out: list[_Placed] = []
    for span, (start, stop) in ranges.items():
        copies = 0
        for part, at in zip(made.parts, starts, strict=False):
            if isinstance(part, Kept) and part.start <= start and stop - spare[span] <= part.stop:
                end = min(stop, part.stop)
                hop = span.hop + part.copy * stride
                out.append(((at + start - part.start, at + end - part.start), (span.role, span.item, hop)))
                copies += 1
        if not copies and span.role not in made.replaced:
            raise Redraw(f"a span of role {span.role} lies across a seam")
    for part, at in zip(made.parts, starts, strict=False):
        if isinstance(part, Added) and part.role:
            out.append(((at, at + (len(part.text) or len(part.ids))), (part.role, part.item, 0)))
    out += [((starts[c.first], starts[c.last + 1]), (c.role, c.item, 0)) for c in made.covers]
    return out


def _answered(example: Example, new: Example, tokens: Tokens) -> Example:
    """The new example with its answers as they are cut behind the new end of the prompt.

    Raises:
        Redraw: an answer merges with that end, or two of them become the same.
    """
    if new.text is None or example.text is None:
        return new
    every = list(
        dict.fromkeys([example.answer_ids, example.foil_ids, *example.candidates, *example.alternatives])
    )
    last = example.ids[-1:]
    before = len(tokens.decode(last))
    texts = [tokens.decode(last + ids)[before:] for ids in every if ids]
    tail = new.text[-_TAIL:].partition(" ")[2] or new.text
    cut = dict(zip([ids for ids in every if ids], continuations(tokens, tail, texts), strict=True))
    if len(set(cut.values())) < len(cut):
        raise Redraw("two answers are the same behind the new prompt")
    cut[()] = ()
    return replace(
        new,
        answer_ids=cut[example.answer_ids],
        foil_ids=cut[example.foil_ids],
        candidates=tuple(cut[c] for c in example.candidates),
        alternatives=tuple(cut[a] for a in example.alternatives),
    )


def _copies(example: Example) -> None:
    """Raise `Redraw` unless every value of item 0 is the answer, which stands nowhere outside declared spans."""
    if not is_copy(example):
        raise Redraw("a value tokenises differently in the new prompt")
    declared = {i for s in example.spans for i in range(s.start, s.end)}
    m = len(example.answer_ids)
    for i in range(len(example.ids) - m + 1):
        if example.ids[i : i + m] == example.answer_ids and not declared.issuperset(range(i, i + m)):
            raise Redraw("the answer also stands outside the declared spans")


def _meta(example: Example, clean: Example, stride: int) -> dict[str, Any]:
    """The new length, and the distance from the last copy of what it was measured from before."""
    out: dict[str, Any] = {}
    if "length" in example.meta:
        out["length"] = len(clean.ids)
    if "distance" in example.meta:
        start = len(example.ids) - 1 - example.meta["distance"]
        for span in (s for s in example.spans if s.start == start):
            own = [s for s in example.spans_of(span.role, span.item) if s.hop == span.hop]
            new = [s for s in clean.spans_of(span.role, span.item) if s.hop % stride == span.hop]
            out["distance"] = len(clean.ids) - 1 - new[own.index(span) - len(own)].start
            break
    return out
