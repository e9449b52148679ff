"""Edits of weights as files: small safetensors that name the model they were made for, whole or not there at all."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from interp.errors import BrokenData, MissingResource, UsageError
from interp.intervene.weights.base import PartEdit, Single, Stack, known_as
from interp.runs import write_bytes

VERSION = 1
_KEY = "interp.weights"


def write(edit: PartEdit, path: str | Path) -> Path:
    """See `PartEdit.save`."""
    if any(not single.model for single in edit.singles):
        raise UsageError(
            f"{edit!r}: it is not said which model it was made for; save edit.made_for(subject), outside of the edit"
        )
    tensors: dict[str, torch.Tensor] = {}
    described = []
    for number, single in enumerate(edit.singles):
        described.append(
            {"kind": single.kind, "model": single.model, "digest": single.digest, **single.about()}
        )
        # safetensors refuses tensors that share memory, as changes of tied weights could.
        tensors |= {f"{number}.{name}": t.clone() for name, t in single.tensors().items()}
    about = {"version": VERSION, "stack": isinstance(edit, Stack), "edits": described}
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(target, save(tensors, metadata={_KEY: json.dumps(about, sort_keys=True)}))
    return target


def read(path: str | Path, subject: Any = None) -> PartEdit:
    """See `PartEdit.load`."""
    if not Path(path).is_file():
        raise MissingResource(f"no file {path} with an edit of weights; write one with edit.save(path)")
    try:
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {})[_KEY])
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, KeyError, ValueError) as error:
        raise BrokenData(f"{path} is no edit of weights ({type(error).__name__}: {error})") from error
    if about.get("version") != VERSION:
        raise BrokenData(f"{path}: version {about.get('version')} of edits of weights; this reads {VERSION}")
    singles = tuple(_single(path, number, it, found) for number, it in enumerate(about["edits"]))
    edit = Stack(singles) if about["stack"] else singles[0]
    if subject is not None:
        if singles:  # those after it may have been made on top of it
            known_as(singles[0].model, subject)
        edit.check(subject)
    return edit


def _single(path: str | Path, number: int, about: dict[str, Any], found: dict[str, torch.Tensor]) -> Single:
    """Edit `number` of a file."""
    kind, prefix = about.get("kind"), f"{number}."
    if kind not in Single.kinds:
        raise BrokenData(f"{path}: no kind '{kind}' of edits; this reads {', '.join(sorted(Single.kinds))}")
    own = {name.removeprefix(prefix): t for name, t in found.items() if name.startswith(prefix)}
    try:
        edit = Single.kinds[kind].of(about, own, about["model"])
    except (KeyError, TypeError, ValueError, RuntimeError, zlib.error) as error:
        raise BrokenData(
            f"{path}: edit {number} is not whole ({type(error).__name__}: {error}); write it again"
        ) from error
    if edit.digest != about["digest"]:
        raise BrokenData(
            f"{path}: the numbers of edit {number} are not those that were written; write it again"
        )
    return edit
