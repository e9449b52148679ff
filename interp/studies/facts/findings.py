"""Published findings as numbers that could come out otherwise, each judged by one rule.

A finding is a difference that it says is above zero. It holds where the 95 % interval over subjects lies above zero, it
does not where the interval lies below, and otherwise it is undecided; a map whose corruption costs nothing that can be
told from zero decides nothing (`floor`), nor do fewer than `LEAST` subjects. Each is measured in the way nearest to the
one it was published with (`main`), and in other ways beside: how many of them come out alike is part of its row. Where
windows of layers are cut or restored, those that an end of the model cuts off are left out of bands: they hold less.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from interp.intervene.tracing.places import LAST, LAST_OF
from interp.locate.facts.lens import ANY
from interp.measure.scenarios import EXACT, GENERIC, GUESSWORK, HEURISTICS
from interp.studies.facts.flow import share_lost, spared
from interp.studies.facts.maps import TE, band_mean, centre, in_band, name_of, whole
from interp.studies.facts.means import Means, Told

HOLDS, FAILS, UNDECIDED, FLOOR = "holds", "does not", "undecided", "floor"
FEW, MISSING = "too few subjects", "not measured"
VERDICTS = (HOLDS, FAILS, UNDECIDED, FLOOR, FEW, MISSING)

LEAST = 5
"""Subjects of each scenario from which an interval is told; of fewer, a bootstrap makes it too narrow."""

SITES = ("wide", "single", "noise")
"""Ways to trace sublayers: wide windows and single layers with another subject, wide windows with noise."""
STATES = ("single", "noise")


@dataclass(frozen=True)
class Finding:
    """One published finding.

    Attributes:
        name: short.
        says: in words, of this model.
        source: who found it.
        statistic: what has to lie above zero, in words.
        scenarios: of the prompts that it is about.
        ways: measurements that it can be told from, the main one first.
        value: the statistic, of means and the number of layers.
        unit: of the statistic.
    """

    name: str
    says: str
    source: str
    statistic: str
    scenarios: tuple[str, ...]
    ways: tuple[str, ...]
    value: Callable[[Means, int], Told]
    unit: str = "of the metric"


MENG = "Meng et al. 2022"
GEVA = "Geva et al. 2023"
PRISM = "Saynova et al. 2025"


def _band(kind: str, place: str, band: str) -> Callable[[Means, int, str], Told]:
    return lambda means, n_layers, scenario: band_mean(means, scenario, kind, place, band, n_layers)


_SUBJECT = _band("mlp_out", LAST_OF, "middle")
_SUBJECT_FIRST = _band("mlp_out", LAST_OF, "first")
_SUBJECT_LATE = _band("mlp_out", LAST_OF, "late")
_LAST = _band("mlp_out", LAST, "late")
_ATTENTION_LAST = _band("attn_out", LAST, "late")
_ATTENTION_SUBJECT = _band("attn_out", LAST_OF, "middle")
_STATE_SUBJECT = _band("resid_post", LAST_OF, "middle")
_STATE_LAST = _band("resid_post", LAST, "middle")

Site = Callable[[Means, int, str], Told]


def _over(scenario: str, one: Site, other: Site) -> Callable[[Means, int], Told]:
    """How much more one site brings back than another, in one scenario."""
    return lambda means, n: one(means, n, scenario) - other(means, n, scenario)


def _between(one: str, other: str, site: Site) -> Callable[[Means, int], Told]:
    """How much more of its total effect a site brings back in one scenario than in another."""
    return lambda means, n: site(means, n, one) / means(one, TE) - site(means, n, other) / means(other, TE)


def _through(means: Means, n_layers: int) -> Told:
    """How much more a state loses when the token's later MLPs are severed than when its attention is."""

    def severed(kind: str) -> Told:
        return band_mean(means, EXACT, "resid_post", LAST_OF, ("first", "middle"), n_layers, kind)

    return severed("attn_out") - severed("mlp_out")


