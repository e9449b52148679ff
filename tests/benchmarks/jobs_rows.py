"""Attention rows reduced in the pass, and scored as copies, against eager attention and the loop of decoded steps."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from interp.locate.retrieval_heads import RetrievalHeads
from interp.models.batch import Batch
from interp.models.engines.base import Rows
from interp.models.subject import CausalLM
from interp.tasks.base import Example, FixedTask, Span
from interp.trace.reducers import TopK, TopKeys
from tests.benchmarks.harness import Builder, Job, Reach, Results, bare_forward
from tests.benchmarks.jobs_sweep import prose

_MMAP_THRESHOLD = -3  # M_MMAP_THRESHOLD of malloc.h
MAPPED = (
    "memory: peak resident MB above the loaded model with every large tensor mapped on its own; else it is the "
    "allocator's fragmentation that is measured, which differs from run to run by more than the pass needs"
)


def mapped(job: Callable[[], Any]) -> Callable[[], Any]:
    """The job with large tensors mapped one by one and given back when freed (glibc), in a process of its own."""

    def run() -> Any:
        gc.collect()
        if not ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, 2**16):
            raise SystemExit("this C library does not take a threshold for mapping")
        return job()

    return run


def eager(subject: CausalLM, job: Callable[[], Any]) -> Any:
    """The job with eager attention, and the kernel put back after it."""
    before = subject.config._attn_implementation
    subject.hf.set_attn_implementation("eager")
    try:
        return job()
    finally:
        subject.hf.set_attn_implementation(before)


def rows(subject: CausalLM, length: int = 4096, queries: int = 32, whole: bool = False) -> Job:
    """The most attended key of each head for the last queries of a prompt; `whole` has eager attention as a peer."""
    (example,) = prose(subject, 1, length, 1)
    batch = Batch.of_ids([example.ids], device=subject.device)
    columns = torch.arange(length - queries, length, device=subject.device)[None]

    def ours(reduce: Any) -> dict[int, Any]:
        return subject.run(batch, rows=Rows(columns, reduce), keep=1).rows

    def attentions() -> tuple[torch.Tensor, ...]:
        def run() -> Any:
            with torch.no_grad():
                return subject.hf(
                    input_ids=batch.ids,
                    attention_mask=batch.mask,
                    position_ids=batch.positions,
                    use_cache=False,
                    logits_to_keep=1,
                    output_attentions=True,
                ).attentions

        return eager(subject, run)

    def theirs() -> list[torch.Tensor]:
        return [layer[:, :, -queries:].clone() for layer in attentions()]

    def equal(found: Results) -> float:
        """Largest difference of the attention on the key we name to the highest of the row, and of its value."""
        worst, tops = 0.0, ours(TopK(1))
        for layer, probs in enumerate(found["eager output_attentions"]):
            highest = probs.amax(-1)
            named = probs.gather(-1, found["ours"][layer][..., None])[..., 0]
            worst = max(worst, float((highest - named).max()))
            worst = max(worst, float((tops[layer].values[..., 0] - highest).abs().max()))
        return worst

    return Job(
        f"most attended keys of the last {queries} queries, all heads, {length} tokens",
        (
            Reach("at most 1.05 of a bare prefill", "ours/bare", "<=", 1.05),
            Reach("at most 1.2 x its extra memory", "memory ours/bare", "<=", 1.2),
        ),
        ours=partial(ours, TopKeys()),
        bare=lambda: bare_forward(subject, batch),
        peers={"eager output_attentions": theirs} if whole else {},
        equal=equal if whole else None,
        tolerance=1e-5,
        memory={
            "ours": mapped(partial(ours, TopKeys())),
            "bare": mapped(lambda: bare_forward(subject, batch)),
            **({"eager output_attentions": mapped(attentions)} if whole else {}),
        },
        notes=(
            MAPPED,
            *(
                ("equal in the attention of the key that is named and the row's highest",)
                if whole
                else (
                    "eager attention would need 18 GB here; it is measured at half the length, in its own row",
                )
            ),
        ),
    )


# -- copy score ------------------------------------------------------------------------------------------------------

STEM = "\nThe password that opens the northern gate is"
NEEDLE = (
    " amber falcon seven, quiet river nine, silver lantern four, broken ladder six, purple harvest two and green "
    "window eight.\n"
)


def copied(subject: CausalLM, length: int, answer: int) -> Example:
    """Prose with a needle in its middle, whose beginning ends the prompt; the answer is how the model goes on.

    Prompt and fed answer have `length` tokens together. The needle's value is as long as the answer.
    """
    if subject.has_tokens:
        stem, needle = (list(subject.tokens.encode(text).ids) for text in (STEM, NEEDLE))
    else:
        drawn = np.random.default_rng(1).integers(subject.config.vocab_size, size=answer + 8).tolist()
        stem, needle = drawn[:8], drawn[8:]
    n = length - answer + 1 - 2 * len(stem) - len(needle)
    (text,) = prose(subject, 1, n, 1)
    half = n // 2
    prompt = (*text.ids[:half], *stem, *needle, *text.ids[half:], *stem)
    said = subject.generate(Batch.of_ids([prompt], device=subject.device), answer)[0]
    start = half + len(stem)
    value = Span(start, start + len(said), "value", 0)
    return Example("copy", prompt, tuple(said), spans=(value,), chance=0.0)


def reference_score(subject: CausalLM, example: Example) -> Float[np.ndarray, "l h"]:
    """Copying steps over the needle's length, by the loop of the authors' code (Wu et al. 2024).

    An SDPA prefill of all but the last prompt token; then one token a step with `output_attentions`, and for each head
    a hit where its most attended key lies in the needle and holds the token that was emitted.
    """
    from transformers import DynamicCache

    (needle,) = example.spans_of("value", 0)
    score = np.zeros((subject.n_layers, subject.n_heads))
    cache = DynamicCache()

    def decode() -> None:
        token = example.ids[-1]
        for _ in example.answer_ids:
            ids = torch.tensor([[token]], device=subject.device)
            out = subject.hf(input_ids=ids, past_key_values=cache, use_cache=True, output_attentions=True)
            token = int(out.logits[0, -1].argmax())
            for layer, attention in enumerate(out.attentions):
                for head in range(subject.n_heads):
                    key = int(attention[0, head, -1].topk(1).indices)
                    if needle.start <= key < needle.end and example.ids[key] == token:
                        score[layer, head] += 1 / len(needle)

    with torch.no_grad():
        prompt = torch.tensor([example.ids[:-1]], device=subject.device)
        subject.hf(input_ids=prompt, past_key_values=cache, use_cache=True, logits_to_keep=1)
        eager(subject, decode)
    return score


def copy_score(subject: CausalLM, length: int = 2048, answer: int = 20) -> Job:
    """Copy score of every head on one instance."""
    example = copied(subject, length, answer)
    batch = subject.batch([example])

    def ours() -> RetrievalHeads:
        return RetrievalHeads(count=True, accept=-1.0).fit(subject, FixedTask([example]))

    def equal(found: Results) -> float:
        return float(np.abs(found["ours"].per_instance_["copy"][0] - found["decode loop"]).max())

    def numbers(found: Results) -> dict[str, float]:
        score = found["decode loop"]
        passes = int(found["ours"].instances_["passes"][0])
        return {"passes": passes, "highest score": score.max(), "heads above 0.1": (score >= 0.1).sum()}

    return Job(
        f"copy score of one instance, {length} tokens, {len(example.answer_ids)} answer tokens",
        (
            Reach("at most 1.05 of a bare prefill", "ours/bare", "<=", 1.05),
            Reach("in one pass", "passes", "<=", 1.0),
        ),
        ours=ours,
        bare=lambda: bare_forward(subject, batch),
        peers={"decode loop": lambda: reference_score(subject, example)},
        equal=equal,
        tolerance=1e-9,
        numbers=numbers,
        memory={
            "ours": mapped(ours),
            "bare": mapped(lambda: bare_forward(subject, batch)),
            "decode loop": mapped(lambda: reference_score(subject, example)),
        },
        notes=(MAPPED, "ours verifies the answer as a draft, greedy mode; scores count copying steps"),
    )


JOBS: dict[str, Builder] = {
    "rows": rows,
    "rows-eager": partial(rows, length=2048, whole=True),
    "copy-score": copy_score,
}
