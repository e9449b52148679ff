"""Figures of a sweep: each as an HTML page, with the table that it draws beside it as CSV."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd

from interp.errors import UsageError

METRICS = ("choice", "logit_diff")
"""What figures are made of; tasks without candidates are shown by their loss."""

ABREAST = 6
"""Locators that one figure of dose curves has room for."""


def figures_of(frame: pd.DataFrame, folder: str | Path) -> list[Path]:
    """Write the figures of a merged table: dose curves and layer profiles of each cut, and the matrix of all.

    Args:
        frame: of `Sweep.to_frame`.
        folder: made if it is not there; one `plotly.min.js` is shared by the pages.

    Returns:
        the paths of pages and tables.

    Raises:
        UsageError: the table is empty, lacks columns, or has no effect to draw.
        MissingResource: the folder cannot be written.
    """
    from interp.plot.export import write
    from interp.plot.sweep import sweep_doses, sweep_layers, sweep_matrix
    from interp.plot.sweep_tables import beyond_table, dose_table, layer_table
    from interp.runs import write_bytes

    if frame.empty:
        raise UsageError("sweep figures: the table has no rows; run the sweep first")
    metrics = [m for m in METRICS if m in set(frame["metric"])] or ["nll"]
    out: list[Path] = []
    for subject, of_model in frame.groupby("subject", sort=False):
        several = f" {subject}" if frame["subject"].nunique() > 1 else ""
        for metric in metrics:
            drawn = []
            for cut, own in of_model.groupby("cut", sort=False):
                doses, layers = dose_table(own, metric), layer_table(own, metric)
                if doses[doses["line"] == "cut"]["k"].nunique() > 1:
                    names = list(dict.fromkeys(own["locator"]))
                    for at in range(0, len(names), ABREAST):
                        some = own[own["locator"].isin(names[at : at + ABREAST])]
                        number = f" {at // ABREAST + 1}" if len(names) > ABREAST else ""
                        table = dose_table(some, metric)
                        if len(table):
                            drawn.append((f"doses {cut}{number}", sweep_doses(some, metric), table))
                if len(layers):
                    drawn.append((f"layers {cut}", sweep_layers(own, metric), layers))
            matrix = beyond_table(of_model, metric)
            if len(matrix):
                drawn.append(("matrix", sweep_matrix(of_model, metric), matrix))
            for name, figure, table in drawn:
                stem = Path(folder) / _file(f"{name} {metric}{several}")
                out += write(figure, stem, ("html",), plotlyjs="directory")
                path = stem.with_name(f"{stem.name}.csv")
                write_bytes(path, table.to_csv(index=False).encode())
                out.append(path)
    if not out:
        raise UsageError("sweep figures: the model is at chance on every task, so there is no effect to draw")
    return out


def _file(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9+]+", "-", name).strip("-").lower()
