"""Units of a layer as singular components: the directions that heads write, and those that they read with.

A component is a unit vector of the residual stream with its share of its unit's squared length. Which directions are
components at all is decided once, here: those of vanishing singular values are any that the decomposition came by.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int

from interp.locate.channels.factors import Factors, Mode

Score = Literal["full", "side"]


@dataclass(frozen=True, eq=False)
class Parts:
    """Singular components of all heads or KV groups of a layer; those without weight are left out.

    Attributes:
        rows: unit vectors of the residual stream.
        unit: head or group that each belongs to.
        number: of the component in it, strongest first.
        share: of the squared length of its head.
        names: of the units.
    """

    rows: Float[torch.Tensor, "n d"]
    unit: Int[torch.Tensor, " n"]
    number: Int[torch.Tensor, " n"]
    share: Float[torch.Tensor, " n"]
    names: tuple[str, ...]

    @classmethod
    def of(
        cls, s: Float[torch.Tensor, "u k"], rows: Float[torch.Tensor, "u k d"], names: Sequence[str]
    ) -> Parts:
        """Components by their singular values and vectors."""
        # The vectors of vanishing singular values are any that the decomposition came by.
        kept = s > rows.shape[-1] * torch.finfo(s.dtype).eps * s[:, :1]
        unit, number = kept.nonzero(as_tuple=True)
        share = s.square() / s.square().sum(-1, keepdim=True)
        return cls(rows[kept], unit, number, share[kept], tuple(names))

    @property
    def member(self) -> Float[torch.Tensor, "n u"]:
        """1 where a component belongs to a unit."""
        return torch.nn.functional.one_hot(self.unit, len(self.names)).to(self.rows.dtype)

    def spectra(self) -> Float[torch.Tensor, "u k"]:
        """Shares of each unit's components, zeros behind them."""
        out = self.share.new_zeros(len(self.names), int(self.number.max()) + 1)
        out[self.unit, self.number] = self.share
        return out


def writers(factors: Factors) -> Parts:
    """What the query heads of a layer write."""
    found = factors.output
    return Parts.of(found.s, found.write, [f"L{factors.layer}H{h}" for h in range(len(factors.heads.q))])


def readers(factors: Factors, mode: Mode, score: Score) -> Parts:
    """What the query heads of a layer, or its KV groups, read."""
    heads = [f"L{factors.layer}H{h}" for h in range(len(factors.heads.q))]
    if mode == "V" or score == "full":
        found = factors.reading(mode)
        return Parts.of(found.s, found.read, heads)
    if mode == "K" and factors.heads.share > 1:
        heads = [f"L{factors.layer}KV{g}" for g in range(len(factors.heads.k))]
    u, s, _ = torch.linalg.svd(factors.side(mode), full_matrices=False)
    return Parts.of(s, u.mT, heads)
