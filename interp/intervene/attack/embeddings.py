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
from typing import Literal, Protocol, get_args

import pandas as pd
import torch
from jaxtyping import Float

from interp.errors import UsageError
from interp.intervene.attack.extracting import Extracting, Looker, Row
from interp.intervene.attack.search import descend, generator
from interp.measure.memorization.extraction import Item, Yardstick
from interp.measure.memorization.objective import Image
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
    looker = Looker(subject, items, yardstick, sampling, batch)
    goal = Extracting(subject, rows, looker, search, seed, batch)
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
