"""One edit of each kind on parts of language models and of a pipeline, with the weights that each should leave."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import torch

from interp.intervene.weights import (
    Delta,
    LowRank,
    MeanAblate,
    ModelDelta,
    OutputVectors,
    PartEdit,
    ProjectOut,
    Prune,
    Scaled,
)
from interp.intervene.weights.base import OfPart
from interp.models.parts import Part, module_of, parts, weight_of
from interp.models.pipeline import Pipeline
from interp.models.subject import CausalLM
from tests.pipelines import stable_diffusion
from tests.tiny import tiny

PLACES = [
    ("llama", "ff_out"),
    ("gpt2", "ff_out"),
    ("neox", "self_out"),
    ("pipeline", "ff_out"),
    ("pipeline", "cross_v"),
    ("pipeline", "text_ff_out"),
]
"""Without bias; kept in x out; with bias; and of both networks of a pipeline."""

KINDS = [
    "prune",
    "prune rows",
    "mean_ablate",
    "project in",
    "project out",
    "output_vectors",
    "low_rank",
    "delta",
    "shift",
    "scaled",
    "scaled mean",
    "model_delta",
]


@cache
def subject(name: str) -> Any:
    """A tiny subject; shared, so leave it as it was."""
    return fresh(name)


def fresh(name: str, seed: int = 0) -> Any:
    """A tiny subject of one's own."""
    if name == "pipeline":
        return Pipeline(stable_diffusion(seed=seed), name="tiny-sd")
    return CausalLM(tiny(name, seed), None, name=name)


def part(s: Any, kind: str, number: int = 1) -> Part:
    return parts(s, kind)[number]


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def edit(s: Any, at: Part, kind: str, seed: int = 0) -> PartEdit:
    """An edit of that kind; none changes weights by less than 1e-3 of their size."""
    d_out, d_in = weight_of(s, at).shape
    units = torch.randperm(d_in, generator=torch.Generator().manual_seed(seed))[:3]
    make: dict[str, Callable[[], PartEdit]] = {
        "prune": lambda: Prune(at, draw(d_out, d_in, seed=seed) > 1),
        "prune rows": lambda: replace(Prune.units(s, at, [1, 4], "out"), model=""),
        "mean_ablate": lambda: MeanAblate(at, units, draw(3, seed=seed)),
        "project in": lambda: ProjectOut(at, torch.linalg.qr(draw(d_in, 2, seed=seed)).Q),
        "project out": lambda: ProjectOut(at, torch.linalg.qr(draw(d_out, 2, seed=seed)).Q, "out"),
        "output_vectors": lambda: OutputVectors(at, units, draw(3, d_out, seed=seed)),
        "low_rank": lambda: LowRank(at, draw(d_in, 2, seed=seed), draw(2, d_out, seed=seed + 1)),
        "delta": lambda: Delta(at, draw(d_out, d_in, seed=seed)),
        "shift": lambda: Delta(at, draw(d_out, d_in, seed=seed), draw(d_out, seed=seed + 1)),
        "scaled": lambda: Scaled(edit(s, at, "prune", seed), 0.25),  # type: ignore[arg-type]
        "scaled mean": lambda: Scaled(edit(s, at, "mean_ablate", seed), -1.5),  # type: ignore[arg-type]
        "model_delta": lambda: ModelDelta({f"{at.path}.weight": draw(*kept(s, at)[0].shape, seed=seed)}),
    }
    return make[kind]()


def by_hand(
    s: Any, e: PartEdit, kind: str, w: torch.Tensor, b: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """What weight (out x in) and bias should be, entry by entry where that can be said so."""
    w, b = w.clone(), b.clone()
    if kind.startswith("prune"):
        return w * (1 - e.mask.to(w)), b  # type: ignore[attr-defined]
    if kind == "mean_ablate":
        for unit, mean in zip(e.units.tolist(), e.means.tolist(), strict=True):  # type: ignore[attr-defined]
            b = b + w[:, unit] * mean
            w[:, unit] = 0
    elif kind.startswith("project"):
        v = e.basis  # type: ignore[attr-defined]
        eye = torch.eye(len(v))
        w = w @ (eye - v @ v.T) if kind == "project in" else (eye - v @ v.T) @ w
    elif kind == "output_vectors":
        for unit, vector in zip(e.units.tolist(), e.vectors, strict=True):  # type: ignore[attr-defined]
            w[:, unit] = vector
    elif kind == "low_rank":
        w = w + torch.einsum("ir,ro->oi", e.a, e.b)  # type: ignore[attr-defined]
    elif kind in ("delta", "shift"):
        w = w + e.change  # type: ignore[attr-defined]
        b = b + (0 if e.shift is None else e.shift)  # type: ignore[attr-defined]
    elif kind == "model_delta":
        change = next(iter(e.changes.values()))  # type: ignore[attr-defined]
        w = w + (change.T if change.shape != w.shape or is_transposed(s) else change)
    else:
        assert isinstance(e, Scaled) and isinstance(e.edit, OfPart)
        inner = {"scaled": "prune", "scaled mean": "mean_ablate"}[kind]
        new_w, new_b = by_hand(s, e.edit, inner, w, b)
        w, b = w + e.share * (new_w - w), b + e.share * (new_b - b)
    return w, b


def is_transposed(s: Any) -> bool:
    return s.name == "gpt2"


def kept(s: Any, at: Part) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Weight and bias of a part as the module holds them."""
    module = module_of(s, at)
    return module.weight, module.bias


def modules(s: Any) -> dict[str, torch.nn.Module]:
    return {"unet": s.pipe.unet, "text": s.pipe.text_encoder} if s.kind == "pipeline" else {"": s.hf}


def bits(s: Any) -> dict[str, torch.Tensor]:
    return {f"{n}.{k}": t.clone() for n, m in modules(s).items() for k, t in m.state_dict().items()}


def same(s: Any, before: dict[str, torch.Tensor]) -> bool:
    """Whether the state is what it was: names, their order and every bit (minus zero is not zero)."""
    now = bits(s)
    return list(now) == list(before) and all(
        torch.equal(
            t.view(torch.uint8 if t.ndim else t.dtype), before[n].view(torch.uint8 if t.ndim else t.dtype)
        )
        for n, t in now.items()
    )


def run(s: Any) -> torch.Tensor:
    """What the subject gives for a fixed input: logits, or predicted noise."""
    if s.kind == "pipeline":
        with torch.no_grad():
            return s.noise(draw(2, *s.latent_shape), 300, s.embed(["a photo of zorax", "the red digit"]))
    from tests.subjects import examples

    return s.run(examples()).logits
