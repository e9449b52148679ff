"""Neurons that hold single facts: screened by attribution, and measured one by one where the screen says so.

The screen is gradient times activation at the subject's last token, one backward pass for all neurons of the layers; it
is what zeroing a neuron would cost if the model were linear. The first ones of each prompt, and as a check some drawn
from the rest, are then zeroed each on its own (`subject.each`: the suffix and the layers above).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from scipy import stats

from interp.intervene.ablate import Ablate
from interp.intervene.tracing.places import places_of
from interp.locate.facts.flow import answer_metric, answer_values
from interp.locate.gradients import gradients
from interp.models.batch import plan
from interp.models.sites import Neuron, Site
from interp.models.subject import CausalLM
from interp.tasks.base import Example, stable_seed
from interp.trace.each import Progress, Spent

TOKENS = 2048
PICKED, CHECK = "screen", "check"


def screened(
    subject: CausalLM, examples: Sequence[Example], layers: Sequence[int], metric: str, place: str
) -> tuple[Float[np.ndarray, "n l m"], Float[np.ndarray, "n l m"]]:
    """Activation and attribution (estimated loss of the metric, were it zero) of each neuron at a place.

    Args:
        examples: prompts whose answer is the one token that is asked for.
    """
    shape = len(examples), len(layers), subject.d_mlp
    activation, attribution = np.zeros(shape), np.zeros(shape)
    sites = [Site("neurons", layer) for layer in layers]
    for group in plan([len(e.ids) for e in examples], TOKENS):
        members = [examples[i] for i in group]
        batch = subject.batch(members)

        def last(logits: torch.Tensor, members: Sequence[Example] = members) -> torch.Tensor:
            return answer_metric(logits[:, -1], members, metric)

        _, values, grads = gradients(subject, batch, sites, last)
        at = torch.tensor([places_of(e).index(place) for e in members]) + batch.pad.cpu()
        rows = torch.arange(len(members))
        for j, site in enumerate(sites):
            here = rows.to(values[site].device), at.to(values[site].device)
            value, grad = values[site][here].float(), grads[site][here].float()
            activation[group, j] = value.double().cpu().numpy()
            attribution[group, j] = (value * grad).double().cpu().numpy()
    return activation, attribution


def neuron_table(
    subject: CausalLM,
    examples: Sequence[Example],
    layers: Sequence[int],
    *,
    metric: str,
    place: str,
    exact: int,
    check: int,
    seed: int,
    progress: Progress | None = None,
    spent: Spent | None = None,
) -> pd.DataFrame:
    """What zeroing single neurons at a place costs each prompt.

    Args:
        exact: neurons a prompt that are measured, the first of its screen.
        check: as many more, drawn from the rest.

    Returns:
        one row a prompt and measured neuron: example, cluster, component, layer, neuron, picked (`screen` or `check`),
        activation, screen and exact (loss of the metric: estimated, measured).
    """
    activation, attribution = screened(subject, examples, layers, metric, place)
    width = subject.d_mlp
    rows = []
    for i, example in enumerate(examples):
        order = np.argsort(-attribution[i].ravel(), kind="stable")
        rng = np.random.default_rng(stable_seed("neurons", seed, example.key()))
        rest = order[exact:]
        drawn = rng.choice(rest, size=min(check, len(rest)), replace=False)
        chosen = [(int(j), PICKED) for j in order[:exact]] + [(int(j), CHECK) for j in drawn]
        at = places_of(example).index(place)
        parts = [Neuron(layers[j // width], j % width) for j, _ in chosen]
        cuts = [None, *(Ablate((part,), scope=(at,)) for part in parts)]
        values: dict[int, float] = {}
        for number, logits in subject.each(cuts, [example], keep=1, spent=spent):
            values[number] = float(answer_values(logits[:, -1], [example], metric)[0])
        for number, (part, (j, picked)) in enumerate(zip(parts, chosen, strict=True), start=1):
            rows.append(
                {
                    "example": i,
                    "cluster": example.cluster or example.key(),
                    "component": repr(part),
                    "layer": part.layer,
                    "neuron": part.i,
                    "picked": picked,
                    "activation": activation[i].ravel()[j],
                    "screen": attribution[i].ravel()[j],
                    "exact": values[0] - values[number],
                }
            )
        if progress:
            progress(i + 1, len(examples), "neurons")
    return pd.DataFrame(rows)


def agreement(table: pd.DataFrame) -> dict[str, float]:
    """How well the screen agrees with what was measured.

    Returns:
        spearman: mean over prompts of the rank correlation among the measured neurons; missed: share of the neurons
        drawn as a check that cost more than the median one of the screen's.
    """
    ranks, missed = [], []
    for _, part in table.groupby("example", sort=False):
        if len(part) > 2 and part["exact"].nunique() > 1 and part["screen"].nunique() > 1:
            ranks.append(float(stats.spearmanr(part["screen"], part["exact"]).statistic))
        middle = part.loc[part["picked"] == PICKED, "exact"].median()
        missed += list(part.loc[part["picked"] == CHECK, "exact"] > middle)
    return {
        "spearman": float(np.mean(ranks)) if ranks else float("nan"),
        "missed": float(np.mean(missed)) if missed else float("nan"),
    }
