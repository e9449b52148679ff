"""What every kind of edit's files has to refuse."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from interp.errors import BrokenData, MissingResource


def refuses_broken_files(load: Callable[[Path], Any], path: Path, what: str) -> None:
    """Files beside that of an edit of something: none, no tensors, other tensors, a turned bit, another version."""
    with pytest.raises(MissingResource, match="no file"):
        load(path.with_name("none.safetensors"))
    broken = path.with_name("broken.safetensors")
    broken.write_text("no tensors")
    with pytest.raises(BrokenData, match=f"is no edit of {what}"):
        load(broken)
    save_file({"x": torch.ones(2)}, broken)
    with pytest.raises(BrokenData, match=f"is no edit of {what}"):
        load(broken)
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    broken.write_bytes(data)
    with pytest.raises(BrokenData, match="not those that were written"):
        load(broken)
    old, new = b'\\"version\\": 1', b'\\"version\\": 7'
    assert old in path.read_bytes()
    broken.write_bytes(path.read_bytes().replace(old, new))
    with pytest.raises(BrokenData, match="version 7"):
        load(broken)
