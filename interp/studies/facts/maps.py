"""Causal maps in numbers: effects by scenario, peaks with intervals, and what generic prompts have there."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from interp.intervene.tracing.cells import WINDOWED, window_of
from interp.intervene.tracing.places import LAST, LAST_OF
from interp.measure.scenarios import GENERIC
from interp.studies.facts.means import UNIT, Means, Told

TE = "te"
KINDS = ("resid_post", "attn_out", "mlp_out")
METRICS = ("probability", "logit_diff")

BANDS = {"first": (0.0, 1 / 6), "middle": (1 / 6, 2 / 3), "late": (2 / 3, 1.0)}
"""Bands of layers by depth. Set by the published maps of GPT-2 XL: 48 layers, with MLP peaks at layers 15 to 18 for the
subject and at 34 and 35 for the last token."""


def name_of(*parts: object) -> str:
    """Name of a feature."""
    return "|".join(map(str, parts))


def cell(kind: str, place: str, layer: int, severed: str = "") -> str:
    """Name of a cell's indirect effect."""
    return name_of(kind, severed, place, layer)


def units(maps: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Rows for `Means`: indirect effects of cells, tokens of one place averaged, and total effects."""
    own = maps[maps["metric"] == metric]
    own = own.assign(ie=own["value"] - own["low"], te=own["high"] - own["low"])
    at = own.groupby([*UNIT, "kind", "place", "layer", "severed"], sort=False)["ie"].mean().reset_index()
    feature = [
        cell(k, p, n, s)
        for k, p, n, s in zip(at["kind"], at["place"], at["layer"], at["severed"], strict=True)
    ]
    whole = own.drop_duplicates(UNIT)
    return pd.concat(
        [
            at[UNIT].assign(feature=feature, value=at["ie"]),
            whole[UNIT].assign(feature=TE, value=whole["te"]),
        ],
        ignore_index=True,
    )


def layers_of(means: Means, kind: str, place: str, severed: str = "") -> list[int]:
    """Layers in which a kind is restored at a place."""
    start = cell(kind, place, 0, severed)[:-1]
    return sorted(int(str(f)[len(start) :]) for f in means.features if str(f).startswith(start))


def in_band(layer: int, n_layers: int, band: str) -> bool:
    """Whether a layer lies in a band of the model.

    >>> [b for b in BANDS if in_band(15, 48, b)], [b for b in BANDS if in_band(34, 48, b)]
    (['middle'], ['late'])
    """
    low, high = BANDS[band]
    return low <= layer / n_layers < high


def whole(layer: int, window: int, n_layers: int) -> bool:
    """Whether no end of the model cuts the window around a layer off: less is restored or cut in a shorter one.

    >>> [n for n in range(6) if whole(n, 3, 6)]
    [1, 2, 3, 4]
    """
    return len(window_of(layer, window, n_layers)) == window


def band_mean(
    means: Means,
    scenario: str,
    kind: str,
    place: str,
    band: str | Sequence[str],
    n_layers: int,
    severed: str = "",
) -> Told:
    """Mean indirect effect over the layers of a band, or several, whose windows are whole; NaN where there is none."""
    bands = [band] if isinstance(band, str) else band
    window = means.window if kind in WINDOWED else 1
    own = [
        n
        for n in layers_of(means, kind, place, severed)
        if any(in_band(n, n_layers, b) for b in bands) and whole(n, window, n_layers)
    ]
    found = means.over(scenario, [cell(kind, place, n, severed) for n in own])
    return found.mean(1) if own else np.full(len(found), np.nan)


def total_effects(maps: pd.DataFrame, n_resamples: int, seed: int) -> pd.DataFrame:
    """What the corruption costs, by scenario.

    Returns:
        one row a scenario, corruption and metric: n, n_clusters, high and low (of the clean and the corrupted run), te,
        te_lo, te_hi (95 %, over subjects and draws) and status: `ok`, or `floor` where the interval includes zero.
    """
    rows: list[dict[str, Any]] = []
    for (corruption, metric), part in maps.groupby(["corruption", "metric"], sort=False):
        means = Means(units(part, metric), n_resamples, seed)
        runs = part.drop_duplicates(UNIT).groupby("scenario")[["high", "low"]].mean()
        for scenario in means.scenarios:
            te, lo, hi = means.ends(scenario, means(scenario, TE))
            rows.append(
                {
                    "scenario": scenario,
                    "corruption": corruption,
                    "metric": metric,
                    "n": means.examples[scenario],
                    "n_clusters": means.clusters[scenario],
                    "high": runs.loc[scenario, "high"],
                    "low": runs.loc[scenario, "low"],
                    **{"te": te, "te_lo": lo, "te_hi": hi},
                    "status": "ok" if lo > 0 else "floor",
                }
            )
    return pd.DataFrame(rows)


def peaks(means: Means, kinds: Sequence[str] = KINDS) -> pd.DataFrame:
    """The layer at which an average map is highest, at the subject's last token and at the last one.

    Returns:
        one row a scenario, kind and place: layer, layer_lo, layer_hi (95 % of the resamples' peaks), aie, aie_lo,
        aie_hi (at that layer; the highest of many is too high by chance), share (of the total effect).
    """
    rows = []
    for scenario, kind, place in product(means.scenarios, kinds, (LAST_OF, LAST)):
        own = layers_of(means, kind, place)
        if not own:
            continue
        found = means.over(scenario, [cell(kind, place, n) for n in own])
        # A resample may lack a scenario that has few subjects.
        at = np.array(own)[found[~np.isnan(found).any(1)].argmax(1)]
        best = int(at[0])
        aie, lo, hi = means.ends(scenario, means(scenario, cell(kind, place, best)))
        layer_lo, layer_hi = np.percentile(at[1:], [2.5, 97.5], method="nearest")
        share = aie / float(means(scenario, TE)[0])
        rows.append(
            {
                **{"scenario": scenario, "kind": kind, "place": place},
                **{"layer": best, "layer_lo": int(layer_lo), "layer_hi": int(layer_hi)},
                **{"aie": aie, "aie_lo": lo, "aie_hi": hi, "share": share},
            }
        )
    return pd.DataFrame(rows)


def against_generic(means: Means, kinds: Sequence[str] = KINDS) -> pd.DataFrame:
    """What a scenario has at a layer that generic prompts do not have: a layer that is vital for all has no difference.

    Returns:
        one row a scenario, kind, place (last subject, last) and layer: share and generic (sums of IE over sums of TE),
        difference, lo, hi.
    """
    rows = []
    for scenario, kind, place in product(means.scenarios, kinds, (LAST_OF, LAST)):
        if scenario == GENERIC or GENERIC not in means.scenarios:
            continue
        for layer in layers_of(means, kind, place):
            own, other = (means(s, cell(kind, place, layer)) / means(s, TE) for s in (scenario, GENERIC))
            difference, lo, hi = means.ends((scenario, GENERIC), own - other)
            rows.append(
                {
                    **{"scenario": scenario, "kind": kind, "place": place, "layer": layer},
                    **{"share": own[0], "generic": other[0]},
                    **{"difference": difference, "lo": lo, "hi": hi},
                }
            )
    return pd.DataFrame(rows)


def centre(loss: Float[np.ndarray, "b l"], layers: Sequence[int]) -> Told:
    """Mean layer of a profile, weighted by its positive part; NaN where there is none."""
    weight = np.clip(loss, 0.0, None)
    with np.errstate(invalid="ignore", divide="ignore"):
        out: np.ndarray = weight @ np.asarray(layers, float) / weight.sum(1)
    return out
