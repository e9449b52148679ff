"""Do A and B share weights? Overlap of their masks and directions against deals of all items, and coverage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import pandas as pd

from interp.studies.memorization.bench import Bench, Role
from interp.studies.memorization.cuts import REFERENCE, RULES, Cuts

if TYPE_CHECKING:
    from interp.tasks.memorized import ImageItem

OVERLAPPED = (REFERENCE, "wanda corrected")
KS = (1, 2, 4, 8, 16, 32, 64)
"""Units of NeMo that are blocked."""


def strata_of(sets: Mapping[str, Sequence[ImageItem]]) -> list[str] | None:
    """What the items of all sets show, so that they are exchanged with their like alone; None where sets are not alike.

    Sets that have each digit once overlap more than free deals of their items. Digits that one set alone has make one
    stratum together, unless that too is of one set.
    """
    from interp.models.zoo.digits.data import DIGITS

    owners = [
        (name, next(w for w in item.prompt.split() if w in DIGITS))
        for name, own in sets.items()
        for item in own
    ]
    alone = {digit for _, digit in owners if len({name for name, other in owners if other == digit}) < 2}
    if alone and len({name for name, digit in owners if digit in alone}) < 2:
        return None
    return ["others" if digit in alone else digit for _, digit in owners]


def overlaps(
    bench: Bench, cuts: Cuts, role: Role, shares: Sequence[float]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Overlap of A and B, and of each with controls: rows of `overlap` and `overlaps`.

    An oracle holds neither A nor B: what they share there is no memory.
    """
    from interp.locate.memorization.overlap import angle_test, split_test
    from interp.locate.memorization.subspace import ContrastSubspace

    spec = bench.spec
    own = {"A": bench.sets["targeted"], "B": bench.sets["held_out"], "controls": bench.sets["control"]}
    items = [item for some in own.values() for item in some]
    sets, at = {}, 0
    for name, some in own.items():
        sets[name] = range(at, at + len(some))
        at += len(some)
    subject = bench.subject(role)
    found = cuts.every(role)
    strata = strata_of(own)
    dealt = "free" if strata is None else "by digit"
    frames, pairs = [], []
    for share in shares:
        for name in OVERLAPPED:
            rule, null = RULES[name]
            with bench.stage(f"overlap {name} {share:g}") as report:
                from interp.models.cache import quiet

                told, rows = split_test(
                    found, sets, draws=spec.draws, seed=spec.seed, progress=report or quiet,
                    strata=strata, share=share, rule=rule, null=null,
                )  # fmt: skip
            frames.append(told.assign(method=name, share=share, n_items=len(items)))
            pairs.append(rows.assign(method=name, share=share))
    locator = ContrastSubspace(
        "paired", tau=spec.tau, steps=spec.steps, groups=len(items), most=max(spec.ranks), draws=1
    )
    with bench.stage("overlap of directions") as report:
        from interp.models.cache import quiet

        subspace = locator.fit(subject, items)
        told, rows = angle_test(
            subspace, sets, rank=2, strata=strata, draws=spec.draws, seed=spec.seed, progress=report or quiet
        )
    frames.append(told.assign(method="subspace", share=float("nan"), n_items=len(items)))
    pairs.append(rows.assign(method="subspace", share=float("nan")))
    return (
        pd.concat(frames, ignore_index=True).assign(seed=bench.seed, role=role, dealt=dealt),
        pd.concat(pairs, ignore_index=True).assign(seed=bench.seed, role=role),
    )


def covered(bench: Bench, cuts: Cuts, share: float) -> pd.DataFrame:
    """How much of an item is covered by others: rows of `coverage`."""
    from interp.errors import UsageError
    from interp.locate.memorization.overlap import coverage

    spec = bench.spec
    memorized = [*bench.sets["targeted"], *bench.sets["held_out"]]
    items = [*memorized, *bench.sets["control"]]
    rows = coverage(
        cuts.every("model"),
        range(len(memorized)),
        controls=range(len(memorized), len(items)),
        orders=10,
        seed=spec.seed,
        share=share,
        rule="reference",
    )
    by = rows.groupby(["k", "kind"], sort=True)
    wanda = by.agg(
        covered=("covered", "mean"), chance=("chance", "mean"), n=("covered", "size")
    ).reset_index()
    low, high = by["covered"].quantile(0.025), by["covered"].quantile(0.975)
    wanda = wanda.assign(method="wanda", lo=low.to_numpy(), hi=high.to_numpy())
    try:
        blocked = cuts.nemo.coverage(list(bench.sets["held_out"]), KS)
    except UsageError:
        # No prompt of A, or none of B, passes NeMo's gate: there is nothing to cover.
        return wanda.assign(seed=bench.seed)
    blocked = blocked.rename(columns={"ci_lo": "lo", "ci_hi": "hi"})
    blocked = blocked.assign(method="nemo", kind="item", chance=float("nan"))
    names = ["method", "k", "kind", "covered", "lo", "hi", "chance", "n"]
    return pd.concat([wanda[names], blocked[names]], ignore_index=True).assign(seed=bench.seed)
