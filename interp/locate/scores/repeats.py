"""Induction and echo: what heads look at where random tokens come a second time."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from interp.errors import UsageError
from interp.locate.capture import Capture, Prefix
from interp.locate.options import Options
from interp.locate.scores.base import UNIT, HeadScore
from interp.models.batch import Batch
from interp.models.engines.base import Rows
from interp.models.subject import CausalLM
from interp.tasks.base import Example, Ids, stable_seed
from interp.tasks.haystack import n_leading
from interp.tasks.induction import ordinary_ids
from interp.trace.reducers import At, Many


def _induction(capture: Capture) -> Float[np.ndarray, "l h"]:
    """Mean attention, in the second copy of random tokens, on the token after the previous occurrence; in [0, 1].

    Olsson et al. 2022 (arXiv 2209.11895); RazorAttention (arXiv 2407.15891) keeps such heads whole. Each example has
    random tokens of its own, which have nothing to do with its prompt.
    """
    return capture.repeats["induction"]


def _echo(capture: Capture) -> Float[np.ndarray, "l h"]:
    """Mean attention, in the second copy of random tokens, on the previous occurrence itself; in [0, 1].

    RazorAttention (Tang et al. 2024, arXiv 2407.15891).
    """
    return capture.repeats["echo"]


def repeated(subject: CausalLM, example: Example, options: Options) -> tuple[Ids, int]:
    """Random tokens and the same again, and where the first copy starts; drawn anew for each example."""
    leading, pool = _vocabulary(subject.tokens) if subject.has_tokens else ((), _ids(subject))
    n = options.repeat
    if n > len(pool):
        raise UsageError(f"scores: {n} different random tokens were asked for, and there are {len(pool)}")
    rng = np.random.default_rng(stable_seed("repeats", n, example.key()))
    segment = tuple(rng.choice(np.array(pool), size=n, replace=False).tolist())
    return leading + segment + segment, len(leading)


@cache
def _vocabulary(tokens: Any) -> tuple[Ids, list[int]]:
    text = tokens.encode("a")
    return text.ids[: n_leading(text)], ordinary_ids(tokens)


def _ids(subject: CausalLM) -> list[int]:
    return list(range(int(subject.config.vocab_size)))


def _repeat(subject: CausalLM, capture: Capture, prefix: Prefix | None) -> None:
    ids, start = repeated(subject, capture.example, capture.options)
    n = capture.options.repeat
    batch = Batch.of_ids([ids], device=subject.device)
    # The last token's successor would be the start of a third copy.
    again = torch.arange(start, start + n - 1, device=subject.device)[None]
    rows = Rows(again + n, Many(induction=At(again + 1), echo=At(again)))
    trace = subject.run(batch, rows=rows, keep=1)
    for name in ("induction", "echo"):
        found = [trace.rows[i][name][0].mean(-1).cpu() for i in sorted(trace.rows)]
        capture.repeats[name] = torch.stack(found).numpy()


INDUCTION = HeadScore("induction", _induction, rows="other", extra=_repeat, bounds=UNIT)
ECHO = HeadScore("echo", _echo, rows="other", extra=_repeat, bounds=UNIT)
