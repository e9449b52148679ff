"""One sequence in known neurons: what finds them, and what silencing what was found takes away."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pandas as pd

from interp.intervene.inject import Fit, inject
from interp.measure.memorization.injected import recall_at_k
from interp.models.parts import parts, weight_of
from interp.studies.injection import edits, measures, ranking
from interp.studies.injection.memories import Material, Memory
from interp.studies.injection.ranking import Asked

if TYPE_CHECKING:
    from interp.models.cache import Progress
    from interp.models.subject import CausalLM
    from interp.studies.injection.edits import Dosed
    from interp.studies.injection.spec import Effort, InjectionSpec
    from interp.tasks.memorized import TextItem

FEW = 3
"""Passages and unseen sequences that are read under every edit of a single injection."""


def weigh(subject: CausalLM, dosed: Dosed) -> dict[str, Any]:
    """Which edit it is, what it changes and how far."""
    budget = dosed.change.budget(subject)
    total = sum(weight_of(subject, p).numel() for p in parts(subject))
    return {**dosed.about, "dose": budget.changed / total, "norm": budget.norm}


def injection(
    subject: CausalLM,
    item: TextItem,
    share: float,
    seed: int,
    material: Material,
    effort: Effort,
    spec: InjectionSpec,
    progress: Progress,
    same_length: bool = False,
) -> list[pd.DataFrame]:
    """A sequence put into a share of the neurons of every layer: four tables.

    Args:
        same_length: what the neurons write keeps its length, so that they are not told by it.

    Returns:
        how it went in; recall of its neurons by each method; cells of edits; completeness of integrated gradients.
    """
    fit = Fit(effort.updates, effort.rate)
    (found,) = inject(subject, [item], share=share, seed=seed, fit=fit, same_length=same_length)
    own = replace(item, group="targeted")
    head = {"injected": share, "seed": seed, "item": item.name}
    units = {part: u.tolist() for part, u in found.units.items()}
    memory = Memory(f"injected {share:g}", (own,), material.never[:FEW], found.edit, units)
    recalls, told, complete = [], [], pd.DataFrame()
    with found.edit.applied(subject):
        asked = Asked(subject, [own], material.others, effort, seed=seed, progress=progress)
        read = [own, *memory.never, *material.choose[:FEW]]
        plain = measures.cells(subject, read, generate=True)
        told.append(_collapsed(plain, item, seed).assign(**measures.NONE))
        every: list[Dosed] = [edits.known(memory, asked)]
        full = min((d for d in effort.doses if d >= share), default=effort.doses[-1])
        for name in (*ranking.CONTROLS, *(m for m in spec.methods if m not in effort.skipped)):
            counts = True
            if name in ranking.CONTROLS:
                ranked = ranking.control(name, subject, spec.seed + seed)
            else:
                located = ranking.locate(name, asked)
                ranked = ranking.ranking(name, located, subject)
                counts = ranking.sound(name, located)
                if name == "integrated":
                    complete = located.completeness_.assign(item=item.name)
            own_recall = recall_at_k(ranked, memory.units, shares=spec.top)
            recalls.append(within(own_recall, ranked).assign(method=name, sound=counts))
            doses = effort.doses if effort.every else (full,)
            if name == "random":
                every += edits.at_random(asked, doses, spec.seed + seed)
            else:
                every += edits.of_units(name, ranked, asked, doses)
        for number, dosed in enumerate(every):
            about = weigh(subject, dosed)
            with dosed.change.applied(subject):
                rows = measures.cells(subject, read, generate=dosed.asked == full or dosed.family == "known")
            told.append(_collapsed(rows, item, seed).assign(**about))
            progress(number + 1, len(every), f"edits of {item.name}")
    info = {
        **head,
        "known": sum(map(len, units.values())),
        "units": sum(weight_of(subject, p).shape[1] for p in parts(subject)),
        "same_length": same_length,
        "share": sum(map(len, units.values())) / sum(weight_of(subject, p).shape[1] for p in parts(subject)),
        "before": found.before[0],
        "after": found.after[0],
        "steps": found.steps,
        "exact": float(plain["exact"].iloc[0]),
    }
    recall = pd.concat(recalls, ignore_index=True).assign(**head)
    cells = pd.concat(told, ignore_index=True).assign(memory=memory.name, injected=share, seed=seed)
    return [pd.DataFrame([info]), recall, cells, complete.assign(memory=memory.name)]


def within(recall: pd.DataFrame, ranked: pd.DataFrame) -> pd.DataFrame:
    """Recall with NaN where more neurons are taken than have a score: what is then taken is not the method's."""
    scored = ranked[ranked["score"].notna()].groupby("part").size().to_dict()
    scored["all"] = int(ranked["score"].notna().sum())
    beyond = recall["k"] > recall["part"].map(scored).fillna(0)
    partly = recall["units"] > recall["part"].map(scored).fillna(0)
    return recall.assign(recall=recall["recall"].mask(beyond), auc=recall["auc"].mask(partly))


def _collapsed(rows: pd.DataFrame, item: TextItem, seed: int) -> pd.DataFrame:
    """One cell a group: injections are what is resampled."""
    numbers = [c for c in measures.CELL if c not in ("item", "group", "variant")]
    out = rows.groupby(["group", "variant"], sort=False)[numbers].mean().reset_index()
    return out.assign(item=f"{item.name}, seed {seed}")[measures.CELL]
