"""What a pipeline replicates and what it still does: the measures of one condition, and paired differences of two."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import special, stats

from interp.errors import UsageError
from interp.studies.memorization.bench import Bench

if TYPE_CHECKING:
    import torch

    from interp.intervene.weights import PartEdit
    from interp.models.pipeline import Pipeline
    from interp.tasks.memorized import ImageItem

REPLICATED = ("targeted", "held_out", "retained", "control")
"""Sets whose replication is measured."""


def measured(
    bench: Bench, subject: Pipeline, edit: PartEdit | None, seeds: Sequence[int]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """A condition, measured.

    Args:
        seeds: sampling seeds of A and B; the other sets take half of them, ordinary prompts one each.

    Returns:
        rows measure, value, ci_lo, ci_hi, n (items, prompts or pictures); and the items behind them: set, item, group,
        split, value (share of samples extracted, 1 where a sample shows its digit, or denoising error), own.
    """
    sets = {name: bench.sets[name] for name in REPLICATED if bench.sets[name]}
    takes = {n: seeds if n in REPLICATED[:2] else seeds[: max(1, len(seeds) // 2)] for n in sets}
    asked = [bench.ordinary[i % len(bench.ordinary)] for i in range(bench.spec.base)]
    # Ordinary prompts each have a seed of their own, for one for all would make them alike.
    wanted = [(i.prompt, s) for n, own in sets.items() for i in own for s in takes[n]]
    wanted += [(text, seeds[0] + k) for k, (text, _) in enumerate(asked)]
    with nullcontext() if edit is None else edit.applied(subject):
        drawn = bench.draw_each(subject, [text for text, _ in wanted], [seed for _, seed in wanted])
        errors = _errors(bench, subject)
    *stacks, ordinary = drawn.split([*(len(own) * len(takes[n]) for n, own in sets.items()), len(asked)])
    items = [
        _replicated(bench, name, own, stack.unflatten(0, (len(own), -1)))
        for (name, own), stack in zip(sets.items(), stacks, strict=True)
    ]
    every = pd.concat([*items, _ordinary(bench, asked, ordinary), errors], ignore_index=True)
    rows = [_row(name, own, bench.seed) for name, own in every.groupby("set", sort=False)]
    return pd.DataFrame([*rows, _frechet(bench, ordinary)]), every


def _replicated(bench: Bench, name: str, items: Sequence[ImageItem], samples: torch.Tensor) -> pd.DataFrame:
    """Of each item, the share of its samples that are copies of it."""
    by_item = bench.extracted(samples, items).groupby("item", sort=False)
    rows = by_item.agg(
        group=("group", "first"), split=("split", "first"), value=("extracted", "mean"), own=("own", "mean")
    )
    return rows.reset_index().assign(set=name)


def _ordinary(bench: Bench, asked: Sequence[tuple[str, int]], samples: torch.Tensor) -> pd.DataFrame:
    """Whether samples of ordinary prompts show their digit."""
    right = bench.classifier.right(samples, [digit for _, digit in asked])
    return pd.DataFrame({"item": [text for text, _ in asked], "value": right}).assign(
        set="alignment", group="base", split="", own=np.nan
    )


def _frechet(bench: Bench, samples: torch.Tensor) -> dict[str, Any]:
    """The row of their distance to held-out pictures, less what as many real ones have."""
    from interp.measure.memorization.distances import features
    from interp.measure.memorization.retention import frechet, frechet_floor

    made, real = (features(x, bench.encoder) for x in (samples, bench.new))
    floor = float(frechet_floor(real, min(len(made), len(real) // 2), seed=bench.seed).mean())
    value = frechet(made, real) - floor
    return {"measure": "frechet", "value": value, "ci_lo": np.nan, "ci_hi": np.nan, "n": len(made)}


def _errors(bench: Bench, subject: Pipeline) -> pd.DataFrame:
    """Denoising errors of held-out pictures."""
    from interp.measure.memorization.retention import held_out_loss

    items = bench.unknown[: bench.spec.held_out]
    values = held_out_loss(subject, items)
    return pd.DataFrame({"item": [i.name for i in items], "value": values}).assign(
        set="loss", group="held-out", split="", own=np.nan
    )


def _row(name: Any, own: pd.DataFrame, seed: int) -> dict[str, Any]:
    from interp.measure.stats import bootstrap_ci, proportion_ci

    values, items = own["value"].to_numpy(float), own["item"].tolist()
    low, high = bootstrap_ci(values, items, seed=seed) if name == "loss" else proportion_ci(values, items)
    return {"measure": name, "value": values.mean(), "ci_lo": low, "ci_hi": high, "n": len(values)}


def unseen_share(n: int) -> float:
    """The most that a share may be which did not show in n items (upper end of Clopper and Pearson's 95 % interval)."""
    return float(1 - 0.025 ** (1 / n))


TRIALS = 4
"""Trials that an item counts as at most, however alike items are: so many samples were drawn of it."""


def between(values: np.ndarray) -> tuple[float, float]:
    """95 % interval of the mean of paired differences in [-1, 1], one of each item.

    Newcombe's way (1998, Statistics in Medicine 17): the intervals of gains and of losses, as shares of items, are put
    together with their correlation, which is negative and taken as the largest there is at so many gains and losses
    together. Each is Clopper and Pearson's. A fraction is so much of a gain: whole gains of the same mean scatter most,
    so that n items are n trials at least. Where differences scatter less, they are as many more trials as the variance
    says (the design effect of Korn and Graubard 1998), `TRIALS` an item at most; but no end comes nearer to the mean
    than items that were not drawn may take it (`unseen_share`).

    Returns:
        NaN for no item.
    """
    n = len(values)
    if not n:
        return float("nan"), float("nan")
    gain, loss = float(np.maximum(values, 0).mean()), float(np.maximum(-values, 0).mean())
    mean, both = gain - loss, gain + loss
    trials = _trials(both - mean**2, values)
    (gain_lo, gain_hi), (loss_lo, loss_hi) = _exact(gain, trials), _exact(loss, trials)
    tied = both / (2 - both)
    low = mean - _square_and_add(gain - gain_lo, loss_hi - loss, tied)
    high = mean + _square_and_add(gain_hi - gain, loss - loss_lo, tied)
    least = unseen_share(n)
    return max(-1.0, min(low, mean - least)), min(1.0, max(high, mean + least))


def apart(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """95 % interval of the mean of the first less that of the second, of different items, all in [0, 1].

    As `between`, of intervals that are independent.
    """
    if not len(first) or not len(second):
        return float("nan"), float("nan")
    ends = []
    for values in (first, second):
        mean, least = float(values.mean()), unseen_share(len(values))
        low, high = _exact(mean, _trials(mean * (1 - mean), values))
        ends.append((max(mean - low, min(mean, least)), max(high - mean, min(1 - mean, least))))
    mean = float(first.mean() - second.mean())
    (down, up), (other_down, other_up) = ends
    return (
        max(-1.0, mean - _square_and_add(down, other_up, 0.0)),
        min(1.0, mean + _square_and_add(up, other_down, 0.0)),
    )


def _trials(most: float, values: np.ndarray) -> float:
    """Trials that these items are: as many more as their variance is less than the most that it could be."""
    n = len(values)
    if most < 1e-12:
        return float(n)
    spread = float(values.var(ddof=1)) if n > 1 else most
    return float(np.clip(n * most / max(spread, 1e-12), n, TRIALS * n))


def _exact(share: float, trials: float) -> tuple[float, float]:
    """Clopper and Pearson's 95 % interval of a share; its hits need not be whole."""
    hits = min(share * trials, trials)
    low = special.betaincinv(hits, trials - hits + 1, 0.025) if hits > 0 else 0.0
    high = special.betaincinv(hits + 1, trials - hits, 0.975) if hits < trials else 1.0
    return float(low), float(high)


def _square_and_add(a: float, b: float, tied: float) -> float:
    return float(np.sqrt(a**2 + b**2 + 2 * tied * a * b))


def against(
    items: pd.DataFrame, pairs: Mapping[str, Mapping[str, Sequence[str]] | Sequence[str]], *, seed: int = 0
) -> pd.DataFrame:
    """Differences of each edit to the mean of others on the same items, over all trainings and in each.

    Args:
        items: rows of `edit_items`: seed, edit, set, item, value.
        pairs: by edit, what it is compared with: a label, and the edits of which each item's mean is taken (several
            draws of a control). Names alone are labels of themselves.

    Returns:
        edit, against (the label), measure, seed (-1: all trainings together), value, ci_lo, ci_hi, p (sign flips), n
        (items), n_seeds. Items of different trainings are different items. The value is the mean difference, of `loss`
        the ratio of geometric means (1 where equal). Pairs of which one was not measured have no row.

    Raises:
        UsageError: a pair has no item in common, so that there is nothing to judge.
    """
    from interp.measure.stats import sign_flip

    wide = by_item(items)
    out = []
    for edit, labels in pairs.items():
        groups = labels if isinstance(labels, Mapping) else {name: [name] for name in labels}
        for label, names in groups.items():
            delta = less(wide, edit, names)
            if delta is None:
                continue
            if delta.empty:
                raise UsageError(
                    f"{edit} and {label} were measured on no item in common; nothing can be judged"
                )
            for measure, own in delta.groupby("set", sort=False):
                told = {"edit": edit, "against": label, "measure": measure}
                trainings = own.index.get_level_values("seed")
                for training in (-1, *sorted(trainings.unique())):
                    some = own if training < 0 else own[trainings == training]
                    values = some.to_numpy()
                    p = sign_flip(values, [str(i) for i in range(len(values))], seed=seed)
                    out.append({**told, "seed": training, **mean_of(str(measure), some), "p": p})
    columns = ["edit", "against", "measure", "seed", "value", "ci_lo", "ci_hi", "p", "n", "n_seeds"]
    return pd.DataFrame(out, columns=columns)


def by_item(items: pd.DataFrame) -> pd.DataFrame:
    """Rows of `edit_items`, a row a set, training and item, a column an edit; errors as their logarithms."""
    wide = items.pivot_table(index=["set", "seed", "item"], columns="edit", values="value", sort=False)
    loss = wide.index.get_level_values("set") == "loss"
    wide[loss] = np.log(wide[loss])
    return wide


def less(wide: pd.DataFrame, edit: str, names: Sequence[str]) -> pd.Series | None:
    """An edit less the mean of others, item by item; None where one side was not measured at all."""
    found = [name for name in names if name in wide and name != edit]
    if edit not in wide or not found:
        return None
    return (wide[edit] - wide[found].mean(axis=1)).dropna()


def mean_of(measure: str, delta: pd.Series) -> dict[str, Any]:
    """Value, ci_lo, ci_hi, n and n_seeds of differences of one measure, as `less` gives them."""
    values = delta.to_numpy(float)
    value = float(values.mean())
    if measure == "loss":
        # Errors have no bounds: Student's interval of the mean logarithm.
        n = len(values)
        reach = float(stats.t.ppf(0.975, n - 1) * values.std(ddof=1) / np.sqrt(n)) if n > 1 else np.inf
        value, low, high = (float(np.exp(x)) for x in (value, value - reach, value + reach))
    else:
        low, high = between(values)
    seeds = int(delta.index.get_level_values("seed").nunique())
    return {"value": value, "ci_lo": low, "ci_hi": high, "n": len(values), "n_seeds": seeds}
