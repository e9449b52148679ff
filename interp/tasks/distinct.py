"""Needles that are drawn together: no two have keys or values that could be taken for one another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from interp.errors import BrokenData
from interp.tasks import needles as pools
from interp.tasks.base import Ids, Redraw, stable_seed
from interp.tasks.haystack import Ruler, Sentence
from interp.tasks.layout import Layout, Needle, follows, pose, value_swap
from interp.tasks.needles import Drawer
from interp.tasks.niah import CANDIDATES

_ROOM = 24
"""Tokens of prose, at the least, beside the longest needle in the shortest prompt."""

_DRAWS = 8
_TRIES = 400
_SPARE = 6
"""Values drawn for each needle that is to have one: most of them begin like another."""

_LITTLE = """
a an and around at behind beneath beside between by during for from in inside into near of on onto outside over the
through to under with without two three four five six seven eight nine ten eleven twelve
"""
"""Words that many keys or values share."""


def draw(
    ruler: Ruler, kinds: Sequence[str], shortest: int, together: bool, seed: Sequence[Any]
) -> tuple[list[Needle], list[dict[str, Ids]]]:
    """One needle of each kind that is named, and the candidates of each, its own value among them.

    Keys and values share no word that begins alike, numbers not their first two digits; templates are used once as
    long as there are any.

    Args:
        shortest: tokens of the shortest prompt that one of them has to fit in.
        together: they share contexts: prompts that ask for them must be of one length, so their questions are (to one
            token), and values of one kind are as long as one another, so that each is a candidate for the others.
        seed: anything that JSON can hold.

    Raises:
        BrokenData: there are not so many.
    """
    drawer = Drawer(ruler.tokens)
    why = ""
    for attempt in range(_DRAWS):
        rng = np.random.default_rng(stable_seed(*seed, list(kinds), together, attempt))
        try:
            blank = _blank(ruler, kinds, shortest, together, rng)
            return _filled(ruler, drawer, blank, together, rng)
        except Redraw as reason:
            why = str(reason)
    raise BrokenData(
        f"needles for prompts of {shortest} tokens could not be drawn, {len(kinds)} in all ({why})"
    )


def stems(text: str) -> set[str]:
    """What two keys or values must not have in common: first letters of words that matter, first digits of a number."""
    return {w[: 2 if w.isdigit() else 4] for w in text.lower().split() if w not in _LITTLE.split()}


def _blank(
    ruler: Ruler, kinds: Sequence[str], shortest: int, together: bool, rng: np.random.Generator
) -> list[Needle]:
    """Needles without values."""
    out: list[Needle] = []
    taken: set[str] = set()
    room = shortest - ruler.n_special - _ROOM
    for kind in kinds:
        options = pools.templates(kind)
        used = [needle.template for needle in out if needle.template.kind == kind]
        fresh = [t for t in options if used.count(t) == len(used) // len(options)]
        for _ in range(_TRIES):
            template = fresh[rng.integers(len(fresh))]
            needle = Needle(template, pools.keys(template.about).draw(rng), "")
            tail = tail_cost(needle, ruler)
            alike = not together or not out or 0 <= tail_cost(out[0], ruler) - tail <= 1
            if alike and not stems(needle.key) & taken and tail + ruler.cost(needle.sentence) < room:
                break
        else:
            raise Redraw("no key and question fit to those of the other needles and to the shortest prompt")
        out.append(needle)
        taken |= stems(needle.key)
    return out


def _filled(
    ruler: Ruler, drawer: Drawer, blank: Sequence[Needle], together: bool, rng: np.random.Generator
) -> tuple[list[Needle], list[dict[str, Ids]]]:
    kinds = [needle.template.kind for needle in blank]
    groups = [[i] for i in range(len(blank))]
    if together:
        groups = [[i for i, k in enumerate(kinds) if k == kind] for kind in dict.fromkeys(kinds)]
    values: dict[int, str] = {}
    candidates: dict[int, dict[str, Ids]] = {}
    taken: set[str] = set()
    for group in groups:
        pool = pools.values(kinds[group[0]])
        drawn = (pool.draw(rng) for _ in range(_TRIES))
        first = next((value for value in drawn if not stems(value) & taken), None)
        if first is None:
            raise Redraw("all values are like another")
        count = CANDIDATES - 1 + (_SPARE * len(group) if len(group) > 1 else 0)
        known = drawer.alike(pool, rng, first, count, blank[group[0]].template.stem.rsplit(" ", 1)[-1])
        unlike: list[str] = []
        for value in known:
            if len(unlike) < len(group) and not stems(value) & taken:
                unlike.append(value)
                taken |= stems(value)
        if len(unlike) < len(group):
            raise Redraw("all values of one length are like another")
        values |= dict(zip(group, unlike, strict=True))
        candidates |= dict.fromkeys(group, known)
    out = [replace(needle, value=values[i]) for i, needle in enumerate(blank)]
    for i, needle in enumerate(out):
        _check(needle, candidates[i], set(values.values()), ruler)
    return out, [candidates[i] for i in range(len(out))]


def tail_cost(needle: Needle, ruler: Ruler) -> int:
    """Tokens of the question and of all behind it."""
    return ruler.cost(needle.tail.lstrip("\n"), "\n\n")


def _check(needle: Needle, candidates: Mapping[str, Ids], values: set[str], ruler: Ruler) -> None:
    """Ask for a needle in a short context: what fails there fails in every prompt.

    Raises:
        Redraw: its value tokenises differently in the context and as an answer, or has no aligned twin.
    """
    layout = Layout((needle,), (Sentence("So it was.", "filler"), 0))
    own = {v: ids for v, ids in candidates.items() if v == needle.value or v not in values}
    prompt = ruler.tokens.encode(layout.text())
    follows(ruler.tokens, prompt, layout, own[needle.value])
    value_swap(ruler.tokens, layout, pose("needle", layout, ruler, own, "", prompt), own)
