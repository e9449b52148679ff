"""Memorization: pictures of the digits pipeline and sequences of language models, deleted and got back.

    python figures/memorization_study.py [--data figures/data/memorization_study] [--out figures/build]
    python figures/memorization_study.py --numbers
    python figures/memorization_study.py --readme
    python figures/memorization_study.py --export figures/data/memorization_study \\
        --memorization runs/memorization --injection runs/injection

Reads tables and nothing else: in the folder of data there is a folder for each of `interp study
memorization|injection`. What is not there is left out. `--readme` writes the numbers into the README beside the data,
which a test compares with it. `--export` copies what figures and numbers need of the tables, with spec and provenance,
out of the folders of the runs.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from memorization_numbers import numbers
from memorization_rows import (
    CONTROLS,
    SHARES,
    averaged,
    beside,
    dealt,
    edited,
    in_order,
    named,
    replicated,
    under_attack,
    work,
)
from memorization_text import slugged, text_figures
from study_script import RECORDS, main, read

from interp import plot
from interp.plot import theme
from interp.plot.text import count, joined

DATA = Path(__file__).parent / "data" / "memorization_study"

TABLES: dict[str, dict[str, tuple[str, ...]]] = {
    "memorization": {
        "subjects": (), "existence": (),
        "samples": ("seed", "role", "guidance", "item", "group", "split", "sample", "own", "extracted"),
        "signals": ("seed", "role", "group", "item", "sample", "first", "all", "one_step", "similarity", "spread"),
        "detection": (), "copying": (), "doses": (), "chosen": (), "edits": (), "contrasts": (), "overlap": (),
        "edit_items": ("seed", "edit", "set", "item", "group", "split", "value", "own"),
        "overlaps": ("seed", "role", "method", "share", "a", "b", "overlap", "independent", "draw"), "coverage": (),
        "attacks": ("seed", "condition", "group", "item", "before", "extracted", "steps", "work"),
        "tuning": (), "exposure_curves": (), "pictures": (), "costs": (), "findings": (),
    },
    "injection": {
        "injections": (), "recovery": (), "completeness": (), "memories": (), "doses": (), "chosen": (), "edits": (),
        "screen": ("subject", "name", "group", "prefix", "exact", "run", "hits"), "prefixes": (), "contrasts": (),
        "attacked": (), "work": (), "exposure_curves": (), "findings": (),
    },
}  # fmt: skip
"""Tables of each part that figures and numbers come from, and the columns of them that are kept; none: all."""

GROUPS = {
    "targeted": "A, located", "held_out": "B, held out", "control": "Control words", "unseen": "Never trained on",
}  # fmt: skip
CAPTIONS = {
    "targeted": "A replicated", "held_out": "B replicated", "targeted_own": "A distance", "retained": "Others kept",
    "control": "Controls", "alignment": "Right digit",
}  # fmt: skip
"""Measures as panels call them; A is what was located, B is held out."""

RULES = ("wanda reference", "wanda corrected", "wanda paired", "wanda prompts")
MASKS = (*RULES, "balanced_subnet", "contrastive")
JUDGED = RULES[:2]
PUBLISHED = RULES[0]
"""The rule whose controls are drawn; those of others are in the tables."""
CURVES = ("original", *JUDGED, "negation", "adversarial tuning", "oracle")
"""Conditions whose work is drawn."""
SHOWN = ("targeted", "held_out", "retained", "alignment")
"""Measures that are drawn over doses."""


def figures(data: Path = DATA) -> dict[str, go.Figure]:
    """Every figure that the tables allow, by its name."""
    parts = (picture_figures, exist_figures, dose_figures, edit_figures, share_figures, attack_figures,
             exposure_figures, text_figures)  # fmt: skip
    return {f"memorization-study-{name}": fig for part in parts for name, fig in part(data).items()}


def picture_figures(data: Path) -> dict[str, go.Figure]:
    """Originals, what the pipeline draws before and after edits, and what the attack gets back."""
    own = read(data, "memorization", "pictures")
    if own is None:
        return {}
    # In tables that were exported a picture is in 8-bit steps.
    image = [
        np.asarray(r.image, float).reshape(-1, r.height, r.width)
        / (255 if np.asarray(r.image).dtype == np.uint8 else 1)
        for r in own.itertuples()
    ]
    rows = own.assign(image=image, item=own["item"].str.replace("memorized-", ""))
    first = rows["state"] == "original"
    rows["replicated"] = rows["replicated"].astype(object).mask(first, None)
    rows["distance"] = rows["distance"].mask(first)
    states = ["original", "before"]
    for edit in (*JUDGED, "negation", "adversarial tuning", "oracle"):
        states += [edit, f"{edit}, attacked"]
    have = set(rows["state"])
    rows["state"] = rows["state"].map(drawn)
    lines = [drawn(s) for s in states if s in have]
    out = {}
    for split, name, told in (
        ("locate", "", "A: edits were located on them"),
        ("test", "-held-out", "B: held out"),
    ):
        part = rows[rows["split"] == split]
        if len(part):
            kept = [s for s in lines if (part["state"] == s).any()]
            out[f"images{name}"] = plot.image_grid(part, states=kept, note=told)
    return out


def drawn(state: str) -> str:
    """A line of pictures, as it is called."""
    edit, _, attacked = state.partition(", ")
    if attacked:
        return f"{named(edit)}, attacked"
    return edit if edit in ("original", "before", "oracle") else named(edit)


def exist_figures(data: Path) -> dict[str, go.Figure]:
    """What is replicated, and what gives it away."""
    out: dict[str, go.Figure] = {}
    samples, signals, detection = (read(data, "memorization", n) for n in ("samples", "signals", "detection"))
    if samples is not None:
        rows = replicated(samples)
        rows["panel"] = [f"Guidance {g:g}" for g in rows["guidance"]]
        rows["role"] = rows["role"].replace({"oracle": "oracle, trained without them"})
        out["existence"] = plot.value_strips(
            rows.assign(group=rows["group"].map(lambda g: WORDS.get(g, g))), "group", panel="panel", mark="role",
            controls=["oracle, trained without them"], title="Which items the pipeline replicates", percent=True,
            note=joined([trainings(rows), "nearer to its own picture than 99% of held-out pictures are to any"]),
            x="samples that are copies",
        )  # fmt: skip
    if signals is not None:
        own = signals[signals["role"] == "model"]
        out["signals"] = plot.signal_violins(own)
        told = None
        if detection is not None and own["seed"].nunique() == 1:
            told = detection[detection["role"] == "model"]
        out["detection"] = plot.detection_curves(own, told)
    return out


WORDS = {
    "memorized": "memorized pictures", "control": "control words", "varied": "one picture, many captions",
    "template": "template", "graded": "shown 1 to 300 times", "early": "shown early only", "unseen": "never trained on",
}  # fmt: skip
"""Groups of items."""


def trainings(rows: pd.DataFrame) -> str:
    """How many trainings there are, where there are several."""
    n = int(rows["n_seeds"].max()) if "n_seeds" in rows else 1
    return count(n, "training") if n > 1 else ""


def dose_figures(data: Path) -> dict[str, go.Figure]:
    """What edits delete and keep over their doses, masks of equal budget apart from the others."""
    doses = read(data, "memorization", "doses")
    if doses is None:
        return {}
    own = beside(doses[doses["measure"].isin(SHOWN) & doses["edit"].notna()], PUBLISHED)
    own = own.sort_values("measure", key=lambda m: m.map(SHOWN.index), kind="stable")
    steps = [e for e in dict.fromkeys(own["edit"]) if ", tau " in e]
    others = [e for e in dict.fromkeys(own["edit"]) if e not in (*MASKS, *CONTROLS, *steps, "none")]
    out = {}
    whole = [rule for rule in JUDGED if any(e.startswith(f"{rule},") for e in steps)]
    for name, edits, by in (
        ("", MASKS, "dose"), ("-others", tuple(others), "norm"), ("-steps", (*whole, *steps), "dose"),
    ):  # fmt: skip
        if not own["edit"].isin(list(edits)).any():
            continue
        rows = own[own["edit"].isin([*edits, *CONTROLS, "none"])].drop_duplicates(["edit", "measure", by])
        first = [e for e in edits if (rows["edit"] == e).any()][:1]
        out[f"doses{name}"] = plot.dose_retention(
            rows.assign(edit=[e if e == "none" else named(e) for e in rows["edit"]]), captions=CAPTIONS, by=by,
            against=("held_out", "alignment"), bands=[named(e) for e in (*first, "ordinary")],
        )  # fmt: skip
    return out


def edit_figures(data: Path) -> dict[str, go.Figure]:
    """Every edit at its chosen dose, and what it does beyond masks of equal budget."""
    out: dict[str, go.Figure] = {}
    edits, items, contrasts, samples = (
        read(data, "memorization", n) for n in ("edits", "edit_items", "contrasts", "samples")
    )
    if edits is not None:
        rows = edited(beside(edits, PUBLISHED), None if items is None else beside(items, PUBLISHED))
        rows = in_order(rows[rows["measure"].isin(CAPTIONS)])
        rows = rows.sort_values("measure", key=lambda m: m.map(list(CAPTIONS).index), kind="stable")
        before = rows[rows["edit"] == "none"].set_index("measure")["value"]
        levels = {m: {"before": float(v)} for m, v in before.items()}
        for measure, value in oracle(samples).items():
            levels.setdefault(measure, {})["oracle"] = value
        subjects = read(data, "memorization", "subjects")
        if subjects is not None and "targeted_own" in levels:
            levels["targeted_own"]["nearer: a copy"] = float(subjects["threshold"].mean())
        after = in_order(rows[rows["edit"] != "none"])
        after = after.sort_values("measure", key=lambda m: m.map(list(CAPTIONS).index), kind="stable")
        out["edits"] = plot.value_strips(
            after.assign(edit=after["edit"].map(named)), "edit", panel="measure", group="kind",
            controls=[named(c) for c in CONTROLS], levels=levels, percent=SHARES, captions=CAPTIONS,
            x={m: "share" if m in SHARES else "to the own picture" for m in CAPTIONS},
            title="What each edit deletes, and what it keeps",
            note=joined([
                trainings(rows), "doses chosen on other samples of A; grey: controls (masks: of the published rule)",
            ]),
        )  # fmt: skip
    if contrasts is not None:
        own = contrasts[
            contrasts["against"].isin(CONTROLS)
            & contrasts["measure"].isin(["targeted", "held_out"])
            & (contrasts["seed"] < 0)
        ]
        if len(own):
            own = own.sort_values("measure", key=lambda m: m.map(list(CAPTIONS).index), kind="stable")
            out["contrasts"] = plot.value_strips(
                own.assign(edit=own["edit"].map(named), against=own["against"].map(named)), "edit", panel="measure",
                mark="against", levels={m: {"no difference": 0.0} for m in own["measure"]}, captions=CAPTIONS,
                title="What each edit deletes beyond its controls", percent=True,
                note=joined([
                    trainings(own), "controls have the dose of their edit; left of zero: the edit deletes more",
                ]),
                x="replication, less that under the control",
                ranges=dict.fromkeys(own["measure"], (-1.1, 1.1)),
            )  # fmt: skip
    return out


def oracle(samples: pd.DataFrame | None) -> dict[str, float]:
    """MR of A and B by the oracle, and its distance to A, at the first guidance."""
    if samples is None:
        return {}
    own = samples[(samples["role"] == "oracle") & (samples["guidance"] == samples["guidance"].iloc[0])]
    names = {"locate": "targeted", "test": "held_out"}
    out = {names[s]: float(g["extracted"].mean()) for s, g in own.groupby("split") if s in names}
    if "targeted" in out:
        out["targeted_own"] = float(own[own["split"] == "locate"]["own"].mean())
    return out


def share_figures(data: Path) -> dict[str, go.Figure]:
    """What A and B share beside deals, and how much of one item others cover."""
    out: dict[str, go.Figure] = {}
    overlaps, coverage = (read(data, "memorization", n) for n in ("overlaps", "coverage"))
    if overlaps is not None:
        rows = dealt(overlaps)
        rows["line"] = [
            named(m) + ("" if np.isnan(s) else f", {100 * s:g}% of a row")
            for m, s in zip(rows["method"], rows["share"], strict=True)
        ]
        names = {"A": "memorized A", "B": "memorized B", "controls": "control words"}
        held, never = rows[rows["role"] == "model"], rows[rows["role"] == "oracle"]
        for (line, method, share), own in held.groupby(["line", "method", "share"], sort=False, dropna=False):
            slug = slugged(method, *([] if np.isnan(share) else [f"{100 * share:g}"]))
            out[f"overlap-{slug}"] = plot.memory_overlap(
                own.replace({"a": names, "b": names}), measure=f"overlap, {line}"
            )
        pair = held["a"].map(names) + " and " + held["b"].map(names)
        held = held.assign(pair=pair, ci_lo=np.nan, ci_hi=np.nan)
        never = never.assign(pair=never["a"].map(names) + " and " + never["b"].map(names))
        sets = held.assign(mark="the sets")
        same = never.assign(mark="the same of the oracle", ci_lo=np.nan, ci_hi=np.nan)
        deals = held.assign(
            mark="deals, middle 95%", value=(held["null_lo"] + held["null_hi"]) / 2, ci_lo=held["null_lo"],
            ci_hi=held["null_hi"],
        )  # fmt: skip
        chance = held.assign(mark="drawn independently", value=held["independent"])
        out["overlap"] = plot.value_strips(
            pd.concat([sets, same, deals, chance]), "line", panel="pair", mark="mark",
            controls=["deals, middle 95%", "drawn independently"], title="Do memorized sets share weights?",
            note="deals: sets of equal size dealt from all items, an interval of the null; IoU of masks, or mean "
            "squared cosine of principal angles", x="overlap",
            ranges=dict.fromkeys(pair, (-0.03, 1.03)),
        )  # fmt: skip
    if coverage is not None:
        out["coverage"] = covering(coverage)
    return out


def covering(coverage: pd.DataFrame) -> go.Figure:
    """How much of an item's mask the union of others covers, or how many prompts are blocked by how many units."""
    rows = averaged(coverage, ("method", "k", "kind"), ("covered", "lo", "hi", "chance"))
    rows = rows.rename(columns={"lo": "ci_lo", "hi": "ci_hi"})
    kinds = {"item": "a memorized item left out", "control": "a control word"}
    chance = rows[(rows["kind"] == "item") & rows["chance"].notna()]
    chance = chance.assign(kind="drawn at random", covered=chance["chance"], ci_lo=np.nan, ci_hi=np.nan)
    return plot.value_curves(
        pd.concat([rows.replace({"kind": kinds}), chance]), "k", "covered", panel="method", line="kind",
        controls=["drawn at random"], title="How much others cover", percent=True, y_range=(-0.04, 1.04),
        note="bands: middle 95% of orders, no interval of a mean", x_title="items united, or units blocked",
        y="covered", colors={kinds["item"]: theme.VERMILLION, kinds["control"]: theme.BLUE},
        captions={"wanda": "Wanda contrast: an item's mask by the union of others'",
                  "nemo": "NeMo: prompts of B blocked by units of A"},
    )  # fmt: skip


