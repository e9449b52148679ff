"""Do two sets of items share weights? Overlaps of their masks and subspaces, and what chance makes of them.

Overlap is never compared with 0: masks of any two sets of prompts overlap, since columns that are strong are strong for
all. The null is that of labels: memorized and control items are pooled and dealt out anew, and all that made the masks
is done again, from the sums that are there. Sets are disjoint, and the overlap of a set with itself is part of no mean.

Labels may be dealt out freely only if nothing but the label sets the items apart. Sets that are balanced by what their
items show, each with every digit once, overlap more than free deals of the same items, which have some digits twice and
others never: a model that holds none of them then seems to share memory. Such items are dealt within strata.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float

from interp.errors import UsageError
from interp.locate.memorization.masks import Masks
from interp.models.cache import Progress, quiet
from interp.tasks.base import stable_seed

if TYPE_CHECKING:
    from interp.locate.memorization.subspace import ContrastSubspace
    from interp.locate.memorization.wanda import WandaContrast
    from interp.models.parts import Part

DRAWS = 200


def iou(a: Masks, b: Masks) -> dict[Part, float]:
    """Of each part, weights in both masks over weights in either; NaN where both are empty."""
    out = {}
    for part in a:
        either = int((a[part] | b[part]).sum())
        out[part] = int((a[part] & b[part]).sum()) / either if either else float("nan")
    return out


def mean_iou(a: Masks, b: Masks) -> float:
    """Mean of the parts' overlaps, parts that are empty on both sides left out; NaN where all are."""
    values = [v for v in iou(a, b).values() if not np.isnan(v)]
    return float(np.mean(values)) if values else float("nan")


def matrix(masks: Mapping[str, Masks]) -> pd.DataFrame:
    """Overlap of each pair of sets: one row a pair and part (`` for the mean), no set with itself: a, b, part, iou."""
    rows = []
    for a, b in combinations(masks, 2):
        rows.append({"a": a, "b": b, "part": "", "iou": mean_iou(masks[a], masks[b])})
        rows += [{"a": a, "b": b, "part": repr(p), "iou": v} for p, v in iou(masks[a], masks[b]).items()]
    return pd.DataFrame(rows)


def independent_iou(a: Masks, b: Masks) -> float:
    """Mean overlap that masks with as many weights in each row have when they are drawn independently (approximate)."""
    values = []
    for part in a:
        n = a[part].shape[1]
        x, y = a[part].sum(1).double(), b[part].sum(1).double()
        both = float((x * y / n).sum())
        either = float((x + y).sum()) - both
        if either:
            values.append(both / either)
    return float(np.mean(values)) if values else float("nan")


def principal_angles(a: Float[torch.Tensor, "d p"], b: Float[torch.Tensor, "d q"]) -> Float[np.ndarray, " k"]:
    """Angles between two subspaces in degrees, the smallest first (0: a direction is shared; 90: none is)."""
    from scipy.linalg import subspace_angles

    angles = np.degrees(subspace_angles(a.double().cpu().numpy(), b.double().cpu().numpy()))
    return np.asarray(angles[::-1])


def shared_energy(a: Float[torch.Tensor, "d p"], b: Float[torch.Tensor, "d q"]) -> float:
    """Mean squared cosine of the principal angles, in [0, 1]; random subspaces have max(p, q) / d."""
    return float((np.cos(np.radians(principal_angles(a, b))) ** 2).mean())


