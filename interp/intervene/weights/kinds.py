"""The kinds of edits of a part: prune, mean-ablate, project out, set output vectors, add a low-rank or a full change.

Weights are out x in, as `weight_of` gives them: column j holds what input unit j writes, for the matrix behind the
activation the output vector of neuron j. Row i is output unit i.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from interp.errors import UsageError
from interp.intervene.weights.base import OfPart, Single, numbers, own, part_of
from interp.models.parts import Part, weight_of

Side = Literal["in", "out"]
SIDES: tuple[str, ...] = get_args(Side)


def _side(side: str) -> None:
    if side not in SIDES:
        raise UsageError(f"no side '{side}' of a weight; write one of {', '.join(SIDES)}")


@dataclass(frozen=True, eq=False, repr=False)
class Prune(OfPart):
    """Weights at the mask are zero; the bias stays.

    Args:
        part: the part.
        mask: True where a weight is cut.
        model: fingerprint of the model it was made for, see `PartEdit.made_for`.
    """

    kind: ClassVar[str] = "prune"

    part: Part
    mask: Bool[torch.Tensor, "out in"]
    model: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "mask", self.mask.detach().cpu().contiguous().clone())

    @classmethod
    def units(
        cls, subject: Any, part: Part, units: Sequence[int] | Int[torch.Tensor, " n"], side: Side = "in"
    ) -> Self:
        """Whole units: columns of the weight (neurons, `in`) or rows of it (what is written, `out`)."""
        _side(side)
        mask = torch.zeros(weight_of(subject, part).shape, dtype=torch.bool)
        found = within(numbers(units, f"{part}"), mask.shape[side == "in"], part)
        mask[(slice(None), found) if side == "in" else found] = True
        return cls(part, mask, subject.fingerprint)

    @property
    def shape(self) -> tuple[int, int]:
        return (self.mask.shape[0], self.mask.shape[1])

    def weight(self, weight: Float[torch.Tensor, "out in"]) -> Float[torch.Tensor, "out in"]:
        return weight.masked_fill(self.mask.to(weight.device), 0)

    def about(self) -> dict[str, Any]:
        return {**super().about(), "shape": list(self.mask.shape)}

    def tensors(self) -> dict[str, torch.Tensor]:
        # Of a mask of a hundredth of the weights that leaves an eighth of a bit a weight.
        packed = zlib.compress(np.packbits(self.mask.numpy()).tobytes(), 6)
        return {"mask": torch.frombuffer(bytearray(packed), dtype=torch.uint8)}

    def content(self) -> dict[str, torch.Tensor]:
        return {"mask": self.mask}

    @classmethod
    def of(cls, about: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], model: str) -> Prune:
        rows, columns = about["shape"]
        bits = np.frombuffer(zlib.decompress(tensors["mask"].numpy().tobytes()), dtype=np.uint8)
        flat = np.unpackbits(bits, count=rows * columns).astype(bool)
        return cls(part_of(about), torch.from_numpy(flat.reshape(rows, columns)), model)


class OfUnits(OfPart):
    """An edit of some input units of a part (neurons), with a number or a vector for each."""

    each: ClassVar[str]
    """Name of the field that has them."""

    units: Int[torch.Tensor, " n"]

    def __post_init__(self) -> None:
        object.__setattr__(self, "units", numbers(self.units, f"{self.part}"))
        given: torch.Tensor = getattr(self, self.each)
        _keep(self, **{self.each: given})
        if len(given) != len(self.units):
            raise UsageError(
                f"{self.part}: {len(self.units)} units and {len(given)} {self.each}; give one of each"
            )

    def fits(self, subject: Any) -> None:
        within(self.units, weight_of(subject, self.part).shape[1], self.part)
        super().fits(subject)


@dataclass(frozen=True, eq=False, repr=False)
class MeanAblate(OfUnits):
    """Input units hold their means, whatever comes in: their columns are zero and the bias keeps what they wrote.

    A projection without bias is lent one for the time of the edit.

    Args:
        part: the part.
        units: input units (neurons).
        means: of each unit, what it holds.
        model: fingerprint of the model it was made for.
    """

    kind: ClassVar[str] = "mean_ablate"
    each: ClassVar[str] = "means"
    shifts: ClassVar[bool] = True

    part: Part
    units: Int[torch.Tensor, " n"]
    means: Float[torch.Tensor, " _"]
    model: str = ""

    @property
    def shape(self) -> tuple[None, None]:
        return (None, None)

    def weight(self, weight: Float[torch.Tensor, "out in"]) -> Float[torch.Tensor, "out in"]:
        return weight.index_fill(1, self.units.to(weight.device), 0)

    def bias(
        self, bias: Float[torch.Tensor, " out"], weight: Float[torch.Tensor, "out in"]
    ) -> Float[torch.Tensor, " out"]:
        return bias + weight[:, self.units.to(weight.device)] @ self.means.to(weight)


@dataclass(frozen=True, eq=False, repr=False)
class ProjectOut(OfPart):
    """Directions are taken out of a weight: W (I - V V') of what it reads, or (I - U U') W of what it writes.

    Args:
        part: the part.
        basis: orthonormal directions as columns, of the input or of the output.
        side: which of the two; the bias stays.
        model: fingerprint of the model it was made for.

    Raises:
        UsageError: the basis is not orthonormal.
    """

    kind: ClassVar[str] = "project_out"

    part: Part
    basis: Float[torch.Tensor, "d r"]
    side: Side = "in"
    model: str = ""

    def __post_init__(self) -> None:
        _side(self.side)
        _keep(self, basis=self.basis)
        gram = self.basis.T @ self.basis
        if bool(((gram - torch.eye(len(gram))).abs() > 1e-4).any()):
            raise UsageError(
                f"{self.part}: the basis to project out is not orthonormal; give torch.linalg.qr(basis).Q"
            )

    @property
    def rank(self) -> int:
        """Number of directions."""
        return self.basis.shape[1]

    @property
    def shape(self) -> tuple[int | None, int | None]:
        return (None, len(self.basis)) if self.side == "in" else (len(self.basis), None)

    def weight(self, weight: Float[torch.Tensor, "out in"]) -> Float[torch.Tensor, "out in"]:
        v = self.basis.to(weight)
        return weight - (weight @ v) @ v.T if self.side == "in" else weight - v @ (v.T @ weight)

    def about(self) -> dict[str, Any]:
        return {**super().about(), "side": self.side}

    @classmethod
    def of(cls, about: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], model: str) -> ProjectOut:
        return cls(part_of(about), tensors["basis"], about["side"], model)


@dataclass(frozen=True, eq=False, repr=False)
class OutputVectors(OfUnits):
    """What some neurons write is replaced: their columns of the weight become these vectors.

    Args:
        part: the part.
        units: neurons (input units).
        vectors: of each, what it writes per unit of activation.
        model: fingerprint of the model it was made for.
    """

    kind: ClassVar[str] = "output_vectors"
    each: ClassVar[str] = "vectors"

    part: Part
    units: Int[torch.Tensor, " n"]
    vectors: Float[torch.Tensor, "_ out"]
    model: str = ""

    @property
    def shape(self) -> tuple[int, None]:
        return (self.vectors.shape[1], None)

    def weight(self, weight: Float[torch.Tensor, "out in"]) -> Float[torch.Tensor, "out in"]:
        return weight.index_copy(1, self.units.to(weight.device), self.vectors.to(weight).T)


@dataclass(frozen=True, eq=False, repr=False)
class LowRank(OfPart):
    """A change of low rank is added, so that x W' becomes x W' + (x a) b; the bias stays.

    Args:
        part: the part.
        a: directions that are read.
        b: directions that are written.
        model: fingerprint of the model it was made for.
    """

    kind: ClassVar[str] = "low_rank"

    part: Part
    a: Float[torch.Tensor, "in r"]
    b: Float[torch.Tensor, "_ out"]
    model: str = ""

    def __post_init__(self) -> None:
        _keep(self, a=self.a, b=self.b)
        if self.a.shape[1] != self.b.shape[0]:
            raise UsageError(
                f"{self.part}: factors {tuple(self.a.shape)} and {tuple(self.b.shape)} share no rank"
            )

    @property
    def rank(self) -> int:
        """Number of directions."""
        return self.a.shape[1]

    @property
    def shape(self) -> tuple[int, int]:
        return (self.b.shape[1], self.a.shape[0])

    def weight(self, weight: Float[torch.Tensor, "out in"]) -> Float[torch.Tensor, "out in"]:
        return weight + (self.a.to(weight) @ self.b.to(weight)).T


@dataclass(frozen=True, eq=False, repr=False)
class Delta(OfPart):
    """A change is added to a weight, and one to its bias where `shift` is given (a missing bias is lent).

    Args:
        part: the part.
        change: W becomes W + change.
        shift: added to the bias.
        model: fingerprint of the model it was made for.
    """

    kind: ClassVar[str] = "delta"

    part: Part
    change: Float[torch.Tensor, "out in"]
    shift: Float[torch.Tensor, " out"] | None = None
    model: str = ""

    def __post_init__(self) -> None:
        _keep(self, change=self.change)
        if self.shift is not None:
            _keep(self, shift=self.shift)

    @property
    def shifts(self) -> bool:  # type: ignore[override]
        return self.shift is not None

    @property
    def shape(self) -> tuple[int, int]:
        return (self.change.shape[0], self.change.shape[1])

    def weight(self, weight: Float[torch.Tensor, "out in"]) -> Float[torch.Tensor, "out in"]:
        return weight + self.change.to(weight)

    def bias(
        self, bias: Float[torch.Tensor, " out"], weight: Float[torch.Tensor, "out in"]
    ) -> Float[torch.Tensor, " out"]:
        return bias if self.shift is None else bias + self.shift.to(bias)

    def low_rank(self, rank: int) -> tuple[LowRank, float]:
        """The nearest change of that rank, and the share of the squared norm that it keeps; the shift is left out."""
        u, s, vh = torch.linalg.svd(self.change.double(), full_matrices=False)
        if not 1 <= rank <= len(s):
            raise UsageError(f"{self.part}: rank {rank} was asked for; write one of 1 to {len(s)}")
        kept = float(s[:rank].square().sum() / s.square().sum().clamp(min=1e-300))
        root = s[:rank].sqrt()
        return LowRank(
            self.part, (vh[:rank].T * root).float(), (root[:, None] * u[:, :rank].T).float(), self.model
        ), kept

    def tensors(self) -> dict[str, torch.Tensor]:
        return pack("change", self.change) | ({} if self.shift is None else {"shift": self.shift})

    def about(self) -> dict[str, Any]:
        return {**super().about(), "shape": list(self.change.shape)}

    @classmethod
    def of(cls, about: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], model: str) -> Delta:
        return cls(part_of(about), unpack("change", tensors, about["shape"]), tensors.get("shift"), model)


def pack(name: str, change: torch.Tensor) -> dict[str, torch.Tensor]:
    """A change as it is saved: whole, or its non-zero entries alone where these take less room."""
    flat = change.reshape(-1)
    at = flat.nonzero().squeeze(1)
    if len(at) * 2 >= len(flat):
        return {name: change}
    return {f"{name}.at": at.to(torch.int32 if len(flat) < 2**31 else torch.int64), f"{name}.is": flat[at]}


def unpack(name: str, tensors: Mapping[str, torch.Tensor], shape: Sequence[int]) -> torch.Tensor:
    """The change that `pack` took apart."""
    if name in tensors:
        return tensors[name]
    values = tensors[f"{name}.is"]
    out = values.new_zeros(int(np.prod(shape)))
    out[tensors[f"{name}.at"].long()] = values
    return out.reshape(tuple(shape))


def _keep(edit: Single, **tensors: torch.Tensor) -> None:
    for name, tensor in tensors.items():
        object.__setattr__(edit, name, own(tensor, f"{name}"))


def within(units: Int[torch.Tensor, " n"], n: int, part: Part) -> Int[torch.Tensor, " n"]:
    """The units, if a part has all of them.

    Raises:
        UsageError: it has not.
    """
    if len(units) and int(units.max()) >= n:
        raise UsageError(f"{part} has units 0 to {n - 1} there, not {int(units.max())}")
    return units
