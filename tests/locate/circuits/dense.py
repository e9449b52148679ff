"""Forward passes in which the input of every reader is an explicit sum over writers, edge by edge, one example at once.

Nothing of the package runs here: weights are cut by hand, rotations, grouping and softmax written out. Slow on purpose.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from interp.models.subject import CausalLM
from interp.tasks.base import Example

Via = Callable[[str, str, torch.Tensor], torch.Tensor]
"""`via(writer, reader, wrote)`: what the reader gets of what the writer wrote in this run."""

FAMILIES = ["gpt2", "neox", "neox sequential", "llama", "qwen2", "qwen3"]


def rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    n = cos.shape[-1]
    half = n // 2
    turned = torch.cat([-x[:, half:n], x[:, :half]], -1)
    return torch.cat([x[:, :n] * cos + turned * sin, x[:, n:]], -1)


class Dense:
    """A tiny model, run densely."""

    def __init__(self, s: CausalLM):
        self.hf: Any = s.hf
        self.n, self.h, self.kv, self.d = s.n_layers, s.n_heads, s.n_kv_heads, s.d_head
        self.kind = s.config.model_type
        self.parallel = self.kind == "gpt_neox" and s.config.use_parallel_residual

    def parts(self, layer: int) -> tuple[nn.Module, nn.Module, nn.Module, torch.Tensor, torch.Tensor | None]:
        """Both norms, the MLP, the output projection (in, out) and its bias."""
        if self.kind == "gpt2":
            b = self.hf.transformer.h[layer]
            return b.ln_1, b.ln_2, b.mlp, b.attn.c_proj.weight, b.attn.c_proj.bias
        if self.kind == "gpt_neox":
            b = self.hf.gpt_neox.layers[layer]
            out = b.attention.dense
        else:
            b = self.hf.model.layers[layer]
            out = b.self_attn.o_proj
        return b.input_layernorm, b.post_attention_layernorm, b.mlp, out.weight.T, out.bias

    def project(self, layer: int, side: str, unit: int, x: torch.Tensor) -> torch.Tensor:
        """q of a head, k or v of a group, from normed x (t d), before rotation."""
        d, h = self.d, self.h
        if self.kind == "gpt2":
            conv = self.hf.transformer.h[layer].attn.c_attn
            first = "qkv".index(side) * h * d + unit * d
            return x @ conv.weight[:, first : first + d] + conv.bias[first : first + d]
        if self.kind == "gpt_neox":
            lin = self.hf.gpt_neox.layers[layer].attention.query_key_value
            first = unit * 3 * d + "qkv".index(side) * d
        else:
            lin = getattr(self.hf.model.layers[layer].self_attn, f"{side}_proj")
            first = unit * d
        out = x @ lin.weight[first : first + d].T
        out = out if lin.bias is None else out + lin.bias[first : first + d]
        if self.kind == "qwen3" and side != "v":
            out = getattr(self.hf.model.layers[layer].self_attn, f"{side}_norm")(out)
        return out

    def turn(self, x: torch.Tensor) -> torch.Tensor:
        if self.kind == "gpt2":
            return x
        body = self.hf.gpt_neox if self.kind == "gpt_neox" else self.hf.model
        cos, sin = body.rotary_emb(x, torch.arange(len(x))[None])
        return rotated(x, cos[0], sin[0])

    def run(self, ids: tuple[int, ...], via: Via) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Logits (t v) and what each writer wrote."""
        tokens = torch.tensor(ids)
        embed = self.hf.get_input_embeddings()(tokens)
        if self.kind == "gpt2":
            embed = embed + self.hf.transformer.wpe(torch.arange(len(ids)))
        wrote = {"embed": embed}
        biases = torch.zeros_like(embed[0])

        def read(reader: str) -> torch.Tensor:
            total = biases.expand_as(embed)
            for writer, value in wrote.items():
                total = total + via(writer, reader, value)
            return total

        hidden = torch.full((len(ids), len(ids)), -torch.inf).triu(1)
        for layer in range(self.n):
            before, middle, mlp, out, bias = self.parts(layer)
            k, v = [], []
            for g in range(self.kv):
                k.append(self.turn(self.project(layer, "k", g, before(read(f"L{layer}KV{g}.k")))))
                v.append(self.project(layer, "v", g, before(read(f"L{layer}KV{g}.v"))))
            heads = {}
            for h in range(self.h):
                g = h * self.kv // self.h
                q = self.turn(self.project(layer, "q", h, before(read(f"L{layer}H{h}.q"))))
                rows = (q @ k[g].T / self.d**0.5 + hidden).softmax(-1)
                heads[f"L{layer}H{h}"] = rows @ v[g] @ out[h * self.d : (h + 1) * self.d]
            if self.parallel:
                heads[f"M{layer}"] = mlp(middle(read(f"M{layer}")))
            wrote |= heads
            biases = biases if bias is None else biases + bias
            if not self.parallel:
                wrote[f"M{layer}"] = mlp(middle(read(f"M{layer}")))
        norms = {"gpt2": "transformer.ln_f", "gpt_neox": "gpt_neox.final_layer_norm"}
        norm = self.hf.get_submodule(norms.get(self.kind, "model.norm"))
        return self.hf.get_output_embeddings()(norm(read("logits"))), wrote


def whole(writer: str, reader: str, wrote: torch.Tensor) -> torch.Tensor:
    """Every edge intact."""
    return wrote


def asked(example: Example, *, corrupt: bool) -> tuple[int, ...]:
    """Prompt (or the twin's) and the clean answer but its last token."""
    prompt = example.corrupt["value_swap"].ids if corrupt else example.ids
    return (*prompt, *example.answer_ids[:-1])


def difference(logits: torch.Tensor, example: Example) -> torch.Tensor:
    """Answer minus foil; they differ in their first token."""
    row = logits[len(example.ids) - 1]
    return row[example.answer_ids[0]] - row[example.foil_ids[0]]


def gradients(s: CausalLM, example: Example, ids: tuple[int, ...]) -> dict[tuple[str, str], torch.Tensor]:
    """Gradient of the logit difference at every edge: a leaf of its own is added to what passes."""
    leaves: dict[tuple[str, str], torch.Tensor] = {}

    def via(writer: str, reader: str, wrote: torch.Tensor) -> torch.Tensor:
        leaf = torch.zeros_like(wrote, requires_grad=True)
        leaves[writer, reader] = leaf
        return wrote + leaf

    logits, _ = Dense(s).run(ids, via)
    grads = torch.autograd.grad(difference(logits, example), list(leaves.values()))
    return dict(zip(leaves, grads, strict=True))
