"""Trained tiny pipelines: three sizes of recipe, and the cache folder that each is kept in.

from interp.models.zoo.digits.subject import digits_pipeline, preset
pipeline = digits_pipeline("full", seed=0)                 # trains where the cache has none
oracle = digits_pipeline("full", seed=0, oracle=True)      # the same without what is memorized
items = digit_items(preset("full", seed=0))                # of interp.tasks.digits
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interp.errors import MissingResource, UsageError
from interp.models import cache
from interp.models.cache import Progress, quiet
from interp.models.zoo.digits.data import Recipe

if TYPE_CHECKING:
    from interp.models.pipeline import Pipeline

PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {
        "memorized": 6,
        "exposures": 300,
        "controls": 2,
        "control_exposures": 10,
        "varied": 0,
        "template": 0,
        "levels": (),
        "early_levels": (),
        "base_images": 200,
        "base": 8,
    },
    "quick": {
        "memorized": 10,
        "exposures": 300,
        "controls": 5,
        "control_exposures": 10,
        "varied": 2,
        "template": 2,
        "levels": (10, 30, 100),
        "early_levels": (),
        "per_level": 2,
        "base_images": 500,
    },
    "full": {},
}
"""Settings of each preset, where they differ from the recipe's own; `tiny` is for tests."""

_BYTES_NEEDED = 20_000_000


def preset(name: str, *, seed: int = 0, oracle: bool = False, **changes: Any) -> Recipe:
    """The recipe of a name (`tiny`, `quick`, `full`), with another seed or setting.

    Raises:
        UsageError: no such preset, or no such setting.

    Example:
        >>> preset("full", seed=1).seed, preset("tiny").memorized < preset("full").memorized
        (1, True)
    """
    from pydantic import ValidationError

    if name not in PRESETS:
        raise UsageError(f"no preset '{name}'; there are {', '.join(PRESETS)}")
    try:
        return Recipe(**{**PRESETS[name], "seed": seed, "oracle": oracle, **changes})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UsageError(f"recipe of digits: {where or name}: {first['msg']}") from error


def folder(recipe: Recipe) -> Path:
    """Where the trained pipeline lies, once there is one."""
    return cache.cache_dir() / "digits" / recipe.key


def trained(recipe: Recipe, *, force: bool = False, progress: Progress = quiet) -> Path:
    """Folder of the trained pipeline, trained first where the cache has none; `interp.load` reads it.

    Args:
        force: train anew, whatever is there.

    Raises:
        MissingResource: diffusers is not installed, the cache cannot be written, or the disk is full.
    """
    if find_spec("diffusers") is None:
        raise MissingResource("diffusion pipelines need diffusers: pip install 'interp-memory[diffusion]'")
    target = folder(recipe)
    return cache.install(
        target,
        partial(_train, recipe, progress),
        ready=lambda: not force and cache.manifest(target) is not None,
        bytes_needed=_BYTES_NEEDED,
        progress=progress,
    )


def digits_pipeline(
    name: str | Recipe = "full", *, seed: int = 0, oracle: bool = False, progress: Progress = quiet
) -> Pipeline:
    """The trained pipeline of a preset or a recipe, as a subject; trained first where the cache has none.

    Args:
        name: a preset, or a recipe (which has its own `seed` and `oracle`).

    Raises:
        UsageError: no such preset.
        MissingResource: see `trained`.
    """
    from interp.models.load import load

    recipe = name if isinstance(name, Recipe) else preset(name, seed=seed, oracle=oracle)
    called = "digits" if isinstance(name, Recipe) else f"digits-{name}"
    label = f"{called}-{recipe.seed}" + ("-oracle" if recipe.oracle else "")
    return load(trained(recipe, progress=progress), name=label)


def export(folder: Path, out: Path) -> None:
    """Copy a trained folder to a place that is free; it is there whole or not at all.

    Raises:
        UsageError: something is there.
    """
    if out.exists():
        raise UsageError(f"{out} exists; give a folder that does not")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as staging:
        shutil.copytree(folder, Path(staging) / "new")
        (Path(staging) / "new").rename(out)


def _train(recipe: Recipe, progress: Progress, new: Path, scratch: Path) -> Mapping[str, Any]:
    from interp.models.zoo.digits.train import train

    train(recipe, progress=progress).save_pretrained(new)
    return {"recipe": recipe.model_dump(mode="json")}
