"""Light tuning of some layers: a few steps of Adam on answers, and every weight put back bit for bit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import combinations
from math import comb
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from interp.errors import EngineError, NoAcceptedExample, UsageError
from interp.models.cache import Progress
from interp.models.subject import CausalLM
from interp.studies.prior.spec import PriorSpec
from interp.tasks.base import Example, stable_seed

CLIP = 1.0
"""Largest length of a step's gradient."""
BETAS = (0.9, 0.95)


@dataclass(frozen=True)
class Arm:
    """One tuning: which layers, and in which order of examples.

    Attributes:
        kind: `chosen`, `random` or `all`.
        draw: number of the random set, of those of its seed.
    """

    kind: str
    seed: int
    draw: int
    layers: tuple[int, ...]

    @property
    def name(self) -> str:
        """Unique among arms."""
        return f"{self.kind} {self.seed}" + (f" {self.draw}" if self.kind == "random" else "")

    def columns(self) -> dict[str, Any]:
        """What tables tell of it."""
        shown = "all" if self.kind == "all" else " ".join(f"L{i}" for i in self.layers)
        return {"arm": self.name, "kind": self.kind, "seed": self.seed, "draw": self.draw, "layers": shown}


def arms(scores: pd.DataFrame, n_layers: int, spec: PriorSpec) -> list[Arm]:
    """The tunings of a study: the layers with the best mean score over tasks, random others, and all.

    Raises:
        UsageError: the model has no such scores, or too few other layers.
    """
    k = spec.tune_layers
    own = scores[scores["method"] == spec.tune_by]
    if own.empty:
        raise UsageError(
            f"tune_by={spec.tune_by}: this model's attention and MLP share a residual; take added or lens"
        )
    if n_layers < 2 * k:
        raise UsageError(f"tune_layers={k}: a model of {n_layers} layers has no {k} others to compare with")
    means = own.groupby("layer")["score"].mean().sort_values(ascending=False, kind="stable")
    chosen = tuple(sorted(int(i) for i in means.index[:k]))
    others = [i for i in range(n_layers) if i not in chosen]
    drawn = iter(_sets(others, k, spec.tune_seeds * spec.tune_random, spec.seed))
    out = []
    for seed in range(spec.tune_seeds):
        out.append(Arm("chosen", seed, 0, chosen))
        out += [Arm("random", seed, i, s) for i, s in zip(range(spec.tune_random), drawn, strict=False)]
    return [*out, Arm("all", 0, 0, tuple(range(n_layers)))] if spec.tune_all else out


def _sets(others: Sequence[int], k: int, n: int, seed: int) -> list[tuple[int, ...]]:
    """At most n different sets of k layers."""
    rng = np.random.default_rng(stable_seed("tuning, random layers", seed))
    if comb(len(others), k) <= 4 * n:
        every = list(combinations(others, k))
        return [every[i] for i in rng.permutation(len(every))[:n]]
    found: dict[tuple[int, ...], None] = {}
    while len(found) < n:
        found[tuple(sorted(int(i) for i in rng.choice(others, k, replace=False)))] = None
    return list(found)


def mixed(tasks: Sequence[Sequence[Example]], each: int, seed: int, spec: PriorSpec) -> list[Example]:
    """Training examples of all tasks in turns, as many as the steps take, in an order of the seed's own."""
    turns = []
    for number, examples in enumerate(tasks):
        order = np.random.default_rng(stable_seed("tuning, order", spec.seed, seed, number)).permutation(
            len(examples)
        )
        turns.append([examples[int(i)] for i in np.resize(order, each)])
    return [e for group in zip(*turns, strict=True) for e in group][: spec.tune_steps * spec.tune_batch]


