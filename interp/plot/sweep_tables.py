"""What figures of sweeps draw, as tables made of a merged one: dose curves, layer profiles, effects beyond controls.

Units of several seeds are taken together: values are means over seeds, and intervals those of a mean of independent
draws. `n` counts the examples of all of them, `draws` their control draws.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np
import pandas as pd

from interp.errors import UsageError
from interp.plot.check import EFFECTS, need
from interp.plot.conditions import AT_CHANCE, LESS_IS_BETTER

METRICS = ("choice", "accuracy", "nll")
"""A task that has not the metric asked for is shown in the first of these that it has."""

EVERY = "every "
"""Mechanisms that begin so were cut part by part, without a ranking."""

UNIT = ("subject", "mechanism", "locator", "cut", "task")
DOSES = (*UNIT, "metric", "line", "k", "value", "lo", "hi", "n", "draws")
LAYERS = (*UNIT, "metric", "line", "layer", "delta", "lo", "hi", "n", "draws")
BEYOND = (
    *UNIT, "role", "metric", "k", "clean", "delta", "control", "control_lo", "control_hi", "beyond", "lo", "hi",
    "rank", "draws", "n", "status",
)  # fmt: skip


def told(frame: pd.DataFrame, metric: str, what: str) -> pd.DataFrame:
    """Rows of the metric, or of the metric that a task has in its place.

    Raises:
        UsageError: missing columns, no row, or two units that are told apart by no label.
    """
    need(
        frame, (*EFFECTS, "cut", "seed", "unit"), what, numeric=("k", "value", "delta", "ci_lo", "ci_hi", "n")
    )
    frame = frame.assign(locator=_located(frame))
    shared = frame.groupby([*UNIT, "seed"], sort=False)["unit"].nunique()
    if (shared > 1).any():
        raise UsageError(
            f"{what}: {shared.idxmax()} is the name of two units; filter the table to one of them"
        )
    wanted = (metric, *(m for m in METRICS if m != metric))
    has = frame.groupby("task", sort=False)["metric"].agg(
        lambda own: next((m for m in wanted if m in set(own)), "")
    )
    rows = frame[frame["metric"] == frame["task"].map(has)]
    if rows.empty:
        raise UsageError(f"{what}: no row of metric {', '.join(wanted)}")
    return rows


def dose_table(frame: pd.DataFrame, metric: str = "choice") -> pd.DataFrame:
    """Value by components cut: line `cut` with 95 % intervals, `controls` with their 5th to 95th percentile, `clean`.

    Left out are tasks at which the clean model is at chance (the floor rule), and parts that were cut one by one.

    Raises:
        UsageError: missing columns, or no row.
    """
    rows = told(frame, metric, "dose_table")
    rows = rows[~rows["mechanism"].str.startswith(EVERY) & (rows["status"] != AT_CHANCE)]
    out = []
    for key, own in rows.groupby([*UNIT, "metric"], sort=False):
        clean = own[own["condition"] == "clean"]
        out.append([*key, "clean", 0, *_value(clean), _n(clean), 0])
        for k, cut in own[own["condition"] == "cut"].groupby("k"):
            start = cut["value"] - cut["delta"]
            moved = cut.assign(ci_lo=start + cut["ci_lo"], ci_hi=start + cut["ci_hi"])
            out.append([*key, "cut", k, *_value(moved), _n(cut), 0])
        for k, drawn in own[own["condition"] == "control"].groupby("k"):
            out.append([*key, "controls", k, *_spread(drawn["value"]), _n(clean), len(drawn)])
    return pd.DataFrame(out, columns=list(DOSES))


def layer_table(frame: pd.DataFrame, metric: str = "choice") -> pd.DataFrame:
    """Change by layer where parts were cut one by one; windows stand at their middle layer.

    Line `cut` has 95 % intervals where one cut stands at a layer; where several do (heads one by one) it is their mean,
    with the least and the largest as ends. Line `controls` has the mean of their draws, 5th to 95th percentile.

    Raises:
        UsageError: missing columns, or no row.
    """
    rows = told(frame, metric, "layer_table")
    rows = rows[rows["mechanism"].str.startswith(EVERY) & (rows["status"] != AT_CHANCE)]
    out = []
    for key, own in rows.groupby([*UNIT, "metric"], sort=False):
        own = own[own["condition"].isin(["cut", "control"])].reset_index(drop=True)
        # A cut's controls follow it, unit by unit.
        own["number"] = own["condition"].eq("cut").cumsum()
        cuts = own[own["condition"] == "cut"].set_index("number")["components"].map(middle)
        own["layer"] = own["number"].map(cuts)
        for layer, cut in own[own["condition"] == "cut"].groupby("layer"):
            if len(set(cut["components"])) > 1:
                ends = [cut["delta"].mean(), cut["delta"].min(), cut["delta"].max()]
            else:
                ends = list(_value(cut, "delta"))
            out.append([*key, "cut", layer, *ends, _n(cut.drop_duplicates("seed")), 0])
        for layer, drawn in own[own["condition"] == "control"].groupby("layer"):
            n = _n(drawn.drop_duplicates("seed"))
            out.append([*key, "controls", layer, *_spread(drawn["delta"]), n, len(drawn)])
    return pd.DataFrame(out, columns=list(LAYERS))


def beyond_table(frame: pd.DataFrame, metric: str = "choice") -> pd.DataFrame:
    """Each cut's change less the mean change of its controls, with the cut's 95 % interval moved by as much.

    `rank` 1 says that the cut did more harm than every control draw. Parts that were cut one by one are left out: which
    of them did the most was not known before. At chance nothing is told but the status.

    Raises:
        UsageError: missing columns, or no row.
    """
    rows = told(frame, metric, "beyond_table")
    rows = rows[~rows["mechanism"].str.startswith(EVERY)]
    out = []
    for key, own in rows.groupby([*UNIT, "role", "metric"], sort=False):
        clean = own[own["condition"] == "clean"]["value"].mean()
        sign = -1.0 if key[-1] in LESS_IS_BETTER else 1.0
        for k, cut in own[own["condition"] == "cut"].groupby("k"):
            drawn = own[(own["condition"] == "control") & (own["k"] == k)]["delta"].dropna()
            delta, lo, hi = _value(cut, "delta")
            mean, low, high = _spread(drawn)
            rank = 1 + int((sign * drawn <= sign * delta).sum()) if len(drawn) and delta == delta else np.nan
            status = AT_CHANCE if AT_CHANCE in set(cut["status"]) else "ok"
            out.append([
                *key, k, clean, delta, mean, low, high, delta - mean, lo - mean, hi - mean, rank, len(drawn),
                _n(cut), status,
            ])  # fmt: skip
    return pd.DataFrame(out, columns=list(BEYOND))


def middle(components: str) -> int:
    """Middle layer of named components.

    >>> middle("M3 M4 M5"), middle("L7H0 L7H1")
    (4, 7)
    """
    layers = sorted({int(found) for found in re.findall(r"\b[ML](\d+)", components)})
    return layers[(len(layers) - 1) // 2]


def short(labels: Iterable[str]) -> dict[str, str]:
    """Labels without the parameters that are the same wherever a name stands.

    >>> short(["niah length=64 n=8", "niah length=96 n=8", "ioi n=8"])
    {'niah length=64 n=8': 'niah length=64', 'niah length=96 n=8': 'niah length=96', 'ioi n=8': 'ioi'}
    """
    parts = {label: label.split(" ") for label in dict.fromkeys(labels)}
    out = {}
    for label, (name, *params) in parts.items():
        others = [set(own[1:]) for own in parts.values() if own[0] == name]
        out[label] = " ".join([name, *(p for p in params if not all(p in own for own in others))])
    return out


def _located(frame: pd.DataFrame) -> pd.Series:
    """Locators, with the task they were fitted on where one was fitted on several."""
    if "located_on" not in frame:
        return frame["locator"]
    on = frame["located_on"].fillna("").astype(str)
    names = short(dict.fromkeys(on[on != ""]))
    several = on.groupby(frame["locator"]).transform("nunique") > 1
    fitted = pd.Series([names.get(task, "") for task in on], index=frame.index, dtype=object)
    return frame["locator"].where(~several | (on == ""), frame["locator"].astype(object) + ", on " + fitted)


def _value(rows: pd.DataFrame, column: str = "value") -> tuple[float, float, float]:
    """Mean over seeds with its interval."""
    value, seeds = rows[column], max(1, len(rows))
    down, up = (np.sqrt(((value - rows[end]) ** 2).sum(skipna=False)) / seeds for end in ("ci_lo", "ci_hi"))
    mean = float(value.mean(skipna=False))
    return mean, mean - float(down), mean + float(up)


def _spread(values: pd.Series) -> tuple[float, float, float]:
    """Mean, 5th and 95th percentile of control draws."""
    if values.empty:
        return float("nan"), float("nan"), float("nan")
    low, high = np.quantile(values, [0.05, 0.95])
    return float(values.mean()), float(low), float(high)


def _n(rows: pd.DataFrame) -> int:
    return int(rows["n"].sum())
