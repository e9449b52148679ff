"""What the commands of `interp memorization` look at: a pipeline or a language model, and its items by purpose.

`targeted` items are what is located, `held_out` ones are memorized as well and located with nothing, `control` items
have rare words and no picture of their own, `unseen` ones the model never had, `ordinary` ones it handles without
memory.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from interp.cli.console import progress, say
from interp.cli.memory_edits import name_of
from interp.cli.work import _load
from interp.errors import NoAcceptedExample, UsageError

if TYPE_CHECKING:
    from interp.measure.memorization.extraction import Yardstick
    from interp.models.subject import CausalLM
    from interp.models.zoo.digits.data import Recipe

Source = Annotated[
    str,
    typer.Argument(
        help="A pipeline's folder or hub id, a trained one (digits, digits-quick-1, digits-full-0-oracle), or a "
        "language model (smollm2, a hub id, a folder)."
    ),
]
PromptFile = Annotated[
    Path | None,
    typer.Option(
        "--prompts",
        help="What is memorized: prompts as .csv (column prompt or caption), .jsonl or lines; for a language model "
        "passages, as lines or .jsonl. Default: of digits their own, else what the model recites of ours.",
    ),
]
HeldOutFile = Annotated[
    Path | None, typer.Option("--test", help="Memorized prompts that nothing is located with, likewise.")
]
OrdinaryFile = Annotated[
    Path | None, typer.Option("--reference", help="Ordinary prompts to compare with, likewise.")
]
Images = Annotated[
    Path | None,
    typer.Option(help="Folder of the pictures of --prompts: NAME.png; a column 'image' comes before it."),
]
NewImages = Annotated[
    Path | None,
    typer.Option(
        "--held-out",
        help="Folder of 100 or more new pictures of the same kind: how near a copy is, by chance.",
    ),
]
Steps = Annotated[int, typer.Option(min=2, help="Denoising steps, of a pipeline.")]
Guidance = Annotated[float, typer.Option(min=0, help="Guidance, of a pipeline.")]
Samples = Annotated[int, typer.Option(min=1, help="Samples of each prompt.")]
Prefix = Annotated[int, typer.Option(min=1, help="Tokens of a passage that a language model is given.")]
Suffix = Annotated[int, typer.Option(min=1, help="Tokens that it has to recite.")]

_DIGITS = re.compile(r"digits(?:-(tiny|quick|full))?(?:-(\d+))?(-oracle)?")
_ORDINARY = 40
_WORDS = 8
"""Passages that begin with the same words are of one half, and one item to the record of an edit."""
FIRST = 1000
"""First seed of samples; those of locating come before."""


@dataclass
class Case:
    """A subject with its items.

    Attributes:
        groups: the items by what they are for; a group may be missing.
        judge: what counts as a copy of a picture, where that can be told.
        recipe: of a pipeline that was trained on digits.
        keys: of a language model's items, by name, the hashes of their texts.
    """

    subject: Any
    groups: dict[str, tuple[Any, ...]]
    judge: Yardstick | None = None
    recipe: Recipe | None = None
    keys: Mapping[str, str] = field(default_factory=dict)

    @property
    def pipeline(self) -> bool:
        """Whether it is a pipeline."""
        return bool(self.subject.kind == "pipeline")

    @property
    def targets(self) -> tuple[Any, ...]:
        """The items that are located."""
        return self.groups["targeted"]

    @property
    def pictured(self) -> bool:
        """Whether extraction can be told: the items have pictures, and it is known how near a copy is."""
        return self.judge is not None and all(hasattr(item, "image") for item in self.targets)

    def key(self, item: Any) -> str:
        """Hash of an item's text, by which it is known again under other options."""
        return self.keys[item.name] if item.name in self.keys else name_of(item.prompt)

    def some(self, n: int) -> dict[str, tuple[Any, ...]]:
        """The first n items of each group but the ordinary ones, marked with its name."""
        return {
            name: tuple(replace(item, group=name) for item in items[:n])
            for name, items in self.groups.items()
            if name != "ordinary" and items
        }


