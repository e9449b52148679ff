"""A grid of needles: prompt lengths x depths x needles, laid out so that prefills can be shared.

All contexts of one haystack are cut from one stream of sentences and differ only in where a needle stands and where
they end, so that a run over one cache, in the order of the ids, needs each common prefix once. `prefill_tokens` says
what that saves. A needle keeps its key, value and question in every cell.

Two modes. `exact`: one needle a context, as in `niah`. `several`: many needles in each context, every one at a depth
of its own and asked for by a question of its own; the others are distractors, so scores are comparable only within a
mode. A rotation moves each needle on to the next depth, and over the rotations every cell occurs once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from interp.errors import UsageError
from interp.models.tokens import Encoded, Tokens, as_tokens
from interp.models.walk import Walk
from interp.tasks.base import Example, Ids, Redraw, Task, listed, stable_seed, whole_number
from interp.tasks.distinct import draw, tail_cost
from interp.tasks.haystack import Ruler, select
from interp.tasks.layout import Layout, Needle, apart, needle_drop, pose, value_swap
from interp.tasks.needles import KINDS
from interp.tasks.niah import CANDIDATES, SHORTEST, chosen_kinds
from interp.tasks.streams import Stream, arrange, deal, openings, places, stream_name

if TYPE_CHECKING:
    import pandas as pd

MODES = ("exact", "several")


@dataclass(frozen=True)
class Cell:
    """One example of the grid: numbers of its haystack, rotation and needle, its length, the number of its depth."""

    haystack: int
    rotation: int
    length: int
    slot: int
    needle: int


@dataclass(frozen=True)
class _Context:
    """A layout, the needles in it by the grid's numbers, and those of its prompts that are tokenised already."""

    layout: Layout
    needles: tuple[int, ...]
    prompts: dict[int, Encoded]


@dataclass
class _Plan:
    """All that cells have in common, for one tokenizer."""

    ruler: Ruler
    streams: list[Stream]
    needles: list[Needle]
    candidates: list[dict[str, Ids]]
    contexts: dict[tuple[int, ...], dict[int, _Context]] = field(default_factory=dict)
    overlaps: dict[tuple[int, int], float] = field(default_factory=dict)

    def overlap(self, haystack: int, tokens: int) -> float:
        """Largest share of a stream's first tokens that another one holds too."""
        if (haystack, tokens) not in self.overlaps:
            own = self.streams[haystack]
            shares = [own.share(other, tokens) for other in self.streams if other is not own]
            self.overlaps[haystack, tokens] = max(shares, default=0.0)
        return self.overlaps[haystack, tokens]


