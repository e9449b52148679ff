"""How likely answers are before the question, and how much that decides whether they are given.

The prior of an answer is measured on the model itself: the mean log-probability of its tokens behind neutral prompts,
which ask for such an answer and give nothing to find it by.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int
from scipy import stats

from interp.errors import NoAcceptedExample, UsageError
from interp.measure.next_token import Speaker, log_probs, speaker
from interp.measure.stats import proportion_ci
from interp.models.subject import CausalLM
from interp.tasks.base import Example, Ids

BINS = ("low", "middle", "high")


def answer_priors(
    subject: CausalLM,
    examples: Sequence[Example],
    *,
    neutral: Sequence[str] | None = None,
    speak: Speaker | None = None,
) -> Float[np.ndarray, " n"]:
    """Log-prior of each example's answer, in nats: the mean over neutral prompts of log P(all its tokens | prompt).

    Args:
        neutral: prompts that tell nothing of the answer; default those in the example's `meta`.

    Raises:
        NoAcceptedExample: there is no example.
        UsageError: an example brings no neutral prompts, and none are given.
    """
    if not examples:
        raise NoAcceptedExample("there is no example whose answer could be likely")
    speak = speak or speaker(subject)
    asked = []
    for e in examples:
        prompts = neutral if neutral is not None else e.meta.get("neutral", ())
        if not prompts:
            raise UsageError(f"{e.task}: no neutral prompts in meta; pass neutral=('The answer is', ...)")
        asked.append([subject.tokens.encode(p).ids for p in prompts])
    # Each beginning is asked once: many answers stand behind the same prompts.
    wanted: dict[Ids, dict[int, float]] = {}
    for e, prompts in zip(examples, asked, strict=True):
        for prompt in prompts:
            for i, token in enumerate(e.answer_ids):
                wanted.setdefault(prompt + e.answer_ids[:i], {})[token] = np.nan
    for at in range(0, len(wanted), 64):
        some = list(wanted)[at : at + 64]
        for begun, logs in zip(some, log_probs(speak, some), strict=True):
            for token in wanted[begun]:
                wanted[begun][token] = float(logs[token])
    return np.array(
        [
            np.mean(
                [sum(wanted[p + e.answer_ids[:i]][t] for i, t in enumerate(e.answer_ids)) for p in prompts]
            )
            for e, prompts in zip(examples, asked, strict=True)
        ]
    )


def thirds(priors: Float[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """The third of each example by its answer's prior: 0 the unlikeliest, 2 the likeliest; ties in their order."""
    places: np.ndarray = stats.rankdata(priors, method="ordinal").astype(int) - 1
    return places * len(BINS) // len(priors)


def by_prior(
    right: Float[np.ndarray, " n"], priors: Float[np.ndarray, " n"], clusters: Sequence[str]
) -> pd.DataFrame:
    """Accuracy in thirds of the examples by the prior of their answers.

    Args:
        right: 1 where the answer was given.

    Returns:
        one row a third: prior (`low`, `middle`, `high`), n, mean_prior (nats), accuracy, ci_lo, ci_hi (95 %).

    Raises:
        UsageError: fewer than three examples, or arrays of unlike lengths.
    """
    _check(right, priors, clusters)
    third = thirds(priors)
    rows = []
    for number, name in enumerate(BINS):
        here = third == number
        lo, hi = proportion_ci(right[here], np.asarray(clusters)[here])
        rows.append(
            {
                "prior": name,
                "n": int(here.sum()),
                "mean_prior": float(priors[here].mean()),
                "accuracy": float(right[here].mean()),
                "ci_lo": lo,
                "ci_hi": hi,
            }
        )
    return pd.DataFrame(rows)


def prior_effect(
    right: Float[np.ndarray, " n"],
    priors: Float[np.ndarray, " n"],
    clusters: Sequence[str],
    *,
    seed: int = 0,
    n_resamples: int = 2000,
) -> dict[str, float]:
    """What a likely answer is worth.

    Returns:
        gap (accuracy of the likeliest third less that of the unlikeliest) with its 95 % interval over clusters
        (`gap_lo`, `gap_hi`), rho (Spearman's, of errors and priors: negative where unlikely answers are missed; NaN
        where all are right or all wrong) and p, its two-sided p-value as if examples were independent.

    Raises:
        UsageError: fewer than three examples, or arrays of unlike lengths.
    """
    table = by_prior(right, priors, clusters).set_index("prior")
    third = thirds(priors)
    outer = third != 1
    high = third[outer] == len(BINS) - 1
    lo, hi = gap_ci(right[outer], high, np.asarray(clusters)[outer], seed=seed, n_resamples=n_resamples)
    rho, p = np.nan, np.nan
    if len(np.unique(right)) > 1 and len(np.unique(priors)) > 1:
        found = stats.spearmanr(1 - right, priors)
        rho, p = float(found.statistic), float(found.pvalue)
    gap = float(table.loc["high", "accuracy"] - table.loc["low", "accuracy"])
    return {"gap": gap, "gap_lo": lo, "gap_hi": hi, "rho": rho, "p": p}


def gap_ci(
    values: Float[np.ndarray, " n"],
    high: Bool[np.ndarray, " n"],
    clusters: Sequence[str] | np.ndarray,
    *,
    seed: int = 0,
    n_resamples: int = 2000,
) -> tuple[float, float]:
    """95 % interval of the mean of the `high` values less that of the others, whole clusters resampled.

    Resamples that leave one side empty are left out; NaN for fewer than two clusters.
    """
    _, at = np.unique(np.asarray(clusters), return_inverse=True)
    number = int(at.max()) + 1
    if number < 2:
        return float("nan"), float("nan")
    columns = [values * high, high, values * ~high, ~high]
    sums = np.stack([np.bincount(at, weights=c.astype(float), minlength=number) for c in columns], 1)
    drawn = np.random.default_rng(seed).integers(0, number, (n_resamples, number))
    total = sums[drawn].sum(1)
    total = total[(total[:, 1] > 0) & (total[:, 3] > 0)]
    low, top = np.quantile(total[:, 0] / total[:, 1] - total[:, 2] / total[:, 3], [0.025, 0.975])
    return float(low), float(top)


def _check(right: np.ndarray, priors: np.ndarray, clusters: Sequence[str]) -> None:
    if not len(right) == len(priors) == len(clusters):
        raise UsageError(f"{len(right)} outcomes, {len(priors)} priors and {len(clusters)} clusters")
    if len(right) < len(BINS):
        raise UsageError(f"{len(right)} examples cannot be split in thirds by their prior")
