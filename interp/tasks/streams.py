"""Streams of prose that contexts of many lengths are cut from, and needles that stand in them at many depths.

All contexts of one stream begin with the same sentences: up to its first needle a context is a prefix of the stream,
token by token, and behind a needle that stands at the same place it goes on as any other does. Fillers come last.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from interp.errors import UsageError
from interp.models.tokens import Encoded
from interp.tasks.base import Redraw, overlapping
from interp.tasks.haystack import Ruler, Sentence, pieces
from interp.tasks.layout import SLACK, Layout, Needle, Slot

_LEAST_HAYSTACK = 8
_TRIES = 6
"""Corrections of a layout by what was measured; then other fillers are drawn, so many times."""


@dataclass(frozen=True)
class Stream:
    """Sentences of prose in order, with the tokens at which each one starts and ends, counted from the first.

    White space that parts paragraphs lies before the start of a sentence; a space within a paragraph belongs to it.
    """

    name: str
    sentences: tuple[Sentence, ...]
    starts: tuple[int, ...]
    ends: tuple[int, ...]

    def cut(self, budget: int, ruler: Ruler, rng: np.random.Generator) -> tuple[list[Sentence], list[int]]:
        """The first sentences, and fillers behind them, of `budget` tokens.

        Returns:
            the sentences, and the tokens at which they start and the last one ends.

        Raises:
            UsageError: the stream is too short.
        """
        fit = bisect_right(self.ends, budget)
        if fit == len(self.ends) and budget - self.ends[-1] > SLACK:
            raise UsageError(
                f"the haystack holds {self.ends[-1]} tokens of prose, and {budget} are asked for; "
                "take haystack 'all' or shorter lengths"
            )
        for count in range(fit, -1, -1):
            end = self.ends[count - 1] if count else 0
            extra = ruler.fill(budget - end, rng) if budget > end else []
            if extra is not None:
                ends = np.cumsum([end, *(ruler.cost(text) for text in extra)]).tolist()
                fillers = [Sentence(text, "filler") for text in extra]
                return [*self.sentences[:count], *fillers], [*self.starts[:count], *ends]
        raise Redraw(f"no fillers are {budget} tokens long")

    def share(self, other: Stream, tokens: int) -> float:
        """Share of the first `tokens` tokens of this stream that stands in the first `tokens` of another: 0 to 1."""
        upto, there = bisect_right(self.ends, tokens), bisect_right(other.ends, tokens)
        texts = {s.text for s in other.sentences[:there]}
        sizes = np.diff([0, *self.ends[:upto]])
        same = [s.text in texts for s in self.sentences[:upto]]
        return float(sizes @ np.array(same, float) / max(1, sizes.sum()))


def openings(count: int, names: Sequence[str], rng: np.random.Generator) -> list[tuple[str, int]]:
    """Piece and paragraph at which each of `count` streams starts: another piece as long as there are any.

    Raises:
        UsageError: there are not so many paragraphs.
    """
    order = [names[i] for i in rng.permutation(len(names))]
    turns = -(-count // len(order))
    out = []
    for number in range(count):
        piece, turn = order[number % len(order)], number // len(order)
        paragraphs = len(_paragraphs(piece))
        if turns > paragraphs:
            raise UsageError(
                f"there are {count} haystacks, and too little prose for so many to start apart; take fewer"
            )
        out.append((piece, turn * paragraphs // turns))
    return out


def stream_name(piece: str, paragraph: int) -> str:
    """How a stream is called: the piece that it starts with, and the paragraph if that is not the first."""
    return f"{piece}.{paragraph}" if paragraph else piece


def deal(
    ruler: Ruler,
    starts: Sequence[tuple[str, int]],
    names: Sequence[str],
    tokens: int,
    rng: np.random.Generator,
) -> list[Stream]:
    """One stream for each start, of `tokens` tokens or more, or of all there are; pieces are dealt in rounds.

    Behind its own piece a stream goes on with those that the fewest streams before it hold, in random order, so that
    streams have as little text in common as the amount of prose allows.
    """
    # Sentences are measured one by one, and seams between them save a token now and then.
    tokens += tokens // 32
    used = Counter(piece for piece, _ in starts)
    taken = [list(pieces()[first][_paragraphs(first)[at] :]) for first, at in starts]
    held = [[first] for first, _ in starts]
    # A round gives each stream one more piece: texts that two of them share stand far behind.
    for _ in range(len(names)):
        for (first, at), sentences, own in zip(starts, taken, held, strict=True):
            if sum(ruler.of(s) for s in sentences) >= tokens:
                continue
            rank = rng.permutation(len(names)).tolist()
            rest = sorted((n for n in names if n not in own), key=lambda n: (used[n], rank[names.index(n)]))
            # What stands before its start comes last.
            piece = rest[0] if rest else first
            sentences += pieces()[piece] if rest else pieces()[first][: _paragraphs(first)[at]]
            own.append(piece)
            used[piece] += 1
    return [
        _measured(stream_name(*start), _upto(tokens, sentences, ruler), ruler)
        for start, sentences in zip(starts, taken, strict=True)
    ]


def _upto(tokens: int, sentences: Sequence[Sentence], ruler: Ruler) -> list[Sentence]:
    total = np.cumsum([ruler.of(s) for s in sentences])
    return list(sentences[: int(np.searchsorted(total, tokens)) + 1])


def _paragraphs(piece: str) -> list[int]:
    return [i for i, s in enumerate(pieces()[piece]) if s.opens]


def _measured(name: str, sentences: Sequence[Sentence], ruler: Ruler) -> Stream:
    layout = Layout((), tuple(sentences))
    text, ranges = layout.context()
    found = overlapping(ruler.tokens.encode(text), ranges)
    starts, ends = zip(*found, strict=True)
    return Stream(
        name,
        tuple(sentences),
        tuple(a - ruler.n_special for a in starts),
        tuple(b - ruler.n_special for b in ends),
    )


@dataclass(frozen=True)
class Place:
    """Where one needle of a prompt stands, in tokens of the context without that needle.

    Attributes:
        at: tokens before the needle.
        width: tokens of the needle.
        asked: depth asked for times `total`.
        total: tokens of the context without the needle.
        bounds: tokens before each sentence, and all of them: wherever a needle can stand.
    """

    at: int
    width: int
    asked: float
    total: int
    bounds: tuple[int, ...]

    @property
    def off(self) -> float:
        """Tokens from the asked place to the realised one."""
        return abs(self.at - self.asked)

    @property
    def half_sentence(self) -> float:
        """Half the tokens of the sentence in which the asked place falls: no needle can be surer to be as near."""
        after = min(max(bisect_right(self.bounds, self.asked), 1), len(self.bounds) - 1)
        return (self.bounds[after] - self.bounds[after - 1]) / 2

    @property
    def excess(self) -> float:
        """Tokens by which another boundary between sentences is nearer to the asked place; 0 where none is."""
        return self.off - min(abs(b - self.asked) for b in self.bounds)


def places(layout: Layout, prompt: Encoded, n_special: int, depths: Sequence[float]) -> list[Place]:
    """Where each needle of a layout stands; `depths` are those asked for, by the needles' numbers."""
    text, ranges = layout.context()
    found = [(a - n_special, b - n_special) for a, b in overlapping(prompt, ranges)]
    end = bisect_left(prompt.offsets, (len(text),)) - n_special
    out = []
    for number, depth in enumerate(depths):
        own = layout.slots.index(number)
        start, stop = found[own]
        width = stop - start
        starts = [a if i < own else a - width for i, (a, _) in enumerate(found) if i != own]
        total = end - width
        out.append(Place(start, width, depth * total, total, tuple(sorted({*starts, total}))))
    return out


