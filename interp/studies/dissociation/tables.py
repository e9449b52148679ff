"""What the cells of a study say: effects of cuts, and whether facts and contexts come apart."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from interp.measure.effects import AT_CHANCE
from interp.measure.plans import CLEAN
from interp.measure.stats import sign_flip
from interp.studies.dissociation.cuts import CUT
from interp.studies.dissociation.losses import METRICS, Draws, Sample, above, over_sets, told
from interp.studies.dissociation.sets import CONTEXT, FACTS, OFF

HEADS = "retrieval heads"
HOLDS, FACTS_ONLY, CONTEXT_ONLY, NEITHER = "holds", "facts only", "context only", "does not hold"
NOT_JUDGED = "not judged"
Name = tuple[str, str, str, int]


@dataclass(frozen=True, eq=False)
class Measured:
    """The cells of one task, as losses over its resamples."""

    task: str
    cells: pd.DataFrame
    seed: int

    @classmethod
    def tasks(cls, cells: pd.DataFrame, seed: int) -> dict[str, Measured]:
        """By name of the task."""
        return {str(task): cls(str(task), own, seed) for task, own in cells.groupby("task", sort=False)}

    @cached_property
    def status(self) -> str:
        """`ok`, or `at chance`."""
        return str(self.cells["status"].iloc[0])

    @cached_property
    def _by_name(self) -> dict[Name, pd.DataFrame]:
        groups = self.cells.groupby(CUT, sort=False)
        return {name: own.sort_values("example") for name, own in groups}

    @cached_property
    def names(self) -> list[Name]:
        """Every cut and control."""
        return [name for name in self._by_name if name[2] != CLEAN]

    @cached_property
    def clean(self) -> pd.DataFrame:
        """The intact model's cells."""
        return self._by_name["", "", CLEAN, -1]

    @cached_property
    def n_clusters(self) -> int:
        """Clusters of its examples."""
        return int(self.clean["cluster"].nunique())

    @cached_property
    def sample(self) -> Sample:
        """Its resamples, the same ones for all cuts."""
        return Sample.of(self.clean["cluster"].tolist(), self.task, self.seed)

    def has(self, metric: str) -> bool:
        """Whether the task has the metric."""
        return not bool(self.clean[metric].isna().all())

    def loss(self, name: Name, metric: str) -> tuple[Draws, float, float]:
        """Losses over the resamples, and the means, intact and cut; no loss is told at chance."""
        own = self._by_name[name]
        out = self.sample.loss(self.clean[metric].to_numpy(), own[metric].to_numpy(), metric)
        return (out[0] if self.status != AT_CHANCE else np.full_like(out[0], np.nan)), out[1], out[2]

    def controls(self, mechanism: str, scope: str) -> list[Name]:
        """The controls of a cut."""
        return [n for n in self.names if n[:3] == (mechanism, scope, "control")]

    def p(self, name: Name, metric: str) -> float:
        """Signs of the differences flipped cluster by cluster."""
        if self.status == AT_CHANCE:
            return float("nan")
        delta = self._by_name[name][metric].to_numpy() - self.clean[metric].to_numpy()
        return sign_flip(delta, self.clean["cluster"].to_numpy(), seed=self.seed)

    def about(self) -> dict[str, Any]:
        """What every row of the task says."""
        return {"n": len(self.clean), "n_clusters": self.n_clusters, "status": self.status}


