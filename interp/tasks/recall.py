"""Statements in prose and one question about them: what tasks of recall beyond a literal needle have in common.

A task says which sentences it states, what it asks, and how its corrupt twins are worded; this module lays the
sentences out in natural prose of an exact number of tokens (`interp.tasks.haystack`), finds every span, and holds the
twins against the clean prompt: they have as many tokens and differ inside declared spans only.
"""

from __future__ import annotations

import hashlib
import re
from abc import abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np

from interp.models.tokens import Encoded, Tokens
from interp.tasks.base import (
    Example,
    Ids,
    Piece,
    Redraw,
    Span,
    Task,
    answer_after,
    continuations,
    token_spans,
    whole_number,
)
from interp.tasks.haystack import Ruler, Sentence, Slot, arrange, context, select
from interp.tasks.needles import Drawer

SHORTEST = 64
LEAST_HAYSTACK = 8
_TRIES = 40
_SLACK = 2
"""Tokens that a prompt may fall short of the length asked for."""

_QUESTION = "\n\nQuestion: "
_STAND_IN = "stand-in"
"""Source of the fillers that take the place of a dropped statement."""

Words = Mapping[str, tuple[str, str | None]]
"""What stands for each `{name}` of a wording, and its role."""


def phrase(wording: str, words: Words, item: int = -1, within: str | None = None) -> list[Piece]:
    """A wording with its `{names}` filled in, as pieces; a space belongs to the word after it."""
    out = []
    for part in _parts(wording):
        if part.endswith("}"):
            text, role = words[part.strip(" {}")]
            out.append(Piece(part[: part.index("{")] + text, role, item, within))
        elif part:
            out.append(Piece(part, None, item, within))
    return out


@lru_cache(1000)
def _parts(wording: str) -> tuple[str, ...]:
    return tuple(re.split(r"( ?\{\w+\})", wording))


def asked(question: str, stem: str, words: Words) -> tuple[Piece, ...]:
    """The end of a prompt: the question, with the role `question` over it, and the stem of the answer."""
    return (
        Piece("\n\n"),
        *phrase(f"{_QUESTION.lstrip()}{question}", words, 0, within="question"),
        *phrase(f"\nAnswer: {stem}", words, 0),
    )


@dataclass(frozen=True)
class Statement:
    """A sentence that is put into the prose; `item` is its number, `within` the role of the whole of it."""

    wording: str
    words: Words
    item: int
    within: str

    def pieces(self, gap: str = "") -> list[Piece]:
        """The sentence behind a gap, as pieces."""
        return phrase(gap + self.wording, self.words, self.item, self.within)

    @property
    def text(self) -> str:
        """The sentence."""
        return "".join(p.text for p in self.pieces())


@dataclass(frozen=True)
class Posed:
    """What stands in the prose and what is asked about it; `lead` stands before it: instruction, solved questions."""

    statements: tuple[Statement, ...]
    ask: tuple[Piece, ...]
    answer: str
    lead: str = ""

    def solved(self, depths: Sequence[float]) -> str:
        """Statements without prose between them, question and answer."""
        order = sorted(range(len(self.statements)), key=lambda i: depths[i])
        body = " ".join(self.statements[i].text for i in order)
        return f"{body}{''.join(p.text for p in self.ask)} {self.answer}\n\n"

    @property
    def about(self) -> frozenset[str]:
        """All that the statements put together: keys, values, names."""
        return frozenset(text for s in self.statements for text, _ in s.words.values())


@dataclass(frozen=True)
class Question:
    """All that a task says of one example.

    Attributes:
        posed: statements, question, answer.
        depths: where each statement goes, as the share of the haystack before it.
        options: ids of the candidates by their text, the right one first.
        foil: the wrong answer of the logit difference, one of the options.
        twins: corrupt wordings by kind, with their own options.
        meta: what is recorded beside length and depth.
        cluster: unit of resampling, where that is not the piece of prose.
    """

    posed: Posed
    depths: tuple[float, ...]
    options: dict[str, Ids]
    foil: str
    twins: dict[str, tuple[Posed, dict[str, Ids]]] = field(default_factory=dict)
    meta: dict[str, Any] = field(default_factory=dict)
    cluster: str = ""


