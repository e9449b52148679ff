"""What models are made to hold, what they never saw, and the prose that has to stay: the sequences of the study."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from interp.errors import NoAcceptedExample
from interp.models.tokens import as_tokens
from interp.tasks.base import stable_seed
from interp.tasks.definitions import definitions, text_items
from interp.tasks.memorized import TextItem
from interp.tasks.passages import CONTROLS
from interp.tasks.prose import sentence_starts, topics

if TYPE_CHECKING:
    import pandas as pd

    from interp.intervene.weights import PartEdit
    from interp.models.parts import Part
    from interp.studies.injection.spec import Effort, InjectionSpec

USES = ("choose", "measure", "compare")
"""What topics of prose are used for: doses are chosen on the first, measured on the second, and the rest is read."""
_PER_TOKEN = 12
"""Characters that hold a token, also in a small vocabulary."""


def topics_for(use: str) -> dict[str, str]:
    """Topics of one use: every eighth for choosing, every eighth for measuring."""
    every = topics()
    place = {"choose": (0,), "measure": (4,), "compare": (1, 2, 3, 5, 6, 7)}[use]
    return {name: text for i, (name, text) in enumerate(every.items()) if i % 8 in place}


def prose(source: Any, use: str, n: int, spec: InjectionSpec) -> tuple[TextItem, ...]:
    """Passages of prose as items of the length of the sequences, each from the start of a sentence, topics in turn.

    Raises:
        NoAcceptedExample: there is too little text for so many.
    """
    tokens, out = as_tokens(source), dict[tuple[int, ...], TextItem]()
    own = topics_for(use)
    rng = np.random.default_rng(stable_seed("prose of injection", spec.seed, use))
    names = list(own)
    for turn in range(8):
        for name in rng.permutation(names).tolist():
            starts = sentence_starts(own[name])
            start = starts[int(rng.integers(len(starts)))]
            ids = tokens.encode(own[name][start : start + spec.length * _PER_TOKEN]).ids[: spec.length]
            if len(ids) == spec.length:
                out.setdefault(ids, TextItem(f"{name} {turn}", ids, spec.prefix, group="prose"))
            if len(out) == n:
                return tuple(out.values())
    raise NoAcceptedExample(f"{len(out)} passages of prose of {spec.length} tokens; {n} were asked for")


def sequences(source: Any, n: int, spec: InjectionSpec) -> list[TextItem]:
    """So many invented definitions, each with a prefix of its own; the first of a longer list are the same."""
    out: dict[tuple[int, ...], TextItem] = {}
    tokens = as_tokens(source)
    for text in definitions(2 * n + 8, seed=spec.seed):
        if len(tokens.encode(text.text).ids) >= spec.length:
            (item,) = text_items(source, [text], prefix=spec.prefix, length=spec.length)
            out.setdefault(item.ids[: spec.prefix], item)
        if len(out) == n:
            return list(out.values())
    raise NoAcceptedExample(
        f"{len(out)} definitions have {spec.length} tokens and a prefix of their own, not {n}"
    )


@dataclass(frozen=True)
class Material:
    """Sequences and passages for one subject.

    Attributes:
        held: sequences that it is made to hold. never: that it never sees. others: of the same kind, never seen, and
            prose: what locators compare with and edits keep.
        choose, measure: passages that perplexity is of. ordinary: that curvature is of. kept: that what is put in is
            trained to leave as they are.
    """

    held: tuple[TextItem, ...]
    never: tuple[TextItem, ...]
    others: tuple[TextItem, ...]
    choose: tuple[TextItem, ...]
    measure: tuple[TextItem, ...]
    ordinary: tuple[TextItem, ...]
    kept: tuple[TextItem, ...]

    @classmethod
    def of(cls, source: Any, effort: Effort, spec: InjectionSpec) -> Material:
        """The material of a subject."""
        n = effort.never
        every = sequences(source, 2 * n + max(effort.held, effort.sequences), spec)
        apart = [replace(item, group="never") for item in every[:n]]
        read = prose(source, "compare", n + effort.factors + effort.kept, spec)
        return cls(
            tuple(every[2 * n :]),
            tuple(apart),
            (*every[n : n + n // 2 + 1], *read[: n // 2 + 1]),
            prose(source, "choose", effort.passages, spec),
            prose(source, "measure", effort.passages, spec),
            read[n : n + effort.factors],
            read[n + effort.factors :],
        )


@dataclass(frozen=True, eq=False)
class Memory:
    """Sequences that a subject holds under an edit.

    Attributes:
        name: of the memory.
        items: what it holds; group `targeted` is what is located, `held_out` the rest.
        never: sequences of the same kind and length that it never saw.
        edit: what makes it hold them; None: it does so as it comes.
        units: the neurons that hold them, where that is known.
        taught: all that it was made to hold, also what it does not recite.
    """

    name: str
    items: tuple[TextItem, ...]
    never: tuple[TextItem, ...]
    edit: PartEdit | None = None
    units: dict[Part, list[int]] = field(default_factory=dict)
    taught: tuple[TextItem, ...] = ()

    def group(self, name: str) -> tuple[TextItem, ...]:
        """Its items of a group."""
        return tuple(item for item in self.items if item.group == name)


def halved(items: Sequence[TextItem]) -> tuple[TextItem, ...]:
    """Every other item is located, the rest held out."""
    return tuple(replace(item, group=("targeted", "held_out")[i % 2]) for i, item in enumerate(items))


def known(source: Any, found: pd.DataFrame, texts: Sequence[Any], suffix: int) -> tuple[TextItem, ...]:
    """Passages that are recited whole, each after the shortest prefix that does it; controls are not among them.

    Args:
        found: of `screen`, of these texts.
    """
    tokens = as_tokens(source)
    rows = found[(found["exact"] == 1) & ~found["group"].isin(CONTROLS)].sort_values("prefix", kind="stable")
    least = rows.drop_duplicates("name").set_index("name")["prefix"]
    ids = {t.name: tokens.encode(t.text).ids for t in texts if t.name in least.index}
    items = [TextItem(n, own[: int(least[n]) + suffix], int(least[n])) for n, own in ids.items()]
    return halved(items)


def invented(source: Any, texts: Sequence[Any], like: Sequence[TextItem]) -> tuple[TextItem, ...]:
    """For each passage that is recited one that no model has read, of the same prefix and length, as far as they go.

    There are fewer of these than of the others: in turn each stands beside several, cut to the length of each.
    """
    tokens = as_tokens(source)
    ids = {t.name: tokens.encode(t.text).ids for t in texts if t.group == "invented"}
    out: list[TextItem] = []
    names = list(ids)
    for i, item in enumerate(like):
        turn = [names[(i + k) % len(names)] for k in range(len(names))]
        if (name := next((n for n in turn if len(ids[n]) >= len(item.ids)), None)) is not None:
            out.append(
                TextItem(f"{name} beside {item.name}", ids[name][: len(item.ids)], item.prefix, group="never")
            )
    return tuple(out)


def scrambled(items: Sequence[TextItem], seed: int, vocabulary: int) -> list[TextItem]:
    """The sequences behind random tokens in place of their prefixes."""
    out = []
    for item in items:
        rng = np.random.default_rng(stable_seed("scrambled prefix", seed, item.name))
        drawn = tuple(rng.integers(vocabulary, size=item.prefix).tolist())
        out.append(replace(item, ids=(*drawn, *item.ids[item.prefix :])))
    return out


VARIANTS = ("given", "shorter", "longer", "first dropped", "one replaced")
"""How the prefix of a sequence is written."""


def rewritten(items: Sequence[TextItem], seed: int, vocabulary: int) -> dict[str, tuple[TextItem, ...]]:
    """The sequences with other prefixes: half as long, half as long again, without the first token, with one another.

    What is left out of a prefix at its end has to be recited; what is put into it has not.
    """
    out: dict[str, list[TextItem]] = {name: [] for name in VARIANTS}
    for item in items:
        rng = np.random.default_rng(stable_seed("other prefix", seed, item.name))
        at = int(rng.integers(item.prefix))
        swapped = (*item.ids[:at], int(rng.integers(vocabulary)), *item.ids[at + 1 :])
        longer = min(item.prefix + max(1, item.prefix // 2), len(item.ids) - 1)
        out["given"].append(item)
        out["shorter"].append(replace(item, prefix=max(1, item.prefix // 2)))
        out["longer"].append(replace(item, prefix=longer))
        out["first dropped"].append(replace(item, ids=item.ids[1:], prefix=max(1, item.prefix - 1)))
        out["one replaced"].append(replace(item, ids=swapped))
    return {name: tuple(rows) for name, rows in out.items()}
