"""Tables of the study of memorization in language models, made up."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from tests.plot import memory_frames as f
from tests.plot.memory_study_frames import ended

EDITS = ("known", "activation", "hard_concrete", "wanda", "wanda weights", "rewritten (wanda)", "random")
MEASURES = ("targeted", "held_out", "targeted_hits", "held_out_hits", "similarity", "never", "prose")


def injection() -> dict[str, pd.DataFrame]:
    """Tables of `interp study injection`."""
    return {
        "injections": injections(), "recovery": recovery(), "screen": screen(), "doses": doses(),
        "chosen": chosen(), "edits": edits(), "contrasts": contrasts(), "prefixes": prefixes(),
        "attacked": attacked(), "work": work(), "exposure_curves": exposures(), "findings": findings(),
    }  # fmt: skip


def injections() -> pd.DataFrame:
    return pd.DataFrame({
        "subject": "small", "injected": [0.001, 0.001, 0.01], "seed": 0, "item": ["a", "b", "a"], "known": [3, 3, 30],
        "units": 3000, "before": [5.0, 4.0, 5.0], "after": [0.04, 0.06, 0.01], "steps": 20, "exact": [1, 0, 1],
    })  # fmt: skip


def recovery() -> pd.DataFrame:
    methods = (
        "random",
        "activation",
        "gradient",
        "hard_concrete",
        "slimming",
        "wanda",
        "integrated",
        "contrastive",
    )
    own = f.recovery_frame(2, methods)
    return pd.concat([own.assign(subject="small", injected=share) for share in (0.001, 0.01)])


def screen() -> pd.DataFrame:
    rows: list[dict[str, Any]] = []
    for group, exact in (("scripture", (0, 1, 1)), ("invented", (0, 0, 0))):
        for prefix, e in zip((8, 16, 32), exact, strict=True):
            rows += [{"subject": "model", "name": f"{group} {i}", "group": group, "prefix": prefix,
                      "exact": e * (i < 1), "run": 3, "hits": 0.2} for i in range(2)]  # fmt: skip
    return pd.DataFrame(rows)


def left(edit: str, measure: str, dose: float) -> float:
    share = {"none": 1.0, "random": 1.0, "known": 0.0}.get(edit, max(0.0, 1 - 20 * dose))
    if measure in ("never", "prose"):
        return (measure == "prose") + 2 * dose
    return share * (0.9 if measure.startswith("targeted") else 0.8)


def doses() -> pd.DataFrame:
    rows = []
    for memory in ("injected 0.01", "together"):
        for edit in ("none", *EDITS):
            for dose in (0.0,) if edit == "none" else (0.01, 0.05):
                for measure in MEASURES:
                    rows.append({
                        "subject": "small", "memory": memory, "edit": edit, "family": "units",
                        "control": edit == "random", "dose": dose, "asked": dose, "norm": 1.0, "measure": measure,
                        "n": 8, **ended(left(edit, measure, dose)),
                    })  # fmt: skip
    return pd.DataFrame(rows)


def chosen() -> pd.DataFrame:
    return pd.DataFrame({
        "subject": "small", "memory": "together", "edit": EDITS, "asked": 0.01, "dose": 0.01, "targeted": 0.0,
        "prose": 1.02, "erases": True, "attacked": [e in ("known", "wanda") for e in EDITS],
    })  # fmt: skip


def edits() -> pd.DataFrame:
    own = doses()
    return own[(own["memory"] == "together") & own["dose"].isin([0.0, 0.01])]


def contrasts() -> pd.DataFrame:
    rows = []
    for memory in ("injected 0.01", "together"):
        for edit in ("activation", "wanda"):
            for asked in (0.01, 0.05):
                for measure in ("targeted", "held_out", "never", "prose"):
                    v = -10 * asked if measure in ("targeted", "held_out") else asked
                    rows.append({
                        "subject": "small", "memory": memory, "edit": edit, "asked": asked, "against": "random",
                        "measure": measure, "value": v, "ci_lo": v - 0.05, "ci_hi": v + 0.05, "p": 0.02, "n": 8,
                    })  # fmt: skip
    return pd.DataFrame(rows)


def prefixes() -> pd.DataFrame:
    rows = []
    for edit in ("none", *EDITS):
        for k, variant in enumerate(("given", "shorter", "one replaced")):
            for measure in ("exact", "hits"):
                rows.append({
                    "subject": "small", "memory": "together", "edit": edit, "variant": variant, "measure": measure,
                    "n": 8, **ended(0.9 - 0.2 * k),
                })  # fmt: skip
    return pd.DataFrame(rows)


def attacked() -> pd.DataFrame:
    rows = []
    for k, condition in enumerate(("original", "memorized", "known", "wanda")):
        for group in ("targeted", "never"):
            for metric, v in (
                ("before", 0.1),
                ("attacked", 0.2 * k if group == "targeted" else 0.05),
                ("steps", 30.0),
            ):
                told = ended(v) if v <= 1 else {"value": v, "ci_lo": np.nan, "ci_hi": np.nan}
                rows.append({
                    "subject": "small", "memory": "together", "condition": condition, "group": group, "metric": metric,
                    "n_items": 8, "n": 8, **told,
                })  # fmt: skip
    return pd.DataFrame(rows)


def work() -> pd.DataFrame:
    rows = []
    for memory, top in (("together", 1.0), ("finetuned", 0.0)):
        for condition in ("original", "memorized", "known"):
            for group in ("targeted", "never"):
                rows += [{"subject": "small", "memory": memory, "condition": condition, "group": group, "steps": s,
                          "extracted": top * s / 50, "items": top * s / 40} for s in (0.0, 5.0, 20.0)]  # fmt: skip
    return pd.DataFrame(rows)


def exposures() -> pd.DataFrame:
    rows = []
    for phase, steps in (("before", (0,)), ("shown", (100, 240)), ("later", (480,))):
        for step in steps:
            for measure in ("recognition", "recall", "hits", "gain"):
                rows += [
                    {"step": step, "phase": phase, "curve": f"{phase} {step}", "exposures": n, "measure": measure,
                     "n": 8, **ended(step / 480 * n / (n + 4))}
                    for n in (0, 1, 4, 16)
                ]  # fmt: skip
    return pd.DataFrame(rows)


def findings() -> pd.DataFrame:
    told = {"finding": ["neurons are found", "exposure"], "source": "this toolkit", "subject": "small"}
    told |= {"memory": ["together", ""], "statistic": "recall", "value": [0.5, 4.0], "ci_lo": [0.4, np.nan]}
    return pd.DataFrame(
        told | {"ci_hi": [0.6, np.nan], "n": 8, "rule": "r", "verdict": ["holds", "undecided"]}
    )
