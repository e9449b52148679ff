"""Haystacks: contexts of natural prose written for this project, cut to an exact number of tokens.

Twenty pieces (essays, narratives, letters, how-tos, descriptions, memoirs) lie in `data/prose`, one sentence a line,
so that sentence boundaries are known and never searched for. Short sentences that fit anywhere (`data/fillers.txt`)
make up the last tokens of a context and stand in for a needle that is dropped.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files

import numpy as np

from interp.errors import UsageError
from interp.models.tokens import Encoded, Tokens
from interp.tasks.base import listed

TEST = (
    "bees",
    "bicycle",
    "garden_letter",
    "libraries",
    "maps",
    "night_bus",
    "saltmarsh",
    "school_play",
    "soup",
    "weaver",
)
"""Pieces of the haystack `test`; all others are `train`."""

_ANCHOR = "So it was."
"""Text before the sentence that is measured: a sentence never begins the tokenizer's text, except where it does."""

_MOST_FILLERS = 4


@dataclass(frozen=True)
class Sentence:
    """One sentence of a haystack.

    Attributes:
        text: without white space around it.
        source: the piece it comes from, or `filler`.
        opens: whether it opens a paragraph.
    """

    text: str
    source: str
    opens: bool = False

    def gap(self, first: bool) -> str:
        """White space between the sentence before and this one."""
        if first:
            return ""
        return "\n\n" if self.opens else " "


Slot = Sentence | int
"""A sentence, or the number of a statement that stands among them."""


@cache
def pieces() -> dict[str, tuple[Sentence, ...]]:
    """Every piece of prose by name, in alphabetical order."""
    found = sorted((files("interp.tasks") / "data" / "prose").iterdir(), key=lambda p: p.name)
    return {
        p.name[:-4]: _sentences(p.name[:-4], p.read_text("utf-8")) for p in found if p.name.endswith(".txt")
    }


def _sentences(name: str, text: str) -> tuple[Sentence, ...]:
    lines = text.strip().split("\n")
    return tuple(
        Sentence(line, name, opens=i == 0 or not lines[i - 1]) for i, line in enumerate(lines) if line
    )


@cache
def fillers() -> tuple[str, ...]:
    """Short sentences that fit anywhere, from two words to thirty."""
    text = (files("interp.tasks") / "data" / "fillers.txt").read_text("utf-8")
    return tuple(text.strip().split("\n"))


def select(haystack: str | Sequence[str]) -> tuple[str, ...]:
    """Names of the pieces that a `haystack` parameter asks for: `all`, `train`, `test`, a piece, or several pieces.

    Raises:
        UsageError: there is no such piece.
    """
    names = tuple(pieces())
    if isinstance(haystack, str):
        if haystack == "all":
            return names
        if haystack in ("train", "test"):
            return tuple(n for n in names if (n in TEST) == (haystack == "test"))
    chosen = listed("niah", "haystack", haystack)
    for name in chosen:
        if name not in names:
            raise UsageError(
                f"task niah: no haystack '{name}'; take all, train, test, or of {', '.join(names)}"
            )
    return tuple(dict.fromkeys(chosen))


def n_leading(encoded: Encoded) -> int:
    """Special tokens that a tokenizer puts in front of a text: those that cover none of it."""
    return next((i for i, (a, b) in enumerate(encoded.offsets) if a < b), len(encoded))


class Ruler:
    """Token counts of sentences under one tokenizer, each measured once, behind the text that it follows."""

    def __init__(self, tokens: Tokens):
        self.tokens = tokens
        anchor = tokens.encode(_ANCHOR)
        self._anchor = len(anchor)
        self.n_special = n_leading(anchor)
        self._known: dict[tuple[str, str], int] = {}
        self._by_cost: dict[int, list[str]] = {}
        for text in fillers():
            self._by_cost.setdefault(self.cost(text), []).append(text)
        # Totals that one, two, ... fillers reach; `fill` walks back through them.
        self._reach: list[set[int]] = [{0}]
        for _ in range(_MOST_FILLERS):
            self._reach.append({a + b for a in self._reach[-1] for b in self._by_cost})

    def cost(self, text: str, gap: str = " ") -> int:
        """Tokens that `gap + text` adds to a prompt; with an empty gap, those of a prompt's first sentence."""
        known = self._known.get((text, gap))
        if known is None:
            if gap:
                known = len(self.tokens.encode(_ANCHOR + gap + text)) - self._anchor
            else:
                known = len(self.tokens.encode(text)) - self.n_special
            if len(self._known) < 100_000:
                self._known[text, gap] = known
        return known

    def of(self, sentence: Sentence, first: bool = False) -> int:
        """Tokens of a sentence with the white space before it."""
        return self.cost(sentence.text, sentence.gap(first))

    def fill(
        self, total: int, rng: np.random.Generator, avoid: Iterable[str] = (), gap: str = " "
    ) -> list[str] | None:
        """At most four different fillers, none of `avoid`, of exactly `total` tokens; None if there are none.

        Args:
            gap: white space before the first of them, as in `cost`; its tokens count.
        """
        if gap != " ":
            return self._fill_from(total, rng, set(avoid), gap)
        used = set(avoid)
        for count in range(1, _MOST_FILLERS + 1):
            if total not in self._reach[count]:
                continue
            for _ in range(8):
                chosen = self._pick(total, count, rng, used)
                if chosen is not None:
                    return chosen
        return None

    def _fill_from(self, total: int, rng: np.random.Generator, used: set[str], gap: str) -> list[str] | None:
        options = [text for text in fillers() if text not in used and self.cost(text, gap) <= total]
        for i in rng.permutation(len(options)).tolist():
            first, rest = options[i], total - self.cost(options[i], gap)
            more = self.fill(rest, rng, {*used, first}) if rest else []
            if more is not None and len(more) < _MOST_FILLERS:
                return [first, *more]
        return None

    def _pick(self, total: int, count: int, rng: np.random.Generator, used: set[str]) -> list[str] | None:
        chosen: list[str] = []
        for left in range(count - 1, -1, -1):
            options = [
                text
                for cost, texts in self._by_cost.items()
                if total - cost in self._reach[left]
                for text in texts
                if text not in used and text not in chosen
            ]
            if not options:
                return None
            chosen.append(options[rng.integers(len(options))])
            total -= self.cost(chosen[-1])
        return chosen


