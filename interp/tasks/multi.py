"""Several needles: one key of many asked for (`multi_key`), and all values of one key (`multi_value`).

Both are after RULER (arXiv 2404.06654). In `multi_key` the closed set of answers is what the needles hold, so that a
model that copies any value scores chance; `niah` with several needles counts values outside the context too. In
`multi_value` the answer is the list of the values in the order of the text.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from importlib.resources import files
from itertools import permutations
from typing import Any, ClassVar

import numpy as np

from interp.errors import UsageError
from interp.models.tokens import Tokens
from interp.tasks import needles as pools
from interp.tasks.base import Example, Redraw, listed, whole_number
from interp.tasks.needles import KINDS, Drawer
from interp.tasks.niah import Niah
from interp.tasks.recall import InProse, Posed, Question, Statement, apart, asked, options_after

LISTED = ("names", "words", "numbers")
"""Kinds of values that make a list."""


class MultiKey(Niah):
    """One of several key-value needles of one form: niah with `needles` in the context and no answer outside it.

    Args:
        length, depth, kinds, haystack: as for niah.
        needles: at least two.
    """

    name = "multi_key"
    source = "needles and prose written for this project; after RULER (arXiv 2404.06654)"

    def __init__(
        self,
        length: int = 512,
        depth: float | str | Sequence[float] = "uniform",
        kinds: str | Sequence[str] = KINDS,
        needles: int = 4,
        haystack: str | Sequence[str] = "all",
        n: int = 64,
        seed: int = 0,
    ):
        whole_number(self.name, "needles", needles, 2)
        super().__init__(length, depth, kinds, needles, haystack, n, seed)

    def make(self, index: int, rng: np.random.Generator, tokens: Tokens) -> Example:
        example = super().make(index, rng, tokens)
        # The values of the needles come first among niah's candidates.
        held = example.candidates[: self.needles]
        if example.foil_ids not in held:
            raise Redraw("no value in the context starts differently from the answer")
        corrupt = {
            kind: replace(
                twin,
                candidates=(twin.answer_ids, *(c for c in held if c != twin.answer_ids)),
                chance=1 / len({twin.answer_ids, *held}),
            )
            for kind, twin in example.corrupt.items()
        }
        return replace(example, candidates=held, chance=1 / len(held), corrupt=corrupt)


@cache
def list_data() -> dict[str, Any]:
    """Wordings and words of the tasks that list or chain."""
    return json.loads((files("interp.tasks") / "data" / "lists.json").read_text("utf-8"))


class MultiValue(InProse):
    """All values of one key, listed in the order of the text, with values of other keys among them.

    The candidates are the orders of the right values, so chance is that of a model that knows which, not in which
    order. A value has its number in the text as `item`.

    Args:
        length: tokens of the prompt.
        values: 2 to 4 values to list.
        others: statements of the same form about other keys.
        kinds: of `names`, `words`, `numbers`; they take turns.
        haystack: as for niah.
        shots: solved questions of the same sort in front.
    """

    name = "multi_value"
    source = "statements and prose written for this project; after RULER (arXiv 2404.06654)"
    drops: ClassVar[bool] = False

    def __init__(
        self,
        length: int = 512,
        values: int = 3,
        others: int = 1,
        kinds: str | Sequence[str] = LISTED,
        haystack: str | Sequence[str] = "all",
        shots: int = 1,
        n: int = 64,
        seed: int = 0,
    ):
        self.kinds = tuple(listed(self.name, "kinds", kinds))
        for kind in self.kinds:
            if kind not in LISTED:
                raise UsageError(f"task multi_value: no kind '{kind}'; take of {', '.join(LISTED)}")
        self.values = whole_number(self.name, "values", values, 2)
        if values > 4:
            raise UsageError(
                f"task multi_value: values is {values}; take 2 to 4 (all their orders are candidates)"
            )
        self.others = whole_number(self.name, "others", others, 0)
        super().__init__(
            length=length,
            haystack=haystack,
            shots=shots,
            n=n,
            seed=seed,
            values=values,
            others=others,
            kinds=list(self.kinds),
        )

    def pose(self, index: int, rng: np.random.Generator, drawer: Drawer) -> Question:
        kind = self.kinds[index % len(self.kinds)]
        wordings = [w for w in list_data()["values"] if w["kind"] == kind]
        wording = wordings[rng.integers(len(wordings))]
        pool, key_pool = pools.values(kind), pools.keys(wording["about"])
        total = self.values + self.others
        before = wording["stem"].rsplit(" ", 1)[-1]
        values = list(drawer.alike(pool, rng, pool.draw(rng), total - 1, before))
        keys = list(dict.fromkeys(key_pool.draw(rng) for _ in range(10 * (self.others + 1))))
        if len(keys) <= self.others:
            raise Redraw(f"there are not {self.others + 1} different keys")
        own = values[: self.values]

        def posed(own: Sequence[str]) -> Posed:
            said = [(keys[0], value) for value in own]
            said += [(keys[1 + i], value) for i, value in enumerate(values[self.values :])]
            return Posed(
                tuple(_one_of(wording["fact"], k, v, i, i < self.values) for i, (k, v) in enumerate(said)),
                asked(wording["question"], wording["stem"], {"key": (keys[0], "query")}),
                in_words(own),
            )

        texts = {order: in_words(order) for order in permutations(own)}
        options = options_after(drawer.tokens, wording["stem"], list(texts.values()))
        other_way = (own[1], own[0], *own[2:])
        first = texts[other_way]
        swapped = {first: options[first], **options}
        # One value in each stretch of the text, so that their numbers are their order.
        steps = (np.arange(self.values) + 0.1 + 0.8 * rng.random(self.values)) / self.values
        return Question(
            posed(own),
            (*map(float, steps), *map(float, rng.random(self.others))),
            options,
            apart(options, in_words(own)),
            {"value_swap": (posed(other_way), swapped)},
            {"kind": kind, "key": keys[0], "parts": list(own)},
        )


def in_words(items: Sequence[str]) -> str:
    """A list as a sentence has it.

    >>> in_words(["tin", "lead", "zinc"])
    'tin, lead and zinc'
    """
    return f"{', '.join(items[:-1])} and {items[-1]}" if len(items) > 1 else items[0]


def _one_of(fact: str, key: str, value: str, item: int, own: bool) -> Statement:
    prefix, whole = ("", "evidence") if own else ("distractor_", "distractor")
    return Statement(fact, {"key": (key, f"{prefix}key"), "value": (value, f"{prefix}value")}, item, whole)
