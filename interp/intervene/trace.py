"""Causal tracing: corrupt the subject, restore one state, and see how much of the answer comes back.

Meng et al. 2022 (arXiv 2202.05262): the embeddings of the subject's tokens get Gaussian noise, or the subject gives way
to another one of as many tokens (symmetric token replacement, which Zhang and Nanda 2024, arXiv 2309.16042, advise); a
cell restores the clean state at one token in one layer (or the outputs of MLPs or attention in a window of layers
around it), and its indirect effect (IE) is the metric of the answer with the cell restored less that without; the total
effect (TE) is that of the clean run less that of the corrupted one. Noise is the same for all cells (common random
numbers), so effects are paired. `trace_map` traces one prompt, `trace_maps` many, `aggregate` averages them by the
places of tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from interp.intervene.tracing.aggregate import aggregate
from interp.intervene.tracing.cells import NOISE, How, Kind, Metric, Traced, trace_cells, window_of
from interp.intervene.tracing.maps import trace_maps
from interp.intervene.tracing.noise import MULTIPLE, SAMPLE, Noise, noise_level, noisy
from interp.intervene.tracing.places import PLACES, places_of
from interp.models.subject import CausalLM
from interp.tasks.base import Example
from interp.trace.each import Progress, Spent

__all__ = [
    "MULTIPLE",
    "PLACES",
    "SAMPLE",
    "How",
    "Kind",
    "Metric",
    "Noise",
    "aggregate",
    "noise_level",
    "noisy",
    "places_of",
    "trace_map",
    "trace_maps",
    "window_of",
]


def trace_map(
    subject: CausalLM,
    example: Example,
    kind: str | Sequence[str] = "resid_post",
    *,
    window: int = 1,
    corruption: str | Sequence[str] = NOISE,
    samples: int = 10,
    sigma: float | None = None,
    role: str = "subject",
    layers: Iterable[int] | None = None,
    sever: str | Sequence[str] = (),
    targets: str | int | Sequence[str | int] = "answer",
    metric: str | Sequence[str] = "probability",
    seed: int = 0,
    budget: int | None = None,
    progress: Progress | None = None,
    spent: Spent | None = None,
) -> pd.DataFrame:
    """Causal map of one prompt over positions and layers.

    The answer is asked for at its first token that tells the candidates apart; what is before it is forced.

    Args:
        kind: which state is restored: `resid_post`, `attn_out`, `mlp_out`, or several of them.
        window: width of the window of layers around each layer, for `attn_out` and `mlp_out`.
        corruption: `noise`, or one or more of the example's corrupt twins.
        samples: draws of the noise.
        sigma: standard deviation of the noise; default see `noise_level`.
        role: of the span that gets noise.
        layers: centres of the windows; default all.
        sever: `mlp_out` or `attn_out` or both: more maps of `resid_post`, in which what that sublayer adds at the
            restored token stays corrupted in all later layers.
        targets: `answer`, `foil`, `top0` (the clean run's first token), `top1`, ... or token ids; all from one map.
        metric: `probability`, `logprob` (nats) or `logit_diff` (against the foil), or several.
        seed: of the noise.
        budget, spent: see `interp.trace.each`.

    Returns:
        a frame that `interp.plot.patch_map` draws (of one metric and target): kind, direction (denoise), window, layer,
        position, token, role, head (-1), value (mean of the metric with the cell restored), low (corrupted), high
        (clean), effect (value - low), se (of the effect, paired over draws), recovery (effect over high - low), n
        (draws), severed, place, corruption, metric, target, token_id.

    Raises:
        UsageError: no span to corrupt, no such layer, twin, metric or target; a window of residual states.
    """
    how = How(
        kinds=_several(kind),
        window=window,
        corruption=_several(corruption),
        samples=samples,
        sigma=sigma,
        role=role,
        layers=None if layers is None else tuple(layers),
        sever=_several(sever),
        targets=(targets,) if isinstance(targets, int) else _several(targets),
        metrics=_several(metric),
        seed=seed,
    )
    return _frame(subject, trace_cells(subject, example, how, budget=budget, progress=progress, spent=spent))


def _several(given: Any) -> tuple[Any, ...]:
    return (given,) if isinstance(given, str) else tuple(given)


_COLUMNS = ["kind", "direction", "window", "layer", "position", "token", "role", "head"]
_COLUMNS += ["value", "low", "high", "effect", "se", "recovery", "n"]
_COLUMNS += ["severed", "place", "corruption", "metric", "target", "token_id"]


def _frame(subject: CausalLM, traced: Traced) -> pd.DataFrame:
    draws = traced.value.shape[-1]
    effect = (traced.value - traced.low).reshape(-1, draws)
    cells = len(traced.cells)
    low = np.tile(traced.low.mean(-1).ravel(), cells)
    high = np.tile(traced.high.ravel(), cells)
    gap = high - low
    frame = traced.table(subject).assign(direction="denoise", head=-1, n=draws)
    frame["value"] = traced.value.reshape(-1, draws).mean(-1)
    frame["low"], frame["high"] = low, high
    frame["effect"] = effect.mean(-1)
    frame["se"] = effect.std(-1, ddof=1) / draws**0.5 if draws > 1 else np.nan
    told = np.abs(gap) > 1e-9
    frame["recovery"] = np.where(told, frame["effect"] / np.where(told, gap, 1.0), np.nan)
    return frame[_COLUMNS]
