"""Small models that have learned to recall: presets, trained once and kept in the cache.

    model = trained("conv-attention")          # about half a minute the first time
    task = interp.task("mqar", pairs=16, n=256)
    heads = interp.RetrievalHeads().fit(model, task)

Each preset names a model, what it learns of the task `mqar`, and a recipe; see `interp zoo list`. Sequences hold mixed
numbers of pairs, since a model with learned positions that sees one number alone fails at others.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from interp.errors import UsageError
from interp.models import cache
from interp.models.cache import Progress, quiet

if TYPE_CHECKING:
    from interp.models.subject import CausalLM
    from interp.models.tokens import Tokens
    from interp.models.zoo.training import Batch, Recipe, Stage
    from interp.tasks.mqar import MQAR

VERSION = 1
"""Of presets and training; part of the name of the cached folder."""

HELD_OUT = 256
"""Sequences of each held-out set."""


@dataclass(frozen=True)
class Preset:
    """A model and what it learns.

    Attributes:
        about: one line for people.
        config: of `ZooConfig`.
        stages: parameters of the task `mqar` that is trained on, one stage after the other.
        recipe: of `interp.models.zoo.training.Recipe`.
    """

    about: str
    config: Mapping[str, Any]
    stages: tuple[Mapping[str, Any], ...]
    recipe: Mapping[str, Any] = field(default_factory=dict)


_MIXED: dict[str, Any] = {"length": 64, "pairs": (2, 4, 8, 16)}

PRESETS: dict[str, Preset] = {
    "conv-attention": Preset(
        "a short convolution, then one layer of attention without positions (Based's recipe)",
        {"conv_width": 3, "num_hidden_layers": 1, "positions": "none"},
        (_MIXED,),
    ),
    "attention": Preset(
        "two layers of attention with rotary positions",
        {
            "conv_width": 0,
            "num_hidden_layers": 2,
            "positions": "rotary",
            "rope_theta": 100.0,
            "initializer_range": 0.1,
        },
        ({"length": 12, "pairs": (2, 3)}, {"length": 24, "pairs": (2, 4, 6)}, _MIXED),
        {"steps": 1000},
    ),
    "zoology-64-4-64": Preset(
        "Zoology's attention at length 64, 4 pairs, width 64 (arXiv 2312.04927, figure 2); minutes to an hour",
        {
            "vocab_size": 8192,
            "conv_width": 0,
            "num_hidden_layers": 2,
            "num_attention_heads": 1,
            "positions": "learned",
            "max_position_embeddings": 64,
            "attention_bias": True,
            "dropout": 0.1,
        },
        ({"length": 64, "pairs": (4,)},),
        {
            "rates": tuple(float(rate) for rate in np.logspace(-4, -2, 4)),
            "steps": 64 * 196,
            "rows": 512,
            "pool": 100_000,
            "warmup": 1,
            "every": 196,
            "enough": 0.99,
        },
    ),
}
"""Models by name."""


def trained(
    name: str, *, seed: int = 0, changes: Mapping[str, Any] | None = None, progress: Progress = quiet
) -> CausalLM:
    """The model of a preset, trained; from the cache where it was trained before.

    Args:
        changes: of the preset's recipe.

    Raises:
        UsageError: there is no such preset, or the recipe has no such field.
        MissingResource: the cache cannot be written.
    """
    from interp.models.load import load

    return load(str(folder_of(name, seed=seed, changes=changes, progress=progress)), name=name)


def folder_of(
    name: str, *, seed: int = 0, changes: Mapping[str, Any] | None = None, progress: Progress = quiet
) -> Path:
    """The folder of a trained model, which `interp.load` and `--model` take; it is trained where it is absent."""
    from interp.models.zoo.config import ZooConfig
    from interp.models.zoo.training import race

    preset = _preset(name)
    recipe = _recipe(preset, changes)
    folder, about = _identity(name, preset, recipe, seed)

    def build(new: Path, scratch: Path) -> Mapping[str, Any]:
        tokens, config = _tokens(preset), ZooConfig(**preset.config)
        found = race(config, stages(preset, seed), recipe, seed=seed, progress=progress)
        found.module.save_pretrained(new)
        tokens.hf.save_pretrained(new)
        return {**about, "rate": found.rate, "history": found.history}

    return cache.install(folder, build, ready=lambda: cache.manifest(folder) is not None, progress=progress)


def stages(preset: Preset, seed: int) -> list[Stage]:
    """What a preset is trained on, with held-out sequences for each number of pairs."""
    from interp.models.zoo.training import Stage

    tokens, out = _tokens(preset), []
    for params in preset.stages:
        task = _mqar(params)

        def draw(rng: np.random.Generator, n: int, task: MQAR = task) -> Batch:
            return task.batch(rng, n, tokens)

        held_out = {
            f"{n} pairs": _mqar({**params, "pairs": n}).batch(
                np.random.default_rng([seed, 1, n]), HELD_OUT, tokens
            )
            for n in params["pairs"]
        }
        out.append(Stage(draw, held_out))
    return out


def history(name: str, *, seed: int = 0, changes: Mapping[str, Any] | None = None) -> dict[str, Any] | None:
    """How the cached model of a preset was trained: rate, history and all that identifies it; None if it was not."""
    preset = _preset(name)
    return cache.manifest(_identity(name, preset, _recipe(preset, changes), seed)[0])


def _preset(name: str) -> Preset:
    if name not in PRESETS:
        raise UsageError(f"no model '{name}' in the zoo; write one of {', '.join(PRESETS)}")
    return PRESETS[name]


def _recipe(preset: Preset, changes: Mapping[str, Any] | None) -> Recipe:
    from interp.models.zoo.training import Recipe

    given = {**preset.recipe, **(changes or {})}
    if unknown := sorted(set(given) - set(Recipe.__dataclass_fields__)):
        raise UsageError(
            f"a recipe has no {', '.join(unknown)}; it has {', '.join(Recipe.__dataclass_fields__)}"
        )
    return Recipe(**given)


def _identity(name: str, preset: Preset, recipe: Recipe, seed: int) -> tuple[Path, dict[str, Any]]:
    about = {"version": VERSION, "preset": name, "seed": seed, "config": dict(preset.config)}
    about |= {"stages": [dict(stage) for stage in preset.stages], "recipe": asdict(recipe)}
    key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
    return cache.cache_dir() / "zoo" / f"{name}-{seed}-{key}", about


def _tokens(preset: Preset) -> Tokens:
    from interp.models.zoo.config import ZooConfig
    from interp.tasks.symbols import symbols

    return symbols(ZooConfig(**preset.config).vocab_size)


def _mqar(params: Mapping[str, Any]) -> MQAR:
    from interp.tasks.mqar import MQAR

    return MQAR(**params)
