"""The direction in which a token's logit is read, at any point of the residual stream: unembedding, norms, projections.

A norm is linear up to a scale that depends on what it norms: norm(x) = scale(x) * gain * x + bias, with x centred first
in a LayerNorm. Gains are part of the direction; scales are measured on the pass itself, row by row. With both, what
heads, keys, MLPs and embeddings add to a token's logit sums to that logit exactly, before a softcap of the logits and
without the biases that no part of the sum owns.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float, Int

from interp.errors import EngineError
from interp.models.engines.base import Record, Tap, Trace
from interp.models.norms import Norm
from interp.models.offload import present
from interp.models.sites import Site
from interp.models.subject import CausalLM


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
