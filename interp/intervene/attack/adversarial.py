"""Adversarial fine-tuning: a pipeline is trained not to give images back, under embeddings that are searched for it.

The repair of Dori (arXiv 2507.16880): the UNet is trained to draw a surrogate of each image under embeddings that an
attack finds for it, while other images are trained on with their prompts as before, so that they are kept. Two things
are done otherwise. Weights and searches move together: many searches run side by side, each at a point of its own
between start and end, and each update of the weights follows a step of all of them, so that the weights meet embeddings
that were found for the weights as they are. And the weights are trained on the error of what the UNet predicts, as they
were before, and not on that of the noise: where that is a velocity, the error of the noise hardly counts the first
denoising steps, which decide what image it will be.

Of an item there should be many surrogates, since few would be memorized in its place; and many images to keep, for the
same reason. What is memorized and neither targeted nor kept is lost as well. What is left is an edit like any other: a
`ModelDelta`, applied and undone to the bit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float, Int

from interp.errors import UsageError
from interp.intervene.attack.embeddings import EmbeddingSearch, Target, starts_of
from interp.intervene.attack.extracting import Row
from interp.intervene.attack.search import generator
from interp.intervene.weights.places import parameters
from interp.intervene.weights.tuning import tuned
from interp.intervene.weights.whole import ModelDelta
from interp.measure.memorization.objective import Image
from interp.models.cache import Progress, quiet
from interp.models.diffusion import noise_scales
from interp.models.parts import Part
from interp.models.pipeline import Pipeline

_CLIP = 1.0
_LEAST = 1e-3
"""Of a velocity: the share of data in the noised latents that its error is divided by at least."""


@dataclass(frozen=True)
class AdversarialTuning:
    """How a pipeline is trained against its attackers.

    Attributes:
        rounds: the training is told of in so many parts.
        updates: of the weights in a round, by AdamW without weight decay, gradients clipped at norm 1.
        attack: rate, draws and starts of a search; it ends after 1 to `steps` steps, drawn anew, and another begins in
            its place, after the next image. Nothing is sampled.
        searches: at once; each is a row of every update.
        lr: learning rate; it rises over the first part `warmup` and falls to zero along a cosine.
        rows: of what is kept, in an update.
        weight: of what is kept, in the loss.
        empty: share of the kept rows that are trained without their prompt, as guidance needs it.

    Raises:
        UsageError: numbers below the least.
    """

    rounds: int = 6
    updates: int = 50
    attack: EmbeddingSearch = field(default_factory=lambda: EmbeddingSearch(steps=60, draws=2))
    searches: int = 20
    lr: float = 2e-3
    warmup: float = 0.05
    rows: int = 32
    weight: float = 1.0
    empty: float = 0.1

    def __post_init__(self) -> None:
        if min(self.rounds, self.updates, self.searches, self.rows) < 1 or min(self.lr, self.weight) <= 0:
            raise UsageError("tuning needs rounds, updates, searches and rows >= 1, lr and weight > 0")
        for name, share in (("empty", self.empty), ("warmup", self.warmup)):
            if not 0 <= share < 1:
                raise UsageError(f"{name}={share}: a share that is 0 or more, and below 1")


@dataclass(frozen=True, eq=False)
class Hardened:
    """What adversarial fine-tuning did.

    Attributes:
        edit: the change of the weights.
        history: one row a round: `attacked` (mean error of the noise of the images where searches were, old and young;
            higher is better), `surrogate` and `keep` (mean errors of what is predicted that its updates met), `work`
            (UNet rows run forward and backward so far).
        surrogates: the images that were trained towards.
    """

    edit: ModelDelta
    history: pd.DataFrame
    surrogates: Float[torch.Tensor, "items s c h w"]


def surrogates(
    subject: Pipeline,
    items: Sequence[Image],
    *,
    prompts: Sequence[str] | None = None,
    seeds: Sequence[int] = tuple(range(12)),
    **options: Any,
) -> Float[torch.Tensor, "items s c h w"]:
    """Images to be drawn in the place of the items': of the same kind, and not the same.

    Args:
        subject: the pipeline itself, if it is asked by other prompts; with the items' own, one that has lost the
            images: pruned, or an oracle.
        prompts: one an item, say its own without the words that call the image; default its own.
        options: of `Pipeline.denoise` (steps, guidance, batch, progress).

    Raises:
        UsageError: prompts for another number of items.
    """
    asked = [item.prompt for item in items] if prompts is None else list(prompts)
    if len(asked) != len(items):
        raise UsageError(f"{len(asked)} prompts for {len(items)} items: give one each")
    every = [prompt for prompt in asked for _ in seeds]
    return subject.sample(every, list(seeds) * len(items), **options).unflatten(0, (len(items), len(seeds)))


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
    progress: Progress = quiet,
) -> Hardened:
    """Train a pipeline until attacks on its embedding find surrogates and not the images. It is left as it was.

    Args:
        subject: the pipeline as it is now; inside `edit.applied(subject)` the change is that of the edited one.
        items: the images that are to be lost.
        targets: surrogates of each, see `surrogates`; a dozen rather than two.
        keep: images with prompts that are to be kept, ordinary ones and memorized ones that are not targeted. As many
            as there are: with the defaults 9 600 are shown.
        others: prompts that attacks start from; default those of `keep`.
        what: parameters or parts of the UNet that are trained; default all of it.
        seed: of all draws.
        progress: told about updates.

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
    random = generator("tuning", seed)
    searches = _Searches(subject, items, how, others or [k.prompt for k in keep], seed, random)
    batches = _Batches(subject, targets, keep, how, random)
    total = how.rounds * how.updates
    rows: list[dict[str, float]] = []
    each = how.searches * (how.attack.draws + 1) + how.rows
    with tuned(subject, what) as tuning, torch.enable_grad():
        free = list(tuning.free.values())
        adam = torch.optim.AdamW(free, lr=how.lr, weight_decay=0.0)
        met: list[tuple[float, float, float]] = []
        for update in range(total):
            adam.param_groups[0]["lr"] = how.lr * _share(update / total, how.warmup, 1 / total)
            attacked = searches.step()
            away, stay = batches.losses(*searches.now())
            adam.zero_grad()
            (away + how.weight * stay).backward()
            torch.nn.utils.clip_grad_norm_(free, _CLIP)
            adam.step()
            met.append((attacked, float(away.detach()), float(stay.detach())))
            if (update + 1) % how.updates == 0:
                means = torch.tensor(met, dtype=torch.float64).mean(0).tolist()
                told = dict(zip(("attacked", "surrogate", "keep"), means, strict=True))
                rows.append({"round": len(rows), **told, "work": (update + 1) * each})
                met = []
            progress(update + 1, total, f"adversarial fine-tuning, error under attack {attacked:.3g}")
        edit = tuning.delta()
    return Hardened(edit, pd.DataFrame(rows), targets)


