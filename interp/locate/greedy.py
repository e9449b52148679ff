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
from jaxtyping import Int

from interp.models.batch import Batch
from interp.models.engines.base import Rows, Trace
from interp.models.subject import CausalLM
from interp.tasks.base import Example
from interp.trace.reducers import TopKeys

DRAFT = 8
"""Tokens drafted at once after the first pass."""

_NGRAM = 3


@dataclass
class Decoded:
    """What greedy decoding gave for one example.

    Attributes:
        output: the tokens emitted.
        argmax: for each emitted token, the position of the key that each head attends to most in the row that
            predicts it; step layer head.
        exact: the output is the forced answer.
        passes: forward passes spent on this example.
        tokens: tokens run in them.
    """

    output: list[int]
    argmax: Int[torch.Tensor, "s l h"]
    exact: bool
    passes: int = 1
    tokens: int = 0


def _stack(trace: Trace, row: int) -> Int[torch.Tensor, "r l h"]:
    layers = [trace.rows[i][row].cpu() for i in sorted(trace.rows)]  # layers may lie on different devices
    return torch.stack(layers).permute(2, 0, 1)


def decode(
    subject: CausalLM,
    examples: Sequence[Example],
    *,
    max_new_tokens: int | None = None,
    stops: frozenset[int] = frozenset(),
    forced: bool = False,
    likely: bool = True,
) -> list[Decoded]:
    """Greedy output and attention rows of each example of a batch.

    Args:
        max_new_tokens: where the output differs from the answer, stop after so many tokens; default the answer's
            length and 16 more.
        stops: tokens that end an output (end of text, newline).
        forced: take the forced answer as the output, whatever the model would say.
        likely: the answer is likely what the model says. Else the first pass of a single example keeps its KV cache,
            so that the prompt is not run again where the answer is refuted; it takes about as much memory as the rest.
    """
    batch = subject.batch(examples)
    m = max(len(e.answer_ids) for e in examples)
    columns = torch.full((len(examples), m), -1)
    for row, example in enumerate(examples):
        columns[row, : len(example.answer_ids)] = torch.tensor(list(batch.answer_columns(row)))
    cache = _cache() if len(examples) == 1 and not (forced or likely) else None
    trace = subject.run(batch, rows=Rows(columns.to(batch.ids.device), TopKeys()), cache=cache)
    greedy = trace.logits.argmax(-1).cpu()
    first = batch.width - greedy.shape[1]
    out = []
    for row, example in enumerate(examples):
        n = len(example.answer_ids)
        at = batch.answer_columns(row).start - first
        said = greedy[row, at : at + n].tolist()
        rows = _stack(trace, row)[:n] - int(batch.pad[row])
        agree = _agreement(said, example.answer_ids)
        if forced or agree == n:
            done = Decoded(list(example.answer_ids), rows, agree == n, 1, len(example.full_ids) - 1)
        else:
            known = [*example.answer_ids[:agree], said[agree]]
            done = _go_on(
                subject,
                example,
                known,
                rows[: agree + 1],
                cache,
                max_new_tokens,
                stops,
            )
        out.append(done)
    return out


def _cache() -> Any:
    from transformers import DynamicCache

    return DynamicCache()


def _agreement(said: Sequence[int], answer: Sequence[int]) -> int:
    return next((i for i, (a, b) in enumerate(zip(said, answer, strict=True)) if a != b), len(answer))


def _go_on(
    subject: CausalLM,
    example: Example,
    output: list[int],
    rows: torch.Tensor,
    cache: Any,
    max_new_tokens: int | None,
    stops: frozenset[int],
) -> Decoded:
    """Decode on from `output`, whose rows are known; `cache` holds the prompt and the forced answer, or nothing."""
    limit = max_new_tokens or len(example.answer_ids) + 16
    limit = min(limit, subject.context_length - len(example.ids))
    output, rows = output[:limit], rows[:limit]
    parts = [rows]
    ids = list(example.ids)
    done = Decoded(output, rows, False, 1, len(example.full_ids) - 1)
    if cache is None:
        cache = _cache()
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
        trace = subject.run(batch, rows=Rows(columns, TopKeys()), keep=len(draft) + 1, cache=cache, past=past)
        said = trace.logits[0].argmax(-1).tolist()
        agree = _agreement(said[:-1], draft)
        fresh = [*draft[:agree], said[agree]]
        # A stop inside an accepted draft ends the output there.
        end = next((i + 1 for i, t in enumerate(fresh) if t in stops), len(fresh))
        output += fresh[:end]
        parts.append(_stack(trace, 0)[:end])
        done.passes += 1
        done.tokens += len(every) - past
    done.argmax = torch.cat(parts)
    return done


def lookup(ids: Sequence[int], n: int) -> list[int]:
    """A draft of at most `n` tokens: what followed the last few tokens where they stood before (prompt lookup)."""
    for size in range(_NGRAM, 0, -1):
        tail = list(ids[-size:])
        for i in range(len(ids) - size - 1, -1, -1):
            if list(ids[i : i + size]) == tail:
                return list(ids[i + size : i + size + n])
    return []
