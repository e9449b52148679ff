"""Causal retrieval importance: what putting one head's clean output back restores of the answer."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float

from interp.errors import UsageError
from interp.intervene.patch import Patch, Source, _pair
from interp.locate.capture import Capture, Prefix
from interp.locate.options import Options
from interp.locate.scores.base import HeadScore
from interp.measure.metrics import score_answer
from interp.models.subject import CausalLM
from interp.tasks.base import Example
from interp.trace.each import resumes

PREFERRED = ("needle_drop", "value_swap")


def _cri(capture: Capture) -> Float[np.ndarray, "l h"]:
    """log p(answer | corrupt prompt, head h's output from the clean run) - log p(answer | corrupt prompt), in nats.

    The clean answer is forced in both runs. Corrupt is the prompt without its needle (`needle_drop`), or with another
    value in it. After the CRI detector of LOCOS' code (arXiv 2607.01002), which patches at all positions and averages
    over answer tokens; here the log-probability is the whole answer's, and rows that predict it are patched unless
    `Options(scope="all")`.
    """
    assert capture.recovery is not None
    return capture.recovery


def corruption_of(example: Example, options: Options) -> str:
    """Name of the corrupt twin.

    Raises:
        UsageError: the example has none (of that name).
    """
    names = (options.corruption,) if options.corruption else (*PREFERRED, *example.corrupt)
    found = next((name for name in names if name in example.corrupt), None)
    if found is None:
        wanted = f"corruption '{options.corruption}'" if options.corruption else "a corruption"
        have = ", ".join(example.corrupt) or "none"
        raise UsageError(f"{example.task}: score 'cri' needs {wanted}, and an example has {have}")
    return found


def _patched(subject: CausalLM, capture: Capture, prefix: Prefix | None) -> None:
    """Run the corrupt prompt once, and once for each head with that head's clean output in it.

    Off the clean pass's KV cache, where there is one, the clean run costs the positions that are patched and the
    corrupt one what follows the first token that differs.
    """
    example, options = capture.example, capture.options
    clean, corrupt = _pair(example, corruption_of(example, options))
    rows = example.answer_rows
    # Both runs are the same up to the first token that differs.
    same = next(i for i, (a, b) in enumerate(zip(clean.ids, corrupt.ids, strict=True)) if a != b)
    positions = tuple(rows if options.scope == "answer" else range(same, rows.stop))

    def after(n: int) -> dict[str, Any]:
        # What is applied may edit the clean prompt and not the corrupt one.
        if prefix is None or not n or subject.edited or not resumes(subject):
            return {}
        return {"cache": prefix(n), "past": n}

    source = Source.of(subject, clean, "z", **after(positions[0]))
    heads = subject.heads()
    patches = [Patch(source, (h.layer,), positions, h.head) for h in heads]
    found = np.empty(len(heads) + 1)
    for i, logits in subject.each([None, *patches], [corrupt], **after(same)):
        found[i] = score_answer(logits[0], clean)["logprob"]
    capture.recovery = (found[1:] - found[0]).reshape(subject.n_layers, subject.n_heads)


def _check(subject: CausalLM, example: Example, options: Options) -> None:
    corruption_of(example, options)


CRI = HeadScore("cri", _cri, extra=_patched, cached=True, twins=True, check=_check)
