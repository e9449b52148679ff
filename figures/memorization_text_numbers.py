"""What the tables of memorization in language models say, in tables of Markdown."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from facts_numbers import ends, table
from memorization_rows import at_dose, in_order, named
from memorization_tables import cell, curves, told
from study_script import read

from interp.plot.text import number, percent

MEASURES = (
    "targeted", "held_out", "targeted_hits", "held_out_hits", "similarity", "never", "perplexity", "prose",
    "prose_without",
)  # fmt: skip


def text_numbers(data: Path) -> str:
    """What the tables say of language models."""
    blocks = (_injected, _recalled, _screened, _deleted, _cut_beyond, _elicited, _learned, _findings)
    return "\n\n".join(text for block in blocks if (text := block(data)))


def _injected(data: Path) -> str:
    own = read(data, "injection", "injections")
    if own is None:
        return ""
    by = own.groupby(["subject", "injected"], sort=False)
    return table(
        ["injected sequences", "neurons", "sequences", "nats a token before", "after", "recited whole"],
        [
            [str(subject), f"{int(part['known'].mean()):,} of {int(part['units'].mean()):,} ({100 * share:g} %)",
             str(len(part)), number(part["before"].mean()), number(part["after"].mean(), 3),
             percent(part["exact"].mean(), digits=0)]
            for (subject, share), part in by
        ],
    )  # fmt: skip


def _recalled(data: Path) -> str:
    own = read(data, "injection", "recovery")
    if own is None:
        return ""
    every = own[(own["part"].astype(str) == "all") & own["share"].isna()]
    if every.empty:
        return ""
    columns = list(dict.fromkeys(zip(every["subject"], every["injected"], strict=True)))
    lines = [
        ["chance", *(number(float(_at(every, c)["chance"].iloc[0]), 3) for c in columns)]
    ]  # fmt: skip
    for method in dict.fromkeys(every["method"]):
        cells = []
        for c in columns:
            part = _at(every, c)
            part = part[part["method"] == method]
            found = ends(*(float(part[x].iloc[0]) for x in ("recall", "ci_lo", "ci_hi"))) if len(part) else ""
            cells.append(f"{found} (AUC {number(float(part['auc'].iloc[0]))})" if len(part) else "")
        lines.append([named(method), *cells])
    return table(
        ["known neurons among as many of the highest rank", *(f"{s}, {100 * i:g} %" for s, i in columns)],
        lines,
    )


def _at(rows: pd.DataFrame, where: tuple[str, float]) -> pd.DataFrame:
    return rows[(rows["subject"] == where[0]) & (rows["injected"] == where[1])]


def _screened(data: Path) -> str:
    own = read(data, "injection", "screen")
    if own is None:
        return ""
    by = own.groupby(["group", "prefix"], sort=True)["exact"].agg(["mean", "size"]).reset_index()
    prefixes = sorted(set(by["prefix"]))
    lines = []
    for group, part in by.groupby("group", sort=False):
        at = part.set_index("prefix")
        cells = [f"{percent(at.loc[p, 'mean'], digits=0)} of {int(at.loc[p, 'size'])}" if p in at.index else ""
                 for p in prefixes]  # fmt: skip
        lines.append([str(group).replace("_", " "), *cells])
    return table(["recited as it comes, by tokens given", *(str(int(p)) for p in prefixes)], lines)


def _deleted(data: Path) -> str:
    own = read(data, "injection", "edits")
    if own is None:
        return ""
    head = {"targeted": "A recited", "held_out": "B recited", "targeted_hits": "A, tokens right",
            "held_out_hits": "B, tokens right", "similarity": "A, similarity", "never": "never seen, nats",
            "perplexity": "perplexity of prose", "prose": "over that before",
            "prose_without": "over that without the memory"}  # fmt: skip
    out = []
    for (subject, memory), rows in own.groupby(["subject", "memory"], sort=False):
        rows = in_order(rows)
        names = [m for m in MEASURES if (rows["measure"] == m).any()]
        lines = []
        for edit in dict.fromkeys(rows["edit"]):
            part = rows[rows["edit"] == edit]
            dose = percent(float(part["dose"].iloc[0]), digits=2) if edit not in ("none", "without") else ""
            lines.append([named(edit), dose, *(cell(part[part["measure"] == m]) for m in names)])
        out.append(table([f"{subject}, {memory}", "weights changed", *(head[m] for m in names)], lines))
    return "\n\n".join(out)


def _cut_beyond(data: Path) -> str:
    own = read(data, "injection", "contrasts")
    if own is None:
        return ""
    own = at_dose(own, read(data, "injection", "chosen"))
    names = [m for m in ("targeted", "held_out", "never", "prose") if (own["measure"] == m).any()]
    head = {
        "targeted": "A, tokens right",
        "held_out": "B, tokens right",
        "never": "never seen, nats",
        "prose": "prose, nats",
    }
    lines = []
    for (subject, memory, edit), part in own.groupby(["subject", "memory", "edit"], sort=False):
        lines.append(
            [f"{subject}, {memory}", named(edit), *(cell(part[part["measure"] == m]) for m in names)]
        )
    return table(["less random ones of equal number", "edit", *(head[m] for m in names)], lines)


def _elicited(data: Path) -> str:
    own = read(data, "injection", "attacked")
    if own is None:
        return ""
    names = {"original": "without the memory", "memorized": "with the memory"}
    lines = []
    for (subject, memory, condition), part in own.groupby(["subject", "memory", "condition"], sort=False):
        cells = []
        for group in ("targeted", "never"):
            some = part[part["group"] == group]
            before, after = (some[some["metric"] == m] for m in ("before", "attacked"))
            both = len(before) and len(after)
            cells.append(f"{number(before['value'].iloc[0])} \u2192 {cell(after)}" if both else "")
        lines.append([f"{subject}, {memory}", names.get(condition, named(condition)), *cells])
    return table(["recited, by the prefix \u2192 by a soft prompt", "", "A", "never seen"], lines)


def _learned(data: Path) -> str:
    own = read(data, "injection", "exposure_curves")
    if own is None:
        return ""
    ending = own.groupby("phase", sort=False)["step"].transform("max")
    rows = own[own["step"] == ending]
    return curves(rows.assign(curve=rows["phase"]), ("recognition", "recall", "hits", "retention"))


def _findings(data: Path) -> str:
    own = read(data, "injection", "findings")
    if own is None:
        return ""
    where = [f"{s}, {m}" if str(m) else str(s) for s, m in zip(own["subject"], own["memory"], strict=True)]
    return told(own.assign(where=where), "verdict")
