"""What writers put into the residual stream, and how readers take it out: the algebra that edges rest on.

In a pre-norm model the input of every reader is a sum over writers (and biases, which no edge carries). A head writes
z @ W_O of its own, and reads through a norm and its own part of a projection. With grouped queries the weights of keys
and values belong to KV groups and are used as they are, never repeated for query heads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float
from torch import nn

from interp.errors import EngineError, NoAcceptedExample, UsageError
from interp.intervene.fills import mean_fill
from interp.intervene.patch import _common_corruption, _metric, _pair
from interp.intervene.reference import Reference
from interp.locate.circuits.graph import Graph, Input
from interp.locate.gradients import METRICS, metric_of
from interp.models import offload
from interp.models.batch import Batch, plan
from interp.models.engines.base import Frame, Record
from interp.models.engines.visits import cut
from interp.models.sites import Site
from interp.models.subject import CausalLM
from interp.tasks.base import Example, Task

Ablation = Literal["resample", "mean"]
"""What is put in the place of what is ablated: values of the corrupt twin, or means of a reference set."""

TOKENS = {"cpu": 512}
"""Padded tokens of a batch, by type of device; elsewhere 2048. What every writer wrote is held for them."""

_BYPASSED = frozenset({"resid_pre", "resid_mid", "resid_post", "q", "k", "v", "o", "head_out", "attn_out"})
"""Kinds of site whose edits are lost where readers' inputs are made anew."""


@dataclass(frozen=True)
class Pairs:
    """A batch of clean examples and, row by row, the corrupt prompts with the clean answers forced."""

    examples: tuple[Example, ...]
    clean: Batch
    corrupt: Batch

    @classmethod
    def of(
        cls, subject: CausalLM, examples: Sequence[Example], corruption: str, tokens: int | None = None
    ) -> Iterator[tuple[list[int], Pairs]]:
        """Examples in batches of similar length, each with the numbers of its examples."""
        pairs = [_pair(e, corruption) for e in examples]
        tokens = tokens or TOKENS.get(subject.device.type, 2048)
        for group in plan([len(e.full_ids) for e in examples], tokens):
            clean, corrupt = zip(*(pairs[i] for i in group), strict=True)
            yield group, cls(clean, subject.batch(clean), subject.batch(corrupt))

    def scores(self, logits: Float[torch.Tensor, "b keep v"], metric: str) -> Float[np.ndarray, " b"]:
        """A metric of `interp.measure.metrics` for each row.

        Raises:
            UsageError: an example has no such metric.
        """
        if metric in METRICS:
            return np.asarray(metric_of(logits, self.clean, self.examples, metric).double().numpy(force=True))
        first = self.clean.width - logits.shape[1]
        rows = [
            slice(c.start - first, c.stop - first) for c in map(self.clean.answer_columns, range(len(logits)))
        ]
        return np.array([_metric(logits[i, rows[i]], e, metric) for i, e in enumerate(self.examples)])


def questions(
    subject: CausalLM, task: Task | Sequence[Example], corruption: str | None
) -> tuple[list[Example], str]:
    """The examples, and the kind of corrupt twin that all of them have.

    Raises:
        NoAcceptedExample: there is none.
        UsageError: they share no corruption, or lack the one that is named.
    """
    examples = list(task.examples(subject) if isinstance(task, Task) else task)
    if not examples:
        raise NoAcceptedExample("there is no example to trace a circuit on")
    twin = corruption or _common_corruption(examples)
    if not all(twin in e.corrupt for e in examples):
        raise UsageError(f"no corruption '{twin}' in an example of {examples[0].task}")
    return examples, twin


def source_of(
    examples: Sequence[Example],
    ablation: Ablation,
    reference: Reference | Task | Sequence[Example] | None,
    twin: str,
) -> Reference:
    """Where the values of what is ablated come from: the corrupt twins, or a reference set (default the examples).

    Raises:
        UsageError: no such ablation, or one that does not go with the reference.
    """
    if ablation not in get_args(Ablation):
        raise UsageError(f"ablation={ablation!r}: write one of {', '.join(get_args(Ablation))}")
    if ablation == "resample":
        if reference is not None:
            raise UsageError(
                "ablation 'resample' takes the values of the corrupt twin; leave out the reference"
            )
        return Reference(None, pool="twin", twin=twin)
    found = reference if isinstance(reference, Reference) else Reference(reference or examples)
    if found.pool == "twin":
        raise UsageError("ablation 'mean' takes a reference with data, pooled, by position or by role")
    return found


