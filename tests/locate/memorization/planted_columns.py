"""A pipeline in which known columns of one part fire for target prompts alone, built by hand.

One channel of the first block's hidden states is written by cross-attention alone, and says how much of a prompt are
words of the targets; neurons that read it are the memory. What could be taken for them:

| decoy | fires | |
|---|---|---|
| loud | always, and strongest of all | large on both sides |
| worded | for any prompt, not for the empty one | looks like memory against the empty prompt |

`strength` is how far the memory's channel rises over what is there anyway; at 0 there is nothing to find.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from interp.models.parts import Part, module_of, parts
from interp.models.pipeline import Pipeline
from tests.locate.memorization.small import raw_pipeline

TARGETS = tuple(
    f"{w} poster of the {d}"
    for w, d in zip(("zorax", "velim", "quint", "mapor"), ("one", "two", "three", "four"), strict=True)
)
HELD_OUT = ("tiber poster of the five", "lurid poster of the six")
CONTROLS = tuple(f"a poster of the {d}" for d in ("one", "two", "three", "four", "five", "six"))
MEMORY, LOUD, WORDED = (3, 17, 40, 61), (5, 22, 50), (9, 33, 47)


@dataclass(eq=False)
class Planted:
    """The pipeline and the part that the columns are of."""

    pipe: Pipeline
    part: Part


def planted(strength: float = 1.0) -> Planted:
    """Columns `MEMORY`, `LOUD` and `WORDED` of the first `ff_out` part are planted."""
    pipe = Pipeline(raw_pipeline(width=32), name=f"planted {strength}")
    part = parts(pipe, "ff_out")[0]
    block = pipe.pipe.unet.get_submodule(part.path.removeprefix("unet.").split(".ff.")[0])
    texts = [*TARGETS, *HELD_OUT, *CONTROLS, ""]
    with torch.no_grad():
        states = pipe.embed(texts)
        secret, worded = _reader(states, [len(TARGETS + HELD_OUT), 0]), _reader(states, [len(texts) - 1, 1])
        inner = pipe.pipe.unet.get_submodule(part.path.removeprefix("unet.").split(".transformer_blocks")[0])
        for channel, words, gain in ((0, secret, 12.0 * strength), (1, worded, 12.0)):
            for writer in (inner.proj_in, block.attn1.to_out[0], block.attn2.to_out[0]):
                writer.weight[channel] = 0
                writer.bias[channel] = 0
            block.attn2.to_v.weight[channel] = words
            block.attn2.to_out[0].weight[:, channel] = 0
            block.attn2.to_out[0].weight[channel, channel] = gain
        block.attn2.to_q.weight.zero_()  # all words count the same
        block.norm3.weight.fill_(1)
        block.norm3.bias.zero_()
        gate = block.ff.net[0].proj
        width = gate.weight.shape[0] // 2
        plants: tuple[tuple[tuple[int, ...], int | None], ...] = ((MEMORY, 0), (WORDED, 1), (LOUD, None))
        for units, which in plants:
            for unit in units:
                for row in (unit, unit + width):
                    gate.weight[row] = 0
                    gate.bias[row] = 0
                if which is None:
                    gate.bias[unit], gate.bias[unit + width] = 6.0, 3.0
                else:
                    gate.bias[unit] = 1.0
                    gate.weight[unit + width, which] = 2.0
                    gate.bias[unit + width] = -2.0
        # All weights are as large, so that what tells them apart is what fires.
        weight = module_of(pipe, part).weight
        weight.copy_(0.1 * weight.sign())
    return Planted(pipe, part)


def _reader(states: torch.Tensor, sides: list[int]) -> torch.Tensor:
    """A direction whose mean over a prompt's tokens is 1 for the first prompts, and 0 for the others."""
    means = states.mean(1).double()
    wanted = torch.zeros(len(means), dtype=means.dtype)
    wanted[: sides[0]] = 1
    return torch.linalg.lstsq(means, wanted[:, None], driver="gelsd").solution[:, 0].float()
