"""Figures of a run of the tasks from the synthetic tables, in the shapes that lay out differently."""

from __future__ import annotations

from functools import cache

import plotly.graph_objects as go

from interp import plot
from interp.plot.theme import Width
from tests.plot.recall_frames import recall_ages_frame, recall_curves_frame, recall_frame


@cache
def recalled(width: Width) -> dict[str, go.Figure]:
    """Figures by name at a width; made once, so leave them as they are."""
    table, curves = recall_frame(), recall_curves_frame()
    drawn = {"ladder": plot.recall_ladder(table, width=width)}
    drawn["ladder-one"] = plot.recall_ladder(table[table["task"] == "reading"], width=width)
    drawn["ages"] = plot.recall_ages(recall_ages_frame(), width=width)
    return drawn | {
        f"curves-{axis}": plot.recall_curves(curves, axis, width=width)
        for axis in dict.fromkeys(curves["axis"])
    }