def attack_figures(data: Path) -> dict[str, go.Figure]:
    """What the attack gets back under each condition, and how much work that takes."""
    attacks = read(data, "memorization", "attacks")
    if attacks is None:
        return {}
    out: dict[str, go.Figure] = {}
    rows = in_order(under_attack(attacks), "condition")
    rows = rows[rows["metric"].isin(list(MARKS))]
    rows = rows.sort_values("group", key=lambda g: g.map(list(GROUPS).index), kind="stable")
    out["attacked"] = plot.value_strips(
        rows.assign(condition=rows["condition"].map(named), mark=rows["metric"].map(MARKS)), "condition",
        panel="group", mark="mark", group="kind", controls=[MARKS["before"]], captions=GROUPS, percent=True,
        title="Are deleted pictures got back?", x="pictures extracted",
        note=joined([trainings(rows), "any start and restart; never trained on: what the attack makes up"]),
        colors={MARKS["attacked_any"]: theme.VERMILLION},
    )  # fmt: skip
    shown = [c for c in CURVES if (attacks["condition"] == c).any()]
    curves = work(attacks[attacks["condition"].isin(shown)])
    curves = curves.sort_values("condition", key=lambda c: c.map(shown.index), kind="stable")
    curves = curves.sort_values("group", key=lambda g: g.map(list(GROUPS).index), kind="stable")
    out["work"] = plot.value_curves(
        curves.assign(condition=curves["condition"].map(named)), "steps", panel="group", line="condition",
        controls=["oracle"], colors={"original": theme.INK}, captions=GROUPS, percent=True, y_range=(-0.04, 1.04),
        title="Work to extraction", note="share of pictures that some search has extracted by then",
        x_title="updates of the embedding", y="extracted",
    )  # fmt: skip
    return out