class _Searches:
    """Searches of embeddings side by side, each for one image, of different ages."""

    def __init__(
        self,
        subject: Pipeline,
        items: Sequence[Target],
        how: AdversarialTuning,
        others: Sequence[str],
        seed: int,
        random: torch.Generator,
    ):
        self.subject, self.items, self.attack = subject, items, how.attack
        self.others, self.seed, self.random = others, seed, random
        self.own = _latents(subject, [item.image for item in items])
        self.at = [torch.empty(0, device=subject.device) for _ in range(how.searches)]
        self.of = torch.zeros(how.searches, dtype=torch.long)
        self.left = [0] * how.searches
        self.begun = 0
        self.queue: list[int] = []
        for i in range(how.searches):
            self.at[i] = self._start(i).requires_grad_()
        self.adam = torch.optim.Adam(self.at, lr=how.attack.rate)

    def _start(self, i: int) -> torch.Tensor:
        """Where the next search begins, in the place of the i-th; images take turns in an order drawn anew."""
        if not self.queue:
            self.queue = torch.randperm(len(self.items), generator=self.random).tolist()
        number, starts = self.queue.pop(), self.attack.starts
        start = starts[int(torch.randint(len(starts), (1,), generator=self.random))]
        # Its number among all that began makes its draws its own.
        row = Row(number, self.items[number], start, self.begun)
        self.begun += 1
        self.of[i] = number
        self.left[i] = 1 + int(torch.randint(self.attack.steps, (1,), generator=self.random))
        return starts_of(self.subject, [row], self.others, self.seed)[0].detach().clone()

    def now(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The embeddings, and the number of the image that each is after."""
        return torch.stack([at.detach() for at in self.at]), self.of

    def step(self) -> float:
        """One step of all; the mean error of the noise before it."""
        for i, at in enumerate(self.at):
            if not self.left[i]:
                with torch.no_grad():
                    at.copy_(self._start(i))
                self.adam.state.pop(at, None)
            self.left[i] -= 1
        draws = self.attack.draws
        latents = self.own[self.of].repeat_interleave(draws, 0)
        told = torch.stack(self.at).repeat_interleave(draws, 0)
        off, _ = _off(self.subject, latents, told, self.random)
        errors = off.square().flatten(1).mean(1)
        # Each search has a loss of its own, so that it goes as if it were alone.
        grads = torch.autograd.grad(errors.sum() / draws, self.at)
        for at, grad in zip(self.at, grads, strict=True):
            at.grad = grad
        self.adam.step()
        return float(errors.detach().mean())


class _Batches:
    """What an update trains on."""

    def __init__(
        self,
        subject: Pipeline,
        targets: torch.Tensor,
        keep: Sequence[Image],
        how: AdversarialTuning,
        random: torch.Generator,
    ):
        self.subject, self.how, self.random = subject, how, random
        self.targets = _latents(subject, list(targets.flatten(0, 1))).unflatten(0, tuple(targets.shape[:2]))
        self.kept = _latents(subject, [item.image for item in keep])
        self.told = subject.embed([item.prompt for item in keep])
        self.nothing = subject.embed([""])

    def losses(
        self, at: Float[torch.Tensor, "a n d"], of: Int[torch.Tensor, " a"]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean errors of surrogates under the embeddings, and of what is kept under its prompts."""
        how, random = self.how, self.random
        which = torch.randint(self.targets.shape[1], (len(at),), generator=random)
        stay = torch.randint(len(self.kept), (how.rows,), generator=random)
        without = torch.rand(how.rows, generator=random) < how.empty
        told = torch.where(without[:, None, None].to(self.told.device), self.nothing, self.told[stay])
        away = _error(self.subject, self.targets[of, which], at.to(told), random)
        return away, _error(self.subject, self.kept[stay], told, random)


def _share(done: float, warmup: float, one: float) -> float:
    """Share of the learning rate: a straight rise, then half a cosine down to zero."""
    if done < warmup:
        return (done + one) / (warmup + one)
    return 0.5 * (1 + math.cos(math.pi * (done - warmup) / (1 - warmup)))


@torch.no_grad()
def _latents(subject: Pipeline, images: Sequence[torch.Tensor]) -> torch.Tensor:
    return subject.encode(torch.stack(list(images)).to(subject.device, subject.dtype))


def _off(
    subject: Pipeline, latents: torch.Tensor, embeddings: torch.Tensor, random: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """How far the predicted noise is off, and the timesteps; of each row's equal part of the schedule, one."""
    n, top = len(latents), subject.n_timesteps
    part = (torch.randperm(n, generator=random) + torch.rand(n, generator=random)) / n
    t = (part * top).long().clamp(max=top - 1).to(subject.device)
    eps = torch.randn(latents.shape, generator=random).to(latents)
    noised = subject.add_noise(latents, eps, t)
    return (subject.noise(noised, t, embeddings.to(latents)) - eps).float(), t


def _error(
    subject: Pipeline, latents: torch.Tensor, embeddings: torch.Tensor, random: torch.Generator
) -> torch.Tensor:
    """Mean squared error of what the UNet was trained to predict."""
    off, t = _off(subject, latents, embeddings, random)
    data, noise = noise_scales(subject.pipe.scheduler, t, off)
    target = subject.pipe.scheduler.config.prediction_type
    if target == "v_prediction":
        # Noise is estimated as data * v + noise * x.
        off = off / data.clamp(min=_LEAST)
    elif target == "sample":
        off = off * noise / data.clamp(min=_LEAST)
    return off.square().mean()
