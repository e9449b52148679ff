"""Knowledge conflicts: what stands in the context against what the weights hold.

After Xie et al. (ICLR 2024, arXiv 2305.13300), with facts and wordings of this package: a fact's other object is stated
in front of the question, alone, beside statements of the true one in either order, in unequal amounts, and with
statements about other subjects. The answer is the memory's, the foil the context's; `interp.measure.conflict` counts
which of them a model gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, get_args

import numpy as np

from interp.errors import UsageError
from interp.models.tokens import Tokens
from interp.tasks.base import Example, Piece, Redraw, Task, assemble, continuations, listed, whole_number
from interp.tasks.facts import (
    Relation,
    common_prefix,
    last_word,
    relation,
    shared_start,
    surface,
    worded,
    wording_pieces,
)
from interp.tasks.fictional import named
from interp.tasks.pairs import differs_within, in_turn

Order = Literal["memory_first", "counter_first", "both"]


class Conflict(Task):
    """A fact asked for behind statements that contradict it, support it, or have nothing to do with it.

    Statements are the relation's other wordings; those of one side differ in wording, and those of both sides share
    them, so that sides differ in the object alone. Spans: `evidence` (for the memory's answer, with `value` left out,
    since nothing has to be copied), `counter_evidence` with `counter_value`, `irrelevant`, `query`, `subject`. The twin
    `needle_drop` states the counterfactual of another subject, so that nothing contradicts the memory.

    Args:
        counter: statements of the wrong object.
        memory: statements of the right one.
        irrelevant: statements about other subjects, with objects that are not asked about, in front.
        order: which side comes first where both are there; `both` takes turns.
        relations: of `interp.tasks.fictional.named()`; default all.
    """

    name = "conflict"
    source = "facts compiled for this project; after Xie et al. (arXiv 2305.13300)"

    def __init__(
        self,
        counter: int = 1,
        memory: int = 0,
        irrelevant: int = 0,
        order: Order = "both",
        relations: str | Sequence[str] | None = None,
        n: int = 64,
        seed: int = 0,
    ):
        self.counter = whole_number(self.name, "counter", counter, 1)
        self.memory = whole_number(self.name, "memory", memory, 0)
        self.irrelevant = whole_number(self.name, "irrelevant", irrelevant, 0)
        if order not in get_args(Order):
            raise UsageError(f"task conflict: order is {order!r}; take of {', '.join(get_args(Order))}")
        self.order = order
        chosen = list(named()) if relations is None else listed(self.name, "relations", relations)
        self.relations = [relation(r) for r in dict.fromkeys(chosen)]
        for table in self.relations:
            most = min(len(table.wordings) - 1, len(table.objects) - 2)
            if max(counter, memory, irrelevant) > most:
                raise UsageError(
                    f"task conflict: {max(counter, memory, irrelevant)} statements of one sort, and relation "
                    f"{table.name} has wordings and answers for {most}"
                )
        super().__init__(
            n=n,
            seed=seed,
            counter=counter,
            memory=memory,
            irrelevant=irrelevant,
            order=order,
            relations=chosen,
        )

    def make(self, index: int, rng: np.random.Generator, tokens: Tokens) -> Example:
        table = self.relations[in_turn(index, len(self.relations), self.name, self.seed, "relation")]
        subjects = [str(s) for s in rng.permutation(list(table.facts))]
        about = next(s for s in subjects if not surface(s, table.facts[s]))
        false, apart = rival(table, about, subjects)
        if len(apart) <= self.irrelevant:
            raise Redraw("too few subjects have other objects")
        wordings = [int(w) for w in rng.permutation(len(table.wordings))]
        first = (
            self.order == "memory_first"
            if self.order != "both"
            else bool(in_turn(index, 2, self.name, self.seed, "order"))
        )

        def told_of(of: str) -> Example:
            return self.ask(tokens, table, wordings, about, false, of, apart, first)

        clean = told_of(about)
        for other in apart[self.irrelevant :]:
            twin = told_of(other)
            if differs_within(twin, clean, "counter_evidence"):
                return replace(clean, corrupt={"needle_drop": twin})
        return clean

    def ask(
        self,
        tokens: Tokens,
        table: Relation,
        wordings: Sequence[int],
        about: str,
        false: str,
        of: str,
        others: Sequence[str],
        memory_first: bool,
    ) -> Example:
        """A question about a given fact, without a twin.

        Args:
            wordings: numbers of the relation's wordings: the one that asks, then those of the statements.
            about: the subject that is asked about.
            false: the object that the context has.
            of: whose object it is said to be: `about`, or another subject.
            others: subjects of the irrelevant statements, as many or more.
            memory_first: whether what supports the memory stands in front, where there is such a statement.

        Raises:
            Redraw: it cannot be asked of this tokenizer.
        """
        query, *rest = wordings
        true = table.facts[about]
        pieces: list[Piece] = []
        for i, other in enumerate(others[: self.irrelevant]):
            words = worded(table.wordings[rest[i]], other)
            pieces += [Piece(f"{words} {table.facts[other]}.", "irrelevant", i), Piece("\n")]
        memory = [
            [Piece(f"{worded(table.wordings[rest[i]], about)} {true}.", "evidence", i), Piece("\n")]
            for i in range(self.memory)
        ]
        counter = [
            [
                Piece(worded(table.wordings[rest[i]], of), None, i, "counter_evidence"),
                Piece(f" {false}", "counter_value", i, "counter_evidence"),
                Piece(".", None, i, "counter_evidence"),
                Piece("\n"),
            ]
            for i in range(self.counter)
        ]
        for side in (memory, counter) if memory_first else (counter, memory):
            pieces += [p for statement in side for p in statement]
        pieces += [Piece(p.text, p.role, 0, "query") for p in wording_pieces(table.wordings[query], about)]
        also = table.others.get(about, ())
        example = questioned(self.name, tokens, pieces, table.wordings[query], (true, false, *also), about)
        return replace(
            example,
            group=f"{table.name}: {about}",
            meta={
                "relation": table.name,
                "subject": about,
                "memory_answer": true,
                "context_answer": false,
                "counter": self.counter if of == about else 0,
                "memory": self.memory,
                "irrelevant": self.irrelevant,
                "first": "memory" if memory_first and self.memory else "counter",
                "template": query,
                "score_at": common_prefix((example.answer_ids, example.foil_ids)),
            },
        )


def questioned(
    task: str, tokens: Tokens, pieces: Sequence[Piece], wording: str, objects: Sequence[str], about: str
) -> Example:
    """A question to which one object is the memory's answer and another the context's.

    Args:
        pieces: the context and, last, the question.
        wording: of the question.
        objects: the memory's, the context's, and further right ones, any of which counts as the memory's.
        about: the subject.

    Raises:
        Redraw: behind the question one answer begins the other, or is cut into other tokens.
    """
    prompt, answer, spans, text = assemble(tokens, pieces, f" {objects[0]}")
    ours, theirs, *more = continuations(tokens, last_word(wording), [f" {x}" for x in objects])
    if answer != ours or shared_start(ours, theirs) == min(len(ours), len(theirs)):
        raise Redraw("the answers cannot be told apart behind the question")
    return Example(
        task=task,
        ids=prompt.ids,
        answer_ids=answer,
        text=text,
        offsets=prompt.offsets,
        spans=spans,
        alternatives=tuple(m for m in more if m != theirs),
        foil_ids=theirs,
        candidates=(answer, theirs),
        chance=0.5,
        cluster=about,
    )


def rival(table: Relation, about: str, subjects: Sequence[str]) -> tuple[str, list[str]]:
    """What a context can have in place of a subject's object: the first other object of `subjects`, in their order.

    Returns:
        the object, and those of the subjects that have to do with neither: their objects are not in question.
    """
    told = set(table.answers(about))
    false = next(
        table.facts[s]
        for s in subjects
        if not told & set(table.answers(s)) and not surface(about, table.facts[s])
    )
    return false, [s for s in subjects if s != about and not {*told, false} & set(table.answers(s))]
