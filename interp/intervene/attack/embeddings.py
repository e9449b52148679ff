"""Adversarial embeddings: a pipeline's text embedding is searched until it gives a certain image back.

What the UNet is told is any point of the embedding space, so this attack asks whether the weights still hold an image,
not whether a prompt reaches it. It is that of Dori (arXiv 2507.16880): Adam on the denoising error of the image, with
fresh timesteps and noise at each step, from the image's prompt, from noise, or from another prompt. All images, starts
and restarts are searched side by side, and each is equal to a search of its own.

An embedding has many numbers, and a small image few: the search may paint an image that no weight holds. So it is run
on images that were never trained on as well, and on a model that never saw the image; what is extracted counts as far
as it takes less work than those.

A search looks many times, and ends where a look succeeds: the seeds that it looked at say more than is true. So what it
found is drawn again from seeds that no look has seen, and these alone say whether the image was extracted. Where they
say it was not, the search goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

import pandas as pd
import torch
from jaxtyping import Bool, Float

from interp.errors import UsageError
from interp.intervene.attack.search import descend, generator
from interp.measure.memorization.distances import features
from interp.measure.memorization.extraction import Item, Yardstick
from interp.measure.memorization.objective import Image, draws_of
from interp.models.cache import Progress, quiet
from interp.models.pipeline import Pipeline

Start = Literal["prompt", "normal", "other"]
STARTS: tuple[str, ...] = get_args(Start)


class Target(Image, Item, Protocol):
    """An image that is searched; a dataclass, as `ImageItem` is."""


@dataclass(frozen=True)
class EmbeddingSearch:
    """How embeddings are searched; the defaults are Dori's.

    Attributes:
        steps: updates, at most.
        rate: Adam's learning rate.
        draws: of (t, eps) a step, fresh each time; their timesteps are stratified.
        starts: `prompt`, the embedding of the image's prompt; `normal`, N(0, 1) in each coordinate; `other`, the
            embedding of another prompt.
        restarts: searches from each start. Those from the prompt differ in their draws alone.
        every: updates between two looks at whether the image is extracted; there is one after the last, too.

    Raises:
        UsageError: no such start, or numbers below the least.
    """

    steps: int = 50
    rate: float = 0.1
    draws: int = 8
    starts: tuple[Start, ...] = STARTS  # type: ignore[assignment]
    restarts: int = 1
    every: int = 10

    def __post_init__(self) -> None:
        if not self.starts or set(self.starts) - set(STARTS):
            raise UsageError(f"starts {self.starts}: write some of {', '.join(STARTS)}")
        if min(self.steps, self.draws, self.restarts, self.every) < 1 or self.rate <= 0:
            raise UsageError("a search needs steps, draws, restarts and every >= 1 and rate > 0")


@dataclass(frozen=True)
class Sampling:
    """How images are asked for, and when one counts as extracted.

    Attributes:
        seeds: of the first latents; one sample each. Searches look at these.
        steps, guidance: as of `Pipeline.denoise`.
        need: share of the samples that have to be copies.
        judge: fresh samples that judge what a search found; see `fresh`.

    Raises:
        UsageError: no seeds, a share that is none, or fewer than four samples to judge by.
    """

    seeds: tuple[int, ...] = (0, 1, 2, 3)
    steps: int = 25
    guidance: float = 1.5
    need: float = 0.5
    judge: int = 8

    def __post_init__(self) -> None:
        if not self.seeds or not 0 < self.need <= 1:
            raise UsageError(f"seeds {self.seeds}, need {self.need}: give seeds, and a share above 0 up to 1")
        if self.judge < 4:
            raise UsageError(f"judge={self.judge}: fewer than 4 fresh samples judge nothing")

    def fresh(self, look: int) -> tuple[int, ...]:
        """Seeds that judge what the look of that number found: above all `seeds`, and other ones for each look."""
        first = max(self.seeds) + 1 + look * self.judge
        return tuple(range(first, first + self.judge))


@dataclass(frozen=True)
class Recovered:
    """What a search of embeddings found.

    Attributes:
        table: one row for each image, start and restart: item, group, split, exposures, start, restart; `before` (share
            of the prompt's samples that are copies), `extracted` (1 where of fresh samples at its end the share of
            copies, `share`, reaches `need`), `own` (mean distance of these to the image), `screened` (share of copies
            on the seeds that the search looks at, at its end), `refused` (looks that fresh samples did not bear out),
            `steps` (updates until it was extracted, NaN where never), `work` (UNet rows run forward and backward until
            then, or in vain), `sampled` (rows run to look and to judge), `first` and `last` (denoising error before the
            search and at its end).
        embeddings: where each row ended.
        images: its fresh samples there.
        before: the samples of each item's prompt.
    """

    table: pd.DataFrame
    embeddings: Float[torch.Tensor, "rows n d"]
    images: Float[torch.Tensor, "rows j c h w"]
    before: Float[torch.Tensor, "items s c h w"]


def adversarial_embeddings(
    subject: Pipeline,
    items: Sequence[Target],
    yardstick: Yardstick,
    search: EmbeddingSearch | None = None,
    sampling: Sampling | None = None,
    *,
    others: Sequence[str] = (),
    seed: int = 0,
    batch: int = 256,
    stop: bool = True,
    progress: Progress = quiet,
) -> Recovered:
    """Search embeddings that make a pipeline give images back.

    Args:
        subject: the pipeline as it is now, edits included.
        items: the images, controls and images that it never saw among them.
        yardstick: says how near a copy is.
        others: prompts that `other` starts from; one is drawn for each image and restart.
        seed: of the starts and draws; those of an image depend on its name too, and on nothing else.
        batch: UNet rows of a pass.
        stop: a search ends where it extracted its image; else all go on to their last step, and are judged there.
        progress: told about steps.

    Raises:
        UsageError: no items, two of one name, or no other prompts.
        EngineError: a loss is not finite.
    """
    search, sampling = search or EmbeddingSearch(), sampling or Sampling()
    if not items or len({item.name for item in items}) < len(items):
        raise UsageError("the attack needs images, each with a name of its own")
    if "other" in search.starts and not others:
        raise UsageError("starts from other prompts need some: give `others`, or other `starts`")
    rows = rows_of(items, search)
    looker = _Looker(subject, items, yardstick, sampling, batch)
    goal = _Extracting(subject, rows, looker, search, seed, batch)
    starts = starts_of(subject, rows, others, seed)
    end = descend(
        starts, goal, rate=search.rate, steps=search.steps, stop=stop, progress=progress, what="embeddings"
    )
    share, own = looker.judge(goal.images, [row.number for row in rows])
    steps = end.steps.double()
    table = pd.DataFrame(
        {
            "item": [row.item.name for row in rows],
            "group": [row.item.group for row in rows],
            "split": [row.item.split for row in rows],
            "exposures": [row.item.exposures for row in rows],
            "start": [row.start for row in rows],
            "restart": [row.restart for row in rows],
            "before": looker.before_share[[row.number for row in rows]].numpy(),
            "extracted": end.found.double().numpy(),
            "share": share.numpy(),
            "own": own.numpy(),
            "screened": goal.screened.numpy(),
            "refused": goal.refused.numpy(),
            "steps": steps.where(end.found, torch.nan).numpy(),
            "work": (end.steps * search.draws).numpy(),
            "sampled": goal.sampled.numpy(),
            "first": end.first.double().numpy(),
            "last": end.last.double().numpy(),
        }
    )
    return Recovered(table, end.at, goal.images, looker.before)


@dataclass(frozen=True)
class Row:
    """One search: of the image of that number, from a start."""

    number: int
    item: Any
    start: str
    restart: int

    @property
    def name(self) -> str:
        """What its start and its draws depend on, beside the seed."""
        return f"{self.item.name} {self.start} {self.restart}"


def rows_of(items: Sequence[Target], search: EmbeddingSearch) -> list[Row]:
    """All searches of some images, image by image."""
    return [
        Row(i, item, start, restart)
        for i, item in enumerate(items)
        for start in search.starts
        for restart in range(search.restarts)
    ]


def starts_of(
    subject: Pipeline, rows: Sequence[Row], others: Sequence[str], seed: int
) -> Float[torch.Tensor, "rows n d"]:
    """Where each search begins, in fp32."""
    out: list[torch.Tensor] = []
    texts: dict[str, torch.Tensor] = {}
    shape = subject.embed([""])[0].shape
    for row in rows:
        random = generator("embedding", seed, row.name)
        if row.start == "normal":
            out.append(torch.randn(shape, generator=random).to(subject.device))
            continue
        other = row.start == "other"
        text = others[int(torch.randint(len(others), (1,), generator=random))] if other else row.item.prompt
        if text not in texts:
            texts[text] = subject.embed([text])[0].float()
        out.append(texts[text])
    return torch.stack(out)


class _Looker:
    """Looks whether embeddings give images back."""

    def __init__(
        self,
        subject: Pipeline,
        items: Sequence[Any],
        yardstick: Yardstick,
        sampling: Sampling,
        batch: int,
    ):
        self.subject, self.yardstick, self.sampling = subject, yardstick, sampling
        # With guidance each sample takes two rows.
        self.rows = len(subject.timesteps(sampling.steps)) * (2 if sampling.guidance > 1 else 1)
        self.batch = max(1, batch // 2 if sampling.guidance > 1 else batch)
        images = torch.stack([item.image for item in items]).to(subject.device)
        self.own = features(images, yardstick.encoder)
        with torch.no_grad():
            self.latents = subject.encode(images)
        self.before = self.sample(subject.embed([item.prompt for item in items]), sampling.seeds)
        self.before_share, _ = self.judge(self.before, range(len(items)))

    def sample(
        self, at: Float[torch.Tensor, "a n d"], seeds: Sequence[int]
    ) -> Float[torch.Tensor, "a s c h w"]:
        """A sample from each seed, of each embedding."""
        sampling = self.sampling
        images = self.subject.sample(
            at.repeat_interleave(len(seeds), 0),
            list(seeds) * len(at),
            steps=sampling.steps,
            guidance=sampling.guidance,
            batch=self.batch,
        )
        return images.unflatten(0, (len(at), len(seeds)))

    def judge(
        self, images: Float[torch.Tensor, "a s c h w"], numbers: Sequence[int]
    ) -> tuple[Float[torch.Tensor, " a"], Float[torch.Tensor, " a"]]:
        """Share of the samples that are copies of the images of those numbers, and their mean distance."""
        found = features(images.flatten(0, 1), self.yardstick.encoder).unflatten(0, images.shape[:2])
        away = (found - self.own[list(numbers)][:, None]).norm(dim=-1).double()
        return (away < self.yardstick.threshold).double().mean(1), away.mean(1)


class Errors:
    """The denoising error of each search's image, under draws that are fresh at each step."""

    def __init__(
        self,
        subject: Pipeline,
        rows: Sequence[Row],
        latents: Float[torch.Tensor, "items c h w"],
        search: EmbeddingSearch,
        seed: int,
        batch: int,
    ):
        self.subject, self.rows, self.latents = subject, rows, latents
        self.search, self.seed = search, seed
        self.size = max(1, batch // search.draws)

    def groups(self, starts: Sequence[int]) -> list[list[int]]:
        """So many searches at once as fill a pass with their draws."""
        return [list(starts[i : i + self.size]) for i in range(0, len(starts), self.size)]

    def __call__(
        self, starts: Sequence[int], at: Float[torch.Tensor, "a n d"], step: int
    ) -> tuple[Float[torch.Tensor, " a"], Bool[torch.Tensor, " a"]]:
        """Error of each, and whether the search is over."""
        chosen = [self.rows[i] for i in starts]
        losses = error(
            self.subject,
            self.latents[[row.number for row in chosen]],
            at,
            [f"{row.name} {step}" for row in chosen],
            self.search.draws,
            self.seed,
        )
        return losses, self.look(starts, at.detach(), step)

    def look(
        self, starts: Sequence[int], at: Float[torch.Tensor, "a n d"], step: int
    ) -> Bool[torch.Tensor, " a"]:
        """Whether each search is over; here none is before its last step."""
        return torch.zeros(len(starts), dtype=torch.bool)


class _Extracting(Errors):
    """A search is over when its embedding gives the image back, from seeds that it has not looked at, too."""

    def __init__(
        self,
        subject: Pipeline,
        rows: Sequence[Row],
        looker: _Looker,
        search: EmbeddingSearch,
        seed: int,
        batch: int,
    ):
        super().__init__(subject, rows, looker.latents, search, seed, batch)
        self.looker = looker
        self.images = looker.before.new_zeros(len(rows), looker.sampling.judge, *looker.before.shape[2:])
        self.screened = looker.before_share[[row.number for row in rows]].clone()
        self.sampled = torch.zeros(len(rows), dtype=torch.long)
        self.refused = torch.zeros(len(rows), dtype=torch.long)

    def look(self, starts: Sequence[int], at: torch.Tensor, step: int) -> torch.Tensor:
        done = torch.zeros(len(starts), dtype=torch.bool)
        last = step == self.search.steps
        if step % self.search.every and not last:
            return done
        screened = self._screened(starts, at, step)
        told = screened >= self.looker.sampling.need
        # At its end every search is judged, so that `share` is of the same kind of samples for all.
        asked = [k for k in range(len(starts)) if told[k] or last]
        if asked:
            rows = [starts[k] for k in asked]
            images = self.looker.sample(at[asked], self.looker.sampling.fresh(-(-step // self.search.every)))
            self.sampled[rows] += self.looker.rows * images.shape[1]
            share, _ = self.looker.judge(images, [self.rows[i].number for i in rows])
            done[asked] = share >= self.looker.sampling.need
            self.images[rows] = images
            self.screened[rows] = screened[asked]
            self.refused[rows] += (told[asked] & ~done[asked]).long()
        return done

    def _screened(self, starts: Sequence[int], at: torch.Tensor, step: int) -> torch.Tensor:
        """Share of copies on the seeds that are looked at; 0 where the first of them is none, before the end."""
        looker, seeds = self.looker, self.looker.sampling.seeds
        out = torch.zeros(len(starts), dtype=torch.double)
        if step == 0:
            # What the prompt gives is known.
            for k, i in enumerate(starts):
                if self.rows[i].start == "prompt":
                    out[k] = looker.before_share[self.rows[i].number]
            return out
        # Before the end the first seed tells whether the others are worth a look.
        worth = list(range(len(starts)))
        images = looker.sample(at, seeds[:1])
        self.sampled[list(starts)] += looker.rows
        if step < self.search.steps:
            share, _ = looker.judge(images, [self.rows[i].number for i in starts])
            worth = [k for k in worth if share[k]]
        if not worth:
            return out
        whole = images[worth]
        if len(seeds) > 1:
            whole = torch.cat([whole, looker.sample(at[worth], seeds[1:])], dim=1)
        rows = [starts[k] for k in worth]
        self.sampled[rows] += looker.rows * (len(seeds) - 1)
        out[worth], _ = looker.judge(whole, [self.rows[i].number for i in rows])
        return out


@dataclass(frozen=True)
class _Named:
    name: str


def error(
    subject: Pipeline,
    latents: Float[torch.Tensor, "a c h w"],
    embeddings: Float[torch.Tensor, "a n d"],
    names: Sequence[str],
    draws: int,
    seed: int,
) -> Float[torch.Tensor, " a"]:
    """Mean denoising error of latents under embeddings, in one pass; draws are those of the names, see `draws_of`."""
    named: list[Any] = [_Named(name) for name in names]
    drawn = [draws_of(subject, item, draws, seed) for item in named]
    t, eps = torch.cat([pair[0] for pair in drawn]), torch.cat([pair[1] for pair in drawn])
    noised = subject.add_noise(latents.repeat_interleave(draws, 0), eps, t)
    told = embeddings.to(subject.dtype).repeat_interleave(draws, 0)
    found = subject.noise(noised, t, told)
    return (found - eps).float().square().flatten(1).mean(1).view(-1, draws).mean(1)
