"""Maps of memorization: how much sets of items share, beside chance, and which method finds known neurons where."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from interp.errors import UsageError
from interp.plot import theme
from interp.plot.check import need
from interp.plot.memorization import RECOVERY
from interp.plot.text import count, joined, number, safe
from interp.plot.theme import Width

SHARED = ("a", "b", "value", "null_lo", "null_hi")
"""A row of an overlap table: two sets, what they share, and the middle 95 % of what random splits share."""


def memory_overlap(
    overlaps: pd.DataFrame, *, measure: str = "overlap (IoU)", level: float = 0.05, width: Width = "double"
) -> go.Figure:
    """What the masks or subspaces of sets of items share, with the range of random splits below it.

    Bold: beyond the null. A pair stands once; the diagonal is left empty, since a set shares all with itself.

    Args:
        overlaps: `a b value null_lo null_hi`; with `p` (of the permutation test) bold is p below `level`, else above
            `null_hi`.
        measure: what `value` is.
        level: of the test.
        width: `single`, `double`, `page` or pixels.

    Raises:
        UsageError: missing columns, a set with itself only, or two rows of a pair.
    """
    need(overlaps, SHARED, "memory_overlap", numeric=("value", "null_lo", "null_hi"))
    rows = overlaps[overlaps["a"].astype(str) != overlaps["b"].astype(str)].astype({"a": str, "b": str})
    if rows.empty:
        raise UsageError("memory_overlap: no row is of two different sets")
    pairs: dict[tuple[str, str], dict[str, Any]] = {}
    names = list(dict.fromkeys([*rows["a"], *rows["b"]]))
    for r in rows.to_dict("records"):
        a, b = sorted((r["a"], r["b"]), key=names.index)
        if (a, b) in pairs:
            raise UsageError(f"memory_overlap: {a!r} and {b!r} have two rows; filter the table to one")
        pairs[a, b] = r
    n = len(names)
    font, total = theme.font_px(width), theme.pixels(width)
    left = (0.56 * max(map(len, names)) + 1.0) * font
    cell = min((total - left - 0.8 * font) / (n - 1), 10 * font)
    roomy = cell >= 6 * font
    flat = 0.56 * font * max(map(len, names)) + 6 <= cell
    above = 1.3 * font if flat else 0.56 * font * max(map(len, names))
    z = np.full((n - 1, n - 1), np.nan)
    for (a, b), r in pairs.items():
        z[names.index(b) - 1, names.index(a)] = r["value"]
    fig = theme.figure(
        f"What sets of items share: {measure}", _shared_note(overlaps, roomy, level), width=width,
        plot_height=(3.0 if roomy else 2.0) * font * (n - 1), left=left, right=total - left - (n - 1) * cell,
        bottom=0.8 * font, top=above + 1.0 * font, alt=_shared_alt(pairs, measure),
    )  # fmt: skip
    reach = max(1e-9, float(np.nanmax(z)), 1.0 if np.nanmax(z) > 0.5 else 0.0)
    hover = np.full(z.shape, "", dtype=object)
    for (a, b), r in pairs.items():
        hover[names.index(b) - 1, names.index(a)] = _shared_hover(a, b, r)
    fig.add_heatmap(
        z=z, zmin=0, zmax=reach, colorscale=theme.VIRIDIS, showscale=False, xgap=1.5, ygap=1.5, hoverongaps=False,
        customdata=hover, hovertemplate="%{customdata}<extra></extra>", name=measure,
    )  # fmt: skip
    for (a, b), r in pairs.items():
        text = number(r["value"])
        text = f"<b>{text}</b>" if _beyond(r, level) else text
        if roomy:
            text += f"<br>[{number(r['null_lo'])}, {number(r['null_hi'])}]"
        color = theme.on(r["value"] / reach, theme.VIRIDIS)
        fig.add_annotation(
            x=names.index(a), y=names.index(b) - 1, text=text, font={"color": color, "size": 0.86 * font}
        )
    fig.update_xaxes(
        tickvals=list(range(n - 1)), ticktext=[safe(v) for v in names[:-1]], side="top", ticks="", showline=False,
        range=[-0.5, n - 1.5], tickangle=0 if flat else -90,
    )  # fmt: skip
    return fig.update_yaxes(
        tickvals=list(range(n - 1)), ticktext=[safe(v) for v in names[1:]], ticks="", showline=False,
        range=[n - 1.5, -0.5],
    )  # fmt: skip


def _beyond(row: dict[str, Any], level: float) -> bool:
    return bool(row["p"] < level) if "p" in row else bool(row["value"] > row["null_hi"])


def _shared_note(rows: pd.DataFrame, roomy: bool, level: float) -> str:
    test = f"permutation p < {level:g}" if "p" in rows else "above the middle 95% of random splits"
    return joined([f"bold: {test}", "in brackets: the middle 95% of random splits" if roomy else ""])


def _shared_hover(a: str, b: str, r: dict[str, Any]) -> str:
    said = [
        f"<b>{safe(a)}</b> and <b>{safe(b)}</b>: {number(r['value'], 3)}",
        f"random splits {number(r['null_lo'], 3)} to {number(r['null_hi'], 3)}",
    ]
    return "<br>".join([*said, f"p = {number(r['p'], 3)}"] if "p" in r else said)


def _shared_alt(pairs: dict[tuple[str, str], dict[str, Any]], measure: str) -> str:
    said = [
        f"{a} and {b}: {number(r['value'])}, random splits {number(r['null_lo'])} to {number(r['null_hi'])}."
        for (a, b), r in pairs.items()
    ]
    return f"Matrix of {measure} between sets of items. " + " ".join(said)


def recovery_table(
    recovery: pd.DataFrame,
    share: float | None = None,
    *,
    parts: Sequence[str] | None = None,
    width: Width = "double",
) -> go.Figure:
    """Recall of known neurons by method (lines) and part (columns), at one number of neurons taken; bold above chance.

    Args:
        recovery: `method part share recall ci_lo ci_hi chance`, as of `interp.measure.memorization.injected.recovery`.
        share: of the neurons taken; None draws the rows without share, in which as many are taken as are known.
        parts: the columns, in this order; default those of the table.
        width: `single`, `double`, `page` or pixels.

    Raises:
        UsageError: missing columns, no row of that share or part, or two rows of a method and part.
    """
    need(recovery, RECOVERY, "recovery_table", numeric=("share", "recall", "ci_lo", "ci_hi", "chance"))
    at = recovery["share"].isna() if share is None else np.isclose(recovery["share"], share)
    rows = recovery[at].astype({"part": str, "method": str})
    if rows.empty:
        have = ", ".join(f"{s:g}" for s in sorted(set(recovery["share"].dropna())))
        raise UsageError(f"recovery_table: no row of share {share}; there are {have or 'none'}")
    columns = list(parts or dict.fromkeys(rows["part"]))
    if absent := [p for p in columns if not (rows["part"] == p).any()]:
        raise UsageError(f"recovery_table: no row of {absent[0]}")
    if rows.duplicated(["method", "part"]).any():
        raise UsageError("recovery_table: a method has two rows of a part; filter the table to one")
    methods = list(dict.fromkeys(rows["method"]))
    cells = {(r["method"], r["part"]): r for r in rows.to_dict("records")}
    font, total = theme.font_px(width), theme.pixels(width)
    left = (0.56 * max(map(len, [*methods, "chance"])) + 1.0) * font
    cell = min((total - left - 0.8 * font) / len(columns), 9 * font)
    longest = 0.56 * font * max(map(len, columns))
    flat = longest + 6 <= cell
    roomy, readable = cell >= 6 * font, cell >= 2.2 * font
    lines = len(methods) + 1
    fig = theme.figure(
        "Do methods find the neurons that hold a sequence?", _found_note(rows, share, roomy, readable), width=width,
        plot_height=(3.0 if roomy else 2.0) * font * lines, left=left, right=total - left - cell * len(columns),
        bottom=0.8 * font, top=(1.3 * font if flat else longest) + 1.0 * font, alt=_found_alt(rows),
    )  # fmt: skip
    chance = [float(rows[rows["part"] == p]["chance"].iloc[0]) for p in columns]
    z = np.array(
        [chance, *([cells[m, p]["recall"] if (m, p) in cells else np.nan for p in columns] for m in methods)]
    )
    hover = np.full(z.shape, "", dtype=object)
    for x, part in enumerate(columns):
        hover[0, x] = f"chance in {safe(part)}: {number(chance[x], 3)}"
        for y, method in enumerate(methods, 1):
            r = cells.get((method, part))
            if r is not None:
                hover[y, x] = (
                    f"<b>{safe(method)}</b>, {safe(part)}<br>recall {number(r['recall'], 3)}, 95% interval "
                    f"{number(r['ci_lo'], 3)} to {number(r['ci_hi'], 3)}<br>chance {number(r['chance'], 3)}"
                )
    fig.add_heatmap(
        z=z, zmin=0, zmax=1, colorscale=theme.VIRIDIS, showscale=False, xgap=1.5, ygap=1.5, hoverongaps=False,
        customdata=hover, hovertemplate="%{customdata}<extra></extra>", name="recall",
    )  # fmt: skip
    for y in range(lines):
        for x, part in enumerate(columns):
            if not np.isfinite(z[y, x]):
                fig.add_annotation(x=x, y=y, text="\u2013", font={"color": theme.MUTED})
                continue
            r = cells.get((methods[y - 1], part)) if y else None
            above = r is not None and r["ci_lo"] > r["chance"]
            # Where the numbers have no room, a dot says what bold says elsewhere.
            text = number(z[y, x]) if readable else "\u2022" if above else ""
            text = f"<b>{text}</b>" if above else text
            text += f"<br>[{number(r['ci_lo'])}, {number(r['ci_hi'])}]" if roomy and r is not None else ""
            fig.add_annotation(
                x=x, y=y, text=text, font={"color": theme.on(z[y, x], theme.VIRIDIS), "size": 0.86 * font}
            )
    fig.update_xaxes(
        tickvals=list(range(len(columns))), ticktext=[safe(p) for p in columns], side="top", ticks="", showline=False,
        range=[-0.5, len(columns) - 0.5], tickangle=0 if flat else -90,
    )  # fmt: skip
    return fig.update_yaxes(
        tickvals=list(range(lines)), ticktext=["chance", *map(safe, methods)], ticks="", showline=False,
        range=[lines - 0.5, -0.5],
    )  # fmt: skip


def _found_note(rows: pd.DataFrame, share: float | None, roomy: bool, readable: bool) -> str:
    mark = "bold" if readable else "colour: recall from 0 (dark) to 1; dot"
    taken = (
        "as many neurons taken as are known" if share is None else f"{100 * share:.3g}% of the neurons taken"
    )
    n = count(int(rows["n"].max()), "injection") if "n" in rows else ""
    return joined(
        [taken, n, f"{mark}: the interval lies above chance", "brackets: 95% intervals" if roomy else ""]
    )


def _found_alt(rows: pd.DataFrame) -> str:
    said = [
        f"{r['method']}, {r['part']}: {number(r['recall'])} (chance {number(r['chance'])})."
        for r in rows.to_dict("records")
    ]
    return "Recall of known neurons by method and part. " + " ".join(said)
