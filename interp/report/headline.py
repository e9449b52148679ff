"""The finding in one sentence and a few numbers, computed from the tables and worded by what they say."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

from interp.errors import UsageError
from interp.plot.conditions import Panel, at_k, panels, rows_of
from interp.plot.heads import THRESHOLD
from interp.plot.text import count, number, percent, signed
from interp.report import recall
from interp.report.figures import main_scope
from interp.report.tables import Tables

SCOPES = {"all": "at every position", "answer": "at the answer's positions only"}


@dataclass(frozen=True)
class Fact:
    """One headline number: the figure, what it is of, and a line that says how to read it."""

    value: str
    label: str
    note: str = ""


def sentence(tables: Tables) -> str:
    """What the run found, in one or two sentences."""
    cut = _cut_sentence(tables)
    scores = _score_sentence(tables, whose="its" if cut else "the")
    parts = [part for part in (cut, scores, recall.sentence(tables)) if part]
    return " ".join(parts) or f"This run of {tables.model} holds no table with a finding."


def facts(tables: Tables) -> list[Fact]:
    """The headline numbers that the tables give."""
    found = [
        _scored(tables), _main_effect(tables), _controls(tables), _off_target(tables), _deleted(tables),
        _recalled(tables), _accepted(tables),
    ]  # fmt: skip
    told = [Fact(*words) for words in recall.facts(tables)]
    return [*(fact for fact in found if fact is not None), *told]


def main_panel(tables: Tables) -> Panel | None:
    """The cut that headlines: the first target task not at chance, at all positions where that was measured."""
    told = [
        panel for panel in _panels(tables) if panel.cut["role"].iloc[0] == "target" and not panel.at_chance
    ]
    return told[0] if told else None


def _panels(tables: Tables, metric: str = "accuracy") -> list[Panel]:
    if tables.effects is None:
        return []
    try:
        found = panels(rows_of(tables.effects, metric, "effects"), "effects")
        scope = main_scope(tables.effects)
        here = [panel for panel in found if panel.at("scope") == scope] or found
        ks = {int(k) for panel in here for k in panel.cut["k"]}
        return at_k(here, tables.top if tables.top in ks else None, "effects")
    except UsageError:
        # The section of the figure says what is wrong with the table.
        return []


def _cut_sentence(tables: Tables) -> str:
    panel = main_panel(tables)
    if panel is None:
        if _panels(tables):
            return f"{tables.model} is at chance on every target task, so no effect of a cut is reported."
        return ""
    cut, k = panel.cut.iloc[0], int(panel.cut["k"].iloc[0])
    clean, value, low, high = (
        float(panel.clean["value"]),
        float(cut["value"]),
        float(cut["ci_lo"]),
        float(cut["ci_hi"]),
    )
    what = panel.at("mechanism") or "components"
    who = f"the {k} strongest {what}" if k > 1 else f"the strongest of the {what}"
    where = SCOPES.get(panel.at("scope"), f"at the {panel.at('scope')} positions")
    interval = f"{signed(value - clean)}, 95% interval {number(low)} to {number(high)}"
    if low <= 0 <= high:
        verb = (
            f"does not clearly change accuracy on {panel.task}: {number(clean)} before, {number(value)} after"
        )
    else:
        moves = "takes" if value < clean else "raises"
        verb = f"{moves} accuracy on {panel.task} from {number(clean)} to {number(value)}"
    how = ", ".join(
        part for part in (f"{panel.at('mode')} ablation" if panel.at("mode") else "", where) if part
    )
    text = f"Cutting {who} of {tables.model} ({how}) {verb} ({interval})."
    draws = panel.control["value"].dropna()
    if len(draws):
        text += (
            f" Cutting {count(k, 'matched other', 'matched others')} instead leaves it at {number(float(draws.mean()))}"
            f" (mean of {count(len(draws), 'draw')})."
        )
    return text


def _hits(tables: Tables) -> tuple[pd.DataFrame, pd.DataFrame] | None:
    """Scores of the first method, and those of them at or above the threshold."""
    scores = tables.scores
    if scores is None or not {"method", "score", "layer", "component"} <= set(scores.columns):
        return None
    own = scores[scores["method"] == scores["method"].iloc[0]]
    return own, own[own["score"] >= THRESHOLD]


def _score_sentence(tables: Tables, whose: str) -> str:
    found = _hits(tables)
    if found is None:
        return ""
    own, hits = found
    of = f"{whose} {count(len(own), 'head')}" + (f" of {tables.model}" if whose == "the" else "")
    text = f"Of {of}, {len(hits)} ({percent(len(hits), len(own))}) score {THRESHOLD:g} or more"
    if hits.empty:
        return text + ": by this measure it has no retrieval head."
    return text + f", in {_layers(hits)}."


def _layers(hits: pd.DataFrame) -> str:
    """Where the hits are, and where most of them are when that is a narrower stretch."""
    layers = np.sort(hits["layer"].to_numpy(int))
    whole = f"layers {layers[0]} to {layers[-1]}" if layers[0] != layers[-1] else f"layer {layers[0]}"
    need = math.ceil(0.8 * len(layers))
    spans = [(int(layers[i + need - 1] - layers[i]), int(layers[i])) for i in range(len(layers) - need + 1)]
    width, start = min(spans)
    if need < 4 or width >= 0.75 * (layers[-1] - layers[0]):
        return whole
    inside = int(((layers >= start) & (layers <= start + width)).sum())
    return f"{whole}, {inside} of them in layers {start} to {start + width}"


def _scored(tables: Tables) -> Fact | None:
    found = _hits(tables)
    if found is None:
        return None
    own, hits = found
    best = own.sort_values(["score", "layer"], ascending=[False, True]).iloc[0]
    note = f"best: {best['component']} at {number(float(best['score']))}"
    return Fact(f"{len(hits)} of {len(own)}", f"heads score {THRESHOLD:g} or more", note)


def _main_effect(tables: Tables) -> Fact | None:
    panel = main_panel(tables)
    if panel is None:
        return None
    cut = panel.cut.iloc[0]
    return Fact(
        f"{number(float(panel.clean['value']))} \u2192 {number(float(cut['value']))}",
        f"accuracy on {panel.task}, {int(cut['k'])} cut",
        f"change {number(float(cut['ci_lo']))} to {number(float(cut['ci_hi']))}, n = {int(cut['n'])}",
    )


def _controls(tables: Tables) -> Fact | None:
    panel = main_panel(tables)
    draws = panel.control["value"].dropna() if panel is not None else pd.Series(dtype=float)
    if panel is None or draws.empty:
        return None
    return Fact(
        f"{number(float(panel.clean['value']))} \u2192 {number(float(draws.mean()))}",
        f"the same, {int(panel.cut['k'].iloc[0])} matched others cut",
        f"{count(len(draws), 'draw')}, {number(float(draws.min()))} to {number(float(draws.max()))}",
    )


def _off_target(tables: Tables) -> Fact | None:
    """Cost on natural text as a ratio of perplexities, else the largest loss on a task that should not move."""
    prose = [panel for panel in _panels(tables, "nll") if panel.cut["role"].iloc[0] == "off_target"]
    if prose:
        cut = prose[0].cut.iloc[0]
        ratio, low, high = (math.exp(float(cut[c])) for c in ("delta", "ci_lo", "ci_hi"))
        return Fact(
            f"\u00d7 {number(ratio)}",
            f"perplexity on {prose[0].task}",
            f"95% interval {number(low)} to {number(high)}",
        )
    others = [p for p in _panels(tables) if p.cut["role"].iloc[0] != "target" and not p.at_chance]
    if not others:
        return None
    worst = min(others, key=lambda panel: float(panel.cut["delta"].iloc[0]))
    return Fact(signed(float(worst.cut["delta"].iloc[0])), f"accuracy on {worst.task}, which should not move")


def _deleted(tables: Tables) -> Fact | None:
    """What deleting the components that the heads read does to accuracy, beside others of the same writers."""
    effects = tables.channel_effects
    if effects is None:
        return None
    try:
        told = [p for p in panels(rows_of(effects, "accuracy", "channels"), "channels") if not p.at_chance]
    except UsageError:
        return None
    if not told:
        return None
    largest = at_k(told[:1], int(told[0].cut["k"].max()), "channels")[0]
    cut, draws = largest.cut.iloc[0], largest.control["value"].dropna()
    others = f"as many others of the same writers: {number(float(draws.mean()))}" if len(draws) else ""
    return Fact(
        f"{number(float(largest.clean['value']))} \u2192 {number(float(cut['value']))}",
        f"accuracy on {largest.task}, {count(int(cut['k']), 'component')} that they read deleted",
        others,
    )


def _recalled(tables: Tables) -> Fact | None:
    """What cutting the fact MLPs takes of the facts of other subjects, beside windows that write as much."""
    effects = tables.fact_effects
    if effects is None:
        return None
    try:
        rows = rows_of(effects[effects["role"] == "target"], "accuracy", "facts")
        told = [p for p in panels(rows, "facts") if not p.at_chance and p.at("mechanism") == "fact MLPs"]
    except UsageError:
        return None
    if not told:
        return None
    cut, draws = told[0].cut.iloc[0], told[0].control["value"].dropna()
    others = f"windows that write as much: {number(float(draws.mean()))}" if len(draws) else ""
    return Fact(
        f"{number(float(told[0].clean['value']))} \u2192 {number(float(cut['value']))}",
        f"accuracy on known facts, {count(int(cut['k']), 'fact MLP')} cut",
        others,
    )


def _accepted(tables: Tables) -> Fact | None:
    instances = tables.instances
    if instances is None or "accepted" not in instances:
        return None
    kept = int(instances["accepted"].astype(bool).sum())
    return Fact(f"{kept} of {len(instances)}", "scoring prompts accepted", "the model gave the needle back")
