"""What the tables of the memorization study say, in Markdown: `memorization_study.py --numbers` and `--readme`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from facts_numbers import ends, table
from memorization_rows import (
    CONTROLS,
    averaged,
    dealt,
    edited,
    in_order,
    named,
    pooled,
    replicated,
    under_attack,
)
from memorization_tables import cell, curves, told, wide
from memorization_text_numbers import text_numbers
from study_script import read

from interp.plot.text import listed, number, percent

WORDS = {
    "memorized": "memorized pictures", "control": "control words, many pictures each",
    "varied": "one picture, many captions", "template": "template", "graded": "graded exposures",
    "early": "shown early only", "unseen": "never trained on",
}  # fmt: skip
"""Groups of items."""
SIGNALS = {
    "first": "noise difference, first step", "all": "noise difference, all steps", "one_step": "one step",
    "similarity": "alike over seeds", "spread": "spread over seeds",
}  # fmt: skip
MEASURES = (
    "targeted",
    "held_out",
    "targeted_own",
    "held_out_own",
    "retained",
    "control",
    "alignment",
    "frechet",
    "loss",
)
GROUPS = ("targeted", "held_out", "control", "unseen")


def numbers(data: Path) -> str:
    """What the tables say, as the README beside the data has it."""
    blocks = (
        _subjects, _exists, _detected, _noticed, _edited, _beyond, _shared, _covered, _attacked, _tuned, _exposed,
        _findings, text_numbers,
    )  # fmt: skip
    return "\n\n".join(text for block in blocks if (text := block(data)))


def _subjects(data: Path) -> str:
    own = read(data, "memorization", "subjects")
    if own is None:
        return ""
    first = own.iloc[0]
    return (
        f"Trainings: {own['seed'].nunique()} of the pipeline and of its oracle, {int(first['train_images']):,} "
        f"different pictures; {int(first['held_out']):,} held-out pictures set the threshold. The classifier tells "
        f"{percent(own['judge'].mean())} of held-out digits."
    )


def _exists(data: Path) -> str:
    samples = read(data, "memorization", "samples")
    if samples is None:
        return ""
    rows = replicated(samples)
    rows = rows.assign(
        group=rows["group"].map(lambda g: WORDS.get(g, g)),
        at=[f"{r}, {g:g}" for r, g in zip(rows["role"], rows["guidance"], strict=True)],
    )
    columns = sorted(dict.fromkeys(rows["at"]), key=lambda c: c.startswith("oracle"))
    return wide(
        rows,
        "group",
        "at",
        columns,
        ["MR: share of samples that copy their item", *(f"{c}" for c in columns)],
    )


def _detected(data: Path) -> str:
    own = read(data, "memorization", "detection")
    if own is None:
        return ""
    rows = []
    for signal in dict.fromkeys(own["signal"]):
        cells = []
        for against in ("control", "base"):
            some = own[(own["signal"] == signal) & (own["against"] == against) & (own["role"] == "model")]
            if some.empty:
                cells += ["", ""]
                continue
            low = some.sort_values("auc").iloc[0]
            cells += [
                ends(low["auc"], low["auc_lo"], low["auc_hi"]),
                ends(low["tpr"], low["tpr_lo"], low["tpr_hi"]),
            ]
        rows.append([SIGNALS.get(signal, str(signal)), *cells])
    several = ", in the training where it does worst" if own["seed"].nunique() > 1 else ""
    return table(
        [f"signal of memorized prompts{several}", "AUC, control words", "found at 1 % false alarms",
         "AUC, ordinary prompts", "found at 1 % false alarms"], rows,
    )  # fmt: skip


def _noticed(data: Path) -> str:
    own = read(data, "memorization", "copying")
    if own is None:
        return ""
    means = averaged(own, ("set",), ("extracted", "authentic", "c_t"))
    return table(
        [
            "tests of whole sets",
            "samples that copy a training picture",
            "AuthPct",
            "C_T (below zero: copying)",
        ],
        [
            [r["set"], percent(r["extracted"], digits=0), percent(r["authentic"], digits=0), number(r["c_t"])]
            for r in means.to_dict("records")
        ],
    )


def _edited(data: Path) -> str:
    edits, items, chosen, costs = (
        read(data, "memorization", n) for n in ("edits", "edit_items", "chosen", "costs")
    )
    if edits is None:
        return ""
    edits = pooled(edits)
    rows = in_order(edited(edits, None if items is None else pooled(items)))
    names = [m for m in MEASURES if (rows["measure"] == m).any()]
    sizes = edits.groupby("edit")[["dose", "norm"]].mean()
    spent = (
        {} if costs is None else pooled(costs).groupby("edit")[["rows", "seconds"]].mean().to_dict("index")
    )
    lines = []
    for edit in dict.fromkeys(rows["edit"]):
        own = rows[rows["edit"] == edit]
        cost = [f"{v:,.0f}" if v else "" for v in spent.get(edit, {"rows": 0, "seconds": 0}).values()]
        size = [percent(sizes.loc[edit, "dose"]), number(sizes.loc[edit, "norm"], 1)]
        lines.append([
            named(edit), *(size if edit != "none" else ("", "")),
            *(cell(own[own["measure"] == m], 3 if m == "loss" else 2) for m in names), *cost,
        ])  # fmt: skip
    head = {"targeted": "A", "held_out": "B", "targeted_own": "A, distance to own picture",
            "held_out_own": "B, distance", "retained": "others kept", "control": "control words",
            "alignment": "right digit", "frechet": "Fr\u00e9chet", "loss": "held-out loss"}  # fmt: skip
    out = table(
        ["edit at its chosen dose: MR", "weights changed", "norm of it", *(head[m] for m in names), "UNet rows to find",
         "CPU seconds"],
        lines,
    )  # fmt: skip
    if chosen is not None:
        gone = [named(e) for e in chosen[chosen["erases"].astype(bool)]["edit"]]
        left = [named(e) for e in chosen[~chosen["erases"].astype(bool)]["edit"]]
        out += f"\n\nErase A on the samples that doses are chosen on: {listed(gone) or 'none'}."
        out += f" Do not: {listed(left) or 'none'}."
    return out


def _beyond(data: Path) -> str:
    own = read(data, "memorization", "contrasts")
    if own is None:
        return ""
    rows = own[own["measure"].isin(["targeted", "held_out"]) & (own["seed"] < 0) & (own["against"] != "none")]
    controls = [c for c in CONTROLS if (rows["against"] == c).any()]
    lines = []
    for edit in dict.fromkeys(rows["edit"]):
        for measure in ("targeted", "held_out"):
            part = rows[(rows["edit"] == edit) & (rows["measure"] == measure)]
            cells = [cell(part[part["against"] == c]) for c in controls]
            lines.append([named(edit), "A" if measure == "targeted" else "B", *cells])
    return table(["MR, less that under a control of its dose", "of", *(named(c) for c in controls)], lines)


def _shared(data: Path) -> str:
    pairs, overlap = read(data, "memorization", "overlaps"), read(data, "memorization", "overlap")
    if pairs is None:
        return ""
    rows = []
    sets, keys = dealt(pairs), ["method", "share", "a", "b"]
    never = sets[sets["role"] == "oracle"][[*keys, "value", "p"]]
    held = sets[sets["role"] == "model"].merge(never, on=keys, how="left", suffixes=("", "_oracle"))
    for r in held.to_dict("records"):
        share = "" if np.isnan(r["share"]) else f", {100 * r['share']:g} % of a row"
        null = f"[{number(r['null_lo'], 3)}, {number(r['null_hi'], 3)}]"
        other = (
            ""
            if np.isnan(r["value_oracle"])
            else f"{number(r['value_oracle'], 3)} (p {number(r['p_oracle'], 3)})"
        )
        rows.append([f"{named(r['method'])}{share}", f"{r['a']} and {r['b']}", number(r["value"], 3), null,
                     number(r["p"], 3), other, number(r["independent"], 3)])  # fmt: skip
    head = ["overlap", "of", "value", "deals, middle 95 %", "p", "the oracle's", "drawn independently"]
    out = table(head, rows)
    if overlap is not None and (overlap["statistic"] == "excess").any():
        told = []
        for r in overlap[overlap["statistic"] == "excess"].to_dict("records"):
            share = "" if np.isnan(r["share"]) else f" at {100 * r['share']:g} %"
            told.append(f"{named(r['method'])}{share}, {r['role']} {int(r['seed'])}: {number(r['value'], 3)} (p = "
                        f"{number(r['p'], 3)})")  # fmt: skip
        out += f"\n\nOverlap of A and B beyond that with control words: {'; '.join(told)}."
    return out


def _covered(data: Path) -> str:
    own = read(data, "memorization", "coverage")
    if own is None:
        return ""
    means = averaged(own, ("method", "kind", "k"), ("covered", "chance"))
    last = means[means["k"] == means.groupby(["method", "kind"])["k"].transform("max")]
    kinds = {("wanda", "item"): "a memorized item's mask, by the union of {} others",
             ("wanda", "control"): "a control word's mask, by the union of {} memorized items",
             ("nemo", "item"): "prompts of B, blocked by {} units of A"}  # fmt: skip
    return table(
        ["covered", "share", "drawn at random"],
        [
            [kinds.get((r["method"], r["kind"]), f"{r['method']}, {r['kind']}, {{}}").format(int(r["k"])),
             percent(r["covered"], digits=0), percent(r["chance"], digits=0) if np.isfinite(r["chance"]) else ""]
            for r in last.to_dict("records")
        ],
    )  # fmt: skip


def _attacked(data: Path) -> str:
    attacks = read(data, "memorization", "attacks")
    if attacks is None:
        return ""
    rows = in_order(under_attack(attacks), "condition")
    groups = [g for g in GROUPS if (rows["group"] == g).any()]
    head = {"targeted": "A", "held_out": "B", "control": "control words", "unseen": "never trained on"}
    lines = []
    for condition in dict.fromkeys(rows["condition"]):
        own = rows[rows["condition"] == condition]
        cells = []
        for group in groups:
            part = own[own["group"] == group]
            before, after = (part[part["metric"] == m] for m in ("before", "attacked_any"))
            cells.append(f"{number(before['value'].iloc[0])} \u2192 {cell(after)}" if len(part) else "")
        steps = own[own["group"] == "targeted"]["steps"]
        told = number(float(steps.iloc[0]), 0) if len(steps) else ""
        lines.append([named(condition), *cells, told])
    return table(
        [
            "pictures extracted, by the prompt \u2192 under attack",
            *(head[g] for g in groups),
            "updates for A (median)",
        ],
        lines,
    )


def _tuned(data: Path) -> str:
    own = read(data, "memorization", "tuning")
    if own is None:
        return ""
    first, last = own["round"].min(), own["round"].max()
    told = [
        f"{name} {number(own[own['round'] == first][c].mean(), 3)} to {number(own[own['round'] == last][c].mean(), 3)}"
        for c, name in (("attacked", "error where the attack ends"), ("surrogate", "of surrogates"),
                        ("keep", "of kept pictures"))
    ]  # fmt: skip
    return f"Adversarial fine-tuning, first to last round (mean denoising errors): {', '.join(told)}."


def _exposed(data: Path) -> str:
    own = read(data, "memorization", "exposure_curves")
    return "" if own is None else curves(own[np.isclose(own["part"], 1.0)], ("recognition", "recall"))


def _findings(data: Path) -> str:
    return told(read(data, "memorization", "findings"), "on digits")
