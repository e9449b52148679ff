"""Mixers: how a layer moves information between tokens, one file each."""

from __future__ import annotations

from interp.models.zoo.mixers.attention import Attention
from interp.models.zoo.mixers.base import Around, Mixer
from interp.models.zoo.mixers.short_conv import ShortConv

__all__ = ["MIXERS", "Around", "Attention", "Mixer", "ShortConv"]

MIXERS: dict[str, type[Mixer]] = {"attention": Attention}
"""The mixers that a model's layers can have."""
