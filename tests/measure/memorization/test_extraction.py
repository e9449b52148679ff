"""Copies are told from honest images at the false-positive rate that was asked for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from interp.errors import UsageError
from interp.measure.memorization.distances import distances, nearest, pixels, unique
from interp.measure.memorization.encoder import train_encoder
from interp.measure.memorization.extraction import Yardstick, extraction, rates
from tests.measure.memorization.images import copies, parts


@dataclass(frozen=True)
class Item:
    name: str
    image: torch.Tensor
    group: str = "memorized"
    split: str = "test"
    exposures: int = 70
    mask: torch.Tensor | None = None


def test_nearest_neighbours_are_those_of_a_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(7, 3, generator=generator), torch.randn(9, 3, generator=generator)
    found, at = nearest(a, b, 2)
    for i in range(7):
        naive = sorted((float((a[i] - b[j]).square().sum().sqrt()), j) for j in range(9))[:2]
        assert found[i].tolist() == pytest.approx([d for d, _ in naive], rel=1e-5)
        assert at[i].tolist() == [j for _, j in naive]
    own, _ = nearest(b, b, others=True)
    assert (own > 0).all() and nearest(b, b)[0].eq(0).all()
    many = torch.randn(1100, 3, generator=generator)  # more than one chunk: each leaves out its own place
    assert (nearest(many, many, others=True)[0] > 0).all()
    with pytest.raises(UsageError, match="9 nearest neighbours were asked for, among 8"):
        nearest(b, b, 9, others=True)
    assert distances(b, b).diagonal().eq(0).all()


def test_duplicates_count_once_and_in_order() -> None:
    images = parts()[0][:4]
    assert torch.equal(unique(images[[2, 0, 2, 1, 0, 2]]), images[[2, 0, 1]])


def test_the_threshold_is_the_quantile_of_held_out_images_and_holds_on_others() -> None:
    train, held, new = parts()
    yardstick = Yardstick(train, held)
    gaps = torch.cdist(held.flatten(1), train.flatten(1)).sort(1).values
    assert yardstick.threshold == pytest.approx(np.quantile(gaps[:, 0], 0.01), rel=1e-4)
    assert yardstick.ratio_threshold == pytest.approx(
        np.quantile(gaps[:, 0] / gaps[:, :50].mean(1), 0.01), rel=1e-4
    )
    assert yardstick.threshold == pytest.approx(0.643, abs=0.001)
    # Nine of 357 images that nobody has seen; 1 % were promised, and a quantile of 360 is uncertain by a factor of two.
    assert yardstick.copies(new).mean() == pytest.approx(9 / 357)
    assert yardstick.copies(copies(train[:200], 0.03)).all()
    assert not yardstick.copies(copies(train[:200], 0.2)).any()
    # What stands in the training set often moves no threshold: it is one image.
    often = Yardstick(torch.cat([train, train[:1].expand(70, -1, -1, -1)]), held)
    assert (often.threshold, often.ratio_threshold) == (yardstick.threshold, yardstick.ratio_threshold)
    near = copies(train[:1], 0.03)
    assert (
        often.measure(near).ratio == pytest.approx(yardstick.measure(near).ratio) and len(often.train) == 1080
    )


def test_a_yardstick_needs_images_that_are_new() -> None:
    train, held, _ = parts()
    with pytest.raises(UsageError, match="among the training images"):
        Yardstick(train, torch.cat([held, train[:1]]))
    with pytest.raises(UsageError, match="99 held-out images cannot tell a quantile"):
        Yardstick(train, held[:99])


def test_samples_are_judged_by_their_own_image_and_by_any() -> None:
    train, held, new = parts()
    yardstick = Yardstick(train, held)
    items = [Item("a", train[0]), Item("b", train[1]), Item("c", new[0], group="never")]
    samples = torch.stack(
        [
            torch.cat([copies(train[:1], 0.02), train[:1]]),  # a: a near copy and an exact one
            torch.cat([train[2:3], held[:1]]),  # b: a copy of another image, and a new one
            torch.cat([new[1:2], new[:1]]),  # c: a new image, and a copy of what was never trained
        ]
    )
    table = extraction(samples, items, yardstick)
    assert table["extracted"].tolist() == [True, True, False, False, False, True]
    assert table["copied"].tolist() == [True, True, True, False, False, False]
    assert table["top1"].tolist() == [True, True, False, False, False, False]
    assert table["own"].tolist() == pytest.approx(
        [float((s - i.image).norm()) for own, i in zip(samples, items, strict=True) for s in own],
        abs=1e-5,
    )
    near = torch.cdist(samples.flatten(0, 1).flatten(1), train.flatten(1)).sort(1).values
    around = near[:, :50].mean(1)
    assert table["ratio"].tolist() == pytest.approx((near[:, 0] / around).tolist(), abs=1e-3)
    assert table["own_ratio"].tolist() == pytest.approx((table["own"] / around.numpy()).tolist(), abs=1e-3)
    assert table["extracted_ratio"].tolist() == (table["own_ratio"] < yardstick.ratio_threshold).tolist()
    # An item with several images is extracted by any of them.
    several = extraction(samples, items, yardstick, images={"b": train[1:3]})
    assert several["extracted"].tolist() == [True, True, True, False, False, True]
    with pytest.raises(UsageError, match="3 stacks of samples for 2 items"):
        extraction(samples, items[:2], yardstick)
    with pytest.raises(UsageError, match="one name"):
        extraction(samples, [items[0], items[0], items[1]], yardstick)


def test_rates_are_of_samples_and_of_items_with_intervals_over_items() -> None:
    train, held, _ = parts()
    yardstick = Yardstick(train, held)
    items = [Item(f"{i}", train[i], group="memorized" if i < 10 else "control") for i in range(20)]
    samples = torch.stack([torch.cat([train[i : i + 1], held[:2]]) for i in range(20)])
    samples[10:, 0] = held[2]  # controls: nothing is copied
    samples[5:10, 1] = train[5:10]  # half of the memorized ones: two samples of three
    out = rates(extraction(samples, items, yardstick)).set_index(["group", "metric"])
    own = out.loc["memorized"]
    assert own["value"].to_dict() == pytest.approx(
        {"extracted_image": 0.5, "extracted_any": 1.0, "extracted_most": 0.5}
        | {"copied_image": 0.5, "copied_any": 1.0, "copied_most": 0.5}
    )
    assert own.loc["extracted_image", ["n_items", "n"]].tolist() == [10, 30]
    low, high = own.loc["extracted_any", ["ci_lo", "ci_hi"]]
    assert (low, high) == pytest.approx((0.025**0.1, 1.0))  # Clopper-Pearson of 10 items, not of 30 samples
    assert own.loc["extracted_image", "ci_lo"] < 0.42 < 0.58 < own.loc["extracted_image", "ci_hi"]
    assert (out.loc["control"]["value"] == 0).all()
    # All thirty samples of ten items: ten items are what the interval knows.
    every = extraction(train[:10, None].expand(-1, 3, -1, -1, -1), items[:10], yardstick)
    every = rates(every).set_index("metric").loc["extracted_image"]
    assert (every["value"], every["ci_lo"]) == (1.0, pytest.approx(0.025**0.1))


def test_a_template_is_found_inside_its_mask_only() -> None:
    train, held, _ = parts()
    inside = torch.ones(8, 8, dtype=torch.bool)
    inside[4:, 4:] = False
    varied = train[:40].clone()
    varied[:, :, 4:, 4:] = held[:40, :, 4:, 4:].flip(0)
    assert Yardstick(train, held).copies(varied).mean() < 0.2
    whole, part = Yardstick(train, held), Yardstick(train, held, mask=inside)
    assert part.copies(varied).all() and part.threshold < whole.threshold
    gaps = torch.cdist(held[:, :, inside].flatten(1), train[:, :, inside].flatten(1)).amin(1)
    assert part.threshold == pytest.approx(np.quantile(gaps, 0.01), rel=1e-4)
    # Items bring their own mask, and others are judged as ever.
    items = [Item("template", train[0], mask=inside), Item("whole", train[0])]
    table = extraction(varied[None, :1].expand(2, -1, -1, -1, -1), items, whole)
    assert table["extracted"].tolist() == table["copied"].tolist() == [True, False]
    assert table["own"][0] == 0 and table["top1"][0]
    assert table["own_ratio"][0] == 0
    with pytest.raises(UsageError, match="no pixel"):
        Yardstick(train, held, mask=inside & ~inside)


@pytest.fixture(scope="module")
def encoder() -> torch.nn.Module:
    return train_encoder(parts()[0], steps=60)


def test_a_trained_encoder_forgives_what_pixels_do_not(encoder: torch.nn.Module, rng_untouched: None) -> None:
    train, held, new = parts()
    by_pixels, learned = Yardstick(train, held), Yardstick(train, held, encoder=encoder)
    pale = (train[:200] - 0.5) * 0.6 + 0.5
    assert by_pixels.copies(pale).mean() < 0.05
    assert learned.copies(pale).mean() > 0.5
    assert learned.copies(copies(train[:200], 0.03)).mean() > 0.95
    assert learned.copies(new).mean() <= 0.03
    assert encoder(new).norm(dim=1) == pytest.approx(torch.ones(len(new)), abs=1e-5)


def test_an_encoder_depends_on_its_seed_alone(rng_untouched: None) -> None:
    train = parts()[0][:64]
    one, same, other = (train_encoder(train, steps=3, batch=16, seed=s) for s in (0, 0, 1))
    assert torch.equal(one(train), same(train)) and not torch.equal(one(train), other(train))
    with pytest.raises(UsageError, match="4 x 4 pixels"):
        train_encoder(train[:, :, :3])
    large = train_encoder(torch.rand(8, 3, 33, 48, generator=torch.Generator().manual_seed(0)), steps=1)
    assert large(torch.zeros(2, 3, 33, 48)).shape == (2, 64)


def test_features_have_to_be_numbers() -> None:
    train, held, _ = parts()
    with pytest.raises(UsageError, match="not finite"):
        Yardstick(train, held, encoder=lambda x: pixels(x) / 0)
