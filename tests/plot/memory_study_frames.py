"""Tables of the study of memorization in pipelines, made up."""

from __future__ import annotations

import numpy as np
import pandas as pd

from tests.plot import memory_frames as f

LOCATED = ("wanda reference", "wanda corrected", "activation", "nemo")
BESIDE = (
    "random 0 (wanda reference)",
    "random 1 (wanda reference)",
    "ordinary (wanda reference)",
    "random 0 (nemo)",
)
"""Controls, drawn once or often."""
EDITS = (*LOCATED, *BESIDE)
TRAINED = ("negation", "adversarial tuning")
CONDITIONS = ("original", "wanda reference", "wanda corrected", "nemo", *TRAINED, "oracle")
MEASURES = ("targeted", "held_out", "retained", "control", "alignment", "frechet", "loss")
SIDE = 4


def ended(v: float, spread: float = 0.1) -> dict[str, float]:
    """A value with an interval."""
    return {"value": v, "ci_lo": max(0.0, v - spread), "ci_hi": min(1.0, v + spread)}


def memorization(seeds: int = 1) -> dict[str, pd.DataFrame]:
    """Tables of `interp study memorization`."""
    trainings = range(seeds)
    return {
        "subjects": subjects(trainings), "samples": samples(trainings), "signals": f.signals_frame(seeds=seeds),
        "detection": detection(trainings), "copying": copying(trainings), "doses": doses(), "chosen": chosen(),
        "edits": edits(trainings), "costs": costs(trainings), "edit_items": edit_items(trainings),
        "contrasts": contrasts(),
        "overlap": overlap(trainings), "overlaps": overlaps(trainings), "coverage": coverage(trainings),
        "attacks": attacks(trainings), "tuning": tuning(), "exposure_curves": exposures(), "pictures": pictures(),
        "findings": findings(),
    }  # fmt: skip


def subjects(trainings: range) -> pd.DataFrame:
    return pd.DataFrame([
        {"seed": s, "role": role, "name": "digits", "fingerprint": f"{s}{role}", "train_images": 1400, "held_out": 359,
         "threshold": 1.2, "threshold_encoder": 0.3, "judge": 0.964}
        for s in trainings for role in ("model", "oracle")
    ])  # fmt: skip


def samples(trainings: range) -> pd.DataFrame:
    """Memorized items are replicated by the model in three of four samples, by the oracle never."""
    rows = []
    for s in trainings:
        for role in ("model", "oracle"):
            for guidance in (1.0, 1.5):
                for group, split, n in (
                    ("memorized", "locate", 4),
                    ("memorized", "test", 4),
                    ("control", "", 3),
                ):
                    for i in range(n):
                        for k in range(4):
                            got = role == "model" and group == "memorized" and k < 3
                            rows.append({
                                "seed": s, "role": role, "guidance": guidance, "item": f"{group}-{split}{i}",
                                "group": group, "split": split, "sample": k, "own": 0.5, "extracted": got,
                                "extracted_encoder": got,
                            })  # fmt: skip
    return pd.DataFrame(rows)


def detection(trainings: range) -> pd.DataFrame:
    rows = []
    for s in trainings:
        for role in ("model", "oracle"):
            for against in ("control", "base"):
                for k, signal in enumerate(("first", "all", "one_step", "similarity", "spread")):
                    auc = (0.99 if role == "model" else 0.5) - 0.1 * (signal == "one_step") - 0.01 * s
                    rows.append({
                        "seed": s, "role": role, "signal": signal, "against": against, "auc": auc, "auc_lo": auc - 0.04,
                        "auc_hi": min(1.0, auc + 0.01), "tpr": 0.9 - 0.1 * k, "tpr_lo": 0.3, "tpr_hi": 0.95,
                        "threshold": 1.0, "n_positive": 24, "n_negative": 24,
                    })  # fmt: skip
    return pd.DataFrame(rows)


def copying(trainings: range) -> pd.DataFrame:
    told = {"memorized": (0.9, 0.02, -4.2), "ordinary": (0.01, 0.8, 7.8), "held-out": (0.01, 0.45, -0.87)}
    return pd.DataFrame([
        {"seed": s, "set": name, "extracted": e, "authentic": a, "c_t": c, "n": 40}
        for s in trainings for name, (e, a, c) in told.items()
    ])  # fmt: skip


