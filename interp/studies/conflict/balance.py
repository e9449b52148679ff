"""Whose answer is given behind which statements: shares and ratios by setting, and differences between settings."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from interp.measure.conflict import CONTEXT, MEMORY, OTHER, memorisation, taken
from interp.measure.priors import BINS, gap_ci
from interp.measure.stats import bootstrap_ci, sign_flip
from interp.models.cache import Progress
from interp.models.subject import CausalLM
from interp.studies.conflict.spec import Setting
from interp.tasks.base import Example

CLOSED, ELSEWHERE, SINGLE = "closed", "elsewhere", Setting().name
COUNTS = ["setting", "counter", "memory", "irrelevant", "first"]


def counted(setting: str | Setting) -> dict[str, object]:
    """What a setting puts in front of the question, as rows have it."""
    if isinstance(setting, str):
        return dict(zip(COUNTS, (setting, 0, 0, int(setting == ELSEWHERE), ""), strict=True))
    first = setting.order.removesuffix("_first") if setting.memory else "counter"
    return dict(
        zip(COUNTS, (setting.name, setting.counter, setting.memory, setting.irrelevant, first), strict=True)
    )


def answered(
    subject: CausalLM,
    examples: Sequence[Example],
    facts: pd.DataFrame,
    setting: str | Setting,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """One row a fact: what is said in one setting.

    Args:
        facts: of `prompts.census`, the row of each example.
    """
    found = taken(subject, examples, {"": None}, progress=progress)
    about = facts[["relation", "subject", "template", "third", "split"]].reset_index(drop=True)
    return about.assign(
        example=range(len(about)),
        **counted(setting),
        side=list(found.sides[:, 0]),
        margin=found.margin[:, 0],
        memory_logprob=found.memory[:, 0],
        context_logprob=found.context[:, 0],
        cluster=list(found.clusters),
    )


def ratios(sides: pd.DataFrame) -> pd.DataFrame:
    """Memorisation ratio by setting: of all facts (`by` all), by relation, and by third of popularity.

    Returns:
        by, group, the columns of a setting, and those of `interp.measure.conflict.memorisation`.
    """
    order = list(dict.fromkeys(sides["setting"]))
    parts = []
    for by in ("all", "relation", "third"):
        group = sides.assign(group="" if by == "all" else sides[by])
        found = memorisation(group, ["group", *COUNTS]).assign(by=by)
        parts.append(found.sort_values("setting", key=lambda c: c.map(order.index), kind="stable"))
    out = pd.concat(parts, ignore_index=True)
    return out[["by", *(c for c in out.columns if c != "by")]]


def contrasts(sides: pd.DataFrame, *, seed: int) -> pd.DataFrame:
    """What more, or another order, of statements does to the same facts; and what popularity does.

    Returns:
        contrast, a, b (settings, or thirds of one; a list of them is averaged first), statistic (`memory`, `context`:
        shares of all answers; `margin`: memory less context, in nats), value (a less b), ci_lo, ci_hi (95 %, over
        subjects), p (signs flipped by subject; NaN where facts are not paired), n, n_clusters.
    """
    there = set(sides["setting"])
    rows = []
    for name, a, b in _pairs(there):
        for statistic in (MEMORY, CONTEXT, "margin"):
            wide = _wide(sides, statistic)
            delta = (wide[a].mean(axis=1) - wide[b].mean(axis=1)).to_numpy()
            clusters = wide.index.get_level_values("cluster").to_numpy()
            lo, hi = bootstrap_ci(delta, clusters, seed=seed)
            rows.append(
                {
                    "contrast": name,
                    "a": ", ".join(a),
                    "b": ", ".join(b),
                    "statistic": statistic,
                    "value": float(delta.mean()),
                    "ci_lo": lo,
                    "ci_hi": hi,
                    "p": sign_flip(delta, clusters, seed=seed),
                    "n": len(delta),
                    "n_clusters": len(set(clusters)),
                }
            )
    for setting in (s for s in dict.fromkeys(sides["setting"]) if s != CLOSED):
        own = sides[(sides["setting"] == setting) & sides["third"].isin((BINS[0], BINS[-1]))]
        if own["third"].nunique() < 2:
            continue
        for statistic in (MEMORY, CONTEXT, "margin"):
            rows.append(_popular(own, setting, statistic, seed))
    return pd.DataFrame(rows)


def _pairs(there: set[str]) -> list[tuple[str, list[str], list[str]]]:
    """Named pairs of settings (or of lists of them) of which both are there."""

    def both(amount: str) -> list[str]:
        return [f"{amount} memory first", f"{amount} counter first"]

    every = [
        ("statement", [SINGLE], [ELSEWHERE]),
        ("distraction", [ELSEWHERE], [CLOSED]),
        ("context twice", ["2:0"], [SINGLE]),
        ("memory beside it", both("1:1"), [SINGLE]),
        ("context twice beside memory", both("2:1"), both("1:1")),
        ("memory twice beside context", both("1:2"), both("1:1")),
        *((f"order {amount}", [both(amount)[0]], [both(amount)[1]]) for amount in ("1:1", "2:1", "1:2")),
        *((f"irrelevant {n}", [f"1:0 +{n}"], [SINGLE]) for n in range(1, 8)),
    ]
    return [(name, a, b) for name, a, b in every if {*a, *b} <= there]


def value_of(sides: pd.DataFrame, statistic: str) -> pd.Series:
    """A statistic of each row: 1 where a side is taken, or the margin."""
    if statistic == "margin":
        return sides["margin"]
    return (sides["side"] == statistic).astype(float)


def _wide(sides: pd.DataFrame, statistic: str) -> pd.DataFrame:
    """One row a fact, one column a setting."""
    own = sides.assign(value=value_of(sides, statistic))
    return own.pivot_table(index=["example", "cluster"], columns="setting", values="value")


def _popular(own: pd.DataFrame, setting: str, statistic: str, seed: int) -> dict[str, object]:
    """High less low popularity (by token rank) in one setting; a subject of several relations is drawn once."""
    high = (own["third"] == BINS[-1]).to_numpy()
    values = value_of(own, statistic).to_numpy()
    clusters = own["cluster"].to_numpy()
    lo, hi = gap_ci(values, high, clusters, seed=seed)
    return {
        "contrast": "popularity",
        "a": f"{setting} {BINS[-1]}",
        "b": f"{setting} {BINS[0]}",
        "statistic": statistic,
        "value": float(values[high].mean() - values[~high].mean()),
        "ci_lo": lo,
        "ci_hi": hi,
        "p": np.nan,
        "n": len(values),
        "n_clusters": len(set(clusters)),
    }


SIDES = (MEMORY, CONTEXT, OTHER)
