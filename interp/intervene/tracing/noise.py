"""Gaussian noise on the embeddings of a span: the corruption of Meng et al. 2022 (arXiv 2202.05262)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from interp.errors import UsageError
from interp.intervene.base import Atom
from interp.models.batch import Batch, role_tokens
from interp.models.engines.base import Frame, Tap
from interp.models.sites import Site
from interp.models.subject import CausalLM
from interp.tasks.base import Example, stable_seed

SAMPLE = "noise sample"
"""Entry of an example's `meta` that says which noise it gets."""

MULTIPLE = 3.0
"""Standard deviation of the noise, in those of the subject tokens' embeddings (Meng et al., appendix B.1)."""


@dataclass(frozen=True)
class Noise(Atom):
    """Gaussian noise on the embeddings of a span.

    Attributes:
        sigma: standard deviation, in units of the embeddings.
        role: span role whose tokens get noise, as `role` or `role.item`.
        seed: of the draws; each example draws by its own number, its `meta[SAMPLE]`.
    """

    sigma: float
    role: str = "subject"
    seed: int = 0

    def describe(self) -> dict[str, Any]:
        return {
            "kind": "noise",
            "components": ["embed"],
            "mode": "noise",
            "scope": self.role,
            "reference": "",
            "sigma": self.sigma,
            "seed": self.seed,
        }

    def group(self) -> tuple[Any, ...]:
        return (self,)

    def touches(self, subject: CausalLM, batch: Batch) -> dict[Site, Bool[torch.Tensor, "b t"]]:
        return {Site("embed"): batch.scope_columns(self.role, 0, batch.width)}

    def values(self, example: Example, width: int) -> Float[torch.Tensor, "n d"]:
        """What is added to the tokens of the example's span."""
        n = len(role_tokens(example, self.role))
        rng = np.random.default_rng(stable_seed("noise", self.seed, example.meta.get(SAMPLE, 0)))
        return self.sigma * torch.from_numpy(rng.standard_normal((n, width), dtype=np.float32))

    @classmethod
    def lower_group(
        cls,
        subject: CausalLM,
        batch: Batch,
        atoms: Sequence[tuple[int, Any]],
        of: Int[torch.Tensor, " b"],
        n: int,
    ) -> dict[Site, list[Tap]]:
        # One tap an atom: noise that is named twice is added twice.
        return {
            Site("embed"): [
                _Add(atom, batch, (of == number).nonzero()[:, 0].tolist()) for number, atom in atoms
            ]
        }


@dataclass(frozen=True)
class _Add:
    noise: Noise
    batch: Batch
    rows: list[int]

    def edit(self, value: torch.Tensor, frame: Frame) -> torch.Tensor:
        out = value.clone()
        where = self.batch.scope_columns(self.noise.role, frame.past, frame.width)
        for row in self.rows:
            added = self.noise.values(self.batch.examples[row], value.shape[-1])  # type: ignore[arg-type]
            at = where[row].nonzero()[:, 0].to(value.device)
            if len(at) not in (0, len(added)):
                raise UsageError("noise is for whole spans: run the prompt in one pass")
            if len(at):
                out[row, at] += added.to(value.device, value.dtype)
        return out


def noise_level(subject: CausalLM, examples: Example | Sequence[Example], role: str = "subject") -> float:
    """Three standard deviations of the embeddings of the span's tokens, all coordinates and examples together."""
    several = [examples] if isinstance(examples, Example) else list(examples)
    ids = torch.tensor([e.ids[i] for e in several for i in span_of(e, role)], device=subject.device)
    with torch.no_grad():
        embedded = subject.hf.get_input_embeddings()(ids)
    return MULTIPLE * float(embedded.float().std())


def span_of(example: Example, role: str) -> list[int]:
    """Tokens of the span that is corrupted.

    Raises:
        UsageError: there is none.
    """
    if tokens := role_tokens(example, role):
        return tokens
    raise UsageError(f"{example.task}: the example has no span of role '{role}' to corrupt")


def noisy(example: Example, samples: int) -> list[Example]:
    """The example once for each draw of the noise."""
    return [replace(example, meta={**example.meta, SAMPLE: i}) for i in range(samples)]
