"""Files of edits: safetensors with a description, whole or not there at all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from interp.errors import BrokenData, MissingResource
from interp.runs import write_bytes


def write_described(
    path: str | Path, key: str, version: int, about: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]
) -> Path:
    """Write tensors and what is to be known of them.

    Args:
        key: of the metadata, where the description is; it tells kinds of files apart.
        version: of the description.
        about: JSON-able.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    described = json.dumps({"version": version, **about}, sort_keys=True)
    write_bytes(target, save(dict(tensors), metadata={key: described}))
    return target


def read_described(
    path: str | Path, key: str, version: int, what: str
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Description and tensors of a file that `write_described` wrote.

    Args:
        what: the file is an edit of; for messages.

    Raises:
        MissingResource: there is no such file.
        BrokenData: it is no such file, or of another version.
    """
    if not Path(path).is_file():
        raise MissingResource(f"no file {path} with an edit of {what}; write one with edit.save(path)")
    try:
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {})[key])
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, KeyError, ValueError) as error:
        raise BrokenData(f"{path} is no edit of {what} ({type(error).__name__}: {error})") from error
    if about.get("version") != version:
        raise BrokenData(f"{path}: version {about.get('version')} of edits of {what}; this reads {version}")
    return about, found
