"""The slow, plain way: eager attention squares, a Python loop over them, and cuts by hooks.

Nothing here uses the toolkit, so that it can be held against it. `MUTANTS` are copy scores with one deliberate
mistake each; on the planted family each of them must give a wrong answer (`judge(...).sound` is False).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from interp.tasks.base import Example

from .placement import Place
from .retrieval import Planted

ScoreFn = Callable[[Example, Tensor], Float[np.ndarray, "layer head"]]
"""From an example and its attention squares `(layer, head, row, key)` to one number a head."""


def _eager(
    planted: Planted, ids: Sequence[int]
) -> tuple[Float[Tensor, "layer head row key"], Float[Tensor, "t v"]]:
    module = planted.module
    before = module.config._attn_implementation
    module.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            out = module(torch.tensor([ids]), output_attentions=True)
    finally:
        module.set_attn_implementation(before)
    return torch.cat(out.attentions), out.logits[0]


def forward(
    planted: Planted, example: Example
) -> tuple[Float[Tensor, "layer head row key"], tuple[int, ...]]:
    """Attention squares over prompt and forced answer, and the greedy token at each answer row."""
    attention, logits = _eager(planted, example.full_ids)
    rows = example.answer_rows
    return attention, tuple(logits[rows.start : rows.stop].argmax(-1).tolist())


def decode(planted: Planted, example: Example, n: int) -> tuple[list[int], Int[Tensor, "step layer head"]]:
    """Greedy decoding of `n` tokens, one whole pass each, with the key that each head attends to most."""
    output: list[int] = []
    tops = []
    for _ in range(n):
        attention, logits = _eager(planted, [*example.ids, *output])
        tops.append(attention[:, :, -1].argmax(-1))
        output.append(int(logits[-1].argmax()))
    return output, torch.stack(tops)


def output_projection(planted: Planted, layer: int) -> nn.Module:
    """The module whose input is the heads' outputs side by side."""
    if planted.kind == "gpt2":
        return planted.module.get_submodule(f"transformer.h.{layer}.attn.c_proj")
    return planted.module.get_submodule(f"model.layers.{layer}.self_attn.o_proj")


@contextmanager
def cut(
    planted: Planted, heads: Collection[Place], where: Bool[Tensor, "b t"] | None = None
) -> Iterator[None]:
    """Zero the output of the heads inside the block: everywhere, or at the places of a batch that are marked."""
    handles = []
    for layer in {layer for layer, _ in heads}:
        mine = [head for at, head in heads if at == layer]

        def zero(_: nn.Module, args: tuple[Tensor, ...], mine: list[int] = mine) -> tuple[Tensor, ...]:
            z = args[0].clone().unflatten(-1, (planted.n_heads, planted.d_head))
            marked = torch.ones(z.shape[:2], dtype=torch.bool) if where is None else where
            for head in mine:
                z[:, :, head][marked] = 0.0
            return (z.flatten(-2), *args[1:])

        handles.append(output_projection(planted, layer).register_forward_pre_hook(zero))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def accuracy(
    planted: Planted, examples: Sequence[Example], heads: Collection[Place] = (), *, answer_only: bool = False
) -> float:
    """Share of examples whose whole answer is what greedy decoding emits, with `heads` cut.

    One forced pass is exact: greedy decoding emits the answer just when each of its tokens is the greedy one.
    """
    width = max(len(e.full_ids) for e in examples)
    # Filled on the right, where causal attention does not look.
    ids = torch.tensor([e.full_ids + (0,) * (width - len(e.full_ids)) for e in examples])
    rows = torch.zeros(ids.shape, dtype=torch.bool)
    for i, example in enumerate(examples):
        rows[i, example.answer_rows.start : example.answer_rows.stop] = True
    with cut(planted, heads, rows if answer_only else None), torch.no_grad():
        best = planted.module(ids).logits.argmax(-1)
    return float(np.mean([tuple(best[i][rows[i]].tolist()) == e.answer_ids for i, e in enumerate(examples)]))