def case_of(
    source: str,
    prompts: Path | None = None,
    test: Path | None = None,
    reference: Path | None = None,
    images: Path | None = None,
    new_images: Path | None = None,
    prefix: int = 32,
    suffix: int = 32,
    device: str = "auto",
    dtype: str = "auto",
) -> Case:
    """The subject and its items, as the options say.

    Raises:
        UsageError: a pipeline of which nothing is known, without prompts.
        NoAcceptedExample: a language model that recites none of the passages.
    """
    subject, recipe = opened(source, device, dtype)
    given = {"--test": test, "--reference": reference, "--images": images, "--held-out": new_images}
    if subject.kind != "pipeline":
        if extra := [name for name, value in given.items() if value is not None]:
            raise UsageError(f"{extra[0]} is of pipelines; a language model takes passages with --prompts")
        return _recited(subject, prompts, prefix, suffix)
    if prompts is not None:
        return _asked(subject, prompts, test, reference, images, new_images)
    if recipe is None:
        raise UsageError(f"{source}: nothing is known of what it memorized; give prompts with --prompts FILE")
    if extra := [name for name in ("--test", "--images") if given[name] is not None]:
        raise UsageError(f"{extra[0]} goes with --prompts")
    return _digits(subject, recipe)


def opened(source: str, device: str = "auto", dtype: str = "auto") -> tuple[Any, Recipe | None]:
    """A subject by name or folder, and the recipe of a pipeline that was trained on digits."""
    _hush(bool(_DIGITS.fullmatch(source)) or (Path(source) / "model_index.json").is_file())
    from interp.models import cache
    from interp.models.zoo.digits.data import Recipe

    if (named := _DIGITS.fullmatch(source)) and not Path(source).exists():
        from interp.models.zoo.digits.subject import digits_pipeline, preset

        size, seed, oracle = named.groups()
        recipe = preset(size or "full", seed=int(seed or 0), oracle=bool(oracle))
        with progress("training") as report:
            return digits_pipeline(recipe, progress=report), recipe
    subject = _load(source, device, dtype)
    about = (cache.manifest(Path(source)) or {}).get("recipe") if Path(source).is_dir() else None
    return subject, None if about is None else Recipe(**about)


def _hush(pipeline: bool) -> None:
    """What libraries say while they load is not about what was asked."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    if pipeline and find_spec("diffusers") is not None:
        from diffusers.utils import logging

        logging.disable_progress_bar()


# -- pipelines -------------------------------------------------------------------------------------------------------


def _digits(subject: Any, recipe: Recipe) -> Case:
    """A pipeline whose training is known."""
    from interp.measure.memorization.exposures import yardstick
    from interp.tasks.digits import digit_items, held_out

    items = digit_items(recipe, ["memorized", "control", "unseen"])
    ordinary = {item.prompt: replace(item, group="ordinary") for item in held_out(recipe)}
    groups = {
        "targeted": tuple(i for i in items if i.split == "locate"),
        "held_out": tuple(i for i in items if i.split == "test"),
        "control": tuple(i for i in items if i.group == "control"),
        "unseen": tuple(i for i in items if i.group == "unseen"),
        "ordinary": tuple(ordinary.values())[:_ORDINARY],
    }
    return Case(subject, groups, yardstick(recipe), recipe)


def _asked(
    subject: Any,
    prompts: Path,
    test: Path | None,
    reference: Path | None,
    images: Path | None,
    new_images: Path | None,
) -> Case:
    """A pipeline with prompts of the user's."""
    from interp.measure.memorization.extraction import Yardstick
    from interp.tasks.prompts import images_in, read_prompts, with_images

    files = {"targeted": prompts, "held_out": test, "ordinary": reference}
    groups: dict[str, tuple[Any, ...]] = {}
    for name, path in files.items():
        if path is None:
            continue
        found = read_prompts(path)
        own = images if name == "targeted" else None
        pictured = own is not None or all(p.path is not None for p in found)
        groups[name] = with_images(found, subject.image_shape, own, group=name) if pictured else found
    judge = None
    if new_images is not None:
        import torch

        told = [item.image for items in groups.values() for item in items if hasattr(item, "image")]
        if not told:
            raise UsageError(
                "--held-out compares with pictures of the prompts: give --images, or a column 'image'"
            )
        new = images_in(new_images, subject.image_shape)
        judge = Yardstick(torch.stack(told), new)
    return Case(subject, groups, judge)


