"""The effect of an intervention: paired, with matched controls, intervals over clusters, and the off-target cost.

`measure` is the one call; it returns a tidy frame with one row a condition, task and metric. Columns:
subject, task, role (target, control_task, off_target), mechanism, locator, condition (clean, cut, control), draw, k,
components, mode, scope, reference, metric, value, delta (to clean), ci_lo and ci_hi (95 %; of the delta, for clean rows
of the value), p (exact McNemar against clean, accuracy only; it takes examples as independent, so where clusters hold
several the interval is the safer guide), n, n_clusters, n_distinct (control sets), seed, status.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pandas as pd

from interp.errors import AtChance, UsageError
from interp.intervene.ablate import Ablate
from interp.intervene.reference import Reference
from interp.measure.controls import matched_heads
from interp.measure.metrics import METRICS
from interp.measure.outcomes import Outcomes, Progress, evaluate, shares_prefix
from interp.measure.stats import bootstrap_ci, mcnemar, proportion_ci
from interp.models.sites import Component
from interp.models.subject import CausalLM
from interp.tasks.base import Task

Role = Literal["target", "control_task", "off_target"]
AT_CHANCE = "at chance"
CLEAN = "clean"


@dataclass(frozen=True)
class Condition:
    """One row of the plan: an intervention with what rows say about it."""

    intervention: Ablate | None
    condition: Literal["clean", "cut", "control"]
    k: int = 0
    draw: int = -1
    n_distinct: int = 0

    @property
    def name(self) -> str:
        """Unique among the conditions of a measurement."""
        if self.intervention is None:
            return CLEAN
        draw = f" draw {self.draw}" if self.draw >= 0 else ""
        return f"{self.condition} of {self.k}{draw} {self.intervention.key()}"


def with_controls(
    subject: CausalLM,
    cut: Ablate,
    *,
    controls: int,
    seed: int = 0,
    avoid: Sequence[Component] = (),
) -> list[Condition]:
    """A cut and its matched control draws."""
    k = len(cut.components)
    plan = [Condition(cut, "cut", k)]
    if controls:
        sets = matched_heads(subject, cut.components, controls, seed=seed, avoid=avoid)
        plan += [
            Condition(cut.with_components(s), "control", k, draw, len(sets)) for draw, s in enumerate(sets)
        ]
    return plan


def dose(
    subject: CausalLM,
    ranked: Sequence[Component],
    sizes: Sequence[int],
    cut: Ablate,
    *,
    controls: int,
    seed: int = 0,
) -> list[Condition]:
    """Cuts of the first k of a ranking, for each k, each with controls that avoid the whole ranking in use."""
    longest = list(ranked[: max(sizes)])
    plan: list[Condition] = []
    for k in sizes:
        if k > len(ranked):
            raise UsageError(f"a dose of {k} components was asked for, but only {len(ranked)} are ranked")
        # Small doses leave room to avoid every ranked head; large ones must draw from what is left.
        plan += with_controls(
            subject, cut.with_components(longest[:k]), controls=controls, seed=seed + k, avoid=longest
        )
    return plan


def measure(
    subject: CausalLM,
    task: Task,
    intervention: Ablate | Sequence[Condition],
    *,
    controls: int | None = None,
    metrics: Iterable[str] = METRICS[:4],
    off_target: Sequence[Task] | None = None,
    role: Role = "target",
    mechanism: str = "",
    locator: str = "",
    seed: int = 0,
    floor: Literal["raise", "mark"] = "raise",
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Measure what a cut does to a task, beside matched controls and the cost off target.

    Args:
        intervention: a cut, or a plan of conditions (see `dose`); the intact model is always measured with them.
        controls: matched control draws; default 20 where they share a prefill (scope `answer`), else 5.
        metrics: of `METRICS`; off-target prose is measured in `nll`.
        off_target: tasks that should not move; default natural prose, unless the cut's scope or reference needs span
            roles or twins, which prose has not. Pass `()` for none.
        role: role of `task` in the rows.
        floor: what to do where the clean model is at chance: `raise`, or `mark` the rows and report no delta.
        progress: told about forward work done.

    Returns:
        one row a condition, task and metric; see the module's docstring.

    Raises:
        AtChance: the interval of the clean accuracy includes chance (the floor rule).
        UsageError: an unknown metric; a component that does not exist.
    """
    chosen = tuple(metrics)
    if unknown := set(chosen) - set(METRICS):
        raise UsageError(f"unknown metric '{sorted(unknown)[0]}'; metrics are {', '.join(METRICS)}")
    if isinstance(intervention, Ablate):
        for part in intervention.components:
            subject.check(part)
        draws = controls if controls is not None else 20 if shares_prefix(intervention) else 5
        conditions = with_controls(subject, intervention, controls=draws, seed=seed)
    else:
        conditions = list(intervention)
    default = Reference(task)
    conditions = [_named_reference(c, default) for c in conditions]
    labels = {"subject": subject.name, "mechanism": mechanism, "locator": locator, "seed": seed}
    frames = [
        _measure_one(
            subject, task, conditions, {**labels, "role": role}, chosen, floor=floor, progress=progress
        )
    ]
    for other in _off_target(subject, conditions, off_target):
        only = ("nll",) if not any(e.candidates for e in other.examples(subject)) else chosen
        frames.append(
            _measure_one(
                subject,
                other,
                conditions,
                {**labels, "role": "off_target"},
                only,
                floor="mark",
                progress=progress,
            )
        )
    return pd.concat(frames, ignore_index=True)