def copy_score(example: Example, attention: Tensor) -> Float[np.ndarray, "layer head"]:
    """Share of the needle's tokens that each head copies, as a set (Wu et al. 2024, arXiv 2404.15574).

    A head copies a token when, in the row that predicts it, it attends most to a place in the needle that holds it.
    """
    return _score(example, attention)


def row_off_by_one(example: Example, attention: Tensor) -> Float[np.ndarray, "layer head"]:
    """Mutant: pairs each answer token with its own row, not with the row that predicts it."""
    return _score(example, attention, row_shift=1)


def no_token_match(example: Example, attention: Tensor) -> Float[np.ndarray, "layer head"]:
    """Mutant: looking at any token of the needle counts as copying the right one."""
    return _score(example, attention, match=False)


def needle_off_by_one(example: Example, attention: Tensor) -> Float[np.ndarray, "layer head"]:
    """Mutant: the needle is taken to start, and to end, one token later."""
    return _score(example, attention, needle_shift=1)


MUTANTS: dict[str, ScoreFn] = {
    "row_off_by_one": row_off_by_one,
    "no_token_match": no_token_match,
    "needle_off_by_one": needle_off_by_one,
}


def _score(
    example: Example, attention: Tensor, *, row_shift: int = 0, needle_shift: int = 0, match: bool = True
) -> Float[np.ndarray, "layer head"]:
    rows = [row + row_shift for row in example.answer_rows]
    tops = attention[:, :, rows].argmax(-1).permute(2, 0, 1)
    return score_steps(example, example.answer_ids, tops, needle_shift=needle_shift, match=match)


def score_steps(
    example: Example,
    output: Sequence[int],
    tops: Int[Tensor, "step layer head"],
    *,
    needle_shift: int = 0,
    match: bool = True,
) -> Float[np.ndarray, "layer head"]:
    """Copy score of an output, from the key that each head attends to most at each step."""
    (span,) = example.spans_of("value", 0)
    needle = range(span.start + needle_shift, span.end + needle_shift)
    wanted = set(example.ids[span.start : span.end])
    _, n_layers, n_heads = tops.shape
    out = np.zeros((n_layers, n_heads))
    for layer in range(n_layers):
        for head in range(n_heads):
            copied = set()
            for at, token in zip(tops[:, layer, head].tolist(), output, strict=True):
                if at in needle and (not match or example.ids[at] == token):
                    copied.add(token)
            out[layer, head] = len(copied & wanted) / len(wanted)
    return out


def mean_score(
    examples: Sequence[Example], attentions: Sequence[Tensor], score: ScoreFn = copy_score
) -> dict[Place, float]:
    """Mean over the examples (with their attention squares), for every head."""
    table = np.mean([score(e, a) for e, a in zip(examples, attentions, strict=True)], axis=0)
    return {(int(layer), int(head)): float(value) for (layer, head), value in np.ndenumerate(table)}


@dataclass(frozen=True)
class Verdict:
    """What a locator's scores say against the truth.

    Attributes:
        missed: planted heads below the threshold.
        caught: heads above it that are not planted.
        lowest: smallest score of a planted head.
        highest: largest score of any other.
    """

    precision: float
    recall: float
    missed: frozenset[Place]
    caught: frozenset[Place]
    lowest: float
    highest: float

    @property
    def sound(self) -> bool:
        """Right in every way that a perfect circuit allows: all found, nothing else, full score."""
        return not self.missed and not self.caught and self.lowest > 0.99


def judge(scores: Mapping[Place, float], planted: Planted, threshold: float = 0.5) -> Verdict:
    """Hold the scores of all heads against the truth; precision is NaN where no head passes the threshold.

    Silent heads count as planted: they attend as retrieval heads do, and only a cut tells them apart.
    """
    truth = planted.retrieval | planted.silent
    found = frozenset(place for place, score in scores.items() if score >= threshold)
    hit = len(found & truth)
    return Verdict(
        precision=hit / len(found) if found else float("nan"),
        recall=hit / len(truth),
        missed=truth - found,
        caught=found - truth,
        lowest=min(scores[place] for place in truth),
        highest=max((score for place, score in scores.items() if place not in truth), default=0.0),
    )