class NiahGrid(Task):
    """Needles at every depth of prompts of every length, over few haystacks.

    Args:
        lengths: tokens of the prompts; they are met, or missed by two tokens at most, and never exceeded.
        depths: a number of depths, equally spaced from 0 to 1 (a single one is 0.5), or a list of them.
        needles: how many needles; each occurs once in every cell of length and depth.
        haystacks: how many streams of prose; default one a needle in the mode `exact`, one a rotation in `several`.
        kinds: of `names`, `words`, `numbers`, `phrases`; needles take them in turn.
        haystack: where the prose comes from: `all`, `train`, `test`, a piece, or a list of pieces.
        mode: `exact`, or `several`: the needles share contexts, one at each depth. Contexts too short for that are
            made several times with a part of the needles each, so that needles never take more room than prose.
        n: the first n cells only; default all.

    `group` is the context, `cluster` the haystack. `meta` holds, beside what `niah` records: `length_asked`,
    `depth_asked`, `needle` and `rotation` (numbers), `haystack` (its name), `pieces`, `overlap` (largest share of the
    context's length that another haystack holds too), and `half_sentence`: the tokens from the asked place to the
    realised one, and half of the tokens of the sentence in which the asked place falls.
    """

    name = "niah_grid"
    source = "needles and prose of niah; grid after Wu et al. (arXiv 2404.15574)"
    copies: ClassVar[bool] = True

    def __init__(
        self,
        lengths: int | Sequence[int] = (256, 512, 1024, 2048),
        depths: int | float | Sequence[float] = 5,
        needles: int = 4,
        haystacks: int | None = None,
        kinds: str | Sequence[str] = KINDS,
        haystack: str | Sequence[str] = "all",
        mode: str = "exact",
        n: int | None = None,
        seed: int = 0,
    ):
        if mode not in MODES:
            raise UsageError(f"task {self.name}: mode is {mode!r}; take of {', '.join(MODES)}")
        self.mode = mode
        self.lengths = _different(
            "lengths", [whole_number(self.name, "lengths", x, SHORTEST) for x in _list(lengths, "lengths")]
        )
        self.depths = _depths(depths)
        self.needles = whole_number(self.name, "needles", needles, 1)
        self.kinds = chosen_kinds(kinds, self.name)
        self.pieces = select(haystack)
        # One needle a depth and context: with more needles than depths, each sits out some of the rotations.
        self.rotations = 1 if mode == "exact" else max(self.needles, len(self.depths))
        units = self.needles if mode == "exact" else self.rotations
        self.haystacks = units if haystacks is None else whole_number(self.name, "haystacks", haystacks, 1)
        if self.haystacks > units:
            raise UsageError(
                f"task {self.name}: {self.haystacks} haystacks for {units} "
                f"{'needles' if mode == 'exact' else 'rotations'}; take no more than that"
            )
        self._cells = self._order()
        if n is not None and whole_number(self.name, "n", n, 1) > len(self._cells):
            raise UsageError(
                f"task {self.name}: n is {n}, and the grid has {len(self._cells)} cells; take fewer"
            )
        super().__init__(
            n=len(self._cells) if n is None else n,
            seed=seed,
            lengths=list(self.lengths),
            depths=list(self.depths),
            needles=self.needles,
            haystacks=self.haystacks,
            kinds=list(self.kinds),
            haystack=list(self.pieces) if not isinstance(haystack, str) else haystack,
            mode=mode,
        )
        start = np.random.default_rng(stable_seed(self.name, "openings", self.seed))
        self._starts = openings(self.haystacks, self.pieces, start)
        self._plans: dict[str, _Plan] = {}

    def cells(self) -> pd.DataFrame:
        """One row an example, in their order.

        Columns: example, haystack, rotation, length_asked, depth_asked, needle, kind.
        """
        import pandas as pd

        rows = [
            {
                "example": i,
                "haystack": stream_name(*self._starts[cell.haystack]),
                "rotation": cell.rotation,
                "length_asked": cell.length,
                "depth_asked": self.depths[cell.slot],
                "needle": cell.needle,
                "kind": self.kinds[cell.needle % len(self.kinds)],
            }
            for i, cell in enumerate(self._cells[: self.n])
        ]
        return pd.DataFrame(rows)

    def overlap(self, source: Any) -> pd.DataFrame:
        """How far haystacks share text: for each length and pair, the share of tokens of the first that both hold.

        Columns: length, haystack, other, share (0 to 1).
        """
        import pandas as pd

        streams = self._plan(as_tokens(source)).streams
        return pd.DataFrame(
            [
                {"length": n, "haystack": a.name, "other": b.name, "share": a.share(b, n)}
                for n in self.lengths
                for a in streams
                for b in streams
                if a is not b
            ],
            columns=["length", "haystack", "other", "share"],
        )

    def make(self, index: int, rng: np.random.Generator, tokens: Tokens) -> Example:
        cell, plan = self._cells[index], self._plan(tokens)
        stream, ruler = plan.streams[cell.haystack], plan.ruler
        context = self._context(cell, plan)
        item = context.needles.index(cell.needle)
        layout = context.layout.asking(item)
        candidates = self._candidates(cell.needle, context.needles, plan)
        example = pose(self.name, layout, ruler, candidates, stream.name, context.prompts.get(item))
        depth = self.depths[cell.slot]
        (place,) = places(layout, Encoded(example.ids, example.offsets or ()), ruler.n_special, [depth])
        meta = {
            **example.meta,
            "needle": cell.needle,
            "rotation": cell.rotation,
            "haystack": stream.name,
            "pieces": example.meta["haystack"],
            "overlap": plan.overlap(cell.haystack, cell.length),
            "length_asked": cell.length,
            "depth_asked": depth,
            "half_sentence": [place.off, place.half_sentence],
        }
        corrupt = {
            "value_swap": value_swap(tokens, layout, example, candidates),
            "needle_drop": needle_drop(layout, example, ruler, rng),
        }
        return replace(example, meta=meta, corrupt=corrupt)

    def _order(self) -> list[Cell]:
        """Every cell, haystack by haystack, within a haystack context by context."""
        slots = range(len(self.depths))
        if self.mode == "exact":
            return [
                Cell(h, 0, length, slot, needle)
                for h in range(self.haystacks)
                for needle in range(h, self.needles, self.haystacks)
                for length in self.lengths
                for slot in slots
            ]
        return [
            Cell(h, rotation, length, slot, (slot - rotation) % self.rotations)
            for h in range(self.haystacks)
            for rotation in range(h, self.rotations, self.haystacks)
            for length in self.lengths
            for slot in slots
            if (slot - rotation) % self.rotations < self.needles
        ]

    def _plan(self, tokens: Tokens) -> _Plan:
        if tokens.fingerprint not in self._plans:
            ruler = Ruler(tokens)
            rng = np.random.default_rng(stable_seed(self.name, "streams", self.params, self.seed))
            streams = deal(ruler, self._starts, self.pieces, max(self.lengths), rng)
            needles = draw(
                ruler,
                [self.kinds[i % len(self.kinds)] for i in range(self.needles)],
                shortest=min(self.lengths),
                together=self.mode == "several",
                seed=[self.name, "needles", self.seed],
            )
            self._plans[tokens.fingerprint] = _Plan(ruler, streams, *needles)
        return self._plans[tokens.fingerprint]

    def _context(self, cell: Cell, plan: _Plan) -> _Context:
        """The context of a cell: made once for all needles in it."""
        mates = [(cell.slot, cell.needle)]
        if self.mode == "several":
            mates = [(c.slot, c.needle) for c in self._cells if _mates(c, cell)]
        key = (cell.haystack, cell.rotation, cell.length, *(number for mate in mates for number in mate))
        if key not in plan.contexts:
            plan.contexts[key] = self._arranged(cell, mates, plan)
        return plan.contexts[key][cell.needle]

    def _arranged(self, cell: Cell, mates: list[tuple[int, int]], plan: _Plan) -> dict[int, _Context]:
        """Contexts for pairs of depth and needle, as few as have no more needles than prose, all at their depths."""
        mates = sorted(mates, key=lambda mate: self.depths[mate[0]])
        stream = plan.streams[cell.haystack]
        for parts in range(1, len(mates) + 1):
            out: dict[int, _Context] = {}
            for part in range(parts):
                slots, numbers = zip(*mates[part::parts], strict=True)
                needles = [plan.needles[i] for i in numbers]
                costs = [plan.ruler.cost(needle.sentence) for needle in needles]
                tail = max(tail_cost(needle, plan.ruler) for needle in needles)
                if parts < len(mates) and 2 * sum(costs) > cell.length - plan.ruler.n_special - tail:
                    break
                rng = np.random.default_rng(
                    stable_seed(self.name, "context", self.seed, self.mode, cell.length, numbers, slots)
                )
                try:
                    layout, prompts = arrange(
                        plan.ruler, stream, needles, [self.depths[s] for s in slots], cell.length, rng
                    )
                except Redraw:
                    if parts == len(mates):
                        raise
                    break
                out |= dict.fromkeys(numbers, _Context(layout, numbers, prompts))
            else:
                return out
        raise AssertionError("a needle alone is laid out or refused")

    def _candidates(self, needle: int, present: Sequence[int], plan: _Plan) -> dict[str, Ids]:
        """The answer, then values in the context that are as long, then values that no needle holds: ten or more."""
        known, values = plan.candidates[needle], [n.value for n in plan.needles]
        first = [values[needle], *(values[i] for i in present if i != needle and values[i] in known)]
        absent = [value for value in known if value not in values]
        room = max(CANDIDATES, len(first) + 1) - len(first)
        chosen = {value: known[value] for value in [*first, *absent[:room]]}
        # Needles are drawn once for all cells, so that drawing again would not help where no value can be swapped in.
        for other in absent[room:]:
            if apart(values[needle], chosen, list(chosen)[len(first) :]) is not None:
                break
            chosen = {value: known[value] for value in [*first, *absent[: room - 1], other]}
        return chosen


