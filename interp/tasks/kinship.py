"""Kinship: who is whose parent or grandparent, one sentence a link, and the question for somebody several links away.

After the ancestral trace challenge of NeedleBench (arXiv 2407.11963): the sentences stand in any order, so the answer
takes as many steps as there are links, each of them a look-up. Without prose the sentences are all there is; with prose
they are needles that have to be put together.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, get_args

import numpy as np

from interp.errors import UsageError
from interp.tasks.base import Ids, Redraw, Span, whole_number
from interp.tasks.needles import Drawer
from interp.tasks.pairs import data
from interp.tasks.recall import InProse, Posed, Question, Statement, apart, asked

Ask = Literal["eldest", "ancestor", "descendant"]
SEXES = ("women", "men")
MOST_STEPS = 8


@dataclass(frozen=True)
class _Link:
    """A sentence about two neighbours of a family, of whom the first is nearer to the answer.

    Attributes:
        fact: its wording, with `{near}` and `{far}` in it.
        generations: how far apart they are.
    """

    fact: str
    generations: int


class Kinship(InProse):
    """The eldest of a family, or the relative a number of generations away.

    A family is a line of persons. `steps` links lie between the person asked about and the answer; where the answer is
    not the eldest, one more link lies behind it, so that the end of a line is no cue. Candidates are all persons of the
    text but the one asked about. Hop 0 is the sentence that holds the answer, hop h refers to that of hop h - 1, and
    `item` is the family (0 is the one asked for).

    Args:
        steps: links to be followed, 1 to 8.
        families: lines of persons in the text.
        ask: `eldest`, `ancestor` (so many generations back) or `descendant` (so many forward).
        grandparents: whether some links span two generations.
        length: tokens of the prompt, with prose around the sentences; None for no prose.
        haystack: as for niah, where there is prose.
        shots: solved questions of the same sort in front, without prose.
    """

    name = "kinship"
    source = "sentences and names written for this project; after NeedleBench (arXiv 2407.11963)"
    copies: ClassVar[bool] = True

    def __init__(
        self,
        steps: int = 2,
        families: int = 2,
        ask: Ask = "eldest",
        grandparents: bool = False,
        length: int | None = None,
        haystack: str | Sequence[str] = "all",
        shots: int = 1,
        n: int = 64,
        seed: int = 0,
    ):
        if ask not in get_args(Ask):
            raise UsageError(f"task kinship: ask is {ask!r}; take of {', '.join(get_args(Ask))}")
        self.steps = whole_number(self.name, "steps", steps, 1)
        self.families = whole_number(self.name, "families", families, 2)
        if steps > MOST_STEPS or families > MOST_STEPS:
            raise UsageError(
                f"task kinship: {steps} steps in {families} families; take {MOST_STEPS} of each at most"
            )
        self.ask, self.grandparents = ask, bool(grandparents)
        self.links = self.steps + (ask != "eldest")
        super().__init__(
            length=length,
            haystack=haystack,
            shots=shots,
            n=n,
            seed=seed,
            steps=steps,
            families=families,
            ask=ask,
            grandparents=self.grandparents,
        )

    def pose(self, index: int, rng: np.random.Generator, drawer: Drawer) -> Question:
        question = self._question(rng, drawer, ())
        return replace(question, cluster="" if self.length else f"{self.seed}:{index}")

    def shown(self, index: int, rng: np.random.Generator, drawer: Drawer, taken: Collection[str]) -> Question:
        return self._question(rng, drawer, taken)

    def _question(self, rng: np.random.Generator, drawer: Drawer, taken: Collection[str]) -> Question:
        sexes = [SEXES[s] for s in rng.integers(2, size=self.links + 1)]
        lines, spare = self._people(sexes, rng, drawer, taken)
        links = [self._link(sexes, place, rng) for place in range(self.links)]
        wording = self._wording(links)

        def posed(lines: Sequence[Sequence[str]], ask: int = 0, crossed: bool = False) -> Posed:
            """Sentences about these lines, asked about one; `crossed`: lines 0 and 1 change places at hop 1."""
            statements = [
                self._statement(links[hop], lines, family, hop, ask, crossed)
                for family in range(self.families)
                for hop in range(self.links)
            ]
            holds = 1 - ask if crossed and ask < 2 else ask
            about = {"asked": (lines[ask][0], "query")}
            question = asked(wording["question"], wording["stem"], about)
            return Posed(tuple(statements), question, lines[holds][self.steps])

        def options(posed: Posed, lines: Sequence[Sequence[str]], ask: int = 0) -> dict[str, Ids]:
            # Who answers for another family comes before all others: that is the foil.
            persons = [
                posed.answer,
                *(line[self.steps] for line in lines),
                *(p for line in lines for p in line),
            ]
            persons = [p for p in dict.fromkeys(persons) if p != lines[ask][0]]
            ids = drawer.ids(wording["stem"].rsplit(" ", 1)[-1], persons)
            if len(set(ids)) < len(ids):
                raise Redraw("two persons have the same tokens")
            return dict(zip(persons, ids, strict=True))

        other = [list(line) for line in lines]
        other[0][self.steps] = spare
        clean, swapped, asking = posed(lines), posed(other), posed(lines, 1)
        every = options(clean, lines)
        twins = {
            "value_swap": (swapped, options(swapped, other)),
            "query_swap": (asking, options(asking, lines, 1)),
        }
        if self.steps > 1:
            crossed = posed(lines, crossed=True)
            twins["link_swap"] = (crossed, options(crossed, lines))
        depths = tuple(map(float, rng.random(self.families * self.links)))
        meta = {
            "ask": self.ask,
            "steps": self.steps,
            "hops": self.steps - 1,
            "families": self.families,
            "persons": len(every) + 1,
            "generations": sum(link.generations for link in links[: self.steps]),
            "position": 1 + sum(d < depths[0] for d in depths),
            "line": lines[0],
        }
        return Question(clean, depths, every, apart(every, clean.answer), twins, meta)

    def _people(
        self, sexes: Sequence[str], rng: np.random.Generator, drawer: Drawer, taken: Collection[str]
    ) -> tuple[list[list[str]], str]:
        """Every line, from the person asked about to the answer and beyond; and a name that could be the answer's.

        Those of one place are of one sex and as long as one another in tokens: twins exchange them.
        """
        drawn: dict[str, list[str]] = {}
        for sex in SEXES:
            (free,) = drawer.of_one_length(data("kinship")[sex]).parts
            drawn[sex] = [free[i] for i in rng.permutation(len(free)) if free[i] not in taken]
        if any(len(drawn[s]) <= self.families * sexes.count(s) for s in SEXES):
            raise Redraw("there are not so many names of one length")
        lines = [[drawn[sex].pop() for sex in sexes] for _ in range(self.families)]
        return lines, drawn[sexes[self.steps]].pop()

    def _link(self, sexes: Sequence[str], hop: int, rng: np.random.Generator) -> _Link:
        """The sentence of a hop: those of the links to be followed count from the answer, one beyond it comes last."""
        generations = int(rng.integers(1, 3)) if self.grandparents else 1
        near, far = self._places(hop)
        # Beyond the answer the line goes on the same way, so there the person nearer to it is the younger one.
        elder, younger = (
            ("near", "far") if (self.ask == "descendant") == (hop == self.steps) else ("far", "near")
        )
        fact = str(rng.choice(data("kinship")["facts"]))
        names = {
            "elder": f"{{{elder}}}",
            "younger": f"{{{younger}}}",
            "term": data("kinship")["terms"][sexes[near if elder == "near" else far]][generations - 1],
        }
        return _Link(fact.format(**names), generations)

    def _places(self, hop: int) -> tuple[int, int]:
        """Places in a line of the two persons of a link: the one nearer to the answer, and the other."""
        if hop == self.steps:
            return self.steps, self.steps + 1
        return self.steps - hop, self.steps - hop - 1

    def _statement(
        self,
        link: _Link,
        lines: Sequence[Sequence[str]],
        family: int,
        hop: int,
        ask: int,
        crossed: bool,
    ) -> Statement:
        near, far = self._places(hop)
        other = 1 - family if crossed and family < 2 and hop == 1 else family
        own = family == ask and hop < self.steps
        prefix, whole = ("", "evidence") if own else ("distractor_", "distractor")
        words = {
            "near": (lines[other][near], prefix + ("link" if 0 < hop < self.steps else "value")),
            "far": (lines[family][far], prefix + "key"),
        }
        item = {ask: 0, 0: ask}.get(family, family)
        return Statement(link.fact, words, item * self.links + hop, whole)

    def _wording(self, links: Sequence[_Link]) -> Mapping[str, str]:
        """Question and stem, with the number of generations in them."""
        total = sum(link.generations for link in links[: self.steps])
        said = data("kinship")["questions"][self.ask]
        return {
            name: text.replace("{generations}", data("kinship")["numbers"][total - 1])
            for name, text in said.items()
        }

    def place(self, span: Span) -> Span:
        if span.role in ("question", "query", "filler"):
            return span
        family, hop = divmod(span.item, self.links)
        return Span(span.start, span.end, span.role, family, hop)
