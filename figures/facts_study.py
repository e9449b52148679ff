"""Fact recall of smollm2: what it knows, where it is recalled, cuts and edits, context and prior against memory.

    python figures/facts_study.py [--data figures/data/facts_study] [--out figures/build] [--formats png pdf]
    python figures/facts_study.py --numbers
    python figures/facts_study.py --readme
    python figures/facts_study.py --export figures/data/facts_study --facts runs/facts \\
        --dissociation runs/dissociation --editing runs/editing --conflict runs/conflict --prior runs/prior

Reads tables and nothing else: in the folder of data there is a folder for each of `interp study
facts|dissociation|editing|conflict|prior`. What is not there is left out. `--readme` writes the numbers into the README
beside the data, which a test compares with it. `--export` copies the tables that figures and numbers need, with spec
and provenance, out of the folders of the runs.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from facts_numbers import METRIC, judged, numbers, setting
from study_script import copied, main, read

from interp import plot
from interp.plot import theme
from interp.plot.text import listed

DATA = Path(__file__).parent / "data" / "facts_study"

TABLES = {
    "facts": ("known", "kinds", "aie", "effects", "peaks", "knockout", "extraction", "enrichment", "vital", "findings"),
    "dissociation": ("census", "layers", "vital", "neuron_facts", "effects", "dissociation"),
    "editing": (
        "layers", "scan", "effects", "localisation", "scoreboard", "changes", "edits", "drift", "cost", "findings",
    ),
    "conflict": ("ratios", "contrasts", "heads", "mlps", "moves", "over_controls", "findings"),
    "prior": ("tasks", "accuracy", "gaps", "layers", "prompts", "prompts_contrast", "arms", "tuning",
              "tuning_contrast", "drift"),
}  # fmt: skip
"""Tables of each part that figures and numbers come from."""

MAPS = {"resid_post": "single", "mlp_out": "wide", "attn_out": "wide"}
"""How each kind of state was traced that is drawn as a map."""

FIRST = 1 / 6
"""Share of the layers that are the first ones; without those of them any state is whole again."""

DRAWN = ("fact layers 1", "fact layers 3", "fact window 5", "fact neurons", "retrieval heads")
TRACE = {"kind": "mlp_out", "corruption": "noise", "metric": METRIC}
"""The trace that edits are drawn against: the reference's."""


def figures(data: Path = DATA) -> dict[str, go.Figure]:
    """Every figure that the tables allow, by its name."""
    parts = (recall_figures, flow_figures, cut_figures, edit_figures, conflict_figures, prior_figures)
    return {f"facts-study-{name}": fig for part in parts for name, fig in part(data).items()}


def recall_figures(data: Path) -> dict[str, go.Figure]:
    """What is known, and causal maps by scenario."""
    out: dict[str, go.Figure] = {}
    known, kinds, aie = (read(data, "facts", name) for name in ("known", "kinds", "aie"))
    if known is not None:
        out["census"] = plot.fact_census(known, kinds)
    if aie is None:
        return out
    own = aie[(aie["metric"] == METRIC)]
    for kind, way in MAPS.items():
        rows = own[(own["kind"] == kind) & (own["way"] == way)]
        if len(rows):
            name = f"map-{kind.removesuffix('_out').removesuffix('_post')}"
            out[name] = plot.causal_map(rows, limit=limit(rows))
    wide = own[(own["way"] == "wide") & own["kind"].isin(["mlp_out", "attn_out"])]
    if len(wide):
        out["profiles"] = plot.effect_profiles(wide)
    single = own[(own["way"] == "single") & (own["kind"] == "mlp_out")]
    if len(single):
        out["profiles-single"] = plot.effect_profiles(single, value="share")
    return out


def limit(rows: pd.DataFrame) -> float | None:
    """Where colours of a map end, if its first layers hold more than twice what any later one does."""
    first = rows["layer"] < FIRST * (1 + rows["layer"].max())
    most, later = rows["aie"].abs().max(), rows[~first]["aie"].abs().max()
    return float(later) if most > 2 * later > 0 else None