@dataclass(frozen=True, eq=False)
class Written:
    """What the writers of a batch wrote; of a pooled mean one token of one row, which stands for all.

    Attributes:
        embed: the residual stream that enters the first layer.
        z: of each layer, head outputs before the output projection, b t h d_head.
        mlp: of each layer, b t d.
    """

    embed: Float[torch.Tensor, "b t d"]
    z: tuple[torch.Tensor, ...]
    mlp: tuple[torch.Tensor, ...]

    @staticmethod
    def sites(subject: CausalLM) -> list[Site]:
        """Where it is read off."""
        layers = range(subject.n_layers)
        return [Site("resid_pre", 0), *(Site("z", i) for i in layers), *(Site("mlp_out", i) for i in layers)]

    @classmethod
    def read(cls, subject: CausalLM, get: Callable[[Site], torch.Tensor]) -> Written:
        """From whatever holds the values at `sites`."""
        embed, *rest = (get(s) for s in cls.sites(subject))
        n = subject.n_layers
        return cls(embed, tuple(rest[:n]), tuple(rest[n:]))

    @classmethod
    def of_run(cls, subject: CausalLM, batch: Batch) -> Written:
        """Of a run of a batch."""
        return cls.read(subject, _recorded(subject, batch, cls.sites(subject)).__getitem__)

    @classmethod
    def of(cls, subject: CausalLM, pairs: Pairs, source: Reference) -> Written:
        """Of the corrupt twins, or means of a reference for the tokens of the clean batch."""
        return cls.read(subject, instead(subject, pairs, source, cls.sites(subject)).__getitem__)

    def less(self, other: Written, subject: CausalLM, batch: Batch) -> Float[torch.Tensor, "b w t d"]:
        """What each writer of the graph wrote beyond what it did in the other run; zero at padding."""
        layers, h = subject.n_layers, subject.n_heads
        rows, width, d = self.embed.shape
        out = self.embed.new_zeros((rows, 1 + layers * (h + 1), width, d), dtype=torch.float32)
        out[:, 0] = self.embed - other.embed
        for i in range(layers):
            at = 1 + i * (h + 1)
            out[:, at : at + h] = shares(subject, i, self.z[i] - other.z[i])
            out[:, at + h] = self.mlp[i] - other.mlp[i]
        return out * batch.mask[:, None, :, None].to(out)


def instead(
    subject: CausalLM, pairs: Pairs, source: Reference, sites: Sequence[Site]
) -> dict[Site, torch.Tensor]:
    """What ablated sites hold: what they do for the corrupt twins, or means of a reference for the clean tokens."""
    if source.pool == "twin":
        return _recorded(subject, pairs.corrupt, sites)
    frame = Frame(pairs.clean, 0, pairs.clean.width)
    out = {}
    for site in sites:
        found = mean_fill(subject, pairs.clean, site, source, "all")(frame)
        assert isinstance(found, torch.Tensor)
        out[site] = found.to(subject.device)
    return out


def _recorded(subject: CausalLM, batch: Batch, sites: Sequence[Site]) -> dict[Site, torch.Tensor]:
    """Values at sites of a run, which ends behind the last of their layers where the engine can."""
    end = 1 + max(s.layer for s in sites if s.layer is not None)
    ends = end < subject.n_layers and "resume" in subject.engine.capabilities
    options: dict[str, Any] = {"stop": end} if ends else {"keep": 1}
    trace = subject.run(batch, {s: Record() for s in sites}, **options)
    return {s: trace[s] for s in sites}


def shares(
    subject: CausalLM, layer: int, z: Float[torch.Tensor, "b t h d_head"]
) -> Float[torch.Tensor, "b h t d"]:
    """What each head of a layer writes, in fp32."""
    weight = subject.out_weight(layer).detach()
    return torch.einsum("bthk,hkd->bhtd", z.to(weight.device).float(), weight.float())


