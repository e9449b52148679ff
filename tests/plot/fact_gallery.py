"""Figures of fact recall from the synthetic tables, in the shapes that lay out differently."""

from __future__ import annotations

from functools import cache

import plotly.graph_objects as go

from interp import plot
from interp.plot.theme import Width
from tests.plot import fact_frames as f


@cache
def facts(width: Width) -> dict[str, go.Figure]:
    """Figures by name at a width; made once, so leave them as they are."""
    averages = f.averages_frame()
    mlps = averages[averages["kind"] == "mlp_out"]
    guesses = mlps[mlps["scenario"] == "guesswork"]
    tuned, prefaces = f.tuning_frame(), f.prefaces_frame()
    return {
        "causal": plot.causal_map(mlps, width=width),
        "causal-one": plot.causal_map(guesses, value="share", width=width),
        "profiles": plot.effect_profiles(averages[averages["kind"] != "attn_out"], width=width),
        "knockout": plot.knockout_curves(f.knockout_frame(), width=width),
        "knockout-one": plot.knockout_curves(
            f.knockout_frame(("exact recall",)).drop(columns="scenario"), None, width=width
        ),
        "extraction": plot.extraction_rates(f.rates_frame(), width=width),
        "layers": plot.layer_lines(
            f.knockout_frame(), "relative", ("lo", "hi"), panel="source", line="scenario", marked=(11, 13),
            title="Loss by layer", y={"subject": "loss (%)"}, width=width,
        ),
        "census": plot.fact_census(f.known_frame(), f.kinds_frame(), width=width),
        "census-known": plot.fact_census(f.known_frame((0,)), width=width),
        "dissociation": plot.dissociation(f.losses_frame(chance=("induction",)), width=width),
        "dissociation-two": plot.dissociation(
            f.losses_frame(), mechanisms=("fact layers 3", "retrieval heads"), width=width
        ),
        "gaps": plot.dissociation_gaps(f.gaps_frame(), width=width),
        "edits": plot.edit_scoreboard(f.scoreboard_frame(), width=width),
        "edits-one": plot.edit_scoreboard(
            f.scoreboard_frame(f.WAYS[:1]).drop(columns=["method", "at_once"]), width=width
        ),
        "against": plot.edits_against_effects(
            f.scan_frame(), f.traces_frame(), f.localisation_frame(), width=width
        ),
        "balance": plot.conflict_balance(f.ratios_frame(), width=width),
        "balance-thirds": plot.conflict_balance(
            f.ratios_frame(("low", "middle", "high")).query("setting in ['closed', '1:0']"), panel="group",
            width=width,
        ),
        "moves": plot.conflict_dose(f.moves_frame(), width=width),
        "moves-margin": plot.conflict_dose(f.moves_frame((1, 8), 0), "margin", width=width),
        "context-heads": plot.context_heads(f.context_heads_frame(), width=width),
        "accuracy": plot.accuracy_by_prior(f.accuracy_frame(), width=width),
        "prior-layers": plot.prior_layers(f.prior_layers_frame(), width=width),
        "prefaces": plot.changes_by_prior(
            prefaces, "preface", controls=("control: care", "control: weather"), title="A preface", width=width
        ),
        "tuning": plot.changes_by_prior(
            tuned, "kind", controls=("random",), title="Layers tuned on other answers", width=width
        ),
    }  # fmt: skip
