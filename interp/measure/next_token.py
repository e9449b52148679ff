"""What a model says next: the likeliest tokens after many prompts, in batches of like length."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float

from interp.models.batch import plan
from interp.models.subject import CausalLM
from interp.tasks.base import Ids

TOKENS = 1024
"""Padded tokens of a batch."""

Speaker = Callable[[Sequence[Ids]], Float[torch.Tensor, "b v"]]
"""Logits of the next token after each prompt of a batch."""


@dataclass(frozen=True)
class Asked:
    """A prompt without an answer, for a batch."""

    ids: Ids
    answer_ids: Ids = ()
    spans: tuple[()] = ()


def speaker(subject: CausalLM) -> Speaker:
    """A model as it is now, interventions that are applied included, as a function from prompts to logits."""

    def logits(prompts: Sequence[Ids]) -> Float[torch.Tensor, "b v"]:
        batch = subject.batch([Asked(p) for p in prompts], forced=False)
        return subject.run(batch, keep=1).logits[:, -1].float()

    return logits


def log_probs(speak: Speaker, prompts: Sequence[Ids]) -> list[Float[torch.Tensor, " v"]]:
    """Log-probabilities of the next token after each prompt, in nats; for few prompts: each row is a vocabulary."""
    out: dict[int, torch.Tensor] = {}
    for group in plan([len(p) for p in prompts], TOKENS):
        rows = speak([prompts[i] for i in group]).float().log_softmax(-1).cpu()
        out |= dict(zip(group, rows, strict=True))
    return [out[i] for i in range(len(prompts))]


def likeliest(
    speak: Speaker,
    prompts: Sequence[Ids],
    k: int,
    *,
    progress: Callable[[int, int, str], None] | None = None,
) -> list[list[tuple[int, float]]]:
    """The `k` likeliest next tokens of each prompt with their probabilities, best first; each prompt is asked once."""
    distinct = list(dict.fromkeys(prompts))
    found: dict[Ids, list[tuple[int, float]]] = {}
    for group in plan([len(p) for p in distinct], TOKENS):
        best = speak([distinct[i] for i in group]).float().softmax(-1).topk(k, dim=-1)
        for i, ids, values in zip(group, best.indices.tolist(), best.values.tolist(), strict=True):
            found[distinct[i]] = list(zip(ids, values, strict=True))
        if progress:
            progress(len(found), len(distinct), "prompts")
    return [found[p] for p in prompts]
