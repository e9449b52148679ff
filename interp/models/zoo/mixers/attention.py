"""Softmax attention (Vaswani et al. 2017, arXiv 1706.03762), with rotary positions (Su et al. 2021, arXiv 2104.09864).

    z_t = sum_{s <= t} softmax_s(q_t . k_s / sqrt(d_head)) v_s,    out_t = W_O z_t

The kernel is called through transformers' `AttentionInterface`, so that its patterns can be read and edited as in any
other Hugging Face model.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import eager_attention_forward

from interp.models.zoo.config import ZooConfig
from interp.models.zoo.mixers.base import Around, Mixer


class Attention(Mixer):
    """Multi-head softmax attention."""

    is_causal = True
    num_key_value_groups = 1

    def __init__(self, config: ZooConfig, layer: int):
        super().__init__(config, layer)
        self.d_head = config.head_dim
        d, bias = config.hidden_size, config.attention_bias
        self.q_proj = nn.Linear(d, d, bias=bias)
        self.k_proj = nn.Linear(d, d, bias=bias)
        self.v_proj = nn.Linear(d, d, bias=bias)
        self.o_proj = nn.Linear(d, d, bias=bias)

    def forward(
        self, x: Float[torch.Tensor, "b t d"], around: Around, **kwargs: Any
    ) -> tuple[Float[torch.Tensor, "b t d"], None]:
        """See `Mixer`."""
        q, k, v = (
            project(x).unflatten(-1, (-1, self.d_head)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        if self.config.positions == "rotary":
            q, k = (rotated(heads, around.positions, self.config.rope_theta) for heads in (q, k))
        if around.cache is not None:
            k, v = around.cache.update(k, v, self.layer_idx)
        kernel = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        dropout = self.config.dropout if self.training else 0.0
        z, _ = kernel(self, q, k, v, around.mask, dropout=dropout, scaling=self.d_head**-0.5, **kwargs)
        return self.o_proj(z.flatten(-2)), None


def rotated(
    heads: Float[torch.Tensor, "b h t d"], positions: Int[torch.Tensor, "#b t"], theta: float
) -> Float[torch.Tensor, "b h t d"]:
    """Queries or keys with the pair (i, i + d/2) turned by position * theta^(-2i/d)."""
    half = heads.shape[-1] // 2
    rates = theta ** (-torch.arange(half, device=heads.device, dtype=torch.float32) / half)
    angle = positions[:, None, :, None].float() * rates
    cos, sin = angle.cos().to(heads.dtype), angle.sin().to(heads.dtype)
    first, second = heads[..., :half], heads[..., half:]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
