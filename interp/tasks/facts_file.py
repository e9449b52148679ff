"""Facts of a file of the user's: shaped like known_1000, like the relations of LRE, or like patterns of ParaRel.

- `known_1000` (Meng et al. 2022): a JSON list of objects with `subject`, `attribute`, `prompt` and `relation_id`; the
  prompt counts, since its template can lack its last words.
- `lre` (Hernandez et al. 2024): a JSON object with `name`, `prompt_templates` with `{}`, and `samples` of `subject` and
  `object`.
- `pararel` (Elazar et al. 2021): a `pattern` with `[X]` and `[Y]` a line; the facts are in a second file, a JSON object
  with `sub_label` and `obj_label` a line. Patterns that do not end in `[Y]` cannot be continued and are left out.

    task("facts_file", path="country_capital_city.json")
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from interp.errors import BrokenData, UsageError
from interp.models.tokens import Tokens
from interp.tasks.base import Example, Ids, Piece, Redraw, Task, assemble, continuations, whole_number
from interp.tasks.facts import common_prefix, shared_start, surface
from interp.tasks.jsonl import file_text, json_lines
from interp.tasks.pairs import differs_within, digest

Shape = Literal["known_1000", "lre", "pararel"]
_TRIES = 40
"""Other subjects that are tried for a twin."""


@dataclass(frozen=True)
class Fact:
    """A fact in one wording.

    Attributes:
        template: the prompt with `{}` in the subject's place.
        where: record or line of the file.
    """

    relation: str
    template: str
    subject: str
    answer: str
    where: str


class FactsFile(Task):
    """The facts of a file, in its order.

    Candidates are all answers of the relation in the file. The twin `subject_swap` asks the same of another subject of
    as many tokens, with another answer.

    Args:
        path: the file.
        shape: `known_1000`, `lre` or `pararel`; default by what is in the file.
        facts: second file, for `pararel`.
        skip: leave out records whose prompt does not hold the subject, instead of refusing the file.
        n: take the first so many; default all.
        seed: of foils and twins.

    Raises:
        MissingResource: a file cannot be read.
        BrokenData: a record is not of that shape; the message has the reason and where it stands.
    """

    name = "facts_file"
    source = "a file of the user's"
    max_redraws = 1

    def __init__(
        self,
        path: str | Path,
        shape: Shape | None = None,
        facts: str | Path | None = None,
        skip: bool = False,
        n: int | None = None,
        seed: int = 0,
    ):
        self.path = Path(path)
        self.facts = read_facts(path, shape, facts=facts, skip=skip)
        whole = len(self.facts)
        count = whole if n is None else min(whole_number(self.name, "n", n, 1), whole)
        given = None if facts is None else str(facts)
        super().__init__(n=count, seed=seed, path=str(path), shape=shape, facts=given, skip=skip)
        self._candidates: dict[tuple[str, str, str], dict[str, Ids]] = {}
        # All answers of a subject are right, in the order of the file.
        self._tables: dict[str, dict[str, list[str]]] = {}
        for fact in self.facts:
            known = self._tables.setdefault(fact.relation, {}).setdefault(fact.subject, [])
            if fact.answer not in known:
                known.append(fact.answer)

    def config(self) -> dict[str, Any]:
        """What identifies the task, the facts included."""
        return {**super().config(), "data": digest(repr(self.facts))}

    def make(self, index: int, rng: np.random.Generator, tokens: Tokens) -> Example:
        fact = self.facts[index]
        try:
            clean = self._ask(tokens, fact)
        except Redraw as why:
            raise BrokenData(f"{self.path}, {fact.where}: {why}") from None
        at = common_prefix(clean.candidates) if len(clean.candidates) > 1 else 0
        wrong = [c for c in clean.candidates[1:] if c[at] != clean.answer_ids[at]]
        if wrong:
            clean = replace(clean, foil_ids=wrong[rng.integers(len(wrong))])
        table = self._tables[fact.relation]
        others = [s for s, o in table.items() if not set(o) & set(table[fact.subject])]
        for i in rng.permutation(len(others))[:_TRIES]:
            try:
                twin = self._ask(tokens, replace(fact, subject=others[i], answer=table[others[i]][0]))
            except Redraw:
                continue
            if differs_within(twin, clean, "subject"):
                return replace(clean, corrupt={"subject_swap": replace(twin, foil_ids=clean.answer_ids)})
        return clean

    def _ask(self, tokens: Tokens, fact: Fact) -> Example:
        before, _, after = fact.template.partition("{}")
        space = " " if before.endswith(" ") else ""
        pieces = [Piece(before.removesuffix(" "), None, 0, "query")] if before.strip() else []
        pieces += [
            Piece(space + fact.subject, "subject", 0, "query"),
            Piece(after, "relation", 0, "query"),
        ]
        prompt, ids, spans, text = assemble(tokens, pieces, f" {fact.answer}")
        table = self._tables[fact.relation]
        right = [a for a in table[fact.subject] if a != fact.answer]
        last = text.rsplit(" ", 1)[-1]
        known = self._options(tokens, fact.relation, last)
        options: tuple[Ids, ...] = tuple(
            dict.fromkeys([known[fact.answer], *(o for a, o in known.items() if a not in right)])
        )
        if options[0] != ids:
            raise Redraw(f"'{fact.answer}' tokenises differently after '{last}'")
        apart = max((shared_start(ids, o) for o in options[1:]), default=0)
        score_at = min(apart, len(ids) - 1)
        alike = sum(o[: score_at + 1] == ids[: score_at + 1] for o in options)
        return Example(
            task=self.name,
            ids=prompt.ids,
            answer_ids=ids,
            text=text,
            offsets=prompt.offsets,
            spans=spans,
            alternatives=tuple(known[a] for a in right if known[a] not in options),
            candidates=options,
            chance=alike / len(options),
            cluster=fact.subject,
            group=f"{fact.relation}: {fact.subject}",
            meta={
                "relation": fact.relation,
                "subject": fact.subject,
                "object": fact.answer,
                "template": fact.template,
                "where": fact.where,
                "score_at": score_at,
                "surface": surface(fact.subject, fact.answer),
            },
        )

    def _options(self, tokens: Tokens, relation: str, last: str) -> dict[str, Ids]:
        """Ids of every answer of a relation after the last word of a prompt."""
        key = (tokens.fingerprint, relation, last)
        if key not in self._candidates:
            answers = list(dict.fromkeys(a for known in self._tables[relation].values() for a in known))
            ids = continuations(tokens, last, [f" {a}" for a in answers])
            self._candidates[key] = dict(zip(answers, ids, strict=True))
        return self._candidates[key]


def read_facts(
    path: str | Path, shape: Shape | None = None, *, facts: str | Path | None = None, skip: bool = False
) -> list[Fact]:
    """The facts of a file; see `FactsFile`."""
    if shape is not None and shape not in get_args(Shape):
        raise UsageError(f"task facts_file: shape is {shape!r}; take of {', '.join(get_args(Shape))}")
    text = file_text(path)
    shape = shape or _shape(text, path)
    if (facts is not None) != (shape == "pararel"):
        raise UsageError(
            f"task facts_file: {path} holds patterns; pass facts=, a file of their subjects and objects"
            if shape == "pararel"
            else f"task facts_file: facts= goes with patterns, and {path} is shaped like {shape}"
        )
    found: list[Fact] = []
    if shape == "pararel":
        assert facts is not None
        found = list(_pararel(text, path, facts))
    else:
        try:
            data = json.loads(text)
        except json.JSONDecodeError as why:
            raise BrokenData(f"{path}, line {why.lineno}: not JSON: {why.msg}") from None
        found = list(_known(data, path, skip) if shape == "known_1000" else _lre(data, path))
    if not found:
        raise BrokenData(f"{path} holds no fact that can be asked")
    return found


def _shape(text: str, path: str | Path) -> Shape:
    start = text.lstrip()[:1]
    if start == "[":
        return "known_1000"
    first = text.lstrip().partition("\n")[0]
    if start == "{":
        return "pararel" if '"pattern"' in first and first.rstrip().endswith("}") else "lre"
    raise BrokenData(f"{path} is neither a JSON list, nor an object, nor one object a line")


def _field(record: Any, names: Sequence[str], path: str | Path, where: str) -> list[str]:
    """Strings of a record.

    Raises:
        BrokenData: it is no object, or one of them is missing or empty.
    """
    if not isinstance(record, dict):
        raise BrokenData(f"{path}, {where}: an object is expected, not {str(record)[:40]!r}")
    for name in names:
        if not isinstance(record.get(name), str) or not record[name].strip():
            raise BrokenData(f"{path}, {where}: '{name}' is missing, or no text")
    return [record[name].strip() for name in names]


def _known(data: Any, path: str | Path, skip: bool) -> Iterator[Fact]:
    if not isinstance(data, list):
        raise BrokenData(f"{path}: facts shaped like known_1000 come as a list")
    for number, record in enumerate(data, start=1):
        where = f"record {number}"
        subject, answer, prompt = _field(record, ("subject", "attribute", "prompt"), path, where)
        if subject not in prompt or prompt.endswith(subject):
            if skip:
                continue
            what = "ends in" if prompt.endswith(subject) else "does not hold"
            raise BrokenData(f"{path}, {where}: its prompt {what} the subject '{subject}'; skip=True goes on")
        template = prompt.replace(subject, "{}", 1)
        yield Fact(str(record.get("relation_id", "")) or "facts", template, subject, answer, where)


def _lre(data: Any, path: str | Path) -> Iterator[Fact]:
    if not isinstance(data, dict):
        raise BrokenData(f"{path}: facts shaped like LRE come as an object")
    for name in ("prompt_templates", "samples"):
        if not isinstance(data.get(name), list) or not data[name]:
            raise BrokenData(f"{path}: '{name}' is missing, or no list")
    (relation,) = _field(data, ("name",), path, "the relation")
    templates = []
    for number, template in enumerate(data["prompt_templates"], start=1):
        if not isinstance(template, str) or template.count("{}") != 1 or template.rstrip().endswith("{}"):
            raise BrokenData(f"{path}, template {number}: a wording with one {{}}, and words after it")
        templates.append(template.strip())
    for number, sample in enumerate(data["samples"], start=1):
        subject, answer = _field(sample, ("subject", "object"), path, f"sample {number}")
        for template in templates:
            yield Fact(relation, template, subject, answer, f"sample {number}")


def _pararel(text: str, path: str | Path, facts: str | Path) -> Iterator[Fact]:
    templates = []
    for number, record in json_lines(path, text):
        where = f"line {number}"
        (pattern,) = _field(record, ("pattern",), path, where)
        if pattern.count("[X]") != 1 or pattern.count("[Y]") != 1:
            raise BrokenData(f"{path}, {where}: a pattern has one [X] and one [Y], not {pattern!r}")
        head, _, tail = pattern.partition("[Y]")
        if not tail.strip(" .") and not head.rstrip().endswith("[X]"):
            templates.append(head.replace("[X]", "{}").strip())
    for number, record in json_lines(facts, file_text(facts)):
        subject, answer = _field(record, ("sub_label", "obj_label"), facts, f"line {number}")
        for template in dict.fromkeys(templates):
            yield Fact(Path(path).stem, template, subject, answer, f"{Path(facts).name} line {number}")
