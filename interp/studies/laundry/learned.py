"""A factor for every head at the last token, learned by gradient: the most that scaling heads can be asked for.

All prompts but their last token are run once and kept as KV caches; a step runs one token a prompt. What is minimised
is the loss of the answer among the listed things, with a share of the loss over the vocabulary, and with the sum of
absolute changes, which leaves most heads as they are.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from interp.models.batch import Batch, plan
from interp.models.cache import Progress
from interp.models.sites import Head, Site
from interp.models.subject import CausalLM
from interp.tasks.base import Example

RATE = 0.08
"""Step size of Adam."""
SPARSITY = 0.003
"""Nats that a change of 1 of one head's factor must save."""
VOCABULARY = 0.3
"""Share of the loss over the vocabulary."""
TOKENS = 1024


@dataclass
class _Held:
    """A batch whose last token is still to be run."""

    batch: Batch
    cache: Any
    things: Int[torch.Tensor, "b n"]
    real: Bool[torch.Tensor, "b n"]


def learn_factors(
    subject: CausalLM,
    examples: Sequence[Example],
    steps: int,
    *,
    heads: Sequence[Head] | None = None,
    progress: Progress | None = None,
) -> Float[np.ndarray, "layers heads"]:
    """What is to be added to the factor 1 of each head's z at the last token.

    Args:
        examples: train prompts with candidates of one token.
        steps: passes over all of them.
        heads: learn the factors of these alone; default all.
    """
    free = torch.zeros(subject.n_layers, subject.n_heads, device=subject.device)
    for head in subject.heads() if heads is None else heads:
        free[head.layer, head.head] = 1
    held = [
        _hold(subject, [examples[i] for i in group]) for group in plan([len(e.ids) for e in examples], TOKENS)
    ]
    change = torch.zeros(subject.n_layers, subject.n_heads, device=subject.device, requires_grad=True)
    optimizer = torch.optim.Adam([change], lr=RATE)
    for step in range(steps):
        optimizer.zero_grad()
        for part in held:
            loss = _loss(subject, part, change) * len(part.batch) / len(examples)
            (found,) = torch.autograd.grad(loss, change)
            change.grad = found if change.grad is None else change.grad + found
        assert change.grad is not None
        change.grad = free * (change.grad + SPARSITY * change.detach().sign())
        optimizer.step()
        if progress:
            progress(step + 1, steps, "steps")
    found_at: np.ndarray = change.detach().float().cpu().numpy()
    return found_at


def _hold(subject: CausalLM, examples: Sequence[Example]) -> _Held:
    batch = subject.batch(examples, forced=False)
    n = max(len(e.candidates) for e in examples)
    things = torch.zeros(len(examples), n, dtype=torch.long)
    real = torch.zeros(len(examples), n, dtype=torch.bool)
    for row, example in enumerate(examples):
        own = [c[0] for c in example.candidates]
        things[row, : len(own)] = torch.tensor(own)
        real[row, : len(own)] = True
    ids, mask, positions = (t[:, :-1] for t in (batch.ids, batch.mask, batch.positions))
    before = Batch(ids, mask, positions, batch.pad, batch.answer_start - 1, forced=False)
    cache = subject.run(before, use_cache=True, keep=1).cache
    return _Held(batch, cache, things.to(subject.device), real.to(subject.device))


def _loss(subject: CausalLM, held: _Held, change: torch.Tensor) -> torch.Tensor:
    taps = {
        Site("z", i): lambda z, i=i: z * (1 + change[i])[:, None].to(z.dtype) for i in range(subject.n_layers)
    }
    cache = copy.deepcopy(held.cache)
    trace = subject.run(held.batch, taps, keep=1, cache=cache, past=held.batch.width - 1, grad=True)
    logits = trace.logits[:, -1].float()
    among = logits.gather(1, held.things).masked_fill(~held.real, float("-inf")).log_softmax(-1)[:, 0]
    of_all = logits.log_softmax(-1).gather(1, held.things[:, :1])[:, 0]
    return -(among + VOCABULARY * of_all).mean()
