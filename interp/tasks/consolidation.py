"""Consolidation: numbered facts that contradict each other, of which the one with the highest number holds.

After FactConsolidation of MemoryAgentBench (Hu et al., arXiv 2507.05257). Unlike in `updates`, what is newest is said
by a number and need not stand last: where the facts are shuffled, only the number tells. With two hops, a fact says
whose fact is asked for, and both steps are contradicted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, get_args

import numpy as np

from interp.errors import UsageError
from interp.models.tokens import Tokens
from interp.tasks.base import Example, Piece, Task, continuations, whole_number
from interp.tasks.compose import Asked, compose
from interp.tasks.pairs import Alike, data, in_turn
from interp.tasks.recall import asked
from interp.tasks.updates import said, some

Order = Literal["shuffled", "ascending"]


@dataclass(frozen=True)
class Fact:
    """A numbered statement: `key` has `told`, which is a value, or (`links`) another key."""

    key: str
    told: str
    links: bool
    serial: int


class Consolidation(Task):
    """What is a value, by the fact with the highest number?

    Spans: each fact is `Fact` and its number (`order_mark`), with the key and what is told of it. The fact that gives
    the answer is `evidence` of item 0, hop 0, with `key` and `value`; with two hops, the one that leads to it is hop 1,
    with `key` and `link`. Facts that were once said of the same key are `stale` (`stale_key`, `stale_value`) or, of the
    leading one, `stale_step` (`stale_key`, `stale_link`); their hop counts back, 1 is the one overruled last. All
    others are `distractor`s with an item for each key. Candidates are all values ever said of the key, with two hops of
    all keys that ever were linked. Twins: `value_swap` exchanges the values of the newest fact and the one before;
    `order_swap` exchanges their numbers (with two hops, those of the leading facts); `query_swap` asks for another key.

    Args:
        facts: keys about which something is stated, 2 to 8 (with two hops: and as many that lead to them).
        versions: contradictory facts about each, 2 to 4; with two hops no more than `facts`.
        hops: 1 or 2.
        order: `shuffled`, or `ascending` by number, where the newest is also the last.
    """

    name = "consolidation"
    source = "facts written for this project; after MemoryAgentBench (arXiv 2507.05257)"
    copies: ClassVar[bool] = True

    def __init__(
        self,
        facts: int = 3,
        versions: int = 2,
        hops: int = 1,
        order: Order = "shuffled",
        n: int = 64,
        seed: int = 0,
    ):
        self.facts = whole_number(self.name, "facts", facts, 2)
        self.versions = whole_number(self.name, "versions", versions, 2)
        self.hops = whole_number(self.name, "hops", hops, 1)
        if facts > 8 or versions > 4 or hops > 2 or (hops == 2 and versions > facts):
            raise UsageError(
                f"task consolidation: {facts} facts of {versions} versions over {hops} hops; take 8, 4 and 2 at most, "
                "and over two hops no more versions than facts"
            )
        if order not in get_args(Order):
            raise UsageError(f"task consolidation: order is {order!r}; take of {', '.join(get_args(Order))}")
        self.order = order
        super().__init__(n=n, seed=seed, facts=facts, versions=versions, hops=hops, order=order)
        self._words: dict[str, tuple[Alike, Alike, list[int]]] = {}

    def make(self, index: int, rng: np.random.Generator, tokens: Tokens) -> Example:
        if tokens.fingerprint not in self._words:
            goods = Alike(tokens, "goods", self.facts * self.versions, self.name)
            self._words[tokens.fingerprint] = Alike(tokens, "names", 1, self.name), goods, serials(tokens)
        names, goods, numbers = self._words[tokens.fingerprint]
        wordings = data("interference")["consolidation"]
        template = list(wordings)[in_turn(index, len(wordings), self.name, self.seed, "template")]
        rank = in_turn(index, self.versions, self.name, self.seed, "rank")
        people = some(rng, names, self.facts * self.hops)
        holders, askers = people[: self.facts], people[self.facts :]
        asks = (askers or holders)[:2]
        values = goods.draw(rng, self.facts * self.versions)
        told = {
            (k, v): values[i * self.versions + v] for i, k in enumerate(holders) for v in range(self.versions)
        }
        # Each leads to as many others as there are versions, and the first two to different ones now.
        told |= {
            (k, v): holders[(i + self.versions - 1 - v) % self.facts]
            for i, k in enumerate(askers)
            for v in range(self.versions)
        }
        pool = _numbered(rng, told, numbers, set(askers))
        stated = self._in_order(rng, pool, asks[0], rank)

        def ask(stated: Sequence[Fact], key: str) -> Asked:
            pieces = [Piece(wordings[template]["intro"]), *_lines(wordings[template], stated, key)]
            far = "far_" if self.hops == 2 else ""
            question, stem = wordings[template][f"{far}question"], wordings[template][f"{far}stem"]
            history = versions_of(stated, key)
            chains = [versions_of(stated, f.told) if f.links else [f] for f in history]
            options = [f.told for chain in chains for f in chain]
            foil = options[1] if self.hops == 2 or not history[0].links else ""
            end = asked(question, stem, {"key": (key, "query")})
            return Asked((*pieces, *end), options[0], tuple(options), foil)

        clean = ask(stated, asks[0])
        lead = versions_of(stated, asks[0])
        last = versions_of(stated, lead[0].told) if lead[0].links else lead
        twins = {
            "value_swap": _exchanged(stated, last[0], last[1], "told"),
            "order_swap": _exchanged(stated, lead[0], lead[1], "serial"),
        }
        options = clean.options
        made = {
            kind: replace(ask(facts, asks[0]), options=options, foil=clean.answer)
            for kind, facts in twins.items()
        }
        made["query_swap"] = ask(stated, asks[1])
        places = [stated.index(f) for f in lead]
        return compose(
            self.name,
            tokens,
            clean,
            made,
            cluster=template,
            meta={
                "template": template,
                "facts": self.facts,
                "versions": self.versions,
                "hops": self.hops,
                "items": len(stated),
                "serial": last[0].serial,
                "newest_at": sum(p < places[0] for p in places) + 1,
                "position": stated.index(last[0]) + 1,
                "asked": asks[0],
                "word_tokens": goods.size,
            },
            copies=True,
        )

    def _in_order(self, rng: np.random.Generator, facts: list[Fact], key: str, rank: int) -> list[Fact]:
        """The facts as they stand in the text; the newest about `key` is number `rank` of those about it."""
        if self.order == "ascending":
            return sorted(facts, key=lambda f: f.serial)
        out = [facts[i] for i in rng.permutation(len(facts))]
        places = [i for i, f in enumerate(out) if f.key == key]
        newest, *older = versions_of(out, key)
        older = [older[i] for i in rng.permutation(len(older))]
        for place, fact in zip(places, [*older[:rank], newest, *older[rank:]], strict=True):
            out[place] = fact
        return out


def serials(tokens: Tokens) -> list[int]:
    """Numbers of two digits that are as long as one another in tokens: the commonest length."""
    numbers = list(range(10, 100))
    lengths = [len(ids) for ids in continuations(tokens, "Fact", [f" {i}" for i in numbers])]
    size = max(set(lengths), key=lambda length: (lengths.count(length), -length))
    return [i for i, length in zip(numbers, lengths, strict=True) if length == size]


def versions_of(facts: Sequence[Fact], key: str) -> list[Fact]:
    """The facts about a key, the newest first."""
    return sorted((f for f in facts if f.key == key), key=lambda f: -f.serial)


def _numbered(
    rng: np.random.Generator, told: Mapping[tuple[str, int], str], numbers: Sequence[int], askers: set[str]
) -> list[Fact]:
    """Facts with numbers that are shuffled over all keys and rise with the version of each."""
    drawn = sorted(int(i) for i in rng.choice(numbers, size=len(told), replace=False))
    keys = [list(told)[i][0] for i in rng.permutation(len(told))]
    return [
        Fact(key, told[key, keys[:i].count(key)], key in askers, serial)
        for i, (key, serial) in enumerate(zip(keys, drawn, strict=True))
    ]


def _exchanged(facts: Sequence[Fact], a: Fact, b: Fact, what: str) -> list[Fact]:
    """The facts with `told` or `serial` of two of them in each other's place."""
    other = {a: replace(a, **{what: getattr(b, what)}), b: replace(b, **{what: getattr(a, what)})}
    return [other.get(f, f) for f in facts]