def arrange(
    ruler: Ruler,
    stream: Stream,
    needles: Sequence[Needle],
    depths: Sequence[float],
    length: int,
    rng: np.random.Generator,
) -> tuple[Layout, dict[int, Encoded]]:
    """A context with every needle at the boundary of sentences nearest to its depth.

    Args:
        needles: in the order of their depths.
        length: tokens of the prompt that asks the longest of the questions; it is missed by two tokens at most, for
            the shorter ones too if they differ by no more than that, and never exceeded.

    Returns:
        the layout, and the tokens of those of its prompts that were measured, by the number of the needle asked for.

    Raises:
        Redraw: they do not fit.
        UsageError: the stream is too short.
    """
    widths = [ruler.cost(needle.sentence) for needle in needles]
    tails = [ruler.cost(needle.tail.lstrip("\n"), "\n\n") for needle in needles]
    longest = int(np.argmax(tails))
    allowed = max(0, SLACK - (max(tails) - min(tails)))
    size = length - ruler.n_special - tails[longest]
    budget = size - sum(widths)
    ahead = np.cumsum([0, *widths[:-1]]).tolist()
    for seed in rng.integers(2**62, size=_TRIES).tolist():
        for attempt in range(_TRIES):
            if budget < _LEAST_HAYSTACK:
                raise Redraw(f"{length} tokens leave no room for a haystack around {len(needles)} needles")
            # The same fillers, where as many tokens are left for them.
            sentences, bounds = stream.cut(budget, ruler, np.random.default_rng(seed))
            goals = [d * (size - w) - a for d, w, a in zip(depths, widths, ahead, strict=True)]
            at = _boundaries(bounds, goals)
            layout = _insert(needles, sentences, at)
            prompt = ruler.tokens.encode(layout.asking(longest).text())
            short = length - len(prompt)
            # The question does not matter here: the context comes first.
            found = places(layout, prompt, ruler.n_special, depths)
            # Two boundaries are equally near where a needle, when it moves, takes a token of its seam along.
            spare = attempt // (_TRIES // 2)
            if 0 <= short <= allowed and all(place.excess <= spare for place in found):
                return layout, {longest: prompt}
            # Seams between sentences cost a token or save one: what was measured is right the next time.
            widths = [place.width for place in found]
            ahead = [place.at - bounds[i] for place, i in zip(found, at, strict=True)]
            size = found[0].total + found[0].width
            if not 0 <= short <= allowed:
                budget += short
    raise Redraw(f"no context makes the prompt {length} tokens long, with all needles at their depths")


def _boundaries(bounds: Sequence[int], goals: Sequence[float]) -> list[int]:
    """Numbers of the bounds nearest to each goal, none before that of the goal ahead of it."""
    out: list[int] = []
    for goal in goals:
        distance = np.abs(np.array(bounds) - goal)
        distance[: out[-1] if out else 0] = np.inf
        out.append(int(distance.argmin()))
    return out


def _insert(needles: Sequence[Needle], sentences: Sequence[Sentence], at: Sequence[int]) -> Layout:
    """Needles before sentences; one that stands before a paragraph opens it: all ahead of it stays as it was."""
    slots: list[Slot] = []
    opens = set()
    for i in range(len(sentences) + 1):
        here = [number for number, place in enumerate(at) if place == i]
        slots += here
        if i == len(sentences):
            break
        if here and sentences[i].opens:
            opens.add(here[0])
        slots.append(replace(sentences[i], opens=False) if here else sentences[i])
    return Layout(tuple(needles), tuple(slots), frozenset(opens))
