"""Tiny models with channels planted between their heads, and decoys beside them.

A channel is a direction that one head's output projection writes and one query, key or value projection reads, through
whatever norms stand in between. Decoys: a direction written and read by nobody, one read and written by nobody, one
written behind its reader, and a hub, written by one head and read by the queries of all later ones.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

import torch

from interp.locate.channels.weights import Weights
from interp.models.subject import CausalLM
from tests.tiny import tiny

Link = tuple[str, str, str]
"""Writer, reader, mode."""


@dataclass
class Planting:
    """A tiny model whose channels are known."""

    family: str
    seed: int
    strength: float = 8.0
    links: set[Link] = field(default_factory=set)
    hub: set[Link] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.subject = CausalLM(
            copy.deepcopy(tiny(self.family, self.seed)), None, name=f"planted {self.family}"
        )
        self.weights = Weights(self.subject)
        self.generator = torch.Generator().manual_seed(1000 + self.seed)

    def direction(self) -> torch.Tensor:
        """A direction that norms which centre leave as it is."""
        v = torch.randn(self.subject.d_model, generator=self.generator)
        v = v - v.mean()
        return v / v.norm()

    def _axis(self) -> torch.Tensor:
        a = torch.randn(self.subject.d_head, generator=self.generator)
        return a / a.norm()

    def write(self, layer: int, head: int, v: torch.Tensor) -> None:
        """The head writes v, behind the norm behind attention if there is one."""
        s, k = self.subject, self.subject.d_head
        behind = self.weights.gain_behind(layer)
        change = self.strength * torch.outer(self._axis(), v if behind is None else v / behind)
        weight = s.module(layer, s.family.out_proj).weight
        at = slice(head * k, (head + 1) * k)
        with torch.no_grad():
            if self.family == "gpt2":
                weight[at] += change
            else:
                weight[:, at] += change.T

    def read(self, layer: int, unit: int, mode: str, v: torch.Tensor) -> None:
        """The query head, or KV group, reads v through the norm before attention."""
        s, k = self.subject, self.subject.d_head
        norm, _ = self.weights.norms(layer)
        change = self.strength * torch.outer(v if norm is None else v / norm.gain, self._axis())
        weight = s.module(layer, s.family.sites[mode.lower()].module).weight
        first = "QKV".index(mode) * s.d_model if self.family == "gpt2" else 0
        at = slice(first + unit * k, first + (unit + 1) * k)
        with torch.no_grad():
            if self.family == "gpt2":
                weight[:, at] += change
            else:
                weight[at] += change.T

    def link(self, writer: tuple[int, int], reader: tuple[int, int], mode: str) -> torch.Tensor:
        """A channel; the reader is a query head (Q) or a KV group (K, V)."""
        v = self.direction()
        self.write(*writer, v)
        self.read(*reader, mode, v)
        self.links |= self.named(writer, reader, mode)
        return v

    def named(self, writer: tuple[int, int], reader: tuple[int, int], mode: str) -> set[Link]:
        """What a locator calls it: values of a group are read by each of its query heads."""
        s, (layer, unit) = self.subject, reader
        share = s.n_heads // s.n_kv_heads
        side = self.family != "gpt2"
        if mode == "Q" or share == 1:
            names = [f"L{layer}H{unit}"]
        elif mode == "K" and side:
            names = [f"L{layer}KV{unit}"]
        else:
            names = [f"L{layer}H{unit * share + i}" for i in range(share)]
        return {("L{}H{}".format(*writer), name, mode) for name in names}

    def decoys(self) -> None:
        """Directions that are written, read, or met in the wrong order, without a channel."""
        self.write(0, 3, self.direction())
        self.read(2, 0, "Q", self.direction())
        behind = self.direction()
        self.write(2, 1, behind)
        self.read(0, 0, "K", behind)

    def hubs(self) -> None:
        """A direction that one head writes and the queries of all later heads read."""
        v = self.direction()
        self.write(0, 2, v)
        for layer in (1, 2):
            for head in range(self.subject.n_heads):
                self.read(layer, head, "Q", v)
                self.hub |= self.named((0, 2), (layer, head), "Q")


def three(family: str, seed: int, strength: float = 8.0) -> Planting:
    """A channel of each mode, beside decoys."""
    out = Planting(family, seed, strength)
    group = out.subject.n_kv_heads - 1
    out.link((0, 1), (2, 3), "Q")
    out.link((1, 2), (2, group), "K")
    out.link((0, 0), (1, 0), "V")
    out.decoys()
    return out