def measured(edit: str, measure: str, dose: float = 0.1) -> float:
    """What an edit leaves: of what it should delete, less the larger the dose."""
    kind = edit.split(" (")[0].split()[0]
    strength = {"none": 0.0, "random": 0.0, "ordinary": 3.0, "nemo": 4.0}.get(kind, 9.0)
    return {
        "targeted": max(0.0, 0.98 - strength * dose), "held_out": max(0.0, 0.97 - 0.7 * strength * dose),
        "retained": 0.8 - dose, "control": 0.0, "alignment": 0.95 - dose, "frechet": 1.0 + dose, "loss": 0.134 + dose,
    }[measure]  # fmt: skip


def doses() -> pd.DataFrame:
    rows = []
    for edit in ("none", *EDITS, "wanda reference, tau 1"):
        if edit == "random 1 (wanda reference)":
            continue  # one draw is enough of a curve
        for dose in (0.0,) if edit == "none" else (0.01, 0.05, 0.1):
            for measure in MEASURES:
                told = ended(measured(edit, measure, dose))
                rows.append({
                    "seed": 0, "edit": edit, "family": "none" if edit == "none" else "located",
                    "control": edit in BESIDE, "dose": dose, "asked": dose, "norm": 10 * dose,
                    "measure": measure, "n": 10, **told,
                })  # fmt: skip
    return pd.DataFrame(rows)


def chosen() -> pd.DataFrame:
    return pd.DataFrame({
        "edit": LOCATED, "asked": 0.1, "dose": 0.1, "norm": 1.0, "targeted": [0.08, 0.08, 0.08, 0.58],
        "erases": [True, True, True, False],
    })  # fmt: skip


def edits(trainings: range) -> pd.DataFrame:
    rows = []
    for s in trainings:
        for edit in ("none", *EDITS, *TRAINED):
            for measure in MEASURES:
                ends: dict[str, float] = ended(measured(edit, measure))
                if measure == "frechet":
                    ends |= {"ci_lo": np.nan, "ci_hi": np.nan}
                rows.append({
                    "seed": s, "edit": edit, "dose": 0.0 if edit == "none" else 0.1, "norm": 2.5, "measure": measure,
                    "n": 10, **ends,
                })  # fmt: skip
    return pd.DataFrame(rows)


def costs(trainings: range) -> pd.DataFrame:
    return pd.DataFrame([
        {"seed": s, "edit": edit, "rows": (2040 + 20 * s) * (edit == "nemo"), "seconds": 12.4 * (edit == "nemo")}
        for s in trainings for edit in (*EDITS, *TRAINED)
    ])  # fmt: skip


def edit_items(trainings: range) -> pd.DataFrame:
    """Of the second training each item has a value of 1, whatever the edit."""
    rows = []
    for s in trainings:
        for edit in ("none", *EDITS, *TRAINED):
            for measure in MEASURES:
                if measure != "frechet":
                    rows += [
                        {"seed": s, "edit": edit, "set": measure, "item": f"{measure}-{i}", "group": "memorized",
                         "split": "", "value": 1.0 if s else float(i < 2), "own": 0.5 + 0.1 * i + s}
                        for i in range(4)
                    ]  # fmt: skip
    return pd.DataFrame(rows)


def contrasts() -> pd.DataFrame:
    rows = []
    for edit in ("wanda reference", "nemo"):
        for against in ("none", "random", "ordinary"):
            for measure in ("targeted", "held_out", "alignment"):
                v = measured(edit, measure) - measured(against, measure)
                # Each training has a row of its own, which is not drawn.
                rows += [
                    {"edit": edit, "against": against, "measure": measure, "seed": seed, "value": v * (seed < 0),
                     "ci_lo": v - 0.2, "ci_hi": v + 0.2, "p": 0.01, "n": 10, "n_seeds": 1}
                    for seed in (-1, 0)
                ]  # fmt: skip
    return pd.DataFrame(rows)


def overlap(trainings: range) -> pd.DataFrame:
    return pd.DataFrame([
        {"seed": s, "role": role, "method": method, "share": share, "statistic": statistic, "value": 0.21, "mean": 0.0,
         "lo": -0.05, "hi": 0.06, "p": 0.02 if role == "model" else 0.5, "draws": 49, "n_items": 23}
        for s in trainings for role in ("model", "oracle")
        for method, share in (("wanda reference", 0.01), ("subspace", np.nan))
        for statistic in ("overlap", "excess")
    ])  # fmt: skip