def _off_target(
    subject: CausalLM, conditions: Sequence[Condition], given: Sequence[Task] | None
) -> Sequence[Task]:
    """The tasks that should not move; prose by default, where cuts that lean on span roles or twins mean nothing."""
    if given is not None:
        return given
    cuts = [c.intervention for c in conditions if c.intervention is not None]
    roles = any(cut.scope not in ("all", "answer") for cut in cuts)
    pools = {cut.reference.pool for cut in cuts if cut.reference is not None}
    if roles or pools - {"pooled"} or not subject.has_tokens:
        return ()
    from interp.tasks.registry import task

    return [task("prose", n=16, seed=0)]


def _named_reference(condition: Condition, default: Reference) -> Condition:
    cut = condition.intervention
    if cut is None or not cut.needs_reference:
        return condition
    return replace(condition, intervention=cut.with_reference(default))


def _measure_one(
    subject: CausalLM,
    task: Task,
    conditions: Sequence[Condition],
    labels: Mapping[str, Any],
    metrics: Sequence[str],
    *,
    floor: str,
    progress: Progress | None,
) -> pd.DataFrame:
    plan = [Condition(None, "clean"), *conditions]
    examples = task.examples(subject)
    outcomes = evaluate(subject, examples, {c.name: c.intervention for c in plan}, progress=progress)
    status = "ok"
    if "accuracy" in metrics and at_chance(outcomes):
        status = AT_CHANCE
        if floor == "raise":
            clean = outcomes.values[CLEAN]["accuracy"]
            low, high = proportion_ci(clean, outcomes.clusters)
            raise AtChance(
                f"{subject.name} is at chance on {task!r}: accuracy {clean.mean():.2f} [{low:.2f}, {high:.2f}], chance "
                f"{_chance(outcomes):.2f}; no effect is reported. Take an easier task, or one this model can do"
            )
    rows = [row for c in plan for row in _rows(outcomes, c, metrics, status, int(labels["seed"]))]
    frame = pd.DataFrame(rows)
    for name, value in {**labels, "task": task.name}.items():
        frame[name] = value
    return frame[COLUMNS]


COLUMNS = [
    *[
        "subject",
        "task",
        "role",
        "mechanism",
        "locator",
        "condition",
        "draw",
        "k",
        "components",
        "mode",
        "scope",
    ],
    *[
        "reference",
        "metric",
        "value",
        "delta",
        "ci_lo",
        "ci_hi",
        "p",
        "n",
        "n_clusters",
        "n_distinct",
        "seed",
    ],
    "status",
]


