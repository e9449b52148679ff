"""Circuits: paths and edges that carry an answer, what a set of them does alone, and what several tasks share.

    interp.circuits.edge_scores(model, task)        every edge by attribution (integrated gradients)
    interp.circuits.faithfulness(model, task, ...)  what the first edges or nodes do with all others patched
    interp.circuits.overlaps(sets, universe)        shared heads, against chance in all heads and within layers

`interp.path_patch` measures paths exactly; `interp.measure.cross_task` cuts each circuit on each task.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_NAMES = {
    "Circuit": "circuit",
    "auroc": "circuit",
    "select": "circuit",
    "Graph": "graph",
    "edge_scores": "attribution",
    "node_scores": "attribution",
    "edge_effects": "patched",
    "faithfulness": "faithful",
    "overlap": "sharing",
    "overlaps": "sharing",
    "core": "sharing",
}
"""Names and the modules they come from; no name is a module's, which would shadow it."""


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module 'interp.locate.circuits' has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_NAMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_NAMES])
