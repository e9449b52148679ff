"""What an edit of weights is: frozen data, that changes a model inside a block and gives every bit back.

`with edit.applied(subject)` works on language models and on pipelines alike, because an edit names its part (see
`interp.models.parts`) and not its module. `+` stacks: the second edit finds the weights that the first one left. Edits
may be nested and left in any order; what remains are the first weights with the edits that are still on. `save` writes
a small safetensors file, and `load` refuses a model that the edit was not made for.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float

from interp.errors import UsageError
from interp.intervene.edit import Change, edited, found_by
from interp.intervene.weights.places import idle, lent_bias, projection
from interp.models.parts import Part

if TYPE_CHECKING:
    from interp.intervene.weights.budget import Budget

_open: WeakKeyDictionary[Any, list[str]] = WeakKeyDictionary()
"""Of each subject, which model each of the edits that are on now was made for; empty where they do not say."""


class PartEdit(ABC):
    """An edit of weights: one, or several on top of each other (`Stack`)."""

    @property
    @abstractmethod
    def singles(self) -> tuple[Single, ...]:
        """The single edits it is made of, in the order they are made."""

    @property
    def parts(self) -> tuple[Part, ...]:
        """The parts that are edited, each once."""
        return tuple(dict.fromkeys(part for single in self.singles for part in single.parts))

    @property
    def digest(self) -> str:
        """Hash of all that the edit does, to the bit; not of the model it was made for."""
        return hashlib.sha256("".join(s.digest for s in self.singles).encode()).hexdigest()[:16]

    def __add__(self, other: PartEdit) -> Stack:
        return Stack((*self.singles, *other.singles))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, PartEdit):
            return NotImplemented
        return [s.digest for s in self.singles] == [s.digest for s in other.singles]

    def __hash__(self) -> int:
        return hash(self.digest)

    # -- on a model --------------------------------------------------------------------------------------------------

    @contextmanager
    def applied(self, subject: Any) -> Iterator[Any]:
        """The weights are edited inside the block; leaving it, by an exception too, restores every bit.

        Raises:
            UsageError: the edit was made for another model, or a part of it is not there or of another shape.
            EngineError: a weight is quantised or not in memory.
        """
        self.check(subject)
        with ExitStack() as stack:
            for single in self.singles:
                stack.enter_context(_known(single.model, subject))
                stack.enter_context(single.on(subject))
            yield subject

    def check(self, subject: Any) -> None:
        """Raise `UsageError` unless the model has all parts of the edit, in their shapes."""
        for single in self.singles:
            single.fits(subject)

    def made_for(self, subject: Any) -> Self:
        """The same edit, for this model as it is now: others will be refused. Edits that are saved need it."""
        name = subject.fingerprint
        return self._remade(tuple(replace(single, model=name) for single in self.singles))  # type: ignore[type-var]

    @abstractmethod
    def _remade(self, singles: tuple[Single, ...]) -> Self:
        """This edit, made of these singles."""

    def budget(self, subject: Any) -> Budget:
        """How many weights the edit changes, and how far; it is made and undone for that."""
        from interp.intervene.weights.budget import measured

        return measured(self, subject)

    # -- as a file ---------------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> Path:
        """Write it as safetensors, whole or not at all.

        Raises:
            UsageError: it is not said which model it was made for.
        """
        from interp.intervene.weights.files import write

        return write(self, path)

    @staticmethod
    def load(path: str | Path, subject: Any = None) -> PartEdit:
        """Read a file that `save` wrote.

        Args:
            subject: the model it is for; it is checked.

        Raises:
            MissingResource: there is no such file.
            BrokenData: it is no edit of weights, or its numbers were changed.
            UsageError: it was made for another model.
        """
        from interp.intervene.weights.files import read

        return read(path, subject)


@dataclass(frozen=True, eq=False)
class Stack(PartEdit):
    """Several edits, one on top of another; stacks in it are taken apart."""

    edits: tuple[PartEdit, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "edits", tuple(s for edit in self.edits for s in edit.singles))

    @property
    def singles(self) -> tuple[Single, ...]:
        return self.edits  # type: ignore[return-value]

    def _remade(self, singles: tuple[Single, ...]) -> Self:
        return type(self)(singles)

    def __repr__(self) -> str:
        kinds = ", ".join(dict.fromkeys(single.kind for single in self.singles))
        return f"Stack({len(self.edits)} edits of {len(self.parts)} parts: {kinds}; {self.digest[:6]})"


class Single(PartEdit):
    """One edit; those that can be made are frozen dataclasses.

    Attributes:
        model: fingerprint of the model it was made for; empty for any that has its parts.
    """

    kind: ClassVar[str]
    kinds: ClassVar[dict[str, type[Single]]] = {}

    model: str

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "kind" in cls.__dict__:
            Single.kinds[cls.kind] = cls

    @property
    def singles(self) -> tuple[Single, ...]:
        return (self,)

    def _remade(self, singles: tuple[Single, ...]) -> Self:
        return singles[0]  # type: ignore[return-value]

    @cached_property
    def digest(self) -> str:
        digest = hashlib.sha256(f"{self.kind} {json.dumps(self.about(), sort_keys=True)}".encode())
        for name, tensor in sorted(self.content().items()):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:16]

    @abstractmethod
    def on(self, subject: Any) -> Any:
        """A context in which the weights are edited."""

    @abstractmethod
    def names(self, subject: Any) -> tuple[str, ...]:
        """Names of the parameters that it may change, as in `parameters(subject)`; also of a bias that is lent."""

    @abstractmethod
    def fits(self, subject: Any) -> None:
        """Raise `UsageError` unless the model has what is edited, in its shape."""

    # -- as data -----------------------------------------------------------------------------------------------------

    @abstractmethod
    def about(self) -> dict[str, Any]:
        """All of it that is no tensor, JSON-able."""

    @abstractmethod
    def tensors(self) -> dict[str, torch.Tensor]:
        """Its tensors as they are saved."""

    def content(self) -> dict[str, torch.Tensor]:
        """Its tensors as they are told apart: not compressed, for compressors differ."""
        return self.tensors()

    @classmethod
    @abstractmethod
    def of(cls, about: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], model: str) -> Single:
        """The edit of that description and those tensors."""


class OfPart(Single):
    """An edit of the weight of one part, out x in, and of the bias behind it."""

    shifts: ClassVar[bool] = False
    """Whether it needs a bias; a projection that has none is lent one."""

    part: Part

    @property
    def parts(self) -> tuple[Part, ...]:
        return (self.part,)

    @property
    @abstractmethod
    def shape(self) -> tuple[int | None, int | None]:
        """Shape of the weights that it fits, out x in; None where any size does."""

    @abstractmethod
    def weight(self, weight: Float[torch.Tensor, "out in"]) -> Float[torch.Tensor, "out in"]:
        """What the weight becomes, in fp32 or better; what is handed over is left as it is."""

    def bias(
        self, bias: Float[torch.Tensor, " out"], weight: Float[torch.Tensor, "out in"]
    ) -> Float[torch.Tensor, " out"]:
        """What the bias becomes, given the weight before the edit."""
        return bias

    def names(self, subject: Any) -> tuple[str, ...]:
        return (
            (f"{self.part.path}.weight", f"{self.part.path}.bias")
            if self.shifts
            else (f"{self.part.path}.weight",)
        )

    def fits(self, subject: Any) -> None:
        weight, _, transposed = projection(subject, self.part)
        found = tuple(weight.shape)[:: -1 if transposed else 1]
        if any(want not in (None, have) for want, have in zip(self.shape, found, strict=True)):
            wanted = " x ".join("any" if n is None else str(n) for n in self.shape)
            raise UsageError(
                f"{self!r}: the weight is {' x '.join(map(str, found))} (out x in) and the edit fits {wanted}; "
                "load the model it was made for"
            )

    @contextmanager
    def on(self, subject: Any) -> Iterator[None]:
        with lent_bias(subject, self.part, self.shifts):
            weight, bias, transposed = projection(subject, self.part)
            for tensor in (weight, bias):
                if tensor is not None:
                    idle(tensor, str(self.part))
            token = object()  # the same edit can be on twice

            def turned(value: torch.Tensor) -> torch.Tensor:
                return up(value.T if transposed else value)

            def change(value: torch.Tensor) -> torch.Tensor:
                out = self.weight(turned(value))
                return out.T if transposed else out

            changes: list[tuple[torch.Tensor, Change]] = [(weight, change)]
            if bias is not None:
                changes.append((bias, lambda b: self.bias(up(b), turned(found_by(token, weight)))))
            with edited(token, changes):
                yield

    def about(self) -> dict[str, Any]:
        return {"part": {"path": self.part.path, "kind": self.part.kind, "number": self.part.number}}

    def tensors(self) -> dict[str, torch.Tensor]:
        """The fields that are tensors; kinds that pack them say so themselves."""
        own_ = {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type]
        return {name: value for name, value in own_.items() if isinstance(value, torch.Tensor)}

    @classmethod
    def of(cls, about: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], model: str) -> Single:
        return cls(part=part_of(about), model=model, **tensors)  # type: ignore[call-arg]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.part}, {self.digest[:6]})"


def part_of(about: Mapping[str, Any]) -> Part:
    """The part that a saved edit names."""
    return Part(**about["part"])


def own(value: torch.Tensor, what: str) -> torch.Tensor:
    """A copy in fp32 or better on the CPU: to change the tensor handed over must not change what an edit describes."""
    found = value.detach().cpu()
    found = found.to(torch.promote_types(found.dtype, torch.float32)).contiguous().clone()
    if not bool(found.isfinite().all()):
        raise UsageError(f"{what} of an edit is not finite; look at the numbers it was made from")
    return found


def numbers(units: torch.Tensor | Sequence[int], what: str) -> torch.Tensor:
    """Numbers of units, sorted as they came, each once."""
    found = torch.as_tensor(units, dtype=torch.long).cpu().clone()
    if found.ndim != 1 or len(found.unique()) != len(found) or bool((found < 0).any()):
        raise UsageError(f"units of {what} are a list of numbers from 0 on, each once")
    return found


def up(value: torch.Tensor) -> torch.Tensor:
    """In fp32 or better: sums are made there and rounded once."""
    return value.to(torch.promote_types(value.dtype, torch.float32))


def known_as(model: str, subject: Any) -> None:
    """Raise `UsageError` unless that is the subject's fingerprint, now or before one of the edits that are on."""
    known = _open.get(subject, ())
    if model in known:
        return
    now = subject.fingerprint
    if now != model:
        why = (
            "; edits around it have to say what they were made for: edit.made_for(subject)"
            if "" in known
            else ""
        )
        raise UsageError(
            f"the edit was made for a model with fingerprint {model[:12]}, and {subject.name} has {now[:12]}: load "
            f"that model, without edits or with those that were on{why}"
        )


@contextmanager
def _known(model: str, subject: Any) -> Iterator[None]:
    """Refuses a model that an edit was not made for, and remembers what it was made for."""
    if model:
        known_as(model, subject)
    names = _open.setdefault(subject, [])
    names.append(model)
    try:
        yield
    finally:
        names.remove(model)
