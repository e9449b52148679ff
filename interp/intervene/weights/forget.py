"""Edits that are learned: forget some items and keep others, by coefficients of task vectors or by output vectors.

A task vector is what training on items did to a model; taken away again, it unlearns them (Ilharco et al. 2023). With
one coefficient a block in place of one for all (aTLAS: Zhang et al. 2024, "Knowledge Composition using Task Vectors
with Learned Anisotropic Scaling") the blocks that hold the items are found by learning. Both here descend

    mean_i (level - loss_i)+ / level  +  weight * (keep / intact - 1 - slack)+

over items i to forget, whose loss has to reach a level and need not go beyond it, and items to keep, whose mean loss
must not rise by more than `slack` of that of the intact model under the same draws. Zero says that both are met.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import pandas as pd
import torch
from jaxtyping import Float, Int

from interp.errors import UsageError
from interp.intervene.weights.base import PartEdit, Stack
from interp.intervene.weights.kinds import OutputVectors, within
from interp.intervene.weights.places import parameter
from interp.intervene.weights.tuning import substituted, tuned
from interp.intervene.weights.whole import ModelDelta
from interp.models.cache import Progress, quiet
from interp.models.parts import Part, weight_of
from interp.tasks.base import stable_seed


class Objective(Protocol):
    """The training objective of each item, differentiable, its draws by a seed (`measure.memorization.objective`)."""

    def __call__(self, subject: Any, items: Sequence[Any], *, seed: int) -> Float[torch.Tensor, " items"]: ...


@dataclass(frozen=True)
class Aim:
    """What a learned edit aims at, and how it is trained.

    Attributes:
        level: loss that each forgotten item is to reach, that of items never seen; default the mean of those to keep.
        slack: share by which the loss of kept items may rise.
        weight: of the kept items' part.
        steps: updates of Adam, at most; training ends where both parts are zero.
        lr: its step; for output vectors as a multiple of the root mean square of the weights.
        batch: items of either kind in a step, drawn anew for each; 0: all.
        seed: of draws and batches.
    """

    level: float | None = None
    slack: float = 0.02
    weight: float = 1.0
    steps: int = 50
    lr: float = 0.1
    batch: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.lr <= 0 or self.slack < 0 or self.weight < 0 or self.batch < 0:
            raise UsageError("an aim needs steps >= 1, lr > 0, and slack, weight and batch of 0 or more")


@dataclass(frozen=True, eq=False)
class Forgetting:
    """A learned edit and how far it went.

    Attributes:
        edit: the edit.
        history: one row a step, before its update, and one of the end: forget and keep (mean losses of the step's
            items), intact (of the kept ones before), aim (what is descended).
        coefficients: of a negation one row a block: block, coefficient, norm (of its part of the vectors).
        level: loss that was aimed at.
    """

    edit: PartEdit
    history: pd.DataFrame
    coefficients: pd.DataFrame
    level: float


def task_vector(
    subject: Any,
    items: Sequence[Any],
    objective: Objective,
    *,
    what: Sequence[str | Part] | None = None,
    steps: int = 50,
    lr: float = 1e-4,
    batch: int = 0,
    stop: float = 0.0,
    seed: int = 0,
    progress: Progress = quiet,
) -> ModelDelta:
    """What training on items does to the model: its change after some steps of AdamW. The model stays as it was.

    Args:
        objective: the loss of each item.
        what: parameters or parts that are trained, see `tuned`.
        steps, lr: of AdamW, without weight decay.
        batch: items of a step, drawn anew for each; 0: all.
        stop: training ends where the mean loss of a step is below this.
        seed: of draws and batches.
    """
    if not items or steps < 1:
        raise UsageError("a task vector needs at least one item and one step")
    with tuned(subject, what) as tuning, torch.enable_grad():
        adam = torch.optim.AdamW(list(tuning.free.values()), lr=lr, weight_decay=0.0)
        for step in range(steps):
            loss = objective(subject, _drawn(items, batch, seed, step), seed=_seed(seed, step)).mean()
            told = float(loss.detach())
            if told < stop:
                break
            adam.zero_grad()
            loss.backward()
            adam.step()
            progress(step + 1, steps, f"task vector, loss {told:.3g}")
        return tuning.delta()


def negate(
    subject: Any,
    vectors: ModelDelta | Sequence[ModelDelta],
    forget: Sequence[Any],
    keep: Sequence[Any],
    objective: Objective,
    aim: Aim | None = None,
    *,
    blocks: Callable[[str], str] = str,
    progress: Progress = quiet,
) -> Forgetting:
    """Unlearn items by task vectors with a learned coefficient for each block and vector.

    Args:
        vectors: task vectors of the items to forget (see `task_vector`); coefficients start at zero.
        forget: items whose loss is to rise.
        keep: items whose loss must not.
        objective: the loss of each item.
        blocks: name of the block of a parameter; default each parameter for itself. `lambda name: ""` makes one
            coefficient for all, the plain negation of a task.

    Raises:
        UsageError: no items or no vector, or a vector of another model.
    """
    given = (vectors,) if isinstance(vectors, ModelDelta) else tuple(vectors)
    if not given or not any(v.changes for v in given):
        raise UsageError("no task vector to negate; make one with task_vector(subject, items, objective)")
    for vector in given:
        vector.fits(subject)
    names = sorted({name for vector in given for name in vector.changes})
    own = [sorted({f"{i}:{blocks(name)}" for name in vector.changes}) for i, vector in enumerate(given)]
    every = [block for group in own for block in group]
    place = {block: i for i, block in enumerate(every)}
    base = {name: parameter(subject, name).detach() for name in names}
    moves = {
        name: [
            (place[f"{i}:{blocks(name)}"], vector.changes[name].to(base[name].device))
            for i, vector in enumerate(given)
            if name in vector.changes
        ]
        for name in names
    }
    coefficients = torch.zeros(len(every), requires_grad=True)

    def change(name: str) -> torch.Tensor:
        return torch.stack([coefficients[at].to(c) * c for at, c in moves[name]]).sum(0)

    def weights() -> dict[str | Part, torch.Tensor]:
        return {name: base[name].to(change(name).dtype) + change(name) for name in names}

    aim = aim or Aim()
    history, level = _learn(subject, [coefficients], [1.0], weights, forget, keep, objective, aim, progress)
    with torch.no_grad():
        edit = ModelDelta({name: change(name) for name in names}, given[0].model)
        norms = torch.zeros(len(every))
        for moved in moves.values():
            for at, c in moved:
                norms[at] += c.square().sum().cpu()
    table = pd.DataFrame(
        {
            "vector": [int(b.split(":", 1)[0]) for b in every],
            "block": [b.split(":", 1)[1] for b in every],
            "coefficient": coefficients.tolist(),
            "norm": norms.sqrt().tolist(),
        }
    )
    return Forgetting(edit, history, table, level)


def rewrite_outputs(
    subject: Any,
    units: Mapping[Part, Int[torch.Tensor, " n"]],
    forget: Sequence[Any],
    keep: Sequence[Any],
    objective: Objective,
    aim: Aim | None = None,
    *,
    progress: Progress = quiet,
) -> Forgetting:
    """Unlearn items by what some neurons write: their output vectors are trained, from what they are now.

    Args:
        units: neurons of each part, as locators find them (see `top_units`).
        forget, keep, objective: as for `negate`.

    Raises:
        UsageError: no items, no units, or a unit that does not exist.
    """
    if not any(len(u) for u in units.values()):
        raise UsageError("no units whose output vectors could be edited; give at least one")
    name = subject.fingerprint
    base = {part: weight_of(subject, part) for part, u in units.items() if len(u)}
    start = {}
    for part, w in base.items():
        own = within(units[part], w.shape[1], part)
        start[part] = OutputVectors(part, own, w[:, own.to(w.device)].T, name)
    free = {part: edit.vectors.to(base[part].device).clone().requires_grad_() for part, edit in start.items()}
    sizes = [float(base[part].float().square().mean().sqrt()) for part in free]

    def weights() -> dict[str | Part, torch.Tensor]:
        return {
            part: base[part].to(v.dtype).index_copy(1, start[part].units.to(v.device), v.T)
            for part, v in free.items()
        }

    aim = aim or Aim()
    history, level = _learn(
        subject, list(free.values()), sizes, weights, forget, keep, objective, aim, progress
    )
    edits = tuple(OutputVectors(part, start[part].units, v.detach(), name) for part, v in free.items())
    return Forgetting(
        Stack(edits), history, pd.DataFrame(columns=["vector", "block", "coefficient", "norm"]), level
    )


def _learn(
    subject: Any,
    free: Sequence[torch.Tensor],
    sizes: Sequence[float],
    weights: Callable[[], Mapping[str | Part, torch.Tensor]],
    forget: Sequence[Any],
    keep: Sequence[Any],
    objective: Objective,
    aim: Aim,
    progress: Progress,
) -> tuple[pd.DataFrame, float]:
    """Descend the aim by `free`, on which `weights` depend; the history, and the level that was aimed at."""
    if not forget or not keep:
        raise UsageError(
            "an edit is learned from items to forget and items to keep; give at least one of each"
        )
    first = _seed(aim.seed, -1)
    with torch.no_grad():
        kept = float(objective(subject, keep, seed=first).mean())
    level = kept if aim.level is None else aim.level
    if level <= 0 or kept <= 0:
        raise UsageError(f"level {level:.4g} and loss {kept:.4g} of what is kept: both have to be above 0")
    adam = torch.optim.Adam(
        [{"params": [f], "lr": aim.lr * size} for f, size in zip(free, sizes, strict=True)]
    )
    rows = []
    for step in range(aim.steps + 1):
        seed = _seed(aim.seed, step)
        gone, stay = _drawn(forget, aim.batch, aim.seed, step), _drawn(keep, aim.batch, aim.seed, step)
        # What is kept is held against the intact model under the same draws and items: they scatter by more than slack.
        with torch.no_grad():
            intact = objective(subject, stay, seed=seed).mean().clamp(min=1e-12)
        with torch.enable_grad(), substituted(subject, weights()):
            lost = objective(subject, gone, seed=seed)
            held = objective(subject, stay, seed=seed).mean()
            aimed = (level - lost).clamp(min=0).mean() / level
            aimed = aimed + aim.weight * (held / intact - 1 - aim.slack).clamp(min=0)
        told = {"forget": lost.mean(), "keep": held, "intact": intact, "aim": aimed}
        rows.append({"step": step, **{name: float(value.detach()) for name, value in told.items()}})
        progress(min(step + 1, aim.steps), aim.steps, f"forgetting, aim {rows[-1]['aim']:.3g}")
        if step == aim.steps or not rows[-1]["aim"]:
            break
        found = torch.autograd.grad(aimed, list(free), allow_unused=True)
        for leaf, gradient in zip(free, found, strict=True):
            leaf.grad = gradient
        adam.step()
    return pd.DataFrame(rows), level


def _seed(seed: int, step: int) -> int:
    high, low = stable_seed("forgetting", seed, step)[:2]
    return (high << 32 | low) % 2**31


def _drawn(items: Sequence[Any], batch: int, seed: int, step: int) -> Sequence[Any]:
    """The items of a step."""
    if not batch or batch >= len(items):
        return items
    generator = torch.Generator().manual_seed(_seed(seed, step))
    return [items[i] for i in torch.randperm(len(items), generator=generator)[:batch].tolist()]