def effects(cells: pd.DataFrame, cuts: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Every cut and control on every task, see `interp.studies.dissociation.study`."""
    plan = cuts.set_index(CUT)
    rows = []
    for task, measured in Measured.tasks(cells, seed).items():
        role = "target" if task in FACTS else "off_target" if task == "prose" else "control_task"
        for metric in filter(measured.has, METRICS):
            value = float(measured.clean[metric].mean())
            label: dict[str, Any] = {"task": task, "role": role, "metric": metric}
            row = {"condition": CLEAN, "draw": -1, "clean": value, "value": value}
            rows.append(label | {"mechanism": "", "scope": ""} | row | measured.about())
            for name in measured.names:
                about = dict(zip(CUT, name, strict=True)) | plan.loc[name].to_dict()
                rows.append(label | about | _effect(measured, name, metric))
    return pd.DataFrame(rows)


def _effect(measured: Measured, name: Name, metric: str) -> dict[str, Any]:
    loss, clean, value = measured.loss(name, metric)
    row: dict[str, Any] = {"clean": clean, "value": value, **told("loss", loss, measured.n_clusters)}
    row |= {"p_cluster": measured.p(name, metric), **measured.about()}
    drawn = [measured.loss(c, metric)[0] for c in measured.controls(name[0], name[1])]
    if name[2] != "cut" or not drawn:
        return row
    means = np.array([d[0] for d in drawn])
    row |= {"control_mean": means.mean(), "control_sd": means.std(ddof=1) if len(means) > 1 else np.nan}
    row |= {"rank": 1 + int((means >= loss[0]).sum()), "n_controls": len(means)}
    beyond = loss - over_sets(drawn, measured.seed, *name[:2])
    return row | told("excess", beyond, measured.n_clusters)


def dissociation(cells: pd.DataFrame, heads_scope: str, primary: str, seed: int) -> pd.DataFrame:
    """Facts against contexts, fact MLPs against retrieval heads, see `interp.studies.dissociation.study`.

    Args:
        heads_scope: scope of the cut of heads.
        primary: the mechanism whose row was named before.
    """
    tasks = Measured.tasks(cells, seed)
    rows = []
    for fact in [t for t in FACTS if t in tasks]:
        for context in [t for t in CONTEXT if t in tasks]:
            for mechanism, scope in _fact_cuts(tasks[fact]):
                for metric in METRICS:
                    sides = _Sides(tasks[fact], tasks[context], metric)
                    label = {"mechanism": mechanism, "scope": scope, "fact_task": fact}
                    label |= {"context_task": context, "metric": metric}
                    row = sides.row((mechanism, scope), (HEADS, heads_scope))
                    main = (mechanism, scope, fact, context, metric)
                    first = main == (primary, "content", "held", "needle", "probability")
                    rows.append(label | row | {"primary": first})
    return pd.DataFrame(rows)


def _fact_cuts(measured: Measured) -> Iterator[tuple[str, str]]:
    yield from dict.fromkeys((n[0], n[1]) for n in measured.names if n[0] != HEADS)


@dataclass(frozen=True, eq=False)
class _Sides:
    """A task of facts and one whose answer stands in the context."""

    fact: Measured
    context: Measured
    metric: str

    def row(self, mlp: tuple[str, str], heads: tuple[str, str]) -> dict[str, Any]:
        """Losses, gaps, the gaps beyond controls, the interaction, and the verdict."""
        clusters = min(self.fact.n_clusters, self.context.n_clusters)
        out: dict[str, Any] = {"heads_scope": heads[1]}
        gaps = []
        blank = np.full_like(self.fact.loss((*mlp, "cut", -1), self.metric)[0], np.nan)
        for side, name, sign in (("mlp", mlp, 1.0), ("heads", heads, -1.0)):
            at = (*name, "cut", -1)
            there = at in self.fact.names  # a model that recalls no needle has no heads to cut
            for kind, measured in (("fact", self.fact), ("context", self.context)):
                loss = measured.loss(at, self.metric)[0] if there else blank
                out |= told(f"{side}_{kind}", loss, measured.n_clusters)
            gap = sign * self._gap(at) if there else blank
            drawn = [sign * self._gap(c) for c in self.fact.controls(*name)]
            beyond = gap - over_sets(drawn, self.fact.seed, *name) if drawn else blank
            out |= told(f"{side}_gap", gap, clusters) | told(f"{side}_beyond", beyond, clusters)
            gaps.append(gap)
        out |= told("interaction", gaps[0] + gaps[1], clusters)
        return out | {"verdict": self._verdict(out)}

    def _gap(self, name: Name) -> Draws:
        return self.fact.loss(name, self.metric)[0] - self.context.loss(name, self.metric)[0]

    def _verdict(self, row: Mapping[str, Any]) -> str:
        if AT_CHANCE in (self.fact.status, self.context.status):
            return AT_CHANCE
        if np.isnan(row["heads_gap"]):
            return "no heads"
        if np.isnan(row["mlp_beyond"]) or np.isnan(row["heads_beyond"]):
            return "no controls"
        mlp, heads = (above(row, f"{s}_gap") and above(row, f"{s}_beyond") for s in ("mlp", "heads"))
        return HOLDS if mlp and heads else FACTS_ONLY if mlp else CONTEXT_ONLY if heads else NEITHER


# -- single layers ---------------------------------------------------------------------------------------------------


def profile(cells: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Every layer cut alone on every task, see `interp.studies.dissociation.study`."""
    rows = []
    for task, measured in Measured.tasks(cells, seed).items():
        for name in measured.names:
            for metric in filter(measured.has, METRICS):
                loss, clean, value = measured.loss(name, metric)
                row = {"layer": int(name[0][1:]), "scope": name[1], "task": task, "metric": metric}
                row |= {"clean": clean, "value": value, **told("loss", loss, measured.n_clusters)}
                rows.append(row | measured.about())
    return pd.DataFrame(rows)


def vital(cells: pd.DataFrame, layers: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Does each layer cost facts more than all else? See `interp.studies.dissociation.study`.

    What is the facts' own (the loss of facts beyond twice that of another task: most of it is not general damage) is
    taken against each of the other tasks; a layer passes where all are above zero, which needs no correction for their
    number (an intersection-union test), and the row tells the task whose interval begins lowest. Only a layer that was
    held against all of `OFF` is judged.
    """
    tasks = Measured.tasks(cells, seed)
    known = layers.set_index("layer")[["aie", "aie_lo", "aie_hi", "score", "rank", "chosen"]]
    rows: list[dict[str, Any]] = []
    if "held" not in tasks:
        return pd.DataFrame(rows)
    held = tasks["held"]
    for name in held.names:
        for metric in METRICS:
            others = [tasks[t] for t in OFF if t in tasks and tasks[t].has(metric)]
            others = [o for o in others if name in o.names and o.status != AT_CHANCE]
            if not others:
                continue  # of the scope or metric there is nothing to hold it against
            layer = int(name[0][1:])
            row: dict[str, Any] = {"layer": layer, "scope": name[1], "metric": metric}
            row |= known.loc[layer].to_dict()
            rows.append(row | _against(held, others, name, metric, row) | _other(tasks, name, metric))
    return pd.DataFrame(rows)


def _other(tasks: Mapping[str, Measured], name: Name, metric: str) -> dict[str, float]:
    there = "other" in tasks and name in tasks["other"].names
    return {"other_loss": float(tasks["other"].loss(name, metric)[0][0]) if there else float("nan")}


def _against(
    held: Measured, others: Sequence[Measured], name: Name, metric: str, layer: Mapping[str, Any]
) -> dict[str, Any]:
    fact = held.loss(name, metric)[0]
    found = []
    for other in others:
        off = other.loss(name, metric)[0]
        clusters = min(held.n_clusters, other.n_clusters)
        row: dict[str, Any] = {"off_task": other.task, **told("off", off, other.n_clusters)}
        row |= told("gap", fact - off, clusters)
        found.append(row | told("own", fact - 2 * np.maximum(off, 0), clusters))
    least = min(found, key=lambda row: (row["own_lo"], row["own"]))
    least["off_loss"] = least.pop("off")
    least["judged"] = " ".join(o.task for o in others)
    judged = held.status != AT_CHANCE and {o.task for o in others} == set(OFF)
    passes = judged and all(above(row, "own") for row in found) and bool(layer["aie_lo"] > 0)
    hurt = any(above(row, "off") for row in found)
    fact_row = told("fact", fact, held.n_clusters)
    fact_row["fact_loss"] = fact_row.pop("fact")
    verdict = NOT_JUDGED if not judged else "store" if passes else "general" if hurt else "none"
    return {**fact_row, **least, "passes": passes, "verdict": verdict}


def sink(cells: pd.DataFrame, seed: int) -> pd.DataFrame:
    """What each layer does at the first token: the loss under a cut of all tokens less that of all but it."""
    rows = []
    for task, measured in Measured.tasks(cells, seed).items():
        for name in measured.names:
            other = (name[0], "content", *name[2:])
            if name[1] != "all" or other not in measured.names:
                continue
            for metric in filter(measured.has, METRICS):
                whole, content = (measured.loss(n, metric)[0] for n in (name, other))
                row = {"layer": int(name[0][1:]), "task": task, "metric": metric}
                row |= {"loss_all": float(whole[0]), "loss_content": float(content[0])}
                rows.append(row | told("first", whole - content, measured.n_clusters))
    return pd.DataFrame(rows)
