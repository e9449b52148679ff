"""Edits that are no matrix of their own: changes of any parameters of a model, and a share of another edit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float

from interp.errors import UsageError
from interp.intervene.edit import Change, edited
from interp.intervene.weights.base import OfPart, Single, own, up
from interp.intervene.weights.kinds import pack, unpack
from interp.intervene.weights.places import editable, idle, parameter
from interp.models.parts import Part


@dataclass(frozen=True, eq=False, repr=False)
class ModelDelta(Single):
    """Changes are added to parameters of any shape: what a fine-tuning did to a model, a task vector.

    Args:
        changes: by the names of `parameters(subject)`; those that are zero throughout are left out.
        model: fingerprint of the model it was made for.
    """

    kind: ClassVar[str] = "model_delta"

    changes: Mapping[str, Float[torch.Tensor, ...]]
    model: str = ""

    def __post_init__(self) -> None:
        kept = {n: own(c, f"the change of {n}") for n, c in sorted(self.changes.items()) if bool(c.any())}
        object.__setattr__(self, "changes", kept)

    @property
    def parts(self) -> tuple[Part, ...]:
        return ()

    def names(self, subject: Any) -> tuple[str, ...]:
        return tuple(self.changes)

    def times(self, shares: Mapping[str, float] | float) -> ModelDelta:
        """The changes multiplied by one number, or each by its own (0 where there is none); -1 negates a task."""
        own_ = shares if isinstance(shares, Mapping) else dict.fromkeys(self.changes, float(shares))
        return ModelDelta({n: own_.get(n, 0.0) * c for n, c in self.changes.items()}, self.model)

    def fits(self, subject: Any) -> None:
        for name, change in self.changes.items():
            found = parameter(subject, name)
            editable(found, name)
            if found.shape != change.shape:
                raise UsageError(
                    f"{name} of {subject.name} is {tuple(found.shape)} and the change {tuple(change.shape)}; load the "
                    "model it was made for"
                )

    @contextmanager
    def on(self, subject: Any) -> Iterator[None]:
        def adding(change: torch.Tensor) -> Change:
            return lambda value: up(value) + change.to(up(value))

        token = object()
        changes = [(parameter(subject, n), adding(change)) for n, change in self.changes.items()]
        for name, (weight, _) in zip(self.changes, changes, strict=True):
            idle(weight, name)
        with edited(token, changes):
            yield

    def about(self) -> dict[str, Any]:
        return {"shapes": {name: list(change.shape) for name, change in self.changes.items()}}

    def tensors(self) -> dict[str, torch.Tensor]:
        return {key: t for name, change in self.changes.items() for key, t in pack(name, change).items()}

    @classmethod
    def of(cls, about: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], model: str) -> ModelDelta:
        return cls({name: unpack(name, tensors, shape) for name, shape in about["shapes"].items()}, model)

    def __repr__(self) -> str:
        return f"ModelDelta({len(self.changes)} parameters, {self.digest[:6]})"


@dataclass(frozen=True, eq=False, repr=False)
class Scaled(OfPart):
    """A share of another edit of a part: W becomes W + share (W' - W), and so does the bias.

    Args:
        edit: the other edit.
        share: 0 leaves the weights alone, 1 is the edit itself, more goes beyond it.
    """

    kind: ClassVar[str] = "scaled"

    edit: OfPart
    share: float
    model: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.edit, OfPart):
            raise UsageError(
                f"{self.edit!r}: only the edit of one part is scaled; use times(share) of a ModelDelta"
            )
        object.__setattr__(self, "model", self.model or self.edit.model)

    @property
    def part(self) -> Part:  # type: ignore[override]
        return self.edit.part

    @property
    def shifts(self) -> bool:  # type: ignore[override]
        return self.edit.shifts

    @property
    def shape(self) -> tuple[int | None, int | None]:
        return self.edit.shape

    def fits(self, subject: Any) -> None:
        self.edit.fits(subject)

    def weight(self, weight: Float[torch.Tensor, "out in"]) -> Float[torch.Tensor, "out in"]:
        return weight + self.share * (self.edit.weight(weight) - weight)

    def bias(
        self, bias: Float[torch.Tensor, " out"], weight: Float[torch.Tensor, "out in"]
    ) -> Float[torch.Tensor, " out"]:
        return bias + self.share * (self.edit.bias(bias, weight) - bias)

    def about(self) -> dict[str, Any]:
        return {"share": self.share, "of": {"kind": self.edit.kind, **self.edit.about()}}

    def tensors(self) -> dict[str, torch.Tensor]:
        return self.edit.tensors()

    def content(self) -> dict[str, torch.Tensor]:
        return self.edit.content()

    @classmethod
    def of(cls, about: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], model: str) -> Scaled:
        inner = Single.kinds[about["of"]["kind"]].of(about["of"], tensors, model)
        assert isinstance(inner, OfPart)
        return cls(inner, about["share"], model)


def difference(
    before: Mapping[str, torch.Tensor], after: Mapping[str, torch.Tensor], names: Sequence[str] | None = None
) -> dict[str, torch.Tensor]:
    """What took parameters from one state to another, after - before, in fp32 or better.

    Raises:
        UsageError: a name is not in both, or its shapes differ.
    """
    out = {}
    for name in names if names is not None else before:
        if name not in before or name not in after or before[name].shape != after[name].shape:
            raise UsageError(f"{name} is not in both states in one shape; give states of one model")
        out[name] = up(after[name].detach()) - up(before[name].detach())
    return out
