"""From a Hugging Face module to a TransformerBridge of TransformerLens and back, with the same weights.

A bridge rewrites the module it is made of: layers are replaced, parameters renamed, `save_pretrained` fails. So it is
made of a *twin*, a second module tree over the same tensors, and a bridge that is handed in is turned back into the
module it was made of. Projections that fuse queries, keys and values are read live: what TransformerLens keeps of them
is a copy, which later edits of the weights would not reach.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional

from interp.errors import EngineError
from interp.models.engines.twin import twin

if TYPE_CHECKING:
    from interp.models.subject import CausalLM

_INNER = "_original_component"


@contextmanager
def _unheard() -> Iterator[None]:
    """Undo what importing TransformerLens does to everyone: transformers falls silent, a warning is filtered out."""
    logger = logging.getLogger("transformers")
    level, filters = logger.level, list(warnings.filters)
    try:
        yield
    finally:
        logger.setLevel(level)
        ours = [f for f in warnings.filters if f not in filters and "generation flags" in str(f[1])]
        for entry in ours:
            warnings.filters.remove(entry)  # type: ignore[attr-defined]


def bridged(subject: CausalLM) -> Any:
    """A TransformerBridge over the weights of a subject, which stays as it is.

    Raises:
        EngineError: TransformerLens has no adapter for the model, its adapter fails, or weights are offloaded.
    """
    with _unheard():
        from transformer_lens.factories.architecture_adapter_factory import SUPPORTED_ARCHITECTURES
        from transformer_lens.model_bridge.sources import build_bridge_from_module
    names = [cls.__name__ for cls in type(subject.hf).__mro__]
    name = next((n for n in names if n in SUPPORTED_ARCHITECTURES), None)
    if name is None:
        raise EngineError(f"engine 'lens': TransformerLens has no adapter for {names[0]}; use engine 'hooks'")
    second: Any = twin(subject.hf, "lens")
    # The bridge computes attention by itself and needs the mask that eager attention gets: always there, 4-D.
    second.set_attn_implementation("eager")
    try:
        # It makes layers, which draw their first weights from the global random state.
        with torch.random.fork_rng(devices=[]):
            bridge = build_bridge_from_module(second, name, hf_config=second.config)
    except (AssertionError, AttributeError, KeyError, NotImplementedError, TypeError, ValueError) as error:
        raise EngineError(
            f"engine 'lens': TransformerLens cannot bridge this {name} ({error!r:.200}); use engine 'hooks'"
        ) from error
    for which, kind in enumerate("qkv"):
        place = subject.family.sites[kind]
        if place.part.startswith(("fused", "headwise")):
            for layer, block in enumerate(bridge.blocks):
                fused = subject.module(layer, place.module)
                part = _Slice(fused, which, subject.n_heads, headwise=place.part.startswith("headwise"))
                getattr(block.attn, kind).set_original_component(part)
    second.eval()
    return bridge


class _Slice(nn.Linear):
    """The queries', keys' or values' part of a fused projection, cut out of its present weight at each use."""

    def __init__(self, fused: Any, which: int, heads: int, *, headwise: bool):
        nn.Module.__init__(self)
        # Behind __dict__: as a submodule it would appear twice among the bridge's parameters.
        self.__dict__["fused"] = fused
        self.which, self.heads, self.headwise = which, heads, headwise
        self.in_features, self.out_features = self.weight.shape[1], self.weight.shape[0]

    def _cut(self, rows: torch.Tensor) -> torch.Tensor:
        shape = (self.heads, 3, -1) if self.headwise else (3, self.heads, -1)
        return rows.unflatten(0, shape).select(1 if self.headwise else 0, self.which).flatten(0, 1)

    @property
    def weight(self) -> torch.Tensor:  # type: ignore[override]
        """This part's weight, (out, in)."""
        fused = self.__dict__["fused"]
        # GPT-2 keeps (in, out).
        return self._cut(fused.weight.T if type(fused).__name__ == "Conv1D" else fused.weight)

    @property
    def bias(self) -> torch.Tensor | None:  # type: ignore[override]
        """This part's bias."""
        bias = self.__dict__["fused"].bias
        return None if bias is None else self._cut(bias)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return functional.linear(input, self.weight, self.bias)


def is_bridge(source: Any) -> bool:
    """Whether this is a TransformerBridge; asking does not import TransformerLens."""
    return any(cls.__name__ == "TransformerBridge" for cls in type(source).__mro__)


def unbridged(bridge: Any) -> Any:
    """The Hugging Face module a bridge was made of, over the same tensors; the bridge goes on working.

    Raises:
        EngineError: the bridge's weights are no longer those of that module (compatibility mode folds them), or it was
            not made of a Hugging Face module.
    """
    from transformers import PreTrainedModel

    inner = bridge.original_model
    if not isinstance(inner, PreTrainedModel):
        raise EngineError(
            f"the bridge is made of a {type(inner).__name__}, no Hugging Face model; load its weights as one"
        )
    if bridge.compatibility_mode:
        raise EngineError(
            "the bridge is in compatibility mode, which folds its weights: hand it in before "
            "enable_compatibility_mode(), or give the Hugging Face module"
        )
    config = copy.deepcopy(inner.config)
    config._attn_implementation = (
        None  # TransformerLens may have set eager; the module takes its own default again
    )
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        module = type(inner)._from_config(config)
    missing = _fill(module, inner)
    if missing:
        raise EngineError(
            f"the bridge does not hold {', '.join(missing[:4])} of its {type(inner).__name__}; "
            "give the Hugging Face module it was made of, loaded anew"
        )
    module.generation_config = copy.deepcopy(inner.generation_config)
    gap = _logit_gap(module.eval(), inner)
    if not gap <= tolerance(inner.dtype):
        raise EngineError(
            f"the bridge's logits are off by {gap:.2g} of their scale from those of its own weights in a "
            f"{type(inner).__name__}; give the Hugging Face module it was made of, loaded anew"
        )
    return module


def tolerance(dtype: torch.dtype) -> float:
    """Difference, as a share of the scale, up to which two computations of one model count as equal."""
    return 1e-4 if dtype in (torch.float32, torch.float64) else 0.05


def _fill(module: nn.Module, inner: nn.Module) -> list[str]:
    """Put the tensors of a bridged module in their places in a fresh one; returns the names that were not found."""
    found: dict[str, torch.Tensor] = {}
    every = (*inner.named_parameters(remove_duplicate=False), *inner.named_buffers(remove_duplicate=False))
    for name, tensor in every:
        found[".".join(part for part in name.split(".") if part != _INNER)] = tensor
    missing = []
    for path, owner in module.named_modules():
        for tensors in (owner._parameters, owner._buffers):
            for leaf, tensor in list(tensors.items()):
                if tensor is None:
                    continue
                name = f"{path}.{leaf}" if path else leaf
                if name not in found or found[name].shape != tensor.shape:
                    missing.append(name)
                else:
                    tensors[leaf] = found[name]
    return missing


@torch.no_grad()
def _logit_gap(module: Any, inner: Any) -> float:
    """Largest difference of logits on a padded batch of a few tokens, as a share of their scale."""
    device = module.get_input_embeddings().weight.device
    ids = torch.arange(3, 3 + 18, device=device).view(2, 9) % int(module.config.vocab_size)
    mask = torch.ones_like(ids)
    mask[1, :3] = 0
    given = {"input_ids": ids, "attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp(min=0)}
    a, b = (m(**given, use_cache=False).logits[mask.bool()].float() for m in (module, inner))
    return float((a - b).abs().max() / a.abs().max().clamp(min=1.0))
