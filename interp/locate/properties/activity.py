"""Dynamic: which heads copy at which step, in which instances, and in which kind of context."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool
from scipy import stats

from interp.errors import UsageError
from interp.locate.properties.base import Property, frame_of, ranged, row
from interp.locate.retrieval_heads import THRESHOLD, RetrievalHeads
from interp.locate.scores import dynamic_sets
from interp.measure.stats import bootstrap_ci, proportion_ci
from interp.models.sites import Component, Head
from interp.models.subject import CausalLM
from interp.tasks.base import Task, stable_seed

SHUFFLES = 999


def dynamic(
    subject: CausalLM,
    task: Task,
    heads: RetrievalHeads | Sequence[Component],
    *,
    by: str = "kind",
    seed: int = 0,
) -> Property:
    """How often each head copies, and how the set of heads that copy changes from step to step and context to context.

    A head is active in an instance if it copies at one step or more of the model's own greedy output (accepted
    instances only, as in `RetrievalHeads`); the static set is what a ranking would hand out.

    Statistics: `always_active` (heads active in every instance), `never_active`, `static_active` (mean share of the
    instances in which a head of the static set is active), `set_size` (heads that copy at a step), `jaccard` (of the
    set at a step with the static set, averaged over steps, then instances; its null is the expected Jaccard of a random
    set as large as the step's), `jaccard_next` (of the sets at successive steps), `silent_steps` (share of steps at
    which no static head copies), `context_range` (largest minus smallest activation over the values of `by`, mean over
    the static set; the null shuffles the values over instances). Steps at which no head at all copies have Jaccard 0.

    Args:
        heads: a fitted locator, whose heads of score 0.1 or more are the static set; or the heads themselves.
        by: entry of the examples' `meta` that tells contexts apart (`kind`, `template`, `depth_asked`, ...).

    Returns:
        the property; tables `activity` (component, layer, head, static, active with interval, steps, always),
        `contexts` (component, context, active, n) and `steps` (example, step, steps, size, jaccard, expected, next,
        static).

    Raises:
        UsageError: the static set is empty, or a component is no head.
        NoAcceptedExample: the model recalls no needle.
    """
    chosen = heads.select(THRESHOLD) if isinstance(heads, RetrievalHeads) else tuple(heads)
    if not chosen:
        raise UsageError(f"no head scores {THRESHOLD} or more, so there is no static set; pass heads.top(k)")
    static = np.zeros((subject.n_layers, subject.n_heads), dtype=bool)
    for part in chosen:
        if not isinstance(part, Head):
            raise UsageError(f"dynamic is about attention heads, and {part} is none")
        subject.check(part)
        static[part.layer, part.head] = True
    fit = RetrievalHeads(scores=()).fit(subject, task)
    accepted = np.flatnonzero(fit.instances_["accepted"])
    examples = task.examples(subject)
    found: list[np.ndarray] = fit.copied_
    active = np.stack([copies.any(0) for copies in found])
    clusters = np.array(fit.clusters_)
    activity = _activity(subject, found, active, static, clusters)
    contexts = _Contexts.of([str(examples[i].meta.get(by, "")) for i in accepted], active[:, static])
    steps = _steps(found, chosen, static)
    steps.insert(0, "example", accepted[steps["at"]])
    labels: dict[str, Any] = {"subject": subject.name, "n": len(found), "n_clusters": len(set(clusters))}

    def averaged(column: str) -> tuple[float, tuple[float, float]]:
        means = steps.groupby("at")[column].mean().reindex(range(len(found))).to_numpy(float)
        ok = ~np.isnan(means)
        if not ok.any():
            return float("nan"), (float("nan"), float("nan"))
        return float(means[ok].mean()), bootstrap_ci(means[ok], clusters[ok], seed=seed)

    shuffled = contexts.shuffled(SHUFFLES, seed)
    rows = [
        row("always_active", int(active.all(0).sum()), **labels),
        row("never_active", int((~active.any(0)).sum()), **labels),
        row("static_active", active[:, static].mean(), bootstrap_ci(active[:, static].mean(1), clusters, seed=seed),
            **labels),
        row("set_size", *averaged("size"), **labels),
        row("jaccard", *averaged("jaccard"), **labels) | {"null": averaged("expected")[0]},
        row("jaccard_next", *averaged("next"), **labels),
        row("silent_steps", *averaged("silent"), **labels),
        row("context_range", contexts.spread(), null=shuffled, **labels),
    ]  # fmt: skip
    frame = frame_of(rows)
    tables = {
        "activity": activity,
        "contexts": contexts.frame([repr(h) for h in subject.heads() if static[h.layer, h.head]], by),
        "steps": steps.drop(columns="at"),
    }
    return Property("dynamic", _summary(frame, subject, int(static.sum()), by), frame, tables)


def _activity(
    subject: CausalLM,
    found: Sequence[np.ndarray],
    active: Bool[np.ndarray, "n l h"],
    static: Bool[np.ndarray, "l h"],
    clusters: np.ndarray,
) -> pd.DataFrame:
    over_steps = np.mean([copies.mean(0) for copies in found], axis=0)
    rows = []
    for head in subject.heads():
        mine = active[:, head.layer, head.head].astype(float)
        low, high = proportion_ci(mine, clusters)
        rows.append({
            "component": repr(head), "layer": head.layer, "head": head.head,
            "static": bool(static[head.layer, head.head]), "active": mine.mean(), "ci_lo": low, "ci_hi": high,
            "steps": over_steps[head.layer, head.head], "always": bool(mine.all()), "n": len(mine),
        })  # fmt: skip
    return pd.DataFrame(rows)


def _steps(
    found: Sequence[np.ndarray], chosen: Sequence[Component], static: Bool[np.ndarray, "l h"]
) -> pd.DataFrame:
    """A row a step: what `dynamic_sets` says of it, what chance gives, the next step, and the static heads in it."""
    _, told = dynamic_sets(found, chosen)
    rows = []
    for step in told.itertuples():
        here, copies = found[step.example][step.step], found[step.example]
        last = step.step + 1 == len(copies)
        rows.append({
            "at": step.example, "step": step.step, "steps": len(copies), "size": step.n, "jaccard": step.jaccard,
            "expected": expected_jaccard(step.n, int(static.sum()), static.size),
            "next": np.nan if last else jaccard(here.ravel(), copies[step.step + 1].ravel()),
            "static": int((here & static).sum()), "silent": float(not (here & static).any()),
        })  # fmt: skip
    return pd.DataFrame(rows)


def jaccard(a: Bool[np.ndarray, " heads"], b: Bool[np.ndarray, " heads"]) -> float:
    """Shared over all members; 0 where both sets are empty.

    >>> jaccard(np.array([True, True, False]), np.array([False, True, True]))
    0.3333333333333333
    """
    union = int((a | b).sum())
    return int((a & b).sum()) / union if union else 0.0


def expected_jaccard(size: int, other: int, total: int) -> float:
    """Expected Jaccard of a set of `other` members with a random one of `size`, both out of `total` (hypergeometric).

    >>> expected_jaccard(1, 1, 4)
    0.25
    """
    shared = np.arange(min(size, other) + 1)
    if len(shared) == 1:
        return 0.0
    weight = stats.hypergeom.pmf(shared, total, other, size)
    return float((weight * shared / (size + other - shared)).sum())


@dataclass(frozen=True)
class _Contexts:
    """Activation of the static heads by the context of each instance."""

    names: list[str]
    at: np.ndarray
    active: np.ndarray

    @classmethod
    def of(cls, values: Sequence[str], active: Bool[np.ndarray, "n k"]) -> _Contexts:
        names, at = np.unique(np.array(values), return_inverse=True)
        return cls([str(n) for n in names], at, active.astype(float))

    def rates(self, at: np.ndarray) -> np.ndarray:
        """Activation by context and head."""
        return np.stack([self.active[at == i].mean(0) for i in range(len(self.names))])

    def spread(self, at: np.ndarray | None = None) -> float:
        """Largest minus smallest activation over contexts, mean over heads; NaN for a single context."""
        if len(self.names) < 2:
            return float("nan")
        return float(np.ptp(self.rates(self.at if at is None else at), axis=0).mean())

    def shuffled(self, n: int, seed: int) -> np.ndarray:
        """The spread when contexts are dealt out to the instances anew."""
        rng = np.random.default_rng(stable_seed("properties", "contexts", seed))
        return np.array(
            [self.spread(rng.permutation(self.at)) for _ in range(n if len(self.names) > 1 else 0)]
        )

    def frame(self, components: Sequence[str], by: str) -> pd.DataFrame:
        rates = self.rates(self.at)
        return pd.DataFrame([
            {"component": name, "by": by, "context": context, "active": rates[i, j],
             "n": int((self.at == i).sum())}
            for i, context in enumerate(self.names) for j, name in enumerate(components)
        ])  # fmt: skip


def _summary(frame: pd.DataFrame, subject: CausalLM, size: int, by: str) -> str:
    at = frame.set_index("statistic")
    jac, active = at.loc["jaccard"], at.loc["static_active"]
    spread = at.loc["context_range"]
    where = (
        f"; over the values of '{by}' the activation of a static head ranges over {spread['value']:.2f} on average "
        f"(shuffled {spread['null']:.2f}, p = {spread['p']:.3f})"
        if np.isfinite(spread["value"])
        else ""
    )
    instances, total = int(jac["n"]), subject.n_layers * subject.n_heads
    return (
        f"{subject.name}: {int(at.loc['always_active', 'value'])} of {total} heads copy in every one of {instances} "
        f"instances and {int(at.loc['never_active', 'value'])} in none; a head of the static set of {size} is active "
        f"in {ranged(active['value'], active['ci_lo'], active['ci_hi'], 0, 100, ' %')} of the instances; "
        f"{at.loc['set_size', 'value']:.1f} heads copy at a step, Jaccard with the static set "
        f"{ranged(jac['value'], jac['ci_lo'], jac['ci_hi'])} (random sets as large {jac['null']:.2f}){where}."
    )
