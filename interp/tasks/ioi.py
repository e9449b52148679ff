"""Indirect object identification: two names, one of them again, and the answer is the other one.

Protocol after Wang et al. (arXiv 2211.00593), the twin `s2_io` after Merullo et al. (arXiv 2310.08744); sentences,
names, places and objects were written for this project (`data/ioi.json`, `data/words.json`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, Literal, get_args

import numpy as np

from interp.errors import UsageError
from interp.models.tokens import Tokens
from interp.tasks.base import Example, Piece, Redraw, Span, Task, assemble, listed
from interp.tasks.pairs import Alike, aligned, data, digest, in_turn
from interp.tasks.recall import phrase, stands_once

Order = Literal["ABBA", "BABA"]

_NEW_NAMES = 3
_WITHIN = {"io": "value", "s1": "distractor_value"}


class IOI(Task):
    """Two names, one of them a second time: who is the other one?

    Names are single tokens wherever the tokenizer has such names (`meta["word_tokens"]`). Candidates are the two names
    of the sentence, the foil is the one that stands twice. Twins: `s2_io` mentions the other name again, so that the
    answer is the clean foil; `abc` has three new names, none of them twice, so that nothing tells its two candidates
    apart: its answer is the name where the clean answer stood.

    Args:
        families: of `giving`, `telling`, `sending`, `trading`; default all. Each has four templates.
        order: `ABBA` (the answer stands first), `BABA`, or `both` in turn.
    """

    name = "ioi"
    source = "sentences and names written for this project; after Wang et al. (arXiv 2211.00593)"
    copies: ClassVar[bool] = True

    def __init__(
        self,
        families: str | Sequence[str] | None = None,
        order: Order | Literal["both"] = "both",
        n: int = 64,
        seed: int = 0,
    ):
        known = data("ioi")["templates"]
        chosen = list(known) if families is None else listed(self.name, "families", families)
        for family in chosen:
            if family not in known:
                raise UsageError(f"task ioi: no family {family!r}; take of {', '.join(known)}")
        if order not in (*get_args(Order), "both"):
            raise UsageError(f"task ioi: order is {order!r}; take of ABBA, BABA, both")
        self.templates = {f"{f}/{t}": text for f in dict.fromkeys(chosen) for t, text in known[f].items()}
        self.orders: tuple[Order, ...] = get_args(Order) if order == "both" else (order,)
        super().__init__(n=n, seed=seed, families=chosen, order=order)
        self._names: dict[str, Alike] = {}

    def make(self, index: int, rng: np.random.Generator, tokens: Tokens) -> Example:
        if tokens.fingerprint not in self._names:
            self._names[tokens.fingerprint] = Alike(tokens, "names", _NEW_NAMES, self.name)
        names = self._names[tokens.fingerprint]
        turn, which = divmod(index, len(self.orders))
        order = self.orders[which]
        template = list(self.templates)[in_turn(turn, len(self.templates), self.name, self.seed)]
        place, thing = (str(rng.choice(data("ioi")[pool])) for pool in ("places", "objects"))
        io, s = names.draw(rng, 2)
        c, d, e = names.draw(rng, _NEW_NAMES, besides=(io, s))

        def ask(order: Order, io: str, s1: str, s2: str) -> Example:
            return self._example(tokens, names, template, order, (io, s1, s2), place, thing)

        clean = ask(order, io, s, s)
        stands_once(clean)
        twins = {"s2_io": ask("BABA" if order == "ABBA" else "ABBA", s, io, io), "abc": ask(order, c, d, e)}
        return replace(clean, corrupt=aligned(clean, twins))

    def _example(
        self,
        tokens: Tokens,
        names: Alike,
        template: str,
        order: Order,
        people: tuple[str, str, str],
        place: str,
        thing: str,
    ) -> Example:
        """The sentence about `people` (IO, S1, S2)."""
        io, s1, s2 = people
        first, second = ((io, "io"), (s1, "s1"))[:: 1 if order == "ABBA" else -1]
        words = {
            "first": first,
            "second": second,
            "again": (s2, "s2"),
            "place": (place, None),
            "object": (thing, None),
        }
        items = {"io": 0, "s1": 1, "s2": 1 if s1 == s2 else 2}
        pieces = [
            Piece(p.text, p.role, items[p.role], _WITHIN.get(p.role)) if p.role else p
            for p in phrase(self.templates[template], words)
        ]
        prompt, answer, spans, text = assemble(tokens, pieces, f" {io}")
        if answer != names.ids[io]:
            raise Redraw("a name tokenises differently after the sentence")
        return Example(
            task=self.name,
            ids=prompt.ids,
            answer_ids=answer,
            text=text,
            offsets=prompt.offsets,
            spans=tuple(sorted((*spans, Span(len(prompt) - 1, len(prompt), "end", 0)))),
            foil_ids=names.ids[s1],
            candidates=(answer, names.ids[s1]),
            chance=1 / 2,
            cluster=template,
            group=digest(text),
            meta={
                "template": template,
                "family": template.split("/")[0],
                "order": order,
                "names": {"io": io, "s1": s1, "s2": s2},
                "place": place,
                "object": thing,
                "word_tokens": names.size,
                "length": len(prompt),
            },
        )
