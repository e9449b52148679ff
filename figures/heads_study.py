"""Retrieval heads of smollm2, the whole study: needle maps, dose curves, sufficient sets, cut x task, agreement.

    python figures/heads_study.py [--data figures/data/heads_study] [--out figures/build] [--formats png pdf]
    python figures/heads_study.py --readme
    python figures/heads_study.py --data runs/heads --numbers

Reads the tables of a study (`interp study retrieval-heads smollm2`; figures/data/heads_study has them with spec,
versions and fingerprint) and nothing else; `--data` takes any such folder and prints its numbers with `--numbers`.
`--readme` writes the numbers into the README beside the data, which a test compares with it. `--export DIR` copies what
the figures need into a folder of data.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import plotly.graph_objects as go
from study_script import copied, main, read

from interp import plot
from interp.plot.text import number

DATA = Path(__file__).parent / "data" / "heads_study"
README = DATA / "README.md"

TABLES = (
    "scores", "prefill", "cells", "map", "dose", "dose_areas", "sufficient", "sufficient_areas", "specificity", "pairs",
    "modes",
)  # fmt: skip
"""Tables that figures and numbers come from; parts of a study that were not run are left out."""


def figures(data: Path = DATA) -> dict[str, go.Figure]:
    """Every figure that the tables allow, by its name."""
    out: dict[str, go.Figure] = {}
    cells, dose, kept = read(data, "", "cells"), read(data, "", "dose"), read(data, "", "sufficient")
    tasks, pairs = read(data, "", "specificity"), read(data, "", "pairs")
    if cells is not None:
        out["heads-study-map"] = plot.needle_map(cells)
        out["heads-study-map-logprob"] = plot.needle_map(cells, "logprob")
    if dose is not None:
        out["heads-study-dose"] = plot.dose_curves(dose, read(data, "", "dose_areas"))
    if kept is not None:
        out["heads-study-sufficient"] = plot.dose_curves(kept, read(data, "", "sufficient_areas"), kept=True)
    if tasks is not None:
        out["heads-study-specificity"] = plot.specificity(tasks)
    if pairs is not None:
        out["heads-study-agreement"] = plot.score_agreement(pairs)
    return out


def readme(data: Path = DATA) -> str:
    """What the tables say, as the README has it."""
    blocks = (_heads, _prefill, _map, _dose, _sufficient, _specificity, _agreement)
    return "\n\n".join(text for block in blocks if (text := block(data)))


def _heads(data: Path) -> str:
    scores = read(data, "", "scores")
    if scores is None:
        return ""
    first = scores[scores["method"] == scores["method"].iloc[0]].sort_values("score", ascending=False)
    best = ", ".join(
        f"{c} {number(v)}" for c, v in zip(first["component"][:5], first["score"][:5], strict=True)
    )
    over = int((first["score"] >= 0.1).sum())
    return (
        f"Of {len(first)} heads, {over} ({over / len(first):.1%}) have a {first['method'].iloc[0]} score of 0.1 or "
        f"more over {int(first['n'].iloc[0])} instances; the best are {best}."
    )


def _prefill(data: Path) -> str:
    spent = read(data, "", "prefill")
    if spent is None:
        return ""
    named = {"scores": "one needle a context", "several": "several needles a context"}
    lines = ["| grid | instances | accepted | tokens run | of the naive protocol |", "|---|---|---|---|---|"]
    for row in spent[spent["grid"].isin(list(named))].itertuples():
        lines.append(
            f"| {named[str(row.grid)]} | {row.instances} | {row.accepted} | {row.run:,} | {row.share:.1%} of "
            f"{row.naive:,} |"
        )
    return "\n".join(lines)


def _map(data: Path) -> str:
    found = read(data, "", "map")
    if found is None:
        return ""
    own = found[found["metric"] == "accuracy"]
    clean = own[own["condition"] == "clean"].iloc[0]
    lines = [
        f"| held-out needles, {int(clean['n'])} over all lengths and depths | accuracy | change, 95 % interval | "
        "log-probability |",
        "|---|---|---|---|",
        f"| uncut | {number(clean['value'])} | | {_logprob(found, clean)} |",
    ]
    for mode in dict.fromkeys(own[own["condition"] == "cut"]["mode"]):
        cut = own[(own["condition"] == "cut") & (own["mode"] == mode)].iloc[0]
        others = own[(own["condition"] == "control") & (own["mode"] == mode)]
        lines.append(
            f"| top {cut['k']} cut, {mode} | {number(cut['value'])} | {_change(cut)} | {_logprob(found, cut)} |"
        )
        if len(others):
            rest = found[(found["condition"] == "control") & (found["mode"] == mode)]
            far = rest[rest["metric"] == "logprob"]["value"].mean()
            lines.append(
                f"| {cut['k']} matched others, {mode} | {number(others['value'].mean())} ({_span(others)}) | "
                f"{number(others['delta'].mean())} | {number(far)} |"
            )
    return "\n".join(lines)


def _logprob(found: pd.DataFrame, row: pd.Series) -> str:
    same = found[
        (found["metric"] == "logprob")
        & (found["condition"] == row["condition"])
        & (found["mode"] == row["mode"])
    ]
    return number(same["value"].iloc[0])


def _change(row: pd.Series) -> str:
    return f"{number(row['delta'])} [{number(row['ci_lo'])}, {number(row['ci_hi'])}]"


def _span(draws: pd.DataFrame) -> str:
    if len(draws) == 1:
        return "1 draw"
    return f"{len(draws)} draws, {number(draws['value'].min())} to {number(draws['value'].max())}"


def _dose(data: Path) -> str:
    return _curves(data, "dose", "dose_areas", "cut", "control", "cut", ascending=True)


def _sufficient(data: Path) -> str:
    return _curves(data, "sufficient", "sufficient_areas", "keep", "keep_control", "kept", ascending=False)


def _curves(data: Path, table: str, areas: str, cut: str, control: str, did: str, *, ascending: bool) -> str:
    """One line a score type with its accuracies by dose and its area, then the kinds of control."""
    rows, area = read(data, "", table), read(data, "", areas)
    if rows is None or area is None:
        return ""
    own = rows[rows["metric"] == "accuracy"]
    clean = own[own["condition"] == "clean"].iloc[0]
    ks = sorted({int(k) for k in own[own["condition"] == cut]["k"]})
    head = (
        f"| score; accuracy with the first k heads {did} ({number(clean['value'])} uncut, n = {int(clean['n'])}) | "
        + " | ".join(f"k = {k}" for k in ks)
        + " | area over log k |"
    )
    lines = [head, "|---" * (len(ks) + 2) + "|"]
    ranked = area[area["condition"] == cut].sort_values("value", ascending=ascending, kind="stable")
    for r in ranked.itertuples():
        mine = own[(own["condition"] == cut) & (own["locator"] == r.locator)].set_index("k")["value"]
        told = " | ".join(number(mine[k]) if k in mine.index else "" for k in ks)
        lines.append(f"| {r.locator} | {told} | {number(r.value)} [{number(r.ci_lo)}, {number(r.ci_hi)}] |")
    others = own[own["condition"] == control]
    for kind in dict.fromkeys(others["control"]):
        mine = others[others["control"] == kind].groupby("k")["value"].mean()
        told = " | ".join(number(mine[k]) if k in mine.index else "" for k in ks)
        drawn = area[(area["condition"] == control) & (area["control"] == kind)]
        lines.append(f"| control: {kind} | {told} | {number(drawn['value'].mean())} ({_span(drawn)}) |")
    return "\n".join(lines)


def _specificity(data: Path) -> str:
    effects = read(data, "", "specificity")
    if effects is None:
        return ""
    cuts = effects[(effects["condition"] == "cut") & effects["q"].notna()]
    first = str(effects["locator"].iloc[0])
    lines = [
        f"| task (top {int(cuts['k'].iloc[0])} heads by {first} cut everywhere) | uncut | cut | change, 95 % interval "
        "| q | matched others |",
        "|---|---|---|---|---|---|",
    ]
    for task in dict.fromkeys(effects["task"]):
        own = effects[effects["task"] == task]
        judged = [m for m in ("accuracy", "f1", "number", "nll") if m in set(own["metric"])]
        own = own[own["metric"] == (judged[0] if judged else own["metric"].iloc[0])]
        clean = own[own["condition"] == "clean"].iloc[0]
        what = f"{task} ({'nats a token' if clean['metric'] == 'nll' else clean['metric']})"
        if clean["status"] != "ok":
            lines.append(f"| {what} | {number(clean['value'])} | at chance | | | |")
            continue
        cut = own[(own["condition"] == "cut") & (own["locator"] == first)].iloc[0]
        others = own[own["condition"] == "control"]
        rest = f"{number(others['value'].mean())} ({_span(others)})" if len(others) else ""
        lines.append(
            f"| {what} | {number(clean['value'])} | {number(cut['value'])} | {_change(cut)} | {number(cut['q'], 3)} | "
            f"{rest} |"
        )
    return "\n".join(lines)


def _agreement(data: Path) -> str:
    pairs, modes = read(data, "", "pairs"), read(data, "", "modes")
    lines = []
    if pairs is not None:
        first = str(pairs["a"].iloc[0])
        own = pairs[(pairs["a"] == first) & (pairs["b"] != first)].sort_values("overlap", ascending=False)
        told = ", ".join(f"{r.b} {number(r.overlap)} (rho {number(r.spearman)})" for r in own.itertuples())
        ceiling = pairs[(pairs["a"] == first) & (pairs["b"] == first)]["ceiling"].iloc[0]
        lines.append(
            f"Of the {own['set'].iloc[0]} heads by {first}, other scores share: {told}; two halves of the instances "
            f"share {number(ceiling)}."
        )
    if modes is not None:
        r = modes.iloc[0]
        lines.append(
            f"One needle a context and several: {r['accepted_exact']} of {r['n_exact']} and {r['accepted_several']} of "
            f"{r['n_several']} recalled; {number(r['overlap'])} of the {r['set']} heads by {r['method']} are the same "
            f"(rho {number(r['spearman'])}), at {r['share_exact']:.1%} and {r['share_several']:.1%} of the naive "
            "tokens."
        )
    return " ".join(lines)


def export(data: Path, to: Path) -> list[Path]:
    """Copy what figures and numbers are made of, with spec and provenance."""
    return copied({"": TABLES}, {"": data}, to)


if __name__ == "__main__":
    main(__doc__, DATA, (), figures, readme, lambda runs, to: export(runs[""], to))
