"""What a score of heads is: a named function of a capture, and what it needs to be captured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from jaxtyping import Float

from interp.locate.capture import Capture, Prefix
from interp.locate.options import Options
from interp.models.subject import CausalLM
from interp.tasks.base import Example

UNIT = (0.0, 1.0)
"""Bounds of a share."""

Of = Callable[[Capture], Float[np.ndarray, "l h"]]
Extra = Callable[[CausalLM, Capture, "Prefix | None"], None]
Check = Callable[[CausalLM, Example, Options], None]


@dataclass(frozen=True)
class HeadScore:
    """A score of every head on one example; calling it gives layers x heads.

    Attributes:
        name: what tables call it.
        of: the function; its docstring holds formula and source.
        needs: what of `top topk tops needle gold shares question window` has to be captured in the one pass.
        rows: whether it is of the `emitted` output, of the forced `answer`'s run, or of `other` sequences.
        extra: runs what one pass does not tell, and adds it to the capture.
        cached: whether that goes on from the pass's KV cache.
        twins: whether it reads the example's corrupt twin.
        bounds: least and largest value, where there are such (of copies as they count by default).
        check: raises `UsageError` for an example that it cannot score.
    """

    name: str
    of: Of = field(repr=False)
    needs: frozenset[str] = frozenset()
    rows: Literal["emitted", "answer", "other"] = "answer"
    extra: Extra | None = None
    cached: bool = False
    twins: bool = False
    bounds: tuple[float, float] | None = None
    check: Check | None = None

    def __call__(self, capture: Capture) -> Float[np.ndarray, "l h"]:
        return self.of(capture)

    @property
    def formula(self) -> str:
        """Formula and source."""
        return (self.of.__doc__ or "").strip()
