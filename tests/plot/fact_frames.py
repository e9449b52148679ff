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
                about = {
                    "scenario": scenario,
                    "source": source,
                    "layer": layer,
                    "relative": mean,
                    "n": 40,
                    "window": 9,
                }
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


RELATIONS = {
    "capital": 0.92, "continent": 0.81, "language": 0.74, "currency": 0.41, "largest_city": 0.38,
    "element_symbol": 0.33, "head_of_state": 0.0, "author_of_the_book": 0.12,
}  # fmt: skip


def known_frame(shots: Sequence[int] = (0, 3)) -> pd.DataFrame:
    """What is known of each relation, and of all."""
    rows: list[dict[str, Any]] = []
    for n in shots:
        for relation, share in RELATIONS.items():
            right = round(40 * min(1.0, share + 0.02 * n))
            rows.append({"shots": n, "relation": relation, "asked": 40, "known": right, "chance": 0.05})
        own = [r for r in rows if r["shots"] == n]
        whole = {name: sum(r[name] for r in own) for name in ("asked", "known")}
        rows.append({"shots": n, "relation": "all", "chance": 0.05} | whole)
    for r in rows:
        r["accuracy"] = r["known"] / r["asked"]
        r |= {"lo": max(0.0, r["accuracy"] - 0.11), "hi": min(1.0, r["accuracy"] + 0.1)}
    return pd.DataFrame(rows)


def kinds_frame() -> pd.DataFrame:
    """What right predictions may rest on; of one relation none is right."""
    rows = [
        {"relation": r, "known": round(400 * s), "biased": 0.15 + 0.3 * (1 - s), "pure": 0.7 * s}
        for r, s in RELATIONS.items()
    ]
    frame = pd.DataFrame([*rows, {"relation": "all", "known": 1480, "biased": 0.25, "pure": 0.45}])
    frame.loc[frame["known"] == 0, ["biased", "pure"]] = np.nan
    return frame


TASKS = {
    "fit": 0.75,
    "held": 0.6,
    "kin": 0.25,
    "other": 0.5,
    "needle": 0.12,
    "induction": 0.04,
    "prose": 0.08,
}
MECHANISMS = ("fact layers 1", "fact layers 3", "fact window 5", "fact neurons", "retrieval heads")


def losses_frame(
    mechanisms: Sequence[str] = MECHANISMS, draws: int = 5, chance: Sequence[str] = (), seed: int = 0
) -> pd.DataFrame:
    """Effects of the double dissociation: heads cost the context, MLPs the facts."""
    rng = np.random.default_rng([seed, draws])
    rows: list[dict[str, Any]] = []
    for m, mechanism in enumerate(mechanisms):
        for task, high in TASKS.items():
            heads = mechanism == "retrieval heads"
            loss = ({"needle": 0.9, "induction": 0.7}.get(task, 0.05)) if heads else high * (0.5 + 0.1 * m)
            about = {
                "task": task, "mechanism": mechanism, "scope": "content", "metric": "probability",
                "status": "at chance" if task in chance else "ok", "n": 40,
            }  # fmt: skip
            rows.append(
                {**about, "condition": "cut", "loss": loss, "loss_lo": loss - 0.07, "loss_hi": loss + 0.08}
            )
            for draw in range(draws):
                beside = 0.1 * float(rng.random()) + 0.15 * loss
                rows.append({**about, "condition": "control", "draw": draw, "loss": beside})
    return pd.DataFrame(rows)


def gaps_frame() -> pd.DataFrame:
    """Pairs of tasks, both gaps with ends, and what they say."""
    rows: list[dict[str, Any]] = []
    for i, mechanism in enumerate(MECHANISMS[:4]):
        for fact in ("held", "other"):
            mlp, heads = 0.4 - 0.13 * i, 0.7
            verdict = "holds" if mlp > 0.1 else "context only"
            row: dict[str, Any] = {
                "mechanism": mechanism, "fact_task": fact, "context_task": "needle", "scope": "content",
                "metric": "probability", "primary": i == 1 and fact == "held", "verdict": verdict,
            }  # fmt: skip
            for name, value in (("mlp_gap", mlp), ("heads_gap", heads), ("interaction", mlp + heads)):
                row |= {name: value, f"{name}_lo": value - 0.1, f"{name}_hi": value + 0.09}
            rows.append(row)
    return pd.DataFrame(rows)


WAYS = (("rome", 1), ("rome together", 50), ("memit", 1), ("memit", 10), ("memit", 50), ("other fact", 1),
        ("random value", 1))  # fmt: skip