@contextmanager
def tuned(
    subject: CausalLM,
    layers: Sequence[int],
    examples: Sequence[Example],
    *,
    batch: int = 8,
    rate: float = 1e-4,
    progress: Progress | None = None,
) -> Iterator[dict[str, Any]]:
    """All weights of some layers, tuned inside the block to give the examples' answers, and put back bit for bit.

    The loss is that of the answers' tokens alone, forced one after another. Adam works on copies in fp32.

    Args:
        examples: used once, in their order, `batch` a step.

    Yields:
        steps, examples, parameters (how many numbers were tuned), first_loss and last_loss (nats a token, means of the
        first and the last quarter of the steps), moved (length of the change over that of the weights).

    Raises:
        NoAcceptedExample: there is no example.
        EngineError: a weight is quantised or not in memory.
        UsageError: no such layer.
    """
    if not examples:
        raise NoAcceptedExample("there is no example to tune on")
    if not layers or not set(layers) <= set(range(subject.n_layers)):
        raise UsageError(f"layers={list(layers)}: take of 0 to {subject.n_layers - 1}")
    weights = [w for i in dict.fromkeys(layers) for w in subject.blocks[i].parameters()]
    if any(w.is_meta or not w.is_floating_point() for w in weights):
        raise EngineError("tuning: a weight is quantised or not in memory; load the model in float32")
    every = list(subject.hf.parameters())
    flags = [w.requires_grad for w in every]
    before = [w.detach().clone() for w in weights]
    try:
        for w in every:
            w.requires_grad_(False)
        for w in weights:
            w.requires_grad_(True)
        losses = _descend(subject, weights, examples, batch, rate, progress)
        for w, flag in zip(every, flags, strict=True):
            w.requires_grad_(flag)
        quarter = max(1, len(losses) // 4)
        moved = _length([w.detach() - b for w, b in zip(weights, before, strict=True)]) / _length(before)
        yield {
            "steps": len(losses),
            "examples": len(examples),
            "parameters": sum(w.numel() for w in weights),
            "first_loss": float(np.mean(losses[:quarter])),
            "last_loss": float(np.mean(losses[-quarter:])),
            "moved": moved,
        }
    finally:
        with torch.no_grad():
            for w, b in zip(weights, before, strict=True):
                w.copy_(b)
                w.grad = None
        for w, flag in zip(every, flags, strict=True):
            w.requires_grad_(flag)


def _descend(
    subject: CausalLM,
    weights: Sequence[torch.nn.Parameter],
    examples: Sequence[Example],
    batch: int,
    rate: float,
    progress: Progress | None,
) -> list[float]:
    """Steps of Adam; the loss of each before it was taken."""
    # Half precision would lose small steps, so they are summed up in fp32.
    copies = [w.detach().float().clone() for w in weights]
    optimizer = torch.optim.Adam(copies, lr=rate, betas=BETAS)
    losses = []
    steps = range(0, len(examples), batch)
    for step, at in enumerate(steps):
        loss = answer_loss(subject, examples[at : at + batch])
        found = torch.autograd.grad(loss, list(weights))
        for copy, gradient in zip(copies, found, strict=True):
            copy.grad = gradient.float()
        torch.nn.utils.clip_grad_norm_(copies, CLIP)
        optimizer.step()
        with torch.no_grad():
            for w, copy in zip(weights, copies, strict=True):
                w.copy_(copy)
        losses.append(float(loss.detach()))
        if progress:
            progress(step + 1, len(steps), "steps")
    return losses


def answer_loss(subject: CausalLM, examples: Sequence[Example]) -> Float[torch.Tensor, ""]:
    """Nats a token of the examples' answers, with the graph."""
    batch = subject.batch(examples)
    logits = subject.run(batch, grad=True).logits
    first = batch.width - logits.shape[1]
    parts = []
    for row, e in enumerate(examples):
        columns = batch.answer_columns(row)
        logs = logits[row, columns.start - first : columns.stop - first].float().log_softmax(-1)
        parts.append(logs.gather(-1, torch.tensor(e.answer_ids, device=logs.device)[:, None])[:, 0])
    return -torch.cat(parts).mean()


def _length(tensors: Sequence[torch.Tensor]) -> float:
    return float(torch.stack([t.float().square().sum() for t in tensors]).sum().sqrt())
