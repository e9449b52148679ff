"""A small untrained pipeline of seven transformer blocks, in which a prompt changes what the UNet does."""

from __future__ import annotations

from functools import cache
from typing import Any

from interp.models.pipeline import Pipeline
from interp.models.zoo.digits.build import build
from tests.pipelines import shaken

WORDS = [
    *("a", "poster", "of", "the", "zorax", "velim", "quint", "mapor", "tiber", "lurid"),
    *("one", "two", "three", "four", "five", "six"),
]
TEXTS = ("zorax poster of the one", "velim poster of the two", "quint poster of the one")
OTHERS = ("a poster of the three", "the four", "poster of a one")


def raw_pipeline(scheduler: Any = None, width: int = 32) -> Any:
    """The diffusers pipeline."""
    pipe = build(WORDS, seed=1, channels=(width // 2, width), width=width)
    shaken(pipe.unet, 3)
    shaken(pipe.text_encoder, 2)
    if scheduler is not None:
        pipe.scheduler = scheduler
    return pipe


@cache
def small_pipeline() -> Pipeline:
    """As a subject; shared, so leave it as it was."""
    return Pipeline(raw_pipeline(), name="small")
