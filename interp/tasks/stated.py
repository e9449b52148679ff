"""One prompt in a user's own words: its subject is marked, and another subject can take its place."""

from __future__ import annotations

from dataclasses import replace

from interp.errors import UsageError
from interp.models.tokens import Tokens
from interp.tasks.base import Example, Ids, Piece, Redraw, answer_after, token_spans


def stated(tokens: Tokens, prompt: str, about: str, other: str | None = None) -> Example:
    """A prompt as an example without an answer.

    Args:
        prompt: ends where the answer follows; it names its subject once, or has `{}` in its place.
        about: the subject.
        other: another subject of as many tokens, whose prompt becomes the corrupt twin `subject_swap`.

    Raises:
        UsageError: the prompt does not have the subject once, or the other subject gives no twin.

    Example:
        stated(model.tokens, "The Eiffel Tower is in the city of", "Eiffel Tower", other="Brandenburg Gate")
    """
    before, after = _around(prompt, about)
    clean = _example(tokens, before, about, after)
    if other is None:
        return clean
    twin = _example(tokens, before, other, after)
    if len(twin.ids) != len(clean.ids) or twin.spans != clean.spans or twin.ids == clean.ids:
        sizes = [len(e.spans[0]) for e in (clean, twin)]
        raise UsageError(
            f"'{about}' has {sizes[0]} tokens in this prompt and '{other}' {sizes[1]}: take another subject of as many"
        )
    return replace(clean, corrupt={"subject_swap": twin})


def answered(tokens: Tokens, example: Example, answer: str) -> Ids:
    """Ids of an answer behind an example's prompt, with or without the space before it.

    Raises:
        UsageError: the answer is empty, or prompt and answer merge into one token.
    """
    if not answer.strip():
        raise UsageError("the answer is empty")
    text = example.text or ""
    try:
        return answer_after(tokens, tokens.encode(text), text, " " + answer.strip())
    except Redraw as why:
        raise UsageError(f"'{text}' cannot be answered with '{answer}': {why}") from why


def _around(prompt: str, about: str) -> tuple[str, str]:
    mark = "{}" if "{}" in prompt else about
    if not about.strip() or prompt.count(mark) != 1:
        raise UsageError(
            f"the prompt names '{about}' {prompt.count(mark) if mark else 0} times: name the subject once, or write "
            "{} in its place"
        )
    before, _, after = prompt.partition(mark)
    return before, after


def _example(tokens: Tokens, before: str, about: str, after: str) -> Example:
    gap = " " if before.endswith(" ") else ""
    pieces = [Piece(before.removesuffix(" ")), Piece(gap + about, "subject", 0), Piece(after)]
    pieces = [p for p in pieces if p.text]
    text = "".join(p.text for p in pieces)
    prompt = tokens.encode(text)
    return Example(
        "prompt",
        prompt.ids,
        (),
        text=text,
        offsets=prompt.offsets,
        spans=token_spans(prompt, pieces),
        cluster=about,
    )
