"""One training seed: its pipeline and oracle, its items by what they stand for, and what measures them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd

from interp.studies.base import Stage
from interp.studies.memorization.spec import MemorizationSpec

if TYPE_CHECKING:
    import torch

    from interp.measure.memorization.encoder import TrainedEncoder
    from interp.measure.memorization.extraction import Yardstick
    from interp.measure.memorization.retention import Judge
    from interp.models.pipeline import Pipeline
    from interp.models.zoo.digits.data import DigitSet, Recipe
    from interp.tasks.memorized import ImageItem

Role = Literal["model", "oracle"]
ROLES: tuple[Role, ...] = ("model", "oracle")

ORDINARY = 30
"""Ordinary prompts that are measured; the rest is what locators compare with, and what edits are trained to keep."""
OFTEN = 100
"""Exposures from which a graded item counts as memorized."""
KEPT = 60
"""Ordinary training pictures that locators are given to keep."""
BATCH = 64


class Bench:
    """Everything that a training seed has; pipelines are trained where the cache has none.

    Args:
        spec: of the study. seed: of the training. stage: shows progress.
    """

    def __init__(self, spec: MemorizationSpec, seed: int, stage: Stage | None = None):
        self.spec = spec
        self.seed = seed
        self.stage: Stage = stage or (lambda name: nullcontext(None))

    # -- subjects ----------------------------------------------------------------------------------------------------

    def recipe(self, role: Role = "model") -> Recipe:
        """What a pipeline is trained by."""
        from interp.models.zoo.digits.subject import preset

        changes = {} if self.spec.memorized is None else {"memorized": self.spec.memorized}
        return preset(self.spec.model, seed=self.seed, oracle=role == "oracle", **changes)

    def subject(self, role: Role = "model") -> Pipeline:
        """The pipeline, or its oracle."""
        return self.pipeline if role == "model" else self.oracle

    @cached_property
    def pipeline(self) -> Pipeline:
        """The pipeline that memorizes."""
        return self._trained("model")

    @cached_property
    def oracle(self) -> Pipeline:
        """The same training without what is memorized."""
        return self._trained("oracle")

    def _trained(self, role: Role) -> Pipeline:
        from interp.models.cache import quiet
        from interp.models.zoo.digits.subject import digits_pipeline

        with self.stage(f"pipeline {self.seed}: {role}") as report:
            return digits_pipeline(self.recipe(role), progress=report or quiet)

    # -- items -------------------------------------------------------------------------------------------------------

    @cached_property
    def data(self) -> DigitSet:
        """What the pipeline was shown."""
        from interp.models.zoo.digits.data import digit_set

        return digit_set(self.recipe())

    @cached_property
    def items(self) -> tuple[ImageItem, ...]:
        """All items."""
        from interp.tasks.digits import digit_items

        return digit_items(self.data)

    @cached_property
    def sets(self) -> dict[str, tuple[ImageItem, ...]]:
        """Items by what they stand for: targeted (A), held_out (B), retained, control, unseen."""
        graded = ("graded", "early")
        own = {
            "targeted": [i for i in self.items if i.split == "locate"],
            "held_out": [i for i in self.items if i.split == "test"],
            "retained": [
                i
                for i in self.items
                if i.group in ("varied", "template") or (i.group == graded[0] and i.exposures >= OFTEN)
            ],
            "control": [i for i in self.items if i.group == "control"],
            "unseen": [i for i in self.items if i.group == "unseen"],
        }
        return {name: tuple(some) for name, some in own.items()}

    def set_of(self, item: str) -> str:
        """What an item (by name) stands for; nothing for those that are in no set."""
        return next((n for n, some in self.sets.items() if any(i.name == item for i in some)), "")

    @cached_property
    def own_images(self) -> dict[str, torch.Tensor]:
        """All pictures of each control word."""
        from interp.tasks.digits import images_of

        return {i.name: images_of(self.data, i.name) for i in self.sets["control"]}

    @cached_property
    def ordinary(self) -> tuple[tuple[str, int], ...]:
        """Ordinary prompts that are measured, with the digit that each asks for."""
        from interp.tasks.digits import base_prompts

        return base_prompts()[:ORDINARY]

    @cached_property
    def reference(self) -> tuple[str, ...]:
        """Other ordinary prompts, that locators compare with."""
        from interp.tasks.digits import base_prompts

        return tuple(text for text, _ in base_prompts()[ORDINARY:])

    @property
    def kept(self) -> tuple[ImageItem, ...]:
        """Some of the ordinary training pictures."""
        return self.base[:KEPT]

    @cached_property
    def base(self) -> tuple[ImageItem, ...]:
        """Ordinary training pictures with their captions, which are none of those that are measured."""
        import torch

        from interp.tasks.memorized import ImageItem

        base = [s for s in self.data.showings if not s.item and s.caption in set(self.reference)]
        images = torch.from_numpy(self.data.images[[s.image for s in base]])[:, None]
        return tuple(
            ImageItem(f"base-{n:03d}", s.caption, image, "base", "", s.times)
            for n, (s, image) in enumerate(zip(base, images, strict=True))
        )

    @cached_property
    def unknown(self) -> tuple[ImageItem, ...]:
        """Held-out pictures under ordinary captions."""
        from interp.tasks.digits import held_out

        return held_out(self.data)

    # -- what measures -----------------------------------------------------------------------------------------------

    @cached_property
    def train(self) -> torch.Tensor:
        """Training pictures, each once."""
        from interp.tasks.digits import train_images

        return train_images(self.data)

    @cached_property
    def new(self) -> torch.Tensor:
        """Held-out pictures."""
        import torch

        return torch.stack([item.image for item in self.unknown])

    @cached_property
    def yardstick(self) -> Yardstick:
        """What counts as a copy, in pixels."""
        from interp.measure.memorization.extraction import Yardstick

        return Yardstick(self.train, self.new)

    @cached_property
    def encoder(self) -> TrainedEncoder:
        """Trained on the training pictures."""
        from interp.measure.memorization.encoder import train_encoder

        with self.stage(f"encoder {self.seed}") as report:
            return train_encoder(self.train, dim=32, seed=self.seed, progress=report)

    @cached_property
    def encoded_yardstick(self) -> Yardstick:
        """What counts as a copy, in the encoder's space."""
        from interp.measure.memorization.extraction import Yardstick

        return Yardstick(self.train, self.new, encoder=self.encoder)

    @cached_property
    def classifier(self) -> Judge:
        """Tells digits."""
        from interp.measure.memorization.retention import Judge
        from interp.tasks.digits import train_labels

        return Judge(self.train, train_labels(self.data))

    # -- samples -----------------------------------------------------------------------------------------------------

    @property
    def seeds(self) -> tuple[int, ...]:
        """Of the samples that are reported."""
        return tuple(range(self.spec.first, self.spec.first + self.spec.samples))

    @property
    def choosing(self) -> tuple[int, ...]:
        """Of the samples that settings are chosen on; no other sample has one of them."""
        return (self.spec.first - 2, self.spec.first - 1)

    def draw(
        self, subject: Pipeline, prompts: Sequence[str], seeds: Sequence[int], guidance: float | None = None
    ) -> torch.Tensor:
        """Samples of each prompt, prompts x seeds c h w."""
        every = [p for p in prompts for _ in seeds]
        drawn = self.draw_each(subject, every, list(seeds) * len(prompts), guidance)
        return drawn.unflatten(0, (len(prompts), len(seeds)))

    def draw_each(
        self, subject: Pipeline, prompts: Sequence[str], seeds: Sequence[int], guidance: float | None = None
    ) -> torch.Tensor:
        """A sample of each prompt, from its seed."""
        return subject.sample(
            prompts,
            seeds,
            steps=self.spec.steps,
            guidance=self.spec.guidance if guidance is None else guidance,
            batch=BATCH,
        ).cpu()

    def extracted(self, samples: torch.Tensor, items: Sequence[ImageItem]) -> pd.DataFrame:
        """Which samples are copies, in pixels."""
        from interp.measure.memorization.extraction import extraction

        return extraction(samples, items, self.yardstick, images=self.own_images)

    def about(self, role: Role) -> dict[str, Any]:
        """A row of `subjects`."""
        subject = self.subject(role)
        return {
            "seed": self.seed,
            "role": role,
            "name": subject.name,
            "fingerprint": subject.fingerprint,
            "train_images": len(self.yardstick.train),
            "held_out": len(self.new),
            "threshold": self.yardstick.threshold,
            "threshold_encoder": self.encoded_yardstick.threshold,
            "judge": self.classifier.accuracy(self.new, self.data.labels[self.data.held_out]),
        }
