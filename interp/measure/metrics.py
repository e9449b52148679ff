"""Metrics of a forced answer, from the logits of the rows that predict it.

One pass gives all: `accuracy` (1 where greedy decoding gives the answer), `logit_diff` (answer minus foil, at the
first token where they differ), `logprob` (of the whole answer, nats), `rank` (among the candidates' tokens at the
first position that tells them apart, 1 is best; candidates that share the answer's token there count as one with it),
`nll` (nats a token) and `choice` (1 where a right candidate beats all others there; a tie is wrong). Exponentiate a
mean `nll` for perplexity.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float

from interp.tasks.base import Example, Ids

METRICS = ("accuracy", "logit_diff", "logprob", "rank", "nll", "choice")

BINARY = frozenset({"accuracy", "choice", "exact", "number"})
"""Metrics of 0 and 1, also of generated answers (`interp.measure.answers`): proportions, tested in pairs."""


def score_at(example: Example) -> int:
    """Index of the answer token that tells the candidates apart: the length of their longest common prefix.

    The answer is read there where the set of answers is closed; tokenizers start numbers with a lone space, say.
    """
    options = example.candidates
    if len(options) < 2:
        return 0
    longest = min(len(o) for o in options) - 1
    return next((i for i in range(longest) if len({o[i] for o in options}) > 1), longest)


def choice_chance(example: Example) -> float:
    """What a uniform guess among the candidates scores as `choice`; NaN where there are not two of them.

    More than `Example.chance` where candidates share the token that is looked at: numbers by their first digit, lists
    that begin alike.
    """
    if len(example.candidates) < 2:
        return math.nan
    place = score_at(example)
    right = _accepted(example, place)
    return sum(len(c) > place and c[place] in right for c in example.candidates) / len(example.candidates)


def guess_of(example: Example, metric: str) -> float:
    """What a uniform guess scores by a metric that is held against chance: the choice, or giving the whole answer."""
    return choice_chance(example) if metric == "choice" else example.chance


def _accepted(example: Example, place: int) -> list[int]:
    """Tokens that are right at the place of the choice: the answer's, and those of alternatives that begin like it."""
    own = example.answer_ids
    same = [a for a in example.alternatives if len(a) > place and a[:place] == own[:place]]
    return [own[place], *(a[place] for a in same)]


def divergence(a: Ids, b: Ids) -> int | None:
    """First index at which two answers differ; None if one begins the other."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), None)


def score_answer(logits: Float[torch.Tensor, "m v"], example: Example) -> dict[str, float]:
    """Metrics of one example.

    Args:
        logits: row i predicts answer token i with the tokens before it forced.
        example: its answer, foil and candidates; `meta["score_at"]` marks a task that is scored up to and with that
            token only.

    Returns:
        every metric; NaN where the example has no foil or no candidates.
    """
    answer = torch.tensor(example.answer_ids, device=logits.device)
    logits = logits[: len(answer)].float()
    greedy = logits.argmax(-1)
    logprobs = logits.log_softmax(-1).gather(-1, answer[:, None])[:, 0]
    last = example.meta.get("score_at")
    upto = len(answer) if last is None else int(last) + 1
    right = bool((greedy[:upto] == answer[:upto]).all()) or _alternative(greedy.tolist(), example)
    logprob = float(logprobs.sum())
    out = {"accuracy": float(right), "logprob": logprob, "nll": -logprob / len(answer)}
    at = divergence(example.answer_ids, example.foil_ids) if example.foil_ids else None
    out["logit_diff"] = math.nan
    if at is not None:
        out["logit_diff"] = float(logits[at, example.answer_ids[at]] - logits[at, example.foil_ids[at]])
    out["rank"] = out["choice"] = math.nan
    if len(example.candidates) > 1:
        place = score_at(example)
        own = example.answer_ids[place]
        others = sorted({c[place] for c in example.candidates if len(c) > place} - {own})
        row = logits[place]
        out["rank"] = 1.0 + float((row[others] > row[own]).sum())
        accepted = _accepted(example, place)
        wrong = [t for t in others if t not in accepted]
        out["choice"] = float(not wrong or bool(row[accepted].max() > row[wrong].max()))
    return out


def _alternative(greedy: Sequence[int], example: Example) -> bool:
    """Whether greedy decoding gives another right answer, where the forced tokens allow to tell."""
    for other in example.alternatives:
        k = len(other)
        if k <= len(greedy) and other[: k - 1] == example.answer_ids[: k - 1] and tuple(greedy[:k]) == other:
            return True
    return False
