"""What heads write on prompts, and not what they could: scores weighed by the inputs that a writer has.

Weights count every direction of the stream alike, also those that no token ever has. With Sigma the second moment of a
writer's normed input, the writer is Sigma^(1/2) W_OV in place of W_OV. Only lengths of what is written count, so all
that is needed of Sigma is W_V^T Sigma W_V, the second moment of the head's own values: k x k numbers of each KV group,
summed while examples stream by.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import torch
from jaxtyping import Float

from interp.errors import UsageError
from interp.locate.channels.composition import Progress, composition
from interp.locate.channels.factors import MODES, Mode
from interp.locate.channels.weights import Weights
from interp.models.batch import Batch, plan
from interp.models.sites import Site
from interp.models.subject import CausalLM
from interp.tasks.base import Example

TOKENS = 2048
"""Tokens of a batch."""


def value_moments(
    subject: CausalLM,
    examples: Sequence[Example],
    *,
    biases: bool = False,
    progress: Progress | None = None,
) -> dict[int, Float[torch.Tensor, "g k k"]]:
    """Mean outer products of the values of each KV group with themselves, over all tokens of some prompts.

    Args:
        biases: of values as they are; default less what they always hold, a bias, that of the norm included.
        progress: told about examples done.

    Returns:
        by layer, in float64; `Weights(subject, moments=...)` takes them.

    Raises:
        UsageError: there are no examples.
    """
    if not examples:
        raise UsageError("moments of values take at least one example")
    weights = Weights(subject)
    constants = {}
    for i in range(subject.n_layers):
        constants[i] = torch.zeros(1) if biases else weights.layer(i).b_v.double()
    sums = {i: torch.zeros((), dtype=torch.float64) for i in constants}
    count = 0
    for group in plan([len(e.ids) for e in examples], TOKENS):
        batch = subject.batch([examples[i] for i in group], forced=False)
        taps = {Site("v", i): _Moment(batch, constants[i]) for i in constants}
        subject.run(batch, taps, keep=1)
        for i in sums:
            sums[i] = sums[i] + taps[Site("v", i)].sum
        count += int(batch.mask.sum())
        if progress:
            progress(count, sum(len(e.ids) for e in examples), "tokens")
    return {i: total / count for i, total in sums.items()}


class _Moment:
    """Sums outer products of the values of a pass, those of padding left out."""

    def __init__(self, batch: Batch, constant: torch.Tensor):
        self.mask, self.constant = batch.mask.bool(), constant
        self.sum: torch.Tensor = torch.zeros(())

    def __call__(self, value: torch.Tensor) -> None:
        x = value[self.mask.to(value.device)].double() - self.constant.to(value.device)
        self.sum = torch.einsum("ngi,ngj->gij", x, x).cpu()


def both_scores(
    subject: CausalLM,
    examples: Sequence[Example],
    modes: Sequence[Mode] = MODES,
    *,
    dtype: torch.dtype = torch.float32,
    anticausal: bool = True,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Composition scores of all pairs of heads by their weights alone, and by what the writers write on prompts.

    Component scores of the second kind: `component_scores(subject, weights=Weights(subject, moments=...))`.

    Args:
        modes, dtype, anticausal: see `composition`.

    Returns:
        the frame of `composition`, with `data_value`, `data_expected`, `data_z` and `data_alignment` beside value,
        expected, z and alignment.
    """
    plain = composition(subject, modes, dtype=dtype, anticausal=anticausal, progress=progress)
    moments = value_moments(subject, examples)
    aware = composition(
        subject,
        modes,
        weights=Weights(subject, dtype=dtype, moments=moments),
        anticausal=anticausal,
        progress=progress,
    )
    return plain.assign(**{f"data_{c}": aware[c] for c in ("value", "expected", "z", "alignment")})
