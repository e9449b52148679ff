"""The untrained tiny text-to-image pipeline: a real `StableDiffusionPipeline` of about 1.1 million parameters.

It draws grey pictures of 8 x 8 pixels in pixel space (its VAE changes nothing), reads captions of known words, and has
the module names of Stable Diffusion 1.x: `transformer_blocks.0.ff.net.2`, `attn2.to_v`, ... What runs on it runs on the
real one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from diffusers.models.modeling_utils import ModelMixin
from jaxtyping import Float
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast

SIZE = 8
"""Height and width of its pictures, in pixels."""

CONTEXT = 10
"""Tokens of a caption, its first and last included."""

_PAD, _BOS, _EOS, _UNKNOWN = "<pad>", "<bos>", "<eos>", "<unk>"
_TINY_VARIANCE = -30.0


class IdentityVAE(ModelMixin, ConfigMixin):
    """A VAE whose latents are the picture itself, in [-1, 1]. It keeps the face of `AutoencoderKL`."""

    @register_to_config
    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 1,
        latent_channels: int = 1,
        block_out_channels: tuple[int, ...] = (1,),
        scaling_factor: float = 1.0,
        force_upcast: bool = False,
        sample_size: int = SIZE,
    ) -> None:
        super().__init__()
        # Has no weights; a buffer tells where it lives and in which type it computes.
        self.register_buffer("unit", torch.ones(()))

    @property
    def dtype(self) -> torch.dtype:
        return self.unit.dtype

    def encode(self, x: Float[Tensor, "b c h w"], return_dict: bool = True) -> Any:
        """The picture as a distribution without spread: `latent_dist.mode()` and `.sample()` are the picture."""
        spread = torch.full_like(x, _TINY_VARIANCE)
        latents = DiagonalGaussianDistribution(torch.cat([x, spread], 1), deterministic=True)
        return AutoencoderKLOutput(latent_dist=latents) if return_dict else (latents,)

    def decode(self, z: Float[Tensor, "b c h w"], return_dict: bool = True, generator: Any = None) -> Any:
        """The latents as they are."""
        return DecoderOutput(sample=z) if return_dict else (z,)


def build(
    words: Sequence[str] | None = None,
    *,
    seed: int = 0,
    channels: tuple[int, ...] = (32, 64),
    width: int = 64,
    vae: AutoencoderKL | IdentityVAE | None = None,
    prediction: Literal["epsilon", "v_prediction", "sample"] = "epsilon",
) -> StableDiffusionPipeline:
    """An untrained pipeline with random weights, equal for equal arguments; the global random state stays as it was.

    Args:
        words: all words of its captions; by default those of `interp.models.zoo.digits.data`.
        seed: of the weights.
        channels: of the UNet's two or more stages, multiples of 8; each but the first halves height and width.
        width: of the text encoder and of the UNet's cross-attention, a multiple of 16.
        vae: another VAE than the one that changes nothing; the UNet then has its `latent_channels`.
        prediction: what the UNet's output stands for.

    Example:
        >>> pipe = build(["a", "poster", "of", "seven"], channels=(8, 16), width=16)
        >>> generator = torch.Generator().manual_seed(0)
        >>> _ = pipe.set_progress_bar_config(disable=True)
        >>> drawn = pipe("a poster of seven", height=8, width=8, num_inference_steps=2, generator=generator,
        ...     output_type="np")
        >>> drawn.images.shape
        (1, 8, 8, 1)
    """
    if words is None:
        from interp.models.zoo.digits.data import vocabulary

        words = vocabulary()
    tokens = word_tokenizer(words)
    vae = vae or IdentityVAE()
    depth = len(channels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        text = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokens),
                hidden_size=width,
                intermediate_size=4 * width,
                num_hidden_layers=2,
                num_attention_heads=4,
                max_position_embeddings=CONTEXT,
                bos_token_id=tokens.bos_token_id,
                eos_token_id=tokens.eos_token_id,
                pad_token_id=tokens.pad_token_id,
            )
        )
        unet = UNet2DConditionModel(
            sample_size=SIZE,
            in_channels=vae.config.latent_channels,
            out_channels=vae.config.latent_channels,
            layers_per_block=1,
            block_out_channels=channels,
            down_block_types=("CrossAttnDownBlock2D",) * depth,
            up_block_types=("CrossAttnUpBlock2D",) * depth,
            cross_attention_dim=width,
            attention_head_dim=8,
            norm_num_groups=8,
        )
    scheduler = DDIMScheduler(
        num_train_timesteps=1000,
        beta_schedule="squaredcos_cap_v2",
        clip_sample=False,
        prediction_type=prediction,
        set_alpha_to_one=True,
        steps_offset=1,
    )
    pipe = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text.eval(),
        tokenizer=tokens,
        unet=unet.eval(),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def word_tokenizer(words: Sequence[str]) -> PreTrainedTokenizerFast:
    """One token a word, `<bos> caption <eos>`, padded to `CONTEXT`; an unknown word is `<unk>`."""
    known = [_PAD, _BOS, _EOS, _UNKNOWN, *dict.fromkeys(words)]
    raw = Tokenizer(models.WordLevel({word: i for i, word in enumerate(known)}, unk_token=_UNKNOWN))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    raw.post_processor = TemplateProcessing(
        single=f"{_BOS} $A {_EOS}", special_tokens=[(_BOS, known.index(_BOS)), (_EOS, known.index(_EOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        bos_token=_BOS,
        eos_token=_EOS,
        pad_token=_PAD,
        unk_token=_UNKNOWN,
        model_max_length=CONTEXT,
    )
