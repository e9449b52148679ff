"""The effect of an intervention: paired, with matched controls, intervals over clusters, and the off-target cost.

`measure` is the one call; it returns a tidy frame with one row a condition, task and metric. Columns:
subject, task, role (target, control_task, off_target), mechanism, locator; condition (clean, cut, control, and of
sufficient sets keep, keep_control), control (its kind: layer, size, ...), draw, k (components cut, or heads kept),
components (what is cut), kept (what is kept), mode, scope, keys, reference; metric, value, delta (to
clean), ci_lo and ci_hi (95 %; of the delta, for clean rows of the value); p (exact McNemar against clean, accuracy
and choice only; it takes examples as independent) and p_cluster (signs flipped cluster by cluster, any metric: the one
to report where clusters hold several examples); n, n_clusters, n_distinct (control sets of the kind), match_gap (mean
distance of a control's heads from the chosen ones in what it is matched on), seed, status.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from interp.errors import AtChance, UsageError
from interp.intervene.reference import Reference
from interp.measure.metrics import BINARY, METRICS, guess_of
from interp.measure.outcomes import Outcomes, Progress, evaluate, shares_prefix
from interp.measure.plans import CLEAN, Condition, Cut, dose, named_reference, sufficient, with_controls
from interp.measure.stats import bootstrap_ci, mcnemar, proportion_ci, sign_flip
from interp.models.subject import CausalLM
from interp.tasks.base import Example, Task

Role = Literal["target", "control_task", "off_target"]
AT_CHANCE = "at chance"
DRAWS_FOR_P = 200
"""Control draws from which on a p-value is made of them."""

__all__ = [
    "AT_CHANCE",
    "COLUMNS",
    "Condition",
    "Measured",
    "Role",
    "at_chance",
    "contrast",
    "dose",
    "measure",
]
__all__ += ["sufficient", "with_controls"]


@dataclass(frozen=True)
class Measured:
    """What lies behind the rows of one task: each example's metrics, and the plan with its references named."""

    outcomes: Outcomes
    plan: tuple[Condition, ...]
    status: str


def measure(
    subject: CausalLM,
    task: Task,
    intervention: Cut | Sequence[Condition],
    *,
    controls: int | None = None,
    match: str | Sequence[str] = "layer",
    ranking: Any = None,
    given: Any = None,
    metrics: Iterable[str] = METRICS[:4],
    off_target: Sequence[Task] | None = None,
    role: Role = "target",
    mechanism: str = "",
    locator: str = "",
    seed: int = 0,
    floor: Literal["raise", "mark"] = "raise",
    progress: Progress | None = None,
    into: dict[str, Measured] | None = None,
) -> pd.DataFrame:
    """Measure what a cut does to a task, beside matched controls and the cost off target.

    Args:
        intervention: a cut, heads whose attention is set, or a plan of conditions (see `dose` and `sufficient`), which
            brings its own controls; the intact model is always measured with them.
        controls: control draws of each kind; default 20 where they share a prefill (scope `answer`), else 5.
        match: one or more kinds of control: `layer`, `norm`, `entropy` (measured on `task`), `bottom`, `given`.
        ranking, given: what `bottom` and `given` draw from, see `interp.measure.controls.matched`.
        metrics: of `METRICS`; off-target prose is measured in `nll`.
        off_target: tasks that should not move; default natural prose, unless the cut's scope or reference needs span
            roles or twins, which prose has not. Pass `()` for none.
        role: role of `task` in the rows.
        floor: what to do where the clean model is at chance: `raise`, or `mark` the rows and report no delta.
        progress: told about forward work done.
        into: each example's metrics are put here too, by the task's name, as `auc` takes them.

    Returns:
        one row a condition, task and metric; see the module's docstring.

    Raises:
        AtChance: the interval of the clean choice among candidates, or of the accuracy where a task has none, includes
            chance (the floor rule).
        UsageError: an unknown metric; a component that does not exist.
    """
    chosen = tuple(metrics)
    if unknown := set(chosen) - set(METRICS):
        raise UsageError(f"unknown metric '{sorted(unknown)[0]}'; metrics are {', '.join(METRICS)}")
    default = Reference(task)
    if isinstance(intervention, Cut):
        for part in intervention.components:
            subject.check(part)
        draws = controls if controls is not None else 20 if shares_prefix(intervention) else 5
        conditions = with_controls(
            subject,
            intervention,
            controls=draws,
            match=match,
            data=default,
            ranking=ranking,
            given=given,
            seed=seed,
        )
    else:
        conditions = list(intervention)
    conditions = [named_reference(c, default) for c in conditions]
    labels = {"subject": subject.name, "mechanism": mechanism, "locator": locator, "seed": seed}
    frames = [
        _measure_one(
            subject,
            task,
            conditions,
            {**labels, "role": role},
            chosen,
            floor=floor,
            progress=progress,
            into=into,
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
                into=into,
            )
        )
    return pd.concat(frames, ignore_index=True)


