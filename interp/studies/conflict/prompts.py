"""Prompts of the study: one question about one fact, without a context, behind each setting, and as controls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from interp.errors import NoAcceptedExample
from interp.measure.conflict import MEMORY, taken
from interp.measure.priors import BINS
from interp.measure.scenarios import token_rank
from interp.models.cache import Progress
from interp.models.subject import CausalLM
from interp.models.tokens import Tokens
from interp.studies.conflict.spec import ConflictSpec, Setting
from interp.tasks.base import Example, Piece, Redraw, continuations, stable_seed
from interp.tasks.conflict import Conflict, questioned, rival
from interp.tasks.facts import Relation, last_word, relation, shared_start, surface, worded, wording_pieces
from interp.tasks.fictional import sort_of

TRAIN, TEST = "train", "test"


@dataclass(frozen=True)
class Dispute:
    """A fact, what contradicts it, and the words for both.

    Attributes:
        about: the subject.
        false: the object that the context has.
        wordings: numbers of the relation's wordings: the one that asks, then those of the statements.
        others: subjects that have to do with neither object.
        fictional: two invented subjects of the same sort.
        unlike: an object that is neither.
    """

    relation: str
    about: str
    false: str
    wordings: tuple[int, ...]
    others: tuple[str, ...]
    fictional: tuple[str, str]
    unlike: str

    @property
    def table(self) -> Relation:
        """The relation."""
        return relation(self.relation)

    @property
    def true(self) -> str:
        """The memory's object."""
        return self.table.facts[self.about]

    def behind(self, tokens: Tokens, setting: Setting) -> Example:
        """The question behind statements: answer is the memory's object, foil the context's."""
        task = Conflict(
            setting.counter, setting.memory, setting.irrelevant, setting.order, [self.relation], n=1
        )
        first = setting.order == "memory_first"
        return task.ask(
            tokens, self.table, self.wordings, self.about, self.false, self.about, self.others, first
        )

    def elsewhere(self, tokens: Tokens) -> Example:
        """The single statement, of another subject: nothing contradicts the memory."""
        task = Conflict(1, relations=[self.relation], n=1)
        return task.ask(
            tokens, self.table, self.wordings, self.about, self.false, self.others[0], self.others[1:], False
        )

    def closed(self, tokens: Tokens) -> Example:
        """The question alone."""
        return self._plain(tokens, [], self.about, self.true, self.false, "closed")

    def told(self, tokens: Tokens) -> Example:
        """What the context says of one of two invented subjects: no memory has it, and both have to be told apart."""
        pieces: list[Piece] = []
        said = self.table.wordings[self.wordings[1]]
        asked, other = self.fictional
        for about, value, role in ((other, self.unlike, "irrelevant"), (asked, self.false, "counter_value")):
            within = "counter_evidence" if about == asked else None
            pieces += [
                Piece(worded(said, about), None, 0, within),
                Piece(f" {value}", role, 0, within),
                Piece(".", None, 0, within),
                Piece("\n"),
            ]
        # Which of them comes last tells nothing.
        if stable_seed("told", self.relation, self.about)[0] % 2:
            pieces = pieces[4:] + pieces[:4]
        return self._plain(tokens, pieces, asked, self.false, self.unlike, "told")

    def _plain(
        self, tokens: Tokens, before: Sequence[Piece], about: str, right: str, wrong: str, name: str
    ) -> Example:
        template = self.table.wordings[self.wordings[0]]
        pieces = [*before, *(Piece(p.text, p.role, 0, "query") for p in wording_pieces(template, about))]
        also = self.table.answers(about)[1:] if about == self.about else ()
        found = questioned(name, tokens, pieces, template, (right, wrong, *also), self.about)
        meta = {"relation": self.relation, "subject": self.about, "template": self.wordings[0]}
        return replace(found, meta=meta)


def disputes(tokens: Tokens, spec: ConflictSpec) -> list[Dispute]:
    """Facts of every relation in some wordings each, with what contradicts them; only those that can always be asked.

    The token that is judged, where answer and foil part, tells the answer from every wrong object of the relation.

    What a subject is called in its statements, and the object that contradicts it, are drawn once: settings differ in
    what stands in front of the question alone.
    """
    out: list[Dispute] = []
    for name in spec.relations:
        table = relation(name)
        rng = np.random.default_rng(stable_seed("conflict study", name, spec.seed))
        order = [str(s) for s in rng.permutation(list(table.facts))]
        asked = 0
        for about in order:
            if asked == spec.ask:
                break
            if surface(about, table.facts[about]):
                continue
            false, others = rival(table, about, [str(s) for s in rng.permutation(order)])
            invented = [str(f) for f in rng.permutation(sort_of(name).fictional)]
            free = [o for o in table.objects if o not in (false, *table.answers(about))]
            if len(others) < 2 or not free:
                continue
            unlike = free[int(rng.integers(len(free)))]
            plain = [f for f in invented if not (surface(f, false) or surface(f, unlike))]
            if len(plain) < 2:
                continue
            wordings = [int(w) for w in rng.permutation(len(table.wordings))]
            found = []
            for turn in range(min(spec.wordings, len(wordings))):
                words = (wordings[turn], *wordings[:turn], *wordings[turn + 1 :])
                dispute = Dispute(name, about, false, words, tuple(others), (plain[0], plain[1]), unlike)
                if _can_be_asked(dispute, tokens, spec):
                    found.append(dispute)
            asked += bool(found)
            out += found
    return out