def split_test(
    found: WandaContrast,
    sets: Mapping[str, Sequence[int]],
    *,
    strata: Sequence[Hashable] | None = None,
    draws: int = DRAWS,
    seed: int = 0,
    progress: Progress = quiet,
    **options: Any,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Whether the masks of the first two sets overlap more than those of sets dealt out from all items.

    Two statistics. `overlap`: of the first two sets. A deal mixes memorized and control items in both, so it asks
    whether memorized items share more than such mixtures do. `excess`, where there is a third set (controls): that
    overlap less the mean of each one's with the third; over deals it scatters about 0.

    Args:
        found: fitted on the items of all sets together, with one null for all.
        sets: numbers of items by name, disjoint: two halves of the memorized items, then controls.
        strata: of each item that was fitted, a label of what it shows beside its set (its digit, its noun). Items are
            exchanged with items of their own stratum alone, so that each set of a deal shows what the set itself does.
            Needed wherever the sets were balanced by such labels; None: all items may be exchanged.
        draws: deals.
        options: of `WandaContrast.mask` (share, tau, rule, null).

    Returns:
        the statistics: statistic, value, mean and lo, hi (95 %) of the deals, p (one-sided), draws; and the overlaps:
        a, b, overlap (mean IoU of the parts), independent (what as many weights a row give, drawn independently), draw
        (-1 for the sets themselves).

    Raises:
        UsageError: fewer than two sets, an empty one, sets that share an item, not one label an item, or a stratum
            whose items are of one set alone, so that they cannot be dealt.
    """
    _labels(strata, int(found.scores_["n"].iloc[0]), "items")

    def measure(dealt: Mapping[str, list[int]]) -> dict[tuple[str, str], dict[str, float]]:
        masks = {name: found.mask(items=own, **options) for name, own in dealt.items()}
        return {
            (a, b): {
                "overlap": mean_iou(masks[a], masks[b]),
                "independent": independent_iou(masks[a], masks[b]),
            }
            for a, b in combinations(masks, 2)
        }

    return _dealt(measure, sets, draws, seed, progress, strata)


def angle_test(
    found: ContrastSubspace,
    sets: Mapping[str, Sequence[int]],
    *,
    rank: int = 1,
    strata: Sequence[Hashable] | None = None,
    draws: int = DRAWS,
    seed: int = 0,
    progress: Progress = quiet,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """As `split_test`, of subspaces: the overlap is their `shared_energy`, mean over parts.

    Args:
        found: fitted on the items of all sets together, with `groups` the number of items.
        sets: numbers of groups by name, disjoint.
        rank: directions of each part.
        strata: of each group, a label of what it shows; as of `split_test`.

    Raises:
        UsageError: as `split_test`.
    """
    _labels(strata, int(found.scores_["n"].iloc[0]), "groups")

    def measure(dealt: Mapping[str, list[int]]) -> dict[tuple[str, str], dict[str, float]]:
        spans = {n: [found.directions(p, own, rank) for p in found.parts_] for n, own in dealt.items()}
        return {
            (a, b): {
                "overlap": float(
                    np.mean([shared_energy(x, y) for x, y in zip(spans[a], spans[b], strict=True)])
                ),
                "independent": float(np.mean([x.shape[1] / x.shape[0] for x in spans[a]])),
            }
            for a, b in combinations(spans, 2)
        }

    return _dealt(measure, sets, draws, seed, progress, strata)


def _labels(strata: Sequence[Hashable] | None, n: int, what: str) -> None:
    if strata is not None and len(strata) != n:
        raise UsageError(f"{len(strata)} strata for {n} {what}: give one label for each that was fitted")


def _dealt(
    measure: Callable[[Mapping[str, list[int]]], dict[tuple[str, str], dict[str, float]]],
    sets: Mapping[str, Sequence[int]],
    draws: int,
    seed: int,
    progress: Progress,
    strata: Sequence[Hashable] | None = None,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Measure the sets, and sets of their sizes dealt out from all their items, within strata where there are some."""
    names = list(sets)
    pool = [i for own in sets.values() for i in own]
    if len(names) < 2 or len(set(pool)) != len(pool) or not all(len(own) for own in sets.values()):
        raise UsageError(
            "a test of overlap needs two or more sets of items that share none, none of them empty"
        )
    places = _places(sets, strata)
    rng = np.random.default_rng(stable_seed("overlap", seed, sorted(pool)))
    ends = np.cumsum([len(own) for own in sets.values()])[:-1]
    rows, statistics = [], []
    for draw in range(-1, draws):
        order = np.asarray(pool)
        for at in places if draw >= 0 else ():
            order[at] = rng.permutation(order[at])
        pairs = measure({n: own.tolist() for n, own in zip(names, np.split(order, ends), strict=True)})
        rows += [{"a": a, "b": b, **found, "draw": draw} for (a, b), found in pairs.items()]
        first = pairs[names[0], names[1]]["overlap"]
        one = {"overlap": first}
        if len(names) > 2:
            one["excess"] = (
                first - (pairs[names[0], names[2]]["overlap"] + pairs[names[1], names[2]]["overlap"]) / 2
            )
        statistics.append(one)
        progress(draw + 2, draws + 1, "deals")
    frame = pd.DataFrame(statistics)
    out = []
    for statistic in frame.columns:
        value, null = frame[statistic].iloc[0], frame[statistic].iloc[1:]
        out.append(
            {
                "statistic": statistic,
                "value": value,
                "mean": null.mean(),
                "lo": null.quantile(0.025),
                "hi": null.quantile(0.975),
                "p": (1 + int((null >= value - 1e-12).sum())) / (1 + len(null)),
                "draws": len(null),
            }
        )
    return pd.DataFrame(out), pd.DataFrame(rows)


def _places(sets: Mapping[str, Sequence[int]], strata: Sequence[Hashable] | None) -> list[list[int]]:
    """Places of the pooled items that exchange their items: of each stratum, or all."""
    owners = [(name, i) for name, own in sets.items() for i in own]
    if strata is None:
        return [list(range(len(owners)))]
    places: dict[Hashable, list[int]] = {}
    for place, (_, item) in enumerate(owners):
        places.setdefault(strata[item], []).append(place)
    alone = [label for label, at in places.items() if len({owners[k][0] for k in at}) < 2]
    if alone:
        named = ", ".join(map(repr, alone))
        raise UsageError(
            f"strata {named}: their items are of one set alone, so that there is nothing to deal; give each stratum "
            "items of two sets or more, leave those items out, or write coarser strata"
        )
    return list(places.values())


def coverage(
    found: WandaContrast,
    items: Sequence[int],
    *,
    controls: Sequence[int] = (),
    orders: int = 20,
    seed: int = 0,
    **options: Any,
) -> pd.DataFrame:
    """How much of a left-out item's mask the union of k other items' masks covers, as k grows.

    A small shared subspace is covered by few items; masks of their own never are. Covered by chance is the share of
    each row that the union takes.

    Args:
        found: fitted on all of the items.
        items: the items whose masks are united; each order leaves its last one out, too.
        controls: items of another kind, whose masks are covered by the same unions.
        orders: random orders of the items.
        options: of `WandaContrast.mask`.

    Returns:
        one row an order, k and kind (`item`, `control`): order, k, kind, item, covered, chance, union (share of the
        parts' weights that the union takes).

    Raises:
        UsageError: fewer than two items.
    """
    if len(items) < 2:
        raise UsageError("coverage is of items by other items: give at least two")
    masks = {i: found.mask(items=[i], **options) for i in {*items, *controls}}
    rng = np.random.default_rng(stable_seed("coverage", seed, list(items)))
    rows: list[dict[str, Any]] = []
    for order in range(orders):
        *members, last = rng.permutation(np.asarray(items)).tolist()
        left = [("item", last)]
        if len(controls):
            left.append(("control", int(rng.choice(np.asarray(controls)))))
        union: dict[Part, Bool[torch.Tensor, "out in"]] = {
            p: torch.zeros_like(m) for p, m in masks[last].items()
        }
        for k, member in enumerate(members, 1):
            union = {part: union[part] | mask for part, mask in masks[member].items()}
            size = sum(int(m.sum()) for m in union.values()) / sum(m.numel() for m in union.values())
            for kind, item in left:
                total = sum(int(m.sum()) for m in masks[item].values())
                both = sum(int((m & union[p]).sum()) for p, m in masks[item].items())
                chance = sum(
                    float((m.sum(1) * union[p].double().mean(1)).sum()) for p, m in masks[item].items()
                )
                rows.append(
                    {
                        "order": order,
                        "k": k,
                        "kind": kind,
                        "item": item,
                        "covered": both / total if total else float("nan"),
                        "chance": chance / total if total else float("nan"),
                        "union": size,
                    }
                )
    return pd.DataFrame(rows)
