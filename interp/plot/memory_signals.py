"""Detection of memorization: what prompts give away, by group, and how well that tells them apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from interp.errors import UsageError
from interp.plot import theme
from interp.plot.by_layer import inks
from interp.plot.check import need
from interp.plot.sheet import Sheet
from interp.plot.text import count, joined, number, safe
from interp.plot.theme import Width

SIGNALS = {
    "first": "Noise difference, first step", "all": "Noise difference, all steps", "one_step": "One step",
    "similarity": "Alike over seeds", "spread": "Spread over seeds",
}  # fmt: skip
"""Columns of `interp.measure.memorization.detection.signals`, as panels are called."""
LESS = ("spread",)
"""Signals of which memorized prompts have less."""
GROUPS = {"memorized": "memorized", "control": "rare words", "base": "ordinary"}
"""Groups of prompts: memorized ones, control words with many pictures, ordinary prompts."""
_INKS = {"memorized": theme.VERMILLION, "control": theme.BLUE, "base": theme.CONTROL}


def signal_violins(
    signals: pd.DataFrame, *, captions: Mapping[str, str] | None = None, width: Width = "double"
) -> go.Figure:
    """What prompts of each group give away without the picture at hand: a panel a signal, a point a prompt and sample.

    Args:
        signals: `group` and a column for each signal; groups stand in the order memorized, control, base, others.
        captions: of panels, by signal.
        width: `single`, `double`, `page` or pixels.

    Raises:
        UsageError: missing columns, or no signal.
    """
    need(signals, ("group",), "signal_violins")
    shown = [s for s in SIGNALS if s in signals and signals[s].notna().any()]
    if not shown:
        raise UsageError(f"signal_violins: the table has none of the signals {', '.join(SIGNALS)}")
    groups = _groups(signals)
    told = {**SIGNALS, **(captions or {})}
    sheet = Sheet.of(
        "What prompts give away", _violin_note(signals, groups), [told[s] for s in shown], width,
        alt=_violin_alt(signals, shown, groups), least=17, tall=13, gap=4.6,
    )  # fmt: skip
    for i, signal in enumerate(shown):
        for at, group in enumerate(groups):
            own = signals[signals["group"].astype(str) == group]
            values = own[signal].to_numpy(float)
            values = values[np.isfinite(values)]
            color = _INKS.get(group, theme.MUTED)
            spread = len(np.unique(values)) > 2
            sheet.fig.add_violin(
                x=[at] * len(values), y=values, name=safe(GROUPS.get(group, group)), legendgroup=group,
                showlegend=i == 0, scalemode="width", width=0.82, spanmode="hard", points="all", pointpos=0, jitter=0.5,
                line={"color": color, "width": 1.1 if spread else 0}, fillcolor=theme.faint(color, 0.22),
                marker={"color": color, "size": 0.22 * sheet.font, "opacity": 0.55}, hoveron="points",
                meanline={"visible": spread, "color": color}, hoverinfo="y", **sheet.at(i),
            )  # fmt: skip
        low, high = _room(signals[signal].to_numpy(float))
        sheet.axes(i, "", "", (-0.6, len(groups) - 0.4), (low, high))
        sheet.fig.update_layout({
            f"xaxis{sheet.axis(i)}": {"showticklabels": False, "ticks": ""}, f"yaxis{sheet.axis(i)}": {"nticks": 5},
        })  # fmt: skip
    return sheet.done()


def detection_curves(
    signals: pd.DataFrame,
    detection: pd.DataFrame | None = None,
    *,
    shown: Sequence[str] = tuple(SIGNALS),
    width: Width = "double",
) -> go.Figure:
    """Hits over false alarms of each signal (ROC): a panel for each group that memorized prompts are told from.

    Args:
        signals: `group` and a column for each signal.
        detection: `signal against auc auc_lo auc_hi`, one row of each, told with the lines.
        shown: the signals that are drawn.
        width: `single`, `double`, `page` or pixels.

    Raises:
        UsageError: missing columns, no memorized prompt or no other, no signal, or a signal with two rows of
            `detection`.
    """
    need(signals, ("group",), "detection_curves")
    names = [s for s in shown if s in signals and signals[s].notna().any()]
    groups = _groups(signals)
    others = [g for g in groups if g != "memorized"]
    if not names or "memorized" not in groups or not others:
        raise UsageError("detection_curves: needs a signal, memorized prompts, and others to tell them from")
    if detection is not None:
        need(detection, ("signal", "against", "auc", "auc_lo", "auc_hi"), "detection_curves detection")
        if detection.duplicated(["signal", "against"]).any():
            raise UsageError("detection_curves: a signal has two rows of one group; filter the table to one")
    styles = inks([SIGNALS.get(s, s) for s in names])
    sheet = Sheet.of(
        "How well are memorized prompts told from others?", _roc_note(signals, others, detection is not None),
        [f"Against {GROUPS.get(g, g)} prompts" if g == "base" else f"Against {GROUPS.get(g, g)}" for g in others],
        width, alt=_roc_alt(signals, names, others), tall=19,
    )  # fmt: skip
    for i, other in enumerate(others):
        sheet.fig.add_scatter(
            x=[0, 1], y=[0, 1], mode="lines", name="chance", legendgroup="chance", showlegend=i == 0, hoverinfo="skip",
            line={"color": theme.CONTROL, "dash": "dot", "width": 1}, **sheet.at(i),
        )  # fmt: skip
        said = []
        for signal in names:
            name = SIGNALS.get(signal, signal)
            alarms, hits = roc(signals, signal, other)
            sheet.fig.add_scatter(
                x=alarms, y=hits, mode="lines", name=safe(name), legendgroup=name, showlegend=i == 0,
                line={"color": styles[name].color, "dash": styles[name].dash, "width": 1.8, "shape": "linear"},
                hovertemplate=f"<b>{safe(name)}</b><br>%{{y:.1%}} hits at %{{x:.1%}} false alarms<extra></extra>",
                **sheet.at(i),
            )  # fmt: skip
            said.append((styles[name].color, _area(detection, signal, other, alarms, hits)))
        _areas(sheet, i, said)
        sheet.axes(
            i,
            "false alarms",
            "memorized found" if i % sheet.columns == 0 else "",
            (-0.03, 1.03),
            (-0.03, 1.03),
        )
        form = {"tickformat": ".0%", "nticks": 6, "tickangle": 0}
        sheet.fig.update_layout({f"xaxis{sheet.axis(i)}": form, f"yaxis{sheet.axis(i)}": form})
    return sheet.done()


def roc(signals: pd.DataFrame, signal: str, other: str) -> tuple[list[float], list[float]]:
    """False alarms and hits at every threshold of a signal, from (0, 0) to (1, 1); ties are passed at once."""
    sign = -1 if signal in LESS else 1
    yes, no = (
        sign * signals[signals["group"].astype(str) == g][signal].dropna().to_numpy(float)
        for g in ("memorized", other)
    )
    levels = np.unique(np.concatenate([yes, no]))[::-1]
    alarms = [0.0, *((no >= level).mean() for level in levels)]
    hits = [0.0, *((yes >= level).mean() for level in levels)]
    return [float(v) for v in alarms], [float(v) for v in hits]


def _area(
    detection: pd.DataFrame | None, signal: str, other: str, alarms: Sequence[float], hits: Sequence[float]
) -> str:
    if detection is not None:
        own = detection[(detection["signal"] == signal) & (detection["against"] == other)]
        if len(own):
            r = own.iloc[0]
            return f"{number(r['auc'], 3)} [{number(r['auc_lo'])}, {number(r['auc_hi'])}]"
    return number(float(np.trapezoid(hits, alarms)), 3)


def _areas(sheet: Sheet, panel: int, said: Sequence[tuple[str, str]]) -> None:
    """The areas in the corner that curves leave empty."""
    lines = [("AUC", theme.INK), *((text, color) for color, text in said)]
    for k, (text, color) in enumerate(lines):
        sheet.fig.add_annotation(
            text=safe(text), x=0.98, y=0.05 + 0.072 * (len(lines) - 1 - k), xref=f"x{sheet.axis(panel)} domain",
            yref=f"y{sheet.axis(panel)} domain", xanchor="right", yanchor="bottom", borderpad=0, bgcolor=theme.PAPER,
            font={"color": color, "size": 0.94 * sheet.font},
        )  # fmt: skip


def _groups(signals: pd.DataFrame) -> list[str]:
    have = list(dict.fromkeys(signals["group"].astype(str)))
    return [*(g for g in GROUPS if g in have), *(g for g in have if g not in GROUPS)]


def _room(values: np.ndarray) -> tuple[float, float]:
    finite = values[np.isfinite(values)]
    pad = 0.06 * (float(np.ptp(finite)) or 1.0)
    return float(finite.min()) - pad, float(finite.max()) + pad


def _prompts(signals: pd.DataFrame, group: str) -> str:
    own = signals[signals["group"].astype(str) == group]
    keys = [c for c in ("seed", "role", "item") if c in own]
    n = len(own.drop_duplicates(keys)) if "item" in own else len(own)
    return f"{n} {GROUPS.get(group, group)}"


def _violin_note(signals: pd.DataFrame, groups: Sequence[str]) -> str:
    said = ", ".join(_prompts(signals, g) for g in groups)
    return joined(
        [f"prompts: {said}" if "item" in signals else "", "a point: a prompt and sample", "line: mean"]
    )


def _violin_alt(signals: pd.DataFrame, shown: Sequence[str], groups: Sequence[str]) -> str:
    said = [
        f"{SIGNALS[s]}: "
        + ", ".join(
            f"{GROUPS.get(g, g)} {number(signals[signals['group'] == g][s].mean(), 3)}" for g in groups
        )
        + "."
        for s in shown
    ]
    return "Means of what prompts give away. " + " ".join(said)


def _roc_note(signals: pd.DataFrame, others: Sequence[str], brackets: bool) -> str:
    seeds = signals["seed"].nunique() if "seed" in signals else 0
    return joined([
        f"prompts: {', '.join(_prompts(signals, g) for g in ('memorized', *others))}" if "item" in signals else "",
        count(seeds, "training") if seeds else "", "in brackets: 95% intervals over prompts" if brackets else "",
    ])  # fmt: skip


def _roc_alt(signals: pd.DataFrame, names: Sequence[str], others: Sequence[str]) -> str:
    said = []
    for other in others:
        areas = []
        for signal in names:
            alarms, hits = roc(signals, signal, other)
            areas.append(f"{SIGNALS.get(signal, signal)} {number(float(np.trapezoid(hits, alarms)), 3)}")
        said.append(f"Against {GROUPS.get(other, other)}: {', '.join(areas)}.")
    return "Areas under curves of hits over false alarms. " + " ".join(said)
