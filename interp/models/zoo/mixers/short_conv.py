"""A short causal convolution with a gate: BaseConv of Zoology (Arora et al. 2023, arXiv 2312.04927), as in Based.

    y_t = (W x_t + b) * (sum_{j < width} w_j * x_{t-j} + c)        (* is element by element, each channel its own w)

It tells each token of those just before it, so one layer of attention after it can find a key's value.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import nn
from torch.nn import functional
from transformers.cache_utils import DynamicLayer

from interp.errors import EngineError
from interp.models.zoo.config import ZooConfig
from interp.models.zoo.mixers.base import Around, Mixer


class ShortConv(Mixer):
    """The gated convolution.

    Raises:
        EngineError: it is asked to follow an attention mask of four dimensions, which does not say which tokens are
            neighbours.
    """

    def __init__(self, config: ZooConfig, layer: int):
        super().__init__(config, layer)
        d, self.width = config.hidden_size, config.conv_width
        self.gate = nn.Linear(d, d)
        self.conv = nn.Conv1d(d, d, self.width, groups=d)

    def forward(
        self, x: Float[torch.Tensor, "b t d"], around: Around, **kwargs: Any
    ) -> tuple[Float[torch.Tensor, "b t d"], None]:
        """See `Mixer`."""
        t, padding = x.shape[1], around.padding
        if padding is not None:
            if padding.ndim != 2:
                raise EngineError(
                    "a short convolution cannot follow a 4-D attention mask: run without `mask`"
                )
            x = x * padding[:, -t:, None].to(x.dtype)
        seen = x
        if around.cache is not None:
            seen = self._cached(x, around.cache)[:, -(t + self.width - 1) :]
        lacking = t + self.width - 1 - seen.shape[1]
        mixed = self.conv(functional.pad(seen, (0, 0, lacking, 0)).mT).mT
        return self.gate(x) * mixed, None

    def _cached(self, x: Float[torch.Tensor, "b t d"], cache: Any) -> Float[torch.Tensor, "b s d"]:
        """What came before and these tokens; it lies in the cache like keys, so that a cropped cache holds too."""
        while len(cache.layers) <= self.layer_idx:
            cache.layers.append(
                DynamicLayer()
            )  # a cache made for a config has one for each layer of attention
        keys, _ = cache.update(x[:, None], x.new_zeros(len(x), 1, x.shape[1], 0), self.layer_idx)
        return keys[:, 0]
