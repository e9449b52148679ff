"""An Example from pieces: prompt, answer, closed set of answers, foil, and twins that are worded otherwise.

What tasks have in common whose prompt is written down piece by piece. All that the contract asks for is seen to here,
so that a task says what it states and asks and no more; a draw that cannot be asked with a tokenizer is a `Redraw`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from interp.models.tokens import Tokens
from interp.tasks.base import Example, Ids, Piece, Redraw, answer_after, continuations, token_spans
from interp.tasks.pairs import aligned, digest
from interp.tasks.recall import apart, stands_once


@dataclass(frozen=True)
class Asked:
    """A prompt in pieces, and its right answer without the space in front of it.

    Attributes:
        pieces: the whole prompt; those of the question have it as `within="question"`.
        answer: one of the options.
        options: a closed set of answers of this prompt's own; empty for that of the clean prompt.
        foil: the wrong answer of the logit difference; empty for the first option that differs from the answer where
            all options part ways (in a twin: the clean prompt's answer, where that is another one).
    """

    pieces: tuple[Piece, ...]
    answer: str
    options: tuple[str, ...] = ()
    foil: str = ""


def compose(
    name: str,
    tokens: Tokens,
    clean: Asked,
    twins: Mapping[str, Asked] | None = None,
    *,
    cluster: str,
    alternatives: Sequence[str] = (),
    meta: Mapping[str, Any] | None = None,
    copies: bool = False,
) -> Example:
    """The example that a prompt makes, with its twins.

    Chance is one over the number of options. `group` is everything before the question, so that questions about one
    context share it. `meta` gets the prompt's `length`, and `distance` from the value of item 0 to the last token.

    Args:
        name: of the task.
        clean: the prompt; its options must be given, the answer among them.
        twins: by kind. They must have as many tokens as the clean prompt, and differ inside declared spans only.
        cluster: unit of resampling.
        alternatives: other right answers.
        copies: the answer has to stand in the prompt as the value of item 0, and nowhere outside declared spans.

    Raises:
        Redraw: with this tokenizer a twin is not aligned, an answer merges with the prompt, or two options are one.
    """
    ids = dict(zip(clean.options, _ids(tokens, clean, clean.options), strict=True))
    example = _one(name, tokens, clean, ids, cluster)
    others = tuple(ids[a] if a in ids else _ids(tokens, clean, [a])[0] for a in alternatives)
    values = example.spans_of("value", 0)
    found: dict[str, Any] = {"length": len(example.ids)}
    if values:
        found["distance"] = len(example.ids) - 1 - values[-1].start
    example = replace(example, alternatives=others, meta={**found, **(meta or {})})
    if copies:
        stands_once(example)
    made = {}
    for kind, twin in (twins or {}).items():
        options = twin.options or clean.options
        foil = twin.foil or (clean.answer if twin.answer != clean.answer and clean.answer in options else "")
        # Options stand behind the same word in most twins; that they do so whole was seen in the clean prompt.
        same = tuple(options) == tuple(clean.options) and _last_word(twin) == _last_word(clean)
        every = ids if same else dict(zip(options, _ids(tokens, twin, options), strict=True))
        made[kind] = _one(name, tokens, replace(twin, foil=foil), every, cluster, tokenised=same)
    return replace(example, corrupt=aligned(example, made))


def _one(
    name: str, tokens: Tokens, asked: Asked, every: Mapping[str, Ids], cluster: str, tokenised: bool = False
) -> Example:
    """An example without twins; `tokenised` where its options are known to follow the prompt as they are given."""
    if asked.answer not in every:
        raise ValueError(f"{name}: the answer '{asked.answer}' is not among the options {list(every)}")
    text, answer = "".join(p.text for p in asked.pieces), every[asked.answer]
    prompt = tokens.encode(text)
    if not tokenised and answer_after(tokens, prompt, text, f" {asked.answer}") != answer:
        raise Redraw("the answer tokenises differently after the stem and after the prompt")
    if len(set(every.values())) < len(every):
        raise Redraw("two options have the same tokens")
    foil = asked.foil or (apart(every, asked.answer) if len(every) > 1 else "")
    return Example(
        task=name,
        ids=prompt.ids,
        answer_ids=answer,
        text=text,
        offsets=prompt.offsets,
        spans=token_spans(prompt, asked.pieces),
        foil_ids=every[foil] if foil else (),
        candidates=(answer, *(ids for option, ids in every.items() if option != asked.answer)),
        chance=1 / len(every),
        cluster=cluster,
        group=digest(_context(asked, text)),
    )


def _ids(tokens: Tokens, asked: Asked, options: Sequence[str]) -> list[Ids]:
    """Ids of options behind the last word of the prompt."""
    return continuations(tokens, _last_word(asked), [f" {o}" for o in options])


def _last_word(asked: Asked) -> str:
    return "".join(p.text for p in asked.pieces[-2:]).split(" ")[-1]


def _context(asked: Asked, text: str) -> str:
    at = 0
    for piece in asked.pieces:
        if piece.within == "question" or piece.role == "question":
            return text[:at]
        at += len(piece.text)
    return text