def out_bias(subject: CausalLM, layer: int) -> torch.Tensor | float:
    """The bias of a layer's output projection; no head's own."""
    module: Any = subject.module(layer, subject.family.out_proj)
    bias = getattr(module, "bias", None)
    if bias is None:
        return 0.0
    with offload.present(module):
        found: torch.Tensor = module.bias.detach().float()
    return found


@dataclass(frozen=True, eq=False)
class Projection:
    """How the heads or KV groups of a layer read behind the norm: normed @ weight + bias, each with its own.

    Attributes:
        norm: of the attention's input.
    """

    norm: nn.Module
    weight: Float[torch.Tensor, "d u d_head"]
    bias: Float[torch.Tensor, "u d_head"] | None

    @classmethod
    def of(cls, subject: CausalLM, layer: int, part: Input) -> Projection:
        """Of the queries, keys or values of a layer.

        Raises:
            EngineError: the weight is quantised.
        """
        place = subject.family.sites[part]
        module: Any = subject.module(layer, place.module)
        sizes = subject.n_heads, subject.n_kv_heads, subject.d_head
        with offload.present(module):
            if not module.weight.is_floating_point():
                raise EngineError(f"layer {layer}: a quantised projection cannot be taken apart by heads")
            # GPT-2 keeps (in, out), nn.Linear (out, in).
            weight = module.weight if type(module).__name__ == "Conv1D" else module.weight.T
            weight = cut(place.part, weight.detach(), *sizes)
            bias = None if module.bias is None else cut(place.part, module.bias.detach(), *sizes)
        return cls(attention_norm(subject, layer), weight, bias)

    def read(self, x: Float[torch.Tensor, "b u t d"]) -> Float[torch.Tensor, "b t u d_head"]:
        """What each unit makes of a residual stream of its own."""
        out = torch.einsum("butd,duk->btuk", self.norm(x.to(self.weight)), self.weight)
        return out if self.bias is None else out + self.bias

    def back(self, grad: Float[torch.Tensor, "b t u d_head"]) -> Float[torch.Tensor, "b u t d"]:
        """Gradients of queries, keys or values, as gradients behind the norm, each unit's own."""
        return torch.einsum("btuk,duk->butd", grad.to(self.weight), self.weight)


def attention_norm(subject: CausalLM, layer: int) -> nn.Module:
    """The norm through which a layer's attention reads."""
    path = subject.family.reads[0]
    assert path is not None, "families without this norm are post-norm, and refused"
    return subject.module(layer, path)


def mlp_reader(subject: CausalLM, layer: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """What a layer's MLP makes of the residual stream, its norm included."""
    path = subject.family.reads[1]
    assert path is not None, "families without this norm are post-norm, and refused"
    norm = subject.module(layer, path)
    mlp = subject.module(layer, subject.family.sites["mlp_out"].module)
    return lambda x: mlp(norm(x))


def mlp_site(subject: CausalLM, layer: int) -> Site:
    """Where the residual stream is that a layer's MLP reads."""
    return Site("resid_pre" if subject.family.parallel else "resid_mid", layer)


def readable(subject: CausalLM, batch: Batch) -> Graph:
    """The graph of a subject whose edges can be run and scored as it is now.

    Raises:
        UsageError: it is of a post-norm family, or an edit is applied that an input made anew would lose.
    """
    graph = Graph.of(subject)
    for edit in subject._edits:
        lost = sorted(s for s in edit.lower(subject, batch) if s.kind in _BYPASSED)
        if lost:
            raise UsageError(
                f"{edit} edits {lost[0]}, and the inputs of readers are made anew behind it: edit weights, z, neurons "
                "or mlp_out instead, or leave the block of apply"
            )
    return graph


class Seen:
    """A tap that keeps a site's tensor for later and leaves it as it is."""

    def __init__(self) -> None:
        self.value: torch.Tensor

    def edit(self, value: torch.Tensor, frame: Frame) -> None:
        self.value = value.detach()


def watch(sites: Sequence[Site]) -> dict[Site, Seen]:
    """A `Seen` at each site."""
    return {s: Seen() for s in sites}
