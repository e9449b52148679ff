"""What the tests of all engines share: models, batches, sites and plain Hugging Face runs to compare with."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

from interp.models.batch import Batch
from interp.models.engines.base import Record
from interp.models.sites import INDEXED, Site
from interp.models.subject import CausalLM
from tests.subjects import ALL, examples, subject

ENGINES = ("hooks", "lens", "nnsight")
OTHERS = ENGINES[1:]
FAMILIES = tuple(ALL)
BATCHES = {"solo": (24,), "padded": (24, 17, 40)}
CLOSE = 1e-4

_KINDS = (
    *("embed", "resid_pre", "q", "k", "v", "q_rot", "k_rot", "z", "head_out"),
    *("attn_out", "resid_mid", "neurons", "mlp_out", "resid_post", "logits"),
)
LACKING = {
    ("lens", family, kind) for family in ("gpt2", "neox", "neox sequential") for kind in ("q_rot", "k_rot")
}
"""What an engine refuses: GPT-2's bridge has no such hooks, and NeoX's never fires them."""


@cache
def model(family: str, engine: str) -> CausalLM:
    """A tiny model under an engine; all engines of a family share its weights. Leave it as it was."""
    return subject(family) if engine == "hooks" else subject(family).with_engine(engine)


def batch(name: str = "padded") -> Batch:
    """Bare ids; `padded` has rows of three lengths."""
    return Batch.of_ids([e.ids for e in examples(BATCHES[name])])


def kinds(family: str, engine: str) -> list[str]:
    """Kinds of site that hold a tensor, of this family and engine."""
    absent = {k for e, f, k in LACKING if (e, f) == (engine, family)}
    absent |= {"resid_mid"} if subject(family).family.parallel else set()
    return [k for k in _KINDS if k not in absent]


def in_every_layer(s: CausalLM) -> list[Site]:
    """Every site of a model that holds a tensor."""
    out = []
    for kind in _KINDS:
        if kind in ("embed", "logits"):
            out.append(Site(kind))
        elif not (kind == "resid_mid" and s.family.parallel):
            out += [Site(kind, i) for i in range(s.n_layers)]
    return out


def sites(family: str, engine: str) -> list[Site]:
    """Every site that holds a tensor, in every layer, but those that the engine lacks."""
    return [s for s in in_every_layer(subject(family)) if s.kind in kinds(family, engine)]


def in_layer(family: str, engine: str, layer: int) -> list[Site]:
    """Every site of one layer (and those of none), whole, and one head or neuron of it where it has them."""
    out = [s for s in sites(family, engine) if s.layer in (None, layer)]
    return out + [Site(s.kind, s.layer, 1) for s in out if s.kind in INDEXED]


def bare(module: Any, given: Batch, **options: Any) -> Any:
    """The module as Hugging Face runs it."""
    with torch.no_grad():
        return module(input_ids=given.ids, attention_mask=given.mask, position_ids=given.positions, **options)


def recorded(family: str, engine: str, given: Batch) -> Any:
    """A trace of every site, with the logits of every column."""
    return model(family, engine).run(given, {s: Record() for s in sites(family, engine)}, keep=given.width)


def gap(a: torch.Tensor, b: torch.Tensor, given: Batch) -> float:
    """Largest difference where there are tokens; what stands under padding means nothing."""
    assert a.shape == b.shape, (a.shape, b.shape)
    real = given.mask.bool()[:, -a.shape[1] :]
    return float((a - b)[real].abs().max())
