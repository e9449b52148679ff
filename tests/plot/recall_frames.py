"""Synthetic tables of a run of the tasks: the same seed gives the same numbers; none was measured on a model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

LADDERS: dict[tuple[str, str], dict[str, tuple[Any, ...]]] = {
    ("long context", "niah"): {"length": (256, 512, 1024)},
    ("long context", "multi_key"): {"needles": (2, 4, 8), "length": (256, 512, 1024)},
    ("long context", "reading"): {},
    ("interference", "updates"): {"updates": (1, 2, 4, 8, 16, 32)},
    ("lists and names", "laundry"): {"items": (2, 4, 6, 8, 12)},
    ("lists and names", "form_of_a_long_name"): {"form": ("standard", "paraphrase")},
}
"""Families, tasks and their sizes; `reading` has no candidates, and forms are no numbers."""

SETS = ("needles", "items")


def _ends(value: float, half: float) -> tuple[float, float, float]:
    return value, max(0.0, value - half), min(1.0, value + half)


def recall_frame(n: int = 32, seed: int = 0) -> pd.DataFrame:
    """A row a size: larger sizes are harder, the last ones of lists are at chance, one prompt does not fit."""
    rng = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    for (family, task), ladder in LADDERS.items():
        for param, sizes in (ladder or {"": ("",)}).items():
            for place, size in enumerate(sizes):
                chance = 1 / size if param in SETS else 0.25
                right = min(1.0, chance + 0.72 - 0.14 * place + rng.normal(0, 0.01))
                low = task == "laundry" and place > 2
                choice = _ends(chance if low else right, 0.15)
                row: dict[str, Any] = {
                    "family": family, "task": task, "param": param, "size": str(size), "rung": place, "n": n,
                    "at": float(size) if isinstance(size, int) else np.nan, "n_clusters": n // 2, "tokens": 300.0,
                    "redraws": 0, "guess": chance, "judged": "choice", "status": "at chance" if low else "ok",
                    "reason": "", "nll": 1.2,
                }  # fmt: skip
                shares = {"choice": choice, "accuracy": _ends(0.8 * choice[0], 0.15)}
                shares["logit_diff"] = (4 - place + rng.normal(0, 0.1), 3.0 - place, 5.0 - place)
                if task == "reading":
                    row |= {"judged": "accuracy", "guess": 1 / 49152}
                    shares |= dict.fromkeys(("choice", "logit_diff"), (np.nan,) * 3)
                if task == "niah" and place == 2:
                    row |= {"status": "not asked", "n": 0, "judged": "", "guess": np.nan, "nll": np.nan}
                    row["reason"] = "1024 tokens do not fit <b>here</b>"
                    shares = dict.fromkeys(shares, (np.nan,) * 3)
                for metric, (value, lo, hi) in shares.items():
                    row |= {metric: value, f"{metric}_lo": lo, f"{metric}_hi": hi}
                rows.append(row)
    return pd.DataFrame(rows)


def recall_curves_frame(seed: int = 0) -> pd.DataFrame:
    """Points over every axis; positions of lists have a line for each length of list."""
    rng = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []

    def add(task: str, axis: str, by: str, x: float, right: float, chance: float, line: str = "") -> None:
        for metric, value in (("choice", right), ("accuracy", 0.7 * right), ("logit_diff", 5 * right)):
            value, lo, hi = _ends(value, 0.12) if metric != "logit_diff" else (value, value - 1, value + 1)
            rows.append({
                "family": "some", "task": task, "axis": axis, "by": by, "line": line, "metric": metric, "x": x,
                "x_lo": x, "x_hi": x, "value": value, "ci_lo": lo, "ci_hi": hi, "n": 24, "n_clusters": 12,
                "chance": np.nan if metric == "logit_diff" else chance,
            })  # fmt: skip

    for task in ("niah", "multi_key", "multi_value", "multi_hop", "paraphrase"):
        for i, x in enumerate((256, 512, 1024)):
            add(task, "length", "length", x, 0.9 - 0.2 * i + rng.normal(0, 0.02), 0.25)
        for x in np.linspace(0.1, 0.9, 5):
            add(task, "depth", "depth", x, 0.5 + abs(x - 0.5), 0.25)
    for i, x in enumerate((1, 2, 4, 8, 16, 32)):
        add("updates", "updates", "updates", x, 0.95 - 0.15 * i, 0.2)
    for n in (2, 4, 6, 8, 12):
        add("laundry", "set size", "items", n, min(1.0, 1.2 / n + 0.3), 1 / n)
        for place in range(1, n + 1):
            add(
                "laundry",
                "position",
                "position",
                place,
                0.3 + 0.6 * abs(place / n - 0.5),
                1 / n,
                f"{n} items",
            )
    for hops in (0, 1, 2, 3):
        add("multi_hop", "steps", "hops", hops, 0.9 - 0.2 * hops, 0.3)
    return pd.DataFrame(rows)


def recall_ages_frame() -> pd.DataFrame:
    """Ages of answers: of two values the one that holds, of four the first that was said, one in eight never said."""
    shares = {2: {0: 0.75, 1: 0.25}, 4: {-1: 0.125, 0: 0.125, 1: 0.0, 2: 0.25, 3: 0.5}}
    rows = []
    for updates, own in shares.items():
        for age, share in own.items():
            _, lo, hi = _ends(share, 0.1)
            rows.append({
                "task": "updates", "updates": updates, "age": age, "share": share, "ci_lo": lo, "ci_hi": hi, "n": 32,
                "n_clusters": 16, "chance": 1 / len(own),
            })  # fmt: skip
    return pd.DataFrame(rows)
