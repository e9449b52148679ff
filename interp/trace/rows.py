"""Attention rows of chosen heads on one example, as plain data for a picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from interp.errors import UsageError
from interp.models.engines.base import Rows
from interp.models.sites import Component, Head
from interp.models.subject import CausalLM
from interp.tasks.base import Example


def token_roles(example: Example) -> list[str | None]:
    """Role of each prompt token: of the innermost span that covers it, None outside all."""
    out: list[str | None] = [None] * len(example.ids)
    for span in sorted(example.spans, key=len, reverse=True):
        out[span.start : span.end] = [span.role] * len(span)
    return out


def attention_rows(subject: CausalLM, example: Example, heads: Sequence[Component]) -> dict[str, Any]:
    """Rows that predict the answer, by head.

    Returns:
        `tokens` and `roles` of prompt and forced answer, `answer` pieces, and `heads`: name -> one row for each answer
        token, each a list over the keys (0 beyond the row's own position).
    """
    if not all(isinstance(h, Head) for h in heads):
        raise UsageError("attention rows belong to heads")
    batch = subject.batch([example])
    columns = torch.tensor([list(batch.answer_columns(0))], device=batch.ids.device)
    wanted: dict[int, list[int]] = {}
    for head in heads:
        subject.check(head)
        if isinstance(head, Head) and head.head not in wanted.setdefault(head.layer, []):
            wanted[head.layer].append(head.head)
    trace = subject.run(batch, rows=Rows(columns, layers=frozenset(wanted), heads=wanted))
    found = {
        Head(layer, h): trace.rows[layer][0, i].tolist()
        for layer in wanted
        for i, h in enumerate(wanted[layer])
    }
    ids = example.full_ids[:-1]
    label = subject.tokens.pieces if subject.has_tokens else lambda ids: [str(i) for i in ids]
    return {
        "tokens": label(ids),
        "roles": [*token_roles(example), *(["answer"] * (len(ids) - len(example.ids)))],
        "answer": label(example.answer_ids),
        "heads": {repr(h): found[h] for h in heads if isinstance(h, Head)},
    }
