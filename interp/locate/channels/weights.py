"""Weights of attention heads, MLP neurons and embeddings as readers and writers of the residual stream.

Row vectors: a token's stream x is read as x @ W. Readers have the norm before them folded in (its gain, and for
LayerNorm its centring), writers the gain of a norm behind them; the length that a norm divides by belongs to the token
and to no weight. Per-head matrices come from the TransformerBridge of a weight-sharing twin, layer by layer, and are
cast to fp32 or better one layer at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Float

from interp.locate.readout import final_norm
from interp.models.engines.bridge import bridged
from interp.models.norms import Norm
from interp.models.subject import CausalLM


@dataclass(frozen=True, eq=False)
class LayerHeads:
    """The heads of one layer.

    Attributes:
        q, k, v: what they read, with the norm before them folded in; K and V belong to KV groups.
        o: what they write; where a norm follows the sum of all heads, with its gain.
        b_q, b_k, b_v: biases, the folded norm's included; zeros where there are none.
        flags: what makes scores of this layer approximate.
        values: what stands for V wherever only lengths of what is written count, a matrix with the Gram of the values
            that prompts have (`data_aware`); None for V itself.
        augmented: biases count as the weights of one more coordinate of the stream, which is 1 at every token.
    """

    layer: int
    q: Float[torch.Tensor, "h d k"]
    k: Float[torch.Tensor, "g d k"]
    v: Float[torch.Tensor, "g d k"]
    o: Float[torch.Tensor, "h k d"]
    b_q: Float[torch.Tensor, "h k"]
    b_k: Float[torch.Tensor, "g k"]
    b_v: Float[torch.Tensor, "g k"]
    flags: tuple[str, ...] = ()
    values: Float[torch.Tensor, "g m k"] | None = None
    augmented: bool = False

    @property
    def share(self) -> int:
        """Query heads of a KV group."""
        return len(self.q) // len(self.k)

    @property
    def written(self) -> Float[torch.Tensor, "g m k"]:
        """What is in front of O: V with its bias where that counts, or what stands for the values of prompts."""
        return self.values if self.values is not None else self._with(self.v, self.b_v)

    @property
    def asked(self) -> Float[torch.Tensor, "h m k"]:
        """Queries as the other side of keys: W_Q, with its bias where that counts."""
        return self._with(self.q, self.b_q)

    @property
    def offered(self) -> Float[torch.Tensor, "g m k"]:
        """Keys as the other side of queries."""
        return self._with(self.k, self.b_k)

    def _with(self, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return torch.cat([weight, bias[:, None]], 1) if self.augmented else weight

    def of_query_heads(self, shared: torch.Tensor) -> torch.Tensor:
        """Something of KV groups, for each query head."""
        return shared.repeat_interleave(self.share, 0)


@dataclass(frozen=True, eq=False)
class LayerNeurons:
    """The neurons of one layer.

    Attributes:
        up: what they read, with the norm before them folded in.
        gate: what their gates read; None where they have none.
        out: what they write; where a norm follows the sum of all neurons, with its gain.
    """

    layer: int
    up: Float[torch.Tensor, "d n"]
    gate: Float[torch.Tensor, "d n"] | None
    out: Float[torch.Tensor, "n d"]


@dataclass(eq=False)
class Weights:
    """Access to a model's heads, layer by layer.

    Args:
        subject: the model.
        fold: fold norms in; False gives the weights as they are.
        dtype: of what is handed out; fp32 or better.
        biases: count biases as the weights of one more coordinate of the stream, which is 1 at every token: what a head
            always writes, and what its keys are always asked for, is then part of its scores. Where it stands on the
            reader's own side it is not: no head writes that coordinate.
        moments: second moments of values, by layer, from `data_aware.value_moments`: heads then write what they do
            write on prompts, and not what they could.
    """

    subject: CausalLM
    fold: bool = True
    dtype: torch.dtype = torch.float32
    biases: bool = False
    moments: Mapping[int, Float[torch.Tensor, "g k k"]] | None = None
    _bridge: Any = field(default=None, repr=False)

    @property
    def bridge(self) -> Any:
        """TransformerLens' view of the same weights."""
        if self._bridge is None:
            self._bridge = bridged(self.subject)
        return self._bridge

    def layers(self) -> Iterator[LayerHeads]:
        """All layers in order."""
        for layer in range(self.subject.n_layers):
            yield self.layer(layer)

    def layer(self, layer: int) -> LayerHeads:
        """The heads of a layer."""
        attention = self.bridge.blocks[layer].attn
        q, k, v, o = (getattr(attention, f"W_{name}").detach().to(self.dtype) for name in "QKVO")
        b_q, b_k, b_v = (
            self._bias(getattr(attention, f"b_{name}"), weight)
            for name, weight in zip("QKV", (q, k, v), strict=True)
        )
        flags = []
        if self.fold:
            before, _ = self.norms(layer)
            if before is not None:
                bias = before.bias.to(self.dtype)
                b_q, b_k, b_v = (b + bias @ w for b, w in ((b_q, q), (b_k, k), (b_v, v)))
                q, k, v = (before.fold(w) for w in (q, k, v))
            if (gain := self.gain_behind(layer)) is not None:
                o = o * gain
                flags.append("post-norm")
            if (gain := self.gain_of_heads(layer, "q_norm")) is not None:
                q, b_q = q * gain[:, None], b_q * gain
                flags.append("q_norm")
            if (gain := self.gain_of_heads(layer, "k_norm")) is not None:
                k, b_k = k * gain[:, None], b_k * gain
                flags.append("k_norm")
        if getattr(self.subject.config, "attn_logit_softcapping", None):
            flags.append("softcap")
        values = None if self.moments is None else root(self.moments[layer]).to(v)
        return LayerHeads(layer, q, k, v, o, b_q, b_k, b_v, tuple(flags), values, self.biases)

    def neurons(self, layer: int) -> LayerNeurons:
        """The neurons of a layer."""
        mlp = self.bridge.blocks[layer].mlp
        up, gate, out = (getattr(mlp, f"W_{name}") for name in ("in", "gate", "out"))
        up, out = up.detach().to(self.dtype), out.detach().to(self.dtype)
        gate = None if gate is None else gate.detach().to(self.dtype)
        if self.fold:
            _, before = self.norms(layer)
            if before is not None:
                up, gate = before.fold(up), None if gate is None else before.fold(gate)
            if (gain := self.gain_behind(layer, 1)) is not None:
                out = out * gain
        return LayerNeurons(layer, up, gate, out)

    def embed(self) -> Float[torch.Tensor, "v d"]:
        """What tokens bring into the stream, positions left out."""
        found: torch.Tensor = self.subject.hf.get_input_embeddings().weight.detach().to(self.dtype)
        return found

    def unembed(self) -> Float[torch.Tensor, "d v"]:
        """What the logits read, with the last norm folded in."""
        found: torch.Tensor = self.subject.hf.get_output_embeddings().weight.detach().to(self.dtype).mT
        return final_norm(self.subject).fold(found) if self.fold else found

    def gain_behind(self, layer: int, part: Literal[0, 1] = 0) -> Float[torch.Tensor, " d"] | None:
        """Gain of the norm behind the attention (or MLP: 1) of a layer; None where there is none."""
        behind = self.subject.family.writes[part]
        return None if behind is None else Norm.of(self.subject.module(layer, behind)).gain.to(self.dtype)

    def gain_of_heads(
        self, layer: int, name: Literal["q_norm", "k_norm"]
    ) -> Float[torch.Tensor, "n d_head"] | None:
        """Gain of the norm of queries or keys; n is 1 where all heads share it. None where there is none."""
        norm = getattr(self.subject.module(layer, self.subject.family.attention), name, None)
        return None if norm is None else Norm.of(norm).gain.to(self.dtype).view(-1, self.subject.d_head)

    def norms(self, layer: int) -> tuple[Norm | None, Norm | None]:
        """The norms through which attention and MLP of a layer read the stream; None where they read it as it is."""
        before, between = (
            None if path is None else Norm.of(self.subject.module(layer, path))
            for path in self.subject.family.reads
        )
        return before, between

    def _bias(
        self, bias: torch.Tensor | None, weight: Float[torch.Tensor, "n d k"]
    ) -> Float[torch.Tensor, "n k"]:
        if bias is None:
            return weight.new_zeros(weight.shape[0], weight.shape[2])
        return bias.detach().to(self.dtype).view(weight.shape[0], weight.shape[2])


def root(moment: Float[torch.Tensor, "*g k k"]) -> Float[torch.Tensor, "*g k k"]:
    """A matrix with this Gram."""
    values, vectors = torch.linalg.eigh(moment.double())
    found: torch.Tensor = (vectors * values.clamp(min=0).sqrt()[..., None, :]).mT
    return found
