"""Synthetic tables of memorization: the same seed gives the same numbers; none was measured on a model."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

STATES = ("original", "before", "after", "attacked")
DOSES = (0.001, 0.003, 0.01, 0.03, 0.1)
EDITS = ("Wanda contrast", "NeMo", "contrast subspace")
CONTROLS = ("random", "magnitude", "ordinary prompts")
MEASURES = ("targeted", "held_out", "retention")
EXPOSURES = (0, 1, 3, 10, 30, 100, 300)
METHODS = ("activation", "gradient x activation", "integrated gradients", "hard concrete")


def pictures_frame(items: int = 10, side: int = 8, channels: int = 1, *, seed: int = 0) -> pd.DataFrame:
    """A blob an item, of which an edit leaves a blur and an attack finds most again."""
    rng = np.random.default_rng([seed, items, side])
    y, x = np.mgrid[:side, :side] / side
    rows: list[dict[str, Any]] = []
    for i in range(items):
        a, b = rng.uniform(0.2, 0.8, 2)
        own = np.exp(-((x - a) ** 2 + (y - b) ** 2) / 0.03)
        for state in STATES:
            mix = {"original": 1.0, "before": 0.97, "after": 0.2, "attacked": 0.85 if i % 4 else 0.3}[state]
            drawn = mix * own + (1 - mix) * rng.uniform(0, 1, own.shape)
            rows.append({
                "item": f"item {i}", "state": state, "image": np.stack([drawn] * channels),
                "distance": float(np.sqrt(((drawn - own) ** 2).sum())) if state != "original" else np.nan,
                "replicated": None if state == "original" else bool(mix > 0.5),
            })  # fmt: skip
    return pd.DataFrame(rows)


def doses_frame(
    edits: Sequence[str] = EDITS, controls: Sequence[str] = CONTROLS, measures: Sequence[str] = MEASURES
) -> pd.DataFrame:
    """Edits that delete what they target, less of what they do not, and cost more the larger they are."""
    rows: list[dict[str, Any]] = [
        {
            "edit": "none",
            "dose": 0.0,
            "measure": m,
            "value": 0.95,
            "ci_lo": 0.85,
            "ci_hi": 1.0,
            "control": False,
        }
        for m in measures
    ]
    for k, edit in enumerate([*edits, *controls]):
        strength = 0.0 if edit in controls else 1.0 - 0.25 * k
        for j, dose in enumerate(DOSES):
            deleted = strength * (j + 1) / len(DOSES)
            for m in measures:
                v = {
                    "targeted": 0.95 - deleted,
                    "held_out": 0.95 - 0.4 * deleted,
                    "retention": 0.95 - 4 * dose,
                }[m]
                v = max(0.0, v - 0.02 * k)
                rows.append({
                    "edit": edit, "dose": dose, "measure": m, "value": v, "ci_lo": max(0.0, v - 0.08),
                    "ci_hi": min(1.0, v + 0.08), "control": edit in controls, "n": 10,
                })  # fmt: skip
    return pd.DataFrame(rows)


def exposures_frame(curves: Sequence[str] = ("at the end", "early only")) -> pd.DataFrame:
    """Recognition comes before recall, and what was shown early only fades."""
    rows = []
    for curve in curves:
        for measure, half in (("recognition", 5), ("recall", 40), ("retention", 80)):
            for e in EXPOSURES:
                v = e / (e + half) * (0.5 if curve == "early only" else 1.0)
                rows.append({
                    "curve": curve, "exposures": e, "measure": measure, "value": v, "ci_lo": max(0, v - 0.1),
                    "ci_hi": min(1, v + 0.1), "n": 8,
                })  # fmt: skip
    return pd.DataFrame(rows)


def overlaps_frame(sets: int = 4) -> pd.DataFrame:
    """Memorized sets share more with each other than random splits do; controls do not."""
    names = [f"memorized {c}" for c in "AB"] + [f"controls {i}" for i in range(1, sets - 1)]
    rows = []
    for i, (a, b) in enumerate(combinations(names, 2)):
        alike = a[:4] == b[:4]
        rows.append({
            "a": a, "b": b, "value": 0.55 - 0.02 * i if alike else 0.2 + 0.02 * i, "null_lo": 0.18, "null_hi": 0.42,
            "p": 0.005 if alike else 0.4,
        })  # fmt: skip
    return pd.DataFrame(rows)


def recovery_frame(layers: int = 4, methods: Sequence[str] = METHODS) -> pd.DataFrame:
    """Each method finds more than the one before it, and more where more neurons are taken."""
    rows = []
    for k, method in enumerate(methods):
        for part in [*(f"ff_out[{i}]" for i in range(layers)), "all"]:
            for share in (np.nan, 0.01, 0.02, 0.05, 0.1):
                taken = 0.01 if np.isnan(share) else share
                v = min(1.0, taken + 0.22 * k * (1 + np.log10(taken / 0.01)) ** 0.5)
                rows.append({
                    "method": method, "part": part, "share": share, "recall": v, "ci_lo": max(0, v - 0.1),
                    "ci_hi": min(1, v + 0.1), "chance": taken, "auc": 0.5 + 0.1 * k, "n": 12,
                })  # fmt: skip
    return pd.DataFrame(rows)


def attacks_frame() -> pd.DataFrame:
    """Share of items that an attack has extracted after so many steps."""
    rows = []
    for name, top in (("original", 1.0), ("edited", 0.9), ("oracle", 0.1)):
        for group, factor in (("memorized", 1.0), ("never trained", 0.05)):
            for steps in (1, 5, 10, 20, 50):
                v = top * factor * steps / 50
                rows.append(
                    {"model": name, "group": group, "steps": steps, "value": v, "ci_lo": v * 0.8, "ci_hi": v}
                )
    return pd.DataFrame(rows)


SIGNALS = {
    "memorized": {"first": 3.0, "all": 2.5, "one_step": 1.2, "similarity": 0.9, "spread": 0.3},
    "control": {"first": 1.0, "all": 1.0, "one_step": 1.0, "similarity": 0.3, "spread": 4.0},
    "base": {"first": 0.6, "all": 0.5, "one_step": 0.95, "similarity": 0.25, "spread": 5.0},
}
"""Mean of each signal, by group of prompts."""
LEGEND = {"memorized": "memorized", "control": "rare words", "base": "ordinary"}


def signals_frame(prompts: int = 8, samples: int = 3, *, seeds: int = 1, seed: int = 0) -> pd.DataFrame:
    """Memorized prompts differ in most signals, and hardly in one."""
    rng = np.random.default_rng([seed, prompts])
    rows = []
    for training in range(seeds):
        for group, means in SIGNALS.items():
            for i in range(prompts):
                for s in range(samples):
                    told = {k: m + (0.3 if m > 0.5 else 0.05) * rng.normal() for k, m in means.items()}
                    about = {
                        "seed": training,
                        "role": "model",
                        "group": group,
                        "item": f"{group}-{i}",
                        "sample": s,
                    }
                    rows.append({**about, **told})
    return pd.DataFrame(rows)


STRIPS = ("before", "Wanda contrast", "NeMo", "random", "magnitude", "adversarial fine-tuning")
KINDS = ("none", "located", "located", "control", "control", "trained")


def strips_frame(
    measures: Sequence[str] = ("A", "B", "right digit"), marks: Sequence[str] = ("",)
) -> pd.DataFrame:
    """Each edit has less of the first measure than the one before it, and a mark less than the one before it."""
    rows = []
    for i, (edit, kind) in enumerate(zip(STRIPS, KINDS, strict=True)):
        for j, measure in enumerate(measures):
            for k, mark in enumerate(marks):
                v = 0.95 - 0.12 * i - 0.05 * j - 0.1 * k
                rows.append({
                    "edit": edit, "kind": kind, "measure": measure, "mark": mark, "value": v, "ci_lo": v - 0.1,
                    "ci_hi": v + 0.04, "n": 10,
                })  # fmt: skip
    return pd.DataFrame(rows)
