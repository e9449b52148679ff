"""What rotary positions do to a head's QK: W_Q R_D W_K^T at an offset D, and its mean over offsets.

R_D turns planes of two dimensions of a head by D times their own angle, with eigenvectors that are the same at every
offset. There it is diagonal, and the second moment of rotated keys, R_D G R_D^T, is G with each entry times
e^{i D (l_a - l_b)}: a mean over offsets is one Hadamard product with the mean phases. Dimensions that are not rotated
have angle 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Complex, Float

from interp.errors import EngineError, UsageError
from interp.models.subject import CausalLM

Layout = Literal["half", "interleaved"]
Offsets = Sequence[int] | Mapping[int, float]
"""Query position less key position: some offsets, of equal weight, or each with its weight."""


@dataclass(frozen=True, eq=False)
class Rotation:
    """Rotations of a head's vectors, as rows: x R_D.

    Args:
        angles: radians that each plane turns by from one position to the next.
        d_head: width of a head; dimensions behind twice the planes are left alone.
        layout: plane i lies in dimensions i and i + n (`half`) or 2 i and 2 i + 1 (`interleaved`).
    """

    angles: Float[torch.Tensor, " n"]
    d_head: int
    layout: Layout = "half"

    @classmethod
    def of(cls, subject: CausalLM, layer: int) -> Rotation:
        """The rotation of a layer, read off what the model's own module gives at position 1.

        Raises:
            UsageError: the model has no rotary positions.
            EngineError: they are not of a known layout.
        """
        found = [m for m in subject.hf.modules() if type(m).__name__.lower().endswith("rotaryembedding")]
        if not found:
            raise UsageError(
                f"{subject.name} does not rotate queries and keys; its QK is the same at every offset"
            )
        module: Any = found[0]
        x = torch.zeros(1, 1, 1, device=subject.device)
        position = torch.ones(1, 1, dtype=torch.long, device=subject.device)
        types = getattr(module, "layer_types", None)
        kind = [subject.config.layer_types[layer]] if types is not None else []
        with torch.no_grad():
            cos, sin = (t[0, 0].double().cpu() for t in module(x, position, *kind))
        n = len(cos) // 2
        for layout, first, second in (
            ("half", slice(0, n), slice(n, None)),
            ("interleaved", slice(0, None, 2), slice(1, None, 2)),
        ):
            if torch.equal(cos[first], cos[second]) and torch.equal(sin[first], sin[second]):
                return cls(torch.atan2(sin[first], cos[first]), subject.d_head, layout)  # type: ignore[arg-type]
        raise EngineError(f"{type(module).__name__} of {subject.name} turns planes of an unknown layout")

    def _planes(self) -> tuple[torch.Tensor, torch.Tensor]:
        n = len(self.angles)
        i = torch.arange(n)
        return (i, i + n) if self.layout == "half" else (2 * i, 2 * i + 1)

    def matrix(self, offset: int) -> Float[torch.Tensor, "k k"]:
        """R_D as a whole matrix."""
        out = torch.eye(self.d_head, dtype=torch.float64)
        a, b = self._planes()
        cos, sin = (offset * self.angles).cos(), (offset * self.angles).sin()
        out[a, a], out[b, b], out[a, b], out[b, a] = cos, cos, sin, -sin
        return out

    def _eigen(self) -> tuple[Complex[torch.Tensor, "k k"], Float[torch.Tensor, " k"]]:
        """Eigenvectors of all R_D as columns, and their angles."""
        vectors = torch.eye(self.d_head, dtype=torch.complex128)
        angles = torch.zeros(self.d_head, dtype=torch.float64)
        a, b = self._planes()
        half = 0.5**0.5
        vectors[a, a], vectors[b, a], vectors[a, b], vectors[b, b] = half, half * 1j, half, -half * 1j
        angles[a], angles[b] = self.angles.double(), -self.angles.double()
        return vectors, angles

    def mean(
        self, moment: Float[torch.Tensor, "*n k k"], offsets: Offsets, *, back: bool = False
    ) -> Float[torch.Tensor, "*n k k"]:
        """Mean over offsets of R_D G R_D^T, or with `back` of R_D^T G R_D.

        Raises:
            UsageError: there are no offsets, or their weights do not sum to something positive.
        """
        weights = dict(offsets) if isinstance(offsets, Mapping) else dict.fromkeys(offsets, 1.0)
        total = sum(weights.values())
        if not weights or not total > 0 or min(weights.values()) < 0:
            raise UsageError(f"offsets {offsets!r}: give some, with weights that are not negative")
        vectors, angles = self._eigen()
        at = torch.tensor(list(weights), dtype=torch.float64) * (-1 if back else 1)
        share = torch.tensor(list(weights.values()), dtype=torch.float64) / total
        phase = torch.exp(1j * at[:, None] * angles)
        mean = torch.einsum("n,na,nb->ab", share.to(phase.dtype), phase, phase.conj())
        inner = vectors.mH @ moment.detach().cpu().to(vectors.dtype) @ vectors
        return (vectors @ (inner * mean) @ vectors.mH).real.to(moment.device, moment.dtype)