def overlaps(trainings: range, draws: int = 49) -> pd.DataFrame:
    """A and B share .55 in the model, and other pairs .3; deals share .1 to .4."""
    rows = []
    for s, role in ((s, role) for s in trainings for role in ("model", "oracle")):
        for method, share in (("wanda reference", 0.01), ("subspace", np.nan)):
            for a, b in (("A", "B"), ("A", "controls"), ("B", "controls")):
                for draw in range(-1, draws):
                    held = role == "model" and b == "B"
                    v = 0.1 + 0.3 * draw / (draws - 1) if draw >= 0 else 0.55 if held else 0.3
                    rows.append({
                        "seed": s, "role": role, "method": method, "share": share, "a": a, "b": b, "overlap": v,
                        "independent": 0.05, "draw": draw,
                    })  # fmt: skip
    return pd.DataFrame(rows)


def coverage(trainings: range) -> pd.DataFrame:
    rows = []
    for s in trainings:
        for method, kinds in (("wanda", ("item", "control")), ("nemo", ("item",))):
            for k in (1, 2, 4, 8):
                for kind in kinds:
                    rows.append({
                        "seed": s, "method": method, "k": k, "kind": kind, "covered": 0.1 * k, "lo": 0.05 * k,
                        "hi": 0.12 * k, "chance": 0.02 * k if method == "wanda" else np.nan, "n": 10,
                    })  # fmt: skip
    return pd.DataFrame(rows)


def attacks(trainings: range) -> pd.DataFrame:
    """Two searches an item: the second finds all of A but in the oracle and after fine-tuning, at 10 steps an item."""
    rows = []
    for s in trainings:
        for condition in CONDITIONS:
            for group in ("targeted", "held_out", "control", "unseen"):
                for i in range(4):
                    for restart in range(2):
                        held = condition not in ("oracle", "adversarial tuning") and group in (
                            "targeted",
                            "held_out",
                        )
                        got = held and restart == 1
                        rows.append({
                            "seed": s, "condition": condition, "group": group, "item": f"{group}-{i}",
                            "before": 0.75 if condition == "original" and held else 0.0, "extracted": float(got),
                            "steps": 10.0 * (i + 1) if got else np.nan, "work": 80.0,
                        })  # fmt: skip
    return pd.DataFrame(rows)


def tuning() -> pd.DataFrame:
    return pd.DataFrame(
        {"seed": 0, "round": [0, 1, 2], "attacked": [0.05, 0.08, 0.1], "surrogate": 0.1, "keep": 0.13}
    )


def exposures() -> pd.DataFrame:
    rows = []
    for part in (0.5, 1.0):
        for curve, counts in (
            ("graded", (1, 10, 100)),
            ("early", (10, 100)),
            ("memorized", (70,)),
            ("unseen", (0,)),
        ):
            for measure in ("recognition", "recall"):
                rows += [
                    {"part": part, "curve": curve, "exposures": n, "measure": measure, "n": 4, "n_seeds": 1,
                     **ended(part * n / (n + 30))}
                    for n in counts
                ]  # fmt: skip
    return pd.DataFrame(rows)


def pictures() -> pd.DataFrame:
    """Each state of each item has a grey of its own."""
    states = ["original", "before", "original, attacked"]
    states += [n for e in ("wanda corrected", "adversarial tuning", "oracle") for n in (e, f"{e}, attacked")]
    rows = []
    for split, names in (("locate", ("memorized-00", "memorized-01")), ("test", ("memorized-10",))):
        for i, item in enumerate(names):
            for j, state in enumerate(states):
                rows.append({
                    "seed": 0, "item": item, "group": "memorized", "split": split, "state": state,
                    "image": [round((10 * i + j) / 255, 4)] * SIDE**2, "height": SIDE, "width": SIDE,
                    "distance": 0.1 * j, "replicated": j % 2 == 0,
                })  # fmt: skip
    return pd.DataFrame(rows)


def findings() -> pd.DataFrame:
    told = {
        "finding": ["memorized items replicate", "the deletion survives the attack"],
        "source": "this toolkit",
    }
    told |= {"statistic": "MR", "value": [0.9, 0.7], "ci_lo": [0.8, 0.5], "ci_hi": [0.95, 0.9]}
    return pd.DataFrame(told | {"verdict": ["holds", "does not"], "rule": "r", "n": [20, 10], "n_seeds": 1})
