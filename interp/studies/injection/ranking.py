"""Neurons of a model in the order of what a method makes of them, and edits at a stated share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from interp.intervene.weights import Prune, Stack
from interp.models.cache import Progress, quiet
from interp.models.parts import Part, parts, weight_of
from interp.tasks.base import stable_seed

if TYPE_CHECKING:
    from interp.models.subject import CausalLM
    from interp.studies.injection.spec import Effort
    from interp.tasks.memorized import TextItem

CONTROLS = ("random", "magnitude")
"""Rankings that know nothing of the sequences."""


@dataclass(frozen=True)
class Asked:
    """What a locator is given: the sequences, what they are compared with, and how much it may do.

    Attributes:
        fitted: locators by name, that others go on from.
    """

    subject: CausalLM
    items: Sequence[TextItem]
    others: Sequence[TextItem]
    effort: Effort
    seed: int = 0
    progress: Progress = quiet
    fitted: dict[str, Any] = field(default_factory=dict)


FITTED_AS = {"gradient_size": "gradient"}
"""Rankings that come from one fit."""


def locate(name: str, asked: Asked) -> Any:
    """A fitted locator whose `scores_` have the method of that name; what was fitted once is used again.

    Those that are published without a comparison are used so.
    """
    own = FITTED_AS.get(name, name)
    if own not in asked.fitted:
        asked.fitted[own] = _fit(own, asked)
    return asked.fitted[own]


def _fit(name: str, asked: Asked) -> Any:
    from interp.locate.memorization.activation import Activation
    from interp.locate.memorization.contrastive import ContrastiveGradients
    from interp.locate.memorization.gates import LearnedGates
    from interp.locate.memorization.gradients import GradientActivation, IntegratedGradients
    from interp.locate.memorization.leave_out import LeaveOneOut
    from interp.locate.memorization.supermask import BalancedSubnet
    from interp.locate.memorization.wanda import WandaContrast

    e, seed = asked.effort, asked.seed
    makes: dict[str, Any] = {
        "activation": lambda: Activation(),
        "gradient": lambda: GradientActivation(),
        "integrated": lambda: IntegratedGradients(e.path, e.nodes),  # type: ignore[arg-type]
        # Integrated gradients would miss too much as a screen: in a deep model neither path is complete.
        "leave_one_out": lambda: (
            LeaveOneOut(e.screen, by=locate("gradient", asked)) if e.screen else LeaveOneOut()
        ),
        "wanda": lambda: WandaContrast(null="prompts"),
        "slimming": lambda: LearnedGates("slimming", steps=e.gates, seed=seed),
        "hard_concrete": lambda: LearnedGates("hard_concrete", steps=e.gates, seed=seed),
        "balanced_subnet": lambda: BalancedSubnet(steps=e.subnet, seed=seed),
        "contrastive": lambda: ContrastiveGradients(),
    }
    compared = name in ("wanda", "balanced_subnet", "contrastive")
    reference = asked.others if compared else None
    return makes[name]().fit(asked.subject, asked.items, reference=reference, progress=asked.progress)


METHOD_OF = {"wanda": "corrected", "contrastive": "guarded"}
"""What a ranking is called in the locator's table, where it is not its own name."""


def ranking(name: str, located: Any, subject: CausalLM) -> pd.DataFrame:
    """part, unit, score of every neuron; those that were not measured have none, and rank last."""
    table = located.scores_
    own = table[table["method"] == METHOD_OF.get(name, name)][["part", "unit", "score"]]
    return every_unit(subject).merge(own, on=["part", "unit"], how="left").assign(method=name)


def every_unit(subject: CausalLM) -> pd.DataFrame:
    """part, unit of every neuron of the MLPs."""
    return pd.concat(
        [
            pd.DataFrame({"part": repr(p), "unit": np.arange(weight_of(subject, p).shape[1])})
            for p in parts(subject)
        ],
        ignore_index=True,
    )


GAP = 0.2
"""Integrated gradients whose scores miss more than this share of what they should sum to are not counted."""
STILL = 0.01
SETTLED = 0.05
"""Gates have settled where their mean opening moves less than `STILL` from one tenth of the training to the next, and
less than this share of all that it moved: gates that have hardly begun move little too."""


def sound(name: str, located: Any) -> bool:
    """Whether a locator has done what its scores are said to be: gradients are complete, gates have settled."""
    if name == "integrated":
        told = located.completeness_
        return bool(told["gap"].abs().sum() <= GAP * told["cost"].abs().sum())
    if name in ("slimming", "hard_concrete"):
        opening = np.array([open_ for _, open_ in located.history_])
        tenth = len(opening) // 10
        if not tenth:
            return False
        moves = abs(opening[-tenth:].mean() - opening[-2 * tenth : -tenth].mean())
        return bool(moves < STILL and moves < SETTLED * abs(opening[-1] - opening[0]))
    return True


def random_weights(subject: CausalLM, seed: int, draw: int) -> dict[Part, torch.Tensor]:
    """A random score of each weight."""
    out = {}
    for part in parts(subject):
        generator = torch.Generator().manual_seed(stable_seed("random weights", seed, draw, part.path)[0])
        out[part] = torch.rand(weight_of(subject, part).shape, generator=generator)
    return out


def control(name: str, subject: CausalLM, seed: int, draw: int = 0) -> pd.DataFrame:
    """A ranking at random, or by the length of what a neuron writes."""
    out = every_unit(subject)
    if name == "random":
        rng = np.random.default_rng(stable_seed("random neurons", seed, draw))
        return out.assign(score=rng.random(len(out)), method=name)
    sizes = [weight_of(subject, p).float().norm(dim=0).cpu().numpy() for p in parts(subject)]
    return out.assign(score=np.concatenate(sizes), method=name)


def first(ranked: pd.DataFrame, share: float, subject: CausalLM, seed: int = 0) -> dict[Part, list[int]]:
    """The highest share of the neurons, at least one; of equal ones at random."""
    mixed = ranked.sample(frac=1, random_state=np.random.default_rng(stable_seed("ties", seed)))
    rows = mixed.sort_values("score", ascending=False, kind="stable", na_position="last")
    taken = rows[: max(1, round(share * len(rows)))]
    by_name = {repr(p): p for p in parts(subject)}
    return {
        by_name[str(name)]: sorted(own["unit"].tolist()) for name, own in taken.groupby("part", sort=False)
    }


def zeroed(subject: CausalLM, units: dict[Part, list[int]]) -> Stack:
    """Neurons that write nothing."""
    edits = []
    for part, own in sorted(units.items()):
        mask = torch.zeros(weight_of(subject, part).shape, dtype=torch.bool)
        mask[:, own] = True
        edits.append(Prune(part, mask))
    return Stack(tuple(edits))
