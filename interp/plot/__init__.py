"""Figures: a table in, a plotly figure out. Nothing here imports a model or torch.

Every function takes tidy frames as the rest of the toolkit writes them (`scores_`, effects, patch tables) and returns
a `plotly.graph_objects.Figure` in the template `interp`; `write` and `write_all` put figures into files. The names are
loaded when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from interp.plot.ages import recall_ages
    from interp.plot.agreement import score_agreement
    from interp.plot.attention import attention_rows
    from interp.plot.by_layer import layer_lines
    from interp.plot.channels import channel_graph
    from interp.plot.circuits import circuit_heads, edge_matrix
    from interp.plot.curves import value_curves
    from interp.plot.dose import dose_curves
    from interp.plot.effects import control_strip, dose_curve
    from interp.plot.export import find_browser, write, write_all
    from interp.plot.facts_census import fact_census
    from interp.plot.facts_conflict import conflict_balance, conflict_dose, context_heads
    from interp.plot.facts_dissociation import dissociation, dissociation_gaps
    from interp.plot.facts_edits import edit_scoreboard, edits_against_effects
    from interp.plot.facts_flow import extraction_rates, knockout_curves
    from interp.plot.facts_maps import causal_map, effect_profiles
    from interp.plot.facts_prior import accuracy_by_prior, changes_by_prior, prior_layers
    from interp.plot.faithful import faithfulness_curves
    from interp.plot.heads import head_map, score_ranking
    from interp.plot.instances import instance_map
    from interp.plot.items import accuracy_by_items
    from interp.plot.matrix import effect_matrix
    from interp.plot.memorization import dose_retention, exposure_curves, recovery_curves
    from interp.plot.memory_images import image_grid
    from interp.plot.memory_maps import memory_overlap, recovery_table
    from interp.plot.memory_signals import detection_curves, signal_violins
    from interp.plot.needles import needle_map
    from interp.plot.patching import patch_map
    from interp.plot.recall import recall_curves, recall_ladder
    from interp.plot.reuse import cross_task_matrix, overlap_matrix
    from interp.plot.spectrum import component_spectrum, composition_map
    from interp.plot.strips import value_strips
    from interp.plot.task_matrix import specificity
    from interp.plot.theme import dark, register
    from interp.plot.traversal import traversal_grid

_HOME = {
    "accuracy_by_items": "items",
    "accuracy_by_prior": "facts_prior",
    "attention_rows": "attention",
    "causal_map": "facts_maps",
    "changes_by_prior": "facts_prior",
    "channel_graph": "channels",
    "circuit_heads": "circuits",
    "component_spectrum": "spectrum",
    "composition_map": "spectrum",
    "conflict_balance": "facts_conflict",
    "conflict_dose": "facts_conflict",
    "context_heads": "facts_conflict",
    "control_strip": "effects",
    "cross_task_matrix": "reuse",
    "dark": "theme",
    "detection_curves": "memory_signals",
    "dissociation": "facts_dissociation",
    "dissociation_gaps": "facts_dissociation",
    "dose_curve": "effects",
    "dose_curves": "dose",
    "dose_retention": "memorization",
    "edge_matrix": "circuits",
    "edit_scoreboard": "facts_edits",
    "edits_against_effects": "facts_edits",
    "effect_matrix": "matrix",
    "effect_profiles": "facts_maps",
    "exposure_curves": "memorization",
    "extraction_rates": "facts_flow",
    "fact_census": "facts_census",
    "faithfulness_curves": "faithful",
    "find_browser": "export",
    "head_map": "heads",
    "image_grid": "memory_images",
    "instance_map": "instances",
    "knockout_curves": "facts_flow",
    "layer_lines": "by_layer",
    "memory_overlap": "memory_maps",
    "needle_map": "needles",
    "overlap_matrix": "reuse",
    "patch_map": "patching",
    "prior_layers": "facts_prior",
    "recall_ages": "ages",
    "recall_curves": "recall",
    "recall_ladder": "recall",
    "recovery_curves": "memorization",
    "recovery_table": "memory_maps",
    "register": "theme",
    "score_agreement": "agreement",
    "score_ranking": "heads",
    "signal_violins": "memory_signals",
    "specificity": "task_matrix",
    "traversal_grid": "traversal",
    "value_curves": "curves",
    "value_strips": "strips",
    "write": "export",
    "write_all": "export",
}
"""The module that holds each public name."""

__all__ = [
    "accuracy_by_items",
    "accuracy_by_prior",
    "attention_rows",
    "causal_map",
    "changes_by_prior",
    "channel_graph",
    "circuit_heads",
    "component_spectrum",
    "composition_map",
    "conflict_balance",
    "conflict_dose",
    "context_heads",
    "control_strip",
    "cross_task_matrix",
    "dark",
    "detection_curves",
    "dissociation",
    "dissociation_gaps",
    "dose_curve",
    "dose_curves",
    "dose_retention",
    "edge_matrix",
    "edit_scoreboard",
    "edits_against_effects",
    "effect_matrix",
    "effect_profiles",
    "exposure_curves",
    "extraction_rates",
    "fact_census",
    "faithfulness_curves",
    "find_browser",
    "head_map",
    "image_grid",
    "instance_map",
    "knockout_curves",
    "layer_lines",
    "memory_overlap",
    "needle_map",
    "overlap_matrix",
    "patch_map",
    "prior_layers",
    "recall_ages",
    "recall_curves",
    "recall_ladder",
    "recovery_curves",
    "recovery_table",
    "register",
    "score_agreement",
    "score_ranking",
    "signal_violins",
    "specificity",
    "traversal_grid",
    "value_curves",
    "value_strips",
    "write",
    "write_all",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'interp.plot' has no attribute {name!r}")
    value = getattr(import_module(f"interp.plot.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
