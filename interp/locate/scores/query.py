"""QRscore: how much a question, and no other, looks at the evidence."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float

from interp.errors import UsageError
from interp.locate.capture import Capture, Prefix
from interp.locate.options import Options, gold_tokens, question_tokens
from interp.locate.scores.base import HeadScore
from interp.models.batch import Batch
from interp.models.engines.base import Rows
from interp.models.subject import CausalLM
from interp.tasks.base import Example, Ids
from interp.tasks.haystack import n_leading
from interp.trace.reducers import Mass


def _qr(capture: Capture) -> Float[np.ndarray, "l h"]:
    """(1/|q|) sum over the question's rows of sum_{j in gold} a_t[j], minus the same with a null question "N/A".

    Gold is the evidence. QRscore (Zhang et al. 2025, arXiv 2506.09944), with the calibration of its code; its code
    further drops, within a document, tokens two deviations below the mean, which is not done here.
    """
    assert capture.null is not None
    return capture.on_gold("question").mean(0) - capture.null


def null_prompt(subject: CausalLM, example: Example, options: Options) -> tuple[Ids, int]:
    """The prompt up to the question with a null question in its place, and where that begins."""
    start = question_tokens(example)[0]
    return example.ids[:start] + _null_ids(subject, options), start


def _null_ids(subject: CausalLM, options: Options) -> Ids:
    if not isinstance(options.null, str):
        return tuple(options.null)
    found = subject.tokens.encode(" " + options.null)
    return found.ids[n_leading(found) :]


def _null(subject: CausalLM, capture: Capture, prefix: Prefix | None) -> None:
    """Run the null question behind the context: off the KV cache of the pass where there is one."""
    ids, start = null_prompt(subject, capture.example, capture.options)
    batch = Batch.of_ids([ids], device=subject.device)
    columns = torch.arange(start, len(ids), device=subject.device)[None]
    gold = [[(p, p + 1) for p in gold_tokens(capture.example, capture.options)]]
    # Nothing before the question differs, so the whole of it may come from the cache.
    cache = None if prefix is None or not start else prefix(start)
    trace = subject.run(
        batch, rows=Rows(columns, Mass(gold)), keep=1, cache=cache, past=0 if cache is None else start
    )
    capture.null = torch.stack([trace.rows[i][0].mean(-1).cpu() for i in sorted(trace.rows)]).numpy()


def _check(subject: CausalLM, example: Example, options: Options) -> None:
    start = question_tokens(example)[0]
    if gold_tokens(example, options)[-1] >= start:
        raise UsageError(f"{example.task}: score 'qr' needs the question behind the evidence")
    if isinstance(options.null, str) and not subject.has_tokens:
        raise UsageError(
            "score 'qr' asks a null question, and this model has no tokenizer; give its ids: Options(null=(7,))"
        )
    if not options.null:
        raise UsageError("score 'qr': the null question is empty; write Options(null='N/A')")


QR = HeadScore(
    "qr", _qr, frozenset({"gold", "question"}), extra=_null, cached=True, bounds=(-1.0, 1.0), check=_check
)
