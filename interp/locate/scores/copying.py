"""Copying: the head's top key is the token that is emitted.

At the step that emits token w a head *copies* if the key it attends to most lies in the needle and holds w. The row is
the one that *predicts* w: the last prompt token's for the first answer token.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int

from interp.errors import UsageError
from interp.locate.capture import Capture, Decoded
from interp.locate.options import Options
from interp.locate.scores.base import UNIT, HeadScore
from interp.models.sites import Component, Head, components
from interp.models.subject import CausalLM
from interp.tasks.base import Example


def copy_score(decoded: Decoded, example: Example, *, count: bool = False) -> Float[np.ndarray, "l h"]:
    """Copy score of one instance (Wu et al. 2024, section 2): set-based in [0, 1], or counting steps.

    >>> import torch
    >>> from interp.tasks.base import Example, Span
    >>> e = Example("t", (9, 5, 6, 1), (5, 6), spans=(Span(1, 3, "value", 0),), chance=0.5)
    >>> copy_score(Decoded([5, 6], torch.tensor([[[1, 0]], [[2, 2]]]), True), e)
    array([[1. , 0.5]])
    """
    return _share(copied(decoded.output, decoded.argmax[..., None], example), decoded.output, example, count)


def copy_topk_score(decoded: Decoded, example: Example, *, count: bool = False) -> Float[np.ndarray, "l h"]:
    """The same with any of the most attended keys in place of the first."""
    assert decoded.topk is not None
    return _share(copied(decoded.output, decoded.topk, example), decoded.output, example, count)


def copied(
    output: Sequence[int], keys: Int[torch.Tensor, "s l h k"], example: Example
) -> Bool[torch.Tensor, "s l h"]:
    """Whether each head copies at each step: one of its keys lies in the needle and holds the token emitted."""
    ids = torch.tensor(example.ids)
    inside = torch.zeros(len(ids), dtype=torch.bool)
    inside[_needle(example)] = True
    at = keys.clamp(0, len(ids) - 1)
    hit = (keys == at) & inside[at] & (ids[at] == torch.tensor(output)[:, None, None, None])
    return hit.any(-1)


def _share(hit: torch.Tensor, output: Sequence[int], example: Example, count: bool) -> np.ndarray:
    needle = _needle(example)
    if count:
        return (hit.sum(0).double() / len(needle)).numpy()
    tokens = torch.tensor(output)
    kinds = sorted({example.ids[i] for i in needle})
    found = torch.stack([(hit & (tokens == kind)[:, None, None]).any(0) for kind in kinds])
    return (found.sum(0).double() / len(kinds)).numpy()


def copy_position_score(decoded: Decoded, example: Example) -> Float[np.ndarray, "l h"]:
    """Steps whose top key is the exact source of the emitted token, over the needle's length.

    In an output that is not the forced answer, token by token, the source of an emitted token is each needle position
    that holds it; a position counts once.
    """
    spans = example.spans_of("value", 0)
    argmax = decoded.argmax
    n = len(spans[0])
    if tuple(decoded.output) == example.answer_ids:
        step = torch.arange(n)[:, None, None]
        hit = torch.stack([argmax == s.start + step for s in spans]).any(0)
        return (hit.sum(0).double() / n).numpy()
    ids = torch.tensor(example.ids)
    tokens = torch.tensor(decoded.output)
    found = [
        ((argmax == place) & (tokens == ids[place])[:, None, None]).any(0)
        for place in range(spans[0].start, spans[0].end)
    ]
    return (torch.stack(found).sum(0).double() / n).numpy()


def _needle(example: Example) -> list[int]:
    return [i for s in example.spans_of("value", 0) for i in range(s.start, s.end)]


def _check(subject: CausalLM, example: Example, options: Options) -> None:
    spans = example.spans_of("value", 0)
    if not spans or any(len(s) != len(example.answer_ids) for s in spans):
        raise UsageError(
            f"an answer of task {example.task} does not stand in the prompt as a value span of item 0, so nothing can "
            "be copied; take niah or induction"
        )


def _copy(capture: Capture) -> Float[np.ndarray, "l h"]:
    """Distinct needle tokens copied over distinct needle tokens, in [0, 1].

    A token y_t is copied if argmax_j a_t[j] lies in the needle N and x_argmax = y_t. With `count` every copying step
    counts, |{t copied}| / |N|, which can exceed 1. Wu et al. 2024 (arXiv 2404.15574), section 2 and its code.
    """
    return copy_score(capture.emitted, capture.example, count=capture.options.count)


def _copy_position(capture: Capture) -> Float[np.ndarray, "l h"]:
    """|{t: argmax_j a_t[j] = src(t)}| / |N|, src(t) being the very position that y_t is copied from.

    It does not credit a head for another occurrence of the same token. After CengizhanBayram/retrieval-head-profile.
    """
    return copy_position_score(capture.emitted, capture.example)


def _copy_topk(capture: Capture) -> Float[np.ndarray, "l h"]:
    """As `copy`, with y_t copied if any of the `k` most attended keys lies in N and holds y_t (Wu et al., `topk`)."""
    return copy_topk_score(capture.emitted, capture.example, count=capture.options.count)


COPY = HeadScore("copy", _copy, frozenset({"top"}), "emitted", bounds=UNIT, check=_check)
COPY_POSITION = HeadScore(
    "copy_position", _copy_position, frozenset({"top"}), "emitted", bounds=UNIT, check=_check
)
COPY_TOPK = HeadScore(
    "copy_topk", _copy_topk, frozenset({"top", "topk"}), "emitted", bounds=UNIT, check=_check
)


def dynamic_sets(
    steps: Sequence[Bool[np.ndarray, "_ l h"]], static: str | Component | Iterable[str | Component]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Which heads copy at each step, and how far a fixed set of heads covers them.

    The set of a step is {h: h copies at t}; after the dynamic retrieval heads of arXiv 2602.11162, which change from
    step to step.

    Args:
        steps: of each example whether a head copies at a step: `RetrievalHeads.copied_`.
        static: the fixed set, such as `heads.top(10)`.

    Returns:
        the sets: example, step, component; and a row for each step: example, step, n (heads that copy), jaccard (with
        the static set) and recall (share of them that is in it; NaN where none copies).

    Example:
        sets, steps = dynamic_sets(heads.copied_, heads.top(10))
    """
    fixed = {(c.layer, c.head) for c in components(static) if isinstance(c, Head)}
    sets, covered = [], []
    for example, hits in enumerate(steps):
        for step, hit in enumerate(hits):
            own = {(int(i), int(h)) for i, h in zip(*hit.nonzero(), strict=True)}
            sets += [(example, step, repr(Head(*place))) for place in sorted(own)]
            both, either = len(own & fixed), len(own | fixed)
            recall = both / len(own) if own else float("nan")
            covered.append((example, step, len(own), both / either if either else float("nan"), recall))
    return (
        pd.DataFrame(sets, columns=["example", "step", "component"]),
        pd.DataFrame(covered, columns=["example", "step", "n", "jaccard", "recall"]),
    )
