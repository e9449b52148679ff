"""Facts: a map of all kinds of states, attention knockout by windows, and the search of a value to write.

Each is held against the reference's algorithm in plain torch hooks: one forward pass of whole prompts for each cell,
and one with its gradient for each step of the search. Logits are made of the columns that are read only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import torch
from torch import nn

from interp.intervene.facts.requests import Prefixes, Rewrite
from interp.intervene.facts.values import Search, search_delta
from interp.intervene.trace import trace_map
from interp.locate.facts.flow import SOURCES, knockout_map, tokens_of
from interp.models.batch import Batch
from interp.models.sites import Site
from interp.models.subject import CausalLM
from interp.tasks.base import Example
from tests.benchmarks.harness import Builder, Job, Reach, Results, bare_forward
from tests.benchmarks.jobs_rows import MAPPED, mapped
from tests.benchmarks.jobs_sweep import spread
from tests.benchmarks.jobs_trace import (
    SAMPLES,
    SEED,
    WINDOW,
    TokenLayers,
    noised,
    prompt,
    saving,
    some,
    window_of,
)
from tests.benchmarks.peers import Kind, TorchHooks

KINDS: tuple[Kind, ...] = get_args(Kind)
LAYERS = 9
"""Layers of a knockout's window."""
SHARE = 0.8
"""Of what is saved in tokens, so much is to be seen in time."""


def whole_map(subject: CausalLM, text: str = "subject at token 3", sample: int = 2) -> Job:
    """Causal-trace map of hidden states and of windows of 10 MLPs and 10 attentions, by one call."""
    example, n = prompt(subject, text), subject.n_layers
    centres, start, t = some(subject), example.spans[0].start, len(example.ids)
    question, counter, tool = noised(subject, example), TokenLayers(subject), TorchHooks(subject)
    every = [(layer, token) for token in range(start, t) for layer in centres]
    cells = [(kind, *every[i]) for kind in KINDS for i in spread(len(every), sample)]
    # All kinds have as many cells, so what they cost together is the harmonic mean of their savings.
    predicted = len(KINDS) / sum(1 / saving(n, example, kind, centres) for kind in KINDS)

    def ours(layers: Sequence[int] = centres) -> dict[tuple[str, int, int], float]:
        with counter.counted():
            found = trace_map(
                subject, example, KINDS, window=WINDOW, samples=SAMPLES, seed=SEED, layers=layers
            )
        names = zip(found["kind"], found["layer"], found["position"], strict=True)
        return dict(zip(names, found["value"], strict=True))

    def loop(cells: Sequence[tuple[Kind, int, int]] = cells) -> dict[tuple[str, int, int], float]:
        return {
            (kind, layer, token): float(
                tool.cell(
                    question, kind, [layer] if kind == "resid_post" else window_of(layer, n), token
                ).mean()
            )
            for kind, layer, token in cells
        }

    def numbers(found: Results) -> Mapping[str, float]:
        naive = len(KINDS) * len(centres) * t * (SAMPLES + 1) * t * n
        return {"saving in token-layers": predicted, "saving counted": naive / counter.count}

    return Job(
        f"causal-trace maps of hidden states and of windows of {WINDOW} MLPs and {WINDOW} attentions in one call, "
        f"{t} tokens x {n} layers x {SAMPLES} noise rows, {text}",
        (
            _saved(predicted, "token-layers"),
            Reach("at most 0.5 GB of extra memory", "memory ours", "<=", 512.0),
        ),
        ours=ours,
        peers={"torch hooks": loop},
        units={"ours": len(KINDS) * len(centres) * t, "torch hooks": len(cells)},
        equal=lambda found: _worst(found["ours"], found["torch hooks"]),
        tolerance=1e-5,
        numbers=numbers,
        memory={"ours": mapped(ours), "torch hooks": mapped(loop)},
        warm=lambda: (ours(centres[-1:]), loop(cells[:1])),
        notes=(
            f"torch hooks run {len(cells)} of the {len(KINDS) * n * t} cells; their cost does not depend on the cell",
            f"ours runs the cells of {len(centres)} layers of {n}, evenly spread, and counts as so many cells",
            MAPPED,
        ),
    )


