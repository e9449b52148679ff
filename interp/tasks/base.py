"""What a model is asked: `Example`, the contract that every task fulfils, and `Task`, a seeded generator of them.

An `Example` is a prompt with its forced answer, both as ids of one tokenisation, and everything that causal tracing
needs to know about it by construction: typed token spans, aligned corrupt twins, a foil, candidates and the chance
level of a uniform guess among them. `check_example` states the invariants; the property tests run it over all tasks.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np

from interp.errors import BrokenData, UsageError
from interp.models.tokens import Encoded, Tokens, as_tokens

Ids = tuple[int, ...]


@dataclass(frozen=True, order=True)
class Span:
    """Half-open token range `[start, end)` of a prompt, with the role it plays.

    Roles: `key value query question evidence distractor_key distractor_value stale_value subject relation instruction
    filler`; a `question` holds a `query`, as `evidence` holds `key` and `value`. In sentences about several names or
    things: `io s1 s2` (the indirect object, the subject's two mentions), `again` (a thing mentioned again) and `end`
    (the last token). In joint recall and streams of updates: `context_id`, `order_mark` and `separator`.
    `item` tells needles or pairs apart (0 is the one asked for), `hop` the copies or steps of a chain.
    """

    start: int
    end: int
    role: str
    item: int = -1
    hop: int = 0

    def __len__(self) -> int:
        return self.end - self.start


@dataclass(frozen=True, eq=False)
class Example:
    """One prompt, its forced answer, and what is known about both by construction.

    Attributes:
        task: name of the task that made it.
        ids: token ids of the prompt only.
        answer_ids: ids forced after the prompt.
        text: the prompt as text; None for tasks over bare token ids.
        offsets: character range of each prompt token; None where `text` is.
        spans: typed token ranges of the prompt.
        alternatives: other id sequences that count as right.
        foil_ids: the single wrong answer of the logit difference; empty where there is none.
        candidates: closed set of possible answers, the right one first; empty where the set is open.
        corrupt: aligned twins of the same length, by kind (`value_swap`, `needle_drop`, ...).
        chance: accuracy of a uniform guess among `candidates` (among the vocabulary where there are none).
        cluster: unit of resampling: haystack, subject, template.
        group: examples of one group share a context.
        meta: generator parameters and what was realised (depth, distance, template, ...).
    """

    task: str
    ids: Ids
    answer_ids: Ids
    text: str | None = None
    offsets: tuple[tuple[int, int], ...] | None = None
    spans: tuple[Span, ...] = ()
    alternatives: tuple[Ids, ...] = ()
    foil_ids: Ids = ()
    candidates: tuple[Ids, ...] = ()
    corrupt: Mapping[str, Example] = field(default_factory=dict)
    chance: float = 0.0
    cluster: str = ""
    group: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)

    def spans_of(self, role: str, item: int | None = None) -> tuple[Span, ...]:
        """Spans with this role (and item), in order of position."""
        return tuple(sorted(s for s in self.spans if s.role == role and item in (None, s.item)))

    @property
    def answer_rows(self) -> range:
        """Positions whose logits predict the answer: the last prompt token and the answer's own tokens but the last."""
        return range(len(self.ids) - 1, len(self.ids) - 1 + len(self.answer_ids))

    @property
    def full_ids(self) -> Ids:
        """Prompt and forced answer."""
        return self.ids + self.answer_ids

    def key(self) -> str:
        """Content hash: two examples with the same key are the same question."""
        state = [self.task, self.ids, self.answer_ids, self.foil_ids, self.candidates]
        state.append([[s.start, s.end, s.role, s.item, s.hop] for s in self.spans])
        return hashlib.sha256(json.dumps(state).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Piece:
    """A stretch of text with an optional role; an `Example` is put together from pieces and tokenised once, whole.

    A role may cover several pieces: give `within` the role of the enclosing span (`evidence` around `key` and `value`);
    pieces of one `within`, `item` and `hop` make one span, from the first of them to the last.
    """

    text: str
    role: str | None = None
    item: int = -1
    within: str | None = None
    hop: int = 0


class Redraw(Exception):
    """This draw cannot be asked with this tokenizer (a value merges with its neighbour, a length cannot be met)."""


def assemble(
    tokens: Tokens, pieces: Sequence[Piece], answer: str
) -> tuple[Encoded, Ids, tuple[Span, ...], str]:
    """Tokenise prompt and answer once and find the token span of every piece that has a role.

    Returns:
        the prompt's encoding, the answer's ids, the spans (sorted), the prompt's text.

    Raises:
        Redraw: the answer does not start at a token boundary, or the prompt tokenises differently on its own.
    """
    text = "".join(p.text for p in pieces)
    prompt = tokens.encode(text)
    return prompt, answer_after(tokens, prompt, text, answer), token_spans(prompt, pieces), text


def answer_after(tokens: Tokens, prompt: Encoded, text: str, answer: str) -> Ids:
    """Ids of `answer` behind a prompt that is tokenised already.

    Raises:
        Redraw: prompt and answer merge into one token, or the tokenizer closes every text with a special token.
    """
    whole = tokens.encode(text + answer).ids
    if whole[: len(prompt)] != prompt.ids or len(whole) == len(prompt):
        raise Redraw("prompt and answer merge into one token")
    return whole[len(prompt) :]


def token_spans(prompt: Encoded, pieces: Sequence[Piece]) -> tuple[Span, ...]:
    """Token spans of the pieces that have a role, and of the roles that enclose several pieces; sorted.

    Raises:
        Redraw: the tokenizer drops the text of a piece.
    """
    ranges: dict[tuple[str, int, int, int], tuple[int, int]] = {}
    at = 0
    for number, piece in enumerate(pieces):
        start, at = at, at + len(piece.text)
        if not piece.text.strip():
            continue
        if piece.role:
            ranges[piece.role, piece.item, piece.hop, number] = (start, at)
        if piece.within:
            whole = piece.within, piece.item, piece.hop, -1
            first, _ = ranges.get(whole, (start, at))
            ranges[whole] = (first, at)
    names = list(ranges)
    found = overlapping(prompt, [ranges[name] for name in names])
    # Spans are ordered as tuples are, which compare much faster.
    ordered = sorted((a, b, *name[:3]) for (a, b), name in zip(found, names, strict=True))
    return tuple(Span(*span) for span in ordered)


def overlapping(prompt: Encoded, ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Half-open token ranges of the tokens that overlap half-open character ranges.

    A space that a tokenizer makes a token of its own belongs to a range that starts with it, also where offsets leave
    such spaces out.

    Raises:
        Redraw: no token overlaps one of them.
    """
    # Offsets never fall, and special tokens in front cover nothing.
    starts = [a for a, _ in prompt.offsets]
    stops = [b for _, b in prompt.offsets]
    out = []
    for start, stop in ranges:
        first, last = bisect_right(stops, start), bisect_left(starts, stop)
        if first >= last:
            raise Redraw(f"no token covers characters {start}:{stop}")
        out.append((first, last))
    return out


def continuations(tokens: Tokens, before: str, texts: Iterable[str]) -> list[Ids]:
    """Ids of each text where it follows `before`: how answers tokenise, without a whole prompt before each of them.

    Raises:
        Redraw: one of them merges with the text before it.
    """
    prefix = tokens.encode(before).ids
    out = []
    for text in texts:
        ids = tokens.encode(before + text).ids
        if ids[: len(prefix)] != prefix or len(ids) == len(prefix):
            raise Redraw(f"'{before}' and '{text}' merge into one token")
        out.append(ids[len(prefix) :])
    return out


def check_example(example: Example, tokens: Tokens | None = None, *, copies: bool = False) -> None:
    """Raise `BrokenData` unless the example keeps the contract.

    Args:
        example: the example (its corrupt twins are checked with it).
        tokens: where given, the text must tokenise to the ids, alone and together with the answer.
        copies: the answer must stand in the prompt as the `value` span of item 0, and nowhere outside declared spans.
    """

    def fail(what: str) -> None:
        raise BrokenData(f"{example.task}: {what}")

    n = len(example.ids)
    if not n or not example.answer_ids:
        fail("prompt and answer must hold at least one token each")
    for span in example.spans:
        if not 0 <= span.start < span.end <= n:
            fail(f"span {span} lies outside the prompt of {n} tokens")
    for role in {s.role for s in example.spans}:
        same = example.spans_of(role)
        for a, b in pairwise(same):
            if b.start < a.end:
                fail(f"spans {a} and {b} of one role overlap")
    if example.candidates:
        if example.answer_ids not in example.candidates:
            fail("the answer is not among the candidates")
        if len(set(example.candidates)) != len(example.candidates):
            fail("two candidates are the same")
    if example.foil_ids and example.foil_ids in (example.answer_ids, *example.alternatives):
        fail("the foil is a right answer")
    if not 0.0 < example.chance <= 1.0:
        fail(f"chance is {example.chance}, not in (0, 1]")
    if tokens is not None and example.text is not None and tokens.encode(example.text).ids != example.ids:
        fail("tokenising the text again gives other ids")
    # A question says where it is asked, not that what it holds may change: its `query` does.
    declared = {i for s in example.spans if s.role != "question" for i in range(s.start, s.end)}
    for kind, twin in example.corrupt.items():
        if len(twin.ids) != n:
            fail(f"corruption {kind} has {len(twin.ids)} tokens, the clean prompt {n}")
        changed = [i for i, (a, b) in enumerate(zip(example.ids, twin.ids, strict=True)) if a != b]
        if not changed:
            fail(f"corruption {kind} changes nothing")
        outside = [i for i in changed if i not in declared]
        if outside:
            fail(f"corruption {kind} changes tokens {outside[:5]} outside the declared spans")
        check_example(twin, tokens)
    if copies:
        value = example.spans_of("value", 0)
        if not value:
            fail("no value span of item 0")
        for span in value:
            if example.ids[span.start : span.end] != example.answer_ids:
                fail("the tokens of the value span are not the answer's")
        m = len(example.answer_ids)
        for i in range(n - m + 1):
            if example.ids[i : i + m] == example.answer_ids and not set(range(i, i + m)) <= declared:
                fail(f"the answer also stands at token {i}, outside every declared span")


def stable_seed(*parts: Any) -> list[int]:
    """Entropy for `numpy.random.default_rng` from any JSON-able parts; the same in every process."""
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).digest()
    return [int.from_bytes(digest[i : i + 4], "little") for i in range(0, 16, 4)]


def whole_number(task: str, name: str, value: Any, least: int) -> int:
    """A parameter that counts something.

    Raises:
        UsageError: it is no whole number, or less than `least`.
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise UsageError(f"task {task}: {name} is {value!r}; take a whole number, {least} or more")
    return int(value)


def listed(task: str, name: str, value: Any) -> list[Any]:
    """A parameter that is one word or several.

    Raises:
        UsageError: it is neither, or empty.
    """
    out = (
        [value]
        if isinstance(value, str | int | float)
        else list(value)
        if isinstance(value, list | tuple)
        else []
    )
    if not out:
        raise UsageError(f"task {task}: {name} is {value!r}; take one or a list")
    return out


class Task(ABC):
    """A seeded generator of Examples.

    A subclass names itself (`name`), says where the task comes from (`source`), takes its parameters in `__init__`
    and hands them to `super().__init__` (they are the task's identity), and writes `make`. Example `i` depends on the
    seed, the parameters and `i` only: asking for more examples never changes the first ones.
    """

    name: ClassVar[str]
    source: ClassVar[str]
    copies: ClassVar[bool] = False
    """Whether the answer stands in the prompt, so that copying from the context is measurable."""

    max_redraws: ClassVar[int] = 64

    def __init__(self, *, n: int, seed: int, **params: Any):
        self.n = whole_number(self.name, "n", n, 1)
        self.seed = whole_number(self.name, "seed", seed, 0)
        self.params = params
        self.redraws: Counter[str] = Counter()
        self._made: dict[str, list[Example]] = {}

    @abstractmethod
    def make(self, index: int, rng: np.random.Generator, tokens: Tokens) -> Example:
        """Example number `index`, drawn with `rng`; raise `Redraw` where this draw cannot be asked."""

    def examples(self, source: Any) -> list[Example]:
        """The `n` examples for a model (or tokenizer); made once and kept.

        Raises:
            BrokenData: no draw could be asked within `max_redraws` tries.
        """
        tokens = as_tokens(source)
        if tokens.fingerprint not in self._made:
            self._made[tokens.fingerprint] = list(self.stream(tokens))
        return self._made[tokens.fingerprint]

    def stream(self, source: Any) -> Iterator[Example]:
        """Like `examples`, one at a time and without keeping them."""
        tokens = as_tokens(source)
        for index in range(self.n):
            yield self._draw(index, tokens)

    def _draw(self, index: int, tokens: Tokens) -> Example:
        reasons: Counter[str] = Counter()
        for attempt in range(self.max_redraws):
            rng = np.random.default_rng(stable_seed(self.name, self.params, self.seed, index, attempt))
            try:
                return self.make(index, rng, tokens)
            except Redraw as why:
                reasons[str(why)] += 1
                self.redraws[str(why)] += 1
        ((reason, _),) = reasons.most_common(1)
        raise BrokenData(
            f"task {self.name}: example {index} could not be made in {self.max_redraws} draws ({reason})"
        )

    def config(self) -> dict[str, Any]:
        """What identifies the task: name, n, seed, parameters."""
        return {"task": self.name, "n": self.n, "seed": self.seed, **self.params}

    def __len__(self) -> int:
        return self.n

    def __repr__(self) -> str:
        inner = ", ".join(f"{k}={v!r}" for k, v in self.config().items() if k != "task")
        return f"{self.name}({inner})"


class FixedTask(Task):
    """A task whose examples are given: a filtered task, a user's list or function, a JSONL file."""

    name = "fixed"
    source = "given by the user"

    def __init__(
        self, examples: Iterable[Example], *, name: str = "fixed", copies: bool = False, **params: Any
    ):
        self._given = list(examples)
        if not self._given:
            raise BrokenData(f"task {name}: there is no example in it")
        self.name = name  # type: ignore[misc]
        self.copies = copies  # type: ignore[misc]
        super().__init__(n=len(self._given), seed=0, **params)

    def make(self, index: int, rng: np.random.Generator, tokens: Tokens) -> Example:
        return self._given[index]

    def examples(self, source: Any) -> list[Example]:
        """The given examples; their ids stand, so no tokenizer is needed."""
        return self._given

    def config(self) -> dict[str, Any]:
        data = hashlib.sha256("".join(e.key() for e in self._given).encode()).hexdigest()[:16]
        return {**super().config(), "data": data}


def is_copy(example: Example) -> bool:
    """Whether the answer stands in the prompt as the value of item 0."""
    spans = example.spans_of("value", 0)
    return bool(spans) and all(example.ids[s.start : s.end] == example.answer_ids for s in spans)
