"""What is replicated, what gives it away without the picture, and whether tests of whole sets notice."""

from __future__ import annotations

import numpy as np
import pandas as pd

from interp.studies.memorization.bench import BATCH, Bench, Role

AGAINST = ("control", "base")
"""What memorized prompts are told from: words of their own with many pictures, and ordinary prompts."""
MIXED = 10
"""In the mixture, one sample in so many is of a memorized prompt."""


def samples(bench: Bench, role: Role, guidance: float) -> pd.DataFrame:
    """A row a sample of every item, in pixels and in the encoder's space."""
    from interp.measure.memorization.extraction import extraction

    items = bench.items
    drawn = bench.draw(bench.subject(role), [i.prompt for i in items], bench.seeds, guidance)
    found = bench.extracted(drawn, items)
    encoded = extraction(drawn, items, bench.encoded_yardstick, images=bench.own_images)
    found["extracted_encoder"] = encoded["extracted"]
    # An oracle's items never were in its training, so `exposures` are those of the other training for both.
    own = {i.name: i.exposures for i in items}
    found["exposures"] = found["item"].map(own)
    return found.assign(seed=bench.seed, role=role, guidance=guidance)


def existence(rows: pd.DataFrame) -> pd.DataFrame:
    """Rates of each group, see `extraction.rates`."""
    from interp.measure.memorization.extraction import rates

    by = ("seed", "role", "guidance", "group", "exposures")
    return rates(rows, by=by, of=("extracted", "copied", "extracted_ratio", "extracted_encoder"))


def signals(bench: Bench, role: Role) -> pd.DataFrame:
    """What memorized, control and ordinary prompts give away, a row a prompt and sampling seed."""
    from interp.measure.memorization.detection import signals as measure

    memorized = [i for i in bench.items if i.group == "memorized"]
    ordinary = [text for text, _ in bench.ordinary[: max(10, len(memorized))]]
    asked = [(i.name, i.prompt, i.group) for i in (*memorized, *bench.sets["control"])]
    asked += [(f"base-{n:02d}", text, "base") for n, text in enumerate(ordinary)]
    with bench.stage(f"signals {bench.seed} {role}") as report:
        from interp.models.cache import quiet

        found = measure(
            bench.subject(role),
            [prompt for _, prompt, _ in asked],
            bench.seeds if len(bench.seeds) > 1 else (*bench.seeds, bench.seeds[0] + 1),
            steps=bench.spec.steps,
            guidance=max(bench.spec.guidance, 1.5),
            batch=BATCH,
            progress=report or quiet,
        ).table
    at = found.pop("item").to_numpy()
    found = found.rename(columns={"seed": "sample"})
    found.insert(0, "item", [asked[i][0] for i in at])
    found.insert(0, "group", [asked[i][2] for i in at])
    return found.assign(seed=bench.seed, role=role)


def detection(rows: pd.DataFrame, *, seed: int = 0) -> pd.DataFrame:
    """How well each signal tells memorized prompts from others: seed, role, signal, against, of `separation`."""
    from interp.measure.memorization.detection import SIGNALS
    from interp.measure.memorization.separation import separation

    out = []
    for (training, role), own in rows.groupby(["seed", "role"], sort=False):
        yes = own[own["group"] == "memorized"]
        for group in AGAINST:
            no = own[own["group"] == group]
            if no.empty:
                continue
            for signal, sign in SIGNALS.items():
                told = separation(
                    yes[signal].to_numpy(),
                    no[signal].to_numpy(),
                    clusters=(yes["item"].tolist(), no["item"].tolist()),
                    sign=sign,
                    seed=seed,
                )
                out.append({"seed": training, "role": role, "signal": signal, "against": group, **told})
    return pd.DataFrame(out)


def copying(bench: Bench) -> pd.DataFrame:
    """Whether AuthPct and C_T notice copies: of memorized and ordinary samples, a mixture, and held-out pictures."""
    import torch

    from interp.measure.memorization.authenticity import authentic, copy_test

    memorized = [i.prompt for i in bench.items if i.group == "memorized"]
    copies = bench.draw(bench.pipeline, memorized, bench.seeds).flatten(0, 1)
    asked = [text for text, _ in bench.ordinary]
    honest = bench.draw(bench.pipeline, asked, bench.seeds[:2]).flatten(0, 1)
    few = copies[:: max(1, len(copies) * MIXED // len(honest))][: max(1, len(honest) // MIXED)]
    sets = {
        "memorized": copies,
        "ordinary": honest,
        "mixed": torch.cat([honest[len(few) :], few]),
        "held-out": bench.new,
    }
    out = []
    for name, images in sets.items():
        # The training pictures of C_T's null are held-out ones, which cannot be compared with themselves.
        half = bench.new[::2] if name == "held-out" else bench.new
        images = images[1::2] if name == "held-out" else images
        told = copy_test(images, bench.train, half, cells=1, least=1, seed=bench.seed).value
        out.append(
            {
                "seed": bench.seed,
                "set": name,
                "extracted": float(bench.yardstick.copies(images).mean()),
                "authentic": float(authentic(images, bench.train).mean()),
                "c_t": told,
                "n": len(images),
            }
        )
    return pd.DataFrame(out)


def trained_exposures(bench: Bench, rows: pd.DataFrame) -> pd.DataFrame:
    """Graded items at the end of a training, as rows of `trajectory`; recall from `samples` at the first guidance."""
    from interp.measure.memorization.retention import held_out_loss

    groups = ("graded", "early", "memorized", "unseen")
    items = [i for i in bench.items if i.group in groups]
    errors = held_out_loss(bench.pipeline, items, draws=16)
    unseen = errors[[i.group == "unseen" for i in items]]
    own = rows[(rows["role"] == "model") & (rows["guidance"] == bench.spec.guidance)].groupby("item")
    recall, away = own["extracted"].mean(), own["own"].mean()
    shown = [
        {
            "part": 1.0,
            "shown": bench.data.length,
            "item": i.name,
            "group": i.group,
            "exposures": i.exposures,
            "planned": i.exposures,
            "recall": recall[i.name],
            "own": away[i.name],
            "loss": e,
            "recognized": float((unseen > e).mean() + 0.5 * (unseen == e).mean()),
        }
        for i, e in zip(items, errors, strict=True)
    ]
    return pd.DataFrame(shown).assign(seed=bench.seed)


def exposure_curves(rows: pd.DataFrame, *, seed: int = 0) -> pd.DataFrame:
    """Recognition and recall over exposures: seed, part, curve, exposures, measure, value, ci_lo, ci_hi, n.

    `recognition` is the mean share of unseen pictures with a larger error, 0.5 by chance. All trainings of one part of
    the way are taken together.
    """
    from interp.measure.stats import bootstrap_ci, proportion_ci

    out = []
    keys = ["part", "group", "planned"]
    for (part, group, planned), own in rows.groupby(keys, sort=True):
        items = (own["seed"].astype(str) + " " + own["item"]).tolist()
        for measure, column in (("recognition", "recognized"), ("recall", "recall")):
            values = own[column].to_numpy(float)
            flat = measure == "recall" or not np.ptp(values)
            low, high = proportion_ci(values, items) if flat else bootstrap_ci(values, items, seed=seed)
            out.append(
                {
                    "part": part,
                    "curve": group,
                    "exposures": planned,
                    "measure": measure,
                    "value": values.mean(),
                    "ci_lo": low,
                    "ci_hi": high,
                    "n": len(values),
                    "n_seeds": own["seed"].nunique(),
                }
            )
    return pd.DataFrame(out)
