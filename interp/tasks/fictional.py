"""Subjects that do not exist, and subjects that say nothing: what a wording makes a model say without a fact.

The names were invented for this project (`data/scenarios.json`). Fictional subjects sound like the real ones of their
sort, so that what a model says of them comes from how they sound; neutral ones ("it", "the country") leave the wording
alone to decide.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from interp.errors import UsageError
from interp.tasks.facts import relation
from interp.tasks.pairs import data


@dataclass(frozen=True)
class Sort:
    """A sort of subject: countries, books, persons.

    Attributes:
        relations: relations of the task `facts` whose subjects are of this sort.
        neutral: subjects that say no more than their sort.
        fictional: invented ones.
        name_probes: prompts about a part `{x}` of a person's name that end where a relation's objects may follow.
    """

    name: str
    relations: tuple[str, ...]
    neutral: tuple[str, ...]
    fictional: tuple[str, ...]
    name_probes: tuple[str, ...] = ()


@cache
def sorts() -> dict[str, Sort]:
    """Every sort by name."""
    fields = ("relations", "neutral", "fictional", "name_probes")
    return {
        name: Sort(name, *(tuple(table.get(field, ())) for field in fields))
        for name, table in data("scenarios").items()
    }


def named() -> tuple[str, ...]:
    """Relations whose subjects are proper names, so that facts about them are not facts about words."""
    return tuple(sorted(r for sort in sorts().values() for r in sort.relations))


def sort_of(name: str) -> Sort:
    """The sort of a relation's subjects.

    Raises:
        UsageError: there is no such relation, or its subjects are words and not names.
    """
    relation(name)
    for sort in sorts().values():
        if name in sort.relations:
            return sort
    raise UsageError(f"relation {name} has no fictional subjects; take of {', '.join(named())}")
