"""Edits of facts: what they do to a fact, its paraphrases and neighbours, and whether a trace says where to edit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly import colors

from interp.errors import UsageError
from interp.plot import theme
from interp.plot.check import need
from interp.plot.sheet import Sheet
from interp.plot.text import count, joined, number, percent, safe
from interp.plot.theme import Width

SCORES = ("state", "measure", "value", "ci_lo", "ci_hi", "n")
"""Columns of `interp.measure.edits.scoreboard`; `method` and `at_once` where several are told apart."""

MEASURES = {"E": "the edited prompt", "P": "paraphrases", "N": "neighbours"}
_METHODS = {
    "rome": "ROME, one at a time", "rome together": "ROME, sum of all edits", "memit": "MEMIT",
    "other fact": "control: another fact's edit", "random value": "control: a random value",
}  # fmt: skip
BEFORE = "before"


def edit_scoreboard(scores: pd.DataFrame, *, width: Width = "double") -> go.Figure:
    """Scores of each way of editing, before and after: a panel for the prompt, paraphrases, neighbours, their mean.

    Filled: the wanted answer is the likelier one (ES, PS, NS); open: greedy decoding gives it (ET, PT, NT).

    Args:
        scores: `state measure value ci_lo ci_hi n`, and `method`, `at_once` where there are. The model before is the
            first line, once, since it is the same for all.
        width: `single`, `double`, `page` or pixels.

    Raises:
        UsageError: missing columns, no row after an edit, or a measure twice.
    """
    need(scores, SCORES, "edit_scoreboard", numeric=("value", "ci_lo", "ci_hi", "n"))
    rows = scores.assign(method=scores.get("method", "rome"), at_once=scores.get("at_once", 1))
    rows["line"] = [_line(r) for r in rows.to_dict("records")]
    after = rows[rows["state"] == "after"]
    if after.empty:
        raise UsageError("edit_scoreboard: no row has state 'after'")
    if after.duplicated(["line", "measure"]).any():
        raise UsageError(
            "edit_scoreboard: a measure of one way of editing has two rows; filter the table to one"
        )
    before = rows[rows["state"] == "before"].drop_duplicates("measure").assign(line=BEFORE)
    told = pd.concat([before, after])
    lines = sorted(dict.fromkeys(after["line"]), key=lambda name: name.startswith("control"))
    lines = [*([BEFORE] if len(before) else []), *lines]
    panels = [*MEASURES, *(["S"] if (told["measure"] == "S").any() else [])]
    captions = [MEASURES.get(p, "harmonic mean") for p in panels]
    font, total = theme.font_px(width), theme.pixels(width)
    left, right, gap = (0.53 * max(map(len, lines)) + 1.2) * font, 1.8 * font, 2.9 * font
    columns = len(panels)
    while columns > 1 and (total - left - right - (columns - 1) * gap) / columns < 7.5 * font:
        columns = -(-columns // 2)
    room = (total - left - right - (columns - 1) * gap) / columns
    across, bands = total - left - right, -(-len(panels) // columns)
    high, apart = 1.6 * font * len(lines), 6.4 * font
    tall = bands * high + (bands - 1) * apart
    fig = theme.figure(
        "What an edit does to a fact, its paraphrases and its neighbours", _board_note(after, before), width=width,
        plot_height=tall, left=left, right=right, top=1.6 * font, bottom=7.4 * font, alt=_board_alt(told),
    )  # fmt: skip
    for i, panel in enumerate(panels):
        axis, column, band = "" if i == 0 else str(i + 1), i % columns, i // columns
        x0, y1 = column * (room + gap) / across, 1 - band * (high + apart) / tall
        fig.update_layout({
            f"xaxis{axis}": {
                "domain": [x0, min(1.0, x0 + room / across)], "anchor": f"y{axis}", "range": [-0.04, 1.04],
                "tickvals": [0, 0.5, 1], "tickformat": ".0%", "showgrid": True, "tickangle": 0,
                "title": {"text": "score" if panel == "S" else "prompts", "standoff": 0.3 * font},
            },
            f"yaxis{axis}": {
                "domain": [max(0.0, y1 - high / tall), y1], "anchor": f"x{axis}", "ticks": "", "showline": False,
                "range": [len(lines) - 0.4, -0.6], "tickvals": list(range(len(lines))),
                "ticktext": [safe(n) for n in lines], "showticklabels": column == 0,
            },
        })  # fmt: skip
        fig.add_annotation(
            text=captions[i][:1].upper() + captions[i][1:], x=0, xref=f"x{axis} domain", xanchor="left", y=1, xshift=-1,
            yref=f"y{axis} domain", yanchor="bottom", font={"weight": 600},
        )  # fmt: skip
        for suffix, name, symbol, shift in (
            ("S", "wanted answer likelier than the other", "circle", -0.14),
            ("T", "greedy decoding gives it", "circle-open", 0.18),
        ):
            measure = panel if panel == "S" else panel + suffix
            own = told[told["measure"] == measure]
            if own.empty or (panel == "S" and suffix == "T"):
                continue
            _dots(fig, own, lines, axis, name, symbol, shift, font, legend=i == 0)
    return theme.legend_below(fig, font)


def edits_against_effects(
    scan: pd.DataFrame,
    effects: pd.DataFrame,
    localisation: pd.DataFrame | None = None,
    *,
    column: str = "magnitude",
    kinds: Sequence[str] = ("efficacy", "paraphrase"),
    width: Width = "double",
) -> go.Figure:
    """Success of each edit in each layer against the effect that a trace has there: a panel a kind of prompt.

    Args:
        scan: of `edit_layers`: `record layer kind state` and the column.
        effects: `record layer effect`, of one trace.
        localisation: `kind rho within r2_layer gain p`, of the same trace, told in the note.
        column: `magnitude`, `success` or `top`; a mean over a record's prompts.
        kinds: of prompts.
        width: `single`, `double`, `page` or pixels.

    Raises:
        UsageError: missing columns, or no record and layer is in both tables.
    """
    need(
        scan, ("record", "layer", "kind", "state", column), "edits_against_effects", numeric=("layer", column)
    )
    need(effects, ("record", "layer", "effect"), "edits_against_effects effects", numeric=("layer", "effect"))
    if effects.duplicated(["record", "layer"]).any():
        raise UsageError(
            "edits_against_effects: a record and layer has two effects; filter the table to one trace"
        )
    after = scan[(scan["state"] == "after") & scan["kind"].isin(list(kinds))]
    means = after.groupby(["kind", "record", "layer"], sort=False)[column].mean().reset_index()
    joint = means.merge(effects[["record", "layer", "effect"]], on=["record", "layer"])
    if joint.empty:
        raise UsageError(
            "edits_against_effects: no record and layer is in both tables; records go by their name"
        )
    shown = [k for k in kinds if (joint["kind"] == k).any()]
    what = {
        "magnitude": "p(new) \u2212 p(true) after the edit", "success": "success after the edit",
        "top": "greedy decoding gives the new answer",
    }.get(column, column)  # fmt: skip
    sheet = Sheet.of(
        "Does the trace say where to edit?", _against_note(localisation, shown, joint),
        [MEASURES[k[0].upper()][:1].upper() + MEASURES[k[0].upper()][1:] for k in shown], width,
        alt=_against_alt(joint, shown, column),
    )  # fmt: skip
    x, y = (_padded(joint[c]) for c in ("effect", column))
    layers = sorted({int(n) for n in joint["layer"]})
    inks = dict(zip(layers, colors.sample_colorscale(theme.VIRIDIS, [
        i / max(1, len(layers) - 1) for i in range(len(layers))
    ]), strict=True))  # fmt: skip
    for i, kind in enumerate(shown):
        for layer in layers:
            own = joint[(joint["kind"] == kind) & (joint["layer"] == layer)]
            sheet.fig.add_scatter(
                x=own["effect"], y=own[column], mode="markers", name=f"layer {layer}", legendgroup=str(layer),
                showlegend=i == 0, marker={"color": inks[layer], "size": 0.45 * sheet.font, "opacity": 0.85},
                customdata=[safe(r) for r in own["record"]],
                hovertemplate=f"<b>%{{customdata}}</b>, layer {layer}<br>effect %{{x:.3f}}, {what} %{{y:.3f}}"
                "<extra></extra>",
                **sheet.at(i),
            )  # fmt: skip
        sheet.axes(i, "indirect effect in the trace", what if i % sheet.columns == 0 else "", x, y)
    return sheet.done()


def _line(r: dict[str, Any]) -> str:
    name, n = _METHODS.get(r["method"], str(r["method"])), int(r["at_once"])
    return (
        f"{name}, {n} at once" if r["method"] == "memit" or (r["method"] not in _METHODS and n > 1) else name
    )


def _dots(
    fig: go.Figure,
    own: pd.DataFrame,
    lines: Sequence[str],
    axis: str,
    name: str,
    symbol: str,
    shift: float,
    font: float,
    *,
    legend: bool,
) -> None:
    inks = [
        theme.MUTED if n == BEFORE else theme.CONTROL if n.startswith("control") else theme.BLUE
        for n in own["line"]
    ]
    for ink in dict.fromkeys(inks):
        part = own[[c == ink for c in inks]]
        fig.add_scatter(
            x=part["value"], y=[lines.index(n) + shift for n in part["line"]], mode="markers", name=name,
            legendgroup=name, showlegend=legend and ink == theme.BLUE, xaxis=f"x{axis}", yaxis=f"y{axis}",
            marker={"symbol": symbol, "size": 0.62 * font, "color": ink, "line": {"width": 1.3, "color": ink}},
            error_x={
                "array": part["ci_hi"] - part["value"], "arrayminus": part["value"] - part["ci_lo"], "color": ink,
                "thickness": 1.1, "width": 0,
            },
            customdata=[
                f"<b>{safe(r['line'])}</b>: {r['measure']} {percent(r['value'])}<br>95% interval {percent(r['ci_lo'])} "
                f"to {percent(r['ci_hi'])}, {count(int(r['n']), 'record')}"
                for r in part.to_dict("records")
            ],
            hovertemplate="%{customdata}<extra></extra>",
        )  # fmt: skip


def _padded(values: pd.Series) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    pad = 0.06 * (high - low or 1.0)
    return low - pad, high + pad


def _board_note(after: pd.DataFrame, before: pd.DataFrame) -> str:
    n = count(int(after["n"].max()), "fact")
    # Facts that share an edit are resampled together; of one edit nothing is known but itself.
    told = set(after.get("unit", ()))
    units = "facts"
    units += ", over groups that share an edit where there are several" if "group" in told else ""
    units += ", given the edit where there is one" if any("given" in u for u in told) else ""
    return joined([
        f"{n}, 95% intervals over {units}", "neighbours: the old answer should stay the likelier one",
    ])  # fmt: skip


def _board_alt(told: pd.DataFrame) -> str:
    parts = []
    for line, own in told.groupby("line", sort=False):
        by = ", ".join(f"{m} {number(v)}" for m, v in zip(own["measure"], own["value"], strict=True))
        parts.append(f"{line}: {by}.")
    return "Scores of edits. " + " ".join(parts)


def _against_note(localisation: pd.DataFrame | None, kinds: Sequence[str], joint: pd.DataFrame) -> str:
    parts = ["each dot: one fact written in one layer"]
    for kind in kinds if localisation is not None else ():
        own = localisation[localisation["kind"] == kind]  # type: ignore[index]
        if len(own) > 1:
            raise UsageError(
                f"edits_against_effects localisation: {kind} has {len(own)} rows; filter to one trace"
            )
        for r in own.to_dict("records"):
            parts.append(
                f"{kind}: \u03c1 = {number(r['rho'])} over all, {number(r['within'])} within a fact; R\u00b2 "
                f"{number(r['r2_layer'])} by layer alone, +{number(r['gain'], 3)} with the effect, p = "
                f"{number(r['p'], 3)}"
            )
    return joined(parts)


def _against_alt(joint: pd.DataFrame, kinds: Sequence[str], column: str) -> str:
    parts = []
    for kind in kinds:
        own = joint[joint["kind"] == kind]
        parts.append(
            f"{kind}: {len(own)} pairs, {column} {number(own[column].min())} to {number(own[column].max())}."
        )
    return "Scatter of edit success against effects of a trace. " + " ".join(parts)
