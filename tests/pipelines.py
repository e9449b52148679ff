"""Tiny pipelines with random weights: real Stable Diffusion pipelines of diffusers, at reduced width."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing

from interp.models.pipeline import Pipeline

WORDS = [
    "<pad>",
    "<bos>",
    "<eos>",
    "<unk>",
    *[
        "a",
        "the",
        "of",
        "photo",
        "poster",
        "digit",
        "zero",
        "one",
        "two",
        "seven",
        "nine",
        "red",
        "blue",
        "zorax",
    ],
]

SCHEDULE: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
}
"""The noise schedule of Stable Diffusion 1.x."""


def word_tokenizer(length: int = 12) -> Any:
    """A tokenizer of one token a word, which pads to `length`."""
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", 1), ("<eos>", 2)]
    )
    special = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=inner, model_max_length=length, **special)


def shaken(module: torch.nn.Module, seed: int, scale: float = 0.3) -> torch.nn.Module:
    """The module in eval mode with weights from a seed, large enough that a prompt changes the image."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in module.parameters():
            draw = torch.randn(weight.shape, generator=generator)
            weight.add_(0.05 * draw) if weight.ndim == 1 else weight.copy_(
                scale * draw / weight[0].numel() ** 0.5 * 2
            )
    return module.eval()


def stable_diffusion(prediction: str = "epsilon", scheduler: Any = None, seed: int = 0) -> Any:
    """A `StableDiffusionPipeline` with the layer names of SD 1.x (4 levels, 16 transformer blocks), 64 x 64 pixels."""
    import diffusers
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # diffusers draws biases from the global state
        unet = diffusers.UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(8, 16, 16, 16),
            cross_attention_dim=16,
            attention_head_dim=4,
            norm_num_groups=4,
        )
        vae = diffusers.AutoencoderKL(
            block_out_channels=(8, 8, 8, 8),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            latent_channels=4,
            norm_num_groups=4,
        )
        text = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(WORDS),
                hidden_size=16,
                intermediate_size=24,
                num_hidden_layers=2,
                num_attention_heads=2,
                max_position_embeddings=12,
                pad_token_id=0,
                bos_token_id=1,
                eos_token_id=2,
            )
        )
    pipe = diffusers.StableDiffusionPipeline(
        vae=shaken(vae, seed + 1),
        text_encoder=shaken(text, seed + 2),
        tokenizer=word_tokenizer(),
        unet=shaken(unet, seed + 3),
        scheduler=scheduler
        or diffusers.DDIMScheduler(**SCHEDULE, clip_sample=False, prediction_type=prediction),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@cache
def tiny_pipeline() -> Pipeline:
    """The pipeline above as a subject; shared, so leave it as it was."""
    return Pipeline(stable_diffusion(), name="tiny-sd")


@cache
def pixels() -> Pipeline:
    """The untrained pipeline of the digits, whose latents are 8 x 8 grey pixels; shared, so leave it as it was."""
    from interp.models.zoo.digits.build import build

    pipe = build(WORDS[4:], channels=(16, 16), width=16)
    shaken(pipe.unet, 1)
    shaken(pipe.text_encoder, 2)
    return Pipeline(pipe, name="pixels")
