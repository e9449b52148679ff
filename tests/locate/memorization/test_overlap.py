"""Overlap of masks and subspaces against deals of the items, and how few items cover the others."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from interp.errors import UsageError
from interp.locate.memorization.masks import random_like
from interp.locate.memorization.overlap import (
    _dealt,
    angle_test,
    coverage,
    independent_iou,
    iou,
    matrix,
    mean_iou,
    principal_angles,
    shared_energy,
    split_test,
)
from interp.locate.memorization.subspace import ContrastSubspace
from interp.locate.memorization.wanda import WandaContrast
from interp.models.parts import Part
from tests.locate.memorization.planted_columns import CONTROLS, HELD_OUT, MEMORY, TARGETS, planted

ONE, TWO = Part("unet.one", "ff_out", 0), Part("unet.two", "ff_out", 1)
SETS = {"located": (0, 1, 2), "held out": (3, 4, 5), "controls": (6, 7, 8)}
POOL = (*TARGETS, *HELD_OUT, *CONTROLS[:3])


def _mask(*at: int, n: int = 8) -> torch.Tensor:
    out = torch.zeros(1, n, dtype=torch.bool)
    out[0, list(at)] = True
    return out


def test_overlap_of_masks() -> None:
    a = {ONE: _mask(0, 1, 2), TWO: _mask(5)}
    b = {ONE: _mask(1, 2, 3, 4), TWO: _mask()}
    assert iou(a, b) == {ONE: 2 / 5, TWO: 0.0}
    assert mean_iou(a, b) == pytest.approx(0.2)
    assert mean_iou({TWO: _mask()}, {TWO: _mask()}) != mean_iou(
        a, b
    )  # nothing in common with nothing is no number
    assert mean_iou({ONE: _mask(1), TWO: _mask()}, {ONE: _mask(1), TWO: _mask()}) == 1.0
    table = matrix({"a": a, "b": b, "c": a})
    assert table[table["part"] == ""].set_index(["a", "b"])["iou"].to_dict() == {
        ("a", "b"): pytest.approx(0.2),
        ("a", "c"): 1.0,
        ("b", "c"): pytest.approx(0.2),
    }
    assert len(table) == 9


def test_independent_masks_overlap_as_said() -> None:
    generator = torch.Generator().manual_seed(0)
    like = {ONE: torch.rand(200, 64, generator=generator) < 0.2}
    a, b = random_like(like, 1), random_like(like, 2)
    assert mean_iou(a, b) == pytest.approx(independent_iou(a, b), abs=0.01)
    assert independent_iou(a, b) == pytest.approx(0.2 / 1.8, abs=0.01)


def test_angles_of_subspaces() -> None:
    axes = torch.eye(6).double()
    turned = axes[:, :2].clone()
    turned[:, 1] = (axes[:, 1] * np.cos(0.5) + axes[:, 4] * np.sin(0.5)).double()
    np.testing.assert_allclose(principal_angles(axes[:, :2], turned), [0, np.degrees(0.5)], atol=1e-5)
    assert shared_energy(axes[:, :2], turned) == pytest.approx((1 + np.cos(0.5) ** 2) / 2)
    assert shared_energy(axes[:, :2], axes[:, 3:]) == pytest.approx(0)
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randn(20, 2, generator=generator).double() for _ in range(200)]
    random = [shared_energy(a, b) for a, b in zip(drawn[::2], drawn[1::2], strict=True)]
    assert np.mean(random) == pytest.approx(2 / 20, abs=0.03)


def test_deals_keep_sizes_and_give_an_exact_p() -> None:
    worth = [5.0, 4.0, 3.0, 0.0, 0.5, 0.2]
    seen = []

    def measure(dealt: Any) -> Any:
        seen.append({name: tuple(own) for name, own in dealt.items()})
        pairs = [("a", "b"), ("a", "c"), ("b", "c")]
        sums = {name: sum(worth[i] for i in own) for name, own in dealt.items()}
        return {(x, y): {"overlap": sums[x] + sums[y]} for x, y in pairs}

    statistics, rows = _dealt(measure, {"a": (0, 1), "b": (2,), "c": (3, 4, 5)}, 400, 0, lambda *_: None)
    assert seen[0] == {"a": (0, 1), "b": (2,), "c": (3, 4, 5)}
    assert all(sorted(sum(s.values(), ())) == [0, 1, 2, 3, 4, 5] and len(s["c"]) == 3 for s in seen)
    found = statistics.set_index("statistic")
    assert found.loc["overlap", "value"] == 12.0 and found.loc["excess", "value"] == 12.0 - (9.7 + 3.7) / 2
    # The first two sets hold the three best in 1 of the 20 choices of three.
    assert found.loc["overlap", "p"] == pytest.approx(1 / 20, abs=0.03)
    assert found.loc["overlap", "mean"] == pytest.approx(12.7 / 2, abs=0.3)
    assert found.loc["overlap", "draws"] == 400 and len(rows) == 401 * 3
    again, _ = _dealt(measure, {"a": (0, 1), "b": (2,), "c": (3, 4, 5)}, 400, 0, lambda *_: None)
    assert again.equals(statistics)


class OfDigits(WandaContrast):
    """Masks of what items show and of nothing else: item i shows digit i % 5, which has two columns of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.scores_ = pd.DataFrame({"n": [15]})

    def mask(self, share: float | None = None, **options: Any) -> dict[Part, torch.Tensor]:
        return {ONE: _mask(*(c for i in options["items"] for c in (2 * (i % 5), 2 * (i % 5) + 1)), n=12)}


