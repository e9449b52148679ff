"""What heads do on average, to match controls on: how much they write, and how widely they look."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from interp.intervene.base import Scope
from interp.intervene.reference import Reference
from interp.models.batch import plan
from interp.models.engines.base import Frame, Reduce, RowBlock, Rows
from interp.models.sites import Head, Site
from interp.models.subject import CausalLM

_TOKENS = 4096


def head_statistics(subject: CausalLM, data: Reference, scope: Scope = "all") -> pd.DataFrame:
    """Mean output norm and mean attention entropy of every head, in one pass of the intact model over the data.

    `norm` is the length of z W_O, the head's share of what attention adds to the residual stream (before a norm that
    the family may have there), averaged over the tokens of a scope. `entropy` is that of the attention row, in nats,
    averaged over the rows that predict an answer token. Both are kept with the reference.

    Args:
        scope: tokens whose norms count: `all` of prompt and forced answer, `answer` (those that predict its tokens),
            span roles, positions.

    Returns:
        one row a head: component, layer, head, norm, entropy.

    Raises:
        EngineError: an output projection is quantised.
        UsageError: an example has no token of the scope.
    """
    found = data._kept(("heads", scope), subject, lambda: _measured(subject, data, scope))
    norm, entropy = found
    heads = [Head(i, j) for i in range(subject.n_layers) for j in range(subject.n_heads)]
    return pd.DataFrame(
        {
            "component": [repr(h) for h in heads],
            "layer": [h.layer for h in heads],
            "head": [h.head for h in heads],
            "norm": norm.ravel(),
            "entropy": entropy.ravel(),
        }
    )


def _measured(
    subject: CausalLM, data: Reference, scope: Scope
) -> tuple[Float[np.ndarray, "l h"], Float[np.ndarray, "l h"]]:
    n = subject.n_layers
    # |z W|^2 = z (W W^T) z^T: the share itself is never made.
    grams = [torch.einsum("hdm,hem->hde", w, w) for w in (subject.out_weight(i).float() for i in range(n))]
    examples = data.examples(subject)
    norm = np.zeros((n, subject.n_heads))
    entropy = np.zeros_like(norm)
    tokens = answers = 0
    for group in plan([len(e.full_ids) for e in examples], _TOKENS):
        batch = subject.batch([examples[i] for i in group])
        meant = batch.scope_columns(scope, 0, batch.width) & batch.mask.bool()
        longest = max(len(batch.answer_columns(row)) for row in range(len(batch)))
        columns = torch.full((len(batch), longest), -1, device=batch.ids.device)
        for row in range(len(batch)):
            mine = torch.tensor(list(batch.answer_columns(row)), device=columns.device)
            columns[row, : len(mine)] = mine

        def norms(z: torch.Tensor, frame: Frame, meant: torch.Tensor, gram: torch.Tensor) -> torch.Tensor:
            mine = z[meant.to(z.device)].float()
            return torch.einsum("nhd,hde,nhe->nh", mine, gram.to(z.device), mine).clamp(min=0).sqrt().sum(0)

        taps = {
            Site("z", i): Reduce(lambda z, frame, meant=meant, gram=grams[i]: norms(z, frame, meant, gram))  # type: ignore[misc]
            for i in range(n)
        }
        trace = subject.run(batch, taps, rows=Rows(columns, _entropy), keep=1)
        norm += np.stack([trace[Site("z", i)].double().cpu().numpy() for i in range(n)])
        entropy += np.stack([trace.rows[i].double().cpu().numpy() for i in range(n)])
        tokens += int(meant.sum())
        answers += int((columns >= 0).sum())
    return norm / tokens, entropy / answers


def _entropy(block: RowBlock) -> Float[torch.Tensor, " h"]:
    """Sum over the rows asked for; those that were not asked for hold zeros and count nothing."""
    return torch.special.entr(block.probs).sum((0, 2, 3))
