"""Synthetic tables of fact recall: the same seed gives the same numbers; none was measured on a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

LAYERS = 30
SCENARIOS = ("exact recall", "heuristics recall", "guesswork", "generic")
PLACES = ("first subject", "middle subject", "last subject", "first after", "further", "last")
KINDS = ("resid_post", "mlp_out", "attn_out")
_TE = dict(zip(SCENARIOS, (0.41, 0.22, 0.08, 0.19), strict=True))


def _bump(layer: int, middle: float, wide: float) -> float:
    return float(np.exp(-0.5 * ((layer - middle) / wide) ** 2))


def averages_frame(
    kinds: Sequence[str] = KINDS, scenarios: Sequence[str] = SCENARIOS, layers: int = LAYERS, seed: int = 0
) -> pd.DataFrame:
    """Rows of `aggregate`: recalled facts peak at the subject's last token, guesses late at the last."""
    rng = np.random.default_rng([seed, layers])
    rows: list[dict[str, Any]] = []
    for scenario in scenarios:
        te = _TE[scenario]
        for kind in kinds:
            for layer in range(layers):
                for place in PLACES:
                    early = _bump(layer, 0.35 * layers, 0.12 * layers) if place == "last subject" else 0.0
                    late = _bump(layer, 0.85 * layers, 0.1 * layers) if place == "last" else 0.0
                    exact = scenario in ("exact recall", "generic")
                    aie = te * (0.45 * early * (1 if exact else 0.2) + 0.25 * late * (0.3 if exact else 1))
                    aie = (aie + 0.01 * te * rng.standard_normal()) * (0.4 if kind == "attn_out" else 1.0)
                    half = 0.03 * te + 0.2 * abs(aie)
                    rows.append({
                        "scenario": scenario, "kind": kind, "severed": "", "window": 1, "corruption": "subject_swap",
                        "metric": "probability", "target": "answer", "layer": layer, "place": place, "n": 40,
                        "n_clusters": 33, "te": te, "aie": aie, "aie_lo": aie - half, "aie_hi": aie + half,
                        "share": aie / te, "share_lo": (aie - half) / te, "share_hi": (aie + half) / te,
                    })  # fmt: skip
    return pd.DataFrame(rows)


def knockout_frame(scenarios: Sequence[str] = SCENARIOS, layers: int = LAYERS, seed: int = 0) -> pd.DataFrame:
    """Averages of a knockout map: the relation flows before the subject."""
    rng = np.random.default_rng([seed, layers])
    rows = []
    for scenario in scenarios:
        for source, middle, depth in (("subject", 0.65, -55), ("other", 0.4, -35), ("last", 0.2, -8)):
            for layer in range(layers):
                mean = depth * _bump(layer, middle * layers, 0.15 * layers) + rng.standard_normal()
                about = {"scenario": scenario, "source": source, "layer": layer, "mean": mean, "n": 40}
                rows.append({**about, "lo": mean - 4, "hi": mean + 4})
    return pd.DataFrame(rows)


def rates_frame(scenarios: Sequence[str] = SCENARIOS, layers: int = LAYERS) -> pd.DataFrame:
    """Extraction rates, with the row of any layer."""
    rows = []
    for i, scenario in enumerate(scenarios):
        for kind, top in (("attn_out", 0.3), ("mlp_out", 0.18)):
            for layer in range(-1, layers):
                rate = (0.6 if layer < 0 else top * _bump(layer, 0.8 * layers, 0.1 * layers)) / (1 + 0.3 * i)
                ends = {"lo": max(0.0, rate - 0.05), "hi": rate + 0.06}
                rows.append(
                    {"scenario": scenario, "kind": kind, "layer": layer, "rate": rate, "n": 40} | ends
                )
    return pd.DataFrame(rows)