class InProse(Task):
    """Base of the tasks that state sentences in prose and ask about them.

    Args:
        length: tokens of the prompt; it is met, or missed by two tokens at most, and never exceeded. None: nothing
            stands between the statements.
        haystack: `all`, `train` or `test` (two halves without a common piece), a piece, or a list of pieces. A task
            that says itself what stands `between` has none.
        shots: solved questions of the same sort in front, without prose, about other things.
    """

    drops: ClassVar[bool] = True
    """Whether statement 0 alone holds the answer, so that a twin without it (`needle_drop`) makes sense."""

    def __init__(
        self,
        *,
        length: int | None,
        haystack: str | Sequence[str] = "all",
        shots: int,
        n: int,
        seed: int,
        **params: Any,
    ):
        self.length = None if length is None else whole_number(self.name, "length", length, SHORTEST)
        self.shots = whole_number(self.name, "shots", shots, 0)
        if type(self).between is InProse.between:
            self.pieces = select(haystack)
            params["haystack"] = haystack if isinstance(haystack, str) else list(self.pieces)
        super().__init__(n=n, seed=seed, length=length, shots=shots, **params)
        self._tools: dict[str, tuple[Ruler, Drawer]] = {}

    @abstractmethod
    def pose(self, index: int, rng: np.random.Generator, drawer: Drawer) -> Question:
        """What example number `index` states and asks; raise `Redraw` where this draw cannot be asked."""

    def ruler(self, tokens: Tokens) -> Ruler:
        """Token counts of sentences."""
        if tokens.fingerprint not in self._tools:
            self._tools[tokens.fingerprint] = Ruler(tokens), Drawer(tokens)
        return self._tools[tokens.fingerprint][0]

    def shown(self, index: int, rng: np.random.Generator, drawer: Drawer, taken: Collection[str]) -> Question:
        """A question to be shown solved, about none of the things that are taken."""
        for _ in range(_TRIES):
            question = self.pose(index, rng, drawer)
            if question.posed.about.isdisjoint(taken):
                return question
        raise Redraw("no solved question is about other things")

    def place(self, span: Span) -> Span:
        """A span with the item and hop that this task gives it."""
        return span

    def _placed(self, raw: Sequence[Span]) -> tuple[Span, ...]:
        return tuple(sorted(map(self.place, raw), key=_order))

    def between(self, ruler: Ruler, rng: np.random.Generator, budget: int) -> tuple[list[Sentence], str]:
        """What stands around the statements, of `budget` tokens (at most two fewer), and its unit of resampling."""
        return context(ruler, rng, budget, self.pieces)

    def make(self, index: int, rng: np.random.Generator, tokens: Tokens) -> Example:
        ruler, drawer = self.ruler(tokens), self._tools[tokens.fingerprint][1]
        asks = self._with_shots(self.pose(index, rng, drawer), index, rng, drawer)
        posed, answer = asks.posed, asks.options[asks.posed.answer]
        slots, piece, known = self._lay_out(posed, asks.depths, rng, ruler)
        prompt, raw, text = _render(tokens, posed, slots, known)
        if answer_after(tokens, prompt, text, " " + posed.answer) != answer:
            raise Redraw("the answer tokenises differently after the stem and after the prompt")
        body = text[: text.rindex(_QUESTION)]
        example = Example(
            task=self.name,
            ids=prompt.ids,
            answer_ids=answer,
            text=text,
            offsets=prompt.offsets,
            spans=self._placed(raw),
            foil_ids=asks.options[asks.foil],
            candidates=tuple(asks.options.values()),
            chance=1 / len(asks.options),
            cluster=asks.cluster or piece,
            group=hashlib.sha256(body.encode()).hexdigest()[:16],
        )
        if self.copies:
            stands_once(example)
        meta = {**asks.meta, **self._realised(example, asks, prompt, slots, ruler, body)}
        corrupt = {}
        for kind, (other, options) in asks.twins.items():
            twin = self._twin(tokens, example, other, slots)
            right = options[other.answer]
            corrupt[kind] = replace(
                twin,
                answer_ids=right,
                candidates=tuple(options.values()),
                foil_ids=answer,
                chance=1 / len(options),
            )
        if self.drops:
            corrupt["needle_drop"] = self._drop(tokens, example, posed, slots, ruler, rng)
        return replace(example, meta=meta, corrupt=corrupt)

    def _with_shots(self, asks: Question, index: int, rng: np.random.Generator, drawer: Drawer) -> Question:
        taken = set(asks.posed.about).union(*(twin.about for twin, _ in asks.twins.values()))
        lead = asks.posed.lead
        for _ in range(self.shots):
            shown = self.shown(index, rng, drawer, taken)
            taken |= shown.posed.about
            lead += shown.posed.solved(shown.depths)
        twins = {kind: (replace(twin, lead=lead), o) for kind, (twin, o) in asks.twins.items()}
        return replace(asks, posed=replace(asks.posed, lead=lead), twins=twins)

    def _realised(
        self,
        example: Example,
        asks: Question,
        prompt: Encoded,
        slots: Sequence[Slot],
        ruler: Ruler,
        body: str,
    ) -> dict[str, Any]:
        opening = max(ruler.n_special, sum(1 for _, b in prompt.offsets if b <= len(asks.posed.lead)))
        context_tokens = sum(1 for a, _ in prompt.offsets if a < len(body)) - opening
        first = min(example.spans_of("evidence", 0))
        sources = [s.source for s in slots if isinstance(s, Sentence) and s.source != "filler"]
        return {
            "depth_asked": asks.depths[0],
            "depth": (first.start - opening) / (context_tokens - len(first)),
            "length_asked": self.length,
            "length": len(prompt),
            "distance": len(prompt) - 1 - min(example.spans_of("value", 0)).start,
            "haystack": list(dict.fromkeys(sources)),
        }

    def _lay_out(
        self, posed: Posed, depths: Sequence[float], rng: np.random.Generator, ruler: Ruler
    ) -> tuple[tuple[Slot, ...], str, Encoded | None]:
        """Slots that make the prompt as long as asked for, their unit of resampling, and the prompt's tokens."""
        if self.length is None:
            return tuple(sorted(range(len(depths)), key=lambda i: (depths[i], i))), "", None
        costs = [ruler.cost(s.text) for s in posed.statements]
        tail = "".join(p.text for p in posed.ask).lstrip("\n")
        lead = len(ruler.tokens.encode(posed.lead)) - ruler.n_special if posed.lead else 0
        budget = self.length - ruler.n_special - lead - sum(costs) - ruler.cost(tail, "\n\n")
        seed = int(rng.integers(2**62))
        # Counts of sentences add up to a token or two: at the start of the text, where a paragraph closes.
        for _ in range(5):
            if budget < LEAST_HAYSTACK:
                raise Redraw(f"{self.length} tokens leave no room for a haystack around the statements")
            sentences, piece = self.between(ruler, np.random.default_rng(seed), budget)
            slots = arrange(sentences, depths, costs, ruler)
            prompt = ruler.tokens.encode("".join(p.text for p in _pieces(posed, slots)))
            short = self.length - len(prompt)
            if 0 <= short <= _SLACK:
                return slots, piece, prompt
            budget += short
        raise Redraw(f"no context makes the prompt {self.length} tokens long")

    def _twin(self, tokens: Tokens, example: Example, posed: Posed, slots: Sequence[Slot]) -> Example:
        """The example in another wording; its answer is left to the caller.

        Raises:
            Redraw: it is not aligned with the clean prompt.
        """
        prompt, raw, text = _render(tokens, posed, slots)
        declared = {i for s in example.spans if s.role != "question" for i in range(s.start, s.end)}
        if len(prompt) != len(example.ids) or any(
            a != b and i not in declared for i, (a, b) in enumerate(zip(prompt.ids, example.ids, strict=True))
        ):
            raise Redraw("a twin is not aligned with the prompt")
        spans = self._placed(raw)
        return replace(example, ids=prompt.ids, text=text, offsets=prompt.offsets, spans=spans)

    def _drop(
        self,
        tokens: Tokens,
        example: Example,
        posed: Posed,
        slots: Sequence[Slot],
        ruler: Ruler,
        rng: np.random.Generator,
    ) -> Example:
        """Fillers of as many tokens stand where statement 0 stood; the answer stays, but nothing gives it away."""
        (evidence,) = (s for s in example.spans_of("evidence", 0) if s.hop == 0)
        present = {s.text for s in slots if isinstance(s, Sentence)}
        at = slots.index(0)
        for attempt in range(8):
            # Fillers are measured behind a space: a token of its own for some, and missing in front of the text.
            texts = ruler.fill(len(evidence) + (attempt % 2 if at == 0 else 0), rng, present)
            if texts is None:
                continue
            stand_ins = [Sentence(text, _STAND_IN) for text in texts]
            try:
                return self._twin(tokens, example, posed, (*slots[:at], *stand_ins, *slots[at + 1 :]))
            except Redraw:
                continue  # the fillers' tokens do not add up here; draw others
        raise Redraw(f"no filler takes the place of a statement of {len(evidence)} tokens")


