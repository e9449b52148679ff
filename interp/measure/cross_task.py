"""The cross-task ablation matrix: what the circuit of each task does to every task when it is cut.

Circuits that share heads need not share a function: cutting the circuit of another task can hurt as much as cutting
the own one, and so can cutting random heads of the same layers (arXiv 2605.08348). Three things are therefore told of
every cell: the effect of the cut; what is left of it beyond random sets of as many heads (matched by layer, or of any
layer), example by example; and, for a task's own circuit, the paired difference to each other circuit, as it is and
beyond either's controls. Cells of tasks that the clean model does not do above chance tell no effect.

    found = cross_task(model, {"ioi": movers, "laundry": others}, {"ioi": ioi, "laundry": laundry})
    found.matrix, found.contrasts, found.effects
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from interp.errors import UsageError
from interp.intervene.ablate import Ablate, Mode, ablate
from interp.intervene.base import Scope
from interp.intervene.reference import Reference
from interp.measure.effects import AT_CHANCE, COLUMNS, _against, at_chance, effect_rows, floor_metric, guess
from interp.measure.metrics import METRICS
from interp.measure.outcomes import Outcomes, Progress, evaluate, shares_prefix
from interp.measure.plans import CLEAN, Condition, named_reference, with_controls
from interp.measure.stats import bootstrap_ci, fdr, sign_flip
from interp.models.sites import Component, components
from interp.models.subject import CausalLM
from interp.tasks.base import Example, Task

MECHANISM = "circuit"

Parts = str | Sequence[str | Component]
Data = Reference | Task | Sequence[Example]


@dataclass(frozen=True, eq=False)
class CrossTask:
    """A cross-task ablation matrix.

    Attributes:
        effects: one row a task, circuit, condition (clean, cut, control) and metric, as `interp.measure` tells them,
            with a column `circuit`.
        matrix: one row a task, circuit, metric and kind of control: subject, task, circuit, own (the circuit of this
            task), k (heads), mode, scope, reference, metric, clean, floor (what a guess gets: chance for `choice`, 0
            for `accuracy` and `logit_diff`), value, delta with ci_lo and ci_hi, lost (share of what the clean model
            has above the floor), p_cluster; control, control_mean and control_sd (of the draws' deltas), z, rank (1: it
            hurts more than every draw), n_controls, p_control (for 200 draws or more); excess (delta beyond the mean
            control, paired) with excess_lo, excess_hi and p_excess; q (of p_excess, over the cells of a metric and kind
            of control; of p_cluster where there are no controls); n, n_clusters, status.
        contrasts: one row a task that has a circuit, other circuit and metric: own_delta, other_delta, difference (own
            less other; below 0 where the own circuit does more) with ci_lo, ci_hi and p (signs flipped cluster by
            cluster), q (over all contrasts of a metric); and the same beyond each circuit's own controls: control,
            excess_difference, excess_lo, excess_hi, p_excess, q_excess.
    """

    effects: pd.DataFrame
    matrix: pd.DataFrame
    contrasts: pd.DataFrame


def cross_task(
    subject: CausalLM,
    circuits: Mapping[str, Parts],
    tasks: Mapping[str, Task],
    *,
    mode: Mode = "mean",
    scope: str | Sequence[str | int] = "all",
    reference: Data | Mapping[str, Data] | None = None,
    controls: int | None = None,
    match: str | Sequence[str] = "layer",
    metrics: Sequence[str] = ("choice", "accuracy", "logit_diff"),
    seed: int = 0,
    progress: Progress | None = None,
) -> CrossTask:
    """Cut each circuit on each task, beside random heads.

    Args:
        circuits: heads by name; the circuit that has a task's name is its own.
        tasks: by name.
        mode, scope: of the cuts, see `ablate`.
        reference: what `mean`, `mean_query` and `resample` take their values from: data for all tasks, or by task;
            default the measured task itself.
        controls: random sets of each kind and circuit; default 20 where they share a prefill (scope `answer`), else 5.
            They are the same heads on every task.
        match: kinds of control, see `interp.measure.controls`: `layer`, `size` or both.
        metrics: of `METRICS`; those that a task does not define are left out there.

    Raises:
        UsageError: no circuit or task, a circuit without heads, an unknown metric, or a head that does not exist.
    """
    found = []
    for number, (name, task) in enumerate(tasks.items()):

        def report(done: int, total: int, what: str, number: int = number, name: str = name) -> None:
            if progress:
                progress(number * total + done, len(tasks) * total, f"{name}: {what}")

        found.append(
            cut_on(
                subject,
                circuits,
                name,
                task,
                mode=mode,
                scope=scope,
                reference=reference,
                controls=controls,
                match=match,
                metrics=metrics,
                seed=seed,
                progress=report,
            )
        )
    if not found:
        raise UsageError("cross_task: there is no task; give tasks={'ioi': interp.task('ioi')}")
    return gathered(found)


def cut_on(
    subject: CausalLM,
    circuits: Mapping[str, Parts],
    name: str,
    task: Task,
    *,
    mode: Mode = "mean",
    scope: str | Sequence[str | int] = "all",
    reference: Data | Mapping[str, Data] | None = None,
    controls: int | None = None,
    match: str | Sequence[str] = "layer",
    metrics: Sequence[str] = ("choice", "accuracy", "logit_diff"),
    seed: int = 0,
    progress: Progress | None = None,
) -> CrossTask:
    """One row of the matrix: every circuit cut on one task; the arguments and errors of `cross_task`.

    All cuts and controls run beside one intact run. `q` is told over the rows of this task; `gathered` tells it anew.
    """
    if unknown := [m for m in metrics if m not in METRICS]:
        raise UsageError(f"unknown metric '{unknown[0]}'; metrics are {', '.join(METRICS)}")
    if not circuits:
        raise UsageError("cross_task: there is no circuit; give circuits={'ioi': heads}")
    data = reference.get(name) if isinstance(reference, Mapping) else reference
    default = data if isinstance(data, Reference) else Reference(task if data is None else data)
    kinds = (match,) if isinstance(match, str) else tuple(match)
    plans: dict[str, list[Condition]] = {}
    for circuit, parts in circuits.items():
        cut = _cut(subject, circuit, parts, mode, scope, seed)
        draws = controls if controls is not None else 20 if shares_prefix(cut) else 5
        plan = with_controls(subject, cut, controls=draws, match=kinds, data=default, seed=seed)
        plans[circuit] = [named_reference(c, default) for c in plan]
    clean = Condition(None, "clean")
    conditions = {c.name: c.intervention for plan in ([clean], *plans.values()) for c in plan}
    outcomes = evaluate(subject, task.examples(subject), conditions, progress=progress)
    judged = floor_metric(outcomes, metrics)
    status = AT_CHANCE if judged and at_chance(outcomes) else "ok"

    labels: dict[str, Any] = {"subject": subject.name, "task": name, "role": "target", "seed": seed}
    labels |= {"mechanism": MECHANISM, "locator": "given"}
    rows = [{**row, "circuit": ""} for row in effect_rows(outcomes, clean, metrics, status, seed)]
    cells, against = [], []
    for circuit, plan in plans.items():
        rows += [
            {**row, "circuit": circuit}
            for c in plan
            for row in effect_rows(outcomes, c, metrics, status, seed)
        ]
    effects = pd.DataFrame(rows).assign(**labels)[["circuit", *COLUMNS]]
    told = [m for m in metrics if not np.isnan(outcomes.values[CLEAN][m]).all()]
    for metric in told:
        parts_of = {c: _Told.of(outcomes, plan, metric) for c, plan in plans.items()}
        for circuit, found in parts_of.items():
            about: dict[str, Any] = {
                "subject": subject.name,
                "task": name,
                "circuit": circuit,
                "own": circuit == name,
            }
            cells += [about | cell for cell in _cells(found, outcomes, plans[circuit][0], status, seed)]
        if name in parts_of:
            for circuit, other in parts_of.items():
                if circuit != name:
                    about = {"subject": subject.name, "task": name, "other": circuit, "metric": metric}
                    against += [
                        about | row for row in _contrast(parts_of[name], other, outcomes, status, seed)
                    ]
    return _with_q(CrossTask(effects, pd.DataFrame(cells), pd.DataFrame(against)))


def gathered(rows: Sequence[CrossTask]) -> CrossTask:
    """One matrix of the rows of several tasks, its `q` over all of them."""
    frames = (
        pd.concat([f for row in rows if len(f := getattr(row, name))] or [pd.DataFrame()], ignore_index=True)
        for name in ("effects", "matrix", "contrasts")
    )
    return _with_q(CrossTask(*frames))


def _with_q(found: CrossTask) -> CrossTask:
    """False discovery rates: over the cells of a metric and kind of control, and over the contrasts of a metric."""
    matrix = found.matrix.assign(judged=found.matrix["p_excess"].fillna(found.matrix["p_cluster"]))
    matrix = fdr(matrix, "judged", within=("metric", "control")).drop(columns="judged")
    contrasts = found.contrasts
    if len(contrasts):
        # A contrast has a row for each kind of control, with the same plain difference.
        contrasts = fdr(contrasts, "p", within=("metric", "control"))
        excess = fdr(contrasts.drop(columns="q"), "p_excess", within=("metric", "control"))
        contrasts = contrasts.assign(q_excess=excess["q"])
    return CrossTask(found.effects, matrix, contrasts)


def _cut(
    subject: CausalLM, circuit: str, parts: Parts, mode: Mode, scope: str | Sequence[str | int], seed: int
) -> Ablate:
    heads = components(parts)
    if not heads:
        raise UsageError(f"cross_task: circuit '{circuit}' has no heads")
    for head in heads:
        subject.check(head)
    where: Scope = scope if isinstance(scope, str) else tuple(scope)
    return ablate(heads, mode, where, seed=seed)


@dataclass(frozen=True)
class _Told:
    """What a cut did to each example, in one metric.

    Attributes:
        delta: of the cut.
        drawn: of each control set, by kind.
    """

    metric: str
    delta: np.ndarray
    drawn: dict[str, np.ndarray]

    @classmethod
    def of(cls, outcomes: Outcomes, plan: Sequence[Condition], metric: str) -> _Told:
        clean = outcomes.values[CLEAN][metric]
        drawn: dict[str, list[np.ndarray]] = {}
        for c in plan[1:]:
            drawn.setdefault(c.control, []).append(outcomes.values[c.name][metric] - clean)
        first = outcomes.values[plan[0].name][metric] - clean
        return cls(metric, first, {kind: np.stack(found) for kind, found in drawn.items()})

    def excess(self, kind: str) -> np.ndarray:
        """The delta of each example beyond that of the mean control; NaN without controls."""
        return (
            self.delta - self.drawn[kind].mean(0) if kind in self.drawn else np.full_like(self.delta, np.nan)
        )


def _cells(found: _Told, outcomes: Outcomes, c: Condition, status: str, seed: int) -> list[dict[str, Any]]:
    """The cells of a circuit and metric, one a kind of control."""
    metric, cut, clusters = found.metric, c.intervention, outcomes.clusters
    assert cut is not None
    clean = float(np.nanmean(outcomes.values[CLEAN][metric]))
    floor = _floor(outcomes, metric)
    ok = status == "ok"
    delta, low, high, p = _tested(found.delta, clusters, seed, ok)
    about = {
        "k": c.k,
        "mode": cut.mode,
        "scope": cut.describe()["scope"],
        "reference": cut.reference_name,
        "metric": metric,
        "clean": clean,
        "floor": floor,
        "value": float(np.nanmean(outcomes.values[c.name][metric])),
        "delta": delta,
        "ci_lo": low,
        "ci_hi": high,
        "lost": -delta / (clean - floor) if clean > floor else np.nan,
        "p_cluster": p,
    }
    out = []
    for kind in found.drawn or ("",):
        means = np.nanmean(found.drawn[kind], axis=1) if ok and kind else np.array([])
        excess = dict(zip(("excess", "excess_lo", "excess_hi", "p_excess"),
                          _tested(found.excess(kind), clusters, seed, ok), strict=True))  # fmt: skip
        against = _against(pd.Series({"metric": metric, "delta": delta}), means)
        rest = {"n": int((~np.isnan(found.delta)).sum()), "n_clusters": len(set(clusters)), "status": status}
        out.append({**about, "control": kind, **against, **excess, **rest})
    return out


def _contrast(own: _Told, other: _Told, outcomes: Outcomes, status: str, seed: int) -> list[dict[str, Any]]:
    """Own circuit against another on one task and metric, one row a kind of control."""
    clusters, ok = outcomes.clusters, status == "ok"
    difference, low, high, p = _tested(own.delta - other.delta, clusters, seed, ok)
    about = {
        "own_delta": float(np.nanmean(own.delta)) if ok else np.nan,
        "other_delta": float(np.nanmean(other.delta)) if ok else np.nan,
        "difference": difference,
        "ci_lo": low,
        "ci_hi": high,
        "p": p,
    }
    names = ("excess_difference", "excess_lo", "excess_hi", "p_excess")
    out = []
    for kind in own.drawn or ("",):
        told = _tested(own.excess(kind) - other.excess(kind), clusters, seed, ok)
        out.append({**about, "control": kind, **dict(zip(names, told, strict=True)), "status": status})
    return out


def _tested(
    values: np.ndarray, clusters: np.ndarray, seed: int, ok: bool
) -> tuple[float, float, float, float]:
    """Mean, its interval over clusters, and the p-value of signs flipped cluster by cluster."""
    if not ok or np.isnan(values).all():
        return (np.nan,) * 4
    low, high = bootstrap_ci(values, clusters, seed=seed)
    return float(np.nanmean(values)), low, high, sign_flip(values, clusters, seed=seed)


def _floor(outcomes: Outcomes, metric: str) -> float:
    """What a guess gets: chance is that of a guess among candidates, and no guess from the vocabulary is right."""
    if metric == "choice":
        return guess(outcomes.examples, metric)
    return 0.0 if metric in ("accuracy", "logit_diff") else float("nan")