def scoreboard_frame(ways: Sequence[tuple[str, int]] = WAYS) -> pd.DataFrame:
    """Scores of ways of editing, before and after."""
    rows: list[dict[str, Any]] = []
    for i, (method, n) in enumerate(ways):
        control = method in ("other fact", "random value")
        for state in ("before", "after"):
            works = state == "after" and not control
            values = {"ES": 0.97 - 0.03 * i if works else 0.03, "PS": 0.8 - 0.05 * i if works else 0.06}
            values |= {"NS": 0.78 - 0.02 * i if works else 0.93, "S": 0.82 - 0.03 * i if works else 0.07}
            values |= {"ET": values["ES"] - 0.02, "PT": values["PS"] - 0.04, "NT": values["NS"] - 0.2}
            values |= {"EM": 0.8, "NS same": values["NS"] - 0.1, "NS other": values["NS"] + 0.05}
            for measure, value in values.items():
                half = 0.0 if value in (0, 1) else 0.06
                ends = {"ci_lo": max(0.0, value - half), "ci_hi": min(1.0, value + half)}
                about = {"method": method, "at_once": n, "state": state, "measure": measure, "n": 50}
                rows.append({**about, "value": value, **ends})
    frame = pd.DataFrame(rows)
    frame.loc[frame["measure"] == "S", ["ci_lo", "ci_hi"]] = np.nan
    return frame


def scan_frame(
    records: int = 12, layers: Sequence[int] = (2, 6, 10, 14, 18, 22), seed: int = 0
) -> pd.DataFrame:
    """Edits layer by layer: two paraphrases a record."""
    rng = np.random.default_rng([seed, records])
    rows: list[dict[str, Any]] = []
    for record in range(records):
        for layer in layers:
            for state in ("before", "after"):
                for kind, prompts in (("efficacy", 1), ("paraphrase", 2), ("neighbour", 2)):
                    for prompt in range(prompts):
                        value = (
                            float(np.tanh(rng.normal(0.8 - 0.04 * layer, 0.3))) if state == "after" else -0.8
                        )
                        about = {"record": f"fact {record}", "layer": layer, "kind": kind, "prompt": prompt}
                        rows.append(
                            {**about, "state": state, "magnitude": value, "success": float(value > 0)}
                        )
    return pd.DataFrame(rows)


def traces_frame(
    records: int = 12, layers: Sequence[int] = (2, 6, 10, 14, 18, 22), seed: int = 1
) -> pd.DataFrame:
    """Effects of a trace for the same facts and layers."""
    rng = np.random.default_rng([seed, records])
    return pd.DataFrame(
        {
            "record": f"fact {record}",
            "layer": layer,
            "effect": 0.3 * _bump(layer, 10, 4) + 0.05 * rng.normal(),
        }
        for record in range(records)
        for layer in layers
    )


def localisation_frame() -> pd.DataFrame:
    """What a trace explains of edit success."""
    return pd.DataFrame(
        {
            "kind": ["efficacy", "paraphrase", "neighbour"],
            "rho": [0.05, -0.11, 0.2],
            "within": [0.1, -0.2, 0.3],
            "within_n": 8,
            "r2_layer": [0.31, 0.28, 0.2],
            "gain": [0.004, 0.012, 0.01],
            "gain_lo": [0.001, 0.002, 0.003],
            "gain_hi": [0.05, 0.06, 0.07],
            "p": [0.41, 0.03, 0.25],
        }
    )


SETTINGS = ("closed", "elsewhere", "1:0", "2:0", "1:1 memory first", "1:1 counter first", "2:1 memory first",
            "1:2 counter first", "1:0 +3")  # fmt: skip


def ratios_frame(groups: Sequence[str] = ("",)) -> pd.DataFrame:
    """Whose answer is given by setting; nobody's in one group."""
    rows = []
    for g, group in enumerate(groups):
        for i, setting in enumerate(SETTINGS):
            memory = (0.95, 0.9, 0.15, 0.08, 0.4, 0.5, 0.3, 0.7, 0.2)[i] / (1 + 0.3 * g)
            other = 0.03 + 0.01 * i
            context = 1 - memory - other
            ratio = memory / (memory + context)
            ends = {"ci_lo": max(0.0, ratio - 0.08), "ci_hi": min(1.0, ratio + 0.07)}
            shares = {"f_memory": memory, "f_context": context, "f_other": other, "ratio": ratio}
            rows.append({"group": group, "setting": setting, "n": 96, **shares, **ends})
    return pd.DataFrame(rows)


def moves_frame(sizes: Sequence[int] = (1, 4, 8, 16), draws: int = 5, seed: int = 0) -> pd.DataFrame:
    """What moves the balance: context heads cut bring the memory back, matched others do little."""
    rng = np.random.default_rng([seed, draws])
    rows: list[dict[str, Any]] = []
    nan = float("nan")
    for side, sign in (("context", 1), ("memory", -1)):
        for family, factor, strength in (
            ("scale", 0.0, 0.8), ("scale", 0.25, 0.5), ("scale", 4.0, -0.3), ("cut", nan, 0.6),
        ):  # fmt: skip
            for k in sizes:
                value = sign * strength * (1 - float(np.exp(-k / 6))) * (1.0 if sign > 0 else 0.4)
                about = {"task": "conflict", "family": f"{family} {side}", "k": k, "factor": factor, "n": 96}
                for draw in range(-1, 2 * draws):
                    own = value if draw < 0 else 0.1 * value + 0.03 * float(rng.standard_normal())
                    row: dict[str, Any] = {
                        **about,
                        "control": "" if draw < 0 else ("layer", "norm")[draw % 2],
                    }
                    for name, scale in (("memory", 1.0), ("context", -1.0), ("margin", 6.0)):
                        row |= {f"d_{name}": scale * own, f"d_{name}_lo": scale * own - 0.08}
                        row[f"d_{name}_hi"] = scale * own + 0.07
                    rows.append(row)
    return pd.DataFrame(rows)


