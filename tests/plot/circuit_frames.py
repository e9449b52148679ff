"""Synthetic tables of channels and circuits: the same seed gives the same numbers; none was measured on a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

LAYERS, HEADS, KV_HEADS = 30, 9, 3
MODES = ("Q", "K", "V")
CLASSES = {
    "L22H3": "name mover", "L24H8": "name mover", "L23H2": "negative mover", "L16H0": "S-inhibition",
    "L17H8": "S-inhibition", "L9H4": "induction", "L3H7": "duplicate token", "L2H0": "previous token",
}  # fmt: skip
RECEIVERS = {
    "logits": ("L22H3", "L24H8", "L23H2"),
    "movers, q": ("L16H0", "L17H8"),
    "S-inhibition, v": ("L9H4", "L3H7"),
}
TASKS = {"ioi": 1.0, "induction": 0.97, "laundry": 0.73, "niah": 0.9, "colored_objects": 0.34}


def readers_frame(n: int = 120, seed: int = 0) -> pd.DataFrame:
    """Components against readers, as `ComponentScores.readers` has them; several components for some pairs of heads."""
    rng = np.random.default_rng([seed, n])
    rows: list[dict[str, Any]] = []
    for mode in MODES:
        for _ in range(n):
            a, b = sorted(rng.choice(LAYERS, 2, replace=False).tolist())
            kv = mode == "K"
            reader = f"L{b}KV{rng.integers(KV_HEADS)}" if kv else f"L{b}H{rng.integers(HEADS)}"
            value = float(rng.uniform(0.1, 0.6) ** 1.5)
            for number in range(int(rng.integers(1, 4))):
                rows.append({
                    "writer": f"L{a}H{rng.integers(HEADS)}" if number == 0 else rows[-1]["writer"],
                    "component": number, "reader": reader, "writer_layer": a, "reader_layer": b, "mode": mode,
                    "value": value * (1 - 0.1 * number), "q": 1e-30, "q_null": 0.01 if value > 0.4 else 0.9,
                })  # fmt: skip
    return pd.DataFrame(rows).sort_values("value", ascending=False, ignore_index=True)


def channels_frame(seed: int = 0) -> pd.DataFrame:
    """Readers with the number of the channel that a row is of, every other one of none."""
    rows = readers_frame(seed=seed)
    number = rows.groupby(["reader", "mode"], sort=False).ngroup()
    rows = rows.assign(channel=number.where(number % 2 == 0, -1), writer_share=0.1)
    # The order in a channel is not that of the rows.
    return rows.assign(
        place=rows.groupby("channel").cumcount(ascending=False).where(rows["channel"] >= 0, -1)
    )


def spectrum_frame(d: int = 64, modes: Sequence[str] = MODES, seed: int = 0) -> pd.DataFrame:
    """Histograms of cosines: the causal ones with a heavy tail, the anti-causal with a lighter one."""
    rng = np.random.default_rng([seed, d])
    edges = np.linspace(0, 1, 129)
    mass = np.diff(stats.beta.cdf(edges**2, 0.5, (d - 1) / 2))
    parts = []
    for mode in modes:
        found = [
            np.histogram(np.sqrt(rng.beta(0.5, (d - 1) / 2, 100_000)), edges)[0]
            + np.histogram(rng.beta(2, tail, extra), edges)[0]
            for tail, extra in ((4, 400), (6, 200))
        ]
        parts.append(
            pd.DataFrame({
                "low": edges[:-1], "high": edges[1:], "causal": found[0], "anticausal": found[1],
                "expected": found[0].sum() * mass, "mode": mode,
            })
        )  # fmt: skip
    return pd.concat(parts, ignore_index=True)


def composition_frame(layers: int = 6, heads: int = 3, seed: int = 0) -> pd.DataFrame:
    """All pairs of heads, causal or not, in two modes."""
    rng = np.random.default_rng([seed, layers])
    rows = [
        {
            "writer": f"L{a}H{h}", "reader": f"L{b}H{k}", "writer_layer": a, "reader_layer": b, "mode": mode,
            "value": float(rng.uniform(0.02, 0.2)), "causal": a < b,
        }
        for mode in ("Q", "K") for a in range(layers) for b in range(layers) for h in range(heads) for k in range(heads)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def items_frame(families: Sequence[str] = ("A", "B"), seed: int = 0) -> pd.DataFrame:
    """Accuracy that falls with the number of items, higher with the edit; controls of two kinds."""
    rng = np.random.default_rng([seed, len(families)])
    rows: list[dict[str, Any]] = []
    for family in families:
        for n in range(3, 11):
            clean = max(0.95 - 0.11 * n, 1 / n)

            def row(value: float, family: str = family, n: int = n, **more: Any) -> None:
                ends = {"value": value, "ci_lo": value - 0.04, "ci_hi": value + 0.04, "n": 500}
                rows.append({"family": family, "items": n, "control": "", "draw": -1} | ends | more)

            row(clean, condition="clean")
            row(clean + (0.15 if family == "A" else 0.05), condition="edited")
            for draw in range(5):
                row(
                    clean + float(rng.normal(0, 0.02)),
                    condition="control",
                    control="random direction",
                    draw=draw,
                )
            row(clean + float(rng.normal(0, 0.02)), condition="control", control="same head", draw=0)
    return pd.DataFrame(rows)


def grid_frame(dims: int = 2, items: int = 4, seed: int = 0) -> pd.DataFrame:
    """Each item has a direction in the channel; the nearer the coordinates point to it the more often it wins."""
    rng = np.random.default_rng([seed, dims, items])
    ends = [np.linspace(-3, 3, 9), np.linspace(-3, 3, 7), np.array([-2.0, 0.0, 2.0])][:dims]
    places = np.stack(np.meshgrid(*ends, indexing="ij"), -1).reshape(-1, dims)
    toward = rng.normal(size=(items, dims))
    rows = []
    for place in places:
        logit = toward @ place
        share = np.exp(logit - logit.max())
        share /= share.sum()
        at = {f"c{k}": float(v) for k, v in enumerate(place)}
        rows += [at | {"item": i, "share": float(share[i])} for i in range(items)]
    return pd.DataFrame(rows)


def paths_frame(seed: int = 0) -> pd.DataFrame:
    """Effects of all heads on three sets of receivers, those of the circuit large, and of an MLP."""
    rng = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    for receivers, strong in RECEIVERS.items():
        for layer in range(LAYERS):
            for head in range(HEADS):
                name = f"L{layer}H{head}"
                effect = float(rng.normal(0, 0.01))
                if name in strong:
                    effect = float(rng.uniform(0.2, 0.5)) * (-1 if "negative" in CLASSES[name] else 1)
                ends = {"effect": effect, "ci_lo": effect - 0.05, "ci_hi": effect + 0.05}
                rows.append({"sender": name, "layer": layer, "head": head, "receivers": receivers} | ends)
        mlp = {"effect": 0.3, "ci_lo": 0.2, "ci_hi": 0.4}
        rows.append({"sender": "M5", "layer": 5, "head": -1, "receivers": receivers} | mlp)
    return pd.DataFrame(rows)


def edges_frame(seed: int = 0) -> pd.DataFrame:
    """Edges between the heads of the circuit and some others: the scores find those of Q and say nothing of V."""
    rng = np.random.default_rng(seed)
    heads = sorted([*CLASSES, "L5H5", "L12H1", "L20H0"], key=lambda n: int(n[1:].split("H")[0]))
    rows: list[dict[str, Any]] = []
    for mode in ("Q", "V"):
        for i, writer in enumerate(heads):
            for reader in heads[i + 1 :]:
                inside = bool(rng.random() < 0.2)
                score = float(rng.normal(2.0 if inside and mode == "Q" else 0.0, 1))
                effect = float(0.2 * inside + rng.normal(0, 0.02))
                rows.append(
                    {"writer": writer, "reader": reader, "mode": mode, "score": score, "effect": effect}
                )
    return pd.DataFrame(rows)


def cross_frame(draws: int = 20, seed: int = 0) -> pd.DataFrame:
    """Circuits of five tasks cut on five tasks: the own one costs most; one task at chance."""
    rng = np.random.default_rng([seed, draws])
    rows: list[dict[str, Any]] = []
    for task, clean in TASKS.items():
        status = "at chance" if task == "colored_objects" else "ok"

        def row(
            delta: float, task: str = task, clean: float = clean, status: str = status, **more: Any
        ) -> None:
            ends = {"value": clean + delta, "delta": delta, "ci_lo": delta - 0.05, "ci_hi": delta + 0.05}
            rows.append({"circuit": "", "task": task, "draw": -1, "n": 96, "status": status} | ends | more)

        row(0.0, condition="clean")
        for circuit in TASKS:
            lost = 0.7 if circuit == task else 0.02 if (circuit, task) == ("niah", "ioi") else 0.25
            row(-clean * lost, condition="cut", circuit=circuit)
            for draw in range(draws):
                row(-clean * abs(float(rng.normal(0, 0.06))), condition="control", circuit=circuit, draw=draw)
    return pd.DataFrame(rows)


def overlap_frame() -> pd.DataFrame:
    """Circuits of ten heads; neighbours in the list share more."""
    names = list(TASKS)
    rows = []
    for i, a in enumerate(names):
        for j, b in enumerate(names[i + 1 :], i + 1):
            shared = max(0, 8 - 3 * (j - i))
            p = 0.001 if shared > 2 else 0.4
            rows.append(
                {"a": a, "b": b, "shared": shared, "jaccard": shared / (20 - shared), "expected": 0.8, "p": p}
            )
    return pd.DataFrame(rows).assign(null="layers")


def faithful_frame(ablations: Sequence[str] = ("resample", "mean")) -> pd.DataFrame:
    """Two orders of edges and three random ones."""
    rows: list[dict[str, Any]] = []
    steep = {"EAP-IG": 0.01, "EAP": 0.03, "random 0": 0.5, "random 1": 0.6, "random 2": 0.7}
    for ablation in ablations:
        for order, scale in steep.items():
            for share in (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0):
                f = 1.0 if share == 1 else float(1 - np.exp(-share / scale))
                ends = {"f": f, "ci_lo": f - 0.06, "ci_hi": f + 0.06}
                rows.append(
                    {"order": order, "ablation": ablation, "share": share, "items": int(1e4 * share)} | ends
                )
    return pd.DataFrame(rows)


def areas_frame() -> pd.DataFrame:
    """Areas of the curves."""
    return pd.DataFrame({
        "order": ["EAP-IG", "EAP", "random 0", "random 1", "random 2"], "cpr": [0.97, 0.93, 0.5, 0.45, 0.4],
        "cmd": [0.03, 0.07, 0.5, 0.55, 0.6],
    })  # fmt: skip
