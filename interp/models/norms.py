"""What a norm does to weights that read through it: its gain, its bias, and whether it takes the mean away.

A norm divides each token by its own length, which no weight can hold; all else of it is linear and can be folded into
the weights behind it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import nn

from interp.errors import EngineError


@dataclass(frozen=True, eq=False)
class Norm:
    """The linear part of a norm.

    Attributes:
        gain: what each coordinate is multiplied by.
        bias: what is added after it; None where nothing is.
        centred: the mean over coordinates is taken away first (LayerNorm does, RMSNorm does not).
    """

    gain: Float[torch.Tensor, " d"]
    bias: Float[torch.Tensor, " d"] | None
    centred: bool

    @classmethod
    def of(cls, module: nn.Module) -> Norm:
        """The linear part of a norm module of any family.

        Raises:
            EngineError: the module is no norm of a known kind.
        """
        weight = getattr(module, "weight", None)
        if not isinstance(weight, torch.Tensor) or weight.ndim != 1:
            raise EngineError(
                f"{type(module).__name__} is no norm with a gain, so it cannot be folded into weights"
            )
        if isinstance(module, nn.LayerNorm):
            bias = None if module.bias is None else module.bias.detach()
            return cls(weight.detach(), bias, True)
        if "RMSNorm" not in type(module).__name__:
            raise EngineError(f"{type(module).__name__} is neither a LayerNorm nor an RMSNorm")
        # Asked of the module itself: some families add one to the weight. A large constant vector has length one
        # in all coordinates, whatever the epsilon.
        with torch.no_grad():
            gain = module(torch.full_like(weight, 1e3, dtype=torch.float32))
        return cls(gain.to(weight.dtype), None, False)

    def fold(self, weight: Float[torch.Tensor, "... d k"]) -> Float[torch.Tensor, "... d k"]:
        """A reading matrix (row vectors are multiplied by it from the left) that does the norm's part as well.

        >>> norm = Norm(torch.tensor([2.0, 4.0]), None, centred=True)
        >>> norm.fold(torch.eye(2))
        tensor([[ 1., -2.],
                [-1.,  2.]])
        """
        out = weight * self.gain[:, None].to(weight.dtype)
        return out - out.mean(-2, keepdim=True) if self.centred else out

    def unfold_direction(self, direction: Float[torch.Tensor, "... d"]) -> Float[torch.Tensor, "... d"]:
        """A direction that folded weights read, as the same direction before the gain: what the raw weights read."""
        return direction / self.gain.to(direction.dtype)
