"""Scores of how attention heads retrieve from the context, each a function of one capture (`interp.locate.capture`).

    SCORES["locos"].formula

Of the emitted output: copy, copy_position, copy_topk. Of the rows that predict the forced answer: needle_mass, r2,
spatial, temporal, dla, locos; of the prompt's last rows: anchor. Beside the one pass they need: qr a short pass over a
null question, cri one patched run a head, induction and echo a pass over random repeated tokens.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

from interp.errors import UsageError
from interp.locate.scores.attention import ANCHOR, NEEDLE_MASS, R2, SPATIAL, TEMPORAL
from interp.locate.scores.base import HeadScore
from interp.locate.scores.causal import CRI
from interp.locate.scores.copying import COPY, COPY_POSITION, COPY_TOPK, dynamic_sets
from interp.locate.scores.logits import DLA, LOCOS
from interp.locate.scores.query import QR
from interp.locate.scores.repeats import ECHO, INDUCTION

__all__ = ["SCORES", "HeadScore", "chosen", "dynamic_sets"]

SCORES: dict[str, HeadScore] = {
    score.name: score
    for score in (
        COPY,
        COPY_POSITION,
        COPY_TOPK,
        NEEDLE_MASS,
        R2,
        ANCHOR,
        QR,
        TEMPORAL,
        SPATIAL,
        DLA,
        LOCOS,
        CRI,
        INDUCTION,
        ECHO,
    )
}
"""Every score, by name."""


def chosen(names: str | Iterable[str]) -> list[HeadScore]:
    """Scores by name, or all of them.

    Raises:
        UsageError: there is no score of that name.
    """
    if isinstance(names, str):
        names = SCORES if names == "all" else [names]
    out = []
    for name in dict.fromkeys(names):
        if name not in SCORES:
            near = get_close_matches(str(name), SCORES, 1)
            hint = f" (did you mean '{near[0]}'?)" if near else ""
            raise UsageError(f"no score '{name}' of heads{hint}; write one of {', '.join(SCORES)}")
        out.append(SCORES[name])
    return out
