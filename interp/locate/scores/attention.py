"""Attention on the needle: how much of it, in which rows, and against what."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from interp.errors import UsageError
from interp.locate.capture import Capture
from interp.locate.options import Options, needle_tokens
from interp.locate.scores.base import UNIT, HeadScore
from interp.models.subject import CausalLM
from interp.tasks.base import Example


def check_needle(subject: CausalLM, example: Example, options: Options) -> None:
    """Raise `UsageError` unless the example has a needle."""
    needle_tokens(example, options)


def _check_window(subject: CausalLM, example: Example, options: Options) -> None:
    check_needle(subject, example, options)
    if options.window < 2 or len(example.ids) < 2:
        raise UsageError("score 'temporal' reads the window without its last row; take a window of 2 or more")


def _needle_mass(capture: Capture) -> Float[np.ndarray, "l h"]:
    """(1/|T|) sum over answer rows t of the attention on the needle, sum_{j in N} a_t[j]; in [0, 1]."""
    return capture.on_needle("answer").mean(0)


def _r2(capture: Capture) -> Float[np.ndarray, "l h"]:
    """Sum over answer rows of sum_{j in top |N| keys of a_t, j in N} a_t[j] / |N|.

    The retrieval-reasoning score of HeadKV (Fu et al. 2024, arXiv 2410.19258, and its code): no token has to match,
    and steps are added up. On a needle as long as the answer it lies in [0, 1].
    """
    assert capture.tops is not None and capture.top_values is not None
    n = len(capture.places)
    inside = np.isin(capture.tops[..., :n], capture.places)
    return (capture.top_values[..., :n] * inside).sum((0, -1)) / n


def _anchor(capture: Capture) -> Float[np.ndarray, "l h"]:
    """max (or mean) over the last `window` prompt rows of the attention on the needle.

    The observation window of SnapKV (Li et al. 2024, arXiv 2404.14469) and HeadKV, as the head detector of LOCOS' code
    has it; nothing is generated.
    """
    mass = capture.on_needle("window")
    return mass.max(0) if capture.options.anchor == "max" else mass.mean(0)


def _temporal(capture: Capture) -> Float[np.ndarray, "l h"]:
    """Mean attention on the needle in answer rows minus that in the window's rows that predict no answer token.

    After the contrastive detector of LOCOS' code (mass variant), whose other rows are generated steps outside the
    answer; here they are the last prompt tokens, which lead up to the answer.
    """
    answer = set(capture.rows["answer"])
    before = [at for at, row in enumerate(capture.rows["window"]) if row not in answer]
    return capture.on_needle("answer").mean(0) - capture.on_needle("window")[before].mean(0)


def _spatial(capture: Capture) -> Float[np.ndarray, "l h"]:
    """Mean over answer rows of sum_N a - (|N|/|off|) sum_off a, off being all other keys that the row may see.

    The attention-only contrast of LOCOS' code (`attention_spatial`).
    """
    mass = capture.on_needle("answer").astype(float)
    return contrast(mass, np.ones_like(mass), capture)


def contrast(
    needle: Float[np.ndarray, "m l h"], every: Float[np.ndarray, "m l h"], capture: Capture
) -> Float[np.ndarray, "l h"]:
    """Mean over answer rows of what the needle's keys give, less what as many of the other keys give."""
    n = len(capture.places)
    others = (capture.visible - n)[:, None, None]
    return (needle - n / others * (every - needle)).mean(0)


_NEEDLE = frozenset({"needle"})
NEEDLE_MASS = HeadScore("needle_mass", _needle_mass, _NEEDLE, bounds=UNIT, check=check_needle)
R2 = HeadScore("r2", _r2, frozenset({"tops"}), check=check_needle)
ANCHOR = HeadScore("anchor", _anchor, _NEEDLE | {"window"}, bounds=UNIT, check=check_needle)
TEMPORAL = HeadScore("temporal", _temporal, _NEEDLE | {"window"}, bounds=(-1.0, 1.0), check=_check_window)
SPATIAL = HeadScore("spatial", _spatial, _NEEDLE, check=check_needle)
