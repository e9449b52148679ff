"""One figure of each kind from the synthetic tables, in all the shapes that lay out differently."""

from __future__ import annotations

from functools import cache
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from interp import plot
from interp.plot.theme import Width
from tests.plot import circuit_frames, frames, study_frames
from tests.plot.fact_gallery import facts
from tests.plot.memory_gallery import memories
from tests.plot.recall_gallery import recalled


@cache
def gallery(width: Width) -> dict[str, go.Figure]:
    """Figures by name at a width; made once, so leave them as they are."""
    scores, effects = frames.scores_frame(), frames.effects_frame()
    many = frames.effects_frame(mechanisms=("retrieval heads", "recall MLPs"))
    prompt, patch = frames.rows_json(), frames.patch_frame()
    best = next(iter(prompt["heads"]))
    needles, doses = study_frames.needles_frame(), study_frames.doses_frame()
    drawn = {
        "map": plot.head_map(scores, width=width),
        "map-large": plot.head_map(frames.scores_frame(80, 64, 8), width=width),
        "map-small": plot.head_map(frames.scores_frame(2, 4, 4), highlight=["L0H0"], width=width),
        "ranking": plot.score_ranking(scores, width=width),
        "ranking-short": plot.score_ranking(frames.scores_frame(2, 4), top=5, width=width),
        "dose": plot.dose_curve(effects, width=width),
        "dose-targets": plot.dose_curve(effects[effects["role"] == "target"], width=width),
        "dose-modes": plot.dose_curve(frames.modes_frame(), width=width),
        "dose-loss": plot.dose_curve(effects, "nll", width=width),
        "matrix": plot.effect_matrix(many, width=width),
        "matrix-one": plot.effect_matrix(effects[effects["task"] == "facts"], width=width),
        "strip": plot.control_strip(effects, width=width),
        "attention": plot.attention_rows(
            prompt["tokens"], prompt["heads"], prompt["roles"], answer=prompt["answer"], width=width
        ),
        "attention-head": plot.attention_rows(
            prompt["tokens"],
            prompt["heads"],
            prompt["roles"],
            answer=prompt["answer"],
            head=best,
            width=width,
        ),
        "patch": plot.patch_map(patch, width=width),
        "patch-roles": plot.patch_map(
            pd.concat([frames.role_patch_frame(), patch[patch["kind"] == "z"]]), width=width
        ),
        "instances": plot.instance_map(frames.instances_frame(), width=width),
        "needles": plot.needle_map(needles, width=width),
        "needles-one-mode": plot.needle_map(needles[needles["mode"] != "uniform"], "logprob", width=width),
        "doses": plot.dose_curves(doses, study_frames.areas_frame(doses), width=width),
        "doses-kept": plot.dose_curves(study_frames.doses_frame(kept=True), kept=True, width=width),
        "doses-few": plot.dose_curves(study_frames.doses_frame(("copy", "qr")), width=width),
        "specificity": plot.specificity(study_frames.tasks_frame(adjusted=False), width=width),
        "specificity-many": plot.specificity(study_frames.tasks_frame(study_frames.METHODS), width=width),
        "agreement": plot.score_agreement(study_frames.pairs_frame(), width=width),
        "agreement-few": plot.score_agreement(study_frames.pairs_frame(("copy", "qr", "dla")), width=width),
    }
    return drawn | circuits(width) | facts(width) | memories(width) | recalled(width)


@cache
def circuits(width: Width) -> dict[str, go.Figure]:
    """Figures of channels and circuits."""
    c = circuit_frames
    shape: dict[str, Any] = {"layers": c.LAYERS, "heads": c.HEADS, "kv_heads": c.KV_HEADS}
    faithful = c.faithful_frame()
    return {
        "channels": plot.channel_graph(c.readers_frame(), c.CLASSES, **shape, width=width),
        "channels-few": plot.channel_graph(c.readers_frame(2), top=1, width=width),
        "spectrum": plot.component_spectrum(c.spectrum_frame(), width=width),
        "spectrum-one": plot.component_spectrum(
            c.spectrum_frame(modes=("V",)).drop(columns="mode"), width=width
        ),
        "composition": plot.composition_map(c.composition_frame(), width=width),
        "items": plot.accuracy_by_items(c.items_frame(), "family", width=width),
        "items-one": plot.accuracy_by_items(c.items_frame(("A",)), width=width),
        "traversal-1d": plot.traversal_grid(c.grid_frame(1), width=width),
        "traversal-2d": plot.traversal_grid(c.grid_frame(2, 7), width=width),
        "traversal-3d": plot.traversal_grid(c.grid_frame(3), width=width),
        "circuit": plot.circuit_heads(c.paths_frame(), c.CLASSES, width=width),
        "circuit-plain": plot.circuit_heads(c.paths_frame().query("receivers == 'logits'"), width=width),
        "edges": plot.edge_matrix(c.edges_frame(), width=width),
        "cross": plot.cross_task_matrix(c.cross_frame(), width=width),
        "cross-few": plot.cross_task_matrix(c.cross_frame(0).query("task in ['ioi', 'niah']"), width=width),
        "overlap": plot.overlap_matrix(c.overlap_frame(), width=width),
        "faithful": plot.faithfulness_curves(faithful, facet="ablation", width=width),
        "faithful-one": plot.faithfulness_curves(
            faithful.query("ablation == 'mean'"), c.areas_frame(), width=width
        ),
    }
