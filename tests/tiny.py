"""Tiny random models of every family in the site table, and a byte tokenizer that fits them all.

They have what makes the families differ (GQA, biases, q and k norms, post-norms, softcaps, sliding windows of 16) and
weights large enough that a wrong head, a missing gain or a lost bias shows in the logits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers as hf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from torch import nn

VOCAB = 259
WINDOW = 16
CONTEXT = 512
LAYERS, HEADS, KV_HEADS = 3, 4, 2

_SHARED: dict[str, Any] = {
    "vocab_size": VOCAB,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 258,
}
_LLAMA_LIKE: dict[str, Any] = {
    **_SHARED,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "max_position_embeddings": CONTEXT,
}
# A head size other than d_model / n_heads, as in the released models of these families.
_WIDE_HEADS: dict[str, Any] = {**_LLAMA_LIKE, "head_dim": 16}
_GEMMA: dict[str, Any] = {**_WIDE_HEADS, "sliding_window": WINDOW, "query_pre_attn_scalar": 16}

FAMILIES: dict[str, Callable[[], nn.Module]] = {
    "gpt2": lambda: hf.GPT2LMHeadModel(
        hf.GPT2Config(**_SHARED, n_layer=LAYERS, n_head=HEADS, n_embd=48, n_positions=CONTEXT)
    ),
    "neox": lambda: hf.GPTNeoXForCausalLM(
        hf.GPTNeoXConfig(
            **_SHARED,
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            max_position_embeddings=CONTEXT,
        )
    ),
    "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**_LLAMA_LIKE)),
    "mistral": lambda: hf.MistralForCausalLM(hf.MistralConfig(**_LLAMA_LIKE, sliding_window=WINDOW)),
    "qwen2": lambda: hf.Qwen2ForCausalLM(hf.Qwen2Config(**_LLAMA_LIKE)),
    "qwen3": lambda: hf.Qwen3ForCausalLM(hf.Qwen3Config(**_WIDE_HEADS)),
    "gemma2": lambda: hf.Gemma2ForCausalLM(hf.Gemma2Config(**_GEMMA)),
    "gemma3": lambda: hf.Gemma3ForCausalLM(
        hf.Gemma3TextConfig(
            **_GEMMA, layer_types=["sliding_attention", "full_attention", "sliding_attention"]
        )
    ),
}
"""How a module of each family is made, before its weights are set."""


def tiny(family: str, seed: int = 0) -> nn.Module:
    """A model of `family` in evaluation mode, fp32 on the CPU; equal seeds give equal weights."""
    # The families initialise themselves from the global random state, which tests must leave alone.
    with torch.random.fork_rng(devices=[]):
        module = FAMILIES[family]()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in module.named_parameters():
            draw = torch.randn(weight.shape, generator=generator)
            if weight.ndim == 1:
                weight.copy_(weight + 0.2 * draw if name.endswith("weight") else 0.2 * draw)
            else:
                weight.copy_(0.2 * draw)
    return module.eval()


def byte_tokenizer(*, bos: bool = False) -> hf.PreTrainedTokenizerFast:
    """A fast tokenizer of one token per byte (ids 0-255), with offsets; 256 begins a text, 257 ends it, 258 pads.

    Args:
        bos: begin every text with id 256 by default, as Llama's and Gemma's tokenizers do.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    outer = hf.PreTrainedTokenizerFast(tokenizer_object=inner, **special)
    if bos:
        outer.backend_tokenizer.post_processor = TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 256)]
        )
    return outer
