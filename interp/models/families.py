"""The site table: one row per architecture family says where each site lies in its Hugging Face module tree.

A new family is one more `Family` in `FAMILIES`. `resolve` finds the row of a model and checks every path of it; a
family that is not in the table is refused with the list of sites that the nearest row could not resolve. A wrong row
does not pass unnoticed: `interp.load` runs the identities that sites must keep (see `interp.models.load.self_check`) on
a few tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from torch import nn

from interp.errors import UnknownArchitecture, UsageError

Part = Literal["", "heads", "kv", "fused_q", "fused_k", "fused_v", "headwise_q", "headwise_k", "headwise_v"]


@dataclass(frozen=True)
class Place:
    """A tensor of a block: the input or output of one module, and how the site is cut out of it.

    Parts: "" (as it is), "heads" and "kv" (split the last dimension into heads), "fused_*" (a third of `[q | k | v]`,
    then heads), "headwise_*" (heads first, then `[q | k | v]` within each).
    """

    module: str
    side: Literal["in", "out"]
    part: Part = ""


@dataclass(frozen=True)
class Family:
    """A row of the site table. `layers` is relative to the model, the other paths to a block.

    Embeddings and unembedding are where every Hugging Face model says they are (`get_input_embeddings`).

    Attributes:
        model_types: values of `config.model_type` that this row serves.
        attention: the module that calls the attention kernel.
        out_proj: the projection whose input is `z`.
        sites: where each kind of site lies; `attention`, `q_rot`, `k_rot` and `head_out` follow from the above.
        parallel: attention and MLP read the same residual, so there is no `resid_mid`.
        post_norm: sub-block outputs are normed before they are added, so `head_out` does not sum to `attn_out`.
        reads: norms through which a block reads the residual stream: before the attention, before the MLP; None where
            it is read as it is.
        writes: norms through which attention and MLP write; None where they write as they are.
    """

    name: str
    model_types: tuple[str, ...]
    layers: str
    attention: str
    out_proj: str
    sites: Mapping[str, Place] = field(default_factory=dict)
    parallel: bool = False
    post_norm: bool = False
    reads: tuple[str | None, str | None] = ("input_layernorm", "post_attention_layernorm")
    writes: tuple[str | None, str | None] = (None, None)


_LLAMA = Family(
    name="llama",
    model_types=("llama", "mistral", "qwen2", "qwen3"),
    layers="model.layers",
    attention="self_attn",
    out_proj="self_attn.o_proj",
    sites={
        "resid_pre": Place("", "in"),
        "q": Place("self_attn.q_proj", "out", "heads"),
        "k": Place("self_attn.k_proj", "out", "kv"),
        "v": Place("self_attn.v_proj", "out", "kv"),
        "z": Place("self_attn.o_proj", "in", "heads"),
        "attn_out": Place("self_attn.o_proj", "out"),
        "resid_mid": Place("post_attention_layernorm", "in"),
        "neurons": Place("mlp.down_proj", "in"),
        "mlp_out": Place("mlp", "out"),
        "resid_post": Place("", "out"),
    },
)
_GEMMA = replace(
    _LLAMA,
    name="gemma",
    model_types=("gemma2", "gemma3_text"),
    post_norm=True,
    reads=("input_layernorm", "pre_feedforward_layernorm"),
    writes=("post_attention_layernorm", "post_feedforward_layernorm"),
    sites={
        **_LLAMA.sites,
        "attn_out": Place("post_attention_layernorm", "out"),
        "resid_mid": Place("pre_feedforward_layernorm", "in"),
        "mlp_out": Place("post_feedforward_layernorm", "out"),
    },
)
_OLMO2 = replace(
    _LLAMA,
    name="olmo2",
    model_types=("olmo2",),
    post_norm=True,
    reads=(None, None),
    writes=("post_attention_layernorm", "post_feedforward_layernorm"),
    sites={
        **_LLAMA.sites,
        "attn_out": Place("post_attention_layernorm", "out"),
        "resid_mid": Place("mlp", "in"),
        "mlp_out": Place("post_feedforward_layernorm", "out"),
    },
)
_GPT2 = Family(
    name="gpt2",
    model_types=("gpt2",),
    layers="transformer.h",
    attention="attn",
    out_proj="attn.c_proj",
    reads=("ln_1", "ln_2"),
    sites={
        "resid_pre": Place("", "in"),
        "q": Place("attn.c_attn", "out", "fused_q"),
        "k": Place("attn.c_attn", "out", "fused_k"),
        "v": Place("attn.c_attn", "out", "fused_v"),
        "z": Place("attn.c_proj", "in", "heads"),
        "attn_out": Place("attn.c_proj", "out"),
        "resid_mid": Place("ln_2", "in"),
        "neurons": Place("mlp.c_proj", "in"),
        "mlp_out": Place("mlp", "out"),
        "resid_post": Place("", "out"),
    },
)
_NEOX = Family(
    name="neox",
    model_types=("gpt_neox",),
    layers="gpt_neox.layers",
    attention="attention",
    out_proj="attention.dense",
    sites={
        "resid_pre": Place("", "in"),
        "q": Place("attention.query_key_value", "out", "headwise_q"),
        "k": Place("attention.query_key_value", "out", "headwise_k"),
        "v": Place("attention.query_key_value", "out", "headwise_v"),
        "z": Place("attention.dense", "in", "heads"),
        "attn_out": Place("attention.dense", "out"),
        "resid_mid": Place("post_attention_layernorm", "in"),
        "neurons": Place("mlp.dense_4h_to_h", "in"),
        "mlp_out": Place("mlp", "out"),
        "resid_post": Place("", "out"),
    },
)

_ZOO = replace(
    _LLAMA,
    name="zoo",
    model_types=("interp_zoo",),
    attention="mixer",
    out_proj="mixer.o_proj",
    reads=("mixer_norm", "mlp_norm"),
    sites={
        **{
            kind: replace(place, module=place.module.replace("self_attn", "mixer"))
            for kind, place in _LLAMA.sites.items()
        },
        "resid_mid": Place("mlp_norm", "in"),
    },
)

FAMILIES: dict[str, Family] = {f.name: f for f in (_LLAMA, _GEMMA, _OLMO2, _GPT2, _NEOX, _ZOO)}
"""The site table."""


def _get(root: nn.Module, path: str) -> nn.Module | None:
    node: Any = root
    for name in path.split(".") if path else ():
        node = getattr(node, name, None)
        if node is None:
            return None
    return node if isinstance(node, nn.Module) else None


def unresolved(module: nn.Module, row: Family) -> list[str]:
    """Sites of the row that this model lacks, with the paths looked for."""
    missing = [
        site
        for site, verb in (("embed", "get_input_embeddings"), ("logits", "get_output_embeddings"))
        if getattr(module, verb, lambda: None)() is None
    ]
    layers = _get(module, row.layers)
    if not isinstance(layers, nn.ModuleList) or not len(layers):
        return missing + [f"{kind} ({row.layers}.N.{place.module})" for kind, place in row.sites.items()]
    for kind, place in {**row.sites, "attention": Place(row.attention, "out")}.items():
        if _get(layers[0], place.module) is None:
            missing.append(f"{kind} ({row.layers}.N.{place.module})")
    for norm in (*row.reads, *row.writes):
        if norm is not None and _get(layers[0], norm) is None:
            missing.append(f"norm ({row.layers}.N.{norm})")
    return missing


def resolve(module: nn.Module, family: Family | str | None = None) -> Family:
    """The row of the site table for this model.

    Args:
        module: a Hugging Face causal language model.
        family: a row, or the name of one, to use in place of the one that `config.model_type` chooses.

    Raises:
        UnknownArchitecture: no row serves this model type, or the row's paths are not there; the message lists the
            sites that could not be resolved and says how to add a row.
    """
    config = getattr(module, "config", None)
    model_type = getattr(config, "model_type", type(module).__name__)
    if isinstance(family, str):
        if family not in FAMILIES:
            raise UsageError(f"no family '{family}' in the site table; it has {', '.join(FAMILIES)}")
        family = FAMILIES[family]
    row = family or next((f for f in FAMILIES.values() if model_type in f.model_types), None)
    if row is None:
        nearest = min(FAMILIES.values(), key=lambda f: len(unresolved(module, f)))
        missing = unresolved(module, nearest)
        what = (
            f"its nearest row '{nearest.name}' cannot resolve {', '.join(missing)}"
            if missing
            else f"all paths of the row '{nearest.name}' exist: pass family='{nearest.name}' to try it"
        )
        raise UnknownArchitecture(
            f"architecture '{model_type}' is not in the site table; {what}. "
            "Add a row: interp.load(..., family=Family(...)), see interp/models/families.py"
        )
    if missing := unresolved(module, row):
        raise UnknownArchitecture(
            f"'{model_type}' does not fit the row '{row.name}': no {', '.join(missing)}"
        )
    if row.name == "neox" and getattr(config, "use_parallel_residual", False):
        sites = {k: v for k, v in row.sites.items() if k != "resid_mid"}
        return replace(row, sites=sites, parallel=True)
    return row
