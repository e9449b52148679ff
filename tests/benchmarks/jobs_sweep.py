"""Sweeps of ablations: every head of the model, and the dose curve of many head sets."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from torch import nn

from interp.intervene.ablate import ablate
from interp.measure.metrics import score_answer
from interp.measure.outcomes import Outcomes, evaluate
from interp.models.batch import Batch
from interp.models.sites import Head
from interp.models.subject import CausalLM
from interp.tasks.base import Example, Span
from tests.benchmarks.harness import Builder, Job, Reach, Results, bare_forward
from tests.benchmarks.peers import peers

Cut = tuple[Head, ...]


def prose(subject: CausalLM, n: int, prompt: int, answer: int) -> list[Example]:
    """Passages of natural text, all of one length; of random ids where the model has no tokenizer."""
    if subject.has_tokens:
        import interp

        return interp.task("prose", prompt=prompt, answer=answer, n=n, seed=0).examples(subject)
    rng = np.random.default_rng(0)
    ids = rng.integers(subject.config.vocab_size, size=(n, prompt + answer)).tolist()
    return [
        Example("random ids", tuple(x[:prompt]), tuple(x[prompt:]), spans=(Span(0, 1, "key"),)) for x in ids
    ]


def spread(n: int, sample: int) -> list[int]:
    """Indices of `sample` of `n` things, evenly spread, first and last among them."""
    return sorted({round(float(i)) for i in np.linspace(0, n - 1, min(n, sample))})


def head_sweep(
    subject: CausalLM, n: int = 16, length: int = 60, sample: int = 5, of_layer: int | None = 2
) -> Job:
    """Zero-ablate each head at all positions; logits of the last position.

    Args:
        sample: heads that a peer runs.
        of_layer: heads of each layer that ours runs; None: all of them.
    """
    batch = Batch.of_ids([e.ids for e in prose(subject, n, length, 1)], device=subject.device)
    heads = [h for h in subject.heads() if of_layer is None or h.head < of_layer]
    layers = spread(subject.n_layers, sample)
    sampled = [Head(layer, i % (of_layer or subject.n_heads)) for i, layer in enumerate(layers)]
    tools = peers(subject)

    def ours() -> dict[Head, torch.Tensor]:
        kept = {}
        for i, logits in subject.each([ablate([head]) for head in heads], batch, keep=1):
            if heads[i] in sampled:
                kept[heads[i]] = logits[:, -1].clone()
        return kept

    def loop(tool: Any) -> dict[Head, torch.Tensor]:
        return {head: tool.without_head(batch, head) for head in sampled}

    def warm() -> None:
        bare_forward(subject, batch)
        for tool in tools.values():
            tool.without_head(batch, sampled[0])
        for _ in subject.each([ablate([head]) for head in sampled], batch, keep=1):
            pass

    def equal(found: Results) -> float:
        return max(float((found["ours"][h] - found["torch hooks"][h]).abs().max()) for h in sampled)

    return Job(
        f"zero-ablate each of the {len(subject.heads())} heads, {n} prompts x {length} tokens, last logits",
        (
            Reach("at most 0.50 of a bare forward a head", "ours/bare", "<=", 0.50),
            *(Reach(f"2 x faster than {name}", f"{name}/ours", ">=", 2.0) for name in tools),
        ),
        ours=ours,
        bare=lambda: bare_forward(subject, batch),
        peers={name: lambda tool=tool: loop(tool) for name, tool in tools.items()},  # type: ignore[misc]
        units={"ours": len(heads), **dict.fromkeys(tools, len(sampled))},
        equal=equal,
        tolerance=1e-4,
        warm=warm,
        notes=(
            f"peers run {len(sampled)} heads, in layers {' '.join(map(str, layers))}; their cost does not depend on it",
            f"ours runs {len(heads)} heads, as many of each layer; they share one intact run",
        ),
    )


def head_sets(subject: CausalLM, sizes: Sequence[int], draws: int) -> dict[str, Cut]:
    """Sets of heads of several sizes, drawn at random."""
    rng, heads = np.random.default_rng(0), subject.heads()
    return {
        f"{k} heads, set {i}": tuple(heads[j] for j in sorted(rng.choice(len(heads), size=k, replace=False)))
        for k in sizes
        for i in range(draws)
    }


def naive_cut(subject: CausalLM, example: Example, cut: Cut) -> torch.Tensor:
    """Logits that predict the answer with heads zero from the last prompt token on: one forward, torch hooks, m v."""
    batch, start = subject.batch([example]), len(example.ids) - 1
    by_layer: dict[int, list[int]] = {}
    for head in cut:
        by_layer.setdefault(head.layer, []).append(head.head)

    def zero(heads: list[int]) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            z = args[0].clone()
            z.view(*z.shape[:-1], subject.n_heads, subject.d_head)[:, start:, heads] = 0
            return (z,)

        return hook

    with ExitStack() as stack:
        for layer, heads in by_layer.items():
            projection = subject.module(layer, subject.family.out_proj)
            stack.callback(projection.register_forward_pre_hook(zero(heads)).remove)
        return bare_forward(subject, batch, keep=len(example.answer_ids))[0]


def dose_curve(
    subject: CausalLM,
    length: int = 1024,
    sizes: Sequence[int] = (1, 2, 5, 10, 20, 40),
    draws: int = 21,
    sample: int = 3,
) -> Job:
    """Dose curve of 6 sizes x 21 head sets, cut where the answer is predicted."""
    (example,) = prose(subject, 1, length, 4)
    sets = head_sets(subject, sizes, draws)
    names = [list(sets)[i] for i in spread(len(sets), sample)]
    conditions = {name: ablate(cut, scope="answer") for name, cut in sets.items()}
    batch = subject.batch([example])

    def ours() -> Outcomes:
        return evaluate(subject, [example], conditions)

    def naive() -> dict[str, dict[str, float]]:
        return {name: score_answer(naive_cut(subject, example, sets[name]), example) for name in names}

    def equal(found: Results) -> float:
        values = found["ours"].values
        return max(
            abs(float(values[name][metric][0]) - found["torch hooks"][name][metric])
            for name in names
            for metric in ("nll", "logprob", "accuracy")
        )

    def numbers(found: Results) -> dict[str, float]:
        return {"prefill": found["ours"].prefill_tokens / (len(sets) * len(example.ids))}

    return Job(
        f"dose curve of {len(sizes)} sizes x {draws} head sets, scope answer, {length} tokens",
        (Reach("at most 0.05 of the prefill tokens of a prefill a condition", "prefill", "<=", 0.05),),
        ours=ours,
        bare=lambda: bare_forward(subject, batch),
        peers={"torch hooks": naive},
        units={"ours": len(sets), "torch hooks": len(names)},
        equal=equal,
        tolerance=1e-4,
        numbers=numbers,
        notes=(
            f"the naive loop runs {len(names)} of the {len(sets)} conditions",
            f"the answer has {len(example.answer_ids)} tokens; equal in nll, log-probability and accuracy",
        ),
    )


JOBS: dict[str, Builder] = {"head-sweep": head_sweep, "dose-curve": dose_curve}
