"""Closed-book facts: what the model has to know from its weights, asked in several wordings.

The tables (`data/facts`, one file a relation) were compiled for this project from common knowledge, as of 2024; facts
that are disputed, or that name the answer in the question, are left out. An answer is scored up to the first
token at which it differs from every other answer of its relation (`meta["score_at"]`): what a tokenizer puts in front
of all of them, a lone space before numbers say, decides nothing, and what follows is spelling.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np

from interp.errors import UsageError
from interp.models.tokens import Tokens
from interp.tasks.base import (
    Example,
    Ids,
    Piece,
    Redraw,
    Task,
    assemble,
    continuations,
    listed,
    stable_seed,
    whole_number,
)
from interp.tasks.pairs import differs_within


@dataclass(frozen=True)
class Relation:
    """A table of facts.

    Attributes:
        templates: wordings that end where the object follows; `{s}` is the subject, `[...]` the words for the relation.
        more: further wordings, numbered on from those; used where they are asked for, so that what was measured with
            all `templates` keeps its meaning.
        facts: object of each subject.
        others: other right answers of a subject, where there are any.
    """

    name: str
    summary: str
    templates: tuple[str, ...]
    more: tuple[str, ...]
    facts: dict[str, str]
    others: dict[str, tuple[str, ...]]

    @property
    def wordings(self) -> tuple[str, ...]:
        """All wordings: `templates` and `more`."""
        return self.templates + self.more

    def answers(self, subject: str) -> tuple[str, ...]:
        """All right answers of a subject, that of the table first."""
        return (self.facts[subject], *self.others.get(subject, ()))

    @property
    def objects(self) -> tuple[str, ...]:
        """All distinct objects, in the order of the table."""
        return tuple(dict.fromkeys(self.facts.values()))


@cache
def names(*, every: bool = False) -> tuple[str, ...]:
    """The relations that are asked by default, or all there are."""
    found = (files("interp.tasks") / "data" / "facts").iterdir()
    there = sorted(p.name[:-5] for p in found if p.name.endswith(".json"))
    return tuple(n for n in there if every or not _table(n).get("on_request"))


def _table(name: str) -> dict[str, Any]:
    return json.loads((files("interp.tasks") / "data" / "facts" / f"{name}.json").read_text("utf-8"))


@cache
def relation(name: str) -> Relation:
    """A relation by name.

    Raises:
        UsageError: there is no such relation.
    """
    known = names(every=True)
    if name not in known:
        near = get_close_matches(str(name), known, 1)
        hint = f" (did you mean '{near[0]}'?)" if near else ""
        raise UsageError(f"task facts: no relation '{name}'{hint}; take of {', '.join(known)}")
    data = _table(name)
    several = {s: [o] if isinstance(o, str) else o for s, o in data["facts"].items()}
    return Relation(
        name,
        data["summary"],
        tuple(data["templates"]),
        tuple(data.get("more", ())),
        {s: o[0] for s, o in several.items()},
        {s: tuple(o[1:]) for s, o in several.items() if len(o) > 1},
    )


class Facts(Task):
    """Closed-book facts of several relations.

    Args:
        relations: names of relations; default all but those that are there on request (`person_country`).
        templates: numbers of the wordings to use, counted from 0 in each relation; default the relation's `templates`,
            and numbers from there on are those of its `more`.
        shots: solved examples of the same relation in front, with other subjects and other answers.
        n: so many facts, drawn at random; None or `all` for every fact in every wording.
    """

    name = "facts"
    source = "closed-book facts compiled for this project, as of 2024"

    def __init__(
        self,
        relations: str | Sequence[str] | None = None,
        templates: int | Sequence[int] | None = None,
        shots: int = 0,
        n: int | str | None = None,
        seed: int = 0,
    ):
        chosen = list(names()) if relations is None else listed(self.name, "relations", relations)
        self.relations = [relation(r) for r in dict.fromkeys(chosen)]
        wanted = None if templates is None else listed(self.name, "templates", templates)
        self.shots = whole_number(self.name, "shots", shots, 0)
        every = [
            (r, s, t)
            for r, table in enumerate(self.relations)
            for s in range(len(table.facts))
            for t in _wordings(table, wanted)
        ]
        for table in self.relations:
            if shots >= len(table.objects):
                raise UsageError(
                    f"task facts: {shots} shots of other answers, but relation {table.name} has {len(table.objects)}"
                )
        # One order for every n, so that more examples keep the first ones.
        order = np.random.default_rng(stable_seed(self.name, chosen, wanted, seed)).permutation(len(every))
        self._order = [every[i] for i in order]
        if n is None or n == "all":
            n = len(every)
        elif whole_number(self.name, "n", n, 1) > len(every):
            raise UsageError(f"task facts: n is {n}, and there are {len(every)}; take fewer, or 'all'")
        super().__init__(n=int(n), seed=seed, relations=chosen, templates=wanted, shots=shots)
        self._candidates: dict[tuple[str, str, str], dict[str, Ids]] = {}
        self._subjects: dict[tuple[str, str], dict[str, int]] = {}

    def make(self, index: int, rng: np.random.Generator, tokens: Tokens) -> Example:
        number, row, wording = self._order[index]
        table = self.relations[number]
        subject = list(table.facts)[row]
        shown = self._shots(table, subject, rng)
        clean = self._ask(tokens, table, wording, shown, subject)
        # Told apart from the answer where the candidates part ways: the first token that a model has to choose.
        at = common_prefix(clean.candidates)
        wrong = [c for c in clean.candidates if c[at] != clean.answer_ids[at]]
        clean = replace(clean, foil_ids=wrong[rng.integers(len(wrong))])
        twin = self._subject_swap(tokens, table, wording, shown, clean, rng)
        return replace(clean, corrupt={"subject_swap": twin} if twin else {})

    def _shots(self, table: Relation, subject: str, rng: np.random.Generator) -> list[str]:
        """Subjects of the solved examples: not the one asked for, and no two with one answer."""
        subjects = list(table.facts)
        taken = {table.facts[subject]}
        shown: list[str] = []
        for i in rng.permutation(len(subjects)):
            if len(shown) == self.shots:
                break
            if table.facts[subjects[i]] not in taken:
                shown.append(subjects[i])
                taken.add(table.facts[subjects[i]])
        return shown

    def _ask(
        self, tokens: Tokens, table: Relation, wording: int, shown: Sequence[str], subject: str
    ) -> Example:
        """The question about one subject, without a foil."""
        template = table.wordings[wording]
        answer = table.facts[subject]
        pieces: list[Piece] = []
        for i, other in enumerate(shown, start=1):
            for p in wording_pieces(template, other):
                pieces.append(Piece(p.text, "distractor_key" if p.role == "subject" else None, i))
            pieces += [Piece(" " + table.facts[other], "distractor_value", i), Piece(".\n")]
        pieces += [Piece(p.text, p.role, 0, "query") for p in wording_pieces(template, subject)]
        prompt, ids, spans, text = assemble(tokens, pieces, " " + answer)
        candidates = self._options(tokens, table, template)
        if ids != candidates[answer]:
            raise Redraw(f"'{answer}' tokenises differently after the template's last word")
        apart = max(shared_start(ids, c) for c in candidates.values() if c != ids)
        score_at = min(apart, len(ids) - 1)
        alike = [c for c in candidates.values() if c[: score_at + 1] == ids[: score_at + 1]]
        return Example(
            task=self.name,
            ids=prompt.ids,
            answer_ids=ids,
            text=text,
            offsets=prompt.offsets,
            spans=spans,
            alternatives=tuple(
                continuations(tokens, last_word(template), [" " + o for o in table.others.get(subject, ())])
            ),
            candidates=(ids, *(c for c in candidates.values() if c != ids)),
            chance=len(alike) / len(candidates),
            cluster=subject,
            group=subject,
            meta={
                "relation": table.name,
                "subject": subject,
                "object": answer,
                "template": wording,
                "shots": self.shots,
                "score_at": score_at,
                "surface": surface(subject, answer),
            },
        )

    def _options(self, tokens: Tokens, table: Relation, template: str) -> dict[str, Ids]:
        """Ids of every object of the relation after the last word of a template."""
        key = (tokens.fingerprint, table.name, last_word(template))
        if key not in self._candidates:
            ids = continuations(tokens, key[-1], [" " + o for o in table.objects])
            self._candidates[key] = dict(zip(table.objects, ids, strict=True))
        return self._candidates[key]

    def _subject_swap(
        self,
        tokens: Tokens,
        table: Relation,
        wording: int,
        shown: Sequence[str],
        clean: Example,
        rng: np.random.Generator,
    ) -> Example | None:
        """The question about another subject of as many tokens, with another object; None where there is none."""
        lengths = self._lengths(tokens, table)
        given = {clean.meta["object"], *(table.facts[s] for s in shown)}
        own = lengths[clean.meta["subject"]]
        options = [s for s, o in table.facts.items() if o not in given and lengths[s] == own]
        for i in rng.permutation(len(options))[:8]:
            twin = self._ask(tokens, table, wording, shown, options[i])
            if differs_within(twin, clean, "subject"):
                return replace(twin, foil_ids=clean.answer_ids)
        return None

    def _lengths(self, tokens: Tokens, table: Relation) -> dict[str, int]:
        """Tokens of every subject of a relation."""
        key = (tokens.fingerprint, table.name)
        if key not in self._subjects:
            ids = continuations(tokens, "of", [" " + s for s in table.facts])
            self._subjects[key] = {s: len(i) for s, i in zip(table.facts, ids, strict=True)}
        return self._subjects[key]


def _wordings(table: Relation, wanted: Sequence[int] | None) -> list[int]:
    if wanted is None:
        return list(range(len(table.templates)))
    for t in wanted:
        if not isinstance(t, int) or not 0 <= t < len(table.wordings):
            raise UsageError(
                f"task facts: relation {table.name} has no template {t}; it has 0 to {len(table.wordings) - 1}"
            )
    return list(wanted)


def last_word(template: str) -> str:
    """The word that an object follows."""
    return template.replace("[", "").replace("]", "").rsplit(" ", 1)[-1]


def wording_pieces(template: str, subject: str) -> list[Piece]:
    """A template with its subject put in, as pieces with the roles `subject` and `relation`."""
    out: list[Piece] = []
    # The space before a word goes with it: it is that word's first token, or the start of it.
    for part in re.split(r"( ?\{s\}| ?\[[^\]]*\])", template):
        if part.endswith("{s}"):
            out.append(Piece(" " + subject if out else subject[0].upper() + subject[1:], "subject"))
        elif part.endswith("]"):
            out.append(Piece(part.replace("[", "").replace("]", ""), "relation"))
        elif part:
            out.append(Piece(part))
    return out


def worded(template: str, subject: str) -> str:
    """A template with its subject put in, as text."""
    return "".join(p.text for p in wording_pieces(template, subject))


def shared_start(a: Ids, b: Ids) -> int:
    """Tokens that two answers begin with alike; all of the shorter one if it begins the other."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def common_prefix(options: Sequence[Ids]) -> int:
    """Length of the longest common prefix of all options, and at most the shortest's length minus one.

    >>> common_prefix([(5, 1), (5, 2, 7), (5, 2)])
    1
    """
    shortest = min(len(o) for o in options) - 1
    return next((i for i in range(shortest) if len({o[i] for o in options}) > 1), shortest)


def surface(subject: str, answer: str) -> bool:
    """Whether the subject gives part of its answer away: a word of it starts with the answer's first three letters.

    >>> surface("Algeria", "Algiers"), surface("France", "Paris")
    (True, False)
    """
    return any(word.startswith(answer[:3].casefold()) for word in subject.casefold().split())
