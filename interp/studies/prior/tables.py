"""Tables of a study of priors, from rows of single questions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from interp.locate.facts.prior_layers import within
from interp.measure.metrics import BINARY
from interp.measure.priors import BINS, by_prior, gap_ci, prior_effect, thirds
from interp.measure.stats import bootstrap_ci, proportion_ci, sign_flip
from interp.studies.prior.items import METRICS
from interp.tasks.base import stable_seed

if TYPE_CHECKING:
    from interp.studies.prior.tuning import Arm

SHARES = tuple(m for m in METRICS if m in BINARY or m == "pair")
"""Metrics of right and wrong."""
AGAINST_FOIL = frozenset({"pair", "margin"})
RESAMPLES = 2000
SHUFFLES = 1000
CONTROL = "control"


def is_control(preface: str) -> bool:
    """Whether a preface is a control, by its name."""
    return preface.startswith(CONTROL)


def prior_of(items: pd.DataFrame, metric: str) -> Float[np.ndarray, " n"]:
    """What a metric's questions are sorted by: the answer's log-prior, less the foil's where the metric is."""
    own, foil = items["log_prior"].to_numpy(float), items["foil_log_prior"].to_numpy(float)
    return own - foil if metric in AGAINST_FOIL else own


def chance_of(metric: str, items: pd.DataFrame) -> float:
    """What a guess gets of a metric; NaN where it is no share."""
    return {"accuracy": 0.0, "pair": 0.5, "choice": float(items["chance"].mean())}.get(metric, np.nan)


def accuracies(items: pd.DataFrame, status: Mapping[str, str]) -> pd.DataFrame:
    """Shares of right answers by third of the prior, and of all."""
    frames = []
    for name, own in items.groupby("task", sort=False):
        clusters = own["cluster"].to_numpy()
        for metric in SHARES:
            right, priors = own[metric].to_numpy(), prior_of(own, metric)
            place = thirds(priors)
            frame = by_prior(right, priors, clusters).rename(columns={"accuracy": "value"})
            low, high = proportion_ci(right, clusters)
            frame["n_clusters"] = [len(set(clusters[place == i])) for i in range(len(BINS))]
            every = {
                "prior": "all",
                "n": len(own),
                "n_clusters": len(set(clusters)),
                "mean_prior": priors.mean(),
                "value": right.mean(),
                "ci_lo": low,
                "ci_hi": high,
            }
            frame = pd.concat([frame, pd.DataFrame([every])], ignore_index=True)
            frames.append(
                frame.assign(
                    task=name, metric=metric, chance=chance_of(metric, own), status=status[str(name)]
                )
            )
    names = [
        "task",
        "metric",
        "prior",
        "n",
        "n_clusters",
        "mean_prior",
        "value",
        "ci_lo",
        "ci_hi",
        "chance",
        "status",
    ]
    return pd.concat(frames, ignore_index=True)[names]


def gaps(items: pd.DataFrame, status: Mapping[str, str], by: Sequence[str], seed: int) -> pd.DataFrame:
    """What a likely answer is worth, in groups of questions; the first of `by` is the task."""
    rows = []
    for key, own in items.groupby(list(by), sort=False):
        clusters = own["cluster"].to_numpy()
        for metric in SHARES:
            right, priors = own[metric].to_numpy(), prior_of(own, metric)
            found = prior_effect(right, priors, clusters, seed=seed)
            # A prior belongs to an answer, or to an answer and its foil.
            units = own["answer"] + (" " + own["foil"] if metric in AGAINST_FOIL else "")
            rho, p = _within(1 - right, priors, own["tokens"].to_numpy(), list(units), seed)
            about = dict(zip(by, key, strict=True))
            rows.append(
                {
                    **about,
                    "metric": metric,
                    **found,
                    "rho_within": rho,
                    "p_within": p,
                    "n": len(own),
                    "status": status[about[by[0]]],
                }
            )
    return pd.DataFrame(rows)


def _within(
    wrong: Float[np.ndarray, " n"],
    priors: Float[np.ndarray, " n"],
    tokens: Int[np.ndarray, " n"],
    units: Sequence[str],
    seed: int,
) -> tuple[float, float]:
    """Rank correlation of errors and priors within answers of equal length, and its p-value by shuffling units."""
    if wrong.min() == wrong.max():
        return np.nan, np.nan
    _, first, at = np.unique(np.asarray(units), return_index=True, return_inverse=True)
    lengths = tokens[first]
    rng = np.random.default_rng(stable_seed("priors within lengths", seed))
    shuffled = np.tile(priors[first], (SHUFFLES + 1, 1))
    for length in np.unique(lengths):
        here = np.flatnonzero(lengths == length)
        shuffled[1:, here] = rng.permuted(shuffled[1:, here], axis=1)
    found = within(wrong, shuffled[:, at], tokens)
    hits = int((np.abs(found[1:]) >= abs(found[0]) - 1e-12).sum())
    return float(found[0]), (1 + hits) / (1 + SHUFFLES)


# -- before and after ------------------------------------------------------------------------------------------------