def flow_figures(data: Path) -> dict[str, go.Figure]:
    """Knockout, extraction, attributes of the subject, and what each MLP's cut costs."""
    out: dict[str, go.Figure] = {}
    knockout, extraction, enrichment, vital = (
        read(data, "facts", name) for name in ("knockout", "extraction", "enrichment", "vital")
    )
    if knockout is not None:
        out["knockout"] = plot.knockout_curves(knockout)
    if extraction is not None:
        out["extraction"] = plot.extraction_rates(extraction)
    if enrichment is not None:
        both = pd.concat([
            enrichment.assign(whose="in its state", share=enrichment["rate"]),
            enrichment.assign(whose="in other subjects'", share=enrichment["control"]),
        ])  # fmt: skip
        out["enrichment"] = plot.layer_lines(
            both, "share", line="whose", colors={"in its state": theme.BLUE, "in other subjects'": theme.CONTROL},
            title="A subject's attributes that the lens finds in the state of its last token",
            note="share of the subject's attributes among the first tokens of the lens", y="attributes found",
            percent=True,
        )  # fmt: skip
    if vital is not None:
        out["vital"] = plot.layer_lines(
            vital[vital["scope"] == "content"], "loss", ("lo", "hi"), line="scenario",
            title="What the answer loses when one MLP is cut, by scenario",
            note="cut at every token but the first; generic prompts have no fact to recall: what they lose too is "
            "general damage", percent=True,
            y="share of the probability",
        )  # fmt: skip
    return out


def cut_figures(data: Path) -> dict[str, go.Figure]:
    """The double dissociation, and which layers pass as stores of facts."""
    out: dict[str, go.Figure] = {}
    effects, gaps, vital = (read(data, "dissociation", name) for name in ("effects", "dissociation", "vital"))
    if effects is not None:
        own = effects[(effects["scope"] == "content") & (effects["metric"] == METRIC)]
        there = set(own[own["condition"] == "cut"]["mechanism"])
        shown = [m for m in DRAWN if m in there] or sorted(there)
        out["dissociation"] = plot.dissociation(effects, mechanisms=shown)
    if gaps is not None:
        own = gaps[(gaps["scope"] == "content") & (gaps["metric"] == METRIC)]
        own = own[own["fact_task"].isin(["held", "other"]) & (own["context_task"] == "needle")]
        if len(own):
            out["gaps"] = plot.dissociation_gaps(own)
    if vital is not None:
        out["stores"] = stores(vital[(vital["scope"] == "content") & (vital["metric"] == METRIC)])
    return out


def stores(vital: pd.DataFrame) -> go.Figure:
    """Effect of each layer, and what its cut costs facts and the task that suffers most beside them."""
    lines = (
        ("average indirect effect", "restored", "aie", "aie_lo", "aie_hi"),
        ("loss by the cut", "held-out facts", "fact_loss", "fact_lo", "fact_hi"),
        ("loss by the cut", "worst other task", "off_loss", "off_lo", "off_hi"),
    )
    rows = pd.concat(
        vital[["layer"]].assign(panel=panel, line=line, value=vital[v], lo=vital[lo], hi=vital[hi])
        for panel, line, v, lo, hi in lines
    )
    passing = [int(n) for n in vital[vital["passes"]]["layer"]]
    told = f"layer {listed(passing)}" if passing else "none"
    return plot.layer_lines(
        rows, "value", ("lo", "hi"), panel="panel", line="line", marked=passing, title="Which MLPs are stores of facts",
        note=f"shaded, those that pass (they lose more than twice as much of the facts as of each other task): {told}",
        y={"average indirect effect": "probability", "loss by the cut": "share of the probability"},
        colors={"restored": theme.INK, "held-out facts": theme.BLUE, "worst other task": theme.ORANGE},
    )  # fmt: skip


def edit_figures(data: Path) -> dict[str, go.Figure]:
    """The scoreboard, where edits work, and whether a trace knows."""
    out: dict[str, go.Figure] = {}
    scores, layers, scan, effects, localisation = (
        read(data, "editing", name) for name in ("scoreboard", "layers", "scan", "effects", "localisation")
    )
    if scores is not None:
        out["edits"] = plot.edit_scoreboard(scores)
    if layers is not None:
        told = layers.melt("layer", ["ES", "PS", "NS", "S"], "measure", "score")
        chosen = [int(n) for n in layers[layers["chosen"].astype(bool)]["layer"]]
        out["edit-layers"] = plot.layer_lines(
            told, "score", line="measure", marked=chosen, title="Where facts can be written",
            note="facts that layers are chosen on, written by ROME alone; ES: edited prompt, PS: paraphrases, NS: "
            "neighbours of the same object or of others, S: their harmonic mean; shaded: the layer that is taken",
            y="share", percent=True, level=None,
        )  # fmt: skip
    if scan is not None and effects is not None:
        own = _trace(effects, TRACE)
        told = None
        if localisation is not None:
            told = _trace(localisation, {("trace" if k == "kind" else k): v for k, v in TRACE.items()})
        if len(own):
            out["localisation"] = plot.edits_against_effects(scan, own, told)
    return out


