"""What is replicated, what gives it away without the picture, and whether tests of whole sets notice."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from interp.studies.memorization.bench import BATCH, Bench, Role

if TYPE_CHECKING:
    import torch

AGAINST = ("control", "base")
"""What memorized prompts are told from: words of their own with many pictures, and ordinary prompts."""
MIXED = 10
"""In a mixture, one sample in so many is of a memorized prompt."""
DRAWN = 40
"""Sets that are drawn of each kind."""
CELLS = 3
"""Of C_T, as the reference has them."""


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
    """Whether AuthPct and C_T notice copies: of whole sets, and of sets that are drawn again and again.

    Half of the ordinary samples, drawn `DRAWN` times (`honest`), say how far C_T scatters by itself; the same with one
    in ten replaced by a copy (`mixed`) is what it would have to notice.
    """
    import torch

    from interp.tasks.base import stable_seed

    memorized = [i.prompt for i in bench.items if i.group == "memorized"]
    copies = bench.draw(bench.pipeline, memorized, bench.seeds).flatten(0, 1)
    asked = [text for text, _ in bench.ordinary]
    ordinary = bench.draw(bench.pipeline, asked, bench.seeds).flatten(0, 1)
    size = len(ordinary) // 2
    few = size // MIXED
    sets = [("memorized", copies), ("ordinary", ordinary), ("held-out", bench.new)]
    rng = np.random.default_rng(stable_seed("copying", bench.spec.seed, bench.seed))
    for _ in range(DRAWN):
        own = ordinary[rng.choice(len(ordinary), size, replace=False)]
        some = copies[rng.choice(len(copies), few, replace=False)]
        sets += [("honest", own), ("mixed", torch.cat([own[few:], some]))]
    return pd.DataFrame([{"seed": bench.seed, "set": name, **_noticed(bench, name, x)} for name, x in sets])


def _noticed(bench: Bench, name: str, images: torch.Tensor) -> dict[str, float]:
    """What tests of a whole set say of it."""
    from interp.measure.memorization.authenticity import authentic, copy_test

    # Held-out pictures cannot be compared with themselves.
    half = bench.new[::2] if name == "held-out" else bench.new
    images = images[1::2] if name == "held-out" else images
    return {
        "extracted": float(bench.yardstick.copies(images).mean()),
        "authentic": float(authentic(images, bench.train).mean()),
        "c_t": copy_test(images, bench.train, half, cells=CELLS, least=1, seed=bench.seed).value,
        "n": len(images),
    }


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
