"""The properties of retrieval heads, drawn: sparse, dynamic, causal, universal, intrinsic.

Each function takes the frame and the tables of the property of its name (`interp.locate.properties`).
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from interp.plot import theme
from interp.plot.check import need
from interp.plot.conditions import metric_label, rows_of
from interp.plot.sheet import Sheet
from interp.plot.text import count, number, percent, safe, signed
from interp.plot.theme import Width

THRESHOLD = 0.1
HEADS = 24
"""Heads shown one by one."""

STATISTICS = ("statistic", "value", "ci_lo", "ci_hi", "null", "n")
RANKED = ("component", "rank", "share", "score", "mass", "null_lo", "null", "null_hi")
ACTIVITY = ("component", "static", "active", "ci_lo", "ci_hi", "steps", "always")
STEPS = ("example", "step", "size", "jaccard", "expected")


def sparse(frame: pd.DataFrame, *, ranked: pd.DataFrame, width: Width = "double") -> go.Figure:
    """The scores of all heads, best first, and what part of the total the best of them hold.

    Args:
        frame: statistics of `interp.locate.properties.sparse`.
        ranked: its table of that name.
        width: `single`, `double`, `page` or pixels.

    Raises:
        UsageError: missing columns.
    """
    need(frame, STATISTICS, "sparse", numeric=("value",))
    need(ranked, RANKED, "sparse", numeric=RANKED[1:])
    at = frame.set_index("statistic")
    top = at.loc["mass_top_5%"]
    over = int((ranked["score"] >= THRESHOLD).sum())
    null = "" if np.isnan(top["null"]) else f", exchangeable heads {percent(top['null'], digits=0)}"
    note = (
        f"{over} of {count(len(ranked), 'head')} score {THRESHOLD:g} or more; the top 5% hold "
        f"{percent(top['value'], digits=0)} of the total{null}; {int(top['n'])} instances"
    )
    sheet = Sheet.of(
        "How sparse the score is", note, ("score of each head", "part of the total score"), width,
        alt=f"Left: the scores of all heads in order. Right: the part of the total that the best heads hold. {note}.",
    )  # fmt: skip
    fig = sheet.fig
    hover = [[safe(c), int(r)] for c, r in zip(ranked["component"], ranked["rank"], strict=True)]
    fig.add_scatter(
        x=100 * ranked["share"], y=ranked["score"], mode="lines+markers", showlegend=False, customdata=hover,
        line={"color": theme.BLUE, "width": 1.2}, marker={"color": theme.BLUE, "size": 0.36 * sheet.font},
        hovertemplate="<b>%{customdata[0]}</b>, rank %{customdata[1]}<br>score %{y:.3f}<extra></extra>", **sheet.at(0),
    )  # fmt: skip
    sheet.level(0, THRESHOLD, f"{THRESHOLD:g}: retrieval head (Wu et al. 2024)", (0, 100))
    x = [0.0, *(100 * ranked["share"])]
    if ranked["null"].notna().all():
        sheet.band(1, x, [0.0, *ranked["null_lo"]], [0.0, *ranked["null_hi"]])
        fig.add_scatter(
            x=x, y=[0.0, *ranked["null"]], mode="lines", name="exchangeable heads, 95%", hoverinfo="skip",
            line={"color": theme.CONTROL, "dash": "dash", "width": 1.2}, **sheet.at(1),
        )  # fmt: skip
    fig.add_scatter(
        x=x, y=[0.0, *ranked["mass"]], mode="lines", name="measured", line={"color": theme.BLUE, "width": 1.8},
        hovertemplate="top %{x:.1f}% of the heads: %{y:.3f}<extra></extra>", **sheet.at(1),
    )  # fmt: skip
    high = 1.08 * max(float(ranked["score"].max()), THRESHOLD)
    sheet.axes(0, "heads, best first (%)", "mean score", (-2, 102), (-0.03 * high, high))
    sheet.axes(1, "heads, best first (%)", "part of the total", (-2, 102), (-0.03, 1.05))
    return sheet.done()


def dynamic(
    frame: pd.DataFrame,
    *,
    activity: pd.DataFrame,
    steps: pd.DataFrame,
    contexts: pd.DataFrame | None = None,
    width: Width = "double",
) -> go.Figure:
    """How often the most active heads copy, and how far the set at each step is from the static one.

    Args:
        frame: statistics of `interp.locate.properties.dynamic`.
        activity: its table of that name; likewise `steps`, and `contexts`: the values of the static heads in each
            context, drawn as small dots where there are several.
        width: `single`, `double`, `page` or pixels.

    Raises:
        UsageError: missing columns.
    """
    need(frame, STATISTICS, "dynamic", numeric=("value",))
    need(activity, ACTIVITY, "dynamic", numeric=("active", "ci_lo", "ci_hi", "steps"))
    need(steps, STEPS, "dynamic", numeric=STEPS[1:])
    at = frame.set_index("statistic")
    always = int(at.loc["always_active", "value"])
    note = (
        f"{count(always, 'head')} of {len(activity)} copy in each of {int(at.loc['jaccard', 'n'])} instances; "
        f"{number(at.loc['set_size', 'value'], 1)} copy at a step, Jaccard with the static set "
        f"{number(at.loc['jaccard', 'value'])} (random sets as large {number(at.loc['jaccard', 'null'])})"
    )
    sheet = Sheet.of(
        "Which heads copy when", note, ("instances in which a head copies", "Jaccard with the static set"), width,
        alt=f"Left: the share of instances in which each head copies. Right: the Jaccard index by step. {note}.",
    )  # fmt: skip
    fig, font = sheet.fig, sheet.font
    most = max(4, min(HEADS, int(sheet.room / (1.25 * font))))
    shown = activity.sort_values("active", ascending=False, kind="stable").head(most).reset_index(drop=True)
    if contexts is not None and contexts["context"].nunique() > 1:
        own = contexts.merge(shown.reset_index()[["index", "component"]], on="component")
        fig.add_scatter(
            x=own["index"], y=own["active"], mode="markers", name="one context",
            marker={"symbol": "line-ew-open", "size": 0.7 * font, "color": theme.CONTROL},
            customdata=[[safe(r.context), safe(r.by), int(r.n)] for r in own.itertuples()],
            hovertemplate="%{customdata[1]} %{customdata[0]}: %{y:.2f} of %{customdata[2]}<extra></extra>",
            **sheet.at(0),
        )  # fmt: skip
    for static, name, symbol in ((True, "in the static set", "circle"), (False, "not in it", "circle-open")):
        part = shown[shown["static"].astype(bool) == static]
        if part.empty:
            continue
        color = theme.BLUE if static else theme.CONTROL
        fig.add_scatter(
            x=part.index, y=part["active"], mode="markers", name=name,
            error_y={"array": part["ci_hi"] - part["active"], "arrayminus": part["active"] - part["ci_lo"],
                     "thickness": 1.1, "width": 0, "color": color},
            marker={"color": color, "symbol": symbol, "size": 0.6 * font, "line": {"width": 1.2, "color": color}},
            customdata=[[safe(r.component), number(r.steps, 3)] for r in part.itertuples()],
            hovertemplate="<b>%{customdata[0]}</b><br>active in %{y:.3f} of the instances, copies at "
            "%{customdata[1]} of the steps<extra></extra>", **sheet.at(0),
        )  # fmt: skip
    by = steps.groupby("step")[["jaccard", "expected"]].agg(["mean", "sem", "count"])
    by = by[by["jaccard"]["count"] >= max(1, int(0.1 * by["jaccard"]["count"].max()))]
    fig.add_scatter(
        x=by.index + 1, y=by["expected"]["mean"], mode="lines", name="random sets as large", hoverinfo="skip",
        line={"color": theme.CONTROL, "dash": "dash", "width": 1.2}, **sheet.at(1),
    )  # fmt: skip
    fig.add_scatter(
        x=by.index + 1, y=by["jaccard"]["mean"], mode="lines+markers", name="measured, \u00b1 SE", showlegend=True,
        line={"color": theme.BLUE, "width": 1.6}, marker={"size": 0.5 * font, "color": theme.BLUE},
        error_y={"array": by["jaccard"]["sem"].fillna(0), "thickness": 1.1, "width": 0, "color": theme.BLUE},
        customdata=by["jaccard"]["count"],
        hovertemplate="step %{x}: %{y:.3f}, %{customdata} instances<extra></extra>", **sheet.at(1),
    )  # fmt: skip
    sheet.axes(0, "", "share of instances", (-0.7, len(shown) - 0.3), (-0.03, 1.05))
    sheet.names(0, [safe(c) for c in shown["component"]])
    last = int(by.index.max()) + 1
    sheet.axes(1, "step of the output", "Jaccard", (0.5, last + 0.5), (-0.03, 1.05))
    fig.update_layout({f"xaxis{sheet.axis(1)}": {"tick0": 1, "dtick": max(1, -(-last // 8))}})
    return sheet.done()


def causal(
    frame: pd.DataFrame,
    *,
    effects: pd.DataFrame,
    contrast: pd.DataFrame | None = None,
    width: Width = "double",
) -> go.Figure:
    """What is lost with each number of heads cut, and what is left with each number kept, beside matched others.

    Args:
        frame: statistics of `interp.locate.properties.causal`; their metric is drawn.
        effects: its table of that name; `contrast` goes with it and is not drawn.
        width: `single`, `double`, `page` or pixels.

    Raises:
        UsageError: missing columns.
    """
    need(frame, STATISTICS, "causal", numeric=("value",))
    metric = str(effects["metric"].iloc[-1])
    rows = rows_of(effects, metric, "causal")
    clean = rows[rows["condition"] == "clean"].iloc[0]
    cuts = rows[rows["condition"] == "cut"]
    keeps = rows[rows["condition"] == "keep"]
    drawn = [("cut", "control", "heads cut")]
    if len(keeps):
        drawn.append(("keep", "keep_control", "heads kept"))
    how = {"cut": cuts, "keep": keeps}
    captions = [f"{title} ({how[name]['mode'].iloc[0]})" for name, _, title in drawn]
    last = cuts.iloc[-1]
    note = (
        f"{clean['task']}: {metric} {number(float(clean['value']))} clean, {number(float(last['value']))} with "
        f"{int(last['k'])} cut; {int(clean['n'])} instances, scope {last['scope']}"
    )
    sheet = Sheet.of(
        "What the best heads do", note, captions, width, alt=f"Value over heads cut and kept. {note}."
    )
    low, high = (-0.03, 1.05) if metric == "accuracy" else _reach(rows)
    for panel, (name, control, title) in enumerate(drawn):
        _dose(sheet, panel, clean, how[name], rows[rows["condition"] == control])
        sheet.axes(
            panel, title, safe(metric_label(metric)), (-0.5, len(set(how[name]["k"])) - 0.5), (low, high)
        )
        sheet.names(panel, [str(int(k)) for k in sorted(set(how[name]["k"]))])
    return sheet.done()


def _reach(rows: pd.DataFrame) -> tuple[float, float]:
    low, high = float(rows["value"].min()), float(rows["value"].max())
    pad = 0.08 * ((high - low) or 1.0)
    return low - pad, high + pad


def _dose(sheet: Sheet, panel: int, clean: pd.Series, cuts: pd.DataFrame, controls: pd.DataFrame) -> None:
    """Values at each k in order, equally spaced: the cut with its interval, every control draw, the clean level."""
    place = {int(k): i for i, k in enumerate(sorted(set(cuts["k"])))}
    sheet.level(panel, float(clean["value"]), "clean", (-0.5, len(place) - 0.5))
    sheet.fig.data[-1].showlegend = panel == 0
    spread = 0.12 * np.sin(2.4 * np.arange(len(controls)))
    sheet.fig.add_scatter(
        x=[place[int(k)] + s for k, s in zip(controls["k"], spread, strict=True)], y=controls["value"], mode="markers",
        name="matched others", showlegend=panel == 0 and len(controls) > 0,
        marker={"color": theme.CONTROL, "size": 0.45 * sheet.font, "opacity": 0.6},
        customdata=[str(int(d)) for d in controls["draw"]],
        hovertemplate="control draw %{customdata}: %{y:.3f}<extra></extra>", **sheet.at(panel),
    )  # fmt: skip
    sheet.fig.add_scatter(
        x=[place[int(k)] for k in cuts["k"]], y=cuts["value"], mode="lines+markers", name="best heads, 95% CI",
        showlegend=panel == 0, line={"color": theme.CUT, "width": 1.8},
        marker={"symbol": "diamond", "size": 0.6 * sheet.font, "color": theme.CUT},
        error_y={
            "array": (cuts["ci_hi"] - cuts["delta"]).fillna(0), "arrayminus": (cuts["delta"] - cuts["ci_lo"]).fillna(0),
            "color": theme.CUT, "thickness": 1.2, "width": 0,
        },
        customdata=[signed(float(d), 3) for d in cuts["delta"]],
        hovertemplate="%{y:.3f}, change %{customdata}<extra></extra>", **sheet.at(panel),
    )  # fmt: skip


def universal(
    frame: pd.DataFrame, *, strength: pd.DataFrame, depth: pd.DataFrame, width: Width = "double"
) -> go.Figure:
    """The scores of each model's heads, best first, and how deep in the model the score lies.

    Args:
        frame: statistics of `interp.locate.properties.universal`.
        strength: its table of that name; likewise `depth`.
        width: `single`, `double`, `page` or pixels.

    Raises:
        UsageError: missing columns.
    """
    need(frame, ("subject", *STATISTICS), "universal", numeric=("value",))
    need(
        strength, ("subject", "component", "rank", "share", "score"), "universal", numeric=("share", "score")
    )
    need(depth, ("subject", "depth", "share"), "universal", numeric=("depth",))
    over = frame[frame["statistic"].str.startswith("share_over_")].drop_duplicates("subject")
    over = over[over["subject"].isin(strength["subject"])]
    shares = ", ".join(f"{r.subject} {percent(r.value)}" for r in over.itertuples())
    note = f"heads at the threshold or over it: {shares}"
    sheet = Sheet.of(
        "What models have in common", note, ("score of each head", "where in the model the score lies"), width,
        alt=f"Left: the scores of each model's heads in order. Right: the score by relative depth. {note}.",
    )  # fmt: skip
    names = list(dict.fromkeys(strength["subject"]))
    for i, name in enumerate(names):
        color, dash = (
            theme.COLORWAY[i % len(theme.COLORWAY)],
            ("solid", "dash", "dot")[i // len(theme.COLORWAY) % 3],
        )
        own, deep = strength[strength["subject"] == name], depth[depth["subject"] == name]
        sheet.fig.add_scatter(
            x=100 * own["share"], y=own["score"], mode="lines", name=safe(name), legendgroup=safe(name),
            line={"color": color, "dash": dash, "width": 1.6},
            customdata=[[safe(c), int(r)] for c, r in zip(own["component"], own["rank"], strict=True)],
            hovertemplate=f"{safe(name)}: <b>%{{customdata[0]}}</b>, rank %{{customdata[1]}}<br>score %{{y:.3f}}"
            "<extra></extra>", **sheet.at(0),
        )  # fmt: skip
        sheet.fig.add_scatter(
            x=deep["depth"], y=deep["share"], mode="lines+markers", showlegend=False, legendgroup=safe(name),
            line={"color": color, "dash": dash, "width": 1.6}, marker={"color": color, "size": 0.4 * sheet.font},
            hovertemplate=f"{safe(name)}: %{{y:.3f}} of the score about depth %{{x:.2f}}<extra></extra>",
            **sheet.at(1),
        )  # fmt: skip
    sheet.level(0, THRESHOLD, f"{THRESHOLD:g}: retrieval head (Wu et al. 2024)", (0, 100))
    high = 1.08 * max(float(strength["score"].max()), THRESHOLD)
    sheet.axes(0, "heads, best first (%)", "mean score", (-1, 50), (-0.03 * high, high))
    most = 1.1 * float(depth["share"].max())
    sheet.axes(1, "relative depth (0: first layer)", "part of the score", (-0.02, 1.02), (-0.03 * most, most))
    return sheet.done()


def intrinsic(
    frame: pd.DataFrame, *, heads: pd.DataFrame, agreement: pd.DataFrame, width: Width = "double"
) -> go.Figure:
    """The scores of each head in both models, and the overlap of their best heads beside its ceiling and chance.

    Args:
        frame: statistics of `interp.locate.properties.intrinsic`.
        heads: its table of that name; likewise `agreement`.
        width: `single`, `double`, `page` or pixels.

    Raises:
        UsageError: missing columns.
    """
    need(frame, ("subject", *STATISTICS), "intrinsic", numeric=("value",))
    need(heads, ("component", "base", "derived"), "intrinsic", numeric=("base", "derived"))
    need(agreement, ("measure", "set", "value", "expected_layers", "ceiling", "n_a", "n_b"), "intrinsic")
    r = frame.set_index("statistic").loc["pearson"]
    both = str(r["subject"])
    note = f"{both}: scores correlate by {number(r['value'])} (shuffled within layers {number(r['null'])})"
    sheet = Sheet.of(
        "What training on keeps", note, ("score of each head", "overlap of the best heads"), width,
        alt=f"Left: each head's score in both models. Right: overlap of their best heads. {note}.",
    )  # fmt: skip
    fig, font = sheet.fig, sheet.font
    low = min(0.0, float(heads[["base", "derived"]].min().min()))
    high = 1.06 * max(float(heads[["base", "derived"]].max().max()), THRESHOLD)
    fig.add_scatter(
        x=[low, high], y=[low, high], mode="lines", name="equal scores", hoverinfo="skip",
        line={"color": theme.MUTED, "dash": "dot", "width": 1}, **sheet.at(0),
    )  # fmt: skip
    fig.add_scatter(
        x=heads["base"], y=heads["derived"], mode="markers", showlegend=False,
        marker={"color": theme.BLUE, "size": 0.5 * font, "opacity": 0.6},
        customdata=[safe(c) for c in heads["component"]],
        hovertemplate="<b>%{customdata}</b><br>base %{x:.3f}, derived %{y:.3f}<extra></extra>", **sheet.at(0),
    )  # fmt: skip
    sets = agreement[agreement["measure"] == "overlap"].reset_index(drop=True)
    chance = sets["expected_layers"] / sets[["n_a", "n_b"]].min(axis=1)
    drawn = (
        ("random sets, as many in each layer", chance, theme.CONTROL, "line-ew-open"),
        ("ceiling: split halves", sets["ceiling"], theme.INK, "diamond-open"),
        ("measured", sets["value"], theme.BLUE, "circle"),
    )
    for name, y, color, symbol in drawn:
        fig.add_scatter(
            x=sets.index, y=y, mode="markers", name=name, customdata=[safe(s) for s in sets["set"]],
            marker={"color": color, "symbol": symbol, "size": 0.9 * font, "line": {"width": 1.6, "color": color}},
            hovertemplate=f"{name}, %{{customdata}}: %{{y:.2f}}<extra></extra>", **sheet.at(1),
        )  # fmt: skip
    span = high - low
    sheet.axes(
        0,
        "score in the base model",
        "score in the derived model",
        (low - 0.03 * span, high),
        (low - 0.03 * span, high),
    )
    sheet.axes(1, "", "overlap", (-0.6, len(sets) - 0.4), (-0.03, 1.06))
    sheet.names(1, [safe(str(s).replace("score >= ", "\u2265 ")) for s in sets["set"]])
    return sheet.done()
