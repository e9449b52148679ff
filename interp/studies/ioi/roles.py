"""Where heads look in a sentence about two names: mean attention by the role of the token that looks and is seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from interp.models.batch import Batch, plan, role_tokens
from interp.models.engines.base import RowBlock, Rows
from interp.models.subject import CausalLM
from interp.tasks.base import Example, Span

AFTER = "after_s1"
"""Role of the token behind the subject's first mention: where an induction head finds what came before it."""

ROWS = ("end", "s2", AFTER)
"""Roles of the tokens that look."""

KEYS = ("io", "s1", AFTER, "s2")
"""Roles of the tokens that are looked at; besides, `before` (the token before), `self` and `first`."""

_TOKENS = 4096


def marked(example: Example) -> Example:
    """The example with a span for the token behind the subject's first mention."""
    after = max(role_tokens(example, "s1")) + 1
    return replace(example, spans=tuple(sorted((*example.spans, Span(after, after + 1, AFTER, 1)))))


def role_attention(subject: CausalLM, examples: Sequence[Example]) -> pd.DataFrame:
    """Mean attention of every head at the tokens that matter, over examples that are `marked`.

    Returns:
        one row a head and looking token: component, layer, head, row (of `ROWS`), and the mass on `KEYS`, `before`,
        `self` and `first`. A token in several roles counts in each.
    """
    total = np.zeros((subject.n_layers, subject.n_heads, len(ROWS), len(KEYS) + 3))
    for group in plan([len(e.full_ids) for e in examples], _TOKENS):
        batch = subject.batch([examples[i] for i in group])
        rows = [[_column(batch, b, role) for role in ROWS] for b in range(len(batch))]
        keys = _keys(batch, rows)

        def reduce(block: RowBlock, keys: torch.Tensor = keys) -> torch.Tensor:
            probs = block.probs
            return torch.einsum("bhrt,brkt->hrk", probs, keys.to(probs)).cpu()

        columns = torch.tensor(rows, device=batch.ids.device)
        found = subject.run(batch, rows=Rows(columns, reduce), keep=1).rows
        for layer, masses in found.items():
            total[layer] += masses.double().numpy()
    names = [*KEYS, "before", "self", "first"]
    return pd.DataFrame(
        [
            {"component": f"L{i}H{h}", "layer": i, "head": h, "row": role}
            | dict(zip(names, total[i, h, r] / len(examples), strict=True))
            for i in range(subject.n_layers)
            for h in range(subject.n_heads)
            for r, role in enumerate(ROWS)
        ]
    )


def _column(batch: Batch, row: int, role: str) -> int:
    tokens = role_tokens(batch.examples[row], role)
    return max(tokens) + int(batch.pad[row])


def _keys(batch: Batch, rows: Sequence[Sequence[int]]) -> Float[torch.Tensor, "b r k t"]:
    """1 where a key has a role for the token that looks."""
    out = torch.zeros(len(batch), len(ROWS), len(KEYS) + 3, batch.width)
    for b, columns in enumerate(rows):
        pad = int(batch.pad[b])
        for k, role in enumerate(KEYS):
            out[b, :, k, [t + pad for t in role_tokens(batch.examples[b], role)]] = 1
        for r, column in enumerate(columns):
            out[b, r, len(KEYS), max(column - 1, pad)] = 1
            out[b, r, len(KEYS) + 1, column] = 1
        out[b, :, len(KEYS) + 2, pad] = 1
    return out