def apart(options: Mapping[str, Ids], right: str) -> str:
    """The first option that differs from the right one at the token where the options part ways.

    Raises:
        Redraw: there is none.
    """
    every = list(options.values())
    at = next((i for i, column in enumerate(zip(*every, strict=False)) if len(set(column)) > 1), None)
    for text, ids in options.items():
        if at is not None and ids[at] != options[right][at]:
            return text
    raise Redraw("no option starts differently from the answer")


def options_after(tokens: Tokens, stem: str, texts: Sequence[str]) -> dict[str, Ids]:
    """Ids of texts where they follow the last word of a stem.

    Raises:
        Redraw: two of them are the same.
    """
    ids = continuations(tokens, stem.rsplit(" ", 1)[-1], [f" {t}" for t in texts])
    if len(set(ids)) < len(ids):
        raise Redraw("two options have the same tokens")
    return dict(zip(texts, ids, strict=True))


def _order(span: Span) -> tuple[int, int, str, int, int]:
    """A span as a tuple, which compares much faster."""
    return span.start, span.end, span.role, span.item, span.hop


def _pieces(posed: Posed, slots: Sequence[Slot]) -> Iterator[Piece]:
    if posed.lead:
        yield Piece(posed.lead)
    for i, slot in enumerate(slots):
        if isinstance(slot, int):
            yield from posed.statements[slot].pieces(" " if i else "")
        else:
            whole = "filler" if slot.source == _STAND_IN else None
            yield Piece(slot.gap(first=i == 0) + slot.text, within=whole, item=0)
    yield from posed.ask


def _render(
    tokens: Tokens, posed: Posed, slots: Sequence[Slot], known: Encoded | None = None
) -> tuple[Encoded, tuple[Span, ...], str]:
    pieces = list(_pieces(posed, slots))
    text = "".join(p.text for p in pieces)
    prompt = known or tokens.encode(text)
    return prompt, token_spans(prompt, pieces), text


def stands_once(example: Example) -> None:
    """Raise `Redraw` unless the answer is the value of item 0 and stands nowhere outside declared spans."""
    answer, n = example.answer_ids, len(example.answer_ids)
    if any(example.ids[s.start : s.end] != answer for s in example.spans_of("value", 0)):
        raise Redraw("the value tokenises differently in the context and as the answer")
    declared = {i for s in example.spans for i in range(s.start, s.end)}
    for i in range(len(example.ids) - n + 1):
        if example.ids[i : i + n] == answer and not declared.issuperset(range(i, i + n)):
            raise Redraw("the answer also stands outside the declared spans")
