"""Recall without literal overlap: the context states one thing, the question names another that follows from it.

"For a whole year Maren lived right next to the Acropolis" answers "Which person has been to Greece?"; the two share no
word but function words, so attention cannot find the place by matching tokens (after NoLiMa, arXiv 2502.05167). Other
persons stand in statements of the same form; a model that copies any of the names scores chance.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from typing import ClassVar

import numpy as np

from interp.errors import UsageError
from interp.tasks import needles as pools
from interp.tasks.base import listed, whole_number
from interp.tasks.depths import Depths
from interp.tasks.needles import Drawer
from interp.tasks.recall import InProse, Posed, Question, Statement, apart, asked


@dataclass(frozen=True)
class Relation:
    """Associations of one sort.

    Attributes:
        facts: wordings of the statement about a `{name}` and a `{key}`.
        questions: wordings of the question for `{asked}`, each with the stem of its answer.
        links: what each key makes one think of; no two keys of a relation lead to the same.
    """

    name: str
    facts: tuple[str, ...]
    questions: tuple[tuple[str, str], ...]
    links: dict[str, str]


@cache
def relations() -> dict[str, Relation]:
    """All relations by name."""
    data = json.loads((files("interp.tasks") / "data" / "paraphrase.json").read_text("utf-8"))
    return {
        name: Relation(name, tuple(r["facts"]), tuple((q, s) for q, s in r["questions"]), r["links"])
        for name, r in data.items()
    }


class Paraphrase(InProse):
    """Which of several persons is meant, by an association that no word of the context gives away.

    Args:
        length: tokens of the prompt.
        depth: where the asked statement stands, 0 to 1, or `uniform`.
        relations: names of relations, which take turns; default all.
        names: persons in the context, each with a statement of the same form.
        haystack: as for niah.
        shots: solved questions of the same sort in front.
    """

    name = "paraphrase"
    source = "associations written for this project; after NoLiMa (arXiv 2502.05167)"
    copies: ClassVar[bool] = True

    def __init__(
        self,
        length: int = 512,
        depth: float | str = "uniform",
        relations: str | Sequence[str] | None = None,
        names: int = 4,
        haystack: str | Sequence[str] = "all",
        shots: int = 1,
        n: int = 64,
        seed: int = 0,
    ):
        self.relations = _chosen(relations)
        self.depths = Depths(self.name, depth, seed)
        self.names = whole_number(self.name, "names", names, 2)
        super().__init__(
            length=length,
            haystack=haystack,
            shots=shots,
            n=n,
            seed=seed,
            depth=depth,
            relations=[r.name for r in self.relations],
            names=names,
        )

    def pose(self, index: int, rng: np.random.Generator, drawer: Drawer) -> Question:
        relation = self.relations[index % len(self.relations)]
        fact = relation.facts[rng.integers(len(relation.facts))]
        question, stem = relation.questions[rng.integers(len(relation.questions))]
        keys = _aligned(
            [list(relation.links)[i] for i in rng.permutation(len(relation.links))], relation, drawer
        )
        pool = pools.keys("person")
        names = drawer.alike(pool, rng, pool.draw(rng), self.names, stem.rsplit(" ", 1)[-1])
        persons = list(names)
        # One name more than there are persons: it takes the place of the answer in the twin.
        keys, persons, spare = keys[: self.names], persons[:-1], persons[-1]
        if len(keys) < self.names:
            raise UsageError(
                f"task paraphrase: relation {relation.name} has {len(keys)} links; take fewer names"
            )

        def posed(answer: str, about: int) -> Posed:
            who = [answer, *persons[1:]] if about == 0 else persons
            order = [about, *(i for i in range(self.names) if i != about)]
            item = {statement: place for place, statement in enumerate(order)}
            return Posed(
                tuple(_statement(fact, who[i], keys[i], item[i]) for i in range(self.names)),
                asked(question, stem, {"asked": (relation.links[keys[about]], "query")}),
                answer,
            )

        options = {p: names[p] for p in persons}
        swapped = {spare: names[spare], **options}
        twins = {"value_swap": (posed(spare, 0), swapped)}
        if _length(relation, keys[1], drawer) == _length(relation, keys[0], drawer):
            first = {persons[1]: options[persons[1]]}
            twins["query_swap"] = (posed(persons[1], 1), {**first, **options})
        return Question(
            posed(persons[0], 0),
            (self.depths.of(index), *rng.random(self.names - 1)),
            options,
            apart(options, persons[0]),
            twins,
            {
                "relation": relation.name,
                "key": keys[0],
                "asked": relation.links[keys[0]],
                "value": persons[0],
            },
        )


def _aligned(keys: list[str], relation: Relation, drawer: Drawer) -> list[str]:
    """Keys with, second, one whose question is as long in tokens as that of the first, if there is such a key."""
    own = _length(relation, keys[0], drawer)
    like = next((k for k in keys[1:] if _length(relation, k, drawer) == own), keys[1])
    return [keys[0], like, *(k for k in keys[1:] if k != like)]


def _length(relation: Relation, key: str, drawer: Drawer) -> int:
    return len(drawer.tokens.encode(f"is {relation.links[key]}?"))


def _statement(fact: str, name: str, key: str, item: int) -> Statement:
    prefix, whole = ("", "evidence") if item == 0 else ("distractor_", "distractor")
    return Statement(fact, {"name": (name, f"{prefix}value"), "key": (key, f"{prefix}key")}, item, whole)


def _chosen(names: str | Sequence[str] | None) -> list[Relation]:
    known = relations()
    chosen = list(known) if names is None else listed("paraphrase", "relations", names)
    for name in chosen:
        if name not in known:
            near = get_close_matches(str(name), known, 1)
            hint = f" (did you mean '{near[0]}'?)" if near else ""
            raise UsageError(f"task paraphrase: no relation '{name}'{hint}; take of {', '.join(known)}")
    return [known[name] for name in dict.fromkeys(chosen)]
