"""A second module tree over the same weights, for libraries that rewrite the module they wrap."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

from torch import nn

from interp.errors import EngineError

M = TypeVar("M", bound=nn.Module)


def twin(module: M, engine: str) -> M:
    """A module of its own over the same parameters and buffers.

    Raises:
        EngineError: weights are offloaded, so there is nothing in memory to share; it names the engine.
    """
    if any(p.is_meta for p in module.parameters()):
        raise EngineError(f"engine '{engine}' cannot share offloaded weights; use engine 'hooks'")
    shared: dict[int, Any] = {id(t): t for t in (*module.parameters(), *module.buffers())}
    return copy.deepcopy(module, shared)