def _chance(outcomes: Outcomes) -> float:
    return float(np.mean([e.chance for e in outcomes.examples]))


def at_chance(outcomes: Outcomes) -> bool:
    """The floor rule: the interval of the clean accuracy does not lie above chance."""
    low, _ = proportion_ci(outcomes.values[CLEAN]["accuracy"], outcomes.clusters)
    return not low > _chance(outcomes)


def _rows(
    outcomes: Outcomes, c: Condition, metrics: Sequence[str], status: str, seed: int
) -> list[dict[str, Any]]:
    cut = c.intervention
    clusters = outcomes.clusters
    out = []
    for metric in metrics:
        value = outcomes.values[c.name][metric]
        clean = outcomes.values[CLEAN][metric]
        if np.isnan(value).all():
            continue  # the task defines no such metric (no foil, no candidates)
        delta = value - clean
        if cut is None:
            low, high = (
                proportion_ci(value, clusters)
                if metric == "accuracy"
                else bootstrap_ci(value, clusters, seed=seed)
            )
        else:
            low, high = bootstrap_ci(delta, clusters, seed=seed)
        told = status == "ok" or cut is None
        out.append(
            {
                "condition": c.condition,
                "draw": c.draw,
                "k": c.k,
                "components": " ".join(map(repr, cut.components)) if cut else "",
                "mode": cut.mode if cut else "",
                "scope": cut.describe()["scope"] if cut else "",
                "reference": cut.reference_name if cut else "",
                "metric": metric,
                "value": float(np.nanmean(value)),
                "delta": float(np.nanmean(delta)) if told else np.nan,
                "ci_lo": low if told else np.nan,
                "ci_hi": high if told else np.nan,
                "p": mcnemar(clean, value) if cut and told and metric == "accuracy" else np.nan,
                "n": int((~np.isnan(value)).sum()),
                "n_clusters": len(set(clusters)),
                "n_distinct": c.n_distinct,
                "status": status,
            }
        )
    return out


def contrast(effects: pd.DataFrame) -> pd.DataFrame:
    """Each cut against its own controls: z of its delta among the control deltas, and its rank.

    Returns:
        one row a cut: the effect's columns, `control_mean`, `control_sd`, `z` (NaN with fewer than two draws or no
        spread), `rank` (1: the cut moved the metric further down than every control; up, for `nll` and `rank`) and
        `n_controls`. With few draws z and rank are what can be said; no p-value is made of them.
    """
    by = [
        "subject",
        "task",
        "role",
        "mechanism",
        "locator",
        "k",
        "mode",
        "scope",
        "reference",
        "seed",
        "metric",
    ]
    controls = effects[effects.condition == "control"].groupby(by, sort=False)["delta"]
    cuts = effects[effects.condition == "cut"]
    if cuts.duplicated(by).any():
        twice = cuts[cuts.duplicated(by)].iloc[0]
        raise UsageError(
            f"two cuts of {twice['k']} components share their controls' labels ({twice['components']} is one); "
            "contrast each measurement by itself"
        )
    rows = []
    for _, cut in cuts.iterrows():
        key = tuple(cut[c] for c in by)
        drawn = controls.get_group(key).dropna().to_numpy() if key in controls.groups else np.array([])
        sign = -1.0 if cut["metric"] in ("nll", "rank") else 1.0
        sd = float(drawn.std(ddof=1)) if len(drawn) > 1 else np.nan
        mean = float(drawn.mean()) if len(drawn) else np.nan
        rows.append(
            {
                **cut.to_dict(),
                "control_mean": mean,
                "control_sd": sd,
                "z": (cut["delta"] - mean) / sd if sd and sd > 0 else np.nan,
                "rank": 1 + int((sign * drawn <= sign * cut["delta"]).sum()) if len(drawn) else np.nan,
                "n_controls": len(drawn),
            }
        )
    return pd.DataFrame(rows)
