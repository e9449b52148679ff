"""Records of edits: from files shaped like CounterFact, and from the relation tables of the task `facts`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from interp.errors import BrokenData, UsageError
from interp.intervene.facts.requests import Rewrite
from interp.measure.edits import EditRecord, Neighbour
from interp.measure.metrics import divergence
from interp.models.subject import CausalLM
from interp.tasks.base import Example, Ids, Redraw, answer_after, stable_seed
from interp.tasks.facts import Relation, relation, worded
from interp.tasks.jsonl import file_text


def read_counterfact(
    subject: CausalLM,
    source: str | Path | Iterable[Mapping[str, Any]],
    *,
    n: int | None = None,
    skip: bool = False,
) -> list[EditRecord]:
    """Records shaped like CounterFact (Meng et al. 2022).

    A record has `requested_rewrite` (`prompt` with `{}`, `subject`, `target_new` and `target_true` with `str`), and may
    have `paraphrase_prompts`, `neighborhood_prompts`, `generation_prompts`, `case_id` and `relation_id`.

    Args:
        source: a JSON file that holds a list, or records.
        n: the first so many; default all.
        skip: leave out what this tokenizer cannot ask: one answer begins the other, or merges with the prompt.

    Raises:
        MissingResource: there is no such file.
        BrokenData: it is no JSON list, or a record lacks something or cannot be asked; the message has its number.
    """
    if isinstance(source, str | Path):
        try:
            source = json.loads(file_text(source))
        except ValueError as why:
            raise BrokenData(f"{source} is no JSON file ({why})") from None
    if not isinstance(source, Iterable) or isinstance(source, Mapping):
        raise BrokenData("records shaped like CounterFact come as a list")
    out: list[EditRecord] = []
    records: Iterable[Any] = source
    for number, record in enumerate(records):
        if n is not None and len(out) == n:
            break
        try:
            out.append(_counterfact(subject, record, number))
        except (KeyError, TypeError) as why:
            raise BrokenData(f"record {number} is not shaped like CounterFact: no {why}") from None
        except (Redraw, UsageError) as why:
            if not skip:
                raise BrokenData(
                    f"record {number} cannot be asked: {why}; skip=True leaves such out"
                ) from None
    return out


def _counterfact(subject: CausalLM, record: Mapping[str, Any], number: int) -> EditRecord:
    asked = record["requested_rewrite"]
    true = asked["target_true"]["str"]
    rewrite = Rewrite.of_text(subject, asked["prompt"], asked["subject"], asked["target_new"]["str"], true)
    return EditRecord(
        rewrite,
        paraphrases=tuple(subject.tokens.encode(p).ids for p in record.get("paraphrase_prompts", ())),
        neighbours=tuple(
            Neighbour(subject.tokens.encode(p).ids, rewrite.true)
            for p in record.get("neighborhood_prompts", ())
        ),
        openings=tuple(subject.tokens.encode(p).ids for p in record.get("generation_prompts", ())),
        name=str(record.get("case_id", number)),
        relation=str(asked.get("relation_id", "")),
    )


def relation_records(
    subject: CausalLM,
    examples: Sequence[Example],
    *,
    neighbours: int = 5,
    known: Sequence[Example] | None = None,
    seed: int = 0,
) -> list[EditRecord]:
    """Counterfactual edits of facts from the tables of the task `facts`: what is true becomes the example's foil.

    Paraphrases are the relation's other wordings. Neighbours are other subjects in the same wording, first those with
    the same object, which an edit that leaks changes first, then others whose object can be told from the new one; each
    is held to its own object.

    Args:
        examples: of the task `facts`, without shots; the right ones of `known_to` are worth editing.
        neighbours: so many, where there are as many.
        known: examples that neighbours are chosen from (in the same wording); default all subjects of the table.
        seed: of the choice of neighbours.

    Raises:
        UsageError: an example of another task, or with shots.
    """
    allowed = None if known is None else {_key(e) for e in known}
    out = []
    for example in examples:
        if example.task != "facts" or example.meta.get("shots") != 0:
            raise UsageError("records are made of examples of the task 'facts' with shots=0")
        table = relation(example.meta["relation"])
        about, wording = example.meta["subject"], int(example.meta["template"])
        rewrite = Rewrite.of(subject, example)
        prompts = (_ask(subject, t, about)[0] for i, t in enumerate(table.templates) if i != wording)
        name = f"{table.name}: {about}"
        rng = np.random.default_rng(stable_seed("neighbours", name, wording, seed))
        chosen: list[Neighbour] = []
        for other in _ordered(table, about, rng):
            if len(chosen) == neighbours:
                break
            if allowed is not None and (table.name, other, wording) not in allowed:
                continue
            ids, true = _ask(subject, table.wordings[wording], other, table.facts[other])
            if divergence(true, rewrite.target) is not None:
                chosen.append(Neighbour(ids, true))
        out.append(EditRecord(rewrite, tuple(prompts), tuple(chosen), name=name, relation=table.name))
    return out


def _key(example: Example) -> tuple[str, str, int]:
    return example.meta["relation"], example.meta["subject"], int(example.meta["template"])


def _ordered(table: Relation, about: str, rng: np.random.Generator) -> list[str]:
    """Other subjects in random order, those with the same object first."""
    others = [s for s in table.facts if s != about]
    mixed = [others[i] for i in rng.permutation(len(others))]
    return sorted(mixed, key=lambda s: table.facts[s] != table.facts[about])


def _ask(subject: CausalLM, template: str, about: str, answer: str = "") -> tuple[Ids, Ids]:
    text = worded(template, about)
    prompt = subject.tokens.encode(text)
    return prompt.ids, answer_after(subject.tokens, prompt, text, " " + answer) if answer else ()
