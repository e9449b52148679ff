"""Figures of memorization from the synthetic tables, in the shapes that lay out differently."""

from __future__ import annotations

from functools import cache

import plotly.graph_objects as go

from interp import plot
from interp.plot.theme import Width
from tests.plot import memory_frames as f


@cache
def memories(width: Width) -> dict[str, go.Figure]:
    """Figures by name at a width; made once, so leave them as they are."""
    return {
        "images": plot.image_grid(f.pictures_frame(), note="10 memorized digits, seed 0", width=width),
        "images-many": plot.image_grid(f.pictures_frame(24), width=width),
        "images-plain": plot.image_grid(
            f.pictures_frame(3, 32, 3)[["item", "state", "image"]], states=("before", "after"), width=width
        ),
        "memory-doses": plot.dose_retention(f.doses_frame(), against=("held_out", "retention"), width=width),
        "memory-doses-one": plot.dose_retention(f.doses_frame(f.EDITS[:1], (), ("targeted",)), width=width),
        "exposures": plot.exposure_curves(f.exposures_frame(), width=width),
        "exposures-one": plot.exposure_curves(
            f.exposures_frame(("at the end",)).drop(columns="curve").query("measure == 'recall'"), width=width
        ),
        "memory-overlap": plot.memory_overlap(f.overlaps_frame(), width=width),
        "memory-overlap-many": plot.memory_overlap(f.overlaps_frame(8).drop(columns="p"), width=width),
        "recovery": plot.recovery_table(f.recovery_frame(), width=width),
        "recovery-deep": plot.recovery_table(f.recovery_frame(12), 0.05, width=width),
        "recovery-curves": plot.recovery_curves(f.recovery_frame(), ("all", "ff_out[1]"), width=width),
        "signals": plot.signal_violins(f.signals_frame(), width=width),
        "signals-one": plot.signal_violins(f.signals_frame()[["group", "first"]], width=width),
        "detection": plot.detection_curves(f.signals_frame(seeds=2), width=width),
        "strips": plot.value_strips(
            f.strips_frame(("A", "B", "others kept", "control words", "right digit")), "edit", panel="measure",
            group="kind", controls=("random", "magnitude"), levels={"A": {"before": 0.97, "oracle": 0.02}},
            title="What each edit deletes, and what it keeps", note="chosen on A", x="share", percent=True, width=width,
        ),
        "strips-marks": plot.value_strips(
            f.strips_frame(("A", "B"), ("by the prompt", "under attack")), "edit", panel="measure", mark="mark",
            controls=("by the prompt",), title="Are deleted pictures got back?", x="extracted", percent=True,
            width=width,
        ),
        "strips-plain": plot.value_strips(
            f.strips_frame(("A",)), "edit", ends=None, title="One panel", x={"": "score"}, width=width
        ),
        "attacks": plot.value_curves(
            f.attacks_frame(), "steps", panel="group", line="model", controls=("oracle",), title="Work to extraction",
            x_title="steps of the attack", y="extracted", percent=True, width=width,
        ),
    }  # fmt: skip
