"""Tables of Markdown that both parts of the memorization study have."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pandas as pd
from facts_numbers import ends, table


def cell(own: pd.DataFrame, digits: int = 2) -> str:
    """The value of the first row with its interval; nothing where there is no row."""
    if own.empty:
        return ""
    r = own.iloc[0]
    return ends(float(r["value"]), float(r["ci_lo"]), float(r["ci_hi"]), digits)


def wide(
    rows: pd.DataFrame, line: str, column: str, columns: Sequence[str], head: Iterable[str], digits: int = 2
) -> str:
    """A table with a line for each value of one column and a cell for each of another."""
    names = list(dict.fromkeys(rows[line]))
    return table(
        head,
        [
            [str(name), *(cell(rows[(rows[line] == name) & (rows[column] == c)], digits) for c in columns)]
            for name in names
        ],
    )


def curves(own: pd.DataFrame, measures: Sequence[str]) -> str:
    """A line for each curve and measure, a cell for each number of exposures."""
    counts = sorted({int(n) for n in own["exposures"]})
    lines = []
    for curve in dict.fromkeys(own["curve"]):
        for measure in measures:
            part = own[(own["curve"] == curve) & (own["measure"] == measure)]
            if len(part):
                lines.append([f"{curve}, {measure}", *(cell(part[part["exposures"] == n]) for n in counts)])
    return table(["exposures", *(f"{n}" for n in counts)], lines)


def told(own: pd.DataFrame | None, head: str) -> str:
    if own is None:
        return ""
    rows = [
        [r["finding"], *([r["where"]] if "where" in own else []), r["statistic"],
         ends(r["value"], r["ci_lo"], r["ci_hi"], 3), str(int(r["n"])), f"**{r['verdict']}**"]
        for r in own.to_dict("records")
    ]  # fmt: skip
    return table(
        ["finding", *(["where"] if "where" in own else []), "statistic", "value, 95 % interval", "n", head],
        rows,
    )