def _lines(wording: Mapping[str, str], stated: Sequence[Fact], key: str) -> list[Piece]:
    """All facts, with the roles that they have when `key` is asked about."""
    lead = versions_of(stated, key)
    chain = [(lead, 1), (versions_of(stated, lead[0].told), 0)] if lead[0].links else [(lead, 0)]
    steps = {fact: (age, hop) for facts, hop in chain for age, fact in enumerate(facts)}
    items = {k: i for i, k in enumerate(dict.fromkeys(f.key for f in stated if f not in steps), 1)}
    out = []
    for fact in stated:
        age, step = steps.get(fact, (0, 0))
        what = "link" if fact.links else "value"
        if fact not in steps:
            # The number of a key's fact among the others keeps their enclosing spans apart.
            item, prefix, whole = items[fact.key], "distractor_", "distractor"
            hop = versions_of(stated, fact.key).index(fact)
        elif age:
            item, prefix, whole, hop = 0, "stale_", "stale_step" if step else "stale", age
        else:
            item, prefix, whole, hop = 0, "", "evidence", step
        words = {
            "serial": (str(fact.serial), "order_mark"),
            "key": (fact.key, f"{prefix}key"),
            what: (fact.told, f"{prefix}{what}"),
        }
        out += [
            Piece("\n"),
            *said(f"Fact {{serial}}: {wording['link' if fact.links else 'fact']}", words, item, whole, hop),
        ]
    return out
