"""Greedy decoding with the attention rows that predict each token, in as few passes as the model allows.

The forced answer is the first draft: where greedy decoding agrees with it, one prefill is all, and it keeps no KV
cache. Otherwise the longest agreeing prefix and the model's own next token are kept, and decoding goes on from a KV
cache with drafts looked up in the prompt (the continuation of the last tokens where they stood before); a pass that
verifies a draft yields at least one token. The result equals token-by-token greedy decoding, with the attention row of
every step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from interp.locate.capture import Capture, Decoded, Prefix, Watch, prefix_of
from interp.models.batch import Batch
from interp.models.subject import CausalLM
from interp.tasks.base import Example

DRAFT = 8
"""Tokens drafted at once after the first pass."""

_NGRAM = 3

__all__ = ["Begun", "Decoded", "begin", "decode", "finish", "lookup", "new_cache"]


@dataclass
class Begun:
    """A batch after its first pass, which holds the forced answers.

    Attributes:
        batch: the examples.
        captures: what scores are told from; `emitted` is the forced answer's until `finish`.
        said: the model's own next token at each row that predicts an answer token.
        past: tokens of the prompt that were in the cache before the pass.
        cache: the KV cache, where one was kept.
    """

    batch: Batch
    captures: list[Capture]
    said: list[list[int]]
    past: int = 0
    cache: Any = None

    def prefix(self, row: int) -> Prefix | None:
        """KV caches of the first tokens of an example, for `Watch.more`."""
        if self.cache is None:
            return None
        return prefix_of(self.cache, row, int(self.batch.pad[row]))


def decode(
    subject: CausalLM,
    examples: Sequence[Example],
    *,
    max_new_tokens: int | None = None,
    stops: frozenset[int] = frozenset(),
    forced: bool = False,
    likely: bool = True,
    watch: Watch | None = None,
) -> list[Decoded]:
    """Greedy output and attention rows of each example of a batch: `begin` and `finish`.

    Args:
        max_new_tokens: where the output differs from the answer, stop after so many tokens; default the answer's
            length and 16 more.
        stops: tokens that end an output (end of text, newline).
        forced: take the forced answer as the output, whatever the model would say.
        likely: the answer is likely what the model says. Else the first pass of a single example keeps its KV cache,
            so that the prompt is not run again where the answer is refuted; it takes about as much memory as the rest.
        watch: what is read of the rows; default their top keys.
    """
    watch = watch or Watch(subject, examples)
    cache = new_cache() if len(examples) == 1 and not (forced or likely) else None
    begun = begin(watch, examples, cache=cache)
    return finish(watch, begun, max_new_tokens=max_new_tokens, stops=stops, forced=forced)


def begin(watch: Watch, examples: Sequence[Example], *, cache: Any = None, past: int = 0) -> Begun:
    """The first pass over a batch, with the forced answers.

    Args:
        cache: KV cache that is filled, or read and filled where it holds the first `past` tokens of a single example;
            `past` is at most the example's `watch.first`.
    """
    batch = watch.subject.batch(examples)
    trace = watch.subject.run(batch, watch.taps(batch), rows=watch.rows(batch), cache=cache, past=past)
    greedy = trace.logits.argmax(-1).cpu()
    first = batch.width - greedy.shape[1]
    said = []
    for row, example in enumerate(examples):
        at = batch.answer_columns(row).start - first
        said.append(greedy[row, at : at + len(example.answer_ids)].tolist())
    return Begun(batch, watch.take(trace, batch), said, past, cache)


def finish(
    watch: Watch,
    begun: Begun,
    *,
    max_new_tokens: int | None = None,
    stops: frozenset[int] = frozenset(),
    forced: bool = False,
) -> list[Decoded]:
    """Decode on where an answer was refuted, off the batch's KV cache where it is that of a single example.

    What was emitted is also put into the captures.
    """
    own = begun.cache if len(begun.captures) == 1 else None
    for capture, said in zip(begun.captures, begun.said, strict=True):
        answer = capture.example.answer_ids
        agree = _agreement(said, answer)
        found = capture.emitted
        found.tokens = len(capture.example.full_ids) - 1 - begun.past
        found.exact = agree == len(answer)
        if not (forced or found.exact):
            found.output = [*answer[:agree], said[agree]]
            _go_on(watch, capture.example, found, own, max_new_tokens, stops)
    return [capture.emitted for capture in begun.captures]


def new_cache() -> Any:
    """An empty KV cache."""
    from transformers import DynamicCache

    return DynamicCache()


def _agreement(said: Sequence[int], answer: Sequence[int]) -> int:
    return next((i for i, (a, b) in enumerate(zip(said, answer, strict=True)) if a != b), len(answer))


def _go_on(
    watch: Watch,
    example: Example,
    done: Decoded,
    cache: Any,
    max_new_tokens: int | None,
    stops: frozenset[int],
) -> None:
    """Decode on from the output so far, whose rows are known; `cache` holds the prompt and the forced answer, or is
    None."""
    subject = watch.subject
    limit = max_new_tokens or len(example.answer_ids) + 16
    limit = min(limit, subject.context_length - len(example.ids))
    output = done.output = done.output[:limit]
    tops = [done.argmax[: len(output)]]
    keys = [] if done.topk is None else [done.topk[: len(output)]]
    ids = list(example.ids)
    if cache is None:
        cache = new_cache()
    while len(output) < limit and output[-1] not in stops:
        # Everything before the last emitted token is right; what the cache holds beyond it is a refuted draft.
        right = len(ids) + len(output) - 1
        held = cache.get_seq_length()
        if held > right:
            cache.crop(-(held - right))
        past = min(held, right)
        draft = lookup(ids + output, min(DRAFT, limit - len(output)) - 1)
        every = ids + output + draft
        batch = Batch.of_ids([every], device=subject.device)
        columns = torch.arange(right, len(every), device=subject.device)[None]
        trace = subject.run(batch, rows=watch.steps(columns), keep=len(draft) + 1, cache=cache, past=past)
        said = trace.logits[0].argmax(-1).tolist()
        agree = _agreement(said[:-1], draft)
        fresh = [*draft[:agree], said[agree]]
        # A stop inside an accepted draft ends the output there.
        end = next((i + 1 for i, t in enumerate(fresh) if t in stops), len(fresh))
        output += fresh[:end]
        top, topk = watch.steps_of(trace)
        tops.append(top[:end])
        if topk is not None:
            keys.append(topk[:end])
        done.passes += 1
        done.tokens += len(every) - past
    done.argmax = torch.cat(tops)
    if keys:
        done.topk = torch.cat(keys)


def lookup(ids: Sequence[int], n: int) -> list[int]:
    """A draft of at most `n` tokens: what followed the last few tokens where they stood before (prompt lookup)."""
    for size in range(_NGRAM, 0, -1):
        tail = list(ids[-size:])
        for i in range(len(ids) - size - 1, -1, -1):
            if list(ids[i : i + size]) == tail:
                return list(ids[i + size : i + size + n])
    return []
