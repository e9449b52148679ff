"""The direction in which a token's logit is read, at any point of the residual stream: unembedding, norms, projections.

A norm is linear up to a scale that depends on what it norms: norm(x) = scale(x) * gain * x + bias, with x centred first
in a LayerNorm. Gains are part of the direction; scales are measured on the pass itself, row by row. With both, what
heads, keys, MLPs and embeddings add to a token's logit sums to that logit exactly, before a softcap of the logits and
without the biases that no part of the sum owns.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import nn

from interp.errors import EngineError
from interp.models.engines.base import Record, Tap, Trace
from interp.models.offload import present
from interp.models.sites import Site
from interp.models.subject import CausalLM

_CLOSE = {torch.float32: 1e-4, torch.float64: 1e-4}


@dataclass(frozen=True)
class Norm:
    """A norm as a linear map.

    Attributes:
        module: the norm.
        gain: what each dimension is multiplied by; its length is arbitrary, since scales are measured with it.
        centred: whether the mean is taken off first, as in a LayerNorm.
        bias: added at the end; zeros where there is none.
    """

    module: nn.Module
    gain: Float[torch.Tensor, " d"]
    centred: bool
    bias: Float[torch.Tensor, " d"]

    @classmethod
    def of(cls, module: nn.Module, what: str) -> Norm:
        """Which of the known forms a norm has, found out on a probe.

        Raises:
            EngineError: it has none of them.
        """
        own: Any = module
        with present(module):
            weight = own.weight.detach().float()
            bias = getattr(own, "bias", None)
            bias = torch.zeros_like(weight) if bias is None else bias.detach().float()
            probe = 1 + torch.sin(1.7 * torch.arange(len(weight), device=weight.device) ** 1.3)
            wanted = own(probe.to(own.weight.dtype)[None])[0].float() - bias
        for gain in (weight, 1 + weight):
            for centred in (False, True):
                norm = cls(module, gain, centred, bias)
                found = norm._plain(probe)
                found = found * (wanted @ found) / (found @ found)
                if (found - wanted).norm() <= _CLOSE.get(own.weight.dtype, 2e-2) * wanted.norm():
                    return norm
        raise EngineError(f"{what} ({type(module).__name__}) is neither a LayerNorm nor an RMS norm")

    def _plain(self, x: torch.Tensor) -> torch.Tensor:
        return self.gain * (x - x.mean(-1, keepdim=True) if self.centred else x)

    def scale(self, x: Float[torch.Tensor, "*n d"]) -> Float[torch.Tensor, "*n"]:
        """By how much the norm scales its inputs."""
        with torch.no_grad(), present(self.module):
            x = x.to(self.gain.device)
            out = self.module(x).float() - self.bias
        plain = self._plain(x.float())
        return (out * plain).sum(-1) / (plain * plain).sum(-1).clamp(min=1e-30)

    def back(self, direction: Float[torch.Tensor, "*n d"]) -> Float[torch.Tensor, "*n d"]:
        """The direction before the norm that is read as `direction` after it, up to the scale."""
        found = direction * self.gain.to(direction.device)
        return found - found.mean(-1, keepdim=True) if self.centred else found


def final_norm(subject: CausalLM) -> Norm:
    """The norm between the last block and the unembedding.

    Raises:
        EngineError: beside the blocks there is not exactly one norm.
    """
    parent = subject.hf.get_submodule(subject.family.layers.rpartition(".")[0])
    found = [m for m in parent.children() if getattr(getattr(m, "weight", None), "ndim", 0) == 1]
    if len(found) != 1:
        raise EngineError(
            f"{subject.name} has {len(found)} norms beside its blocks; its final norm is not known"
        )
    return Norm.of(found[0], "the final norm")


class Readout:
    """How heads' outputs are read as logits of given tokens.

    Args:
        folded: with the gains and scales of the final norm (and of the norms behind attention, where a family has
            them), so that shares are exact. Without, the bare rows of the unembedding, as in the code of LOCOS.
    """

    def __init__(self, subject: CausalLM, *, folded: bool = True):
        self.subject = subject
        self.folded = folded
        self.norm = final_norm(subject) if folded else None
        self.post: Mapping[int, Norm] = {}
        if folded and subject.family.post_norm:
            path = subject.family.sites["attn_out"].module
            every = {i: subject.module(i, path) for i in range(subject.n_layers)}
            self.post = {i: Norm.of(m, f"the norm behind attention of layer {i}") for i, m in every.items()}

    def vectors(self, tokens: Int[torch.Tensor, "b r"]) -> Float[torch.Tensor, "b r d"]:
        """The direction at the end of the residual stream that each token's logit is read along, up to the scale."""
        head = self.subject.hf.get_output_embeddings()
        with present(head):
            rows = head.weight[tokens.to(head.weight.device)].detach().float()
        return rows if self.norm is None else self.norm.back(rows)

    def directions(self, layer: int, vectors: Float[torch.Tensor, "b r d"]) -> Float[torch.Tensor, "b h r k"]:
        """The same in the values of each head of a layer, through its share of the output projection."""
        if layer in self.post:
            vectors = self.post[layer].back(vectors)
        weight = self.subject.out_weight(layer).detach().float()
        return torch.einsum("hkd,brd->bhrk", weight, vectors.to(weight.device))

    def taps(self, columns: Int[torch.Tensor, "b r"]) -> dict[Site, Tap]:
        """What a pass has to record at the rows that are read, so that `scales` can be told."""
        if not self.folded:
            return {}
        record = Record(columns)
        last = Site("resid_post", self.subject.n_layers - 1)
        return {last: record, **{Site("o", i): record for i in self.post}}

    def scales(self, trace: Trace, shape: tuple[int, int]) -> Float[torch.Tensor, "l b r"]:
        """What shares along `directions` are to be multiplied by, layer by layer.

        Args:
            trace: of a pass with `taps`.
            shape: how many examples and rows.
        """
        n = self.subject.n_layers
        if self.norm is None:
            return torch.ones(n, *shape)
        last = self.norm.scale(trace[Site("resid_post", n - 1)]).cpu()
        out = last.expand(n, *shape).clone()
        for i, norm in self.post.items():
            out[i] *= norm.scale(trace[Site("o", i)][..., -self.subject.d_model :]).cpu()
        return out
