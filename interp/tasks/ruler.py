"""The eight settings of RULER's needle in a haystack (arXiv 2404.06654), with typed spans, aligned twins and foils.

Keys are an adjective and a noun or a UUID, values numbers of seven digits or UUIDs; the haystack is noise, prose, or
other needles of the same form. The settings are RULER's; all wordings, words and prose were written for this project.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from itertools import permutations
from typing import Any, Literal

import numpy as np

from interp.errors import UsageError
from interp.tasks import needles as pools
from interp.tasks.base import Piece, Redraw
from interp.tasks.depths import Depths
from interp.tasks.haystack import Ruler, Sentence, context, cut, fillers, select
from interp.tasks.multi import in_words
from interp.tasks.needles import Drawer, Pool
from interp.tasks.niah import CANDIDATES
from interp.tasks.noise import noise
from interp.tasks.recall import (
    LEAST_HAYSTACK,
    InProse,
    Posed,
    Question,
    Statement,
    apart,
    asked,
    options_after,
)

Kind = Literal["words", "numbers", "uuids"]


@dataclass(frozen=True)
class Setting:
    """What makes up a setting.

    Attributes:
        haystack: what the needles stand in.
        keys, values: what they are.
        needles: how many there are; 0 for as many as the length has room for.
        asked: for `one` value, for `all` values of one key, or for the value of `each` of the keys.
    """

    haystack: Literal["noise", "prose", "needles"]
    keys: Kind = "words"
    values: Kind = "numbers"
    needles: int = 1
    asked: Literal["one", "all", "each"] = "one"


SETTINGS = {
    "single_1": Setting("noise"),
    "single_2": Setting("prose"),
    "single_3": Setting("prose", values="uuids"),
    "multikey_1": Setting("prose", needles=4),
    "multikey_2": Setting("needles", needles=0),
    "multikey_3": Setting("needles", keys="uuids", values="uuids", needles=0),
    "multivalue": Setting("prose", needles=4, asked="all"),
    "multiquery": Setting("prose", needles=4, asked="each"),
}


class RulerNiah(InProse):
    """One of RULER's eight settings of needles in a haystack.

    A single needle has nine values besides its own as candidates, which are nowhere in the text; one of several has the
    values of the others. Where several values are asked for, the answer is their list (in the order of the text, or in
    that of the question), and the candidates are its orders: chance is that of a model that knows which, not in which
    order. The `query` spans of `multiquery` come in the order of the question, which is that of the items.

    Args:
        setting: `single_1` (noise), `single_2` (prose), `single_3` (UUIDs as values), `multikey_1` (four needles),
            `multikey_2` (nothing but needles), `multikey_3` (nothing but needles of UUIDs), `multivalue` (four values
            of a key), `multiquery` (four keys asked for).
        length: tokens of the prompt.
        depth: where the needle asked for stands, 0 to 1, a list of depths, or `uniform`; several that are asked for are
            spread over the text.
        haystack: pieces of prose, as for niah, where there is prose.
    """

    name = "ruler_niah"
    source = "wordings, words and prose written for this project; after RULER (arXiv 2404.06654)"

    def __init__(
        self,
        setting: str = "single_2",
        length: int = 512,
        depth: float | str | Sequence[float] = "uniform",
        haystack: str | Sequence[str] = "all",
        n: int = 64,
        seed: int = 0,
    ):
        if setting not in SETTINGS:
            near = get_close_matches(str(setting), SETTINGS, 1)
            hint = f" (did you mean '{near[0]}'?)" if near else ""
            raise UsageError(f"task ruler_niah: no setting '{setting}'{hint}; take of {', '.join(SETTINGS)}")
        self.setting = SETTINGS[setting]
        self.depths = Depths(self.name, depth, seed)
        self.pieces = select(haystack)
        self.copies = self.drops = self.setting.asked == "one"  # type: ignore[misc]
        super().__init__(
            length=length,
            shots=0,
            n=n,
            seed=seed,
            setting=setting,
            depth=self.depths.param,
        )
        self.params["haystack"] = haystack if isinstance(haystack, str) else list(self.pieces)
        del self.params["shots"]  # RULER has none, so no parameter

    def between(self, ruler: Ruler, rng: np.random.Generator, budget: int) -> tuple[list[Sentence], str]:
        if self.setting.haystack == "noise":
            return noise(ruler, rng, budget)
        if self.setting.haystack == "prose":
            return context(ruler, rng, budget, self.pieces)
        # What is left beside the needles is less than one of them.
        every = [Sentence(text, "filler") for text in fillers()]
        return cut(ruler, rng, budget, [every[i] for i in rng.permutation(len(every))]), ""

    def pose(self, index: int, rng: np.random.Generator, drawer: Drawer) -> Question:
        wordings = ruler_data()["wordings"]
        wording = {
            name: text.replace("{what}", ruler_data()[self.setting.values])
            for name, text in wordings[index % len(wordings)].items()
        }
        if self.setting.asked != "one":
            return self._several(wording, rng, drawer)
        return self._one(wording, index, rng, drawer)

    def _one(
        self, wording: Mapping[str, str], index: int, rng: np.random.Generator, drawer: Drawer
    ) -> Question:
        count = self.setting.needles
        before = wording["stem"].rsplit(" ", 1)[-1]
        single = count == 1
        values = drawer.alike(*_first(self.setting.values, rng), CANDIDATES - 1 if single else 1, before)
        texts = list(values)
        # The first other key is as long as the one asked for, so that it can be asked for in its place.
        keys = list(drawer.alike(*_first(self.setting.keys, rng), 0 if single else 1, "of"))
        tail = "".join(p.text for p in self._ask(wording, keys[:1]))
        said = [(key, value) for key, value in zip(keys, [texts[0]], strict=False)]
        if not single:
            said += self._others(wording, said, keys, texts, tail, rng, drawer)
        held = [value for _, value in said]
        spare = apart(values, texts[0]) if single else texts[1]

        def posed(first: str, ask: int = 0) -> Posed:
            own = [first, *held[1:]]
            return Posed(
                tuple(
                    _statement(wording["fact"], key, value, {ask: 0, 0: ask}.get(i, i), i == ask)
                    for i, ((key, _), value) in enumerate(zip(said, own, strict=True))
                ),
                self._ask(wording, [said[ask][0]]),
                own[ask],
            )

        known = values if single else dict(zip(held, drawer.ids(before, held), strict=True))
        if len(set(known.values())) < len(known):
            raise Redraw("two values have the same tokens")
        twins = {"value_swap": (posed(spare), {spare: values[spare], **known})}
        if not single:
            twins["query_swap"] = (posed(texts[0], 1), {held[1]: known[held[1]], **known})
        depths = (self.depths.of(index), *map(float, rng.random(len(said) - 1)))
        meta = {**self._meta(len(said), wording), "key": said[0][0], "value": texts[0]}
        fresh = f"{self.seed}:{index}" if self.setting.haystack == "needles" else ""
        return Question(posed(texts[0]), depths, known, apart(known, texts[0]), twins, meta, fresh)

    def _others(
        self,
        wording: Mapping[str, str],
        said: Sequence[tuple[str, str]],
        keys: Sequence[str],
        values: Sequence[str],
        tail: str,
        rng: np.random.Generator,
        drawer: Drawer,
    ) -> list[tuple[str, str]]:
        """Keys and values of the other needles: three of them, or as many as the prompt has room for.

        Raises:
            Redraw: there is no room for one, or a key or value comes twice.
        """
        ruler = self.ruler(drawer.tokens)
        key_pool, value_pool = _pool(self.setting.keys), _pool(self.setting.values)

        def cost(key: str, value: str) -> int:
            return ruler.cost(wording["fact"].format(key=key, value=value))

        assert self.length is not None
        room = self.length - ruler.n_special - ruler.cost(tail.lstrip("\n"), "\n\n") - cost(*said[0])
        out: list[tuple[str, str]] = []
        while self.setting.needles == 0 or len(out) < self.setting.needles - 1:
            key, value = key_pool.draw(rng) if out else keys[1], value_pool.draw(rng)
            if self.setting.needles == 0:
                room -= cost(key, value)
                if room < LEAST_HAYSTACK:
                    break
            out.append((key, value))
        if not out:
            raise Redraw(f"{self.length} tokens leave no room for a second needle")
        texts = [text for pair in (*said, *out) for text in pair]
        if len({*texts, *values}) < len(texts) + 1:
            raise Redraw("a key or value comes twice")
        return out

    def _several(self, wording: Mapping[str, str], rng: np.random.Generator, drawer: Drawer) -> Question:
        count, each = self.setting.needles, self.setting.asked == "each"
        stem = wording["stem_each" if each else "stem_all"]
        values = list(drawer.alike(*_first(self.setting.values, rng), count - 1, stem.rsplit(" ", 1)[-1]))
        keys = list(drawer.alike(*_first(self.setting.keys, rng), count - 1 if each else 0, "of"))

        def posed(values: Sequence[str], order: Sequence[int]) -> Posed:
            fact = wording["fact" if each else "fact_one"]
            return Posed(
                tuple(_statement(fact, keys[i if each else 0], v, i, True) for i, v in enumerate(values)),
                self._ask(wording, [keys[i] for i in order] if each else keys),
                in_words([values[i] for i in order]),
            )

        texts = [in_words(order) for order in permutations(values)]
        options = options_after(drawer.tokens, stem, texts)
        plain = list(range(count))
        exchanged = [1, 0, *plain[2:]]
        first = in_words([values[i] for i in exchanged])
        swapped = {first: options[first], **options}
        twins = {"value_swap": (posed([values[i] for i in exchanged], plain), swapped)}
        if each:
            twins["query_swap"] = (posed(values, exchanged), swapped)
        # One needle in each stretch of the text: their numbers are their order, unless the question has its own.
        steps = (np.arange(count) + 0.1 + 0.8 * rng.random(count)) / count
        depths = tuple(map(float, rng.permutation(steps) if each else steps))
        meta = {**self._meta(count, wording), "parts": values, "keys": keys}
        return Question(posed(values, plain), depths, options, apart(options, texts[0]), twins, meta)

    def _ask(self, wording: Mapping[str, str], keys: Sequence[str]) -> tuple[Piece, ...]:
        """Question and stem about these keys."""
        words: dict[str, tuple[str, str | None]] = {f"k{i}": (key, "query") for i, key in enumerate(keys)}
        words["key"] = words["k0"]
        suffix = {"one": "", "all": "_all", "each": "_each"}[self.setting.asked]
        question = wording[f"question{suffix}"].replace(
            "{keys}", in_words([f"{{k{i}}}" for i in range(len(keys))])
        )
        return asked(question, wording[f"stem{suffix}"], words)

    def _meta(self, count: int, wording: Mapping[str, str]) -> dict[str, Any]:
        return {
            "setting": self.params["setting"],
            "needles": count,
            "items": count,
            "template": wording["fact"],
        }


@cache
def ruler_data() -> dict[str, Any]:
    """Wordings, and what a value is called."""
    return json.loads((files("interp.tasks") / "data" / "ruler.json").read_text("utf-8"))


@cache
def _pool(kind: Kind) -> Pool:
    if kind == "words":
        return Pool((("the",), *pools.values("words").parts))
    return Pool(digits=(7,)) if kind == "numbers" else Pool(groups=(8, 4, 4, 4, 12))


def _first(kind: Kind, rng: np.random.Generator) -> tuple[Pool, np.random.Generator, str]:
    """The pool of a kind, the generator, and a text of it: what texts that are alike are drawn by."""
    pool = _pool(kind)
    return pool, rng, pool.draw(rng)


def _statement(fact: str, key: str, value: str, item: int, own: bool) -> Statement:
    prefix, whole = ("", "evidence") if own else ("distractor_", "distractor")
    return Statement(fact, {"key": (key, f"{prefix}key"), "value": (value, f"{prefix}value")}, item, whole)