def _read_centre(means: Means, source: str, n_layers: int) -> Told:
    layers = list(range(n_layers))
    return centre(means.over(EXACT, [name_of(source, n) for n in layers]), layers)


def _read_late(means: Means, n_layers: int) -> Told:
    """Windows that are cut off hide the subject from fewer layers, so they cost less whatever is read where."""
    subject = {
        n: share_lost(means, EXACT, "subject", n) for n in range(n_layers) if whole(n, means.window, n_layers)
    }
    early = [told for n, told in subject.items() if in_band(n, n_layers, "first")]
    later = [told for n, told in subject.items() if not in_band(n, n_layers, "first")]
    if not early or not later:
        return np.full(len(means.over(EXACT, [])), np.nan)
    out: Told = np.mean(later, axis=0) - np.mean(early, axis=0)
    return out


def _mid_site(means: Means, n_layers: int) -> Told:
    """The smaller one of what middle layers bring back beyond the first ones and beyond the late ones."""
    parts = [_over(EXACT, _SUBJECT, other)(means, n_layers) for other in (_SUBJECT_FIRST, _SUBJECT_LATE)]
    out: Told = np.minimum(*parts)
    return out


def _in_layers(means: Means, n_layers: int, band: str, *of: object) -> Told:
    """Mean over the layers of a band."""
    own = [name_of(*of, n) for n in range(n_layers) if in_band(n, n_layers, band)]
    out: Told = means.over(EXACT, own).mean(1)
    return out


def _enriched(means: Means, n_layers: int) -> Told:
    return _in_layers(means, n_layers, "middle")


def _enriched_more(means: Means, n_layers: int) -> Told:
    return _in_layers(means, n_layers, "middle") - _in_layers(means, n_layers, "first")


def _peak(means: Means, n_layers: int) -> Told:
    """What the peak layer's cut costs facts over twice what it costs generic prompts; of that layer's cut alone."""
    return spared(share_lost(means, EXACT, "peak"), share_lost(means, GENERIC, "peak"))


_SHARE = "share of the total effect"
_CLEAN = "share of the clean probability"
_PROMPTS = "share of prompts"