def _trace(frame: pd.DataFrame, of: dict[str, str]) -> pd.DataFrame:
    return frame[np.logical_and.reduce([frame[name] == value for name, value in of.items()])]


def conflict_figures(data: Path) -> dict[str, go.Figure]:
    """Who is believed, which parts carry either answer, and what moves the balance."""
    out: dict[str, go.Figure] = {}
    ratios, heads, mlps, moves = (read(data, "conflict", n) for n in ("ratios", "heads", "mlps", "moves"))
    if ratios is not None:
        named = ratios.assign(setting=[setting(s) for s in ratios["setting"]])
        out["balance"] = plot.conflict_balance(
            named[named["by"] == "all"],
            note="statements before the question, against and for what the memory says",
        )
        single = ratios[(ratios["setting"] == "1:0") & (ratios["by"] != "all")]
        for by in dict.fromkeys(single["by"]):
            own = single[single["by"] == by].assign(name=lambda f: f["group"].str.replace("_", " "))
            of = "relation" if by == "relation" else "popularity of the subject"
            out[f"balance-{by}"] = plot.conflict_balance(
                own, "name", title=f"Whom the model believes behind one statement, by {of}"
            )
    if heads is not None:
        out["context-heads"] = plot.context_heads(heads)
    if mlps is not None:
        names = {
            "conflict": "Behind a statement",
            "closed": "Without a context",
            "told": "Told of an invented subject",
        }
        rows = mlps.assign(
            question=mlps["question"].map(lambda q: names.get(q, q)),
            scope=mlps["scope"].map(lambda s: {"answer": "last", "all": "all tokens"}.get(s, s)),
        )
        out["memory-mlps"] = plot.layer_lines(
            rows, "margin_lost", ("ci_lo", "ci_hi"), panel="question", line="scope",
            title="Which MLPs carry the memory", y="lost margin of memory (nats)",
            note="windows of MLPs cut at the subject, at the last token, at all; above zero: the memory's answer falls "
            "behind",
        )  # fmt: skip
    if moves is not None:
        out["dose"] = plot.conflict_dose(moves)
        out["dose-margin"] = plot.conflict_dose(moves, "margin")
    return out


def prior_figures(data: Path) -> dict[str, go.Figure]:
    """Accuracy by prior, layers that go with it, prefaces and tuning."""
    out: dict[str, go.Figure] = {}
    accuracy, layers, prompts, tuning = (
        read(data, "prior", name) for name in ("accuracy", "layers", "prompts", "tuning")
    )
    if accuracy is not None:
        out["prior-accuracy"] = plot.accuracy_by_prior(accuracy)
    if layers is not None:
        out["prior-layers"] = plot.prior_layers(layers)
    if prompts is not None and (metric := judged(prompts)):
        controls = list(dict.fromkeys(prompts[prompts["control"].astype(bool)]["preface"]))
        out["prior-prompts"] = plot.changes_by_prior(
            prompts, "preface", metric, controls=controls, title="What a preface changes, by the prior of the answer",
            note="grey: prefaces that say nothing of priors",
        )  # fmt: skip
    if tuning is not None and (metric := judged(tuning)):
        out["prior-tuning"] = plot.changes_by_prior(
            tuning, "kind", metric, controls=["random"], title="Light tuning of a few layers, on held-out answers",
            note="dots: runs, bar: their mean; grey: as many random layers",
        )  # fmt: skip
    return out


def export(runs: dict[str, Path], to: Path) -> list[Path]:
    """Copy what figures are made of, with spec and provenance, part by part."""
    return copied(TABLES, runs, to)


if __name__ == "__main__":
    main(__doc__, DATA, tuple(TABLES), figures, numbers, export)
