"""What a norm does to weights that read through it: its gain, its bias, and whether it takes the mean away.

norm(x) = scale(x) * gain * x + bias, with x centred first in a LayerNorm. The scale belongs to the token, and no weight
can hold it; all else is linear and can be folded into the weights behind the norm.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import nn

from interp.errors import EngineError
from interp.models.offload import present

_CLOSE = {torch.float32: 1e-4, torch.float64: 1e-4}


@dataclass(frozen=True)
class Norm:
    """A norm as a linear map with a scale of each token's own.

    Attributes:
        module: the norm.
        gain: what each dimension is multiplied by; its length is arbitrary, since scales are measured with it.
        centred: whether the mean is taken off first, as in a LayerNorm.
        bias: added at the end; zeros where there is none.
    """

    module: nn.Module
    gain: Float[torch.Tensor, " d"]
    centred: bool
    bias: Float[torch.Tensor, " d"]

    @classmethod
    def of(cls, module: nn.Module, what: str = "a norm") -> Norm:
        """Which of the known forms a norm has, found out on a probe.

        Raises:
            EngineError: it has none of them.
        """
        own: Any = module
        with present(module):
            weight = own.weight.detach().float()
            bias = getattr(own, "bias", None)
            bias = torch.zeros_like(weight) if bias is None else bias.detach().float()
            probe = 1 + torch.sin(1.7 * torch.arange(len(weight), device=weight.device) ** 1.3)
            wanted = own(probe.to(own.weight.dtype)[None])[0].float() - bias
        for gain in (weight, 1 + weight):
            for centred in (False, True):
                norm = cls(module, gain, centred, bias)
                found = norm._plain(probe)
                found = found * (wanted @ found) / (found @ found)
                if (found - wanted).norm() <= _CLOSE.get(own.weight.dtype, 2e-2) * wanted.norm():
                    return norm
        raise EngineError(f"{what} ({type(module).__name__}) is neither a LayerNorm nor an RMS norm")

    def _plain(self, x: torch.Tensor) -> torch.Tensor:
        return self.gain * (x - x.mean(-1, keepdim=True) if self.centred else x)

    def scale(self, x: Float[torch.Tensor, "*n d"]) -> Float[torch.Tensor, "*n"]:
        """By how much the norm scales its inputs."""
        with torch.no_grad(), present(self.module):
            x = x.to(self.gain.device)
            out = self.module(x).float() - self.bias
        plain = self._plain(x.float())
        return (out * plain).sum(-1) / (plain * plain).sum(-1).clamp(min=1e-30)

    def back(self, direction: Float[torch.Tensor, "*n d"]) -> Float[torch.Tensor, "*n d"]:
        """The direction before the norm that is read as `direction` after it, up to the scale."""
        found = direction * self.gain.to(direction.device, direction.dtype)
        return found - found.mean(-1, keepdim=True) if self.centred else found

    def fold(self, weight: Float[torch.Tensor, "... d k"]) -> Float[torch.Tensor, "... d k"]:
        """A matrix that reads behind the norm (x @ W), as one that reads before it, up to the scale."""
        return self.back(weight.mT).mT