FINDINGS = (
    Finding(
        "early site of MLPs",
        "exact recall: MLPs of the subject's last token bring the fact back in middle layers, not in late ones",
        MENG,
        "IE of MLPs at the last subject token: middle layers less late ones",
        (EXACT,),
        SITES,
        _over(EXACT, _SUBJECT, _SUBJECT_LATE),
    ),
    Finding(
        "no first site of MLPs",
        "exact recall: MLPs of the subject's last token bring the fact back in middle layers, not in the first ones",
        MENG,
        "IE of MLPs at the last subject token: middle layers less first ones",
        (EXACT,),
        SITES,
        _over(EXACT, _SUBJECT, _SUBJECT_FIRST),
    ),
    Finding(
        "middle site of MLPs",
        "exact recall: it is the middle MLPs at the subject's last token that bring the fact back, neither the first "
        "nor the late ones",
        MENG,
        "IE of MLPs at the last subject token: middle layers less first or late ones, the smaller difference",
        (EXACT,),
        SITES,
        _mid_site,
    ),
    Finding(
        "facts at the subject",
        "exact recall: middle MLPs at the subject's last token bring back more than late MLPs at the last token",
        PRISM,
        "IE of MLPs: middle layers at the last subject token less late layers at the last token",
        (EXACT,),
        SITES,
        _over(EXACT, _SUBJECT, _LAST),
    ),
    Finding(
        "language at the subject",
        "generic prompts do as exact recall does",
        PRISM,
        "IE of MLPs: middle layers at the last subject token less late layers at the last token",
        (GENERIC,),
        SITES,
        _over(GENERIC, _SUBJECT, _LAST),
    ),
    Finding(
        "guesses at the end",
        "guesswork: late MLPs at the last token bring back more than middle MLPs at the subject's last token",
        PRISM,
        "IE of MLPs: late layers at the last token less middle layers at the last subject token",
        (GUESSWORK,),
        SITES,
        _over(GUESSWORK, _LAST, _SUBJECT),
    ),
    Finding(
        "heuristics at the end",
        "heuristics: late MLPs at the last token bring back more than middle MLPs at the subject's last token",
        PRISM,
        "IE of MLPs: late layers at the last token less middle layers at the last subject token",
        (HEURISTICS,),
        SITES,
        _over(HEURISTICS, _LAST, _SUBJECT),
    ),
    *(
        Finding(
            f"facts against {other}",
            f"middle MLPs at the subject's last token bring back more of exact recall than of {other}",
            PRISM,
            f"IE over TE of middle MLPs at the last subject token: exact recall less {other}",
            (EXACT, other),
            SITES,
            _between(EXACT, other, _SUBJECT),
            _SHARE,
        )
        for other in (GUESSWORK, HEURISTICS)
    ),
    *(
        Finding(
            f"{other} against facts",
            f"late MLPs at the last token bring back more of {other} than of exact recall",
            PRISM,
            f"IE over TE of late MLPs at the last token: {other} less exact recall",
            (other, EXACT),
            SITES,
            _between(other, EXACT, _LAST),
            _SHARE,
        )
        for other in (GUESSWORK, HEURISTICS)
    ),
    Finding(
        "late site of attention",
        "exact recall: late attention at the last token brings back more than middle attention at the subject",
        MENG,
        "IE of attention: late layers at the last token less middle layers at the last subject token",
        (EXACT,),
        SITES,
        _over(EXACT, _ATTENTION_LAST, _ATTENTION_SUBJECT),
    ),
    Finding(
        "state at the subject",
        "exact recall: in middle layers the fact is in the state of the subject's last token, not yet in the last",
        MENG,
        "IE of states in middle layers: last subject token less last token",
        (EXACT,),
        STATES,
        _over(EXACT, _STATE_SUBJECT, _STATE_LAST),
    ),
    Finding(
        "through MLPs",
        "exact recall: what a state of the subject's last token brings back goes through the token's later MLPs "
        "more than through its attention",
        MENG,
        "IE of states in first and middle layers: attention severed less MLPs severed",
        (EXACT,),
        ("severed",),
        _through,
    ),
    Finding(
        "relation first",
        "exact recall: the last token reads the subject in later layers than the other words (without the first token)",
        GEVA,
        "mean layer of what knockout costs: subject less other tokens",
        (EXACT,),
        ("knockout",),
        lambda means, n: _read_centre(means, "subject", n) - _read_centre(means, "other", n),
        "layers",
    ),
    Finding(
        "subject read late",
        "exact recall: hiding the subject from the last token costs more in middle and late layers than in the first",
        GEVA,
        "share lost by knockout of the subject: middle and late layers less first ones, whole windows",
        (EXACT,),
        ("knockout",),
        _read_late,
        _CLEAN,
    ),
    Finding(
        "attention extracts",
        "exact recall: attention names the answer in some layer for more prompts than MLPs do",
        GEVA,
        "prompts extracted in any layer: by attention less by MLPs",
        (EXACT,),
        ("extraction",),
        lambda means, n: means(EXACT, name_of("attn_out", ANY)) - means(EXACT, name_of("mlp_out", ANY)),
        _PROMPTS,
    ),
    Finding(
        "extraction is late",
        "exact recall: attention names the answer in late layers rather than in middle ones",
        GEVA,
        "extraction rate of attention a layer: late less middle",
        (EXACT,),
        ("extraction",),
        lambda means, n: (
            _in_layers(means, n, "late", "attn_out") - _in_layers(means, n, "middle", "attn_out")
        ),
        _PROMPTS,
    ),
    Finding(
        "subject enriched",
        "exact recall: in middle layers the subject's attributes show in its state rather than in other subjects'",
        GEVA,
        "share of the attributes in the lens at the last subject token, middle layers: its state less other subjects'",
        (EXACT,),
        ("enrichment",),
        _enriched,
        "share of attributes",
    ),
    Finding(
        "enriched by middle layers",
        "exact recall: the subject's attributes come up from the first to the middle layers",
        GEVA,
        "attributes in its state less in other subjects' at the last subject token: middle layers less first ones",
        (EXACT,),
        ("enrichment",),
        _enriched_more,
        "share of attributes",
    ),
    Finding(
        "peak is no vital layer",
        "the MLP that is highest in the map of exact recall costs facts more than twice what it costs generic prompts "
        "when it is cut",
        MENG,
        "share lost by cutting the peak's MLP (chosen on other subjects): exact recall less twice generic prompts",
        (EXACT, GENERIC),
        ("peak",),
        _peak,
        _CLEAN,
    ),
)


