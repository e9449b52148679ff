"""`FactEdit`: edits of weights that write facts, with where they come from, as a file of a few megabytes.

It is an intervention like any other: `with subject.apply(edit)` holds it for runs and generation, rows of one batch can
each have their own, and `with edit.applied(subject)` changes the weights themselves and gives every bit back. Saved are
the factors and the request, and the fingerprint of the model they were made for; another model is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from interp.errors import BrokenData, UsageError
from interp.intervene.base import Atom, Intervention
from interp.intervene.described import read_described, write_described
from interp.intervene.edit import WeightEdit
from interp.intervene.facts.requests import Rewrite
from interp.models.subject import CausalLM

VERSION = 1
_KEY = "interp.facts"


@dataclass(frozen=True, eq=False)
class FactEdit(Intervention):
    """Facts written into weights.

    Attributes:
        edits: edits of down projections, in the order they were made.
        rewrites: the facts that were asked for.
        model: fingerprint of the model they were made for.
        recipe: method, layers, contexts and hyper-parameters; JSON-able.
        history: of each fact, the steps of its search (see `interp.intervene.facts.values.Found`).
    """

    edits: tuple[WeightEdit, ...]
    rewrites: tuple[Rewrite, ...]
    model: str
    recipe: Mapping[str, Any]
    history: tuple[tuple[Mapping[str, float], ...], ...] = field(default=(), repr=False)

    def atoms(self) -> tuple[Atom, ...]:
        return self.edits

    @contextmanager
    def applied(self, subject: CausalLM) -> Iterator[CausalLM]:
        """The weights are edited inside the block; leaving it, by an exception too, restores every bit.

        Raises:
            UsageError: the edit was made for another model.
            EngineError: the weights cannot be edited in place; `subject.apply(edit)` does the same.
        """
        self.check(subject)
        with ExitStack() as stack:
            for edit in self.edits:
                stack.enter_context(edit.applied(subject))
            yield subject

    def check(self, subject: CausalLM) -> None:
        """Raise `UsageError` unless the edit was made for this model, as it is now."""
        if subject.fingerprint != self.model:
            raise UsageError(
                f"the edit was made for a model with fingerprint {self.model[:12]}, and {subject.name} has "
                f"{subject.fingerprint[:12]}{' with edits' if subject.edited else ''}: load that model, without edits "
                "or with those that were on"
            )

    def save(self, path: str | Path) -> Path:
        """Write it as safetensors, whole or not at all."""
        tensors: dict[str, torch.Tensor] = {}
        layers = []
        for number, edit in enumerate(self.edits):
            layers.append({"layer": edit.layer, "module": edit.module, "digest": edit.digest})
            factors = {"a": edit.a, "b": edit.b, "shift": edit.shift}
            tensors |= {f"{number}.{name}": f for name, f in factors.items() if f is not None}
        about = {
            "model": self.model,
            "edits": layers,
            "rewrites": [asdict(r) for r in self.rewrites],
            "recipe": dict(self.recipe),
            "history": [[dict(step) for step in steps] for steps in self.history],
        }
        return write_described(path, _KEY, VERSION, about, tensors)

    @classmethod
    def load(cls, path: str | Path, subject: CausalLM | None = None) -> FactEdit:
        """Read a file that `save` wrote.

        Args:
            subject: the model it is for; it is checked.

        Raises:
            MissingResource: there is no such file.
            BrokenData: it is no edit of facts, or its numbers were changed.
            UsageError: it was made for another model.
        """
        about, found = read_described(path, _KEY, VERSION, "facts")
        edits = []
        for number, at in enumerate(about["edits"]):
            a, b, shift = (found.get(f"{number}.{name}") for name in ("a", "b", "shift"))
            if a is None or b is None:
                raise BrokenData(f"{path}: the factors of edit {number} are not there")
            edit = WeightEdit(at["layer"], at["module"], a, b, shift)
            if edit.digest != at["digest"]:
                raise BrokenData(f"{path}: the factors of edit {number} are not those that were written")
            edits.append(edit)
        rewrites = tuple(_rewrite(r) for r in about["rewrites"])
        history = tuple(tuple(steps) for steps in about["history"])
        out = cls(tuple(edits), rewrites, about["model"], about["recipe"], history)
        if subject is not None:
            out.check(subject)
        return out


def _rewrite(fields: Mapping[str, Any]) -> Rewrite:
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
    return Rewrite(**values)
