"""Passages that many texts repeat, and what else may look like memory: for the screen of what a model recites.

The list (`data/passages.json`) has licences, scripture, documents of history and literature that are out of copyright,
and lists; `regular` passages can be continued by rule, and `invented` ones were written for this project, so no model
has read them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from interp.tasks.definitions import json_lines
from interp.tasks.pairs import data

CONTROLS = ("regular", "invented")
"""Groups that are continued without memory of them, or not at all."""


@dataclass(frozen=True)
class Passage:
    """A text with a name and the group it belongs to."""

    name: str
    group: str
    text: str


@cache
def passages() -> tuple[Passage, ...]:
    """The list that ships."""
    return tuple(Passage(**fields) for fields in data("passages")["passages"])


def read_passages(path: str | Path) -> tuple[Passage, ...]:
    """Passages of a JSONL file with `all` (the text) and `category` a line, as those of GPT-2 XL by MemPi.

    Raises:
        MissingResource: there is no such file.
        BrokenData: a line holds no passage.
    """
    lines = json_lines(path, {"all": str, "category": list})
    return tuple(
        Passage(f"line {i}", str(x["category"][0]), x["all"]) for i, x in enumerate(lines, 1) if x["category"]
    )
