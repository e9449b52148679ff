"""The page's section on facts: its figures and the table of layers."""

from __future__ import annotations

from typing import Any

import pandas as pd

from interp.plot.text import number, percent, signed
from interp.report.figures import Chart, effect_table
from interp.report.tables import Tables

TOP_LAYERS, VITAL = 5, 2
"""Layers in the table: the best ones, and those whose loss costs plain text the most."""

MLPS, NEURONS = "fact MLPs", "fact neurons"


def charts(tables: Tables) -> list[Chart]:
    """Figures of the section: what is known, the causal profile, and what cutting layers and neurons costs."""
    from interp import plot

    out: list[Chart] = []
    census, profile, effects = tables.fact_census, tables.fact_profile, tables.fact_effects
    if census is not None:
        out.append(
            Chart("fact-census", "fact_census", lambda w: plot.fact_census(census, width=w), lambda: census)
        )
    if profile is not None:
        out.append(
            Chart(
                "fact-profile", "fact_profile", lambda w: plot.effect_profiles(profile, "said", width=w),
                lambda: profile_table(profile),
            )
        )  # fmt: skip
    if effects is not None and {"mechanism", "k"} <= set(effects):
        for name, mechanism in (("fact-cut", MLPS), ("fact-neuron-cut", NEURONS)):
            own = effects[effects["mechanism"] == mechanism]
            if own.empty:
                continue
            out.append(
                Chart(
                    name, "fact_effects",
                    lambda w, own=own: plot.control_strip(own, "logprob", int(own["k"].max()), width=w),  # type: ignore[misc]
                    lambda own=own: effect_table(own, metric=None),  # type: ignore[misc]
                )
            )  # fmt: skip
    return out


def profile_table(profile: pd.DataFrame) -> pd.DataFrame:
    """Cells of the profile, the largest effects first."""
    columns = ["said", "kind", "window", "place", "layer", "aie", "aie_lo", "aie_hi", "share", "te", "n"]
    told = profile[[c for c in columns if c in profile]]
    return told.sort_values("aie", ascending=False, kind="stable")


def top_layers(tables: Tables) -> list[dict[str, Any]]:
    """The best layers, and those without which the plain text suffers most."""
    layers = tables.fact_layers
    need = {"component", "aie", "aie_lo", "aie_hi", "share", "fact_loss", "off_loss", "score"}
    if layers is None or not need <= set(layers):
        return []
    best = layers.sort_values("score", ascending=False, kind="stable").head(TOP_LAYERS)
    vital = layers.drop(best.index).sort_values("off_loss", ascending=False, kind="stable").head(VITAL)
    return [
        {
            "component": str(row["component"]) + (", vital for all" if i >= len(best) else ""),
            "share": percent(float(row["share"])),
            "aie": signed(float(row["aie"]), 3),
            "interval": f"{number(float(row['aie_lo']), 3)} to {number(float(row['aie_hi']), 3)}",
            "fact_loss": number(float(row["fact_loss"]), 3),
            "off_loss": number(float(row["off_loss"]), 3),
            "score": number(float(row["score"]), 3),
        }
        for i, row in enumerate(pd.concat([best, vital]).to_dict("records"))
    ]
