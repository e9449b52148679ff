"""Ablations at scale: a spec becomes units, each is run once wherever there is room, and results are one table.

The package itself can be called: `interp.sweep("heads.yaml").to_frame()` runs what is left of a sweep here and gives
its merged table (`interp.sweep.run.sweep`).
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

_NAMES = {
    "Sweep": "interp.sweep.run",
    "SweepSpec": "interp.sweep.spec",
    "Unit": "interp.sweep.spec",
    "read_sweep": "interp.sweep.spec",
}


class _Sweep(ModuleType):
    """The package as a callable, so that the verb and its vocabulary share one name."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from interp.sweep.run import sweep

        return sweep(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name in _NAMES:
            from importlib import import_module

            value = getattr(import_module(_NAMES[name]), name)
            setattr(self, name, value)
            return value
        raise AttributeError(f"module 'interp.sweep' has no attribute {name!r}")


sys.modules[__name__].__class__ = _Sweep