def paired(before: pd.DataFrame, after: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Changes of the same questions, by third of the prior, of all, and of the gap between the outer thirds.

    Returns:
        metric, prior, before, after, delta, ci_lo, ci_hi, p_cluster, n, n_clusters.
    """
    clusters = before["cluster"].to_numpy()
    rows = []
    for metric in METRICS:
        place = thirds(prior_of(before, metric))
        old, new = before[metric].to_numpy(float), after[metric].to_numpy(float)
        rows += [{"metric": metric, **row} for row in _changes(old, new, place, clusters, seed)]
    return pd.DataFrame(rows)


def _changes(
    old: Float[np.ndarray, " n"],
    new: Float[np.ndarray, " n"],
    place: Int[np.ndarray, " n"],
    clusters: np.ndarray,
    seed: int,
) -> list[dict[str, Any]]:
    rows = []
    change = new - old
    parts = {**{name: place == i for i, name in enumerate(BINS)}, "all": place >= 0}
    for name, here in parts.items():
        low, high = bootstrap_ci(change[here], clusters[here], seed=seed, n_resamples=RESAMPLES)
        rows.append(
            {
                "prior": name,
                "before": old[here].mean(),
                "after": new[here].mean(),
                "delta": change[here].mean(),
                "ci_lo": low,
                "ci_hi": high,
                "p_cluster": sign_flip(change[here], clusters[here], seed=seed),
                "n": int(here.sum()),
                "n_clusters": len(set(clusters[here])),
            }
        )
    outer = (place == 0) | (place == len(BINS) - 1)
    top = place == len(BINS) - 1
    low, high = gap_ci(change[outer], top[outer], clusters[outer], seed=seed, n_resamples=RESAMPLES)
    told = [float(v[top].mean() - v[place == 0].mean()) for v in (old, new)]
    rows.append(
        {
            "prior": "gap",
            "before": told[0],
            "after": told[1],
            "delta": told[1] - told[0],
            "ci_lo": low,
            "ci_hi": high,
            "p_cluster": np.nan,
            "n": int(outer.sum()),
            "n_clusters": len(set(clusters[outer])),
        }
    )
    return rows


def prompts_contrast(told: Mapping[str, pd.DataFrame], seed: int) -> pd.DataFrame:
    """Each preface that is no control, against the mean of the controls; empty where there are none."""
    controls = [items for name, items in told.items() if is_control(name)]
    frames = []
    for name, items in told.items():
        if controls and not is_control(name):
            middle = items.assign(
                **{m: np.mean([c[m].to_numpy(float) for c in controls], axis=0) for m in METRICS}
            )
            found = paired(middle, items, seed).drop(columns="p_cluster")
            frames.append(found.assign(preface=name, n_controls=len(controls)))
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def tuning_contrast(
    plain: pd.DataFrame,
    runs: Mapping[str, pd.DataFrame],
    arms: Sequence[Arm],
    status: Mapping[str, str],
    seed: int,
) -> pd.DataFrame:
    """What tuning the chosen layers does more than tuning random ones, the mean of runs question by question.

    The interval is over answers alone, with the runs as they are: it says that these runs differ from those, not that
    the chosen layers differ from any random ones. With a few runs of each kind (three against three by default) that is
    as much as can be told; read `beaten`, the share of random runs below the mean of the chosen ones, beside it.
    """
    frames = []
    kinds = {kind: [arm.name for arm in arms if arm.kind == kind] for kind in ("chosen", "random")}
    for task, before in plain.groupby("task", sort=False):
        here = plain.index[plain["task"] == task]
        mean = {
            kind: before.assign(
                **{m: np.mean([runs[a].loc[here, m] for a in names], axis=0) for m in METRICS}
            )
            for kind, names in kinds.items()
        }
        found = paired(mean["random"], mean["chosen"], seed).drop(columns=["before", "after", "p_cluster"])
        for kind in kinds:
            found[kind] = paired(before, mean[kind], seed)["delta"]
        each = pd.DataFrame({a: paired(before, runs[a].loc[here], seed)["delta"] for a in kinds["random"]})
        found["beaten"] = each.lt(found["chosen"], axis=0).mean(axis=1)
        frames.append(
            found.assign(
                task=task,
                n_chosen=len(kinds["chosen"]),
                n_random=len(kinds["random"]),
                status=status[str(task)],
            )
        )
    return pd.concat(frames, ignore_index=True)


def costs(before: pd.DataFrame, after: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Changes of tasks off target.

    Returns:
        task, metric, before, after, delta, ci_lo, ci_hi, p_cluster, n, n_clusters.
    """
    rows = []
    for task in dict.fromkeys(before["task"]):
        old, new = (f[f["task"] == task] for f in (before, after))
        clusters = old["cluster"].to_numpy()
        for metric in ("nll", "choice"):
            a, b = old[metric].to_numpy(float), new[metric].to_numpy(float)
            if np.isnan(a).all():
                continue
            low, high = bootstrap_ci(b - a, clusters, seed=seed, n_resamples=RESAMPLES)
            rows.append(
                {
                    "task": task,
                    "metric": metric,
                    "before": a.mean(),
                    "after": b.mean(),
                    "delta": (b - a).mean(),
                    "ci_lo": low,
                    "ci_hi": high,
                    "p_cluster": sign_flip(b - a, clusters, seed=seed),
                    "n": len(a),
                    "n_clusters": len(set(clusters)),
                }
            )
    return pd.DataFrame(rows)
