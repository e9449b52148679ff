"""Synthetic tables of a retrieval-head study: the same seed gives the same numbers; none was measured on a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from tests.plot.frames import SUBJECT

METHODS = (
    "copy", "copy_position", "copy_topk", "needle_mass", "r2", "anchor", "qr", "temporal", "spatial", "dla", "locos",
    "cri", "induction", "echo",
)  # fmt: skip
LENGTHS = (128, 256, 512, 1024, 1536, 2048, 3072, 4096)
DEPTHS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
KS = (1, 2, 5, 10, 20, 50)
KINDS = (("layer", 20), ("norm", 5), ("entropy", 5), ("bottom", 1))


def needles_frame(
    modes: Sequence[str] = ("uniform", "mean"), *, needles: int = 4, draws: int = 3, seed: int = 0
) -> pd.DataFrame:
    """One row a needle and condition: long contexts and middle depths are harder, cuts take nearly all."""
    rng = np.random.default_rng([seed, needles, draws])
    rows: list[dict[str, Any]] = []
    for length in LENGTHS:
        for depth in DEPTHS:
            for needle in range(needles):
                real = float(np.clip(depth + rng.normal(0, 0.01), 0, 1))
                base = {"length_asked": length, "depth_asked": depth, "depth": real, "needle": needle}
                p = 0.97 - 0.35 * (length / 4096) * (1 - abs(depth - 0.5))

                def row(base: dict[str, Any] = base, **more: Any) -> None:
                    rows.append(base | {"k": 10, "draw": -1} | more)

                row(condition="clean", mode="", k=0, accuracy=float(rng.random() < p), logprob=-3 * (1 - p))
                for mode in modes:
                    row(
                        condition="cut",
                        mode=mode,
                        accuracy=float(rng.random() < 0.08),
                        logprob=float(rng.normal(-9)),
                    )
                    for draw in range(draws):
                        row(
                            condition="control",
                            mode=mode,
                            draw=draw,
                            accuracy=float(rng.random() < p - 0.03),
                            logprob=-3 * (1 - p) - 0.1,
                        )
    return pd.DataFrame(rows)


def _base(**more: Any) -> dict[str, Any]:
    return {
        "subject": SUBJECT, "role": "target", "mechanism": "retrieval heads", "locator": "", "draw": -1, "k": 0,
        "components": "", "mode": "mean", "scope": "answer", "reference": "pooled niah", "p": np.nan, "n": 48,
        "n_clusters": 12, "n_distinct": 0, "seed": 0, "status": "ok", "control": "", "metric": "accuracy",
    } | more  # fmt: skip


def doses_frame(methods: Sequence[str] = METHODS, *, kept: bool = False, seed: int = 0) -> pd.DataFrame:
    """One task under cuts of every score type and controls of four kinds; with `kept`, all other heads cut."""
    rng = np.random.default_rng([seed, len(methods)])
    clean, floor = 0.94, 0.03
    rows = [
        _base(
            task="niah",
            condition="clean",
            value=clean,
            delta=0.0,
            ci_lo=0.88,
            ci_hi=0.98,
            mode="",
            scope="",
            reference="",
        )
    ]

    def add(value: float, **more: Any) -> None:
        ends = {"delta": value - clean, "ci_lo": value - clean - 0.05, "ci_hi": value - clean + 0.05}
        rows.append(_base(task="niah", value=value, **ends, **more))

    cut, control = ("keep", "keep_control") if kept else ("cut", "control")
    if kept:
        add(floor, condition=cut, locator=methods[0], k=0)
    for i, method in enumerate(methods):
        for k in KS:
            gone = max(floor, clean * float(np.exp(-k / (2.5 + 1.7 * i))))
            add(clean + floor - gone if kept else gone, condition=cut, locator=method, k=k)
    for kind, draws in KINDS:
        for k in KS:
            for draw in range(draws):
                middle = floor + 0.004 * k if kept else clean - 0.004 * k
                value = float(np.clip(middle + rng.normal(0, 0.02), 0, 1))
                add(value, condition=control, control=kind, locator=methods[0], k=k, draw=draw)
    return pd.DataFrame(rows)


def areas_frame(doses: pd.DataFrame) -> pd.DataFrame:
    """Areas of the curves with an interval of 0.04 to either side."""
    rows = []
    by = ["locator", "condition", "control", "draw"]
    for key, part in doses[doses["k"] > 0].groupby(by, sort=False):
        x = np.log(part["k"].to_numpy(float))
        area = float(np.trapezoid(part["value"], x) / (x[-1] - x[0]))
        rows.append(
            dict(zip(by, key, strict=True)) | {"value": area, "ci_lo": area - 0.04, "ci_hi": area + 0.04}
        )
    return pd.DataFrame(rows)


_TASKS = {
    # role, metric, uncut value, what the best cut takes
    "needle": ("target", "accuracy", 0.94, 0.9),
    "paraphrase": ("target", "accuracy", 0.61, 0.5),
    "multi_key": ("target", "accuracy", 0.8, 0.7),
    "multi_hop": ("target", "accuracy", 0.12, 0.0),
    "reading": ("target", "f1", 0.48, 0.2),
    "facts": ("control_task", "accuracy", 0.98, 0.03),
    "arithmetic_cot": ("control_task", "accuracy", 0.35, 0.15),
    "prose": ("off_target", "nll", 3.3, -0.05),
}


def tasks_frame(
    methods: Sequence[str] = ("copy", "needle_mass", "qr"), *, adjusted: bool = True, seed: int = 0
) -> pd.DataFrame:
    """Cuts of ten heads by some score types on eight tasks, one of them at chance."""
    rng = np.random.default_rng([seed, len(methods)])
    rows = []
    for task, (role, metric, clean, loss) in _TASKS.items():
        same = {
            "task": task, "role": role, "metric": metric, "scope": "all",
            "status": "at chance" if task == "multi_hop" else "ok",
        }  # fmt: skip
        rows.append(
            _base(
                **same
                | {
                    "condition": "clean",
                    "value": clean,
                    "delta": 0.0,
                    "ci_lo": clean - 0.1,
                    "ci_hi": clean + 0.1,
                }
            )
        )
        for i, method in enumerate(methods):
            delta = -loss * (1 - 0.07 * i) + rng.normal(0, 0.01)
            sure = abs(delta) > 0.1
            rows.append(
                _base(
                    **same, condition="cut", locator=method, k=10, value=clean + delta, delta=delta,
                    ci_lo=delta - 0.05, ci_hi=delta + 0.05, q=0.001 if sure else 0.4,
                )
            )  # fmt: skip
        for kind in ("layer", "norm"):
            for draw in range(5):
                delta = -0.03 * abs(rng.normal()) * (-1 if metric == "nll" else 1)
                rows.append(
                    _base(
                        **same, condition="control", control=kind, locator=methods[0], k=10, draw=draw,
                        value=clean + delta, delta=delta, ci_lo=delta - 0.05, ci_hi=delta + 0.05,
                    )
                )  # fmt: skip
    frame = pd.DataFrame(rows)
    return frame if adjusted else frame.drop(columns="q")


def pairs_frame(methods: Sequence[str] = METHODS, *, k: int = 10) -> pd.DataFrame:
    """Agreement that falls with the distance in the list, and of each score with itself."""
    rows = []
    for i, a in enumerate(methods):
        for j, b in enumerate(methods):
            far = abs(i - j)
            overlap = round(k * max(0.0, 0.9 - 0.08 * far)) / k if far else 1.0
            rows.append(
                {
                    "a": a, "b": b, "set": f"top {k}", "overlap": overlap, "p": 1e-4 if overlap > 0.2 else 0.3,
                    "spearman": max(-0.2, 0.95 - 0.09 * far) if far else 1.0, "ceiling": 0.9 - 0.02 * min(i, j),
                }
            )  # fmt: skip
    return pd.DataFrame(rows)
