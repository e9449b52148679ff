"""The same work with other tools, at their best settings: logits of the last position only, no KV cache, no gradients.

Each tool gets a twin of the model that shares its weights: TransformerLens rewrites the module it is given and nnsight
wraps every `forward`, and neither should be timed with the other's wrapping. The loops are written for modules laid
out like Llama's, which is what is measured. What a cell of a causal trace is: `Noised`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal, Protocol

import torch
from torch import nn

from interp.models.batch import Batch
from interp.models.engines.twin import twin
from interp.models.sites import Head
from interp.models.subject import CausalLM

Kind = Literal["resid_post", "mlp_out", "attn_out"]
MODULES: dict[Kind, str] = {"resid_post": "", "mlp_out": "mlp", "attn_out": "self_attn.o_proj"}
"""What a block's submodule is called whose output is the state."""


@dataclass(frozen=True)
class Noised:
    """A prompt with a corrupted subject, as the reference loop of causal tracing runs it.

    Row 0 is clean; the others have noise on the embeddings of the subject's tokens. In a cell, the state at one token
    is the clean row's in all rows, at one layer or at each layer of a window.

    Attributes:
        ids: the prompt, 1 t.
        start: first token of the subject.
        noise: what is added to the embeddings, s n d.
        answer: id whose probability is read at the last position.
    """

    ids: torch.Tensor
    start: int
    noise: torch.Tensor
    answer: int

    @property
    def rows(self) -> torch.Tensor:
        """The prompt once clean and once for each noise sample."""
        return self.ids.expand(len(self.noise) + 1, -1)

    def corrupt(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Embeddings of the rows, with noise on all but the first."""
        out = embeddings.clone()
        out[1:, self.start : self.start + self.noise.shape[1]] += self.noise.to(out)
        return out

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """Probability of the answer in each noised row."""
        return logits[1:, -1].float().softmax(-1)[:, self.answer]


def restore(value: torch.Tensor, token: int) -> torch.Tensor:
    """The clean row's state at a token, in all rows."""
    out = value.clone()
    out[1:, token] = out[0, token]
    return out


class Peer(Protocol):
    """A tool that can do what the jobs ask."""

    def __init__(self, subject: CausalLM): ...

    def without_head(self, batch: Batch, head: Head) -> torch.Tensor:
        """Last logits of a batch without padding, b v, with one head's output zero at all positions."""

    def cell(self, prompt: Noised, kind: Kind, layers: Sequence[int], token: int) -> torch.Tensor:
        """Probability of the answer in each noised row, with the clean state restored in a cell."""

    def read(self, batch: Batch, layer: int) -> torch.Tensor:
        """The residual stream that leaves a layer, b t d, from a whole forward pass."""


class TorchHooks:
    """Torch hooks on the Hugging Face module, put on and taken off for each forward pass."""

    def __init__(self, subject: CausalLM):
        self.hf = subject.hf
        self.blocks = subject.blocks
        self.d_head = subject.d_head

    def _forward(self, ids: torch.Tensor, hooks: Sequence[tuple[Any, Callable[..., Any]]]) -> torch.Tensor:
        with ExitStack() as stack, torch.no_grad():
            for register, hook in hooks:
                stack.callback(register(hook).remove)
            return self.hf(input_ids=ids, use_cache=False, logits_to_keep=1).logits

    def without_head(self, batch: Batch, head: Head) -> torch.Tensor:
        """See `Peer`."""
        at = slice(head.head * self.d_head, (head.head + 1) * self.d_head)

        def zero(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            z = args[0].clone()
            z[..., at] = 0
            return (z,)

        projection: Any = self.blocks[head.layer].get_submodule("self_attn.o_proj")
        return self._forward(batch.ids, [(projection.register_forward_pre_hook, zero)])[:, -1]

    def cell(self, prompt: Noised, kind: Kind, layers: Sequence[int], token: int) -> torch.Tensor:
        """See `Peer`."""
        modules = [self.blocks[i].get_submodule(MODULES[kind]) for i in layers]
        hooks: list[tuple[Any, Callable[..., Any]]] = [
            (
                self.hf.get_input_embeddings().register_forward_hook,
                lambda module, args, out: prompt.corrupt(out),
            ),
            *((m.register_forward_hook, lambda module, args, out: restore(out, token)) for m in modules),
        ]
        return prompt.probabilities(self._forward(prompt.rows, hooks))

    def read(self, batch: Batch, layer: int) -> torch.Tensor:
        """See `Peer`."""
        kept: list[torch.Tensor] = []

        def keep(module: nn.Module, args: Any, out: torch.Tensor) -> None:
            kept.append(out)

        self._forward(batch.ids, [(self.blocks[layer].register_forward_hook, keep)])
        return kept[0]


class Nnsight:
    """nnsight traces over a twin."""

    def __init__(self, subject: CausalLM):
        import nnsight

        self.d_head = subject.d_head
        self.model: Any = nnsight.NNsight(twin(subject.hf, "nnsight"))
        # Not `.save()`: the engine of that name takes nnsight's mark off all objects.
        self.save = nnsight.save

    def without_head(self, batch: Batch, head: Head) -> torch.Tensor:
        """See `Peer`."""
        model, ids, save = self.model, batch.ids, self.save
        a, b = head.head * self.d_head, (head.head + 1) * self.d_head
        with torch.no_grad(), model.trace(ids, use_cache=False, logits_to_keep=1):
            model.model.layers[head.layer].self_attn.o_proj.input[..., a:b] = 0
            logits = save(model.output.logits)
        return logits[:, -1]

    def cell(self, prompt: Noised, kind: Kind, layers: Sequence[int], token: int) -> torch.Tensor:
        """See `Peer`."""
        model, save = self.model, self.save
        with torch.no_grad(), model.trace(prompt.rows, use_cache=False, logits_to_keep=1):
            model.model.embed_tokens.output = prompt.corrupt(model.model.embed_tokens.output)
            for i in layers:
                block = model.model.layers[i]
                if kind == "resid_post":
                    block.output = restore(block.output, token)
                elif kind == "mlp_out":
                    block.mlp.output = restore(block.mlp.output, token)
                else:
                    block.self_attn.o_proj.output = restore(block.self_attn.o_proj.output, token)
            logits = save(model.output.logits)
        return prompt.probabilities(logits)

    def read(self, batch: Batch, layer: int) -> torch.Tensor:
        """See `Peer`."""
        model, ids, save = self.model, batch.ids, self.save
        with torch.no_grad(), model.trace(ids, use_cache=False, logits_to_keep=1):
            value = save(model.model.layers[layer].output)
        return value


class TransformerLens:
    """`run_with_hooks` of a TransformerBridge over a twin."""

    def __init__(self, subject: CausalLM):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from transformer_lens.model_bridge.sources import build_bridge_from_module

            module: Any = twin(subject.hf, "lens")
            self.bridge: Any = build_bridge_from_module(
                module, type(module).__name__, hf_config=module.config
            )

    def _forward(self, ids: torch.Tensor, hooks: list[tuple[str, Callable[..., Any]]]) -> torch.Tensor:
        with torch.no_grad():
            return self.bridge.run_with_hooks(
                ids, fwd_hooks=hooks, prepend_bos=False, use_cache=False, logits_to_keep=1
            )

    def without_head(self, batch: Batch, head: Head) -> torch.Tensor:
        """See `Peer`."""

        def zero(z: torch.Tensor, hook: Any) -> torch.Tensor:
            z[:, :, head.head] = 0
            return z

        return self._forward(batch.ids, [(f"blocks.{head.layer}.attn.hook_z", zero)])[:, -1]

    def cell(self, prompt: Noised, kind: Kind, layers: Sequence[int], token: int) -> torch.Tensor:
        """See `Peer`."""
        name = f"hook_{kind}"
        hooks: list[tuple[str, Callable[..., Any]]] = [
            ("hook_embed", lambda value, hook: prompt.corrupt(value)),
            *((f"blocks.{i}.{name}", lambda value, hook: restore(value, token)) for i in layers),
        ]
        return prompt.probabilities(self._forward(prompt.rows, hooks))

    def read(self, batch: Batch, layer: int) -> torch.Tensor:
        """See `Peer`."""
        kept: list[torch.Tensor] = []

        def keep(value: torch.Tensor, hook: Any) -> None:
            kept.append(value)

        self._forward(batch.ids, [(f"blocks.{layer}.hook_resid_post", keep)])
        return kept[0]


_TOOLS: dict[str, tuple[str, type[Peer]]] = {
    "torch hooks": ("torch", TorchHooks),
    "nnsight": ("nnsight", Nnsight),
    "TransformerLens": ("transformer_lens", TransformerLens),
}


def peers(subject: CausalLM) -> dict[str, Peer]:
    """The tools that can be imported here, over a subject's weights."""
    return {name: tool(subject) for name, (package, tool) in _TOOLS.items() if find_spec(package)}


def absent() -> list[str]:
    """The tools that cannot be imported here."""
    return [name for name, (package, _) in _TOOLS.items() if not find_spec(package)]
