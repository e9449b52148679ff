"""What a cut did: metrics, paired effects with matched controls, and what a model knows.

The package itself can be called: `interp.measure(model, task, cut)` is `interp.measure.effects.measure`, and
`interp.measure.known_to(model, task)` keeps what the model answers right.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

_NAMES = {
    "known_to": "interp.measure.known",
    "census": "interp.measure.known",
    "evaluate": "interp.measure.outcomes",
    "measure_generated": "interp.measure.generation",
    "contrast": "interp.measure.effects",
    "cross_task": "interp.measure.cross_task",
    "dose": "interp.measure.plans",
    "sufficient": "interp.measure.plans",
    "with_controls": "interp.measure.plans",
    "matched": "interp.measure.controls",
    "matched_heads": "interp.measure.controls",
    "auc": "interp.measure.curves",
    "smallest": "interp.measure.curves",
    "fdr": "interp.measure.stats",
}


class _Measure(ModuleType):
    """The package as a callable, so that the verb and its vocabulary share one name."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from interp.measure.effects import measure

        return measure(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name in _NAMES:
            from importlib import import_module

            found = import_module(_NAMES[name])
            # A submodule of the same name would shadow the function: bind the function.
            value = getattr(found, name)
            setattr(self, name, value)
            return value
        raise AttributeError(f"module 'interp.measure' has no attribute {name!r}")


sys.modules[__name__].__class__ = _Measure
