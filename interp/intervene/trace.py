"""Causal tracing: corrupt the subject with noise, restore one state, and see how much of the answer comes back.

Meng et al. 2022 (arXiv 2202.05262): the embeddings of the subject's tokens get Gaussian noise; a cell restores the
clean state at one token in one layer (or the outputs of MLPs or attention in a window of layers around it), and its
indirect effect is the probability of the answer with the cell restored less that without. Noise is the same for all
cells (common random numbers), so effects are paired. The map runs by `subject.each`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int

from interp.errors import UsageError
from interp.intervene.base import Atom
from interp.intervene.patch import Patch, Source
from interp.models.batch import Batch, role_tokens
from interp.models.engines.base import Frame, Tap
from interp.models.sites import Site
from interp.models.subject import CausalLM
from interp.tasks.base import Example, stable_seed

Kind = Literal["resid_post", "attn_out", "mlp_out"]
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


def noise_level(subject: CausalLM, example: Example, role: str = "subject") -> float:
    """Three standard deviations of the embeddings of the span's tokens."""
    ids = torch.tensor([example.ids[i] for i in _noised(example, role)], device=subject.device)
    with torch.no_grad():
        embedded = subject.hf.get_input_embeddings()(ids)
    return MULTIPLE * float(embedded.float().std())


def _noised(example: Example, role: str) -> list[int]:
    if tokens := role_tokens(example, role):
        return tokens
    raise UsageError(f"{example.task}: the example has no span of role '{role}' to corrupt")


def window_of(layer: int, window: int, n_layers: int) -> tuple[int, ...]:
    """Layers of a window around one, cut off at the ends of the model.

    >>> window_of(1, 4, 6), window_of(5, 4, 6), window_of(3, 1, 6)
    ((0, 1, 2), (3, 4, 5), (3,))
    """
    return tuple(range(max(0, layer - window // 2), min(n_layers, layer + (window + 1) // 2)))


def trace_map(
    subject: CausalLM,
    example: Example,
    kind: Kind = "resid_post",
    *,
    window: int = 1,
    samples: int = 10,
    sigma: float | None = None,
    role: str = "subject",
    layers: Iterable[int] | None = None,
    seed: int = 0,
    budget: int | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> pd.DataFrame:
    """Causal map of one prompt over positions and layers.

    Args:
        example: with a span of `role`; its first answer token is what is asked for.
        kind: which state is restored.
        window: width of the window of layers around each layer, for `attn_out` and `mlp_out`.
        samples: draws of the noise.
        sigma: standard deviation of the noise; default see `noise_level`.
        layers: centres of the windows; default all.
        budget: see `interp.trace.each`.

    Returns:
        a frame that `interp.plot.patch_map` draws: kind, direction (denoise), window, layer, position, token, role,
        head (-1), value (mean probability of the answer with the cell restored), low (corrupted), high (clean), effect
        (value - low), se (of the effect, paired over draws), recovery (effect over high - low), n (draws).

    Raises:
        UsageError: no span to corrupt; no such layer; a window of residual states.
    """
    if window < 1 or (kind not in ("attn_out", "mlp_out") and window != 1):
        raise UsageError(
            f"window={window} of {kind}: windows are of attn_out or mlp_out, one layer wide or more; write window=1"
        )
    if samples < 1:
        raise UsageError(f"samples={samples}: the map needs at least one draw of the noise")
    centres = list(range(subject.n_layers) if layers is None else layers)
    for layer in centres:
        subject.check(Site(kind, layer))
    noise = Noise(noise_level(subject, example, role) if sigma is None else sigma, role, seed)
    answer = example.answer_ids[0]
    clean = replace(example, answer_ids=example.answer_ids[:1])
    source, logits = Source.with_logits(subject, clean, kind)
    high = _probability(logits[None], answer)[0]
    batch = subject.batch(noisy(clean, samples))
    begin = _noised(example, role)[0]
    every = [(layer, position) for layer in centres for position in range(len(example.ids))]
    # Noise reaches no token before the subject, so restoring there changes nothing.
    cuts: list[Patch | None] = [None]
    cuts += [
        None if p < begin else Patch(source, window_of(layer, window, subject.n_layers), (p,))
        for layer, p in every
    ]
    found: dict[int, np.ndarray] = {}
    with subject.apply(noise):
        for i, logits in subject.each(cuts, batch, keep=1, budget=budget, progress=progress):
            found[i] = _probability(logits, answer)
    low = found[0]
    labels = subject.tokens.pieces(example.ids) if subject.has_tokens else [str(i) for i in example.ids]
    return pd.DataFrame(
        _row(found[i + 1], low, high)
        | {"kind": kind, "direction": "denoise", "window": window, "layer": layer, "position": p}
        | {"token": labels[p], "role": _role(example, p), "head": -1}
        for i, (layer, p) in enumerate(every)
    )[_COLUMNS]


_COLUMNS = ["kind", "direction", "window", "layer", "position", "token", "role", "head"]
_COLUMNS += ["value", "low", "high", "effect", "se", "recovery", "n"]


def noisy(example: Example, samples: int) -> list[Example]:
    """The example once for each draw of the noise."""
    return [replace(example, meta={**example.meta, SAMPLE: i}) for i in range(samples)]


def _row(value: np.ndarray, low: np.ndarray, high: float) -> dict[str, float]:
    effect = value - low
    se = effect.std(ddof=1) / len(effect) ** 0.5 if len(effect) > 1 else np.nan
    gap = high - low.mean()
    return {
        "value": float(value.mean()),
        "low": float(low.mean()),
        "high": float(high),
        "effect": float(effect.mean()),
        "se": float(se),
        "recovery": float(effect.mean() / gap) if abs(gap) > 1e-9 else np.nan,
        "n": len(value),
    }


def _probability(logits: Float[torch.Tensor, "b keep v"], token: int) -> np.ndarray:
    found: np.ndarray = torch.softmax(logits[:, -1].float(), -1)[:, token].double().cpu().numpy()
    return found


def _role(example: Example, position: int) -> str:
    inside = [s for s in example.spans if s.start <= position < s.end]
    if position == len(example.ids) - 1 and not inside:
        return "last"
    return min(inside, key=len).role if inside else "other"
