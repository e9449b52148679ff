"""Recall from lists: accuracy by the number of items."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from interp.errors import UsageError
from interp.plot import theme
from interp.plot.check import integers, need
from interp.plot.sheet import Sheet
from interp.plot.text import count, joined, number, percent, safe
from interp.plot.theme import Width

ACCURACY = ("items", "condition", "value", "ci_lo", "ci_hi", "n")
"""What each row says: number of items, what was done to the model, and its accuracy with its interval."""

CLEAN = ("clean", "uncut")
_LINES = (
    (theme.VERMILLION, "circle"), (theme.BLUE, "square"), (theme.GREEN, "diamond"), (theme.PURPLE, "triangle-up"),
    (theme.ORANGE, "cross"), (theme.SKY, "star"),
)  # fmt: skip
_GREYS = ("dash", "dot", "dashdot", "longdash")


def accuracy_by_items(
    rows: pd.DataFrame,
    facet: str | None = None,
    *,
    what: str = "accuracy among the items",
    width: Width = "double",
) -> go.Figure:
    """Accuracy over the number of items, one line a condition; grey: controls; dotted: a uniform guess.

    Args:
        rows: `items condition value ci_lo ci_hi n`; where there are, `control` (kind of control), `draw`, `chance` and
            the column of the facets. Conditions `clean` and `uncut` are the model as it is; those that begin with
            `control` or `random` are controls, several draws of which are shown by their median and 5-95 % range.
        facet: column with a value a panel, such as `family`, `split` or `position`; None is one panel.
        what: name of the value.
        width: `single`, `double`, `page` or pixels.

    Raises:
        UsageError: missing columns, no row, or two rows of one condition and number of items.
    """
    need(
        rows, (*ACCURACY, *([facet] if facet else [])), "accuracy_by_items", numeric=("items", *ACCURACY[2:])
    )
    integers(rows, ("items",), "accuracy_by_items")
    rows = rows.assign(
        facet=rows[facet].astype(str) if facet else "", name=_names(rows), chance=_chance(rows)
    )
    panels = list(dict.fromkeys(rows["facet"]))
    captions = [f"{facet}: {panel}".replace("_", " ") if facet else "" for panel in panels]
    sheet = Sheet.of(
        f"{what[0].upper()}{what[1:]}, by the number of items", _note(rows), captions, width, alt=_alt(rows, what),
        least=22 if len(panels) > 2 else 28,
    )  # fmt: skip
    names = list(dict.fromkeys(rows["name"]))
    told = [n for n in names if not _is_control(n) and n not in CLEAN]
    styles = {name: _LINES[i % len(_LINES)] for i, name in enumerate(told)}
    greys = {name: _GREYS[i % len(_GREYS)] for i, name in enumerate(n for n in names if _is_control(n))}
    shown: set[str] = set()
    for i, panel in enumerate(panels):
        own = rows[rows["facet"] == panel]
        guess = own.groupby("items")["chance"].first().sort_index()
        sheet.fig.add_scatter(
            x=guess.index, y=guess, mode="lines", name="uniform guess", showlegend=i == 0, legendrank=1003,
            line={"color": theme.MUTED, "width": 1, "dash": "dot"}, legendgroup="guess",
            hovertemplate="uniform guess of %{x}: %{y:.3f}<extra></extra>", **sheet.at(i),
        )  # fmt: skip
        for name in sorted(
            set(own["name"]), key=lambda n: (not _is_control(n), n not in CLEAN, names.index(n))
        ):
            part = own[own["name"] == name]
            if name in greys:
                _control(sheet, i, part, name, greys[name], name not in shown)
            else:
                color, symbol = (theme.INK, "circle-open") if name in CLEAN else styles[name]
                _line(sheet, i, part, name, color, symbol, name not in shown)
            shown.add(name)
        high = float(own["items"].max()) + 0.3
        sheet.axes(
            i, "items in the list", what if i % sheet.columns == 0 else "",
            (float(own["items"].min()) - 0.3, high), (-0.03, 1.03),
        )  # fmt: skip
        sheet.fig.update_layout({
            f"xaxis{sheet.axis(i)}": {"tickvals": _ticks(own["items"], sheet.room / sheet.font)}
        })  # fmt: skip
    return sheet.done()


def _names(rows: pd.DataFrame) -> list[str]:
    """Name of each line: the condition, and of a control its kind."""
    kinds = rows["control"].fillna("").astype(str) if "control" in rows else [""] * len(rows)
    return [
        f"control: {kind}" if kind and _is_control(str(c)) else str(c)
        for c, kind in zip(rows["condition"], kinds, strict=True)
    ]


def _is_control(name: str) -> bool:
    return name.startswith(("control", "random"))


def _chance(rows: pd.DataFrame) -> pd.Series:
    guess = 1.0 / rows["items"].astype(float)
    return rows["chance"].fillna(guess) if "chance" in rows else guess


def _ticks(items: pd.Series, room: float) -> list[int]:
    every = sorted({int(n) for n in items})
    step = -(-len(every) * 2 // max(2, int(room)))
    return every[::step]


def _line(
    sheet: Sheet, panel: int, part: pd.DataFrame, name: str, color: str, symbol: str, legend: bool
) -> None:
    part = part.sort_values("items")
    twice = part[part.duplicated("items")]
    if len(twice):
        raise UsageError(
            f"accuracy_by_items: two rows of {name!r} at {int(twice['items'].iloc[0])} items; filter the table, or "
            "name the column of the facets"
        )
    sheet.fig.add_scatter(
        x=part["items"], y=part["value"], mode="lines+markers", name=safe(name), legendgroup=name, showlegend=legend,
        line={"color": color, "width": 1.8},
        marker={"symbol": symbol, "size": 0.62 * sheet.font, "color": color, "line": {"width": 1.4, "color": color}},
        error_y={
            "array": part["ci_hi"] - part["value"], "arrayminus": part["value"] - part["ci_lo"], "color": color,
            "thickness": 1.1, "width": 0,
        },
        customdata=[
            [number(r.ci_lo, 3), number(r.ci_hi, 3), int(r.n), number(r.chance, 3)] for r in part.itertuples()
        ],
        hovertemplate=f"<b>{safe(name)}</b>, %{{x}} items: %{{y:.3f}}<br>95% interval %{{customdata[0]}} to "
        "%{customdata[1]}, n = %{customdata[2]}<br>a uniform guess: %{customdata[3]}<extra></extra>",
        **sheet.at(panel),
    )  # fmt: skip


def _control(sheet: Sheet, panel: int, part: pd.DataFrame, name: str, dash: str, legend: bool) -> None:
    """Median of the draws of a control; a band where there are several."""
    found = part.groupby("items")["value"]
    at = found.quantile([0.05, 0.5, 0.95]).unstack()
    draws = found.size()
    x = at.index.to_numpy(float).tolist()
    if (draws > 1).any() and len(x) > 1:
        sheet.band(panel, x, at[0.05].tolist(), at[0.95].tolist())
    sheet.fig.add_scatter(
        x=x, y=at[0.5], mode="lines+markers", name=safe(name), legendgroup=name, showlegend=legend, legendrank=1001,
        line={"color": theme.CONTROL, "width": 1.4, "dash": dash},
        marker={"color": theme.CONTROL, "symbol": "diamond-wide", "size": 0.5 * sheet.font},
        customdata=draws.to_numpy(),
        hovertemplate=f"<b>{safe(name)}</b>, %{{x}} items: %{{y:.3f}}<br>median of %{{customdata}} draws"
        "<extra></extra>",
        **sheet.at(panel),
    )  # fmt: skip


def _note(rows: pd.DataFrame) -> str:
    n = rows["n"].astype(int)
    per = count(int(n.min()), "prompt") if n.min() == n.max() else f"{n.min():,} to {n.max():,} prompts"
    parts = [f"{per} a point, bars: 95% intervals"]
    clean = rows[rows["name"].isin(CLEAN)].groupby("items")["value"].mean()
    others = [n for n in dict.fromkeys(rows["name"]) if not _is_control(n) and n not in CLEAN]
    if len(clean) and others:
        edited = rows[rows["name"] == others[0]].groupby("items")["value"].mean()
        gain = (edited - clean).dropna()
        if len(gain):
            at = int(gain.abs().idxmax())
            parts.append(f"{others[0]}: largest change {percent(gain[at])[:-1]} points, at {at} items")
    return joined(parts)


def _alt(rows: pd.DataFrame, what: str) -> str:
    parts = []
    for (panel, name), own in rows.groupby(["facet", "name"], sort=False):
        at = own.groupby("items")["value"].median()
        told = ", ".join(f"{number(v)} at {n}" for n, v in at.items())
        parts.append(f"{joined([str(panel), str(name)], ', ')}: {told}.")
    return f"Line chart of {what} over the number of items. " + " ".join(parts)
