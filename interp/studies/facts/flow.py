"""Knockout, extraction, enrichment and cuts of MLPs in numbers, by scenario."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from interp.intervene.ablate import Ablate
from interp.locate.facts.fact_mlps import cut_values
from interp.locate.facts.lens import ANY
from interp.measure.scenarios import GENERIC
from interp.models.sites import MLP
from interp.models.subject import CausalLM
from interp.studies.facts.maps import name_of
from interp.studies.facts.means import Means, Told
from interp.tasks.base import Example, Span

CLEAN = "clean"
MORE = 2
"""A layer is a scenario's own if its cut costs the scenario more than so many times what it costs generic prompts."""

CONTENT = "content"
SCOPES = (CONTENT, "all")
"""Where MLPs are cut: at every token but the first, where models keep a sink of attention, and at all."""

UNIT = ["scenario", "example", "cluster"]


def cut_each_mlp(subject: CausalLM, examples: Sequence[Example]) -> pd.DataFrame:
    """Each MLP's output set to zero, at every token but the first and at all tokens.

    Returns:
        one row a prompt, scope (`SCOPES`) and layer: example, cluster, scope, layer, value (probability of the answer),
        clean.
    """
    cells = [(scope, layer) for scope in SCOPES for layer in range(subject.n_layers)]
    cuts = [
        Ablate((MLP(layer),), scope=(CONTENT, "answer") if scope == CONTENT else scope)
        for scope, layer in cells
    ]
    marked = [replace(e, spans=(*e.spans, Span(1, len(e.ids), CONTENT))) for e in examples]
    found = cut_values(subject, marked, cuts)
    return pd.DataFrame(
        {
            "example": i,
            "cluster": e.cluster or e.key(),
            "scope": scope,
            "layer": layer,
            "value": found[i, number],
            "clean": found[i, 0],
        }
        for i, e in enumerate(examples)
        for number, (scope, layer) in enumerate(cells, start=1)
    )


def lost(rows: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Rows for `Means`: what the answer loses in each cell that the columns `by` name, and its clean probability.

    Not every prompt has every cell, so each cell has a clean probability of its own.
    """
    feature = pd.Series(
        ["|".join(map(str, key)) for key in rows[list(by)].itertuples(index=False)], index=rows.index
    )
    at = rows[UNIT].assign(draw=0)
    cells = at.assign(feature=feature, value=rows["clean"] - rows["value"])
    whole = at.assign(feature=CLEAN + "|" + feature, value=rows["clean"])
    return pd.concat([cells, whole], ignore_index=True)


def share_lost(means: Means, scenario: str, *cell: object) -> Told:
    """Sum of the losses in a cell over the sum of the clean probabilities."""
    return means(scenario, name_of(*cell)) / means(scenario, name_of(CLEAN, *cell))


def knockout_curves(rows: pd.DataFrame, means: Means) -> pd.DataFrame:
    """What the answer loses when the last token cannot see a group of tokens in a window of layers.

    Returns:
        one row a scenario, source and layer: window, metric, clean, value (means), relative (percent: 100 times the sum
        of the losses over the sum of the clean probabilities, with a minus), lo, hi, n.
    """
    out = []
    for (scenario, source, layer), part in rows.groupby(["scenario", "source", "layer"], sort=False):
        relative, lo, hi = means.ends(scenario, -100 * share_lost(means, scenario, source, layer))
        out.append(
            {
                **{"scenario": scenario, "source": source, "layer": layer},
                **{"window": part["window"].iloc[0], "metric": part["metric"].iloc[0]},
                **{"clean": part["clean"].mean(), "value": part["value"].mean()},
                **{"relative": relative, "lo": lo, "hi": hi, "n": len(part)},
            }
        )
    return pd.DataFrame(out)


def spared(own: Told, generic: Told) -> Told:
    """How far a loss lies above `MORE` times that of generic prompts.

    A cut that ends all speech costs facts everything and generic prompts nearly so: a difference alone would pass it.
    """
    return own - MORE * np.clip(generic, 0.0, None)


def vital(means: Means, n_layers: int) -> pd.DataFrame:
    """What each MLP's cut costs by scenario, and whether generic prompts lose it too.

    Returns:
        one row a scenario, scope of the cut and layer: component, scope, layer, loss (share of the clean probability
        that is lost: sum over sum), lo, hi, difference (from that of generic prompts), difference_lo, difference_hi,
        and status: `vital` (generic prompts lose by it, and the scenario not `MORE` times as much), `own` (it does),
        `none` (neither). The status is that of the cut without the first token, in rows of either scope: a layer that
        only builds the sink of attention there is neither.
    """
    rows = []
    generic = GENERIC in means.scenarios
    for scenario in means.scenarios:
        status = [_status(means, scenario, layer) if generic else "none" for layer in range(n_layers)]
        for scope in SCOPES:
            for layer in range(n_layers):
                own = share_lost(means, scenario, scope, layer)
                loss, lo, hi = means.ends(scenario, own)
                row = {"scenario": scenario, "component": repr(MLP(layer)), "scope": scope, "layer": layer}
                row |= {"loss": loss, "lo": lo, "hi": hi, "status": status[layer]}
                if generic:
                    other = share_lost(means, GENERIC, scope, layer)
                    difference = means.ends((scenario, GENERIC), own - other)
                    row |= dict(
                        zip(("difference", "difference_lo", "difference_hi"), difference, strict=True)
                    )
                rows.append(row)
    return pd.DataFrame(rows)


def _status(means: Means, scenario: str, layer: int) -> str:
    own, other = (share_lost(means, s, CONTENT, layer) for s in (scenario, GENERIC))
    if scenario != GENERIC and means.ends((scenario, GENERIC), spared(own, other))[1] > 0:
        return "own"
    return "vital" if means.ends(GENERIC, other)[1] > 0 else "none"


def extraction_units(hits: pd.DataFrame) -> pd.DataFrame:
    """Rows for `Means`: whether a sublayer, or any of its kind, names what is said."""
    whole = hits.groupby([*UNIT, "kind"], sort=False)["hit"].any().reset_index().assign(layer=ANY)
    every = pd.concat([hits, whole], ignore_index=True)
    feature = [name_of(k, n) for k, n in zip(every["kind"], every["layer"], strict=True)]
    return every[UNIT].assign(draw=0, feature=feature, value=every["hit"].astype(float))


def enrichment_units(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows for `Means`: share of the subject's attributes that its state shows, less what others' states show."""
    return rows[UNIT].assign(draw=0, feature=rows["layer"].map(str), value=rows["rate"] - rows["control"])


def enrichment_curves(rows: pd.DataFrame, means: Means) -> pd.DataFrame:
    """Attributes in the state of the subject's last token.

    Returns:
        one row a scenario and layer: place, rate, control, difference, lo, hi, n.
    """
    out = []
    for (scenario, layer), part in rows.groupby(["scenario", "layer"], sort=False):
        difference, lo, hi = means.ends(scenario, means(scenario, str(layer)))
        out.append(
            {
                **{"scenario": scenario, "layer": layer, "place": part["place"].iloc[0]},
                **{"rate": part["rate"].mean(), "control": part["control"].mean()},
                **{"difference": difference, "lo": lo, "hi": hi, "n": len(part)},
            }
        )
    return pd.DataFrame(out)
