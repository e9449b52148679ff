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
        rates: learning rates of AdamW that race; each rises over `warmup` steps, and falls to 0 as a cosine in the last
            stage.
        steps: updates at each rate in each stage, at most.
        rows: sequences of a batch.
        pool: sequences that are drawn once and read again each epoch in a new order; 0 draws fresh ones at each step.
        every: steps between looks at the held-out sequences.
        onward: accuracy in each held-out set of a stage that ends it, where it is not the last.
        enough: accuracy in each held-out set of the last stage that ends the race.
    """

    rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2)
    steps: int = 1500
    rows: int = 64
    pool: int = 0
    warmup: int = 100
    weight_decay: float = 0.1
    every: int = 100
    onward: float = 0.9
    enough: float = 0.998


@dataclass(frozen=True)
class Stage:
    """What a part of a training reads, and what it is judged by.

    Attributes:
        draw: sequences to train on.
        held_out: sequences to look at, by name.
    """

    draw: Draw
    held_out: Mapping[str, Batch]


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
    stages: Sequence[Stage],
    recipe: Recipe,
    *,
    seed: int = 0,
    progress: Progress = quiet,
) -> Trained:
    """Train a model at each learning rate in turn until one is good enough on every held-out set of the last stage.

    All start from the same weights and read the same sequences, and one that is a stage behind another falls out. The
    first that gets there wins; where none does, the one whose worst held-out set is best at the end.

    Args:
        progress: told of the steps of all rates together.

    Raises:
        UsageError: no learning rate, no stage, or one where nothing is held out.
    """
    if not recipe.rates or not stages or not all(stage.held_out for stage in stages):
        raise UsageError("a training needs a learning rate, a stage, and held-out sequences in each stage")
    runners = [_Runner(untrained(config, seed=seed), stages, recipe, rate, seed) for rate in recipe.rates]
    history: list[dict[str, Any]] = []
    total = recipe.steps * len(runners) * len(stages)
    while going := [r for r in runners if not r.done and r.stage == max(other.stage for other in runners)]:
        for runner in going:
            history.append(runner.advance())
            done = sum(r.step for r in runners)
            progress(done, total, f"rate {runner.rate:.3g}: loss {runner.loss:.3f}, {runner.look:.3f} right")
        if max(runner.score for runner in runners) >= recipe.enough:
            break
    best = max(runners, key=lambda runner: runner.score)
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
    """One copy of the model at one learning rate, somewhere in its training.

    Attributes:
        step: updates so far; `within`: of them, those of this stage.
        look: accuracy in the worst held-out set of its stage, when last looked at.
    """

    def __init__(
        self, module: ZooForCausalLM, stages: Sequence[Stage], recipe: Recipe, rate: float, seed: int
    ):
        self.module, self.stages, self.recipe, self.rate, self.seed = module, stages, recipe, rate, seed
        self.optimizer = torch.optim.AdamW(
            module.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=recipe.weight_decay
        )
        self.dropout = torch.Generator().manual_seed(seed).get_state()
        self.step, self.seconds, self.loss, self.look = 0, 0.0, float("nan"), 0.0
        self._enter(0)

    def _enter(self, stage: int) -> None:
        self.stage, self.within = stage, 0
        self.batches = _Batches(self.stages[stage].draw, self.recipe, [self.seed, stage])

    @property
    def last(self) -> bool:
        """Whether it is in the last stage."""
        return self.stage == len(self.stages) - 1

    @property
    def done(self) -> bool:
        """Whether it has made all its steps."""
        return self.last and self.within == self.recipe.steps

    @property
    def score(self) -> float:
        """What a race goes by: the look, which counts in the last stage alone."""
        return self.look if self.last and self.within else -1.0

    def advance(self) -> dict[str, Any]:
        """Train up to the next look, and look; the row of the history."""
        if (
            self.within
            and not self.last
            and (self.look >= self.recipe.onward or self.within == self.recipe.steps)
        ):
            self._enter(self.stage + 1)
        self._train(min(self.recipe.every, self.recipe.steps - self.within))
        held_out = self.stages[self.stage].held_out
        found = {name: accuracy(self.module, *batch) for name, batch in held_out.items()}
        self.look = min(found.values())
        where = {"rate": self.rate, "stage": self.stage, "step": self.step, "loss": self.loss}
        return {**where, "seconds": self.seconds, **found}

    def _train(self, steps: int) -> None:
        """Some updates; the global random state, from which dropout draws, is lent and given back."""
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
            group["lr"] = self.rate * self._course()
        with torch.enable_grad():
            logits, wanted = _asked(self.module, *next(self.batches))
            loss = nn.functional.cross_entropy(logits, wanted)
            loss.backward()
        nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        self.within += 1
        return loss.item()

    def _course(self) -> float:
        """The share of the learning rate that the next update is made with."""
        warm = min(1.0, (self.step + 1) / max(1, self.recipe.warmup))
        falling = 0.5 * (1 + np.cos(np.pi * self.within / self.recipe.steps)) if self.last else 1.0
        return float(warm * falling)


class _Batches:
    """Batches without end: fresh ones, or of a pool that is shuffled anew each epoch."""

    def __init__(self, draw: Draw, recipe: Recipe, seed: Sequence[int]):
        self.draw, self.recipe = draw, recipe
        self.rng = np.random.default_rng([*seed, 0])
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
