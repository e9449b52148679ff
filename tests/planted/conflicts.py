"""Conflicts for planted fact models: the context states another object of a fact that the weights hold.

In `a b r o' ... a b r` the copying head reads `o'`, which follows `r` in the context, and the extraction head of `r`
reads the fact at `b`; both write where the output MLP reads. `with_decoys` adds heads that look where the copying head
looks and write as much, in directions that nothing reads.
"""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import torch

from interp.models.sites import Head
from interp.models.subject import CausalLM
from interp.tasks.base import Example, Span

from .facts import Planted
from .facts_build import BOS, D_HEAD, FILLER, O, R


def conflicts(model: Planted, rng: np.random.Generator, n: int) -> list[Example]:
    """Prompts whose answer the weights hold and whose foil stands in the context, of each fact in turn."""
    out = []
    for i in range(n):
        number = i % len(model.facts)
        fact = model.facts[number]
        false = int(rng.choice([o for o in O if o != fact.answer]))
        asked = (fact.a, fact.b, R[fact.relation])
        before = (BOS, *rng.choice(FILLER, rng.integers(1, 4)))
        ids = tuple(int(x) for x in (*before, *asked, false, *rng.choice(FILLER, rng.integers(1, 3)), *asked))
        at = len(before) + 3
        # The fact can be read wherever its subject stands.
        named = [Span(p, p + 2, "subject", i) for i, p in enumerate((len(before), len(ids) - 3))]
        spans = (Span(at, at + 1, "counter_value"), *named)
        out.append(
            Example("planted conflict", ids, (fact.answer,), spans=spans, foil_ids=(false,), chance=0.5,
                    candidates=((fact.answer,), (false,)), cluster=f"fact {number}")
        )  # fmt: skip
    return out


def with_decoys(model: Planted) -> tuple[CausalLM, list[Head]]:
    """The model with the free heads of the copying layer made decoys."""
    layer, copying = model.copying
    real = [*([model.copying]), *model.extraction]
    free = [Head(layer, h) for h in range(model.subject.n_heads) if (layer, h) not in real]
    module = deepcopy(model.subject.hf)
    generator = torch.Generator().manual_seed(layer)
    own = slice(copying * D_HEAD, (copying + 1) * D_HEAD)
    with torch.no_grad():
        for head in free:
            here = slice(head.head * D_HEAD, (head.head + 1) * D_HEAD)
            if hasattr(module, "transformer"):
                attention = module.transformer.h[layer].attn
                read, out = attention.c_attn.weight.T, attention.c_proj.weight.T
                rows = [read[i * len(out) : (i + 1) * len(out)] for i in range(3)]
            else:
                attention = module.model.layers[layer].self_attn
                rows = [getattr(attention, f"{n}_proj").weight for n in "qkv"]
                out = attention.o_proj.weight
            for block in rows:
                block[here] = block[own]
            drawn = torch.randn(out[:, own].shape, generator=generator)
            out[:, here] = drawn * out[:, own].norm() / drawn.norm()
    return CausalLM(module, None, name=f"{model.subject.name} with decoys"), free