def knockout(subject: CausalLM, text: str = "subject at token 3", sample: int = 6, prompts: int = 8) -> Job:
    """Attention knockout from the last token by windows of 9 layers: subject, others, itself."""
    example, n = prompt(subject, text), subject.n_layers
    t, counter = len(example.ids), TokenLayers(subject)
    every = [(source, layer) for source in SOURCES for layer in range(n)]
    cells = [every[i] for i in spread(len(every), sample)]
    ids = torch.tensor([example.ids] * prompts, device=subject.device)
    predicted = (
        len(every) * t * n / (len(SOURCES) * sum(n - max(0, c - LAYERS // 2) for c in range(n)) + t * n)
    )

    def ours() -> dict[tuple[str, int], float]:
        with counter.counted():
            found = knockout_map(subject, [example] * prompts, window=LAYERS)
        return dict(zip(zip(found["source"], found["layer"], strict=True), found["value"], strict=True))

    def cell(source: str, layer: int) -> float:
        mask = torch.full((t, t), torch.finfo(torch.float32).min).triu(1)
        mask[t - 1, tokens_of(example, source)] = torch.finfo(torch.float32).min
        given = mask.to(subject.device, next(subject.hf.parameters()).dtype)[None, None]
        window = range(max(0, layer - LAYERS // 2), min(n, layer + (LAYERS + 1) // 2))

        def blind(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            return args, {**kwargs, "attention_mask": given}

        with ExitStack() as stack, torch.no_grad():
            for i in window:
                hook = subject.blocks[i].get_submodule("self_attn").register_forward_pre_hook
                stack.callback(hook(blind, with_kwargs=True).remove)
            logits = subject.hf(input_ids=ids, use_cache=False, logits_to_keep=1).logits
        return float(logits[0, -1].float().softmax(-1)[example.answer_ids[0]])

    def loop(cells: Sequence[tuple[str, int]] = cells) -> dict[tuple[str, int], float]:
        return {(source, layer): cell(source, layer) for source, layer in cells}

    def numbers(found: Results) -> Mapping[str, float]:
        return {
            "saving in token-layers": predicted,
            "saving counted": prompts * len(every) * t * n / counter.count,
        }

    return Job(
        f"attention knockout from the last token, {len(SOURCES)} sources x {n} windows of {LAYERS} layers, "
        f"{prompts} prompts of {t} tokens",
        (
            Reach("at least 8 x fewer token-layers than full passes", "saving counted", ">=", 8.0),
            _saved(predicted, "token-layers"),
        ),
        ours=ours,
        bare=lambda: bare_forward(subject, Batch.of_ids(ids.tolist(), device=subject.device)),
        peers={"torch hooks": loop},
        units={"ours": len(every), "torch hooks": len(cells)},
        equal=lambda found: _worst(found["ours"], found["torch hooks"]),
        tolerance=1e-5,
        numbers=numbers,
        memory={"ours": mapped(ours), "torch hooks": mapped(loop)},
        notes=(
            f"torch hooks run {len(cells)} of the {len(every)} cells; their cost does not depend on the cell",
            "token-layers of ours include the one intact run",
            "both run all prompts at once; one prompt is run as often as there are prompts, which neither makes use of",
            MAPPED,
        ),
    )


def value(
    subject: CausalLM,
    text: str = "subject at token 3",
    steps: int = 20,
    sample: int = 3,
    contexts: int = 10,
    length: int = 10,
) -> Job:
    """The value that ROME writes, searched in ten contexts and none."""
    example, layer = prompt(subject, text), subject.n_layers // 3
    span, counter = example.spans[0], TokenLayers(subject)
    new = subject.tokens.encode(" Rome").ids if subject.has_tokens else [8]
    request = Rewrite(example.ids, (span.start, span.end), (new[-1],), example.answer_ids)
    prefixes = Prefixes.random(subject, contexts, length)
    search = Search(steps=steps, stop=0.0)
    rows = [Example("edit", ids, request.target) for ids, _ in prefixes.before(request)]
    batch = subject.batch([*rows, Example("edit", request.essence, request.target[:1])])
    at = torch.tensor([at for _, at in prefixes.before(request)] + [request.essence_at])
    columns = batch.pad + at.to(batch.pad.device)
    past = int(columns.min())
    predicted = steps * batch.width / (past + steps * (batch.width - past))

    def ours(search: Search = search) -> list[float]:
        with counter.counted():
            found = search_delta(subject, request, Site("down", layer), prefixes, search)
        return [h["loss"] for h in found.history]

    def loop(steps: int = sample) -> list[float]:
        return reference(subject, batch, columns, layer, request, replace(search, steps=steps))

    def numbers(found: Results) -> Mapping[str, float]:
        naive = batch.width * len(batch) * subject.n_layers * steps
        return {"saving in columns": predicted, "saving counted": naive / counter.count}

    return Job(
        f"value of a ROME edit at layer {layer} of {subject.n_layers}, {steps} steps, {len(batch)} rows of up to "
        f"{batch.width} tokens",
        (_saved(predicted, "columns"),),
        ours=ours,
        peers={"torch hooks": loop},
        units={"ours": steps, "torch hooks": sample},
        equal=lambda found: max(
            abs(a - b) for a, b in zip(found["ours"], found["torch hooks"], strict=False)
        ),
        tolerance=1e-3,
        numbers=numbers,
        memory={"ours": mapped(ours), "torch hooks": mapped(loop)},
        warm=lambda: (ours(replace(search, steps=1)), loop(1)),
        notes=(
            f"torch hooks run {sample} of the {steps} steps; ours runs columns before the subject's last token once",
            "equality: losses in nats of the steps that both run",
            MAPPED,
        ),
    )


def reference(
    subject: CausalLM, batch: Batch, columns: torch.Tensor, layer: int, request: Rewrite, search: Search
) -> list[float]:
    """The same search over whole prompts, with a hook on the layer's MLP: the loss of each step."""
    target = torch.tensor(request.target, device=subject.device)
    n, rows = len(batch) - 1, torch.arange(len(batch), device=subject.device)
    delta = torch.zeros(subject.d_model, device=subject.device, requires_grad=True)
    adam = torch.optim.Adam([delta])
    seen: list[torch.Tensor] = []
    before: list[torch.Tensor] = []
    losses: list[float] = []

    def add(module: nn.Module, args: Any, out: torch.Tensor) -> torch.Tensor:
        seen.append(out[rows, columns].detach())
        return out.index_put((rows, columns), delta.expand(len(rows), -1), accumulate=True)

    with ExitStack() as stack:
        stack.callback(subject.blocks[layer].get_submodule("mlp").register_forward_hook(add).remove)
        for weight in subject.hf.parameters():
            if weight.requires_grad:
                stack.callback(weight.requires_grad_, True)
                weight.requires_grad_(False)
        for step in range(search.steps):
            logits = subject.hf(
                input_ids=batch.ids, attention_mask=batch.mask, position_ids=batch.positions, use_cache=False,
                logits_to_keep=len(target),
            ).logits.float()  # fmt: skip
            spoken = logits[:n, -len(target) :]
            nll = nn.functional.cross_entropy(spoken.flatten(0, 1), target.repeat(n))
            essence = logits[n, -1].log_softmax(-1)
            before = before or [essence.detach()]
            length = float(seen[0][:n].float().mean(0).norm())
            kl = (before[0].exp() * (before[0] - essence)).sum()
            norm = delta.norm() if step else delta.sum() * 0.0
            loss = nll + search.kl * kl + search.decay * norm / length**2
            losses.append(float(loss.detach()))
            if step + 1 == search.steps:
                break
            adam.param_groups[0]["lr"] = search.step * length / math.sqrt(len(delta))
            (delta.grad,) = torch.autograd.grad(loss, [delta])
            adam.step()
            with torch.no_grad():
                delta *= min(1.0, search.clamp * length / float(delta.norm()))
    return losses


def _saved(predicted: float, what: str) -> Reach:
    text = f"{SHARE} of the saving in {what}, {predicted:.1f} x, over torch hooks"
    return Reach(text, "torch hooks/ours", ">=", SHARE, over=predicted)


def _worst(found: Mapping[Any, float], wanted: Mapping[Any, float]) -> float:
    return float(np.max([abs(found[cell] - value) for cell, value in wanted.items()]))


JOBS: dict[str, Builder] = {"facts-map": whole_map, "knockout": knockout, "rome-value": value}