def prefill_tokens(examples: Sequence[Example]) -> dict[str, int]:
    """Prompt tokens that a run over examples has to put through the model.

    Returns:
        naive: the sum of all prompts. shared: those left where a run goes through the prompts in the order of their
        ids over one cache, and each keeps the longest prefix that it has in common with the one before it, but never
        more than stands before its question (its last token where it has none).
    """
    first = [min((s.start for s in e.spans_of("question")), default=len(e.ids) - 1) for e in examples]
    walk = Walk.of([e.ids for e in examples], first)
    return {"naive": walk.naive, "shared": walk.tokens}


def _mates(a: Cell, b: Cell) -> bool:
    return (a.rotation, a.length) == (b.rotation, b.length)


def _list(value: Any, name: str) -> list[Any]:
    return listed(NiahGrid.name, name, [value] if isinstance(value, np.integer) else value)


def _different(name: str, given: list[Any]) -> tuple[Any, ...]:
    if len(set(given)) < len(given):
        raise UsageError(f"task {NiahGrid.name}: {name} {given} hold one of them twice; take each once")
    return tuple(given)


def _depths(depths: int | float | Sequence[float]) -> tuple[float, ...]:
    if isinstance(depths, int | np.integer):
        count = whole_number(NiahGrid.name, "depths", depths, 1)
        return tuple(np.linspace(0, 1, count).tolist()) if count > 1 else (0.5,)
    given = _list(depths, "depths")
    for d in given:
        if isinstance(d, bool | str) or not 0 <= d <= 1:
            raise UsageError(
                f"task {NiahGrid.name}: depths is {depths!r}; take how many, or a list of numbers from 0 to 1"
            )
    return _different("depths", [float(d) for d in given])
