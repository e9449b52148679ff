"""Prompts of the user's own, from a file: a table, JSON lines, or one prompt a line; with pictures or without.

A table needs a column `prompt` or `caption` in any case, its fields parted by the most frequent of `;`, `,` and tab in
its header; so the published lists of memorized captions are read as they are. A column `image` names a picture, from
the table's folder on; without one, pictures of a folder belong to prompts by name: that of the column `name` or
`index`, or the prompt's number, counted from 0.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from interp.errors import BrokenData, MissingResource, UsageError
from interp.tasks.memorized import ImageItem, Split

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
"""Files that are taken for pictures."""


@dataclass(frozen=True)
class Prompt:
    """A prompt with a name, and where its picture is, if that is known."""

    name: str
    prompt: str
    path: Path | None = None


def read_prompts(path: str | Path) -> tuple[Prompt, ...]:
    """The prompts of a file (.csv, .tsv, .jsonl, else one a line), each once, in their order.

    Names that the file has twice are replaced by numbers.

    Raises:
        MissingResource: there is no such file.
        BrokenData: it has no prompts, no column of them, or a line that is no JSON object.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingResource(f"there is no file {path} with prompts")
    text = path.read_text(encoding="utf-8-sig")
    if path.suffix in (".csv", ".tsv"):
        rows = _table(text)
    elif path.suffix == ".jsonl":
        rows = _objects(path, text)
    else:
        rows = ({"prompt": line} for line in text.splitlines())
    found: dict[str, Prompt] = {}
    for number, row in enumerate(rows):
        own = {str(k).strip().lower(): v for k, v in row.items() if k is not None and v is not None}
        told = next((own[key] for key in ("prompt", "caption") if key in own), None)
        if told is None:
            raise BrokenData(f"{path}: item {number} has no 'prompt' or 'caption'; it has {', '.join(own)}")
        prompt = str(told).strip()
        if not prompt or prompt in found:
            continue
        name = next(
            (str(own[key]) for key in ("name", "index") if own.get(key) not in (None, "")), str(number)
        )
        image = path.parent / str(own["image"]) if own.get("image") else None
        found[prompt] = Prompt(name, prompt, image)
    if not found:
        raise BrokenData(f"{path} has no prompts; write one a line, or a table with a column 'prompt'")
    out = tuple(found.values())
    if len({p.name for p in out}) < len(out):
        return tuple(Prompt(str(i), p.prompt, p.path) for i, p in enumerate(out))
    return out


def _table(text: str) -> Iterable[Mapping[str, Any]]:
    header = text.partition("\n")[0]
    mark = max(";,\t", key=header.count)
    return csv.DictReader(io.StringIO(text, newline=""), delimiter=mark)


def _objects(path: Path, text: str) -> Iterable[Mapping[str, Any]]:
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise BrokenData(f"{path}, line {number}: {error}") from error
        if not isinstance(row, dict):
            raise BrokenData(f"{path}, line {number}: write an object with a 'prompt', not {line[:30]}")
        yield row


# -- pictures --------------------------------------------------------------------------------------------------------


def with_images(
    prompts: Sequence[Prompt],
    shape: tuple[int, int, int],
    folder: str | Path | None = None,
    *,
    group: str = "",
    split: Split = "",
    exposures: int = 0,
) -> tuple[ImageItem, ...]:
    """Prompts with their pictures, as items of a pipeline.

    Args:
        shape: channels, height and width of the pipeline's images.
        folder: where the pictures of prompts are that name none: NAME.png, .jpg, ...

    Raises:
        MissingResource: a prompt has no picture.
        BrokenData: a file is no picture.
    """
    out = []
    for p in prompts:
        near = [] if folder is None else [Path(folder) / f"{p.name}{suffix}" for suffix in SUFFIXES]
        path = p.path or next((f for f in near if f.is_file()), None)
        if path is None:
            where = (
                f"no {p.name}.png in {folder}" if folder is not None else "no column 'image', and no folder"
            )
            raise MissingResource(f"prompt '{p.name}' ({p.prompt[:40]}) has no picture: {where}")
        out.append(ImageItem(p.name, p.prompt, read_image(path, shape), group, split, exposures))
    return tuple(out)


def images_in(folder: str | Path, shape: tuple[int, int, int]) -> Float[torch.Tensor, "n c h w"]:
    """All pictures of a folder, in the order of their names.

    Raises:
        MissingResource: no folder, or no pictures in it.
    """
    found = sorted(p for p in Path(folder).glob("*") if p.suffix.lower() in SUFFIXES)
    if not found:
        raise MissingResource(
            f"no pictures in {folder}: it should be a folder of {', '.join(SUFFIXES)} files"
        )
    return torch.stack([read_image(p, shape) for p in found])


def read_image(path: str | Path, shape: tuple[int, int, int]) -> Float[torch.Tensor, "c h w"]:
    """A picture in [0, 1], its middle cut to the shape's proportions and scaled to it (bicubic).

    Raises:
        MissingResource: there is no such file. BrokenData: it is no picture.
        UsageError: neither one channel nor three.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    channels, height, width = shape
    if channels not in (1, 3):
        raise UsageError(f"pictures have 1 or 3 channels, and the pipeline's images {channels}")
    try:
        with Image.open(path) as opened:
            upright = ImageOps.exif_transpose(opened).convert("L" if channels == 1 else "RGB")
            fitted = ImageOps.fit(upright, (width, height), Image.Resampling.BICUBIC)
    except FileNotFoundError as error:
        raise MissingResource(f"there is no picture {path}") from error
    except (UnidentifiedImageError, OSError) as error:
        raise BrokenData(f"{path} is no picture ({error})") from error
    values = np.asarray(fitted, dtype=np.float32).reshape(height, width, channels) / 255
    return torch.from_numpy(values.copy()).permute(2, 0, 1)
