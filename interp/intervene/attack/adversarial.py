"""Adversarial fine-tuning: a pipeline is trained not to give images back, under embeddings that are searched for it.

Rounds of two parts, as in Dori (arXiv 2507.16880). The attack searches embeddings that give each image back, from fresh
starts, on the weights as they are now; what it passes through is a pool. Then the UNet is trained for some updates:
under an embedding of the pool it is to draw a surrogate, an image that the prompt gives where the own one is gone (in a
pruned pipeline, in an oracle), and other images with their prompts are trained on as before, so that they are kept. Of
an item there are several surrogates, since a single one would be memorized in its place.

What is left is an edit like any other: a `ModelDelta`, applied and undone to the bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd
import torch
from jaxtyping import Bool, Float

from interp.errors import UsageError
from interp.intervene.attack.embeddings import EmbeddingSearch, Errors, Target, error, rows_of, starts_of
from interp.intervene.attack.search import descend, generator
from interp.intervene.weights.places import parameters
from interp.intervene.weights.tuning import tuned
from interp.intervene.weights.whole import ModelDelta
from interp.measure.memorization.objective import Image
from interp.models.cache import Progress, quiet
from interp.models.parts import Part
from interp.models.pipeline import Pipeline


@dataclass(frozen=True)
class AdversarialTuning:
    """How a pipeline is trained against its attackers.

    Attributes:
        rounds: of attack and training.
        attack: of a round, from starts drawn anew; it adds an embedding to the pool before each `every` updates, and
            its last. Nothing is sampled.
        items: attacked in a round, drawn anew; 0: all.
        updates: of the weights in a round, by AdamW without weight decay.
        lr: its learning rate; over the rounds it falls to zero along a cosine.
        rows: of the pool, and as many of what is kept, in an update.
        weight: of what is kept, in the loss.
        empty: share of the kept rows that are trained without their prompt, as guidance needs it.

    Raises:
        UsageError: numbers below the least.
    """

    rounds: int = 10
    attack: EmbeddingSearch = field(default_factory=lambda: EmbeddingSearch(steps=20, draws=4, every=5))
    items: int = 0
    updates: int = 20
    lr: float = 2e-4
    rows: int = 32
    weight: float = 1.0
    empty: float = 0.1

    def __post_init__(self) -> None:
        if min(self.rounds, self.updates, self.rows) < 1 or min(self.lr, self.weight) <= 0 or self.items < 0:
            raise UsageError("tuning needs rounds, updates and rows >= 1, lr and weight > 0, items >= 0")
        if not 0 <= self.empty < 1:
            raise UsageError(f"empty={self.empty}: the share of empty prompts is 0 or more, and below 1")


@dataclass(frozen=True, eq=False)
class Hardened:
    """What adversarial fine-tuning did.

    Attributes:
        edit: the change of the weights.
        history: one row a round: `attacked` (mean denoising error of the images where the round's attack ended, higher
            is better), `surrogate` and `keep` (mean errors that its updates met), `work` (UNet rows run forward and
            backward so far).
        surrogates: the images that were trained towards.
    """

    edit: ModelDelta
    history: pd.DataFrame
    surrogates: Float[torch.Tensor, "items s c h w"]


def surrogates(
    subject: Pipeline, items: Sequence[Image], *, seeds: Sequence[int] = (0, 1, 2, 3), **options: Any
) -> Float[torch.Tensor, "items s c h w"]:
    """What the items' prompts give in a pipeline that has lost the images: one that is pruned, or an oracle.

    Args:
        options: of `Pipeline.denoise` (steps, guidance, batch, progress).
    """
    prompts = [item.prompt for item in items for _ in seeds]
    return subject.sample(prompts, list(seeds) * len(items), **options).unflatten(0, (len(items), len(seeds)))


def adversarial_tuning(
    subject: Pipeline,
    items: Sequence[Target],
    targets: Float[torch.Tensor, "items s c h w"],
    keep: Sequence[Image],
    how: AdversarialTuning | None = None,
    *,
    others: Sequence[str] = (),
    what: Sequence[str | Part] | None = None,
    seed: int = 0,
    batch: int = 256,
    progress: Progress = quiet,
) -> Hardened:
    """Train a pipeline until attacks on its embedding find surrogates and not the images. It is left as it was.

    Args:
        subject: the pipeline as it is now; inside `edit.applied(subject)` the change is that of the edited one.
        items: the images that are to be lost.
        targets: surrogates of each, see `surrogates`.
        keep: images with prompts that are to be kept, ordinary ones and memorized ones that are not targeted.
        others: prompts that attacks start from; default those of `keep`.
        what: parameters or parts of the UNet that are trained; default all of it.
        batch: UNet rows of a pass of the attack.
        progress: told about rounds.

    Raises:
        UsageError: no items, none to keep, or surrogates for another number of items.
    """
    how = how or AdversarialTuning()
    if not items or not keep or len(targets) != len(items):
        raise UsageError(
            f"{len(items)} items, {len(targets)} stacks of surrogates, {len(keep)} items to keep: give some of each, "
            "and a stack for each item"
        )
    text = [name for name in parameters(subject) if not name.startswith("unet.")]
    if what is not None and {f"{w.path}.weight" if isinstance(w, Part) else w for w in what} & set(text):
        raise UsageError(
            "the attack goes past the text encoder, so only the UNet is trained; leave others out of `what`"
        )
    trainer = _Trainer(subject, items, targets, keep, how, others or [k.prompt for k in keep], seed, batch)
    rows = []
    with tuned(subject, what) as tuning, torch.enable_grad():
        adam = torch.optim.AdamW(list(tuning.free.values()), lr=how.lr, weight_decay=0.0)
        falling = torch.optim.lr_scheduler.CosineAnnealingLR(adam, how.rounds * how.updates)
        for number in range(how.rounds):
            pool, of, attacked = trainer.attack(number)
            lost, kept = 0.0, 0.0
            for update in range(how.updates):
                away, stay = trainer.losses(pool, of, (number, update))
                adam.zero_grad()
                (away + how.weight * stay).backward()
                adam.step()
                falling.step()
                lost, kept = lost + float(away.detach()), kept + float(stay.detach())
            rows.append(
                {
                    "round": number,
                    "attacked": attacked,
                    "surrogate": lost / how.updates,
                    "keep": kept / how.updates,
                    "work": trainer.work,
                }
            )
            progress(number + 1, how.rounds, f"adversarial rounds, error {attacked:.3g}")
        edit = tuning.delta()
    return Hardened(edit, pd.DataFrame(rows), targets)


class _Trainer:
    """Attacks of a round, and the losses of an update."""

    def __init__(
        self,
        subject: Pipeline,
        items: Sequence[Any],
        targets: torch.Tensor,
        keep: Sequence[Any],
        how: AdversarialTuning,
        others: Sequence[str],
        seed: int,
        batch: int,
    ):
        self.subject, self.items, self.how = subject, items, how
        self.keep, self.others, self.seed, self.batch = keep, others, seed, batch
        self.work = 0
        with torch.no_grad():
            self.own = self._latents([item.image for item in items])
            self.targets = self._latents(list(targets.flatten(0, 1))).unflatten(0, tuple(targets.shape[:2]))
            self.kept = self._latents([item.image for item in keep])
            self.told = subject.embed([item.prompt for item in keep])
            self.nothing = subject.embed([""])

    def _latents(self, images: Sequence[torch.Tensor]) -> torch.Tensor:
        return self.subject.encode(torch.stack(list(images)).to(self.subject.device, self.subject.dtype))

    def attack(self, number: int) -> tuple[torch.Tensor, torch.Tensor, float]:
        """Embeddings that the attack of a round passes through, whose image each is after, and its mean error there."""
        how, random = self.how, generator("tuning", self.seed, number)
        count = how.items or len(self.items)
        chosen = sorted(torch.randperm(len(self.items), generator=random)[:count].tolist())
        # The name of a round makes its starts and draws its own.
        named = [replace(self.items[i], name=f"{self.items[i].name} round {number}") for i in chosen]
        rows = rows_of(named, how.attack)
        goal = _Pool(self.subject, rows, self.own[chosen], how.attack, self.seed, self.batch)
        starts = starts_of(self.subject, rows, self.others, self.seed)
        end = descend(starts, goal, rate=how.attack.rate, steps=how.attack.steps)
        self.work += int(end.steps.sum()) * how.attack.draws
        of = torch.tensor([chosen[rows[i].number] for i in goal.of])
        return torch.stack(goal.pool), of, float(end.last.mean())

    def losses(
        self, pool: torch.Tensor, of: torch.Tensor, at: tuple[int, int]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean error of surrogates under embeddings of the pool, and of what is kept under its prompts."""
        how, random = self.how, generator("update", self.seed, *at)
        adversarial = torch.randint(len(pool), (how.rows,), generator=random)
        which = torch.randint(self.targets.shape[1], (how.rows,), generator=random)
        stay = torch.randint(len(self.keep), (how.rows,), generator=random)
        without = torch.rand(how.rows, generator=random) < how.empty
        told = torch.where(without[:, None, None].to(self.told.device), self.nothing, self.told[stay])
        names = [f"update {at} {i}" for i in range(2 * how.rows)]
        errors = error(
            self.subject,
            torch.cat([self.targets[of[adversarial], which], self.kept[stay]]),
            torch.cat([pool[adversarial].to(told), told]),
            names,
            1,
            self.seed,
        )
        self.work += len(names)
        return errors[: how.rows].mean(), errors[how.rows :].mean()


class _Pool(Errors):
    """Embeddings that searches pass through are kept."""

    def __init__(self, *given: Any):
        super().__init__(*given)
        self.pool: list[torch.Tensor] = []
        self.of: list[int] = []

    def look(
        self, starts: Sequence[int], at: Float[torch.Tensor, "a n d"], step: int
    ) -> Bool[torch.Tensor, " a"]:
        if step == self.search.steps or step % self.search.every == 0:
            self.pool += list(at)
            self.of += starts
        return super().look(starts, at, step)
