"""The attention tap: the kernel's (q, k, v, mask) in any Hugging Face model, through transformers' own interfaces.

An attention function *and* a mask function are registered under one name, `interp_<kernel>`; the model is switched to
that name for the time of a run. The function calls the model's own kernel (SDPA, flash, or the family's eager function
where it needs softcaps), so logits stay those of that kernel bit for bit, and recomputes only the rows asked for.
Without the mask function padded logits would be wrong in silence, since transformers then builds no mask at all.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import nn

from interp.errors import EngineError

PREFIX = "interp_"


@dataclass(frozen=True)
class AttentionCall:
    """What the kernel is about to compute, after rotation and after the KV cache.

    Attributes:
        q: queries, b h t d. k, v: keys and values with the cached ones, b kv s d.
        mask: None (plain causal), boolean (True: visible) or additive, b 1|h t s.
        scaling, softcap, window: of the scores.
    """

    layer: int
    q: Float[torch.Tensor, "b h t d"]
    k: Float[torch.Tensor, "b kv s d"]
    v: Float[torch.Tensor, "b kv s d"]
    mask: torch.Tensor | None
    scaling: float
    softcap: float | None = None
    window: int | None = None

    @classmethod
    def of(
        cls,
        layer: int,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        mask: Any,
        options: Mapping[str, Any],
    ) -> AttentionCall:
        """The call that a model makes of its kernel.

        Raises:
            EngineError: its attention has parts that are not part of a call.
        """
        if options.get("position_bias") is not None or options.get("s_aux") is not None:
            raise EngineError(f"layer {layer}: attention with position biases or sinks cannot be tapped yet")
        scaling = options.get("scaling")
        scaling = q.shape[-1] ** -0.5 if scaling is None else float(scaling)
        return cls(layer, q, k, v, mask, scaling, options.get("softcap"), options.get("sliding_window"))

    def with_(self, **changes: Any) -> AttentionCall:
        """The same call with other q, k, v or mask."""
        return replace(self, **changes)


Handler = Callable[[AttentionCall], AttentionCall]
Compute = Callable[..., torch.Tensor]
"""`compute(kernel, module, call, kwargs)` -> b t h d, in place of the kernel."""


@dataclass
class _Active:
    layers: dict[int, int]  # id of the attention module -> layer
    handler: Handler | None
    compute: Compute | None = None


_active: ContextVar[_Active | None] = ContextVar("interp_attention", default=None)


def _kernel(module: nn.Module, base: str) -> Callable[..., Any]:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    if base == "eager" and eager is None:
        raise EngineError(
            f"{type(module).__name__} has no eager_attention_forward to tap; use attn_implementation='sdpa'"
        )
    return ALL_ATTENTION_FUNCTIONS.get_interface(base, eager)


def _make(base: str) -> Callable[..., Any]:
    def forward(
        module: nn.Module, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: Any, **kwargs: Any
    ) -> Any:
        active = _active.get()
        layer = active.layers.get(id(module)) if active else None
        if active is not None and layer is not None:
            call = AttentionCall.of(layer, q, k, v, mask, kwargs)
            if active.compute is not None:
                return active.compute(_kernel(module, base), module, call, kwargs), None
            assert active.handler is not None
            done = active.handler(call)
            q, k, v, mask = done.q, done.k, done.v, done.mask
        return _kernel(module, base)(module, q, k, v, mask, **kwargs)

    return forward


def _register(base: str) -> str:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    name = PREFIX + base
    if name not in ALL_ATTENTION_FUNCTIONS:
        if base not in ALL_MASK_ATTENTION_FUNCTIONS:
            raise EngineError(f"attention kernel '{base}' registers no mask function, so it cannot be tapped")
        AttentionInterface.register(name, _make(base))
        AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[base])
    return name


@contextmanager
def tapped_attention(
    model: nn.Module,
    modules: dict[int, nn.Module],
    handler: Handler | None = None,
    *,
    compute: Compute | None = None,
) -> Iterator[None]:
    """Route the attention calls of `modules` (by layer) through `handler`, or have `compute` in the kernel's place.

    Raises:
        EngineError: the model's kernel cannot be tapped; the message says which and why.
    """
    config: Any = model.config
    base = config._attn_implementation
    if base.startswith(PREFIX):
        raise EngineError("attention taps of one model cannot be nested")
    if base == "eager" and getattr(config, "reorder_and_upcast_attn", False):
        raise EngineError("GPT-2's reorder_and_upcast_attn bypasses the attention interface; load with sdpa")
    name = _register(base)
    token = _active.set(_Active({id(m): layer for layer, m in modules.items()}, handler, compute))
    try:
        model.set_attn_implementation(name)  # type: ignore[operator]
        if config._attn_implementation != name:
            raise EngineError(f"{type(model).__name__} does not let its attention kernel be replaced")
        yield
    finally:
        model.set_attn_implementation(base)  # type: ignore[operator]
        _active.reset(token)
