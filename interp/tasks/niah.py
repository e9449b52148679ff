"""A needle in a haystack: a key-value sentence somewhere in natural prose, and the question for its value.

The context is cut to an exact number of tokens, and the needle goes between two sentences, as near to the depth asked
for as sentences allow; what was realised is recorded. All spans are known by construction. Needles of one kind differ
from those of another in templates and values, so that heads can be selected on one kind and measured on another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from typing import ClassVar

import numpy as np

from interp.errors import UsageError
from interp.models.tokens import Encoded, Tokens
from interp.tasks import needles as pools
from interp.tasks.base import Example, Ids, Redraw, Task, listed, whole_number
from interp.tasks.depths import Depths
from interp.tasks.haystack import Ruler, Sentence, context, select
from interp.tasks.layout import (
    SLACK,
    Layout,
    Needle,
    Slot,
    encode,
    follows,
    needle_drop,
    pose,
    twin,
    value_swap,
)
from interp.tasks.needles import KINDS, Drawer

CANDIDATES = 10
"""Size of the closed set of answers, if there are not more needles than that."""

SHORTEST = 64
_LEAST_HAYSTACK = 8


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
        self.kinds = chosen_kinds(kinds, self.name)
        self.depths = Depths(self.name, depth, seed)
        self.length = whole_number(self.name, "length", length, SHORTEST)
        self.needles = whole_number(self.name, "needles", needles, 1)
        self.pieces = select(haystack)
        super().__init__(
            n=n,
            seed=seed,
            length=length,
            depth=self.depths.param,
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
        layout, candidates = self._needles(kind, rng, drawer)
        layout, prompt, piece = self._place(layout, depth, rng, ruler)
        example = pose(self.name, layout, ruler, candidates, piece, prompt)
        follows(tokens, prompt, layout, example.answer_ids)
        corrupt = {
            "value_swap": value_swap(tokens, layout, example, candidates),
            "needle_drop": needle_drop(layout, example, ruler, rng),
        }
        if self.needles > 1:
            corrupt["query_swap"] = _query_swap(tokens, layout, example, candidates)
        return replace(example, meta={**example.meta, "depth_asked": depth}, corrupt=corrupt)

    def _plan(self, index: int) -> tuple[str, float]:
        """Kind and depth of an example: fixed by its number, so that a redraw keeps them."""
        return self.kinds[self.depths.turn(index) % len(self.kinds)], self.depths.of(index)

    def _needles(self, kind: str, rng: np.random.Generator, drawer: Drawer) -> tuple[Layout, dict[str, Ids]]:
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
                needles = [Needle(template, k, v) for k, v in zip(keys, candidates, strict=False)]
                return Layout(tuple(needles)), candidates
            keys[key_pool.draw(rng)] = None
        raise Redraw(f"there are not {self.needles} different keys")

    def _place(
        self, layout: Layout, depth: float, rng: np.random.Generator, ruler: Ruler
    ) -> tuple[Layout, Encoded, str]:
        """Lay out the context so that the prompt is as long as asked for; also its tokens and its first piece."""
        costs = [ruler.cost(needle.sentence) for needle in layout.needles]
        tail = ruler.cost(layout.needles[0].tail.lstrip("\n"), "\n\n")
        budget = self.length - ruler.n_special - sum(costs) - tail
        seed = int(rng.integers(2**62))
        # Counts of sentences add up to a token or two: at the start of the text, where a paragraph closes.
        for _ in range(5):
            if budget < _LEAST_HAYSTACK:
                raise Redraw(f"{self.length} tokens leave no room for a haystack around the needle")
            same = np.random.default_rng(seed)
            sentences, piece = context(ruler, same, budget, self.pieces)
            placed = replace(layout, slots=_insert(sentences, costs, depth, same, ruler))
            prompt = ruler.tokens.encode(placed.text())
            short = self.length - len(prompt)
            if 0 <= short <= SLACK:
                return placed, prompt, piece
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


def _query_swap(tokens: Tokens, layout: Layout, example: Example, candidates: Mapping[str, Ids]) -> Example:
    """The question asks for the first distractor, which takes the place of item 0 and the other way around."""
    swapped = layout.asking(1)
    prompt, spans, text = encode(tokens, swapped)
    if len(prompt) != len(example.ids):
        raise Redraw("the swapped query is not aligned")
    return twin(example, prompt, spans, text, candidates[swapped.needles[0].value])


def chosen_kinds(kinds: str | Sequence[str], task: str) -> tuple[str, ...]:
    """Kinds of needles that a parameter asks for.

    Raises:
        UsageError: there is no such kind.
    """
    chosen = listed(task, "kinds", kinds)
    for kind in chosen:
        if kind not in KINDS:
            near = get_close_matches(str(kind), KINDS, 1)
            hint = f" (did you mean '{near[0]}'?)" if near else ""
            raise UsageError(f"task {task}: no kind of needle '{kind}'{hint}; take of {', '.join(KINDS)}")
    return tuple(chosen)