def context(
    ruler: Ruler, rng: np.random.Generator, budget: int, names: Sequence[str]
) -> tuple[list[Sentence], str]:
    """Consecutive sentences of prose, and fillers among them, of `budget` tokens (at most two fewer).

    It starts at a paragraph of a piece drawn at random, stays within that piece if the piece is long enough, and goes
    on with the pieces that follow it in `names`, cyclically; so the first piece tells which the others are.

    Returns:
        the sentences, and the name of the first piece.

    Raises:
        UsageError: `names` hold less prose than that.
    """
    first = int(rng.integers(len(names)))
    order = [*names[first:], *names[:first]]
    own = pieces()[order[0]]
    after = np.cumsum([ruler.of(s) for s in own][::-1])[::-1]
    starts = [i for i, s in enumerate(own) if s.opens and (i == 0 or after[i] >= budget)]
    start = starts[rng.integers(len(starts))]
    stream = [*own[start:], *(s for name in order[1:] for s in pieces()[name])]
    return cut(ruler, rng, budget, stream), order[0]


def cut(ruler: Ruler, rng: np.random.Generator, budget: int, stream: Sequence[Sentence]) -> list[Sentence]:
    """The first sentences of a stream, and fillers among them, of `budget` tokens (at most two fewer).

    Raises:
        UsageError: there are less.
    """
    taken: list[Sentence] = []
    total = 0
    for sentence in stream:
        cost = ruler.of(sentence, first=not taken)
        if total + cost > budget:
            break
        taken.append(sentence)
        total += cost
    else:
        if budget - total > ruler.of(stream[-1]):
            raise UsageError(
                f"task niah: the haystack holds {total} tokens of prose, and {budget} are asked for; "
                "take haystack 'all' or a shorter length"
            )
    while True:
        for short in range(min(3, budget - total + 1)):
            rest = budget - total - short
            extra = ruler.fill(rest, rng) if rest else []
            if extra is not None:
                return _mix(taken, extra, rng)
        if not taken:
            return []
        total -= ruler.of(taken.pop(), first=not taken)


def _mix(sentences: list[Sentence], extra: Sequence[str], rng: np.random.Generator) -> list[Sentence]:
    out = list(sentences)
    for text in extra:
        # Never in front: the first sentence is measured as one that begins the text.
        at = int(rng.integers(1, len(out) + 1)) if out else 0
        out.insert(at, Sentence(text, "filler"))
    return out


def arrange(
    sentences: Sequence[Sentence], depths: Sequence[float], costs: Sequence[int], ruler: Ruler
) -> tuple[Slot, ...]:
    """Sentences with statement `i` at the boundary nearest to `depths[i]`, in the order of their depths.

    Args:
        depths: each the share of the context without that statement that lies before it.
        costs: tokens of each statement.
    """
    lengths = [ruler.of(s, first=i == 0) for i, s in enumerate(sentences)]
    starts = np.concatenate([[0], np.cumsum(lengths)])
    total = starts[-1] + sum(costs)
    at: dict[int, list[int]] = {}
    before, last = 0, 0
    for i in sorted(range(len(depths)), key=lambda i: (depths[i], i)):
        last = max(last, int(np.abs(starts + before - depths[i] * (total - costs[i])).argmin()))
        at.setdefault(last, []).append(i)
        before += costs[i]
    slots: list[Slot] = []
    for boundary in range(len(sentences) + 1):
        slots += at.get(boundary, [])
        slots += sentences[boundary : boundary + 1]
    leading = next(i for i, s in enumerate(slots) if isinstance(s, Sentence))
    if leading:
        # Statements in front belong to the first paragraph; alone they would be a heading.
        slots[leading] = replace(slots[leading], opens=False)  # type: ignore[type-var]
    return tuple(slots)
