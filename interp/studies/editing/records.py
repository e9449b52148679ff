"""Which facts are edited: those that the model knows, dealt out over relations, no subject twice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from interp.errors import NoAcceptedExample
from interp.measure.edit_records import relation_records
from interp.measure.edits import EditRecord
from interp.measure.metrics import divergence
from interp.measure.outcomes import Progress, evaluate
from interp.models.subject import CausalLM
from interp.studies.editing.spec import EditingSpec
from interp.tasks.base import Example, stable_seed
from interp.tasks.registry import task

ALONE, GROUP, GIVEN = "record", "group", "record, given this edit"
"""What intervals resample: records that each have an edit, groups that share one, records of the one edit there is."""


@dataclass(frozen=True)
class Chosen:
    """Facts that something is chosen on, and facts that are edited.

    Attributes:
        train, edit: examples.
        train_records, edit_records: the edits asked for, in the same order.
    """

    train: list[Example]
    edit: list[Example]
    train_records: list[EditRecord]
    edit_records: list[EditRecord]

    def marked(self, scores: pd.DataFrame) -> pd.DataFrame:
        """Scores of the edited facts, with what they are judged by.

        Returns:
            the rows with same_object (of neighbours: whether their true answer is that of the edited fact), shared (of
            neighbours: a train fact has the same, so that layers were chosen on it), unit (what intervals are over) and
            cluster (which of them: a record, or the records that share an edit).
        """
        trained = {n.ids for r in self.train_records for n in r.neighbours}
        number = {r.name: i for i, r in enumerate(self.edit_records)}
        same, shared = [], []
        asked = [(r.prompts(), r.rewrite.true) for r in self.edit_records]
        for name, at in zip(scores["record"], scores["prompt"], strict=True):
            prompts, true = asked[number[name]]
            kind, ids, own = prompts[at]
            same.append(kind == "neighbour" and own == true)
            shared.append(kind == "neighbour" and ids in trained)
        size = scores["at_once"].to_numpy()
        group = scores["record"].map(number).to_numpy() // size
        unit = np.where(size == 1, ALONE, np.where(size < len(number), GROUP, GIVEN))
        cluster = np.where(unit == GROUP, [f"group {g}" for g in group], scores["record"])
        return scores.assign(same_object=same, shared=shared, unit=unit, cluster=cluster)

    def table(self, subject: CausalLM) -> pd.DataFrame:
        """What is asked for, in words."""
        rows = [
            {
                "record": r.name,
                "relation": r.relation,
                "split": split,
                "text": r.rewrite.text,
                "true": subject.tokens.decode(r.rewrite.true).strip(),
                "paraphrases": len(r.paraphrases),
                "neighbours": len(r.neighbours),
            }
            for split, records in (("train", self.train_records), ("edit", self.edit_records))
            for r in records
        ]
        return pd.DataFrame(rows)


def questions(subject: CausalLM, spec: EditingSpec, relation: str) -> list[Example]:
    """Facts of a relation, asked in the wording that is edited."""
    found = task("facts", relations=[relation], templates=[spec.wording], seed=spec.seed)
    return found.examples(subject)[: spec.ask]


def answered(subject: CausalLM, examples: Sequence[Example], report: Progress | None) -> pd.DataFrame:
    """Which facts the model knows: relation, subject, known (the greedy answer is right)."""
    right = evaluate(subject, examples, {"": None}, progress=report).values[""]["accuracy"] > 0.5
    about = [{"relation": e.meta["relation"], "subject": e.meta["subject"]} for e in examples]
    return pd.DataFrame(about).assign(known=right)


def choose(subject: CausalLM, spec: EditingSpec, known: Sequence[Example]) -> Chosen:
    """Deal the known facts out, one of each relation in turn.

    Left out are facts whose question gives the answer away, whose new answer begins the true one or the other way
    around, or that have no twin to corrupt them with.

    Args:
        known: right answers, in the order of the task.

    Raises:
        NoAcceptedExample: fewer than two facts for each split.
    """
    rng = np.random.default_rng(stable_seed("editing", spec.seed))
    by_relation: dict[str, list[Example]] = {}
    for e in known:
        if not e.meta["surface"] and divergence(e.foil_ids, e.answer_ids) is not None and e.corrupt:
            by_relation.setdefault(e.meta["relation"], []).append(e)
    decks = [[deck[i] for i in rng.permutation(len(deck))] for deck in by_relation.values()]
    taken: dict[str, Example] = {}
    while any(decks) and len(taken) < spec.n + spec.train:
        for deck in decks:
            while deck and deck[-1].meta["subject"] in taken:
                deck.pop()
            if deck and len(taken) < spec.n + spec.train:
                e = deck.pop()
                taken[e.meta["subject"]] = e
    drawn = list(taken.values())
    # Where there are too few, each split keeps its share.
    train = max(2, min(spec.train, round(len(drawn) * spec.train / (spec.n + spec.train))))
    if len(drawn) < train + 2:
        raise NoAcceptedExample(
            f"{subject.name} knows {len(known)} of the facts that were asked, of which {len(drawn)} can be edited; "
            "ask more with --set ask=none, or other relations"
        )
    order = rng.permutation(len(drawn))
    halves = [drawn[i] for i in sorted(order[:train])], [drawn[i] for i in sorted(order[train:])]
    # A neighbour that is edited itself would be counted against the others.
    rest = [e for e in known if e.meta["subject"] not in taken]
    records = [
        relation_records(subject, h, neighbours=spec.neighbours, known=rest, seed=spec.seed) for h in halves
    ]
    kept = [
        [(e, r) for e, r in zip(h, rs, strict=True) if r.neighbours and r.paraphrases]
        for h, rs in zip(halves, records, strict=True)
    ]
    if any(len(k) < 2 for k in kept):
        raise NoAcceptedExample(
            "fewer than two facts have known neighbours that nobody edits; ask more facts"
        )
    return Chosen(*([e for e, _ in k] for k in kept), *([r for _, r in k] for k in kept))
