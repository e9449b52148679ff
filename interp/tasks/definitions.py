"""Definitions of things that do not exist: texts that no model has seen, as many as are wanted.

A definition is put together from a frame and its slots (`data/definitions.json`, written for this project) with a name
made of syllables. The slots are drawn apart, so that nothing but memory tells how a definition goes on; what the frame
alone tells is the same for definitions that were trained on and for those that were not.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from interp.errors import BrokenData, MissingResource, UsageError
from interp.models.tokens import as_tokens
from interp.tasks.base import stable_seed
from interp.tasks.memorized import TextItem
from interp.tasks.pairs import data


@dataclass(frozen=True)
class Definition:
    """A text with the name of what it defines."""

    name: str
    text: str


def definitions(n: int, *, seed: int = 0) -> tuple[Definition, ...]:
    """Invented definitions, all of other names; the first of a longer list are those of a shorter one.

    >>> definitions(1)[0].text == definitions(3)[0].text
    True
    """
    table = data("definitions")
    slots = {name: table[name] for name in ("place", "when", "who", "act", "what", "use")}
    out: dict[str, Definition] = {}
    draw = 0
    while len(out) < n:
        rng = np.random.default_rng(stable_seed("definition", seed, draw))
        draw += 1
        name = _name(table, rng)
        frame = table["frames"][rng.integers(len(table["frames"]))]
        chosen = {slot: options[rng.integers(len(options))] for slot, options in slots.items()}
        out.setdefault(name, Definition(name, frame.format(name=name, **chosen)))
    return tuple(out.values())


def _name(table: dict[str, list[str]], rng: np.random.Generator) -> str:
    def one(kind: str) -> str:
        return table[kind][rng.integers(len(table[kind]))]

    syllables = "".join(one("onsets") + one("vowels") for _ in range(rng.integers(1, 3)))
    return (syllables + one("onsets") + one("vowels") + one("codas")).capitalize()


def read_definitions(path: str | Path) -> tuple[Definition, ...]:
    """Definitions of a JSONL file with one text a line under `definition`, as those of ECBD in the INJ benchmark.

    Args:
        path: the file. The name of a definition is `ecbd 12` by its line, with the stem of the file.

    Raises:
        MissingResource: there is no such file.
        BrokenData: a line holds no definition.
    """
    lines = json_lines(path, {"definition": str})
    stem = Path(path).stem.partition("_")[0]
    return tuple(
        Definition(f"{stem} {i}", " ".join(line["definition"].split())) for i, line in enumerate(lines, 1)
    )


def json_lines(path: str | Path, fields: dict[str, type]) -> list[dict[str, Any]]:
    """Lines of a JSONL file, each with these fields.

    Raises:
        MissingResource: there is no such file.
        BrokenData: a line is no JSON, or a field is not there or of another type.
    """
    try:
        lines = Path(path).read_text("utf-8").splitlines()
    except OSError as why:
        raise MissingResource(
            f"{path} cannot be read: {why.strerror or why}; write the path of a JSONL file"
        ) from None
    out = []
    for number, line in enumerate(lines, 1):
        try:
            found = json.loads(line)
            if not all(isinstance(found[name], kind) for name, kind in fields.items()):
                raise TypeError("another type")
        except (ValueError, KeyError, TypeError):
            wanted = ", ".join(f"{name} ({kind.__name__})" for name, kind in fields.items())
            raise BrokenData(f"{path}, line {number}: a line is a JSON object with {wanted}") from None
        out.append(found)
    return out


def text_items(
    source: Any,
    texts: Sequence[Definition],
    *,
    prefix: int = 8,
    length: int | None = None,
    group: str = "",
    halves: bool = False,
    exposures: int = 0,
) -> tuple[TextItem, ...]:
    """Texts as items: tokenised whole, cropped, and with so many tokens given.

    Args:
        source: a model, or its tokens.
        texts: anything with `name` and `text`.
        prefix: tokens that are given.
        length: tokens that are kept, prefix included; default all.
        group, exposures: of each item.
        halves: mark every other item `locate` and the rest `test`.

    Raises:
        UsageError: a text is shorter than `length` or than the prefix, or two start with the same prefix, so that
            nothing says how they go on.
    """
    tokens = as_tokens(source)
    out: list[TextItem] = []
    starts: dict[tuple[int, ...], str] = {}
    for i, text in enumerate(texts):
        ids = tokens.encode(text.text).ids
        if length is not None and len(ids) < length:
            raise UsageError(
                f"'{text.name}' has {len(ids)} tokens, fewer than length {length}; take a shorter length"
            )
        ids = ids[:length]
        other = starts.setdefault(ids[:prefix], text.name)
        if other != text.name:
            raise UsageError(
                f"'{other}' and '{text.name}' start with the same {prefix} tokens, so nothing says how they go on; "
                "take a longer prefix"
            )
        split: Any = ("locate", "test")[i % 2] if halves else ""
        out.append(TextItem(text.name, ids, prefix, group=group, split=split, exposures=exposures))
    return tuple(out)