def test_what_items_show_is_no_memory_when_deals_are_within_strata() -> None:
    """Each set shows every digit once, and nothing is shared beyond the digits."""
    sets = {"a": range(5), "b": range(5, 10), "controls": range(10, 15)}
    free, _ = split_test(OfDigits(), sets, draws=99)
    digits = [i % 5 for i in range(15)]
    within, rows = split_test(OfDigits(), sets, draws=99, strata=digits)
    p, q = (told.set_index("statistic").loc["overlap", "p"] for told in (free, within))
    assert p <= 0.05, "free deals have some digits twice and others never"
    assert q == 1 and (within["value"] == within["mean"]).all() and (rows["overlap"] == 1).all()


def test_deals_within_strata_reach_all_that_strata_allow() -> None:
    seen = set()

    def measure(dealt: Any) -> Any:
        seen.add(tuple(tuple(sorted(own)) for own in dealt.values()))
        return {("a", "b"): {"overlap": 0.0}}

    # Item numbers are not places: labels are looked up by the number of the item.
    labels = ["unused", "x", "y", "y", "x", "x"]
    _dealt(measure, {"a": (5, 2), "b": (1, 3, 4)}, 200, 0, lambda *_: None, labels)
    assert seen == {((y, x), tuple(sorted({1, 2, 3, 4, 5} - {x, y}))) for x in (4, 5) for y in (2, 3)} | {
        ((1, y), tuple(sorted({2, 3, 4, 5} - {y}))) for y in (2, 3)
    }


def test_strata_that_cannot_be_dealt_are_told() -> None:
    sets = {"a": range(5), "b": range(5, 10), "controls": range(10, 15)}
    with pytest.raises(UsageError, match="strata 'lone', 'two': their items are of one set alone"):
        split_test(OfDigits(), sets, strata=["lone", *"xxxx", *"xxx", "two", "two", *"xxxxx"])
    with pytest.raises(UsageError, match="14 strata for 15 items"):
        split_test(OfDigits(), sets, strata=["x"] * 14)


@pytest.fixture(scope="module")
def plant() -> tuple[Part, WandaContrast]:
    it = planted()
    return it.part, WandaContrast(null="paired", steps=4, tau=2).fit(it.pipe, list(POOL))


