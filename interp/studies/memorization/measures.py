"""What a pipeline replicates and what it still does: the measures of one condition, and paired differences of two."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

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


def between(values: np.ndarray, clusters: Sequence[str], *, seed: int) -> tuple[float, float]:
    """95 % interval of a mean of differences in [-1, 1] (or of other numbers, where they differ between items).

    A bootstrap of items is a point where all are equal. There it reaches as far as items that were not drawn may take
    the mean: `unseen_share` of them differ, by 1 (one of the two conditions is another).
    """
    from interp.measure.stats import bootstrap_ci

    if np.ptp(values) > 0:
        return bootstrap_ci(values, clusters, seed=seed)
    c, others = float(values[0]), unseen_share(len(set(clusters)))
    if abs(c) > 1:
        return float("nan"), float("nan")
    return max(-1.0, c - others), min(1.0, c + others)


def unseen_share(n: int) -> float:
    """The most that a share may be which did not show in n items (upper end of Clopper and Pearson's 95 % interval)."""
    return float(1 - 0.025 ** (1 / n))


def against(items: pd.DataFrame, pairs: Mapping[str, Sequence[str]], *, seed: int = 0) -> pd.DataFrame:
    """Differences of two edits on the same items, over all training seeds together.

    Args:
        items: rows of `edit_items`: seed, edit, set, item, value.
        pairs: by edit, those that it is compared with.

    Returns:
        edit, against, measure, value (mean difference), ci_lo, ci_hi, p (sign flips), n (items), n_seeds. Items of
        different trainings are different items.

    Raises:
        UsageError: a pair has no item in common, so that there is nothing to judge.
    """
    from interp.measure.stats import sign_flip

    whole = items.assign(cluster=items["seed"].astype(str) + " " + items["item"].astype(str))
    wide = whole.pivot_table(index=["set", "cluster", "seed"], columns="edit", values="value")
    out = []
    for edit, others in pairs.items():
        for other in others:
            if edit not in wide or other not in wide or edit == other:
                continue
            delta = (wide[edit] - wide[other]).dropna()
            if delta.empty:
                raise UsageError(
                    f"{edit} and {other} were measured on no item in common; nothing can be judged"
                )
            for measure, own in delta.groupby("set", sort=False):
                values = own.to_numpy()
                clusters = own.index.get_level_values("cluster").tolist()
                low, high = between(values, clusters, seed=seed)
                out.append(
                    {
                        "edit": edit,
                        "against": other,
                        "measure": measure,
                        "value": values.mean(),
                        "ci_lo": low,
                        "ci_hi": high,
                        "p": sign_flip(values, clusters, seed=seed),
                        "n": len(values),
                        "n_seeds": own.index.get_level_values("seed").nunique(),
                    }
                )
    return pd.DataFrame(out)
