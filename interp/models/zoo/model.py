"""Small memory models as Hugging Face modules: embeddings, perhaps a short convolution, layers of one mixer.

    subject = interp.load(untrained(ZooConfig()), tokenizer=symbols(512))

A layer is norm and mixer, then norm and MLP (of no neurons where there is none, so that every site is there). The
convolution stands in front of the first layer: `embed` is before it, `resid_pre[0]` behind it.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import nn
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, GenerationMixin, PreTrainedModel
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import CausalLMOutputWithPast

from interp.models.zoo.config import ZooConfig
from interp.models.zoo.mixers import MIXERS, Around, ShortConv


class _Linear(nn.Linear):
    """A linear layer that may have no neurons; its weights are set by the model."""

    def reset_parameters(self) -> None:
        """Leave them: PyTorch warns of weights without elements."""


class MLP(nn.Module):
    """W_out gelu(W_in x)."""

    def __init__(self, config: ZooConfig):
        super().__init__()
        self.up_proj = _Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = _Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Float[torch.Tensor, "b t d"]) -> Float[torch.Tensor, "b t d"]:
        """What is added to the residual stream."""
        return self.down_proj(functional.gelu(self.up_proj(x)))


class Block(nn.Module):
    """A layer: mixer and MLP, each behind a norm, each added to the residual stream."""

    def __init__(self, config: ZooConfig, layer: int):
        super().__init__()
        self.mixer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mixer = MIXERS[config.mixer](config, layer)
        self.mlp_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = MLP(config)

    def forward(
        self,
        hidden_states: Float[torch.Tensor, "b t d"],
        position_ids: Int[torch.Tensor, "#b t"],
        attention_mask: Any = None,
        padding: torch.Tensor | None = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> Float[torch.Tensor, "b t d"]:
        """The residual stream that leaves the layer; the arguments are named as in Hugging Face's blocks."""
        around = Around(position_ids, attention_mask, padding, past_key_values)
        mixed, _ = self.mixer(self.mixer_norm(hidden_states), around, **kwargs)
        hidden_states = hidden_states + mixed
        return hidden_states + self.mlp(self.mlp_norm(hidden_states))


class Stem(nn.Module):
    """The short convolution behind a norm, added to the embeddings."""

    def __init__(self, config: ZooConfig):
        super().__init__()
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        # Its part of the cache comes after those of the layers.
        self.mixer = ShortConv(config, config.num_hidden_layers)

    def forward(
        self, hidden_states: Float[torch.Tensor, "b t d"], around: Around
    ) -> Float[torch.Tensor, "b t d"]:
        """The residual stream that enters the first layer."""
        return hidden_states + self.mixer(self.norm(hidden_states), around)[0]


class ZooPreTrainedModel(PreTrainedModel):
    """What transformers asks about the models."""

    config: ZooConfig
    config_class = ZooConfig
    base_model_prefix = "model"
    _no_split_modules: ClassVar[list[str]] = ["Block"]
    _skip_keys_device_placement: ClassVar[list[str]] = ["past_key_values"]
    _supports_sdpa = True
    _supports_attention_backend = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Normal weights; what is written to the residual stream is smaller the more layers write (as GPT-2)."""
        std = self.config.initializer_range
        if isinstance(module, nn.Conv1d):
            nn.init.normal_(module.weight, std=module.kernel_size[0] ** -0.5)
            nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        elif isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=std)
            if getattr(module, "bias", None) is not None:
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        elif isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, Block):
            for path in ("mixer.o_proj", "mlp.down_proj"):
                writer: Any = module.get_submodule(path)
                nn.init.normal_(writer.weight, std=std / (2 * self.config.num_hidden_layers) ** 0.5)


class ZooModel(ZooPreTrainedModel):
    """Embeddings to the last norm."""

    def __init__(self, config: ZooConfig):
        super().__init__(config)
        d = config.hidden_size
        self.embed_tokens = nn.Embedding(config.vocab_size, d)
        learned = config.positions == "learned"
        self.embed_positions = nn.Embedding(config.max_position_embeddings, d) if learned else None
        self.embed_dropout = nn.Dropout(config.dropout)
        self.stem = Stem(config) if config.conv_width else None
        self.layers = nn.ModuleList([Block(config, i) for i in range(config.num_hidden_layers)])
        self.norm = nn.LayerNorm(d, eps=config.layer_norm_eps)
        self.post_init()

    def forward(
        self,
        input_ids: Int[torch.Tensor, "b t"],
        attention_mask: Any = None,
        position_ids: Int[torch.Tensor, "#b t"] | None = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> Float[torch.Tensor, "b t d"]:
        """The normed residual stream behind the last layer."""
        hidden = self.embed_tokens(input_ids)
        if position_ids is None:
            past = 0 if past_key_values is None else past_key_values.get_seq_length()
            position_ids = torch.arange(past, past + input_ids.shape[1], device=input_ids.device)[None]
        if self.embed_positions is not None:
            hidden = hidden + self.embed_positions(position_ids)
        hidden = self.embed_dropout(hidden)
        mask = create_causal_mask(
            config=self.config,
            inputs_embeds=hidden,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            position_ids=position_ids,
        )
        if self.stem is not None:
            hidden = self.stem(hidden, Around(position_ids, mask, attention_mask, past_key_values))
        for layer in self.layers:
            hidden = layer(
                hidden,
                position_ids=position_ids,
                attention_mask=mask,
                padding=attention_mask,
                past_key_values=past_key_values,
                **kwargs,
            )
        return self.norm(hidden)


class ZooForCausalLM(ZooPreTrainedModel, GenerationMixin):
    """The model with its unembedding."""

    _tied_weights_keys: ClassVar[dict[str, str]] = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: ZooConfig):
        super().__init__(config)
        self.model = ZooModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: Int[torch.Tensor, "b t"],
        attention_mask: Any = None,
        position_ids: Int[torch.Tensor, "#b t"] | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits of the last `logits_to_keep` columns (0: of all), or of the columns that a tensor names."""
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache()
        hidden = self.model(input_ids, attention_mask, position_ids, past_key_values, **kwargs)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        return CausalLMOutputWithPast(
            logits=self.lm_head(hidden[:, kept]), past_key_values=past_key_values if use_cache else None
        )


def untrained(config: ZooConfig, *, seed: int = 0) -> ZooForCausalLM:
    """A model with random weights; equal seeds give equal weights, and the global random state is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ZooForCausalLM(config).eval()


AutoConfig.register(ZooConfig.model_type, ZooConfig, exist_ok=True)
AutoModelForCausalLM.register(ZooConfig, ZooForCausalLM, exist_ok=True)
