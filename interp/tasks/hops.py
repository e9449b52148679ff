"""Recall over several steps: a value, things that are the same as each other, and the question at the end of the chain.

`style="variables"` is variable tracking (after RULER, arXiv 2404.06654): `VAR river = 52814.` ... `VAR pearl = VAR
river.`; `style="story"` says the same in natural sentences. Several chains stand in one context, so a model that copies
any value scores chance. A statement of hop 0 gives a value, one of hop h refers to that of hop h - 1; spans carry the
chain as `item` (0 is the one asked for) and the hop.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np

from interp.errors import UsageError
from interp.tasks import needles as pools
from interp.tasks.base import Span, whole_number
from interp.tasks.multi import in_words, list_data
from interp.tasks.needles import Drawer, Pool
from interp.tasks.recall import InProse, Posed, Question, Statement, apart, asked, options_after

Style = Literal["variables", "story"]
Ask = Literal["value", "chain"]


class MultiHop(InProse):
    """What the last link of a chain comes to, or which links a value has.

    Args:
        length: tokens of the prompt.
        hops: links after the value; 0 is a literal needle.
        chains: chains in the context.
        style: `variables` or `story`.
        ask: `value` asks for the value of the last link; `chain` for all that have the value, in the order of the text.
        haystack: as for niah.
        shots: solved questions of the same sort in front.
    """

    name = "multi_hop"
    source = "chains and prose written for this project; after RULER (arXiv 2404.06654)"

    def __init__(
        self,
        length: int = 512,
        hops: int = 1,
        chains: int = 3,
        style: Style = "story",
        ask: Ask = "value",
        haystack: str | Sequence[str] = "all",
        shots: int = 1,
        n: int = 64,
        seed: int = 0,
    ):
        for name, value, known in (("style", style, get_args(Style)), ("ask", ask, get_args(Ask))):
            if value not in known:
                raise UsageError(f"task {self.name}: {name} is {value!r}; take of {', '.join(known)}")
        self.hops = whole_number(self.name, "hops", hops, 0)
        self.chains = whole_number(self.name, "chains", chains, 2)
        self.style, self.ask = style, ask
        self.copies = ask == "value"  # type: ignore[misc]
        super().__init__(
            length=length,
            haystack=haystack,
            shots=shots,
            n=n,
            seed=seed,
            hops=hops,
            chains=chains,
            ask=ask,
            style=style,
        )

    def pool(self, drawer: Drawer) -> Pool:
        """What the links of chains are called."""
        if self.style == "variables":
            return Pool((tuple(list_data()["variables"]),))
        return pools.keys("person")

    def pose(self, index: int, rng: np.random.Generator, drawer: Drawer) -> Question:
        return self.chained(self.pool(drawer), index, rng, drawer)

    def chained(self, names_pool: Pool, index: int, rng: np.random.Generator, drawer: Drawer) -> Question:
        """The question about links that are called as the pool has it."""
        wordings = list_data()["hops"][self.style]
        wording = wordings[index % len(wordings)]
        pool, steps = pools.values(wording["kind"]), self.hops + 1
        stem = wording["stem"] if self.ask == "value" else wording["those"]
        before = wording["stem"].rsplit(" ", 1)[-1]
        values = list(drawer.alike(pool, rng, pool.draw(rng), self.chains, before))
        # All of one length, so that chains can be asked for, and linked, in each other's place.
        names = list(drawer.alike(names_pool, rng, names_pool.draw(rng), self.chains * steps - 1, "of"))
        chains = [names[c * steps : (c + 1) * steps] for c in range(self.chains)]
        spare = values.pop()

        def posed(held: Sequence[str], ask: int = 0, crossed: bool = False) -> tuple[Posed, str]:
            """Statements with these values, asked about chain `ask`; `crossed`: first links of chains 0 and 1 swap."""
            statements = []
            for c, chain in enumerate(chains):
                other = 1 - c if crossed and c < 2 else c
                for hop, name in enumerate(chain):
                    words = {"key": name, "value": held[c], "link": chains[other if hop == 1 else c][hop - 1]}
                    item = {ask: 0, 0: ask}.get(c, c) * steps + hop
                    statements.append(_statement(wording, words, item, hop, item < steps))
            holds = 1 - ask if crossed and ask < 2 else ask
            if self.ask == "value":
                answer, query = held[holds], chains[ask][-1]
                return Posed(
                    tuple(statements), asked(wording["question"], stem, _query(query)), answer
                ), answer
            tail = chains[1 - ask] if crossed and ask < 2 else chains[ask]
            answer = in_words([chains[ask][0], *tail[1:]])
            return Posed(tuple(statements), asked(wording["who"], stem, _query(held[ask])), answer), answer

        clean, answer = posed(values)
        others = [posed(values, c)[1] for c in range(1, self.chains)]
        kinds = {"query_swap": posed(values, 1)}
        if self.ask == "value":
            kinds["value_swap"] = posed([spare, *values[1:]])
        if self.hops:
            kinds["link_swap"] = posed(values, crossed=True)
        texts = list(dict.fromkeys([answer, *others, *(text for _, text in kinds.values())]))
        every = options_after(drawer.tokens, stem, texts)
        options = {text: every[text] for text in (answer, *others)}
        twins = {kind: (other, {text: every[text], **options}) for kind, (other, text) in kinds.items()}
        # The statements of one chain stand in order, each somewhere in its own stretch of the text.
        depths = (np.tile(np.arange(steps), self.chains) + rng.random(steps * self.chains)) / steps
        meta: dict[str, Any] = {
            "style": self.style,
            "ask": self.ask,
            "hops": self.hops,
            "value": values[0],
            "chain": chains[0],
        }
        if self.ask == "chain":
            meta["parts"] = chains[0]
        return Question(clean, tuple(map(float, depths)), options, apart(options, answer), twins, meta)

    def place(self, span: Span) -> Span:
        if span.role in ("question", "query", "filler"):
            return span
        chain, hop = divmod(span.item, self.hops + 1)
        return Span(span.start, span.end, span.role, chain, hop)


def _query(text: str) -> dict[str, tuple[str, str | None]]:
    return {"asked": (text, "query")}


def _statement(
    wording: Mapping[str, str], words: Mapping[str, str], item: int, hop: int, own: bool
) -> Statement:
    prefix, whole = ("", "evidence") if own else ("distractor_", "distractor")
    roles = {name: (text, prefix + name) for name, text in words.items()}
    return Statement(wording["link" if hop else "fact"], roles, item, whole)
