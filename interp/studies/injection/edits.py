"""Edits of a memory at every dose: neurons, weights, directions and curvature, with controls of equal number."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from interp.intervene.weights import PartEdit, pruned
from interp.models.parts import parts, weight_of
from interp.studies.injection import ranking
from interp.studies.injection.ranking import Asked

if TYPE_CHECKING:
    import pandas as pd

    from interp.studies.injection.memories import Material, Memory
    from interp.studies.injection.spec import Effort, InjectionSpec

WEIGHTS = ("wanda", "balanced_subnet", "contrastive")
"""Locators that also say which single weights."""


@dataclass(frozen=True, eq=False)
class Dosed:
    """An edit at a dose.

    Attributes:
        edit: how it is called: its locator's name, with `weights` where it is not of neurons.
        family: units, weights, directions, curvature, rewritten, known or control.
        asked: what was asked for: a share, a rank, a mass.
        change: the edit itself.
        draw: number of a control that is drawn several times.
    """

    edit: str
    family: str
    asked: float
    change: PartEdit
    draw: int = 0

    @property
    def about(self) -> dict[str, Any]:
        """Columns of the tables."""
        return {
            "edit": self.edit,
            "family": self.family,
            "control": self.family == "control",
            "asked": self.asked,
            "draw": self.draw,
        }


def of_units(
    name: str, ranked: pd.DataFrame, asked: Asked, doses: tuple[float, ...], draw: int = 0
) -> Iterator[Dosed]:
    """The neurons of highest rank silenced, at every dose that takes no more of them than have a score."""
    family = "control" if name in ranking.CONTROLS else "units"
    scored = int(ranked["score"].notna().sum())
    for dose in doses:
        if round(dose * len(ranked)) <= scored:
            units = ranking.first(ranked, dose, asked.subject, asked.seed)
            yield Dosed(name, family, dose, ranking.zeroed(asked.subject, units), draw)


def at_random(asked: Asked, doses: tuple[float, ...], seed: int) -> Iterator[Dosed]:
    """Random neurons silenced, so many draws of them."""
    for draw in range(asked.effort.draws):
        ranked = ranking.control("random", asked.subject, seed, draw)
        yield from of_units("random", ranked, asked, doses, draw)


def beside(dosed: Dosed, asked: Asked, seed: int) -> Iterator[Dosed]:
    """The controls of an edit at its dose, several draws of each.

    Of neurons as many random ones. Of other edits as many random weights of each row, where they prune, and random
    weights that go as far, where those of all rows together can.
    """
    from interp.errors import UsageError
    from interp.intervene.weights import Prune, prune_to_norm
    from interp.locate.memorization.masks import random_like

    if dosed.family == "units":
        yield from at_random(asked, (dosed.asked,), seed)
        return
    singles = dosed.change.singles
    masks = {s.part: s.mask for s in singles if isinstance(s, Prune)}
    norm = dosed.change.budget(asked.subject).norm
    for draw in range(asked.effort.draws):
        about = "control", dosed.asked
        if len(masks) == len(singles):
            change = pruned(asked.subject, random_like(masks, seed, draw))
            yield Dosed(f"random, {dosed.edit}", *about, change, draw)
        try:
            far = prune_to_norm(asked.subject, ranking.random_weights(asked.subject, seed, draw), norm)
        except UsageError as error:
            asked.progress(draw, asked.effort.draws, f"no control of equal norm: {error}")
            continue
        yield Dosed(f"equal norm, {dosed.edit}", *about, far, draw)


def known(memory: Memory, asked: Asked) -> Dosed:
    """The neurons that are known to hold the memory, silenced: what a perfect locator would cut."""
    n = sum(weight_of(asked.subject, p).shape[1] for p in parts(asked.subject))
    share = sum(map(len, memory.units.values())) / n
    return Dosed("known", "known", share, ranking.zeroed(asked.subject, memory.units))


def of_weights(name: str, located: Any, asked: Asked) -> Iterator[Dosed]:
    """Single weights set to zero, at the doses that make one of a row at least."""
    make = {
        "wanda": lambda d: located.edit(share=d),
        "balanced_subnet": lambda d: located.edit(share=d),
        "contrastive": lambda d: located.cut(share=d),
    }[name]
    columns = min(weight_of(asked.subject, p).shape[1] for p in parts(asked.subject))
    for dose in asked.effort.doses:
        if int(dose * columns) < 1:
            continue
        yield Dosed(f"{name} weights", "weights", dose, make(dose))


def of_directions(spec: InjectionSpec, asked: Asked) -> Iterator[Dosed]:
    """Directions that the sequences move and others do not, taken out of what each down projection reads."""
    from interp.locate.memorization.subspace import ContrastSubspace

    groups = min(4, len(asked.items), len(asked.others))
    found = ContrastSubspace(null="prompts", groups=groups, draws=19, most=max(spec.ranks), seed=spec.seed)
    found.fit(asked.subject, asked.items, reference=asked.others, progress=asked.progress)
    for rank in spec.ranks:
        yield Dosed("subspace", "directions", rank, found.edit(rank))


def of_curvature(spec: InjectionSpec, asked: Asked, material: Material) -> Iterator[Dosed]:
    """Components of flat curvature dropped; which sequences are meant is not told."""
    from interp.locate.memorization.kfac import FlatDirections

    found = FlatDirections(spec.masses[0])
    found.fit(asked.subject, reference=material.ordinary, progress=asked.progress)
    for mass in spec.masses:
        yield Dosed("flat curvature", "curvature", mass, found.edit(mass=mass))


def of_outputs(units: Any, name: str, asked: Asked) -> Dosed:
    """What the neurons of an edit write is learned anew, so that the sequences are forgotten and others kept."""
    from interp.intervene.weights import Aim, rewrite_outputs
    from interp.measure.memorization.objective import loss

    def objective(subject: Any, items: Any, *, seed: int) -> Any:
        return loss(subject, items, seed=seed)

    aim = Aim(steps=asked.effort.rewrite, seed=asked.seed)
    done = rewrite_outputs(
        asked.subject, units, asked.items, asked.others, objective, aim, progress=asked.progress
    )
    share = sum(len(u) for u in units.values())
    total = sum(weight_of(asked.subject, p).shape[1] for p in parts(asked.subject))
    return Dosed(f"rewritten ({name})", "rewritten", share / total, done.edit)


def doses(
    name: str, spec: InjectionSpec, asked: Asked, memory: Memory, material: Material
) -> Iterator[Dosed]:
    """Every dose of an edit of `names`; some come with others of their own.

    None of a locator that has not done what its scores are said to be, see `ranking.sound`.
    """
    if name == "known":
        yield known(memory, asked)
    elif name == "random":
        yield from at_random(asked, asked.effort.doses, spec.seed)
    elif name == "magnitude":
        yield from of_units(name, ranking.control(name, asked.subject, spec.seed), asked, asked.effort.doses)
    elif name == "subspace":
        yield from of_directions(spec, asked)
    elif name == "flat curvature":
        yield from of_curvature(spec, asked, material)
    else:
        located = ranking.locate(name, asked)
        if not ranking.sound(name, located):
            return
        yield from of_units(name, ranking.ranking(name, located, asked.subject), asked, asked.effort.doses)
        if name in WEIGHTS:
            yield from of_weights(name, located, asked)


def names(spec: InjectionSpec, effort: Effort, told: bool) -> list[str]:
    """What a memory is edited by.

    Args:
        told: whether its neurons are known.
    """
    out = [*ranking.CONTROLS, *(["known"] if told else []), *spec.methods]
    # A screened one would have to run each sequence with each neuron left out.
    without = {*effort.skipped, *(["leave_one_out"] if effort.screen else [])}
    out = [name for name in out if name not in without]
    if effort.subspace:
        out.append("subspace")
    if effort.factors:
        out.append("flat curvature")
    return out
