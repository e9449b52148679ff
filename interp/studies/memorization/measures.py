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
    from interp.intervene.weights import PartEdit
    from interp.models.pipeline import Pipeline

REPLICATED = ("targeted", "held_out", "retained", "control")
"""Sets whose replication is measured."""
MEASURES = (*REPLICATED, "alignment", "frechet", "loss")


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
    with nullcontext() if edit is None else edit.applied(subject):
        items = [*_replicated(bench, subject, seeds), *_ordinary(bench, subject, seeds[0])]
        items.append(_errors(bench, subject))
        frechet = items.pop(-2)
    every = pd.concat(items, ignore_index=True)
    rows = [_row(name, own, bench.seed) for name, own in every.groupby("set", sort=False)]
    return pd.DataFrame([*rows, *frechet.to_dict("records")]), every


def _replicated(bench: Bench, subject: Pipeline, seeds: Sequence[int]) -> list[pd.DataFrame]:
    """Of each set, the share of each item's samples that are copies of it."""
    out = []
    for name in REPLICATED:
        items = bench.sets[name]
        if not items:
            continue
        few = seeds if name in REPLICATED[:2] else seeds[: max(1, len(seeds) // 2)]
        found = bench.extracted(bench.draw(subject, [i.prompt for i in items], few), items)
        by_item = found.groupby("item", sort=False)
        rows = by_item.agg(
            group=("group", "first"),
            split=("split", "first"),
            value=("extracted", "mean"),
            own=("own", "mean"),
        )
        out.append(rows.reset_index().assign(set=name))
    return out


def _ordinary(bench: Bench, subject: Pipeline, first: int) -> list[pd.DataFrame]:
    """Whether samples of ordinary prompts show their digit; and the row of their Frechet distance."""
    from interp.measure.memorization.distances import features
    from interp.measure.memorization.retention import frechet, frechet_floor

    asked = [bench.ordinary[i % len(bench.ordinary)] for i in range(bench.spec.base)]
    # Each from a seed of its own, for one seed for all would make them alike.
    drawn = bench.draw_each(subject, [text for text, _ in asked], range(first, first + len(asked)))
    labels = [digit for _, digit in asked]
    right = bench.classifier.right(drawn, labels)
    made, real = (features(x, bench.encoder) for x in (drawn, bench.new))
    floor = float(frechet_floor(real, min(len(made), len(real) // 2), seed=bench.seed).mean())
    value = frechet(made, real) - floor
    row = {"measure": "frechet", "value": value, "ci_lo": np.nan, "ci_hi": np.nan, "n": len(made)}
    told = pd.DataFrame({"item": [text for text, _ in asked], "value": right}).assign(
        set="alignment", group="base", split="", own=np.nan
    )
    return [told, pd.DataFrame([row])]


def _errors(bench: Bench, subject: Pipeline) -> pd.DataFrame:
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
