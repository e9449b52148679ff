"""Training of small memory models on sequences that ask: one plain loop, and a race of learning rates around it.

A batch is ids and labels of one shape; the logits at a place tell the label at that same place, -100 asks nothing.
Recurrent models learn in narrow windows of learning rates (arXiv 2508.19029), so `race` trains one copy of the model at
each of several, in turns of a few steps, until one has learned. Everything is drawn from a seed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import nn

from interp.errors import UsageError
from interp.models.cache import Progress, quiet
from interp.models.zoo.config import ZooConfig
from interp.models.zoo.model import ZooForCausalLM, untrained

Batch = tuple[Int64[np.ndarray, "n t"], Int64[np.ndarray, "n t"]]
Draw = Callable[[np.random.Generator, int], Batch]
"""`draw(rng, n)`: ids and labels of n sequences."""

ROWS = 256
"""Sequences of a batch of evaluation."""


@dataclass(frozen=True)
class Recipe:
    """How a model is trained.

    Attributes:
        rates: learning rates of AdamW that race; each rises over `warmup` steps and falls to 0 as a cosine.
        steps: updates at each rate, at most.
        rows: sequences of a batch.
        pool: sequences that are drawn once and read again each epoch in a new order; 0 draws fresh ones at each step.
        every: steps between looks at the held-out sequences.
        enough: accuracy in each held-out set that ends the race.
    """

    rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2)
    steps: int = 2500
    rows: int = 64
    pool: int = 0
    warmup: int = 100
    weight_decay: float = 0.1
    every: int = 100
    enough: float = 0.998


@dataclass
class Trained:
    """The model that won, and how all went.

    Attributes:
        rate: learning rate of the winner.
        history: one row a rate and look: rate, step, loss, seconds (of processor time, at this rate), and accuracy in
            each held-out set.
    """

    module: ZooForCausalLM
    rate: float
    history: list[dict[str, Any]]


def race(
    config: ZooConfig,
    draw: Draw,
    held_out: Mapping[str, Batch],
    recipe: Recipe,
    *,
    seed: int = 0,
    progress: Progress = quiet,
) -> Trained:
    """Train a model at each learning rate in turn until one is good enough on every held-out set.

    All start from the same weights and read the same sequences. The first that gets there wins; where none does, the
    one whose worst held-out set is best at the end.

    Args:
        draw: sequences to train on.
        held_out: sequences to look at, by name.
        progress: told of the steps of all rates together.

    Raises:
        UsageError: no learning rate, or nothing held out.
    """
    if not recipe.rates or not held_out:
        raise UsageError("a training needs at least one learning rate and one held-out set")
    runners = [_Runner(untrained(config, seed=seed), draw, recipe, rate, seed) for rate in recipe.rates]
    history: list[dict[str, Any]] = []
    done, total = 0, recipe.steps * len(runners)
    for first in range(0, recipe.steps, recipe.every):
        looks = []
        for runner in runners:
            runner.advance(min(recipe.every, recipe.steps - first))
            done += min(recipe.every, recipe.steps - first)
            found = {name: accuracy(runner.module, *batch) for name, batch in held_out.items()}
            looks.append(min(found.values()))
            history.append({**runner.state(), **found})
            progress(done, total, f"rate {runner.rate:.3g}: loss {runner.loss:.3f}, accuracy {looks[-1]:.3f}")
        if max(looks) >= recipe.enough:
            break
    best = runners[int(np.argmax(looks))]
    return Trained(best.module, best.rate, history)


def accuracy(module: ZooForCausalLM, ids: np.ndarray, labels: np.ndarray) -> float:
    """Share of the questions that a model answers."""
    right = asked = 0
    with torch.no_grad():
        for first in range(0, len(ids), ROWS):
            part = slice(first, first + ROWS)
            logits, wanted = _asked(module, ids[part], labels[part])
            right += int((logits.argmax(-1) == wanted).sum())
            asked += len(wanted)
    return right / max(1, asked)


def _asked(module: ZooForCausalLM, ids: np.ndarray, labels: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits where something is asked, and what is asked; other places are never unembedded."""
    wanted = torch.from_numpy(labels).to(module.device)
    asked = wanted >= 0
    hidden = module.model(torch.from_numpy(ids).to(module.device))
    return module.lm_head(hidden[asked]), wanted[asked]


class _Runner:
    """One copy of the model at one learning rate, somewhere in its training."""

    def __init__(self, module: ZooForCausalLM, draw: Draw, recipe: Recipe, rate: float, seed: int):
        self.module, self.recipe, self.rate = module, recipe, rate
        self.batches = _Batches(draw, recipe, seed)
        self.optimizer = torch.optim.AdamW(
            module.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=recipe.weight_decay
        )
        self.dropout = torch.Generator().manual_seed(seed).get_state()
        self.step, self.seconds, self.loss = 0, 0.0, float("nan")

    def advance(self, steps: int) -> None:
        """Train for some steps; the global random state, from which dropout draws, is lent and given back."""
        start = time.process_time()
        self.module.train()
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(self.dropout)
            losses = [self._update() for _ in range(steps)]
            self.dropout = torch.get_rng_state()
        self.module.eval()
        self.loss = float(np.mean(losses))
        self.seconds += time.process_time() - start

    def _update(self) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * _course(self.step, self.recipe)
        with torch.enable_grad():
            logits, wanted = _asked(self.module, *next(self.batches))
            loss = nn.functional.cross_entropy(logits, wanted)
            loss.backward()
        nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        return loss.item()

    def state(self) -> dict[str, Any]:
        """Where the training is."""
        return {"rate": self.rate, "step": self.step, "loss": self.loss, "seconds": self.seconds}


def _course(step: int, recipe: Recipe) -> float:
    warm = min(1.0, (step + 1) / max(1, recipe.warmup))
    return float(warm * 0.5 * (1 + np.cos(np.pi * step / recipe.steps)))


class _Batches:
    """Batches without end: fresh ones, or of a pool that is shuffled anew each epoch."""

    def __init__(self, draw: Draw, recipe: Recipe, seed: int):
        self.draw, self.recipe = draw, recipe
        self.rng = np.random.default_rng([seed, 0])
        self.pool = draw(self.rng, recipe.pool) if recipe.pool else None
        self.order: Sequence[int] = []

    def __next__(self) -> Batch:
        rows = self.recipe.rows
        if self.pool is None:
            return self.draw(self.rng, rows)
        if not len(self.order):
            self.order = self.rng.permutation(len(self.pool[0])).tolist()
        at, self.order = self.order[:rows], self.order[rows:]
        ids, labels = self.pool
        return ids[at], labels[at]