def _off_target(
    subject: CausalLM, conditions: Sequence[Condition], given: Sequence[Task] | None
) -> Sequence[Task]:
    """The tasks that should not move; prose by default, where cuts that lean on spans or twins mean nothing."""
    if given is not None:
        return given
    cuts = [c.intervention for c in conditions if c.intervention is not None]
    roles = any(cut.scope not in ("all", "answer") or cut.keys_name for cut in cuts)
    pools = {cut.reference.pool for cut in cuts if cut.reference is not None}
    if roles or pools - {"pooled"} or not subject.has_tokens:
        return ()
    from interp.tasks.registry import task

    return [task("prose", n=16, seed=0)]


def _measure_one(
    subject: CausalLM,
    task: Task,
    conditions: Sequence[Condition],
    labels: Mapping[str, Any],
    metrics: Sequence[str],
    *,
    floor: str,
    progress: Progress | None,
    into: dict[str, Measured] | None,
) -> pd.DataFrame:
    plan = [Condition(None, "clean"), *conditions]
    examples = task.examples(subject)
    outcomes = evaluate(subject, examples, {c.name: c.intervention for c in plan}, progress=progress)
    status = "ok"
    judged = floor_metric(outcomes, metrics)
    if judged and at_chance(outcomes):
        status = AT_CHANCE
        if floor == "raise":
            clean = outcomes.values[CLEAN][judged]
            low, high = proportion_ci(clean, outcomes.clusters)
            what = "accuracy among candidates" if judged == "choice" else judged
            raise AtChance(
                f"{subject.name} is at chance on {task!r}: {what} {clean.mean():.2f} [{low:.2f}, {high:.2f}], chance "
                f"{guess(examples, judged):.2f}; no effect is reported. Take an easier task, or one this model can do"
            )
    if into is not None:
        into[task.name] = Measured(outcomes, tuple(plan), status)
    rows = [row for c in plan for row in effect_rows(outcomes, c, metrics, status, int(labels["seed"]))]
    frame = pd.DataFrame(rows)
    for name, value in {**labels, "task": task.name}.items():
        frame[name] = value
    return frame[COLUMNS]


COLUMNS = [
    "subject", "task", "role", "mechanism", "locator", "condition", "control", "draw", "k", "components", "kept",
    "mode", "scope", "keys", "reference", "metric", "value", "delta", "ci_lo", "ci_hi", "p", "p_cluster", "n",
    "n_clusters", "n_distinct", "match_gap", "seed", "status",
]  # fmt: skip


def guess(examples: Sequence[Example], metric: str) -> float:
    """What a uniform guess gets of a metric that is held against chance, mean over the examples.

    Of `choice` that is more than the examples' chance where candidates share the token that is looked at.
    """
    return float(np.mean([guess_of(e, metric) for e in examples]))


def floor_metric(outcomes: Outcomes, metrics: Sequence[str]) -> str:
    """What is held against chance: the choice among candidates; without candidates the accuracy, where it is asked for.

    Chance is that of a guess among candidates, so an answer that nobody would give unasked can still be far above it.
    """
    if not np.isnan(outcomes.values[CLEAN]["choice"]).any():
        return "choice"
    return "accuracy" if "accuracy" in metrics else ""


def at_chance(outcomes: Outcomes) -> bool:
    """The floor rule: the interval of the clean choice, or accuracy, does not lie above chance."""
    judged = floor_metric(outcomes, ("accuracy",))
    low, _ = proportion_ci(outcomes.values[CLEAN][judged], outcomes.clusters)
    return not low > guess(outcomes.examples, judged)