def judged(value: float, lo: float, hi: float, *, floor: bool = False) -> str:
    """What an interval says of a finding.

    >>> judged(0.2, 0.1, 0.3), judged(-0.2, -0.3, -0.1), judged(0.1, -0.1, 0.3), judged(0.2, 0.1, 0.3, floor=True)
    ('holds', 'does not', 'undecided', 'floor')
    """
    if any(map(math.isnan, (value, lo, hi))):
        return MISSING
    if floor:
        return FLOOR
    return HOLDS if lo > 0 else FAILS if hi < 0 else UNDECIDED


Measured = Mapping[tuple[str, str], Means]
"""Means by way and metric."""


def findings(measured: Measured, n_layers: int, floors: pd.DataFrame) -> pd.DataFrame:
    """Every finding in every way that it was measured.

    Args:
        floors: what `total_effects` returns, with the way of each row in the column `way`.

    Returns:
        one row a finding, way and metric: finding, says, source, statistic, unit, scenarios, way, metric, main, value,
        lo, hi (95 %), n (prompts of the rarest scenario), n_clusters, verdict, and for the main rows `alike` of `ways`:
        how many of all ways have the same verdict.
    """
    low = {(r.way, r.metric, r.scenario) for r in floors[floors["status"] == FLOOR].itertuples()}
    parts = []
    for finding in FINDINGS:
        rows = []
        for way in finding.ways:
            for (have, metric), means in measured.items():
                if have == way:
                    rows.append(_row(finding, way, metric, means, n_layers, low))
        if not rows:
            rows.append(_row(finding, finding.ways[0], "probability", None, n_layers, low))
        frame = pd.DataFrame(rows)
        first = frame["verdict"].iloc[0]
        frame["main"] = [i == 0 for i in range(len(frame))]
        frame["alike"] = np.where(frame["main"], (frame["verdict"] == first).sum(), -1)
        frame["ways"] = np.where(frame["main"], len(frame), -1)
        parts.append(frame)
    return pd.concat(parts, ignore_index=True)


def _row(
    finding: Finding,
    way: str,
    metric: str,
    means: Means | None,
    n_layers: int,
    low: set[tuple[str, str, str]],
) -> dict[str, object]:
    row: dict[str, object] = {
        "finding": finding.name,
        "says": finding.says,
        "source": finding.source,
        "statistic": finding.statistic,
        "unit": metric if finding.unit == "of the metric" else finding.unit,
        "scenarios": ", ".join(finding.scenarios),
        **{"way": way, "metric": metric},
        **{"value": math.nan, "lo": math.nan, "hi": math.nan, "n": 0, "n_clusters": 0},
        "verdict": MISSING,
    }
    if means is None or _lacking(finding.scenarios, means.scenarios):
        return row
    value, lo, hi = means.ends(finding.scenarios, finding.value(means, n_layers))
    at_floor = any((way, metric, s) in low for s in finding.scenarios)
    row |= {"value": value, "lo": lo, "hi": hi, "verdict": judged(value, lo, hi, floor=at_floor)}
    row["n"] = min(means.examples[s] for s in finding.scenarios)
    row["n_clusters"] = subjects = min(means.clusters[s] for s in finding.scenarios)
    if subjects < LEAST and row["verdict"] != MISSING:
        row["verdict"] = FEW
    return row


def _lacking(wanted: Sequence[str], have: Sequence[str]) -> bool:
    return not set(wanted) <= set(have)