MARKS = {"before": "by the prompt", "attacked_any": "under attack"}


def exposure_figures(data: Path) -> dict[str, go.Figure]:
    """What exposures leave at the end of a training, and on its way."""
    own = read(data, "memorization", "exposure_curves")
    if own is None:
        return {}
    out: dict[str, go.Figure] = {}
    # What was never shown is where every curve begins.
    none = own[own["curve"] == "unseen"]
    shown = [c for c in ("graded", "early") if (own["curve"] == c).any()]
    whole = pd.concat(f for c in shown for f in (none.assign(curve=c), own[own["curve"] == c]))
    end = whole[np.isclose(whole["part"], 1.0)]
    if len(end):
        curves = {"graded": "shown all along", "early": "shown early only"}
        out["exposures"] = plot.exposure_curves(end.replace({"curve": curves}))
    way = whole[whole["curve"] == "graded"]
    if way["part"].nunique() > 1:
        way = way.assign(curve=[f"after {100 * p:.0f}% of the training" for p in way["part"]])
        out["exposures-on-the-way"] = plot.exposure_curves(way)
    return out


def export(runs: Mapping[str, Path], to: Path) -> list[Path]:
    """Copy what figures and numbers are made of, with spec and provenance, part by part."""
    out = []
    for part, folder in runs.items():
        (to / part).mkdir(parents=True, exist_ok=True)
        for name, columns in TABLES[part].items():
            frame = read(folder.parent, folder.name, name)
            if frame is None:
                continue
            target = to / part / f"{name}.parquet"
            slim(frame[[c for c in columns or frame.columns if c in frame]]).to_parquet(
                target, compression="zstd"
            )
            out.append(target)
        out += [Path(shutil.copy2(folder / n, to / part / n)) for n in RECORDS if (folder / n).is_file()]
    return out


def slim(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with pictures in 8-bit steps, which is what is drawn of them."""
    if "image" not in frame:
        return frame
    return frame.assign(image=[np.rint(255 * np.clip(i, 0, 1)).astype(np.uint8) for i in frame["image"]])


if __name__ == "__main__":
    main(__doc__, DATA, tuple(TABLES), figures, numbers, export)