# -- language models -------------------------------------------------------------------------------------------------


def _recited(subject: CausalLM, file: Path | None, prefix: int, suffix: int) -> Case:
    """A language model with what it recites of some passages: half of that is located with.

    The half is a hash of the passage's first words, so that other options never bring what was located with among
    what is held out.
    """
    from interp.measure.memorization.recite import recite
    from interp.models.tokens import as_tokens
    from interp.tasks.memorized import TextItem
    from interp.tasks.passages import CONTROLS, passages

    texts = read_texts(file)
    invented = tuple(p for p in passages() if p.group == "invented")
    tokens, known, keys = as_tokens(subject), set[str](), {}
    asked: dict[tuple[int, ...], TextItem] = {}
    for passage in (*texts, *invented):
        ids = tuple(tokens.encode(passage.text).ids[: prefix + suffix])
        whole = name_of(passage.text)
        if len(ids) == prefix + suffix and ids not in asked and whole not in known:
            known.add(whole)
            asked[ids] = TextItem(passage.name, ids, prefix, group=passage.group)
            keys[passage.name] = name_of(passage.text, _WORDS)
    if not asked:
        raise UsageError(
            f"no passage has {prefix} + {suffix} tokens; ask for less with --prefix and --suffix"
        )
    with progress("passages") as report:
        table = recite(subject, list(asked.values()), generate=False, progress=report)
    items: dict[str, list[Any]] = {"targeted": [], "held_out": [], "unseen": [], "ordinary": []}
    for item, exact in zip(asked.values(), table["exact"], strict=True):
        kind = "unseen" if item.group == "invented" else "recited" if exact else "ordinary"
        if kind == "recited" and item.group in CONTROLS:
            continue  # it goes on by rule, not by heart
        if kind == "recited":
            kind = ("targeted", "held_out")[int(keys[item.name], 16) % 2]
        items[kind].append(replace(item, group=kind))
    recited = len(items["targeted"]) + len(items["held_out"])
    if not items["targeted"]:
        best = table[~table["group"].isin(CONTROLS)].sort_values("run").iloc[-1]
        why = (
            f"recites {recited} passages, all of the half that is held out"
            if recited
            else f"recites no passage for {suffix} tokens after {prefix} (most is {best['run']}, of '{best['name']}')"
        )
        raise NoAcceptedExample(
            f"{subject.name} {why}: give others with --prompts, or ask for less with --prefix and --suffix"
        )
    say(
        "found",
        f"{recited} of {len(asked)} passages are recited after {prefix} tokens, {len(items['targeted'])} to locate "
        f"with and {len(items['held_out'])} held out, by a hash of their words",
    )
    return Case(subject, {name: tuple(own) for name, own in items.items()}, keys=keys)


def read_texts(file: Path | None) -> tuple[Any, ...]:
    """Passages of a file (.jsonl as MemPi's, else one a line), by default those that ship."""
    from interp.errors import BrokenData, MissingResource
    from interp.tasks.passages import Passage, passages, read_passages

    if file is None:
        return passages()
    if not file.is_file():
        raise MissingResource(f"there is no file {file} with passages")
    if file.suffix == ".jsonl":
        return read_passages(file)
    lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    found = tuple(Passage(f"line {i}", "", line) for i, line in enumerate(lines, 1) if line)
    if not found:
        raise BrokenData(f"{file} has no passages; write one a line")
    return found


def savable(path: Path | None) -> None:
    """Refuse a table's name before the work, not after it."""
    if path is not None and path.suffix not in (".parquet", ".csv"):
        raise UsageError(f"--save {path}: write a name that ends in .parquet or .csv")


def sizes(groups: Mapping[str, tuple[Any, ...]]) -> str:
    """How many items of each group, in words."""
    return ", ".join(f"{len(items)} {name}" for name, items in groups.items() if items)