def context_heads_frame(layers: int = LAYERS, heads: int = 9, seed: int = 0) -> pd.DataFrame:
    """Heads of the context, of the memory, and of neither."""
    rng = np.random.default_rng([seed, layers])
    strong = {(12, 3): 2.1, (17, 0): 1.3, (21, 5): -1.7, (24, 8): -0.9}
    return pd.DataFrame(
        {
            "component": f"L{layer}H{head}",
            "layer": layer,
            "head": head,
            "cut": (value := strong.get((layer, head), 0.1 * float(rng.standard_normal()))),
            "cut_q": 0.001 if abs(value) > 0.5 else 0.6,
            "carries": ("context" if value > 0 else "memory") if abs(value) > 0.5 else "",
        }
        for layer in range(layers)
        for head in range(heads)
    )


PRIOR_TASKS = ("acronym", "counting", "shift_cipher")


def accuracy_frame(chance: Sequence[str] = ("shift_cipher",)) -> pd.DataFrame:
    """Accuracy by prior: likely answers are given more often."""
    rows: list[dict[str, Any]] = []
    for task in PRIOR_TASKS:
        for metric, low, guess in (("accuracy", 0.3, 0.0), ("choice", 0.5, 0.125), ("pair", 0.6, 0.5)):
            for i, prior in enumerate(("low", "middle", "high", "all")):
                value = low + 0.12 * min(i, 1.5)
                ends = {"value": value, "ci_lo": value - 0.09, "ci_hi": value + 0.1, "chance": guess}
                about = {"task": task, "metric": metric, "prior": prior, "n": 53}
                rows.append({**about, **ends, "status": "at chance" if task in chance else "ok"})
    return pd.DataFrame(rows)


def prior_layers_frame(
    tasks: Sequence[str] = PRIOR_TASKS[:2], layers: int = LAYERS, seed: int = 0
) -> pd.DataFrame:
    """Scores of layers: the prior comes in late, by the MLPs."""
    rng = np.random.default_rng([seed, layers])
    rows: list[dict[str, Any]] = []
    for task in tasks:
        for method, high in (
            ("added", 0.5), ("added_mlp", 0.55), ("added_attn", 0.15), ("lens", 0.6), ("probe", 0.4),
            ("probe_mlp", 0.3), ("probe_attn", 0.1),
        ):  # fmt: skip
            for layer in range(layers):
                score = high * _bump(layer, 0.85 * layers, 0.15 * layers) + 0.05 * float(
                    rng.standard_normal()
                )
                about = {"task": task, "method": method, "layer": layer, "score": score, "se": 0.08}
                rows.append({**about, "null_lo": -0.21, "null_hi": 0.22, "q": 0.01 if score > 0.3 else 0.5})
    return pd.DataFrame(rows)


def prefaces_frame() -> pd.DataFrame:
    """What prefaces change by prior, one row a name."""
    rows: list[dict[str, Any]] = []
    for task in PRIOR_TASKS[:2]:
        for preface, gain in (("do not rely", 0.06), ("control: care", -0.02), ("control: weather", -0.05)):
            for i, prior in enumerate(("low", "middle", "high", "all", "gap")):
                delta = gain * (1 - 0.4 * i)
                about = {"task": task, "preface": preface, "metric": "accuracy", "prior": prior}
                rows.append({**about, "delta": delta, "ci_lo": delta - 0.05, "ci_hi": delta + 0.06})
    return pd.DataFrame(rows)


def tuning_frame() -> pd.DataFrame:
    """What tuning changes by prior, several runs a kind."""
    rows: list[dict[str, Any]] = []
    for task in PRIOR_TASKS[:2]:
        for kind, runs, gain in (("chosen", 3, 0.12), ("random", 6, 0.07), ("all", 1, 0.2)):
            for run in range(runs):
                for i, prior in enumerate(("low", "middle", "high", "all")):
                    delta = gain - 0.02 * i + 0.01 * run
                    about = {"task": task, "kind": kind, "metric": "accuracy", "prior": prior}
                    rows.append({**about, "delta": delta, "ci_lo": delta - 0.05, "ci_hi": delta + 0.05})
    return pd.DataFrame(rows)
