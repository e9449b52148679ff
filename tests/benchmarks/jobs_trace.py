"""Causal-trace maps: hidden states and windows of MLP outputs, restored cell by cell in runs with a noised subject.

The peers run the reference loop: for each cell one forward pass of a clean and ten noised rows. They run a sample of
the cells, evenly spread; their cost does not depend on the cell. All get the same noise.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch

from interp.intervene.trace import Noise, noise_level, noisy, trace_map
from interp.models.batch import Batch
from interp.models.subject import CausalLM
from interp.tasks.base import Example, Span
from tests.benchmarks.harness import Builder, Job, Reach, Results, bare_forward
from tests.benchmarks.jobs_sweep import spread
from tests.benchmarks.peers import Kind, Noised, Peer, peers

SAMPLES, WINDOW, SEED = 10, 10, 0

TEXTS: dict[str, tuple[str, str, str]] = {
    "subject at token 3": ("We know that", " the Eiffel Tower", " is in the city of"),
    "subject first": ("", "Eiffel Tower", " stands tall in the heart of the city of"),
    "80 tokens": (
        "Last spring my sister and I took the slow train across the country with a thermos of tea, two books and a "
        "list of places that our grandmother had loved when she was young. First we saw",
        " the Eiffel Tower",
        ", which she had climbed on her wedding day, and then we wrote a postcard to our parents. We told them that "
        "the weather was kind and we were in the city of",
    ),
}
ANSWER = " Paris"
SHAPES = {"subject at token 3": (12, 3), "subject first": (12, 0), "80 tokens": (80, 40)}
"""Tokens of each prompt, and the first of its subject."""


def prompt(subject: CausalLM, text: str) -> Example:
    """A prompt with the span of its subject and the answer; random ids of its shape where there is no tokenizer."""
    parts = TEXTS[text]
    if subject.has_tokens:
        whole = list(subject.tokens.encode("".join(parts)).ids)
        before, upto = (len(subject.tokens.encode("".join(parts[:n])).ids) for n in (1, 2))
        answer = list(subject.tokens.encode(ANSWER).ids)
    else:
        length, before = SHAPES[text]
        whole = np.random.default_rng(0).integers(subject.config.vocab_size, size=length).tolist()
        upto, answer = before + 3, [7]
    return Example("trace", tuple(whole), tuple(answer), spans=(Span(before, upto, "subject"),))


def window_of(layer: int, n_layers: int) -> list[int]:
    """Layers that a cell of a window kind restores: so many around its own, cut off at the ends.

    Source: `trace_important_window` of the reference code (Meng et al. 2022).
    """
    return list(range(max(0, layer - WINDOW // 2), min(n_layers, layer - (-WINDOW // 2))))


def saving(n_layers: int, example: Example, kind: Kind, layers: Sequence[int]) -> float:
    """How many times fewer token-layers the exact map costs than the loop: a token through a block is one.

    The loop runs every cell's clean and noised rows in full. The exact map runs, for each cell at or after the subject,
    the noised rows from the cell's token on and from the first layer that the cell changes.
    """
    t, start = len(example.ids), example.spans[0].start
    naive = len(layers) * t * (SAMPLES + 1) * t * n_layers
    suffixes = sum(t - i for i in range(start, t))
    if kind == "resid_post":
        depth = sum(n_layers - 1 - i for i in layers)
    else:
        depth = sum(n_layers - max(0, i - WINDOW // 2) for i in layers)
    return naive / (SAMPLES * suffixes * depth)


class TokenLayers:
    """Counts tokens that go through MLPs, one for each block: the work that was done, whoever did it."""

    def __init__(self, subject: CausalLM):
        self.subject = subject
        self.count = 0

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Count inside the block, from zero."""
        self.count = 0
        with ExitStack() as stack:
            for i in range(self.subject.n_layers):
                stack.callback(self.subject.module(i, "mlp").register_forward_hook(self._add).remove)
            yield

    def _add(self, module: Any, args: Any, out: torch.Tensor) -> None:
        self.count += out.numel() // out.shape[-1]


def noised(subject: CausalLM, example: Example) -> Noised:
    """The prompt as the loops run it, with the noise that `trace_map` draws."""
    noise = Noise(noise_level(subject, example), "subject", SEED)
    values = [noise.values(draw, subject.d_model) for draw in noisy(example, SAMPLES)]
    ids = torch.tensor([example.ids], device=subject.device)
    return Noised(ids, example.spans[0].start, torch.stack(values).to(subject.device), example.answer_ids[0])


