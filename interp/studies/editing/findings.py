"""What the tables say of published findings, by one rule: an interval that lies above 0, below it, or neither."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd

from interp.measure.stats import bootstrap_ci
from interp.studies.editing.scoring import by_record, difference
from interp.studies.editing.writing import CONTROLS

TOGETHER = "rome together"


FEWEST = 6
"""Units that an interval has to be over: of fewer, all of one sign come up by chance in more than 5 % of cases."""

TRACES = (("mlp_out", "noise", "probability"), ("mlp_out", "subject_swap", "logit_diff"))
"""Traces that a finding is told of, the reference's and the advised one; table `localisation` has all."""


def verdict(low: float, high: float, n: int) -> str:
    """`holds` where the interval lies above 0, `does not` where it lies below, else `undecided`; so with few units.

    >>> verdict(0.1, 0.2, 50), verdict(-0.2, -0.1, 50), verdict(-0.1, 0.1, 50), verdict(0.1, 0.2, 5)
    ('holds', 'does not', 'undecided', 'undecided')
    """
    if math.isnan(low) or math.isnan(high) or n < FEWEST:
        return "undecided"
    return "holds" if low > 0 else "does not" if high < 0 else "undecided"


def findings(
    scores: pd.DataFrame,
    changes: pd.DataFrame,
    drift: pd.DataFrame | None,
    localisation: pd.DataFrame | None,
    *,
    seed: int,
) -> pd.DataFrame:
    """One row a finding: finding, statistic, value, ci_lo, ci_hi, n, verdict. Each is put so that above 0 it holds."""
    rows = _written(changes)
    own = {(m, int(n)): part for (m, n), part in scores.groupby(["method", "at_once"], sort=False)}
    after = {key: by_record(part, "after") for key, part in own.items()}
    for kind in CONTROLS:
        if ("rome", 1) in after and (kind, 1) in after:
            delta = after["rome", 1]["ES"] - after[kind, 1]["ES"].loc[after["rome", 1].index]
            rows.append(
                _mean(
                    "ROME writes the fact, and a control edit of its size does not",
                    f"ES of ROME - {kind}",
                    delta,
                    seed,
                )
            )
    for (method, n), means in after.items():
        if method == "memit" and n > 1 and (TOGETHER, n) in after:
            value, low, high = difference(means, after[TOGETHER, n], seed=seed)
            rows.append(
                _row(
                    f"of {n} facts at once MEMIT writes more than ROME",
                    "S of MEMIT - ROME",
                    value,
                    low,
                    high,
                    len(means),
                )
            )
        if method == "memit" and n > 1 and ("memit", 1) in after:
            value, low, high = difference(after["memit", 1], means, seed=seed)
            rows.append(
                _row(
                    f"MEMIT writes {n} facts at once worse than one alone",
                    f"S of 1 - S of {n}",
                    value,
                    low,
                    high,
                    len(means),
                )
            )
    if drift is not None:
        for (method, n), part in drift.groupby(["method", "at_once"], sort=False):
            each = (part["nll_after"] - part["nll_before"]).groupby(part["passage"]).mean()
            rows.append(
                _mean(f"other text gets less likely under {method}, {n} at once", "nats a token", each, seed)
            )
    if localisation is not None:
        for r in localisation.to_dict("records"):
            if (r["trace"], r["corruption"], r["metric"]) not in TRACES:
                continue
            about = f"{r['trace']}, {r['corruption']}, {r['metric']}"
            rows.append(
                _row(
                    f"a trace says in which layer a fact is written best ({r['kind']})",
                    f"Spearman over layers, mean of records: {about}",
                    r["within"], r["ci_lo"], r["ci_hi"], r["records"],
                )
            )  # fmt: skip
    return pd.DataFrame(rows)


def _written(changes: pd.DataFrame) -> list[dict[str, Any]]:
    """What edits do to the edited prompt, to other wordings and to neighbours."""
    told = {
        "ES": ("writes the fact", 1),
        "PS": ("writes it for other wordings too", 1),
        "NS": ("costs neighbours their answers", -1),
    }
    rows = []
    for r in changes.to_dict("records"):
        if r["method"] in CONTROLS or r["measure"] not in told:
            continue
        what, sign = told[r["measure"]]
        low, high = sorted((sign * r["ci_lo"] + 0.0, sign * r["ci_hi"] + 0.0))
        name = f"{r['method']}, {r['at_once']} at once, {what}"
        rows.append(
            _row(
                name,
                f"{r['measure']} {'gained' if sign > 0 else 'lost'}",
                sign * r["delta"],
                low,
                high,
                r["n"],
            )
        )
    return rows


def _mean(finding: str, statistic: str, values: pd.Series, seed: int) -> dict[str, Any]:
    """The mean of one number a record, or passage."""
    numbers = values.to_numpy(float)
    low, high = bootstrap_ci(numbers, list(map(str, values.index)), seed=seed)
    return _row(finding, statistic, float(np.mean(numbers)), low, high, len(numbers))


def _row(finding: str, statistic: str, value: float, low: float, high: float, n: int) -> dict[str, Any]:
    about = {"finding": finding, "statistic": statistic, "value": value, "ci_lo": low, "ci_hi": high, "n": n}
    return {**about, "verdict": verdict(low, high, n)}
