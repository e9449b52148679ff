"""Dose curves of several rankings in one figure: which score finds the heads that matter with the fewest cuts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from interp.errors import UsageError
from interp.plot import theme
from interp.plot.check import need
from interp.plot.conditions import AT_CHANCE, HOW, metric_label, rows_of, spelled
from interp.plot.text import count, joined, number, safe
from interp.plot.theme import Width

AREAS = ("locator", "condition", "control", "draw", "value", "ci_lo", "ci_hi")
"""What each row of an areas table says: the mean of a dose curve over log k."""

MAX_LINES = 16
_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "triangle-down", "cross", "x", "pentagon")
_INKS = (
    theme.VERMILLION,
    theme.BLUE,
    theme.GREEN,
    theme.PURPLE,
    theme.ORANGE,
    theme.SKY,
    theme.INK,
    "#8C6D1F",
)
_KINDS = ("layer", "norm", "entropy", "bottom", "given")


@dataclass(frozen=True)
class _Curves:
    """The rows of one figure, sorted."""

    clean: pd.Series
    cut: dict[str, pd.DataFrame]
    control: dict[str, pd.DataFrame]
    none: pd.Series | None
    """With `kept`, the row in which no head was kept."""

    @property
    def ks(self) -> list[int]:
        every = [*self.cut.values(), *self.control.values()]
        return sorted({int(k) for part in every for k in part["k"]})

    @property
    def at_chance(self) -> bool:
        return bool(self.clean["status"] == AT_CHANCE)


def dose_curves(
    effects: pd.DataFrame,
    areas: pd.DataFrame | None = None,
    metric: str = "accuracy",
    *,
    kept: bool = False,
    width: Width = "double",
) -> go.Figure:
    """One metric over the number of heads, one line a score type; grey: matched controls; beside it the area of each.

    Args:
        effects: one row per condition, task and metric, of one task and one way of cutting; `locator` is the score
            type that ranked the heads, and `control` (optional) the kind of control. The band is of the first kind.
        areas: `locator condition control draw value ci_lo ci_hi`: the mean of each curve over log k, with interval.
            None computes them from the curves, without intervals.
        metric: which metric to draw.
        kept: rows in which the first k heads were kept and all others cut (conditions `keep` and `keep_control`).
        width: `single`, `double`, `page` or pixels.

    Raises:
        UsageError: missing columns, an unknown metric, more than one task or way of cutting, or more than 16 lines.
    """
    found = _curves(_told(rows_of(effects, metric, "dose_curves"), kept))
    if areas is not None:
        areas = _told(need(areas, AREAS, "dose_curves areas", numeric=("value", "ci_lo", "ci_hi")), kept)
    areas = _areas_of(found) if areas is None else areas
    font, total = theme.font_px(width), theme.pixels(width)
    stacked = total < 400
    did = "kept" if kept else "cut"
    left, right = 4.6 * font, 1.0 * font
    ranks = _ranked(found, areas, kept)
    names = 0.56 * font * max((len(name) for name, *_ in ranks), default=4) + 2.2 * font
    listed_h = max(9.0, 1.45 * len(ranks) + 0.8) * font
    curve_h = 13 * font if stacked else max(14 * font, listed_h)
    gap = 5.6 * font
    tall = curve_h + gap + listed_h if stacked else curve_h
    fig = theme.figure(
        f"{metric_label(metric, unit=False).capitalize()} as more heads are {did}, by the score that ranks them",
        _summary(found, _best(ranks), kept), width=width, plot_height=tall, left=left, right=right, top=0.6 * font,
        bottom=3.9 * font, alt=_alt(found, metric, kept),
    )  # fmt: skip
    across = total - left - right
    split = 1.0 if stacked else 0.54
    y0 = (tall - curve_h) / tall
    ks = found.ks
    low, high = _range(found, metric)
    fig.update_layout({
        "xaxis": {
            "domain": [0, split], "anchor": "y", "type": "log", "tickvals": ks, "ticktext": [str(k) for k in ks],
            "range": _log_range(ks), "minor": {"ticks": ""}, "title": {"text": f"heads {did}"}, "tickangle": 0,
        },
        "yaxis": {
            "domain": [y0, 1], "anchor": "x", "range": [low, high], "title": {"text": safe(metric_label(metric))},
            "showgrid": True, "nticks": 6,
        },
        "showlegend": False,
    })  # fmt: skip
    if found.at_chance:
        fig.add_annotation(
            text="at chance: no effect reported", x=0.5, xref="x domain", y=0.5, yref="y domain",
            font={"color": theme.MUTED},
        )  # fmt: skip
        return fig
    _levels(fig, found, ks, kept)
    styles = _styles(found)
    _bands(fig, found, font)
    for i, (name, rows) in reversed(list(enumerate(found.cut.items()))):
        _line(fig, name, rows, styles[name], kept, 2.2 if i == 0 else 1.3, font)
    # The names stand left of the areas: below the curves they have the whole width.
    x0 = max(0.0, (names - left) / across) if stacked else split + names / across
    _areas(fig, ranks, styles, [x0, 1.0], [0.0, listed_h / tall] if stacked else [0.0, 1.0], metric, font)
    return fig


def _told(rows: pd.DataFrame, kept: bool) -> pd.DataFrame:
    """Without the rows of the other question, with one name for cuts and controls."""
    names = {"keep": "cut", "keep_control": "control"} if kept else {"cut": "cut", "control": "control"}
    names |= {"clean": "clean"}
    return rows[rows["condition"].isin(list(names))].assign(condition=lambda f: f["condition"].map(names))


def _curves(rows: pd.DataFrame) -> _Curves:
    rows = rows.assign(control=rows["control"].fillna("").astype(str) if "control" in rows else "")
    tasks = list(dict.fromkeys(rows["task"]))
    if len(tasks) > 1:
        raise UsageError(
            f"dose_curves: {len(tasks)} tasks ({', '.join(tasks[:3])}, ...); filter the table to one"
        )
    clean, cut = rows[rows["condition"] == "clean"], rows[rows["condition"] == "cut"]
    if cut.empty:
        raise UsageError(
            "dose_curves: the table has no row of a cut (with kept=True: of heads that are kept)"
        )
    if clean.empty:
        raise UsageError("dose_curves: the table has no row with condition 'clean' to compare with")
    for column in HOW:
        ways = list(dict.fromkeys(cut[column]))
        if len(ways) > 1:
            raise UsageError(
                f"dose_curves: {column} is {' and '.join(ways[:3])}; filter the table to one way of cutting"
            )
    none = cut[cut["k"] == 0]
    cut = cut[cut["k"] > 0]
    locators = list(dict.fromkeys(cut["locator"]))
    if len(locators) > MAX_LINES:
        raise UsageError(
            f"dose_curves: {len(locators)} score types do not fit; filter the table to {MAX_LINES}"
        )
    twice = cut[cut.duplicated(["locator", "k"])]
    if len(twice):
        raise UsageError(
            f"dose_curves: two cuts of {int(twice['k'].iloc[0])} heads ranked by {twice['locator'].iloc[0]}"
        )
    control = rows[(rows["condition"] == "control") & (rows["k"] > 0)]
    kinds = sorted(
        dict.fromkeys(control["control"]), key=lambda c: _KINDS.index(c) if c in _KINDS else len(_KINDS)
    )
    return _Curves(
        clean.iloc[0],
        {name: cut[cut["locator"] == name].sort_values("k") for name in locators},
        {kind: control[control["control"] == kind].sort_values(["k", "draw"]) for kind in kinds},
        none.iloc[0] if len(none) else None,
    )


def _styles(found: _Curves) -> dict[str, tuple[str, str]]:
    """Colour and symbol of each line: told apart by either."""
    return {
        name: (_INKS[i % len(_INKS)], _SYMBOLS[i % len(_SYMBOLS)] + ("" if i < len(_SYMBOLS) else "-open"))
        for i, name in enumerate(found.cut)
    }


def _control_name(kind: str) -> str:
    return {"layer": "matched by layer", "norm": "matched by norm", "entropy": "matched by entropy",
            "bottom": "lowest scores", "": "matched others"}.get(kind, kind)  # fmt: skip


def _areas_of(found: _Curves) -> pd.DataFrame:
    """The mean of each curve over log k (trapezoids), without intervals."""
    out = []
    parts = [("cut", "", rows) for rows in found.cut.values()]
    parts += [
        ("control", kind, rows) for kind, draws in found.control.items() for _, rows in draws.groupby("draw")
    ]
    for condition, kind, rows in parts:
        x, y = np.log(rows["k"].to_numpy(float)), rows["value"].to_numpy(float)
        value = float(np.trapezoid(y, x) / (x[-1] - x[0])) if len(x) > 1 else float(y[0])
        out.append(
            [rows["locator"].iloc[0], condition, kind, int(rows["draw"].iloc[0]), value, np.nan, np.nan]
        )
    return pd.DataFrame(out, columns=list(AREAS))


def _ranked(
    found: _Curves, areas: pd.DataFrame, kept: bool
) -> list[tuple[str, str, float, float, float, int]]:
    """Lines of the area panel, best score first and controls last: name, kind, value, ends, draws."""
    told = areas.assign(control=areas["control"].fillna("").astype(str))
    out: list[tuple[str, str, float, float, float, int]] = []
    cut = told[(told["condition"] == "cut") & told["locator"].isin(list(found.cut))].sort_values(
        "value", ascending=not kept, kind="stable"
    )
    out += [
        (str(r.locator), "cut", float(r.value), float(r.ci_lo), float(r.ci_hi), 1) for r in cut.itertuples()
    ]
    for kind in found.control:
        draws = told[(told["condition"] == "control") & (told["control"] == kind)]["value"].to_numpy(float)
        if len(draws):
            low, middle, high = np.quantile(draws, [0.05, 0.5, 0.95])
            out.append((_control_name(kind), "control", float(middle), float(low), float(high), len(draws)))
    return out


def _range(found: _Curves, metric: str) -> tuple[float, float]:
    if metric == "accuracy":
        return -0.03, 1.03
    seen = [float(found.clean["value"])]
    for part in (*found.cut.values(), *found.control.values()):
        seen += part["value"].dropna().tolist()
    pad = 0.06 * (max(seen) - min(seen) or 1.0)
    return min(seen) - pad, max(seen) + pad


def _log_range(ks: list[int]) -> list[float]:
    pad = 0.06 * max(0.6, float(np.log10(ks[-1] / ks[0])))
    return [float(np.log10(ks[0]) - pad), float(np.log10(ks[-1]) + pad)]


def _levels(fig: go.Figure, found: _Curves, ks: list[int], kept: bool) -> None:
    """The uncut level with its interval; with `kept`, the level with no head kept too."""
    ends = [10**e for e in _log_range(ks)]
    clean = found.clean
    fig.add_scatter(
        x=[*ends, *ends[::-1]], y=[clean["ci_lo"]] * 2 + [clean["ci_hi"]] * 2, fill="toself", mode="none",
        fillcolor=theme.CLEAN_BAND, hoverinfo="skip", showlegend=False,
    )  # fmt: skip
    fig.add_scatter(
        x=ends, y=[clean["value"]] * 2, mode="lines", line={"color": theme.INK, "dash": "dot", "width": 1.2},
        name="uncut", hovertemplate=f"uncut {number(float(clean['value']), 3)}<extra></extra>",
    )  # fmt: skip
    if kept and found.none is not None:
        value = float(found.none["value"])
        fig.add_scatter(
            x=ends, y=[value] * 2, mode="lines", line={"color": theme.MUTED, "dash": "dash", "width": 1},
            name="no head kept", hovertemplate=f"no head kept {number(value, 3)}<extra></extra>",
        )  # fmt: skip


def _bands(fig: go.Figure, found: _Curves, font: float) -> None:
    """Controls of the first kind in grey: median and 5-95 % band. The other kinds stand beside, with their areas."""
    for kind, draws in list(found.control.items())[:1]:
        at = draws.groupby("k")["value"].quantile([0.05, 0.5, 0.95]).unstack()
        x = at.index.to_numpy(float)
        if len(x) > 1:
            fig.add_scatter(
                x=[*x, *x[::-1]], y=[*at[0.05], *at[0.95][::-1]], fill="toself", mode="none",
                fillcolor=theme.CONTROL_BAND, hoverinfo="skip", showlegend=False, name="band",
            )  # fmt: skip
        fig.add_scatter(
            x=x, y=at[0.5], mode="lines+markers", name=_control_name(kind),
            line={"color": theme.CONTROL, "width": 1.4, "dash": "dash"},
            marker={"color": theme.CONTROL, "symbol": "diamond-wide", "size": 0.5 * font},
            customdata=draws.groupby("k").size().to_numpy(),
            hovertemplate=f"{_control_name(kind)}: %{{x}} heads, median of %{{customdata}} draws %{{y:.3f}}"
            "<extra></extra>",
        )  # fmt: skip


def _line(
    fig: go.Figure,
    name: str,
    rows: pd.DataFrame,
    style: tuple[str, str],
    kept: bool,
    heavy: float,
    font: float,
) -> None:
    color, symbol = style
    fig.add_scatter(
        x=rows["k"], y=rows["value"], mode="lines+markers", name=safe(name), line={"color": color, "width": heavy},
        marker={"symbol": symbol, "size": 0.55 * font, "color": color, "line": {"width": 1, "color": color}},
        error_y={
            "array": rows["ci_hi"] - rows["delta"], "arrayminus": rows["delta"] - rows["ci_lo"], "color": color,
            "thickness": 0.9, "width": 0,
        } if heavy > 2 else None,
        customdata=[[number(float(r.ci_lo), 3), number(float(r.ci_hi), 3), int(r.n)] for r in rows.itertuples()],
        hovertemplate=f"<b>{safe(name)}</b>: %{{x}} heads {'kept' if kept else 'cut'}, %{{y:.3f}}<br>change from "
        "uncut %{customdata[0]} to %{customdata[1]} (95%), n = %{customdata[2]}<extra></extra>",
    )  # fmt: skip


def _areas(
    fig: go.Figure,
    ranks: list[tuple[str, str, float, float, float, int]],
    styles: dict[str, tuple[str, str]],
    x_domain: list[float],
    y_domain: list[float],
    metric: str,
    font: float,
) -> None:
    for y, (name, kind, value, low, high, draws) in enumerate(ranks):
        color, symbol = (
            styles.get(name, (theme.CONTROL, "line-ns-open"))
            if kind == "cut"
            else (theme.CONTROL, "diamond-wide")
        )
        what = "95% interval" if kind == "cut" else f"5 to 95% of {count(draws, 'draw')}"
        fig.add_scatter(
            x=[value], y=[y], xaxis="x2", yaxis="y2", mode="markers", showlegend=False, name=safe(name),
            marker={"color": color, "symbol": symbol, "size": 0.62 * font, "line": {"width": 1, "color": color}},
            error_x={
                "array": [high - value], "arrayminus": [value - low], "color": color, "thickness": 1.3, "width": 0,
            },
            hovertemplate=f"<b>{safe(name)}</b>: %{{x:.3f}}<br>{what} {number(low, 3)} to {number(high, 3)}"
            "<extra></extra>",
        )  # fmt: skip
    fig.update_layout({
        "xaxis2": {
            "domain": x_domain, "anchor": "y2", "showgrid": True, "nticks": 5, "tickangle": 0,
            "title": {"text": f"mean {safe(metric_label(metric, unit=False))} over log k"},
        },
        "yaxis2": {
            "domain": y_domain, "anchor": "x2", "tickvals": list(range(len(ranks))),
            "ticktext": [safe(name) for name, *_ in ranks], "range": [len(ranks) - 0.4, -0.6], "showline": False,
            "ticks": "", "showgrid": True,
        },
    })  # fmt: skip


def _best(ranks: list[tuple[str, str, float, float, float, int]]) -> str:
    """The ranking whose curve moves first."""
    return next(name for name, kind, *_ in ranks if kind == "cut")


def _summary(found: _Curves, best: str, kept: bool) -> str:
    first = next(iter(found.cut.values())).iloc[0]
    how = joined([f"{first['mode']} ablation", spelled("scope", str(first["scope"]))], ", ")
    if found.at_chance:
        return joined([how, "the clean model is at chance: no effect is reported"])
    rows = found.cut[best]
    middle = rows.iloc[(rows["k"] - 10).abs().argmin()]
    k = int(middle["k"])
    draws = next(iter(found.control.values()), pd.DataFrame({"k": [], "value": []}))
    same = draws[draws["k"] == k]["value"]
    others = f", {number(float(same.median()))} with {k} controls" if len(same) else ""
    told = f"{number(float(found.clean['value']))} uncut, {number(float(middle['value']))} with the top {k} of {best}"
    return joined([how, f"{told} {'kept' if kept else 'cut'}{others}"])


def _alt(found: _Curves, metric: str, kept: bool) -> str:
    parts = [
        f"{name}: {', '.join(f'{number(float(r.value))} at {int(r.k)}' for r in rows.itertuples())}."
        for name, rows in found.cut.items()
    ]
    return (
        f"Line chart of {metric_label(metric)} over the number of heads {'kept' if kept else 'cut'}, one line a score "
        f"type; uncut {number(float(found.clean['value']))}. " + " ".join(parts)
    )
