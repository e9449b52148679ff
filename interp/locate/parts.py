"""What a locator learned of some of its examples, in a file that is there whole or not at all.

A fit over many examples goes unit by unit. Given a folder it leaves each unit's part there, under a name that holds all
that the numbers depend on (weights, examples, parameters, version), so that a fit that was killed goes on with the
units that are missing and ends with the same tables, and other fits may use the same folder.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from interp.errors import MissingResource
from interp.models.subject import CausalLM
from interp.runs import clear_partials, write_bytes
from interp.tasks.base import Example

SUFFIX = ".part.safetensors"
_TABLE = "instances"
_STEPS = "copied"


@dataclass
class Part:
    """Scores of some examples.

    Attributes:
        instances: one row an example.
        scores: by method, of accepted instances: n layers heads.
        copied: for each accepted instance, whether each head copies at each step: steps layers heads.
    """

    instances: pd.DataFrame
    scores: dict[str, Float[np.ndarray, "n l h"]]
    copied: list[np.ndarray]

    @classmethod
    def join(cls, parts: Sequence[Part]) -> Part:
        """Parts as one, in the order of their examples."""
        table = pd.concat([p.instances for p in parts], ignore_index=True)
        order = table["example"].to_numpy().argsort(kind="stable")
        accepted = table["accepted"].to_numpy()
        # Where each accepted row of the table stands among the accepted ones.
        place = np.cumsum(accepted) - 1
        kept = [int(place[i]) for i in order if accepted[i]]
        scores = {name: np.concatenate([p.scores[name] for p in parts])[kept] for name in parts[0].scores}
        copied = [c for p in parts for c in p.copied]
        return cls(table.iloc[order].reset_index(drop=True), scores, [copied[i] for i in kept])

    def save(self, path: Path) -> None:
        """Write it, whole or not at all."""
        from safetensors.numpy import save

        buffer = io.BytesIO()
        self.instances.to_parquet(buffer, index=False)
        arrays = {f"scores.{name}": np.ascontiguousarray(values) for name, values in self.scores.items()}
        arrays |= {f"{_STEPS}.{i}": np.ascontiguousarray(values) for i, values in enumerate(self.copied)}
        arrays[_TABLE] = np.frombuffer(buffer.getvalue(), np.uint8)
        write_bytes(path, save(arrays))

    @classmethod
    def load(cls, path: Path) -> Part:
        """Read what `save` wrote."""
        from safetensors.numpy import load_file

        arrays = load_file(path)
        table = pd.read_parquet(io.BytesIO(arrays.pop(_TABLE).tobytes()))
        scores = {name.removeprefix("scores."): a for name, a in arrays.items() if name.startswith("scores.")}
        steps = sum(name.startswith(f"{_STEPS}.") for name in arrays)
        return cls(table, scores, [arrays[f"{_STEPS}.{i}"] for i in range(steps)])


class Parts:
    """A folder of parts; without a folder nothing is kept.

    Args:
        folder: made if it is not there; what a killed run left half-written is cleared.
        about: what all parts depend on beside their examples.
        twins: parts depend on the corrupt twins of their examples too.

    Attributes:
        found: units that were read and not computed.

    Raises:
        MissingResource: the folder cannot be written.
    """

    def __init__(
        self, folder: str | Path | None, subject: CausalLM, about: dict[str, Any], *, twins: bool = False
    ):
        self.folder = None if folder is None else Path(folder)
        self.twins = twins
        self.found = 0
        if self.folder is None:
            return
        from interp import __version__

        self._about = [__version__, subject.fingerprint, str(subject.dtype), subject.engine.name, about]
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            clear_partials(self.folder, f"*{SUFFIX}*")
        except OSError as error:
            raise MissingResource(
                f"cannot write to '{self.folder}' ({error.strerror}); give a folder that can be written"
            ) from error

    def get(self, examples: Sequence[Example], make: Callable[[], Part]) -> Part:
        """The part of these examples, read if it is there, else made and kept."""
        if self.folder is None:
            return make()
        keys: list[Any] = [e.key() for e in examples]
        if self.twins:
            keys.append([{name: twin.key() for name, twin in e.corrupt.items()} for e in examples])
        state = json.dumps([self._about, keys], sort_keys=True, default=repr)
        path = self.folder / (hashlib.sha256(state.encode()).hexdigest()[:20] + SUFFIX)
        if path.exists():
            self.found += 1
            return Part.load(path)
        part = make()
        part.save(path)
        return part