def effect_rows(
    outcomes: Outcomes, c: Condition, metrics: Sequence[str], status: str, seed: int
) -> list[dict[str, Any]]:
    """The rows of one condition, one a metric; with a status that is not `ok` they tell no delta."""
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
                if metric in BINARY
                else bootstrap_ci(value, clusters, seed=seed)
            )
        else:
            low, high = bootstrap_ci(delta, clusters, seed=seed)
        told = status == "ok" or cut is None
        out.append(
            {
                "condition": c.condition,
                "control": c.control,
                "draw": c.draw,
                "k": c.k,
                "components": " ".join(map(repr, cut.components)) if cut else "",
                "kept": " ".join(map(repr, c.kept)),
                "mode": cut.mode if cut else "",
                "scope": cut.describe()["scope"] if cut else "",
                "keys": cut.keys_name if cut else "",
                "reference": cut.reference_name if cut else "",
                "metric": metric,
                "value": float(np.nanmean(value)),
                "delta": float(np.nanmean(delta)) if told else np.nan,
                "ci_lo": low if told else np.nan,
                "ci_hi": high if told else np.nan,
                "p": mcnemar(clean, value) if cut and told and metric in BINARY else np.nan,
                "p_cluster": sign_flip(delta, clusters, seed=seed) if cut and told else np.nan,
                "n": int((~np.isnan(value)).sum()),
                "n_clusters": len(set(clusters)),
                "n_distinct": c.n_distinct,
                "match_gap": c.gap,
                "status": status,
            }
        )
    return out


_TEXTS = ("mechanism", "locator", "control", "mode", "scope", "keys", "reference")


def contrast(effects: pd.DataFrame) -> pd.DataFrame:
    """Each cut against its own controls, kind by kind: z of its delta among the control deltas, and its rank.

    Returns:
        one row a cut and kind of control: the cut's columns, `control` (the kind), `control_mean`, `control_sd`, `z`
        (NaN with fewer than two draws or no spread), `rank` (1: the cut moved the metric further down than every
        control; up, for `nll` and `rank`), `n_controls`, and `p_control`, rank / (draws + 1), which is NaN for fewer
        than 200 draws: with few, z and rank are what can be said.
    """
    by = ["subject", "task", "role", "mechanism", "locator", "k", "mode", "scope", "keys", "reference"]
    by += ["seed", "metric"]
    # Tables that were stored before there were several kinds of control, or keys, have no such columns.
    effects = effects.assign(**{c: "" for c in ("control", "keys") if c not in effects})
    # In tables that were read from text files what is empty is missing.
    effects = effects.assign(**{c: effects[c].astype(object).fillna("") for c in _TEXTS})
    drawn_rows = effects[effects["condition"] == "control"]
    groups = drawn_rows.groupby([*by, "control"], sort=False)["delta"]
    kinds = drawn_rows.groupby(by, sort=False)["control"].unique()
    cuts = effects[effects["condition"] == "cut"]
    if cuts.duplicated(by).any():
        twice = cuts[cuts.duplicated(by)].iloc[0]
        raise UsageError(
            f"two cuts of {twice['k']} components share their controls' labels ({twice['components']} is one); "
            "contrast each measurement by itself"
        )
    rows = []
    for _, cut in cuts.iterrows():
        key = tuple(cut[c] for c in by)
        for kind in kinds.get(key, ("",)):
            known = (*key, kind) in groups.groups
            drawn = groups.get_group((*key, kind)).dropna().to_numpy() if known else np.array([])
            rows.append({**cut.to_dict(), "control": kind, **_against(cut, drawn)})
    return pd.DataFrame(rows)


def _against(cut: pd.Series, drawn: np.ndarray) -> dict[str, float]:
    """A cut's delta among those of its control draws."""
    sign = -1.0 if cut["metric"] in ("nll", "rank") else 1.0
    sd = float(drawn.std(ddof=1)) if len(drawn) > 1 else np.nan
    mean = float(drawn.mean()) if len(drawn) else np.nan
    rank = 1 + int((sign * drawn <= sign * cut["delta"]).sum()) if len(drawn) else np.nan
    return {
        "control_mean": mean,
        "control_sd": sd,
        "z": (cut["delta"] - mean) / sd if sd and sd > 0 else np.nan,
        "rank": rank,
        "n_controls": len(drawn),
        "p_control": rank / (len(drawn) + 1) if len(drawn) >= DRAWS_FOR_P else np.nan,
    }
