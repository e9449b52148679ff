"""What a search of embeddings goes down, and when it is over: errors of images, and samples that are looked at.

A search is over when its embedding gives its image back, from seeds that it has not looked at, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float

from interp.measure.memorization.distances import features
from interp.measure.memorization.extraction import Yardstick
from interp.measure.memorization.objective import draws_of
from interp.models.pipeline import Pipeline

if TYPE_CHECKING:
    from interp.intervene.attack.embeddings import EmbeddingSearch, Sampling


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


class Looker:
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


class Extracting(Errors):
    """A search is over when its embedding gives the image back, from seeds that it has not looked at, too."""

    def __init__(
        self,
        subject: Pipeline,
        rows: Sequence[Row],
        looker: Looker,
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
