"""A needle in a haystack: a key-value sentence somewhere in natural prose, and the question for its value.

The context is cut to an exact number of tokens, and the needle goes between two sentences, as near to the depth asked
for as sentences allow; what was realised is recorded. All spans are known by construction. Needles of one kind differ
from those of another in templates and values, so that heads can be selected on one kind and measured on another.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import ClassVar

import numpy as np

from interp.errors import UsageError
from interp.models.tokens import Encoded, Tokens
from interp.tasks import needles as pools
from interp.tasks.base import (
    Example,
    Ids,
    Piece,
    Redraw,
    Span,
    Task,
    answer_after,
    listed,
    stable_seed,
    token_spans,
    whole_number,
)
from interp.tasks.haystack import Ruler, Sentence, context, select
from interp.tasks.needles import KINDS, Drawer, Template

CANDIDATES = 10
"""Size of the closed set of answers, if there are not more needles than that."""

SHORTEST = 64
_LEAST_HAYSTACK = 8
_SLACK = 2
"""Tokens that a prompt may fall short of the length asked for."""

_QUESTION = "\n\nQuestion: "
_STAND_IN = "stand-in"
"""Source of the fillers that take the place of a dropped needle."""

_GOLDEN = (math.sqrt(5) - 1) / 2

Slot = Sentence | int
"""A sentence of the haystack, or the number of a needle (0 is the one asked for)."""


@dataclass(frozen=True)
class _Draw:
    """What one example is about: the needle asked for comes first."""

    template: Template
    keys: tuple[str, ...]
    values: tuple[str, ...]
    slots: tuple[Slot, ...] = ()

    def sentence(self, i: int) -> str:
        return self.template.sentence(self.keys[i], self.values[i])


class Niah(Task):
    """Key-value needles in a haystack of natural prose.

    Args:
        length: tokens of the prompt; it is met, or missed by two tokens at most, and never exceeded.
        depth: where the needle stands, as its token index over the tokens of the context without it: 0 to 1, a list
            of depths to go through example by example, or `uniform`, which spreads them evenly.
        kinds: of `names`, `words`, `numbers`, `phrases`; they take turns.
        needles: needles of the same form in the context; all but the first are distractors.
        haystack: `all`, `train` or `test` (two halves without a common piece), a piece, or a list of pieces.
    """

    name = "niah"
    source = "prose, keys and values written for this project; after Wu et al. (arXiv 2404.15574) and RULER"
    copies: ClassVar[bool] = True

    def __init__(
        self,
        length: int = 512,
        depth: float | str | Sequence[float] = "uniform",
        kinds: str | Sequence[str] = KINDS,
        needles: int = 1,
        haystack: str | Sequence[str] = "all",
        n: int = 64,
        seed: int = 0,
    ):
        self.kinds = _kinds(kinds)
        self.depths = _depths(depth)
        self.length = whole_number(self.name, "length", length, SHORTEST)
        self.needles = whole_number(self.name, "needles", needles, 1)
        self.pieces = select(haystack)
        super().__init__(
            n=n,
            seed=seed,
            length=length,
            depth=list(self.depths) if self.depths else "uniform",
            kinds=list(self.kinds),
            needles=needles,
            haystack=list(self.pieces) if not isinstance(haystack, str) else haystack,
        )
        self._tools: dict[str, tuple[Ruler, Drawer]] = {}

    def make(self, index: int, rng: np.random.Generator, tokens: Tokens) -> Example:
        if tokens.fingerprint not in self._tools:
            self._tools[tokens.fingerprint] = Ruler(tokens), Drawer(tokens)
        ruler, drawer = self._tools[tokens.fingerprint]
        kind, depth = self._plan(index)
        draw, candidates = self._needles(kind, rng, drawer)
        draw, prompt, text, piece = self._place(draw, depth, rng, ruler)
        answer = candidates[draw.values[0]]
        if answer_after(tokens, prompt, text, " " + draw.values[0]) != answer:
            raise Redraw("the value tokenises differently after the stem and after the prompt")
        body = text[: text.rindex(_QUESTION)]
        context_tokens = sum(1 for a, _ in prompt.offsets if a < len(body)) - ruler.n_special
        used = [s.source for s in draw.slots if isinstance(s, Sentence) and s.source != "filler"]
        example = Example(
            task=self.name,
            ids=prompt.ids,
            answer_ids=answer,
            text=text,
            offsets=prompt.offsets,
            spans=token_spans(prompt, _pieces(draw)),
            foil_ids=candidates[_foil(draw, candidates)],
            candidates=tuple(candidates.values()),
            chance=1 / len(candidates),
            cluster=piece,
            group=hashlib.sha256(body.encode()).hexdigest()[:16],
        )
        (evidence,) = example.spans_of("evidence", 0)
        (value,) = example.spans_of("value", 0)
        if prompt.ids[value.start : value.end] != answer:
            raise Redraw("the value tokenises differently in the context and as the answer")
        meta = {
            "kind": kind,
            "template": draw.template.name,
            "key": draw.keys[0],
            "value": draw.values[0],
            "haystack": list(dict.fromkeys(used)),
            "depth_asked": depth,
            "depth": (evidence.start - ruler.n_special) / (context_tokens - len(evidence)),
            "length": len(prompt),
            "distance": len(prompt) - 1 - value.start,
            "needles": self.needles,
        }
        corrupt = {
            "value_swap": _value_swap(tokens, draw, example, candidates),
            "needle_drop": _needle_drop(tokens, draw, example, ruler, rng),
        }
        if self.needles > 1:
            corrupt["query_swap"] = _query_swap(tokens, draw, example, candidates)
        return replace(example, meta=meta, corrupt=corrupt)

    def _plan(self, index: int) -> tuple[str, float]:
        """Kind and depth of an example: fixed by its number, so that a redraw keeps them."""
        if self.depths:
            turn, place = divmod(index, len(self.depths))
            return self.kinds[turn % len(self.kinds)], self.depths[place]
        start = np.random.default_rng(stable_seed(self.name, "depth", self.seed)).random()
        return self.kinds[index % len(self.kinds)], float((start + index * _GOLDEN) % 1.0)

    def _needles(self, kind: str, rng: np.random.Generator, drawer: Drawer) -> tuple[_Draw, dict[str, Ids]]:
        """Template, keys and values; and all candidates: the values of the needles first, then values not in them."""
        options = pools.templates(kind)
        template = options[rng.integers(len(options))]
        pool, key_pool = pools.values(kind), pools.keys(template.about)
        total = max(CANDIDATES, self.needles + 1)
        before = template.stem.rsplit(" ", 1)[-1]
        candidates = drawer.alike(pool, rng, pool.draw(rng), total - 1, before)
        keys = dict.fromkeys([key_pool.draw(rng)])
        if self.needles > 1:
            # The first distractor's key is as long as the key asked for: the query can be swapped for it.
            keys = dict.fromkeys(drawer.alike(key_pool, rng, next(iter(keys)), 1, "that"))
        for _ in range(100 * self.needles):
            if len(keys) == self.needles:
                return _Draw(template, tuple(keys), tuple(candidates)[: self.needles]), candidates
            keys[key_pool.draw(rng)] = None
        raise Redraw(f"there are not {self.needles} different keys")

    def _place(
        self, draw: _Draw, depth: float, rng: np.random.Generator, ruler: Ruler
    ) -> tuple[_Draw, Encoded, str, str]:
        """Lay out the context so that the prompt is as long as asked for: the draw, the prompt, its text, the piece."""
        costs = [ruler.cost(draw.sentence(i)) for i in range(self.needles)]
        tail = "".join(p.text for p in draw.template.ask(draw.keys[0]))
        budget = self.length - ruler.n_special - sum(costs) - ruler.cost(tail.lstrip("\n"), "\n\n")
        seed = int(rng.integers(2**62))
        # Counts of sentences add up to a token or two: at the start of the text, where a paragraph closes.
        for _ in range(5):
            if budget < _LEAST_HAYSTACK:
                raise Redraw(f"{self.length} tokens leave no room for a haystack around the needle")
            same = np.random.default_rng(seed)
            sentences, piece = context(ruler, same, budget, self.pieces)
            placed = replace(draw, slots=_insert(sentences, costs, depth, same, ruler))
            text = "".join(p.text for p in _pieces(placed))
            prompt = ruler.tokens.encode(text)
            short = self.length - len(prompt)
            if 0 <= short <= _SLACK:
                return placed, prompt, text, piece
            budget += short
        raise Redraw(f"no context makes the prompt {self.length} tokens long")


def _insert(
    sentences: Sequence[Sentence], costs: Sequence[int], depth: float, rng: np.random.Generator, ruler: Ruler
) -> tuple[Slot, ...]:
    """Sentences with the needles between them: number 0 as near to `depth` as can be, the others anywhere else."""
    slots: list[Slot] = list(sentences)

    def nearest() -> int:
        lengths = [costs[s] if isinstance(s, int) else ruler.of(s, first=i == 0) for i, s in enumerate(slots)]
        starts = np.concatenate([[0], np.cumsum(lengths)])
        return int(np.abs(starts - depth * starts[-1]).argmin())

    for needle in range(1, len(costs)):
        goal = nearest()
        free = [
            i
            for i in range(len(slots) + 1)
            if abs(i - goal) > 1 and not any(isinstance(s, int) for s in slots[max(0, i - 1) : i + 1])
        ]
        slots.insert(int(rng.choice(free or range(len(slots) + 1))), needle)
    slots.insert(nearest(), 0)
    if isinstance(slots[0], int) and len(slots) > 1 and isinstance(slots[1], Sentence):
        # A needle in front belongs to the first paragraph; alone it would be a heading.
        slots[1] = replace(slots[1], opens=False)
    return tuple(slots)


def _pieces(draw: _Draw) -> list[Piece]:
    out: list[Piece] = []
    for i, slot in enumerate(draw.slots):
        if isinstance(slot, int):
            out += draw.template.needle(draw.keys[slot], draw.values[slot], slot, gap=" " if i else "")
        else:
            whole = "filler" if slot.source == _STAND_IN else None
            out.append(Piece(slot.gap(first=i == 0) + slot.text, within=whole, item=0))
    return out + draw.template.ask(draw.keys[0])


def _ask(tokens: Tokens, draw: _Draw) -> tuple[Encoded, tuple[Span, ...], str]:
    pieces = _pieces(draw)
    text = "".join(p.text for p in pieces)
    prompt = tokens.encode(text)
    return prompt, token_spans(prompt, pieces), text


def _foil(draw: _Draw, candidates: Mapping[str, Ids], among: Sequence[str] | None = None) -> str:
    """The first candidate (a distractor's value where there is one) that differs from the answer where all part ways.

    Raises:
        Redraw: there is none.
    """
    at = next(i for i, column in enumerate(zip(*candidates.values(), strict=True)) if len(set(column)) > 1)
    own = candidates[draw.values[0]]
    for text in among if among is not None else list(candidates):
        if candidates[text][at] != own[at]:
            return text
    raise Redraw("no candidate starts differently from the answer")


def _value_swap(tokens: Tokens, draw: _Draw, example: Example, candidates: Mapping[str, Ids]) -> Example:
    """The needle holds a value that is nowhere in the clean prompt, and that value is the answer."""
    value = _foil(draw, candidates, list(candidates)[len(draw.values) :])
    prompt, spans, text = _ask(tokens, replace(draw, values=(value, *draw.values[1:])))
    (at,) = example.spans_of("value", 0)
    if spans != example.spans or prompt.ids[at.start : at.end] != candidates[value]:
        raise Redraw("the swapped value is not aligned")
    return _twin(example, prompt, spans, text, candidates[value])


def _query_swap(tokens: Tokens, draw: _Draw, example: Example, candidates: Mapping[str, Ids]) -> Example:
    """The question asks for the first distractor, which takes the place of item 0 and the other way around."""
    other = {0: 1, 1: 0}
    swapped = replace(
        draw,
        keys=(draw.keys[1], draw.keys[0], *draw.keys[2:]),
        values=(draw.values[1], draw.values[0], *draw.values[2:]),
        slots=tuple(other.get(s, s) if isinstance(s, int) else s for s in draw.slots),
    )
    prompt, spans, text = _ask(tokens, swapped)
    if len(prompt) != len(example.ids):
        raise Redraw("the swapped query is not aligned")
    return _twin(example, prompt, spans, text, candidates[draw.values[1]])


def _needle_drop(
    tokens: Tokens, draw: _Draw, example: Example, ruler: Ruler, rng: np.random.Generator
) -> Example:
    """Fillers of as many tokens stand where the needle stood; the answer stays, but nothing gives it away."""
    (evidence,) = example.spans_of("evidence", 0)
    present = {s.text for s in draw.slots if isinstance(s, Sentence)}
    at = draw.slots.index(0)
    for attempt in range(8):
        # Fillers are measured behind a space, which may be a token of its own and is not there in front of the text.
        spare = attempt % 2 if at == 0 else 0
        texts = ruler.fill(len(evidence) + spare, rng, present)
        if texts is None:
            continue
        stand_ins = [Sentence(text, _STAND_IN) for text in texts]
        dropped = replace(draw, slots=(*draw.slots[:at], *stand_ins, *draw.slots[at + 1 :]))
        prompt, spans, text = _ask(tokens, dropped)
        outside = [*range(evidence.start), *range(evidence.end, len(example.ids))]
        if len(prompt) == len(example.ids) and all(prompt.ids[i] == example.ids[i] for i in outside):
            return replace(example, ids=prompt.ids, text=text, offsets=prompt.offsets, spans=spans)
    raise Redraw(f"no filler takes the place of a needle of {len(evidence)} tokens")


def _twin(example: Example, prompt: Encoded, spans: tuple[Span, ...], text: str, answer: Ids) -> Example:
    """The example with another right answer among the same candidates; its foil is the clean answer."""
    return replace(
        example,
        ids=prompt.ids,
        answer_ids=answer,
        text=text,
        offsets=prompt.offsets,
        spans=spans,
        foil_ids=example.answer_ids,
        candidates=(answer, *(c for c in example.candidates if c != answer)),
    )


def _kinds(kinds: str | Sequence[str]) -> tuple[str, ...]:
    chosen = listed(Niah.name, "kinds", kinds)
    for kind in chosen:
        if kind not in KINDS:
            near = get_close_matches(str(kind), KINDS, 1)
            hint = f" (did you mean '{near[0]}'?)" if near else ""
            raise UsageError(f"task niah: no kind of needle '{kind}'{hint}; take of {', '.join(KINDS)}")
    return tuple(chosen)


def _depths(depth: float | str | Sequence[float]) -> tuple[float, ...]:
    """Depths to go through; empty for `uniform`."""
    if depth == "uniform":
        return ()
    given = listed(Niah.name, "depth", depth)
    for d in given:
        if isinstance(d, bool | str) or not 0 <= d <= 1:
            raise UsageError(
                f"task niah: depth is {d!r}; take a number from 0 to 1, a list of them, or 'uniform'"
            )
    return tuple(float(d) for d in given)