def _told_apart(dispute: Dispute, example: Example, tokens: Tokens) -> bool:
    """Whether no wrong object of the relation begins as a right answer does, up to the one token that is judged.

    Else a wrong answer would count as the memory's.
    """
    table, at = dispute.table, shared_start(example.answer_ids, example.foil_ids)
    begun, foil = example.answer_ids[:at], example.foil_ids[at]
    right = {a[at] for a in (example.answer_ids, *example.alternatives) if len(a) > at and a[:at] == begun}
    wrong = [f" {o}" for o in table.objects if o not in table.answers(dispute.about)]
    before = last_word(table.wordings[dispute.wordings[0]])
    others = {o[at] for o in continuations(tokens, before, wrong) if len(o) > at and o[:at] == begun}
    return not (right - {foil}) & others


def _can_be_asked(dispute: Dispute, tokens: Tokens, spec: ConflictSpec) -> bool:
    try:
        for setting in spec.settings:
            dispute.behind(tokens, setting)
        for make in (dispute.told, dispute.elsewhere):
            make(tokens)
        return _told_apart(dispute, dispute.closed(tokens), tokens)
    except Redraw:
        return False


def census(
    subject: CausalLM, spec: ConflictSpec, every: Sequence[Dispute], progress: Progress | None = None
) -> pd.DataFrame:
    """What the model says of each question without a context, and which facts the study goes on with.

    Returns:
        one row a question: relation, subject, template, memory_answer, context_answer, side, margin (nats), known (it
        gives the memory's answer), popularity (a proxy: token ranks), third (of popularity, among the relation's
        subjects: low, middle, high), split (`train`, `test`, or `` where it is not taken: unknown, known in an earlier
        wording, or more than were asked for).

    Raises:
        NoAcceptedExample: too few facts are known.
    """
    tokens = subject.tokens
    found = taken(subject, [d.closed(tokens) for d in every], {"": None}, progress=progress)
    out = pd.DataFrame(
        {
            "relation": [d.relation for d in every],
            "subject": [d.about for d in every],
            "template": [d.wordings[0] for d in every],
            "memory_answer": [d.true for d in every],
            "context_answer": [d.false for d in every],
            "side": list(found.sides[:, 0]),
            "margin": found.margin[:, 0],
        }
    )
    out["known"] = out["side"] == MEMORY
    out["popularity"] = np.nan
    out["third"] = ""
    for _, part in out.groupby("relation", sort=False):
        ranks = token_rank(tokens, list(dict.fromkeys(part["subject"])))
        out.loc[part.index, "popularity"] = part["subject"].map(ranks)
        place = pd.Series(ranks).rank(method="first") - 1
        thirds = {s: BINS[int(p) * len(BINS) // len(ranks)] for s, p in place.items()}
        out.loc[part.index, "third"] = part["subject"].map(thirds)
    out["split"] = _splits(out, spec)
    for name in (TRAIN, TEST):
        if (n := int((out["split"] == name).sum())) < 4:
            raise NoAcceptedExample(
                f"{subject.name} knows {int(out['known'].sum())} of {len(out)} questions, which leaves {n} facts to "
                f"{name} on; ask more of them (ask, wordings, relations)"
            )
    return out


def _splits(questions: pd.DataFrame, spec: ConflictSpec) -> pd.Series:
    """Known facts, each in its first known wording: subjects in halves, relations in turn, so many of each half."""
    taken_from = questions if spec.keep_unknown else questions[questions["known"]]
    first = taken_from.drop_duplicates(["relation", "subject"])
    names = sorted(set(first["subject"]))
    rng = np.random.default_rng(stable_seed("conflict split", spec.seed))
    order = rng.permutation(len(names))
    share = spec.train / (spec.train + spec.test)
    trained = {names[i] for i in order[: round(share * len(names))]}
    split = pd.Series("", index=questions.index)
    for name, n, own in (
        (TRAIN, spec.train, first[first["subject"].isin(trained)]),
        (TEST, spec.test, first[~first["subject"].isin(trained)]),
    ):
        turn = own.groupby("relation", sort=False).cumcount()
        split[turn.sort_values(kind="stable").index[:n]] = name
    return split
