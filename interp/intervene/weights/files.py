"""Edits of weights as files: small safetensors that name the model they were made for, whole or not there at all."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import torch

from interp.errors import BrokenData, UsageError
from interp.intervene.described import read_described, write_described
from interp.intervene.weights.base import PartEdit, Single, Stack, known_as

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
    about = {"stack": isinstance(edit, Stack), "edits": described}
    return write_described(path, _KEY, VERSION, about, tensors)


def read(path: str | Path, subject: Any = None) -> PartEdit:
    """See `PartEdit.load`."""
    about, found = read_described(path, _KEY, VERSION, "weights")
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
