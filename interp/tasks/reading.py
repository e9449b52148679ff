"""Extractive question answering: short passages written for this project, and questions whose answers stand in them.

Solved questions about other passages come first (`shots`), since a small model otherwise answers in sentences. Each
answer is a stretch of the passage, so heads that copy it can be scored here too; outputs are best judged by F1
(`interp.measure.generation`). The passages (`data/reading.txt`) have one sentence a line, so that none is searched for.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from typing import ClassVar

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
    stable_seed,
    token_spans,
    whole_number,
)
from interp.tasks.haystack import Ruler
from interp.tasks.recall import apart


@dataclass(frozen=True)
class Asked:
    """A question about a passage, the kind of its answer, and the answer as it stands there."""

    question: str
    kind: str
    answer: str


@dataclass(frozen=True)
class Passage:
    """A short text with its questions."""

    name: str
    sentences: tuple[str, ...]
    asked: tuple[Asked, ...]

    def holds(self, answer: str) -> int:
        """Number of the one sentence in which an answer stands, behind a space."""
        (at,) = (i for i, s in enumerate(self.sentences) if re.search(rf" {re.escape(answer)}\b", s))
        return at


@cache
def passages() -> tuple[Passage, ...]:
    """Every passage."""
    text = (files("interp.tasks") / "data" / "reading.txt").read_text("utf-8")
    out = []
    for block in text.strip().split("\n\n"):
        head, *lines = block.split("\n")
        questions = [line[2:].split(" | ") for line in lines if line.startswith("? ")]
        sentences = tuple(line for line in lines if not line.startswith("? "))
        out.append(Passage(head[2:], sentences, tuple(Asked(q, k, a) for q, k, a in questions)))
    return tuple(out)


class Reading(Task):
    """A question about a passage, whose answer is a stretch of it.

    Args:
        shots: solved questions about other passages in front.
        n: so many questions, in a random order; None or `all` for every one.
    """

    name = "reading"
    source = "passages and questions written for this project; metric after SQuAD (arXiv 1606.05250)"
    copies: ClassVar[bool] = True

    def __init__(self, shots: int = 2, n: int | str | None = 64, seed: int = 0):
        self.shots = whole_number(self.name, "shots", shots, 0)
        every = [(p, q) for p, passage in enumerate(passages()) for q in range(len(passage.asked))]
        if shots >= len(passages()):
            raise UsageError(
                f"task reading: {shots} shots, but there are {len(passages())} passages; take fewer"
            )
        if n is None or n == "all":
            n = len(every)
        elif whole_number(self.name, "n", n, 1) > len(every):
            raise UsageError(
                f"task reading: n is {n}, and there are {len(every)} questions; take fewer, or 'all'"
            )
        # One order for every n, so that more examples keep the first ones.
        order = np.random.default_rng(stable_seed(self.name, seed)).permutation(len(every))
        self._order = [every[i] for i in order]
        super().__init__(n=int(n), seed=seed, shots=shots)
        self._rulers: dict[str, Ruler] = {}

    def make(self, index: int, rng: np.random.Generator, tokens: Tokens) -> Example:
        if tokens.fingerprint not in self._rulers:
            self._rulers[tokens.fingerprint] = Ruler(tokens)
        number, which = self._order[index]
        passage = passages()[number]
        lead = self._lead(number, rng)
        asked = passage.asked[which]
        options = _options(tokens, [asked.answer, *(a.answer for a in passage.asked if a != asked)])
        pieces = [*lead, *_posed(passage, asked)]
        prompt, answer, spans, text = assemble(tokens, pieces, " " + asked.answer)
        example = Example(
            task=self.name,
            ids=prompt.ids,
            answer_ids=answer,
            text=text,
            offsets=prompt.offsets,
            spans=spans,
            foil_ids=options[apart(options, asked.answer)],
            candidates=tuple(options.values()),
            chance=1 / len(options),
            cluster=passage.name,
            group=passage.name,
            meta={
                "passage": passage.name,
                "kind": asked.kind,
                "question": asked.question,
                "answer": asked.answer,
                "shots": self.shots,
                "length": len(prompt),
            },
        )
        (value,) = example.spans_of("value", 0)
        if answer != options[asked.answer] or prompt.ids[value.start : value.end] != answer:
            raise Redraw("the answer tokenises differently in the passage, or after the question")
        corrupt = {"needle_drop": self._drop(tokens, example, lead, passage, asked, rng)}
        for kind, twin in (
            ("value_swap", self._value_swap(tokens, example, lead, passage, asked, rng)),
            ("query_swap", self._query_swap(tokens, example, lead, passage, options)),
        ):
            if twin is not None:
                corrupt[kind] = twin
        return replace(example, corrupt=corrupt)

    def _lead(self, number: int, rng: np.random.Generator) -> list[Piece]:
        out = []
        others = [i for i in rng.permutation(len(passages())) if i != number]
        for i in others[: self.shots]:
            shown = passages()[i]
            solved = shown.asked[rng.integers(len(shown.asked))]
            text = "".join(p.text for p in _posed(shown, solved))
            out.append(Piece(f"{text} {solved.answer}\n\n"))
        return out

    def _drop(
        self,
        tokens: Tokens,
        example: Example,
        lead: list[Piece],
        passage: Passage,
        asked: Asked,
        rng: np.random.Generator,
    ) -> Example:
        """Fillers stand where the sentence with the answer stood."""
        (evidence,) = example.spans_of("evidence", 0)
        at = passage.holds(asked.answer)
        for _ in range(8):
            texts = self._rulers[tokens.fingerprint].fill(len(evidence), rng)
            if texts is None:
                break
            sentences = (*passage.sentences[:at], " ".join(texts), *passage.sentences[at + 1 :])
            twin = _twin(tokens, example, [*lead, *_posed(passage, asked, sentences, dropped=True)])
            if twin is not None:
                return twin
        raise Redraw(f"no filler takes the place of a sentence of {len(evidence)} tokens")

    def _value_swap(
        self,
        tokens: Tokens,
        example: Example,
        lead: list[Piece],
        passage: Passage,
        asked: Asked,
        rng: np.random.Generator,
    ) -> Example | None:
        """The passage holds another answer of the same kind and length; None where there is none."""
        pool = {a.answer for p in passages() for a in p.asked if a.kind == asked.kind}
        pool = {a for a in pool if not any(a in s for s in passage.sentences)}
        at = passage.holds(asked.answer)
        for answer in rng.permutation(sorted(pool))[:8]:
            ids = continuations(tokens, "Answer:", [f" {answer}"])[0]
            if len(ids) != len(example.answer_ids):
                continue
            changed = re.sub(rf" {re.escape(asked.answer)}\b", f" {answer}", passage.sentences[at], count=1)
            sentences = (*passage.sentences[:at], changed, *passage.sentences[at + 1 :])
            now = replace(asked, answer=str(answer))
            others = tuple(now if a == asked else a for a in passage.asked)
            changed_passage = Passage(passage.name, sentences, others)
            twin = _twin(tokens, example, [*lead, *_posed(changed_passage, now)])
            if twin is not None:
                return _answered(twin, ids, example)
        return None

    @staticmethod
    def _query_swap(
        tokens: Tokens, example: Example, lead: list[Piece], passage: Passage, options: dict[str, Ids]
    ) -> Example | None:
        """Another question about the passage, as long in tokens; None where there is none."""
        for other in passage.asked:
            ids = options[other.answer]
            if ids == example.answer_ids:
                continue
            twin = _twin(tokens, example, [*lead, *_posed(passage, other)])
            if twin is not None:
                return _answered(twin, ids, example)
        return None


def _posed(
    passage: Passage, asked: Asked, sentences: Sequence[str] | None = None, dropped: bool = False
) -> list[Piece]:
    """Passage, question and the stem of the answer, with every answer marked where it stands.

    Args:
        passage: what is asked about; one of its questions is `asked`.
        sentences: what stands in it now, where that is something else.
        dropped: fillers stand in place of the sentence with the answer.
    """
    at = passage.holds(asked.answer)
    others = {a.answer: i for i, a in enumerate((a for a in passage.asked if a != asked), start=1)}
    out = [Piece("Passage:")]
    for i, sentence in enumerate(sentences or passage.sentences):
        if i == at and dropped:
            out.append(Piece(f" {sentence}", "filler", 0))
        elif i == at:
            before, own, after = _split(sentence, [asked.answer])
            out += [
                Piece(before, None, 0, "evidence"),
                Piece(own, "value", 0, "evidence"),
                Piece(after, None, 0, "evidence"),
            ]
        else:
            for part in _split(sentence, others):
                item = others.get(part[1:])
                out.append(Piece(part, "distractor_value", item) if item else Piece(part))
    question = Piece(f"Question: {asked.question}", "query", 0, "question")
    return [*out, Piece("\n"), question, Piece("\nAnswer:")]


def _split(sentence: str, answers: Iterable[str]) -> list[str]:
    """A sentence, behind a space, at the answers in it, each with the space before it."""
    marks = "|".join(re.escape(a) for a in sorted(answers, key=len, reverse=True))
    return re.split(rf"( (?:{marks})\b)", f" {sentence}")


def _options(tokens: Tokens, answers: Sequence[str]) -> dict[str, Ids]:
    ids = continuations(tokens, "Answer:", [f" {a}" for a in answers])
    return dict(zip(answers, ids, strict=True))


def _answered(twin: Example, ids: Ids, clean: Example) -> Example:
    """A twin with its right answer; the clean one, which stays among the candidates, is its foil."""
    options = (ids, *(c for c in clean.candidates if c != ids))
    return replace(
        twin, answer_ids=ids, candidates=options, foil_ids=clean.answer_ids, chance=1 / len(options)
    )


def _twin(tokens: Tokens, example: Example, pieces: Sequence[Piece]) -> Example | None:
    """The example over other pieces; None where it differs outside the declared spans."""
    text = "".join(p.text for p in pieces)
    prompt = tokens.encode(text)
    declared = {i for s in example.spans if s.role != "question" for i in range(s.start, s.end)}
    if len(prompt) != len(example.ids) or any(
        a != b and i not in declared for i, (a, b) in enumerate(zip(prompt.ids, example.ids, strict=True))
    ):
        return None
    return replace(
        example, ids=prompt.ids, text=text, offsets=prompt.offsets, spans=token_spans(prompt, pieces)
    )
