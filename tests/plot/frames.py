"""Synthetic tables in the shape of a real run: the same seed gives the same numbers; none was measured on a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from tests.plot import circuit_frames, fact_frames

SUBJECT = "synthetic-30x9"
HOSTILE = "<script>alert(1)</script>"
"""A token that must show as text wherever tokens are shown."""

KS = (1, 2, 5, 10, 20)


def scores_frame(
    layers: int = 30,
    heads: int = 9,
    group: int = 3,
    *,
    n: int = 64,
    seed: int = 0,
    methods: tuple[str, ...] = ("copy", "copy_position"),
) -> pd.DataFrame:
    """Sparse scores: a dozen heads in the later middle layers score well, a few a little, most nothing."""
    rng = np.random.default_rng([seed, layers, heads])
    score = np.where(rng.random((layers, heads)) < 0.35, rng.beta(0.6, 30, (layers, heads)), 0.0)
    first, last = int(0.56 * layers), int(0.83 * layers)
    for value in np.linspace(0.92, 0.12, max(3, layers * heads // 20)):
        score[rng.integers(first, last + 1), rng.integers(heads)] = value * rng.uniform(0.9, 1.0)
    rows = []
    for method in methods:
        seen = score if method == "copy" else np.clip(score * rng.uniform(0.85, 1.0, score.shape), 0, 1)
        for layer in range(layers):
            for head in range(heads):
                s = float(seen[layer, head])
                rows.append(
                    {
                        "component": f"L{layer}H{head}", "method": method, "layer": layer, "head": head,
                        "kv_head": head // group, "score": s, "se": float(np.sqrt(s * (1 - s) / n)), "n": n,
                    }
                )  # fmt: skip
    return pd.DataFrame(rows)


def groups_frame(scores: pd.DataFrame) -> pd.DataFrame:
    """Mean and maximum per KV group of a scores frame."""
    grouped = scores.groupby(["layer", "kv_head", "method"])["score"].agg(["mean", "max"])
    return grouped.reset_index()


def instances_frame(n: int = 64, seed: int = 0) -> pd.DataFrame:
    """Scoring prompts of four lengths and five depths, of which a few are rejected."""
    rng = np.random.default_rng([seed, n])
    asked = np.tile([0.1, 0.3, 0.5, 0.7, 0.9], n)[:n]
    recall = np.where(rng.random(n) < 0.85, 1.0, rng.choice([0.0, 0.25, 0.5], n))
    return pd.DataFrame(
        {
            "example": np.arange(n),
            "accepted": recall > 0.5,
            "exact": recall == 1.0,
            "output": [" the copper lantern" if r > 0.5 else f" I do not know {HOSTILE}" for r in recall],
            "answer": " the copper lantern",
            "recall": recall,
            "depth": np.clip(asked + rng.normal(0, 0.012, n), 0, 1),
            "depth_asked": asked,
            "length": np.repeat([256, 512, 1024, 2048], (n + 3) // 4)[:n],
            "passes": 1 + (rng.random(n) < 0.2).astype(int),
            "cluster": [f"haystack-{i % 16}" for i in range(n)],
        }
    )


_TASKS = {
    # role, clean accuracy, what is lost when everything is cut, clean logit difference
    "niah_words": ("target", 0.94, 0.92, 6.1),
    "niah_numbers": ("target", 0.88, 0.80, 5.0),
    "induction": ("control_task", 0.97, 0.35, 7.4),
    "facts": ("off_target", 0.81, 0.06, 4.2),
    "arithmetic": ("off_target", 0.11, 0.0, 0.1),
}
_CHANCE = ("arithmetic",)


def effects_frame(
    seed: int = 0, draws: int = 20, *, mechanisms: tuple[str, ...] = ("retrieval heads",)
) -> pd.DataFrame:
    """Clean, cut and control rows of five tasks in two scopes, and the loss on natural text."""
    rng = np.random.default_rng([seed, draws])
    ranked = (
        scores_frame().query("method == 'copy'").sort_values("score", ascending=False)["component"].tolist()
    )
    rows: list[dict[str, Any]] = []

    def row(task: str, role: str, mechanism: str, metric: str, **more: Any) -> None:
        base = {
            "subject": SUBJECT, "task": task, "role": role, "mechanism": mechanism, "locator": "copy", "draw": -1,
            "k": 0, "components": "", "mode": "", "scope": "", "reference": "", "metric": metric, "p": np.nan,
            "n": 128, "n_clusters": 32, "n_distinct": 0, "seed": seed, "status": "ok",
        }  # fmt: skip
        rows.append(base | more)

    for mechanism in mechanisms:
        strength = 1.0 if mechanism == "retrieval heads" else 0.4
        for task, (role, accuracy, loss, difference) in _TASKS.items():
            status = "at chance" if task in _CHANCE else "ok"
            metrics = {
                "accuracy": (accuracy, loss, 0.04),
                "logit_diff": (difference, 1.1 * difference * loss, 0.3),
            }
            for metric, (clean, lost, half) in metrics.items():
                row(
                    task, role, mechanism, metric, condition="clean", value=clean, delta=0.0, ci_lo=clean - half,
                    ci_hi=min(1.0, clean + half) if metric == "accuracy" else clean + half, status=status,
                )  # fmt: skip
                for scope, ks, many in (("answer", KS, draws), ("all", (5, 10), 5)):
                    for k in ks:
                        part = strength * lost * (1 - np.exp(-k / (4.0 if scope == "answer" else 2.5)))
                        delta = -part + rng.normal(0, 0.01)
                        row(
                            task, role, mechanism, metric, condition="cut", k=k, components=" ".join(ranked[:k]),
                            mode="mean", scope=scope, reference="pooled niah_words", value=clean + delta, delta=delta,
                            ci_lo=delta - half, ci_hi=delta + half, status=status,
                            p=float(10 ** (-20 * abs(delta))) if metric == "accuracy" else np.nan,
                        )  # fmt: skip
                        for draw in range(many):
                            moved = -abs(rng.normal(0, 0.012 * np.sqrt(k))) * (
                                1 if metric == "accuracy" else 3
                            )
                            heads = " ".join(rng.choice(ranked[20:], k, replace=False))
                            row(
                                task, role, mechanism, metric, condition="control", draw=draw, k=k, components=heads,
                                mode="mean", scope=scope, reference="pooled niah_words", value=clean + moved,
                                delta=moved, ci_lo=moved - half, ci_hi=moved + half, status=status, n_distinct=many,
                            )  # fmt: skip
        row(
            "english prose", "off_target", mechanism, "nll", condition="clean", value=3.31, delta=0.0, ci_lo=3.22,
            ci_hi=3.40,
        )  # fmt: skip
        for k in (5, 10):
            for draw in range(-1, 5):
                delta = 0.004 * k * (1.6 if draw < 0 else 1.0) + rng.normal(0, 0.002)
                row(
                    "english prose", "off_target", mechanism, "nll", condition="cut" if draw < 0 else "control",
                    draw=draw, k=k, components=" ".join(ranked[:k] if draw < 0 else ranked[20 : 20 + k]), mode="mean",
                    scope="all", reference="pooled niah_words", value=3.31 + delta, delta=delta, ci_lo=delta - 0.01,
                    ci_hi=delta + 0.01, n_distinct=0 if draw < 0 else 5,
                )  # fmt: skip
    return pd.DataFrame(rows)


def deleted_frame(seed: int = 0, ks: tuple[int, ...] = (46,)) -> pd.DataFrame:
    """Components that the best heads read, deleted: needles in three metrics with draws of others, prose without."""
    effects = effects_frame(seed)
    rows = effects[(effects["scope"] == "all") | (effects["condition"] == "clean")]
    rows = rows[rows["task"].isin(["niah_words", "english prose"]) & rows["k"].isin([0, 10])]
    rows = rows[(rows["task"] == "niah_words") | (rows["condition"] != "control")]
    rows = pd.concat([rows, rows[rows["metric"] == "accuracy"].assign(metric="logprob")])
    cut = rows["k"] > 0
    said = {"mechanism": "channels", "locator": "Channels"}
    parts = [rows[~cut], *(rows[cut].assign(k=k, mode="delete", reference="") for k in ks)]
    return pd.concat(parts, ignore_index=True).assign(**said)


def fact_effects_frame(seed: int = 0) -> pd.DataFrame:
    """A window of fact MLPs and neurons of it, cut on facts, on needles and on prose."""
    rows = deleted_frame(seed)
    named = {"niah_words": "held-out facts", "english prose": "prose"}
    parts = [
        rows.assign(
            task=rows["task"].map(named), k=rows["k"].clip(upper=k), mechanism=mechanism, locator="FactMLPs"
        )
        for mechanism, k in (("fact MLPs", 3), ("fact neurons", 20))
    ]
    return pd.concat(parts, ignore_index=True)


def fact_layers_frame(layers: int = 30) -> pd.DataFrame:
    """Layers by what restoring and cutting them does: one holds facts, the first is vital for all."""
    at = np.arange(layers)
    aie = 0.3 * np.exp(-0.5 * ((at - 8) / 1.5) ** 2) + 0.4 * (at == 0)
    off = 0.02 + 0.5 * (at == 0) + 0.2 * (at == 11)
    spared = 1 - off / 0.6
    return pd.DataFrame({
        "component": [f"M{i}" for i in at], "layer": at, "aie": aie, "aie_lo": aie - 0.05, "aie_hi": aie + 0.05,
        "share": aie / 0.7, "n": 16, "fact_loss": 0.8 * aie + off, "fact_se": 0.02, "spared": spared,
        "off_loss": off, "off_se": 0.01, "score": aie * spared,
    })  # fmt: skip


def fact_profile_frame() -> pd.DataFrame:
    """Both kinds of state at both places, of facts that are known and of wrong answers."""
    rows = fact_frames.averages_frame(("mlp_out", "attn_out"), ("exact recall", "guesswork"))
    said = {"exact recall": "facts it knows", "guesswork": "what it says where it is wrong"}
    return rows.assign(said=rows["scenario"].map(said)).drop(columns="scenario")


_PROSE = (
    "The harbour office kept its ledgers in a cupboard that smelled of rope and cold tea . Every spring the clerk "
    "copied the tide tables by hand , because the printed ones were set for another coast . Nobody thanked her , "
    "and the fishermen never noticed that their boats ran aground less often than their fathers ' had . "
)


def rows_json(n: int = 512, heads: int = 10, seed: int = 0) -> dict[str, Any]:
    """Attention rows of the best heads on one prompt of `n` tokens with a needle, a distractor and a hostile token."""
    rng = np.random.default_rng([seed, n, heads])
    prose = [word if word in ",.'" else " " + word for word in _PROSE.split()]
    tokens = [prose[i % len(prose)] for i in range(n)]
    tokens[0] = "<|im_start|>"
    tokens[40:42] = ["\n", "\n"]
    tokens[44] = HOSTILE
    roles: list[str | None] = [None] * n

    def place(at: int, words: list[str], marks: list[str | None]) -> None:
        tokens[at : at + len(words)] = words
        roles[at : at + len(words)] = marks

    needle = [" The", " key", " of", " the", " attic", " is", " copper", " lantern", " seven", "."]
    place(n // 2, needle, ["evidence"] * 3 + ["key"] * 2 + ["evidence"] + ["value"] * 3 + ["evidence"])
    other = [" The", " key", " of", " the", " cellar", " is", " silver", " thimble", " two", "."]
    place(n // 5, other, [None] * 3 + ["distractor_key"] * 2 + [None] + ["distractor_value"] * 3 + [None])
    ask = [
        "\n",
        "Question",
        ":",
        " What",
        " is",
        " the",
        " key",
        " of",
        " the",
        " attic",
        "?",
        "\n",
        "Answer",
        ":",
    ]
    place(n - len(ask), ask, [None] * 8 + ["query"] * 2 + [None] * 4)
    answer = needle[6:9]
    ranked = scores_frame().query("method == 'copy'").sort_values("score", ascending=False)
    by_head: dict[str, list[list[float]]] = {}
    for name, strength in ranked[["component", "score"]].head(heads).itertuples(index=False):
        rows = []
        for step in range(len(answer)):
            row = rng.exponential(1.0, n + step) * 0.08 / n
            row[0] += 1.0 - strength
            row[n // 2 + 6 + step] += 0.85 * strength
            row[n // 5 + 6 + step] += 0.08 * strength
            rows.append([round(float(v), 5) for v in row / row.sum()])
        by_head[name] = rows
    return {"tokens": tokens, "roles": roles, "heads": by_head, "answer": answer}


def patch_frame(layers: int = 30, heads: int = 9, seed: int = 0) -> pd.DataFrame:
    """Recovery of the residual stream by position in both directions, and of single heads in one."""
    rng = np.random.default_rng([seed, layers, heads])
    prompt = rows_json(64, 1, seed)
    rows: list[dict[str, Any]] = []

    def row(kind: str, direction: str, layer: int, position: int, head: int, recovery: float) -> None:
        rows.append(
            {
                "kind": kind, "direction": direction, "layer": layer, "position": position, "head": head,
                "token": prompt["tokens"][position] if position >= 0 else "",
                "role": prompt["roles"][position] if position >= 0 else None, "value": 6 * recovery - 1.0,
                "clean": 5.0, "corrupt": -1.0, "recovery": recovery, "n": 16,
            }
        )  # fmt: skip

    last = 63
    for direction in ("denoise", "noise"):
        for layer in range(layers):
            moved = 1 / (1 + np.exp(-(layer - 0.66 * layers) / 1.5))
            for position in [*range(30, 48), *range(50, 64)]:
                base = rng.normal(0, 0.015)
                if prompt["roles"][position] == "value":
                    base += (1 - moved) * (0.9 if direction == "denoise" else 0.7)
                if position == last:
                    base += moved
                # Noise starts from the clean run: a recovery of 1 is no change, 0 is the corrupt run.
                recovery = base if direction == "denoise" else 1 - base
                row("resid_post", direction, layer, position, -1, float(recovery))
    score = scores_frame(layers, heads).query("method == 'copy'")
    for item in score.itertuples():
        row(
            "z",
            "denoise",
            int(item.layer),
            -1,
            int(item.head),
            float(0.35 * item.score + rng.normal(0, 0.01)),
        )
    return pd.DataFrame(rows)


def write_run(folder: Path, *, seed: int = 0, without: tuple[str, ...] = ()) -> Path:
    """A synthetic run folder, complete but for the files named (without suffix) in `without`."""
    folder.mkdir(parents=True, exist_ok=True)
    scores = scores_frame(seed=seed)
    frames = {
        "scores": scores, "groups": groups_frame(scores), "instances": instances_frame(seed=seed),
        "effects": effects_frame(seed=seed), "patch": patch_frame(seed=seed),
        "channels": circuit_frames.channels_frame(seed=seed), "channel_spectrum": circuit_frames.spectrum_frame(),
        "channel_effects": deleted_frame(seed=seed), "fact_census": fact_frames.known_frame((0,)),
        "fact_profile": fact_profile_frame(), "fact_layers": fact_layers_frame(),
        "fact_effects": fact_effects_frame(seed=seed),
    }  # fmt: skip
    for name, frame in frames.items():
        if name not in without:
            frame.to_parquet(folder / f"{name}.parquet", index=False)
    if "rows" not in without:
        (folder / "rows.json").write_text(json.dumps(rows_json(heads=3, seed=seed)), encoding="utf-8")
    if "spec" not in without:
        spec = {
            "model": SUBJECT,
            "seed": seed,
            "synthetic": True,
            "top": 10,
            "doses": list(KS),
            "note": HOSTILE,
        }
        (folder / "spec.yaml").write_text(yaml.safe_dump(spec, sort_keys=False), encoding="utf-8")
    if "provenance" not in without:
        facts = {"model": SUBJECT, "fingerprint": "0" * 16, "seed": seed, "versions": {"plotly": "7.1.0"}}
        (folder / "provenance.json").write_text(json.dumps(facts | {"note": HOSTILE}), encoding="utf-8")
    return folder


def modes_frame(seed: int = 0) -> pd.DataFrame:
    """One task cut in three modes at the answer's positions."""
    effects = effects_frame(seed)
    one = effects[(effects["task"] == "niah_words") & effects["scope"].isin(["", "answer"])]
    parts = []
    for mode in ("zero", "mean", "uniform"):
        cut = one["condition"] != "clean"
        parts.append(
            one.assign(
                mode=one["mode"].where(~cut, mode),
                reference=one["reference"].where(~cut, "pooled niah_words" if mode == "mean" else ""),
            )
        )
    return pd.concat(parts, ignore_index=True)


def role_patch_frame(seed: int = 0) -> pd.DataFrame:
    """Patching of the residual stream by span role, as for several examples."""
    told = patch_frame(seed=seed).query("kind == 'resid_post'").dropna(subset=["role"])
    by = ["kind", "direction", "layer", "role"]
    mean = told.groupby(by, sort=False)[["value", "clean", "corrupt", "recovery"]].mean().reset_index()
    return mean.assign(position=-1, head=-1, token="", n=16)
