"""Edits as the commands of memorization keep them: with the items they were located with, and without leaks.

An edit's file says by hash which items a locator read, so that none of them is later measured as held out, and that
ordinary items which it was fitted to keep are told from others.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interp.cli.console import say
from interp.errors import UsageError

if TYPE_CHECKING:
    from interp.cli.memory_items import Case
    from interp.intervene.weights import PartEdit

_KEY = "interp.items"
USED = "ordinary (used for locating)"
"""Group of ordinary items that the locator compared with."""


@dataclass(frozen=True)
class Items:
    """Hashes of the items that an edit was made from: those it is to take out, and those it compared with."""

    targets: frozenset[str]
    reference: frozenset[str]


def name_of(text: str, words: int | None = None) -> str:
    """Hash of a text, whatever its case and its spaces; of its first words alone where they are given."""
    return hashlib.sha256(" ".join(text.casefold().split()[:words]).encode()).hexdigest()[:16]


def write(edit: PartEdit, path: Path, targets: Iterable[str], reference: Iterable[str]) -> int:
    """The edit as a file that also names its items; its size in bytes."""
    from safetensors import safe_open
    from safetensors.torch import save

    from interp.runs import write_bytes

    edit.save(path)
    with safe_open(path, "pt") as file:
        about = dict(file.metadata())
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    items = {"targets": sorted(set(targets)), "reference": sorted(set(reference))}
    write_bytes(path, save(tensors, metadata={**about, _KEY: json.dumps(items)}))
    return path.stat().st_size


def read(path: Path, case: Case) -> tuple[PartEdit, Items | None]:
    """An edit for this subject, and the items it was located with where its file names them.

    Raises:
        UsageError: an item that is measured as held out is one of them.
    """
    from safetensors import safe_open

    from interp.intervene.weights import PartEdit

    edit = PartEdit.load(path, case.subject)
    with safe_open(path, "pt") as file:
        told = (file.metadata() or {}).get(_KEY)
    if told is None:
        say(
            "not known",
            f"{path} does not say which items it was located with, so none of them can be kept out",
        )
        return edit, None
    found = Items(**{name: frozenset(keys) for name, keys in json.loads(told).items()})
    for item in case.groups.get("held_out", ()):
        if case.key(item) in found.targets | found.reference:
            raise UsageError(
                f"{path} was located with '{item.name}', which is held out here: take it out of the held-out items, "
                "or locate again"
            )
    return edit, found


def told_apart(groups: Mapping[str, tuple[Any, ...]], case: Case, items: Items | None) -> dict[str, Any]:
    """The groups, with ordinary items that the locator read in one of their own."""
    if items is None:
        return dict(groups)
    known = items.targets | items.reference
    out = dict(groups)
    ordinary = out.pop("ordinary", ())
    out[USED] = tuple(item for item in ordinary if case.key(item) in known)
    out["ordinary"] = tuple(item for item in ordinary if case.key(item) not in known)
    return {name: own for name, own in out.items() if own}


def keeps(edit: PartEdit, case: Case) -> None:
    """Refuse an edit that a folder of weights cannot hold.

    Raises:
        UsageError: it lends a bias to a projection that has none; the folder's classes would drop it.
    """
    from interp.intervene.weights.base import OfPart
    from interp.intervene.weights.places import projection

    for single in edit.singles:
        if isinstance(single, OfPart) and single.shifts and projection(case.subject, single.part)[1] is None:
            raise UsageError(
                f"--out: the edit lends {single.part} a bias, which the saved folder could not load; "
                "leave --out away and keep the edit's file"
            )


def export(case: Case, edit: PartEdit, out: Path) -> None:
    """The edited pipeline or model as a folder that is there whole or not at all."""
    import tempfile

    out.parent.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as staging,
        edit.applied(case.subject),
    ):
        new = Path(staging) / "new"
        if case.pipeline:
            case.subject.pipe.save_pretrained(new)
        else:
            case.subject.hf.save_pretrained(new)
            case.subject.tokens.hf.save_pretrained(new)
        new.rename(out)
    say("wrote", f"{out}, edited for good")
