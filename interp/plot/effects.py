"""What a cut did, over the number of components cut and against its matched controls."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from interp.errors import UsageError
from interp.plot import theme
from interp.plot.conditions import (
    AT_CHANCE,
    Panel,
    at_k,
    metric_label,
    named,
    panels,
    rows_of,
    shared,
    spelled,
    z_and_rank,
)
from interp.plot.text import joined, number, safe, signed
from interp.plot.theme import Width

MAX_PANELS = 24


def dose_curve(effects: pd.DataFrame, metric: str = "accuracy", *, width: Width = "double") -> go.Figure:
    """Metric over the number of components cut, against the matched controls and the clean level.

    One panel for each task and way of cutting. The cut carries its 95 % interval; of the controls every draw is shown
    (faint dots), their median, and the range from their 5th to their 95th percentile.

    Args:
        effects: one row per condition, task and metric, as `interp.measure` gives them; filter it to draw less.
        metric: which metric to draw.
        width: `single`, `double`, `page` or pixels.

    Raises:
        UsageError: missing columns, an unknown metric, nothing cut, no clean row, or more than 24 panels.
    """
    rows = rows_of(effects, metric, "dose_curve")
    found = panels(rows, "dose_curve")
    if len(found) > MAX_PANELS:
        raise UsageError(
            f"dose_curve: {len(found)} panels (task x way of cutting) do not fit; filter the table to {MAX_PANELS}"
        )
    ks = sorted({int(k) for panel in found for k in (*panel.cut["k"], *panel.control["k"])})
    if ks[0] < 1:
        raise UsageError("dose_curve: a cut has k below 1; k is the number of components cut")
    font, total = theme.font_px(width), theme.pixels(width)
    lines, flat = _lines(found, font, total)
    columns = max(map(len, lines))
    tasks, ways = len({panel.task for panel in found}), len({panel.way for panel in found})
    captioned = ways > 1 and not (flat and tasks == 1)
    left, gap_x, gap_y = 4.6 * font, 1.5 * font, (5.3 if captioned else 3.8) * font
    panel_h = (13 if len(lines) == 1 else 9.5) * font
    tall = len(lines) * panel_h + (len(lines) - 1) * gap_y
    across = total - left - font
    cell = min((across - (columns - 1) * gap_x) / columns, 30 * font)
    legend_lines = 1 if total > 40 * font else 2
    scopes = {panel.at("scope") for panel in found}
    where = f": {spelled('scope', scopes.pop())}" if len(scopes) == 1 else ""
    fig = theme.figure(
        f"{metric_label(metric, unit=False).capitalize()} as more components are cut{where}", _dose_summary(found),
        width=width, plot_height=tall, left=left, right=font, top=(3.2 if captioned else 1.8) * font,
        bottom=(3.9 + 1.9 * legend_lines) * font, alt=_dose_alt(found, metric),
    )  # fmt: skip
    low, high = _range(found, metric)
    first = next((panel for panel in found if not panel.at_chance), None)
    number_of = 0
    for line, here in enumerate(lines):
        y1 = 1 - line * (panel_h + gap_y) / tall
        for column, panel in enumerate(here):
            if panel is None:
                continue
            number_of += 1
            axis = "" if number_of == 1 else str(number_of)
            x0 = column * (cell + gap_x) / across
            begins = not any(here[:column])
            lowest = all(panel is None for later in lines[line + 1 :] for panel in later[column : column + 1])
            fig.update_layout({
                f"xaxis{axis}": {
                    "domain": [x0, min(1.0, x0 + cell / across)], "anchor": f"y{axis}", "type": "log",
                    "tickvals": _readable(ks, cell / font), "range": _log_range(ks), "minor": {"ticks": ""},
                    "title": {"text": "components cut" if lowest else ""},
                },
                f"yaxis{axis}": {
                    "domain": [max(0.0, y1 - panel_h / tall), y1], "anchor": f"x{axis}", "range": [low, high],
                    "title": {"text": safe(metric_label(metric)) if begins else ""}, "showticklabels": begins,
                    "showgrid": True, "nticks": 6,
                },
            })  # fmt: skip
            way = named(panel, found)
            over = panel.task if tasks > 1 or not way else way
            _caption(fig, _shorten(over, cell, font), axis, 0, bold=True)
            if captioned and (begins or flat):
                room = cell if flat else across
                _caption(fig, _shorten(way, room, font), axis, 1.35 * font, bold=False)
            _dose_panel(fig, panel, ks, axis, first=panel is first, font=font)
    fig.update_layout(
        legend={
            "orientation": "h", "x": 0.5, "xanchor": "center", "xref": "container", "y": 0, "yref": "container",
            "yanchor": "bottom", "itemclick": False, "itemdoubleclick": False, "traceorder": "normal",
        }
    )  # fmt: skip
    return fig


def control_strip(
    effects: pd.DataFrame, metric: str = "accuracy", k: int | None = None, *, width: Width = "double"
) -> go.Figure:
    """The effect of the cut against all control draws, one line for each task and way of cutting.

    Args:
        effects: as for `dose_curve`.
        metric: which metric to draw.
        k: number of components cut; None takes 10 where it was measured, else the largest.
        width: `single`, `double`, `page` or pixels.

    Raises:
        UsageError: as for `dose_curve`, or no cut of `k` components.
    """
    rows = rows_of(effects, metric, "control_strip")
    found = at_k(panels(rows, "control_strip"), k, "control_strip")
    font, total = theme.font_px(width), theme.pixels(width)
    names = [(panel.task, named(panel, found)) for panel in found]
    left = min(0.36 * total, (0.55 * max(len(part) for name in names for part in name) + 1.2) * font)
    step = (3.3 if any(way for _, way in names) else 2.6) * font
    fig = theme.figure(
        f"Cut against controls: {metric_label(metric, unit=False)}",
        joined([
            shared(found), "each dot: one draw of as many other components; diamond: the cut with its 95% interval",
        ]),
        width=width, plot_height=step * len(found), left=left, right=6.6 * font, bottom=3.8 * font,
        alt="For each task the change under the cut and under each control draw. "
        + " ".join(f"{joined(name)}: {joined(_strip_note(p), ', ')}." for name, p in zip(names, found, strict=True)),
    )  # fmt: skip
    for line, panel in enumerate(found):
        y = -line
        if panel.at_chance:
            _note(fig, y, _strip_note(panel), font)
            fig.add_shape(
                type="rect", xref="paper", x0=0, x1=1, y0=y - 0.42, y1=y + 0.42, fillcolor=theme.ABSENT,
                line_width=0, layer="below",
            )  # fmt: skip
            continue
        draws = panel.control
        cut = panel.cut.iloc[0]
        spread = 0.28 * np.sin(2.4 * np.arange(len(draws)))
        fig.add_scatter(
            x=draws["delta"], y=y + spread, mode="markers", showlegend=False, customdata=_components(draws),
            marker={"color": theme.CONTROL, "size": 0.42 * font, "opacity": 0.6},
            hovertemplate="control draw %{customdata[0]}: %{x:+.3f}<br>%{customdata[1]}<extra></extra>",
        )  # fmt: skip
        fig.add_scatter(
            x=[cut["delta"]], y=[y], mode="markers", showlegend=False, customdata=_components(panel.cut.head(1)),
            error_x={
                "array": [cut["ci_hi"] - cut["delta"]], "arrayminus": [cut["delta"] - cut["ci_lo"]],
                "color": theme.CUT, "thickness": 1.4, "width": 0,
            },
            marker={"color": theme.CUT, "symbol": "diamond", "size": 0.85 * font},
            hovertemplate="cut: %{x:+.3f}<br>%{customdata[1]}<extra></extra>",
        )  # fmt: skip
        _note(fig, y, _strip_note(panel), font)
    fig.update_xaxes(
        title_text=safe(f"change of {metric_label(metric)}"),
        zeroline=True,
        zerolinewidth=1,
        showgrid=True,
        tickangle=0,
        nticks=max(3, int((total - left - 6.6 * font) / (5 * font))),
    )
    fig.update_yaxes(
        tickvals=[-i for i in range(len(found))], ticktext=[_two_lines(name, left, font) for name in names],
        range=[-len(found) + 0.4, 0.6], showline=False, ticks="",
    )  # fmt: skip
    return fig


def _range(found: Sequence[Panel], metric: str) -> tuple[float, float]:
    if metric == "accuracy":
        return -0.04, 1.04
    seen: list[float] = []
    for panel in found:
        clean = float(panel.clean["value"])
        seen += [clean, *(clean + panel.cut["ci_lo"]), *(clean + panel.cut["ci_hi"]), *panel.control["value"]]
    finite = np.array([v for v in seen if np.isfinite(v)])
    pad = 0.06 * (np.ptp(finite) or 1.0)
    return float(finite.min() - pad), float(finite.max() + pad)


def _log_range(ks: Sequence[int]) -> list[float]:
    pad = 0.12 * max(0.6, np.log10(ks[-1] / ks[0]))
    return [float(np.log10(ks[0]) - pad), float(np.log10(ks[-1]) + pad)]


def _lines(found: Sequence[Panel], font: float, total: float) -> tuple[list[list[Panel | None]], bool]:
    """Panels in lines, and whether they simply follow one another.

    Where most tasks were cut in most ways: a line for each way, a column for each task. Else one after the other, in
    wider columns, because each panel then says by itself how it was cut.
    """
    tasks = list(dict.fromkeys(panel.task for panel in found))
    ways = list(dict.fromkeys(panel.way for panel in found))
    flat = len(tasks) == 1 or len(ways) == 1 or len(found) < 0.6 * len(tasks) * len(ways)
    most = max(1, int((total - 5 * font) / ((15 if flat and len(ways) > 1 else 10.5) * font)))
    if flat:
        abreast = _even(len(found), most)
        return [list(found[i : i + abreast]) for i in range(0, len(found), abreast)], True
    at = {(panel.way, panel.task): panel for panel in found}
    abreast = _even(len(tasks), most)
    lines = [
        [at.get((way, task)) for task in tasks[start : start + abreast]]
        for start in range(0, len(tasks), abreast)
        for way in ways
    ]
    return [line for line in lines if any(line)], False


def _even(n: int, most: int) -> int:
    """How many of `n` to put in a line of at most `most`, so that the lines are alike."""
    return -(-n // -(-n // most))


def _readable(ks: Sequence[int], room: float) -> list[int]:
    """Those of `ks` whose labels stand apart on a log axis of `room` characters."""
    span = max(float(np.log10(ks[-1] / ks[0])), 0.3)
    kept: list[int] = []
    for k in ks:
        if not kept or float(np.log10(k / kept[-1])) / span * room > 1.0 + 0.4 * len(str(k)):
            kept.append(k)
    return kept


def _caption(fig: go.Figure, text: str, axis: str, above: float, *, bold: bool) -> None:
    fig.add_annotation(
        text=safe(text), x=0, xref=f"x{axis} domain", xanchor="left", xshift=-1,
        y=1, yref=f"y{axis} domain", yanchor="bottom", yshift=above,
        font={"color": theme.INK if bold else theme.MUTED, "weight": 600 if bold else 400},
    )  # fmt: skip


def _two_lines(name: tuple[str, str], room: float, font: float) -> str:
    task, way = (safe(_shorten(part, room - 0.6 * font, font)) for part in name)
    return f"{task}<br><i>{way}</i>" if way else task


def _shorten(name: str, room: float, font: float) -> str:
    most = max(6, int(room / (0.53 * font)))
    return name if len(name) <= most else name[: most - 1].rstrip() + "\u2026"


def _components(rows: pd.DataFrame) -> list[list[str]]:
    return [[str(r.draw), safe(_first(str(r.components)))] for r in rows.itertuples()]


def _first(components: str, most: int = 8) -> str:
    names = components.split()
    return " ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _dose_panel(
    fig: go.Figure, panel: Panel, ks: Sequence[int], suffix: str, *, first: bool, font: float
) -> None:
    place = {"xaxis": f"x{suffix}", "yaxis": f"y{suffix}"}
    ends = [10**e for e in _log_range(ks)]
    if panel.at_chance:
        fig.add_shape(
            type="rect", xref=f"x{suffix} domain", yref=f"y{suffix} domain", x0=0, x1=1, y0=0, y1=1,
            fillcolor=theme.ABSENT, line_width=0, layer="below",
        )  # fmt: skip
        fig.add_annotation(
            text="at chance:<br>no effect<br>reported", x=0.5, xref=f"x{suffix} domain", y=0.5,
            yref=f"y{suffix} domain", font={"color": theme.MUTED},
        )  # fmt: skip
        fig.add_scatter(x=ends, y=[None, None], **place, showlegend=False, hoverinfo="skip")
        return
    clean = panel.clean
    fig.add_scatter(
        x=[*ends, *ends[::-1]], y=[clean["ci_lo"]] * 2 + [clean["ci_hi"]] * 2, fill="toself", mode="none",
        fillcolor=theme.CLEAN_BAND, hoverinfo="skip", showlegend=False, **place,
    )  # fmt: skip
    fig.add_scatter(
        x=ends, y=[clean["value"]] * 2, mode="lines", line={"color": theme.INK, "dash": "dot", "width": 1.2},
        name="clean, 95% CI", legendgroup="clean", showlegend=first, **place,
        hovertemplate=f"clean {number(float(clean['value']), 3)}<extra></extra>",
    )  # fmt: skip
    _controls(fig, panel, place, first=first, font=font)
    cut = panel.cut
    fig.add_scatter(
        x=cut["k"], y=cut["value"], mode="lines+markers", name="cut, 95% CI", legendgroup="cut",
        showlegend=first, **place, line={"color": theme.CUT, "width": 1.8},
        marker={"symbol": "diamond", "size": 0.6 * font, "color": theme.CUT},
        error_y={
            "array": cut["ci_hi"] - cut["delta"], "arrayminus": cut["delta"] - cut["ci_lo"], "color": theme.CUT,
            "thickness": 1.2, "width": 0,
        },
        customdata=[[signed(r.delta, 3), number(r.ci_lo, 3), number(r.ci_hi, 3), safe(_first(r.components)), int(r.n)]
                    for r in cut.itertuples()],
        hovertemplate="<b>%{x} cut</b>: %{y:.3f}<br>change %{customdata[0]} (%{customdata[1]} to %{customdata[2]})"
        "<br>n = %{customdata[4]}<br>%{customdata[3]}<extra></extra>",
    )  # fmt: skip


def _controls(fig: go.Figure, panel: Panel, place: dict[str, str], *, first: bool, font: float) -> None:
    draws = panel.control
    if draws.empty:
        return
    at = draws.groupby("k")["value"].quantile([0.05, 0.5, 0.95]).unstack()
    x = at.index.to_numpy(float)
    if len(x) > 1:
        fig.add_scatter(
            x=[*x, *x[::-1]], y=[*at[0.05], *at[0.95][::-1]], fill="toself", mode="none",
            fillcolor=theme.CONTROL_BAND, hoverinfo="skip", showlegend=False, **place,
        )  # fmt: skip
    bar = {"array": at[0.95] - at[0.5], "arrayminus": at[0.5] - at[0.05], "width": 0, "thickness": 5}
    fig.add_scatter(
        x=x, y=at[0.5], mode="lines+markers", name="controls, 5\u201395%", legendgroup="control",
        showlegend=first, **place, line={"color": theme.CONTROL, "width": 1.4, "dash": "dash"},
        marker={"symbol": "circle", "size": 0.5 * font, "color": theme.CONTROL},
        error_y=bar | {"color": theme.CONTROL_BAND} if len(x) == 1 else None,
        customdata=draws.groupby("k").size().to_numpy(),
        hovertemplate="median of %{customdata} control draws of %{x}: %{y:.3f}<extra></extra>",
    )  # fmt: skip
    spread = 10 ** (0.022 * np.sin(2.4 * np.arange(len(draws))))
    fig.add_scatter(
        x=draws["k"] * spread, y=draws["value"], mode="markers", name="one control draw", legendgroup="draws",
        showlegend=first, **place, marker={"size": 0.26 * font, "color": theme.CONTROL, "opacity": 0.45},
        customdata=_components(draws), hovertemplate="control draw %{customdata[0]}: %{y:.3f}"
        "<br>%{customdata[1]}<extra></extra>",
    )  # fmt: skip


def _strip_note(panel: Panel) -> list[str]:
    if panel.at_chance:
        return [AT_CHANCE]
    z, rank, of = z_and_rank(panel)
    if of == 1:
        return ["no controls"]
    return [f"rank {rank} of {of}", *([f"z = {number(z, 1)}"] if np.isfinite(z) else [])]


def _note(fig: go.Figure, y: float, lines: Sequence[str], font: float) -> None:
    fig.add_annotation(
        text="<br>".join(map(safe, lines)), x=1, xref="paper", xanchor="left", xshift=4, y=y, align="left",
        font={"color": theme.MUTED, "size": 0.92 * font},
    )  # fmt: skip


def _dose_summary(found: Sequence[Panel]) -> str:
    """The first panel's largest cut in words."""
    panel = next((p for p in found if not p.at_chance), None)
    if panel is None:
        return joined(
            [
                shared(found, ("mode", "reference")),
                "the clean model is at chance on every task shown: no effect is reported",
            ]
        )
    last = panel.cut.iloc[-1]
    name = joined([panel.task, named(panel, found)])
    k, clean, cut = int(last["k"]), number(float(panel.clean["value"])), number(float(last["value"]))
    same = panel.control[panel.control["k"] == k]["value"]
    others = f", {number(float(same.median()))} with {k} matched others" if len(same) else ""
    return joined(
        [shared(found, ("mode", "reference")), f"{name}: {clean} clean, {cut} with {k} cut{others}"]
    )


def _dose_alt(found: Sequence[Panel], metric: str) -> str:
    parts = []
    for panel in found:
        name = joined([panel.task, named(panel, found)])
        if panel.at_chance:
            parts.append(f"{name}: clean model at chance, no effect reported.")
            continue
        steps = ", ".join(f"{number(float(r.value))} at k {int(r.k)}" for r in panel.cut.itertuples())
        parts.append(f"{name}: clean {number(float(panel.clean['value']))}; cut {steps}.")
    how = f" ({shared(found)})" if shared(found) else ""
    return f"Line chart of {metric_label(metric)} over the number of components cut{how}. " + " ".join(parts)
