"""Frechet distance against closed forms, class alignment against labels, and paired comparisons."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import linalg

from interp.errors import UsageError
from interp.measure.memorization.objective import loss
from interp.measure.memorization.retention import (
    Judge,
    compared,
    frechet,
    frechet_floor,
    held_out_loss,
    sampled,
)
from interp.tasks.memorized import ImageItem
from tests.measure.memorization.images import HELD, TRAIN, digits, parts
from tests.pipelines import pixels


def test_frechet_distance_is_the_closed_form() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(300, 4)) @ rng.normal(size=(4, 4)), rng.normal(size=(200, 4)) + 1.0
    first, second = np.cov(a.T), np.cov(b.T)
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(
        first + second - 2 * linalg.sqrtm(first @ second).real
    )
    x, y = torch.tensor(a), torch.tensor(b)
    assert frechet(x.float(), y.float()) == pytest.approx(expected, rel=1e-4)
    assert frechet(y, x) == pytest.approx(frechet(x, y), rel=1e-9)
    assert frechet(x, x) == pytest.approx(0, abs=1e-9)
    # One axis: (gap of means)^2 + (gap of standard deviations)^2; and a flat axis is no trouble.
    one = torch.tensor([[0.0, 0.0], [2.0, 0.0]])
    two = torch.tensor([[5.0, 0.0], [5.0, 0.0]])
    assert frechet(one, two) == pytest.approx(16 + 2)
    with pytest.raises(UsageError, match="two images"):
        frechet(x[:1], y)


def test_the_floor_is_what_real_images_give_and_falls_with_their_number() -> None:
    real = parts()[0].flatten(1)
    few, many = frechet_floor(real, 60).mean(), frechet_floor(real, 500).mean()
    assert few > 3 * many > 0
    assert np.array_equal(frechet_floor(real, 60, draws=3), frechet_floor(real, 60, draws=3))
    new = parts()[2].flatten(1)
    assert frechet(new, real) < 1.5 * frechet_floor(real, len(new)).mean()
    with pytest.raises(UsageError, match="two at least"):
        frechet_floor(real, len(real) - 1)


@pytest.fixture(scope="module")
def judge() -> Judge:
    images, labels = digits()
    return Judge(images[:TRAIN], labels[:TRAIN])


def test_a_judge_knows_digits(judge: Judge) -> None:
    images, labels = digits()
    held = slice(TRAIN, TRAIN + HELD)
    assert judge.accuracy(images[held], labels[held]) > 0.98
    wrong = (labels[held] + 1) % 10
    assert judge.accuracy(images[held], wrong) < 0.02
    with pytest.raises(UsageError, match="360 images and 2 labels"):
        judge.right(images[held], [0, 1])


def test_samples_are_compared_with_their_prompts_and_with_real_images(judge: Judge) -> None:
    images, labels = digits()
    by_class = [images[labels == d][:8] for d in range(10)]
    good = torch.stack(by_class)
    out = sampled(good, list(range(10)), images[TRAIN:], judge=judge).set_index("metric")
    assert out.loc["alignment", "value"] == 1.0 and out.loc["alignment", "n"] == 80
    assert out.loc["alignment", "ci_lo"] == pytest.approx(0.025**0.1)  # ten prompts, not eighty samples
    assert out.loc["frechet", "value"] < 1.6 * out.loc["frechet", "floor"]
    turned = sampled(good.roll(1, 0), list(range(10)), images[TRAIN:], judge=judge).set_index("metric")
    assert turned.loc["alignment", "value"] == 0.0
    assert turned.loc["frechet", "value"] == pytest.approx(out.loc["frechet", "value"])
    same = sampled(good[:1].expand(10, -1, -1, -1, -1), [0] * 10, images[TRAIN:], judge=judge)
    assert same.set_index("metric").loc["frechet", "value"] > 2.0


def test_conditions_are_compared_item_by_item() -> None:
    rng = np.random.default_rng(0)
    before = rng.normal(size=40) * 5
    values = {"before": before, "same": before.copy(), "worse": before + 0.3 + 0.1 * rng.normal(size=40)}
    clusters = [str(i) for i in range(40)]
    out = compared(values, clusters).set_index("condition")
    assert out.loc["same", ["delta", "delta_lo", "delta_hi", "p"]].tolist() == [0.0, 0.0, 0.0, 1.0]
    worse = out.loc["worse"]
    assert worse["delta"] == pytest.approx(0.3, abs=0.05) and worse["p"] < 0.001
    # Paired: much narrower than the values themselves.
    assert worse["delta_hi"] - worse["delta_lo"] < 0.1 < worse["ci_hi"] - worse["ci_lo"]
    with pytest.raises(UsageError, match="no condition 'before'"):
        compared({"after": before}, clusters)


def test_the_loss_on_held_out_images_is_the_objective() -> None:
    images, _ = digits()
    items = [ImageItem(f"{i}", "a photo of zero", images[i]) for i in range(3)]
    found = held_out_loss(pixels(), items, draws=2, seed=1)
    assert found == pytest.approx(loss(pixels(), items, draws=2, seed=1).detach().numpy())
    assert found.shape == (3,) and (found > 0).all()
