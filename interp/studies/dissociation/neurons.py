"""The neurons of single facts: cutting those of one fact, what goes of it, and of the facts beside it?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from interp.errors import NoAcceptedExample
from interp.models.sites import Component, component
from interp.studies.dissociation.losses import METRICS, Draws, Sample, over_sets, told
from interp.studies.dissociation.sets import in_turn
from interp.tasks.base import Example

if TYPE_CHECKING:
    from interp.measure.outcomes import Progress
    from interp.models.subject import CausalLM
    from interp.studies.dissociation.sets import Questions
    from interp.studies.dissociation.spec import DissociationSpec

GROUPS = ("own", "other wording", "same relation", "same subject", "other")


def holding(measured: pd.DataFrame, example: int, k: int) -> list[Component]:
    """The neurons whose loss cost a fact the most; fewer than `k` where fewer cost it anything."""
    own = measured[(measured["example"] == example) & (measured["exact"] > 0)]
    best = own.sort_values("exact", ascending=False, kind="stable")["component"][:k]
    return [component(c) for c in best]


def group_of(cut: Example, asked: Example) -> str:
    """What an asked fact is to the one whose neurons are cut."""
    subject, relation, wording = (cut.meta[k] == asked.meta[k] for k in ("subject", "relation", "template"))
    if subject and relation:
        return "own" if wording else "other wording"
    return "same relation" if relation else "same subject" if subject else "other"


def single_facts(
    subject: CausalLM,
    spec: DissociationSpec,
    asked: pd.DataFrame,
    questions: Questions,
    measured: pd.DataFrame,
    *,
    remark: Callable[[str], None],
    progress: Progress | None = None,
) -> pd.DataFrame:
    """The neurons of some fitted facts, cut at their place, and those facts and others asked.

    Args:
        asked: the table `facts`.
        measured: what single neurons cost each fitted fact, see `FactMLPs.neurons_`.

    Returns:
        one row a cut fact, set of neurons and asked fact: fact, cluster (its subject), components, condition (`cut`,
            `control`), draw, group, asked, and accuracy, nll, probability under the cut, and `clean_...` without it.

    Raises:
        NoAcceptedExample: no neuron costs any of the facts anything.
    """
    from interp.intervene.ablate import Ablate
    from interp.measure.outcomes import evaluate

    fitted = questions.of(in_turn(asked, "fit"))
    chosen = {
        i: parts for i in range(len(fitted[: spec.neuron_facts])) if (parts := holding(measured, i, spec.own))
    }
    if not chosen:
        raise NoAcceptedExample("no single neuron costs a fact anything, so none is cut for a fact")
    cuts: dict[tuple[int, str, int], Ablate] = {}
    for i, parts in chosen.items():
        sets = _controls(subject, parts, fitted[i], spec, remark)
        cuts[i, "cut", -1] = Ablate(tuple(parts), scope=("place",))
        cuts |= {(i, "control", d): Ablate(other, scope=("place",)) for d, other in enumerate(sets)}
    pool = _pool(asked, questions, [fitted[i] for i in chosen])
    names = {" ".join(map(str, key)): key for key in cuts}
    conditions = {name: cuts[key] for name, key in names.items()}
    values = evaluate(subject, pool, {"clean": None, **conditions}, progress=progress).values
    rows = []
    for name, key in names.items():
        cut = fitted[key[0]]
        frame = pd.DataFrame({"asked": range(len(pool)), "group": [group_of(cut, e) for e in pool]})
        for prefix, source in (("", name), ("clean_", "clean")):
            frame[f"{prefix}accuracy"] = values[source]["accuracy"]
            frame[f"{prefix}nll"] = values[source]["nll"]
            frame[f"{prefix}probability"] = np.exp(-values[source]["nll"])
        about = dict(zip(("fact", "condition", "draw"), key, strict=True))
        text = " ".join(map(repr, cuts[key].components))
        rows.append(frame.assign(**about, cluster=str(cut.meta["subject"]), components=text))
    return pd.concat(rows, ignore_index=True)


def _controls(
    subject: CausalLM,
    parts: Sequence[Component],
    fact: Example,
    spec: DissociationSpec,
    remark: Callable[[str], None],
) -> Sequence[tuple[Component, ...]]:
    """As many other neurons of the same layers that are as active at the fact's place."""
    from interp.errors import UsageError
    from interp.measure.mlp_controls import matched_neurons

    if not spec.controls:
        return ()
    try:
        return matched_neurons(subject, parts, spec.controls, [fact], scope="place", seed=spec.seed).sets
    except UsageError as why:
        remark(f"neurons of a fact have no controls: {why}")
        return ()


def _pool(asked: pd.DataFrame, questions: Questions, cut: Sequence[Example]) -> list[Example]:
    """Facts asked under every cut: those whose neurons are cut, in all known wordings, and others beside them."""
    mine = {(str(e.meta["relation"]), str(e.meta["subject"])) for e in cut}
    subjects = {subject for _, subject in mine}
    known = asked[asked["split"] != ""]
    own = [(r, s) in mine for r, s in zip(known["relation"], known["subject"], strict=True)]
    kin = (known["split"] == "kin") & known["subject"].isin(subjects)
    kin &= ~known.duplicated(["relation", "subject"])
    beside = in_turn(asked, "held", "other").groupby("split").head(len(cut) // 2)
    every = questions.of(pd.concat([known[own], known[kin], beside]))
    return list({e.key(): e for e in every}.values())


def summary(cells: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Losses of each group of facts, resampled over the subjects whose neurons are cut; gaps are of the same cuts.

    Args:
        cells: what `single_facts` returns.
    """
    rows: list[dict[str, Any]] = []
    for metric in METRICS:
        cut = cells[cells["condition"] == "cut"]
        for group in GROUPS:
            own = cut[cut["group"] == group]
            if own.empty:
                continue
            loss, clean, value = _loss(own, metric, seed)
            # Not every fact has one of the group beside it: the gap is of those cuts that have one.
            same = cut[(cut["group"] == "own") & cut["fact"].isin(own["fact"])]
            clusters = int(own["cluster"].nunique())
            row: dict[str, Any] = {"group": group, "metric": metric, "clean": clean, "value": value}
            gap = _loss(same, metric, seed)[0] - loss
            row |= told("loss", loss, clusters) | told("gap", gap, clusters)
            others = cells[(cells["group"] == group) & (cells["condition"] == "control")]
            drawn = [_loss(part, metric, seed)[0] for _, part in others.groupby("draw")]
            if drawn:
                row["control_mean"] = float(np.mean([d[0] for d in drawn]))
                row |= told("excess", loss - over_sets(drawn, seed, group), clusters)
            rows.append(row | {"n": len(own), "n_clusters": clusters, "n_controls": len(drawn)})
    return pd.DataFrame(rows)


def _loss(rows: pd.DataFrame, metric: str, seed: int) -> tuple[Draws, float, float]:
    """Loss over resamples of the subjects whose neurons are cut; the same ones for all groups that have them all."""
    sample = Sample.of(rows["cluster"].tolist(), "neurons", seed)
    return sample.loss(rows[f"clean_{metric}"].to_numpy(), rows[metric].to_numpy(), metric)
