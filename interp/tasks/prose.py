"""Natural prose to continue: what a cut costs where nothing should be lost (perplexity off target).

The text is English prose that ships with Python, its own documentation (`pydoc_data.topics`) without grammars, code
and tables, or a text file of the user's. There are no candidates and no foil: the metric is the answer's `nll`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from interp.errors import BrokenData, MissingResource, UsageError
from interp.models.tokens import Tokens, as_tokens
from interp.tasks.base import Example, Redraw, Task, stable_seed, whole_number

_LEAST_WORDS = 12
_LEAST_LETTERS = 0.72
_SECTION = 3000
"""Characters of a section of a user's file, at least: the clusters of such a task."""

_CHARACTERS_PER_TOKEN = 8
"""Enough characters for a token, in text that any tokenizer was made for."""


class Prose(Task):
    """Passages of natural prose: `prompt` tokens to read and the next `answer` tokens to predict.

    Args:
        prompt: tokens of the prompt.
        answer: tokens of the continuation that is scored.
        file: a UTF-8 text file; default Python's own documentation.
    """

    name = "prose"
    source = "Python's documentation (pydoc_data.topics), or a file of the user's"

    def __init__(
        self, prompt: int = 128, answer: int = 64, file: str | None = None, n: int = 16, seed: int = 0
    ):
        whole_number(self.name, "prompt", prompt, 1)
        whole_number(self.name, "answer", answer, 1)
        self.prompt = prompt
        self.answer = answer
        self.file = file
        super().__init__(n=n, seed=seed, prompt=prompt, answer=answer, file=file)
        self._texts = topics() if file is None else sections(Path(file))
        self._data = hashlib.sha256(repr(sorted(self._texts.items())).encode()).hexdigest()[:16]
        self._starts: dict[tuple[str, str], list[int]] = {}

    def config(self) -> dict[str, Any]:
        """What identifies the task; the text is part of it, since it differs between versions of Python."""
        return {**super().config(), "data": self._data}

    def make(self, index: int, rng: np.random.Generator, tokens: Tokens) -> Example:
        long_enough = [t for t in self._texts if self._places(t, tokens)]
        if not long_enough:
            raise UsageError(
                f"task prose: no {'topic' if self.file is None else 'section of ' + self.file} holds "
                f"{self.prompt + self.answer} tokens; take a smaller prompt or answer"
            )
        # Topics take turns, in an order of the seed's own.
        order = np.random.default_rng([self.seed, index // len(long_enough)])
        topic = long_enough[order.permutation(len(long_enough))[index % len(long_enough)]]
        starts = self._places(topic, tokens)
        return self._passage(topic, starts[rng.integers(len(starts))], tokens)

    def _passage(self, topic: str, start: int, tokens: Tokens) -> Example:
        """The passage that starts at a character of a topic."""
        text = self._texts[topic][start : start + (self.prompt + self.answer) * _CHARACTERS_PER_TOKEN]
        whole = tokens.encode(text)
        end = self.prompt + self.answer
        if len(whole) < end:
            raise Redraw(f"fewer than {end} tokens are left")
        text = text[: whole.offsets[self.prompt - 1][1]]
        prompt = tokens.encode(text)
        if prompt.ids != whole.ids[: self.prompt]:
            raise Redraw("the prompt ends inside a word")
        return Example(
            task=self.name,
            ids=prompt.ids,
            answer_ids=whole.ids[self.prompt : end],
            text=text,
            offsets=prompt.offsets,
            chance=1 / tokens.n_vocab,
            cluster=topic,
            group=f"{topic}:{start}",
            meta={"topic": topic, "start": start, "length": self.prompt},
        )

    def _places(self, topic: str, tokens: Tokens) -> list[int]:
        """Character positions of the sentences after which enough tokens are left."""
        key = (tokens.fingerprint, topic)
        if key not in self._starts:
            text = self._texts[topic]
            encoded = tokens.encode(text)
            last = len(encoded) - self.prompt - self.answer
            limit = encoded.offsets[last][0] if last >= 0 else -1
            # Special tokens in front cover nothing: a text that only just fits starts at its start.
            self._starts[key] = [s for s in sentence_starts(text) if s <= limit]
        return self._starts[key]


def unseen(
    source: Any,
    seen: Sequence[Example],
    *,
    prompt: int = 32,
    answer: int = 32,
    n: int = 16,
    file: str | None = None,
    seed: int = 0,
) -> list[Example]:
    """Passages of the same text of which nothing was seen: what was fitted to some passages is measured on these.

    Topics that no seen passage comes from come first, one passage each; where they run out, passages of others which
    share no character with one that was seen. No two overlap. Seeds alone do not keep passages apart: they draw from
    one text.

    Args:
        source: a model, or its tokens.
        seen: examples of `Prose` over the same file, with these tokens; of other tasks nothing is known.
        prompt, answer, file: as for `Prose`.
        n: passages, at most; fewer where no more are left.

    Raises:
        UsageError: nothing is left.
    """
    tokens, task = as_tokens(source), Prose(prompt=prompt, answer=answer, file=file)
    rng = np.random.default_rng(stable_seed("unseen prose", seed))
    covered: dict[str, list[tuple[int, int]]] = {}
    for e in seen:
        covered.setdefault(e.meta["topic"], []).append(_covers(task, e, tokens))
    fresh = sorted(t for t in task._texts if t not in covered)
    rest = sorted(t for t in task._texts if t in covered)
    out: list[Example] = []
    for names in (fresh, rest):
        decks = []
        for at in rng.permutation(len(names)):
            places = task._places(names[at], tokens)
            decks.append((names[at], [places[i] for i in rng.permutation(len(places))]))
        while len(out) < n and any(places for _, places in decks):
            for topic, places in decks:
                while places and len(out) < n:
                    try:
                        e = task._passage(topic, places.pop(), tokens)
                    except Redraw:
                        continue
                    low, high = _covers(task, e, tokens)
                    if all(high <= a or b <= low for a, b in covered.get(topic, ())):
                        covered.setdefault(topic, []).append((low, high))
                        out.append(e)
                        break
    if not out:
        raise UsageError(
            f"task prose: no {prompt + answer} tokens of the text are left beside the {len(seen)} passages that were "
            "seen; take fewer or shorter passages"
        )
    return out


def _covers(task: Prose, e: Example, tokens: Tokens) -> tuple[int, int]:
    """Characters of its topic that a passage covers, answer and all."""
    start, length = int(e.meta["start"]), len(e.ids) + len(e.answer_ids)
    text = task._texts[e.meta["topic"]][start : start + length * _CHARACTERS_PER_TOKEN]
    return start, start + tokens.encode(text).offsets[length - 1][1]


def sentence_starts(text: str) -> list[int]:
    """Character positions at which sentences start.

    >>> sentence_starts("One. Two!\\nThree")
    [0, 5, 10]
    """
    return [0, *(m.end() for m in re.finditer(r"\n+|(?<=[.!?])[ ]+(?=[A-Z])", text))]


@cache
def topics() -> dict[str, str]:
    """Python's documentation as prose, by topic: paragraphs of sentences, each in one topic only."""
    from pydoc_data.topics import topics as raw

    seen: set[str] = set()
    out: dict[str, str] = {}
    for name in sorted(raw):
        kept = []
        for block in re.split(r"\n\s*\n", raw[name]):
            paragraph = " ".join(block.split())
            if paragraph not in seen and _is_prose(block, paragraph):
                seen.add(paragraph)
                kept.append(paragraph)
        if kept:
            out[name] = "\n".join(kept)
    return out


def _is_prose(block: str, paragraph: str) -> bool:
    letters = sum(c.isalpha() or c == " " for c in paragraph)
    return (
        not block.startswith((" ", "\t", "*", "-", "+", "|"))
        and not any(mark in block for mark in ("::=", ">>>", "====", "----", "****"))
        and len(paragraph.split()) >= _LEAST_WORDS
        and letters / len(paragraph) >= _LEAST_LETTERS
        and paragraph[0].isupper()
        and paragraph[-1] in ".:"
    )


def sections(path: Path) -> dict[str, str]:
    """A text file in sections of whole paragraphs, by name.

    Raises:
        MissingResource: there is no such file.
        BrokenData: it is no UTF-8 text, or there is nothing in it.
    """
    try:
        text = path.read_text("utf-8")
    except OSError as why:
        raise MissingResource(f"task prose: {path} cannot be read: {why.strerror or why}") from None
    except UnicodeDecodeError as why:
        raise BrokenData(f"task prose: {path} is not UTF-8 text (byte {why.start})") from None
    out: list[list[str]] = [[]]
    for block in re.split(r"\n\s*\n", text):
        if sum(map(len, out[-1])) >= _SECTION:
            out.append([])
        if block.strip():
            out[-1].append(" ".join(block.split()))
    kept = ["\n".join(paragraphs) for paragraphs in out if paragraphs]
    if not kept:
        raise BrokenData(f"task prose: {path} holds no text")
    return {f"{path.stem} {i}": text for i, text in enumerate(kept, start=1)}
