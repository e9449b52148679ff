"""The conditions of an effects table, sorted: which rows are the clean run, the cut and the controls of one panel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from interp.errors import UsageError
from interp.plot.check import EFFECTS, need
from interp.plot.text import joined

METRICS = {
    "accuracy": "accuracy",
    "logit_diff": "logit difference (logits)",
    "logprob": "log-probability of the answer (nats)",
    "rank": "rank of the answer among the candidates",
    "nll": "loss (nats per token)",
}
"""Axis label, with the unit, of each metric; another metric is labelled by its name."""

LESS_IS_BETTER = ("rank", "nll")

AT_CHANCE = "at chance"
WAY = ("subject", "mechanism", "locator", "scope", "mode", "reference")
WHAT = ("subject", "mechanism", "locator", "task")
HOW = ("scope", "mode", "reference")


@dataclass(frozen=True)
class Panel:
    """Rows of one mechanism, task and way of cutting; `clean` is one row, `cut` and `control` hold all k."""

    key: tuple[str, ...]
    clean: pd.Series
    cut: pd.DataFrame
    control: pd.DataFrame

    @property
    def at_chance(self) -> bool:
        """Whether the clean model is at chance, so that no effect may be read off (the floor rule)."""
        return AT_CHANCE in (self.clean["status"], *self.cut["status"])

    @property
    def task(self) -> str:
        """The task's name."""
        return self.at("task")

    @property
    def way(self) -> tuple[str, ...]:
        """The key without the task: what was cut, and how."""
        return (*self.key[:3], *self.key[4:])

    def at(self, column: str) -> str:
        """One part of the key by its column."""
        return self.key[(*WHAT, *HOW).index(column)]


def rows_of(effects: pd.DataFrame, metric: str, what: str) -> pd.DataFrame:
    """The rows of one metric, their empty texts made equal.

    Raises:
        UsageError: missing columns, or no row of this metric.
    """
    need(effects, EFFECTS, what, numeric=("draw", "k", "value", "delta", "ci_lo", "ci_hi", "n"))
    rows = effects[effects["metric"] == metric].copy()
    if rows.empty:
        present = ", ".join(dict.fromkeys(effects["metric"].astype(str)))
        raise UsageError(f"{what}: no row has metric {metric!r}; the table has {present}")
    for name in (*WHAT, *HOW, "role", "components"):
        rows[name] = rows[name].fillna("").astype(str)
    return rows


def panels(rows: pd.DataFrame, what: str) -> list[Panel]:
    """One panel for each way of cutting each task, in the order of the rows, with its clean row found.

    Raises:
        UsageError: nothing was cut, or a task has no clean row.
    """
    cuts = rows[rows["condition"] == "cut"]
    if cuts.empty:
        raise UsageError(f"{what}: the table has no row with condition 'cut'")
    keys = list(cuts[[*WHAT, *HOW]].drop_duplicates().itertuples(index=False, name=None))
    found = []
    for key in keys:
        same_task = rows[(rows["subject"] == key[0]) & (rows["task"] == key[3])]
        clean = same_task[same_task["condition"] == "clean"]
        if clean.empty:
            raise UsageError(f"{what}: task {key[3]!r} has no row with condition 'clean' to compare with")
        # A clean run may be stored once for all mechanisms and scopes, or once for each.
        for name, value in zip((*WHAT[1:3], *HOW), (*key[1:3], *key[4:]), strict=True):
            clean = own if not (own := clean[clean[name] == value]).empty else clean
        here = _matching(rows, key)
        cut, control = (here[here["condition"] == c].sort_values(["k", "draw"]) for c in ("cut", "control"))
        # Of several clean runs the one that the deltas were taken from.
        start = float((cut["value"] - cut["delta"]).median())
        nearest = 0 if np.isnan(start) else int((clean["value"] - start).abs().to_numpy().argmin())
        found.append(Panel(key, clean.iloc[nearest], cut, control))
    return found


def named(panel: Panel, among: Sequence[Panel], columns: Sequence[str] = WAY) -> str:
    """What tells this panel from the others in these columns, as a short name; empty where nothing does."""
    differing = [column for column in columns if len({other.at(column) for other in among}) > 1]
    # Modes differ in whether they have a reference at all: where the mode tells it, it is not said twice.
    told = len({(p.at("mode"), p.at("reference")) for p in among}) == len({p.at("mode") for p in among})
    if "mode" in differing and told:
        differing = [column for column in differing if column != "reference"]
    if differing == ["mode"]:
        return f"{panel.at('mode')} ablation"
    return joined([spelled(column, panel.at(column)) for column in differing])


def shared(among: Sequence[Panel], columns: Sequence[str] = HOW) -> str:
    """How all of these were cut, as far as they agree in these columns."""
    agreed = [c for c in columns if len({panel.at(c) for panel in among}) == 1 and among[0].at(c)]
    names = [f"{among[0].at(c)} ablation" if c == "mode" else spelled(c, among[0].at(c)) for c in agreed]
    return ", ".join(names)


def at_k(found: Sequence[Panel], k: int | None, what: str) -> list[Panel]:
    """The panels at one number of components; with None, each at 10 where it was measured, else at its largest.

    Raises:
        UsageError: nothing was measured at `k`.
    """
    kept = []
    for panel in found:
        ks = sorted({int(v) for v in panel.cut["k"]})
        chosen = k if k is not None else (10 if 10 in ks else ks[-1])
        if chosen in ks:
            cut, control = (part[part["k"] == chosen] for part in (panel.cut, panel.control))
            kept.append(Panel(panel.key, panel.clean, cut, control))
    if not kept:
        measured = sorted({int(v) for panel in found for v in panel.cut["k"]})
        raise UsageError(f"{what}: nothing was cut at k = {k}; measured: {', '.join(map(str, measured))}")
    return kept


def z_and_rank(panel: Panel) -> tuple[float, int, int]:
    """How far the cut lies from its controls at one k: z in control SDs, its rank, and out of how many.

    Rank 1 means that the cut hurt more than every control did: it moved the metric further down, or further up where
    less is better. The SD needs two draws and some spread, else z is NaN.
    """
    sign = -1.0 if panel.cut["metric"].iloc[0] in LESS_IS_BETTER else 1.0
    draws = panel.control["delta"].dropna().to_numpy(float)
    delta = float(panel.cut["delta"].iloc[0])
    sd = float(draws.std(ddof=1)) if len(draws) > 1 else float("nan")
    z = (delta - float(draws.mean())) / sd if sd > 0 else float("nan")
    return z, 1 + int((sign * draws <= sign * delta).sum()), 1 + len(draws)


def _matching(rows: pd.DataFrame, key: tuple[str, ...]) -> pd.DataFrame:
    mask = np.logical_and.reduce([rows[c] == v for c, v in zip((*WHAT, *HOW), key, strict=True)])
    return rows[mask]


def spelled(column: str, value: str) -> str:
    """A value of the key as a reader understands it without its column."""
    if column == "scope":
        return {"all": "all positions", "answer": "answer positions"}.get(value, f"{value} positions")
    if column == "reference" and value:
        return f"reference {value}"
    return value


def metric_label(metric: str, unit: bool = True) -> str:
    """Axis label of a metric."""
    label = METRICS.get(metric, metric)
    return label if unit else label.split(" (")[0]