def trace_job(
    subject: CausalLM,
    kind: Kind = "resid_post",
    text: str = "subject at token 3",
    faster: float | None = None,
    layers: Sequence[int] | None = None,
    sample: int = 4,
) -> Job:
    """A map of one prompt against the loops.

    Args:
        faster: how many times faster than each loop it is to be; None: 0.8 of the saving in token-layers.
        layers: layers of the cells that ours computes; default all.
        sample: cells that a peer runs.
    """
    example, n = prompt(subject, text), subject.n_layers
    centres = list(range(n)) if layers is None else list(layers)
    start, t = example.spans[0].start, len(example.ids)
    loops, counter = peers(subject), TokenLayers(subject)
    question = noised(subject, example)
    rows = Batch.of_ids(question.rows.tolist(), device=subject.device)
    every = [(layer, token) for token in range(start, t) for layer in centres]
    cells = [every[i] for i in spread(len(every), sample)]
    width = 1 if kind == "resid_post" else WINDOW
    predicted = saving(n, example, kind, centres)

    def mapped(layers: Sequence[int]) -> Any:
        return trace_map(subject, example, kind, window=width, samples=SAMPLES, seed=SEED, layers=layers)

    def warm() -> None:
        for peer in loops.values():
            peer.cell(question, kind, centres[-1:], start)
        mapped(centres[-1:])
        bare_forward(subject, rows)

    def ours() -> dict[tuple[int, int], float]:
        with counter.counted():
            found = mapped(centres)
        return dict(zip(zip(found["layer"], found["position"], strict=True), found["value"], strict=True))

    def loop(peer: Peer) -> dict[tuple[int, int], float]:
        layers_of = (lambda i: [i]) if width == 1 else (lambda i: window_of(i, n))
        return {
            (layer, token): float(peer.cell(question, kind, layers_of(layer), token).mean())
            for layer, token in cells
        }

    def equal(found: Results) -> float:
        return max(abs(found["ours"][cell] - found[name][cell]) for name in loops for cell in cells)

    def numbers(found: Results) -> Mapping[str, float]:
        naive = len(centres) * t * (SAMPLES + 1) * t * n
        return {"saving in token-layers": predicted, "saving counted": naive / counter.count}

    if faster is None:
        reaches = [
            Reach(
                f"0.8 of the saving in token-layers, {predicted:.1f} x, over torch hooks",
                "torch hooks/ours",
                ">=",
                0.8,
                over=predicted,
            )
        ]
    else:
        reaches = [Reach(f"{faster:g} x faster than {name}", f"{name}/ours", ">=", faster) for name in loops]
    what = "hidden states" if width == 1 else f"windows of {WINDOW} MLPs"
    title = f"causal-trace map of {what}, {t} tokens x {n} layers x {SAMPLES} noise rows"
    notes = [f"peers run {len(cells)} of the {n * t} cells; their cost does not depend on the cell"]
    if len(centres) < n:
        notes.append(
            f"ours runs the cells of {len(centres)} layers of {n}, evenly spread, and counts as so many cells"
        )
    return Job(
        title if text == "80 tokens" else f"{title}, {text}",
        reaches,
        ours=ours,
        bare=lambda: bare_forward(subject, rows),
        peers={name: partial(loop, peer) for name, peer in loops.items()},
        units={"ours": len(centres) * t, **dict.fromkeys(loops, len(cells))},
        equal=equal,
        tolerance=1e-5,
        numbers=numbers,
        warm=warm,
        notes=notes,
    )


def some(subject: CausalLM, n: int = 4) -> list[int]:
    """A few layers, evenly spread, whose mean depth is that of all."""
    return sorted({round((i + 0.5) * subject.n_layers / n - 0.5) for i in range(n)})


def early(subject: CausalLM) -> Job:
    """Causal-trace map of hidden states, 12 tokens, the subject at token 3."""
    return trace_job(subject, faster=8.0)


def first(subject: CausalLM) -> Job:
    """Causal-trace map of hidden states, 12 tokens, the subject first."""
    return trace_job(subject, text="subject first", faster=4.5)


def long(subject: CausalLM) -> Job:
    """Causal-trace map of hidden states, 80 tokens, the subject in their middle."""
    return trace_job(subject, text="80 tokens", faster=12.0, layers=some(subject), sample=2)


def early_windows(subject: CausalLM) -> Job:
    """Causal-trace map of windows of 10 MLPs, 12 tokens, the subject at token 3."""
    return trace_job(subject, "mlp_out")


def first_windows(subject: CausalLM) -> Job:
    """Causal-trace map of windows of 10 MLPs, 12 tokens, the subject first."""
    return trace_job(subject, "mlp_out", "subject first")


def long_windows(subject: CausalLM) -> Job:
    """Causal-trace map of windows of 10 MLPs, 80 tokens, the subject in their middle."""
    return trace_job(subject, "mlp_out", "80 tokens", layers=some(subject), sample=2)


JOBS: dict[str, Builder] = {
    "trace-early": early,
    "trace-first": first,
    "trace-long": long,
    "trace-early-windows": early_windows,
    "trace-first-windows": first_windows,
    "trace-long-windows": long_windows,
}
