"""What a small memory model is made of: a mixer in every layer, and perhaps a short convolution in front of them."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig

POSITIONS = ("rotary", "learned", "none")
"""How a model knows where a token stands."""


class ZooConfig(PreTrainedConfig):
    """Sizes and parts of a `ZooForCausalLM`.

    Args:
        mixer: what moves information between tokens in each layer; see `interp.models.zoo.mixers.MIXERS`.
        positions: `rotary` (in the queries and keys of attention), `learned` (added to the embeddings) or `none`.
        conv_width: tokens that the short convolution in front of the first layer sees, itself included; 0 for none.
        intermediate_size: neurons of each layer's MLP; 0 for none, as in the models of Zoology (arXiv 2312.04927).
        dropout: of embeddings and attention patterns in training.

    Raises:
        ValueError: parts that do not exist or do not fit each other.
    """

    # transformers makes a dataclass of it that takes other keywords too, which a check of its signature would refuse.
    __no_type_check__ = True

    model_type = "interp_zoo"
    keys_to_ignore_at_inference = ("past_key_values",)

    vocab_size: int = 512
    hidden_size: int = 64
    num_hidden_layers: int = 1
    num_attention_heads: int = 4
    intermediate_size: int = 0
    mixer: str = "attention"
    positions: str = "none"
    conv_width: int = 3
    max_position_embeddings: int = 512
    rope_theta: float = 10000.0
    attention_bias: bool = False
    dropout: float = 0.0
    layer_norm_eps: float = 1e-5
    initializer_range: float = 0.02
    use_cache: bool = True
    tie_word_embeddings: bool = True
    pad_token_id: int | None = 0
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        from interp.models.zoo.mixers import MIXERS

        super().__post_init__(**kwargs)
        if self.mixer not in MIXERS:
            raise ValueError(f"no mixer '{self.mixer}'; write one of {', '.join(MIXERS)}")
        if self.positions not in POSITIONS:
            raise ValueError(f"no positions '{self.positions}'; write one of {', '.join(POSITIONS)}")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"{self.num_attention_heads} heads do not divide a width of {self.hidden_size} evenly"
            )
        if self.positions == "rotary" and self.head_dim % 2:
            raise ValueError(f"rotary positions need heads of even width, not {self.head_dim}")

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        return self.hidden_size // self.num_attention_heads
