"""A list of things, all but one of them mentioned again, and the answer is the one that is left over.

A generator of our own, in the spirit of the laundry-list task of Merullo et al. (arXiv 2406.09519), whose template is
not public: this is no replication of it. Wordings and things were written for this project (`data/laundry.json`,
`data/words.json`). Things stand without an article or behind "the": an "a" or "an" would give the answer away.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import numpy as np

from interp.errors import UsageError
from interp.models.tokens import Tokens
from interp.tasks.base import Example, Piece, Redraw, Span, Task, assemble, listed, whole_number
from interp.tasks.pairs import Alike, aligned, data, digest, in_turn, joints
from interp.tasks.recall import phrase, stands_once

FAMILIES = ("A", "B")
LARGEST = 20


class Laundry(Task):
    """Which of the listed things is left over?

    Family A lists all but one thing again in one sentence. Family B is worded like indirect object identification:
    one sentence mentions one thing again, and where the list has more than two, each of the others but one has such a
    sentence of its own. Both mention them again in an order that knows nothing of the first one. Things are single
    tokens wherever the tokenizer has enough of them (`meta["word_tokens"]`).

    Candidates are the listed things. In the twin `left_swap` the target and the foil, one of the others, have changed
    places in the second mention: the foil is left over.

    Args:
        items: how many things the list has, 2 to 20; of several numbers each is asked for in turn.
        families: `A`, `B`, or both in turn.
    """

    name = "laundry"
    source = (
        "lists and wordings written for this project; no replication of Merullo et al. (arXiv 2406.09519)"
    )
    copies: ClassVar[bool] = True

    def __init__(
        self,
        items: int | Sequence[int] = (2, 3, 4, 5, 6),
        families: str | Sequence[str] = FAMILIES,
        n: int = 64,
        seed: int = 0,
    ):
        self.items = [whole_number(self.name, "items", i, 2) for i in listed(self.name, "items", items)]
        if max(self.items) > LARGEST:
            raise UsageError(f"task laundry: items is {max(self.items)}; take 2 to {LARGEST}")
        self.families = listed(self.name, "families", families)
        for family in self.families:
            if family not in FAMILIES:
                raise UsageError(f"task laundry: no family {family!r}; take of {', '.join(FAMILIES)}")
        super().__init__(n=n, seed=seed, items=self.items, families=self.families)
        self._things: dict[str, Alike] = {}

    def make(self, index: int, rng: np.random.Generator, tokens: Tokens) -> Example:
        if tokens.fingerprint not in self._things:
            self._things[tokens.fingerprint] = Alike(tokens, "goods", max(self.items), self.name)
        things = self._things[tokens.fingerprint]
        # Each number of things goes through the families in turn, each family through positions and templates.
        turn, slot = divmod(index, len(self.items))
        turn, which = divmod(turn, len(self.families))
        n_items, family = self.items[slot], self.families[which]
        seed = (self.name, self.seed, slot, which)
        target = in_turn(turn, n_items, *seed, "position")
        template = list(data("laundry")[family])[
            in_turn(turn, len(data("laundry")[family]), *seed, "template")
        ]
        name = str(rng.choice(data("words")["names"]))
        listing = things.draw(rng, n_items)
        again = [int(i) for i in rng.permutation(n_items) if i != target]
        foil = again[rng.integers(len(again))]

        def ask(left: int, foil: int, again: list[int]) -> Example:
            return self._example(tokens, things, (family, template), name, listing, left, foil, again)

        clean = ask(target, foil, again)
        stands_once(clean)
        twin = ask(foil, target, [target if i == foil else i for i in again])
        return replace(clean, corrupt=aligned(clean, {"left_swap": twin}))

    def _example(
        self,
        tokens: Tokens,
        things: Alike,
        kind: tuple[str, str],
        name: str,
        listing: Sequence[str],
        left: int,
        foil: int,
        again: Sequence[int],
    ) -> Example:
        """The list without thing `left` in its second mention, whose order is `again`."""
        family, template = kind
        # Item 0 is the thing left over, the others count on in the order of the list.
        numbers = {i: k for k, i in enumerate([left, *(i for i in range(len(listing)) if i != left)])}
        pieces = _pieces(kind, name, listing, numbers, again)
        prompt, answer, spans, text = assemble(tokens, pieces, f" {listing[left]}")
        if answer != things.ids[listing[left]]:
            raise Redraw("a thing tokenises differently after the sentence")
        return Example(
            task=self.name,
            ids=prompt.ids,
            answer_ids=answer,
            text=text,
            offsets=prompt.offsets,
            spans=tuple(sorted((*spans, Span(len(prompt) - 1, len(prompt), "end", 0)))),
            foil_ids=things.ids[listing[foil]],
            candidates=tuple(things.ids[listing[i]] for i in numbers),
            chance=1 / len(listing),
            cluster=f"{family}/{template}",
            group=digest(text),
            meta={
                "template": f"{family}/{template}",
                "family": family,
                "items": len(listing),
                "position": left + 1,
                "listed": list(listing),
                "again": [listing[i] for i in again],
                "word_tokens": things.size,
                "length": len(prompt),
            },
        )


def _pieces(
    kind: tuple[str, str], name: str, listing: Sequence[str], numbers: dict[int, int], again: Sequence[int]
) -> list[Piece]:
    """The wording with its name and its things: `value` and `distractor_value` in the list, then `again`."""
    family, template = kind
    wording = data("laundry")[family][template]
    listed_things = [
        Piece(f" {thing}", "distractor_value" if numbers[i] else "value", numbers[i])
        for i, thing in enumerate(listing)
    ]
    repeated = [Piece(f" {listing[i]}", "again", numbers[i]) for i in again]
    if family == "A":
        return _fill(wording, name, {"items": listed_things, "others": repeated})
    out = _fill(wording["list"], name, {"items": listed_things})
    for i, thing in enumerate(repeated):
        out += _fill(wording["next" if i else "first"], name, {"item": [thing]})
    return [*out, *_fill(wording["end"], name, {})]


def _fill(wording: str, name: str, slots: dict[str, list[Piece]]) -> list[Piece]:
    out = []
    for part in re.split(r"( \{(?:items|others|item)\})", wording):
        if part.strip(" {}") in slots:
            things = slots[part.strip(" {}")]
            for joint, thing in zip(joints(len(things)), things, strict=True):
                out += [Piece(joint), thing] if joint else [thing]
        else:
            out += phrase(part, {"name": (name, "subject")})
    return out
