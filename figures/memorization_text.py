"""Figures of memorization in language models: neurons found, sequences deleted, elicited, and learned by exposure."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from memorization_rows import CONTROLS, at_dose, in_order, named
from study_script import read

from interp import plot
from interp.plot import theme

CAPTIONS = {
    "targeted": "A, recited", "held_out": "B, recited", "targeted_hits": "A, tokens right",
    "held_out_hits": "B, tokens right", "similarity": "A, similarity", "prose": "Prose, perplexity",
    "never": "Never seen, nats",
}  # fmt: skip
"""Measures as panels call them; A is what was located, B is held out."""
SHARES = ("targeted", "held_out", "targeted_hits", "held_out_hits", "similarity")
DRAWN = ("targeted_hits", "held_out_hits", "similarity", "prose")
"""Measures of edits that are drawn."""
DOSED = ("targeted_hits", "held_out_hits", "prose")
"""Those that are drawn over doses."""
BEST = 6
"""Rankings that are drawn as curves."""
UNITS = (
    "activation",
    "gradient",
    "integrated",
    "hard_concrete",
    "balanced_subnet",
    "slimming",
    "contrastive",
)
MARKS = {
    ("before", "targeted"): "A, by its prefix", ("attacked", "targeted"): "A, under attack",
    ("attacked", "never"): "never seen, under attack",
}  # fmt: skip


def text_figures(data: Path) -> dict[str, go.Figure]:
    """Every figure of language models, by its name."""
    out: dict[str, go.Figure] = {}
    for part in (recall_figures, deletion_figures, elicited_figures, exposed_figures):
        out |= {f"lm-{name}": fig for name, fig in part(data).items()}
    return out


def recall_figures(data: Path) -> dict[str, go.Figure]:
    """Which rankings find the neurons that are known to hold a sequence."""
    own = read(data, "injection", "recovery")
    if own is None:
        return {}
    out: dict[str, go.Figure] = {}
    own = own.assign(
        panel=[f"{s}, {100 * i:g}% of neurons" for s, i in zip(own["subject"], own["injected"], strict=True)]
    )
    every = own[own["part"].astype(str) == "all"]
    known = every[every["share"].isna()]
    if len(known):
        chance = known.groupby("panel", sort=False)["chance"].first()
        out["recall"] = plot.value_strips(
            known.assign(method=known["method"].map(named)), "method", "recall", panel="panel", percent=True,
            levels={p: {"chance": float(v)} for p, v in chance.items()}, x="known neurons found",
            controls=["random", "magnitude", named("activation")],
            title="Do rankings find the neurons that hold a sequence?",
            note="as many neurons taken as are known, in all layers together; grey: baselines",
        )  # fmt: skip
    for (subject, injected), rows in own.groupby(["subject", "injected"], sort=False):
        slug = slugged(subject, f"{100 * injected:g}")
        layers = rows[rows["share"].isna()]
        if len(layers):
            out[f"recall-layers-{slug}"] = plot.recovery_table(
                layers.assign(method=layers["method"].map(named))
            )
        best = (
            rows[rows["part"].astype(str) == "all"]
            .groupby("method")["auc"]
            .first()
            .sort_values(ascending=False)
        )
        kept = rows[rows["method"].isin(best.index[:BEST])]
        if kept["share"].notna().any():
            out[f"recall-curves-{slug}"] = plot.recovery_curves(kept.assign(method=kept["method"].map(named)))
    return out


def deletion_figures(data: Path) -> dict[str, go.Figure]:
    """What edits of a memory delete and keep: over doses, and at the chosen one."""
    out: dict[str, go.Figure] = {}
    doses, edits, contrasts = (read(data, "injection", n) for n in ("doses", "edits", "contrasts"))
    if doses is not None:
        own = doses[doses["measure"].isin(DOSED) & (doses["dose"] > 0)]
        own = own[own["edit"].isin([*UNITS, "random", "magnitude"])]
        own = own.sort_values("measure", key=lambda m: m.map(DOSED.index), kind="stable")
        for (subject, memory), rows in own.groupby(["subject", "memory"], sort=False):
            before = doses[
                (doses["subject"] == subject) & (doses["memory"] == memory) & (doses["edit"] == "none")
            ].set_index("measure")["value"]
            rows = rows.drop_duplicates(["edit", "measure", "dose"])
            out[f"doses-{slugged(subject, memory)}"] = plot.value_curves(
                rows.assign(edit=rows["edit"].map(named)), "dose", panel="measure", line="edit",
                controls=[named(c) for c in CONTROLS], bands=["activation", "random"],
                captions=CAPTIONS, ratios=["prose"], x_percent=True, x_title="weights changed",
                levels={m: {"before": float(v)} for m, v in before.items() if m in DOSED},
                y={m: "share" if m in SHARES else "over that before" for m in DOSED},
                title=f"What silenced neurons delete and keep: {subject}, {memory}",
            )  # fmt: skip
    if edits is not None:
        own = edits[edits["measure"].isin(DRAWN)]
        for (subject, memory), rows in own.groupby(["subject", "memory"], sort=False):
            before = rows[rows["edit"] == "none"].set_index("measure")["value"]
            rows = in_order(rows[rows["edit"] != "none"])
            rows = rows.sort_values("measure", key=lambda m: m.map(DRAWN.index), kind="stable")
            if rows.empty:
                continue
            out[f"edits-{slugged(subject, memory)}"] = plot.value_strips(
                rows.assign(edit=rows["edit"].map(named)), "edit", panel="measure", group="kind",
                controls=[named(c) for c in CONTROLS], captions=CAPTIONS, percent=SHARES, ratios=["prose"],
                levels={m: {"before": float(v)} for m, v in before.items()},
                x={m: "share" if m in SHARES else "over that before" for m in DRAWN},
                title=f"What each edit deletes, and what it keeps: {subject}, {memory}",
                note="doses chosen on A and on other prose; grey: controls of equal number",
            )  # fmt: skip
    if contrasts is not None:
        out |= beyond(at_dose(contrasts, read(data, "injection", "chosen")))
    return out


def beyond(contrasts: pd.DataFrame) -> dict[str, go.Figure]:
    """What edits delete beyond as many random neurons or weights."""
    out = {}
    own = contrasts[contrasts["measure"].isin(["targeted", "held_out", "prose"])]
    # Weights have a second control, random ones of equal norm; it is in the tables.
    own = own[~own["against"].str.startswith("equal norm")]
    order = ("targeted", "held_out", "prose")
    captions = {"targeted": "A, tokens right", "held_out": "B, tokens right", "prose": "Prose, nats a token"}
    for (subject, memory), rows in own.groupby(["subject", "memory"], sort=False):
        rows = in_order(rows).sort_values("measure", key=lambda m: m.map(order.index), kind="stable")
        out[f"contrasts-{slugged(subject, memory)}"] = plot.value_strips(
            rows.assign(edit=rows["edit"].map(named)), "edit", panel="measure", group="kind", captions=captions,
            percent=order[:2], levels={m: {"no difference": 0.0} for m in order},
            x={m: "difference" for m in order},
            title=f"What each edit does beyond as many random neurons: {subject}, {memory}",
            note="at the chosen dose; left of zero: it deletes more; right of zero in prose: it costs more",
        )  # fmt: skip
    return out


def elicited_figures(data: Path) -> dict[str, go.Figure]:
    """What soft prompts get back, beside what they get of sequences that were never seen."""
    out: dict[str, go.Figure] = {}
    attacked, prefixes, work = (read(data, "injection", n) for n in ("attacked", "prefixes", "work"))
    if attacked is not None:
        for subject, rows in attacked.groupby("subject", sort=False):
            keys = list(zip(rows["metric"], rows["group"], strict=True))
            rows = rows.assign(mark=[MARKS.get(k, "") for k in keys])
            rows = rows[rows["mark"] != ""]
            rows = in_order(rows, "condition").sort_values(
                "mark", key=lambda m: m.map(list(MARKS.values()).index), kind="stable"
            )
            if rows.empty:
                continue
            lines = in_order(rows.drop_duplicates("condition"), "condition")["condition"]
            rows = rows.sort_values("condition", key=lambda c: c.map(list(lines).index), kind="stable")
            rows = rows.sort_values(
                "memory", key=lambda m: m.map(list(dict.fromkeys(rows["memory"])).index), kind="stable"
            )
            out[f"attacked-{slugged(subject)}"] = plot.value_strips(
                rows.assign(condition=[condition(c) for c in rows["condition"]]), "condition", panel="memory",
                mark="mark", group="kind", controls=[MARKS["before", "targeted"]], percent=True, x="recited",
                colors={MARKS["attacked", "targeted"]: theme.VERMILLION, MARKS["attacked", "never"]: theme.BLUE},
                title=f"Are deleted sequences elicited again? {subject}",
                note="soft prompts; never seen: what the attack makes up",
            )  # fmt: skip
    if work is not None:
        out |= worked(work)
    if prefixes is not None:
        rows = prefixes[prefixes["measure"] == "hits"]
        for (subject, memory), own in rows.groupby(["subject", "memory"], sort=False):
            own = own[own["edit"].isin(few_of(own, read(data, "injection", "chosen")))]
            out[f"prefixes-{slugged(subject, memory)}"] = plot.value_strips(
                own.assign(edit=own["edit"].map(named)), "variant", mark="edit", percent=True,
                controls=[named("none")], title=f"Does a deletion hold for other prefixes? {subject}, {memory}",
                x="tokens right",
            )  # fmt: skip
    return out


def few_of(prefixes: pd.DataFrame, chosen: pd.DataFrame | None) -> list[str]:
    """Edits whose prefixes are drawn: the model before, those that are attacked, random neurons, and others to fill."""
    have = list(dict.fromkeys(prefixes["edit"]))
    first: list[str] = ["none", "random", "known"]
    if chosen is not None and "attacked" in chosen:
        own = chosen[
            (chosen["subject"] == prefixes["subject"].iloc[0])
            & (chosen["memory"] == prefixes["memory"].iloc[0])
        ]
        first += own[own["attacked"].astype(bool)]["edit"].tolist()
    ranked = [*(e for e in dict.fromkeys(first) if e in have), *(e for e in have if e not in first)]
    return ranked[:5]


def condition(name: str) -> str:
    """A condition of an attack as it is written."""
    return {"original": "without the memory", "memorized": "with the memory"}.get(name, named(name))


def worked(work: pd.DataFrame) -> dict[str, go.Figure]:
    """Share of sequences elicited after so many updates."""
    out = {}
    groups = {"targeted": "A, located", "never": "Never seen"}
    for (subject, memory), rows in work.groupby(["subject", "memory"], sort=False):
        few = list(dict.fromkeys(rows["condition"]))[:7]
        rows = rows[rows["condition"].isin(few) & rows["group"].isin(list(groups))]
        if not rows["items"].any():
            continue
        out[f"work-{slugged(subject, memory)}"] = plot.value_curves(
            rows.assign(condition=[condition(c) for c in rows["condition"]]), "steps", "items", None, panel="group",
            line="condition", controls=["without the memory"], captions=groups, percent=True, y_range=(-0.04, 1.04),
            title=f"Work to elicit a sequence: {subject}, {memory}", x_title="updates of the soft prompt", y="elicited",
        )  # fmt: skip
    return out


def exposed_figures(data: Path) -> dict[str, go.Figure]:
    """Recognition, recall and retention over exposures, in the small model."""
    own = read(data, "injection", "exposure_curves")
    if own is None:
        return {}
    rows = own[own["measure"].isin(["recognition", "recall", "hits", "retention"])]
    # The end of each phase, and what lies between where there is room for it.
    ends = rows.groupby("phase", sort=False)["step"].max()
    rows = rows[[s == ends[p] for s, p in zip(rows["step"], rows["phase"], strict=True)]]
    names = {"before": "before", "shown": "after they were shown", "later": "after more text"}
    rows = rows.assign(curve=[names.get(p, str(p)) for p in rows["phase"]])
    rows = rows[np.isfinite(rows["value"])]
    captions = {"hits": "Tokens right", "retention": "Retention"}
    return {"exposures": plot.exposure_curves(rows, captions=captions)} if len(rows) else {}


def slugged(*names: object) -> str:
    """Names as a part of a file's name."""
    return "-".join(str(n) for n in names).lower().replace(" ", "-").replace("_", "-").replace("/", "-")
