"""What a study of memorization is asked for: a frozen spec, in YAML or in Python."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from interp.studies.base import StudySpec

Cheap = Literal["wanda paired", "wanda prompts", "activation", "gradient", "nemo", "subspace", "flat"]
Dear = Literal["integrated", "hard_concrete", "balanced_subnet", "contrastive"]
Start = Literal["prompt", "normal", "other"]
Attacked = Literal["targeted", "unseen", "held_out", "control"]


class MemorizationSpec(StudySpec):
    """A study of memorization in pipelines that are trained on digits; `model` is the preset of their recipe.

    Everything is located on one half of the memorized pictures (A) and measured on it, on the other half (B), on
    controls and on ordinary prompts. Doses are chosen on the first training seed, from samples of A that are not
    measured again.
    """

    SMALL: ClassVar[Mapping[str, Any]] = {
        "train_seeds": (0,),
        "memorized": 12,
        "samples": 2,
        "base": 40,
        "doses": (0.03, 0.1, 0.3),
        "ranks": (1, 4),
        "masses": (0.9, 0.6),
        "dear": (),
        "draws": 99,
        "attacked": 6,
        "attack_sets": ("targeted", "unseen"),
        "restarts": 1,
        "starts": ("normal",),
        "rounds": 4,
        "taus": (),
        "random": 1,
        "random_other": 0,
        "trajectory": (),
        "held_out": 48,
    }

    model: str = "full"
    memorized: int | None = Field(None, ge=4, description="memorized pictures; default those of the recipe")
    train_seeds: tuple[int, ...] = Field(
        (0, 1, 2, 3), description="seeds of pipelines and their oracles; settings are chosen on the first"
    )
    guidance: float = Field(1.0, ge=0, description="of all samples; 1 is none")
    also: tuple[float, ...] = Field((1.5,), description="guidances at which replication is measured, too")
    steps: int = Field(25, ge=2, description="denoising steps")
    samples: int = Field(4, ge=1, description="samples of an item")
    first: int = Field(
        5000, ge=0, description="their first seed; what is chosen, is chosen on seeds before it"
    )
    base: int = Field(60, ge=20, le=60, description="ordinary prompts, a sample each, under each edit")
    held_out: int = Field(96, ge=8, description="held-out pictures whose denoising error is measured")

    doses: tuple[float, ...] = Field(
        (0.001, 0.003, 0.01, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5),
        description="shares of the weights that are cut",
    )
    ranks: tuple[int, ...] = Field((1, 2, 4, 8), description="directions that are taken out of each part")
    masses: tuple[float, ...] = Field(
        (0.99, 0.95, 0.9, 0.8, 0.6), description="shares of the curvature that are kept"
    )
    cheap: tuple[Cheap, ...] = Field(
        ("wanda paired", "wanda prompts", "activation", "gradient", "nemo", "subspace", "flat"),
        description="locators whose doses are measured, beside the published and the corrected rule",
    )
    dear: tuple[Dear, ...] = Field(
        ("integrated", "hard_concrete", "balanced_subnet", "contrastive"),
        description="locators of a single dose",
    )
    tau: int = Field(10, ge=1, description="first denoising steps that statistics are of")
    taus: tuple[int, ...] = Field(
        (1, 3), description="fewer steps, whose dose curves are measured of the judged rules"
    )
    random: int = Field(3, ge=1, description="random controls of each judged edit")
    random_other: int = Field(
        1, ge=0, description="of each other edit, at most those; 0: no controls of these"
    )
    erased: float = Field(0.1, gt=0, lt=1, description="replication of A that counts as erased")

    draws: int = Field(200, ge=19, description="deals of a permutation null")
    attacked: int = Field(10, ge=2, description="pictures of each kind that are attacked")
    attack_sets: tuple[Attacked, ...] = Field(
        ("targeted", "unseen", "held_out", "control"), description="sets that are attacked"
    )
    starts: tuple[Start, ...] = Field(("prompt", "normal", "other"), description="of the attack")
    restarts: int = Field(1, ge=1, description="of the attack, from each start, on the first training seed")
    attack_steps: int = Field(50, ge=1, description="updates of a search, at most")
    updates: int = Field(
        50, ge=1, description="of the weights, in a round of adversarial fine-tuning; of a negation"
    )
    rounds: int = Field(6, ge=1, description="of adversarial fine-tuning")
    trajectory: tuple[float, ...] = Field(
        (0.25, 0.5, 0.75, 1.0),
        description="parts of a training after which exposures are looked at; none: left out",
    )

    @classmethod
    def quick(cls, model: str = "quick", **changes: Any) -> Self:
        """The same parts with less of everything."""
        return super().quick("quick" if model == "full" else model, **changes)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        from interp.models.zoo.digits.subject import PRESETS

        if self.model not in PRESETS:
            raise ValueError(f"no preset '{self.model}' of digits; there are {', '.join(PRESETS)}")
        if not self.train_seeds or len(set(self.train_seeds)) < len(self.train_seeds):
            raise ValueError("train_seeds are one or more seeds, each once")
        if any(not 1 <= tau < self.tau for tau in self.taus) or self.random_other > self.random:
            raise ValueError(f"taus are of fewer than {self.tau} steps, and random_other is at most random")
        if self.tau > self.steps:
            raise ValueError(f"tau is the first of {self.steps} denoising steps, and cannot be {self.tau}")
        if (
            not self.doses
            or list(self.doses) != sorted(set(self.doses))
            or not 0 < self.doses[0] <= self.doses[-1] < 1
        ):
            raise ValueError("doses are rising shares between 0 and 1")
        return self