def test_shared_memory_overlaps_beyond_deals(plant: tuple[Part, WandaContrast]) -> None:
    part, found = plant
    masks = {name: found.mask(7 / 64, items=own) for name, own in SETS.items()}
    shared = masks["located"][part] & masks["held out"][part]
    assert bool(shared[:, list(MEMORY)].all()) and not bool(masks["controls"][part][:, list(MEMORY)].any())
    statistics, rows = split_test(found, SETS, share=7 / 64, draws=59)
    values = statistics.set_index("statistic")
    own = rows[rows["draw"] == -1].set_index(["a", "b"])
    assert values.loc["overlap", "value"] == pytest.approx(mean_iou(masks["located"], masks["held out"]))
    assert own.loc[("located", "controls"), "overlap"] == pytest.approx(
        mean_iou(masks["located"], masks["controls"])
    )
    assert values.loc["excess", "p"] <= 0.05 and values.loc["excess", "value"] > values.loc["excess", "hi"]
    # Masks of controls overlap far beyond independence, too: 0 is no null.
    assert own.loc[("located", "controls"), "overlap"] > 2 * own.loc[("located", "controls"), "independent"]


def test_sets_of_one_kind_do_not(plant: tuple[Part, WandaContrast]) -> None:
    _, found = plant
    statistics, _ = split_test(found, {"a": (0, 3), "b": (1, 4), "c": (2, 5)}, share=7 / 64, draws=59)
    assert statistics.set_index("statistic")["p"].between(0.05, 0.95).all()
    with pytest.raises(UsageError, match="two or more sets of items that share none"):
        split_test(found, {"a": (0, 1), "b": (1, 2)})


def test_one_item_covers_the_others_where_memory_is_shared(plant: tuple[Part, WandaContrast]) -> None:
    _, found = plant
    table = coverage(found, range(6), controls=(6, 7, 8), orders=6, share=7 / 64)
    assert len(table) == 6 * 5 * 2
    curve = table.groupby(["kind", "k"])["covered"].mean()
    assert (curve["item"].diff().dropna() >= 0).all() and (curve["item"] > curve["control"]).all()
    row = table[(table["kind"] == "item") & (table["k"] == 1) & (table["order"] == 0)].iloc[0]
    last = found.mask(7 / 64, items=[int(row["item"])])
    found_in = []
    for first in set(range(6)) - {int(row["item"])}:
        other = found.mask(7 / 64, items=[first])
        both = sum(int((last[p] & other[p]).sum()) for p in last)
        found_in.append(both / sum(int(m.sum()) for m in last.values()))
    assert min(abs(row["covered"] - v) for v in found_in) < 1e-12
    assert row["chance"] == pytest.approx(7 / 64, abs=0.02) and row["covered"] > 3 * row["chance"]
    assert row["union"] < 7 / 64 + 1e-9


def test_shared_directions_overlap_beyond_deals() -> None:
    it = planted()
    found = ContrastSubspace("paired", groups=9, steps=4, tau=2, draws=1, limit=24).fit(it.pipe, list(POOL))
    statistics, rows = angle_test(found, SETS, rank=2, draws=39)
    kinds = ["x", "y", "z"] * 3
    within, apart = angle_test(found, SETS, rank=2, draws=9, strata=kinds)
    assert (within["value"] == statistics["value"]).all() and not within["mean"].equals(statistics["mean"])
    assert len(apart) == 10 * 3
    with pytest.raises(UsageError, match="8 strata for 9 groups"):
        angle_test(found, SETS, strata=kinds[:8])
    with pytest.raises(UsageError, match="strata 'a', 'b', 'c'"):
        angle_test(found, SETS, strata=[*"aaabbbccc"])
    own = rows[rows["draw"] == -1].set_index(["a", "b"])["overlap"]
    spans = [found.directions(it.part, own_groups, 2) for own_groups in SETS.values()]
    assert shared_energy(spans[0], spans[1]) > 0.95 > shared_energy(spans[0], spans[2])
    expected = np.mean(
        [
            shared_energy(found.directions(p, SETS["located"], 2), found.directions(p, SETS["held out"], 2))
            for p in found.parts_
        ]
    )
    assert own["located", "held out"] == pytest.approx(expected)
    assert statistics.set_index("statistic").loc["excess", "p"] <= 0.05
    torch.testing.assert_close(
        found.directions(it.part, range(9), 2).T @ found.basis(it.part, 2),
        torch.eye(2).double(),
        rtol=0,
        atol=1e-6,
    )
    with pytest.raises(UsageError, match=r"groups=\[9\]: write some of 0 to 8"):
        found.directions(it.part, [9], 1)
