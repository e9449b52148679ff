"""`Mixer`: the part of a layer that moves information between tokens, and what it is told about them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import nn

if TYPE_CHECKING:
    from interp.models.zoo.config import ZooConfig


@dataclass(frozen=True)
class Around:
    """What a mixer is told about the tokens of a pass, beside their residual stream.

    Attributes:
        positions: of the tokens of this pass.
        mask: of attention kernels, as transformers makes it; None is plain causal.
        padding: 1 where a column holds a token, 0 where it is padding, cached columns first; None where none is.
        cache: KV cache that is read and extended, or None.
    """

    positions: Int[torch.Tensor, "#b t"]
    mask: Any = None
    padding: torch.Tensor | None = None
    cache: Any = None


class Mixer(nn.Module, ABC):
    """Reads the normed residual stream of all tokens and says what is added to it.

    A mixer of layers ends in a linear projection `o_proj`, whose input is `z`, by heads.

    Args:
        config: of the model.
        layer: its number among the layers, by which it finds its part of the cache.
    """

    def __init__(self, config: ZooConfig, layer: int):
        super().__init__()
        self.config = config
        self.layer_idx = layer

    @abstractmethod
    def forward(
        self, x: Float[torch.Tensor, "b t d"], around: Around, **kwargs: Any
    ) -> tuple[Float[torch.Tensor, "b t d"], None]:
        """What is added to the stream, in a pair as attention modules of Hugging Face give it."""
