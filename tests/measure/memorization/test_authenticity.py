"""AuthPct and C_T on constructed copies and on honest images; and what both of them miss."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from interp.errors import UsageError
from interp.measure.memorization.authenticity import authentic, copy_test
from interp.measure.memorization.extraction import Yardstick
from tests.measure.memorization.images import copies, parts


def test_authentic_samples_are_farther_than_training_images_are_from_each_other() -> None:
    train, _, new = parts()
    assert authentic(new, train).mean() == pytest.approx(0.549, abs=0.001)
    assert not authentic(copies(train[:300], 0.02), train).any()
    # By hand: the line 0, 1, 3 and a sample at 1.5: its nearest, 1, has its own nearest at distance 1.
    line = torch.tensor([0.0, 1.0, 3.0]).view(3, 1, 1, 1)
    assert authentic(torch.tensor([1.5, 2.9, 5.5]).view(3, 1, 1, 1), line).tolist() == [False, False, True]


def test_duplicates_in_training_hide_their_copies() -> None:
    train = parts()[0]
    twice = torch.cat([train, train[:50]])
    made = copies(train[:50], 0.02)
    assert not authentic(made, twice).any()
    assert authentic(made, twice, once=False).all()


def test_c_t_is_near_zero_for_honest_images_and_far_below_for_copies() -> None:
    train, held, new = parts()
    assert abs(copy_test(new, train, held).value) < 2
    found = copy_test(copies(train[:300], 0.02), train, held)
    assert found.value < -10
    assert (found.cells["z"] < -5).all() and found.cells["counted"].all()
    assert found.cells[["n_train", "n_test", "n_samples"]].sum().tolist() == [1080, 360, 300]
    assert found.value == pytest.approx(np.average(found.cells["z"], weights=found.cells["n_test"]))
    far = (new * 0.2 + 0.4).clamp(0, 1)
    assert copy_test(far, train, held).value > 5


def test_z_of_a_cell_by_hand() -> None:
    """One cell; distances to training are 1, 2 for samples and 3, 4, 0.5 for tests: U = 2 of 6 pairs."""
    train = torch.zeros(1, 1, 1, 1)
    made, test = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0, 0.5])
    found = copy_test(made.view(2, 1, 1, 1), train, test.view(3, 1, 1, 1), cells=1, least=1)
    assert found.value == pytest.approx((2 - (3 - 0.5)) / np.sqrt(2 * 3 * 6 / 12))


def test_a_few_copies_among_many_honest_samples_are_missed_by_both_and_found_by_extraction() -> None:
    train, held, new = parts()
    mixed = torch.cat([new[:300], copies(train[:1].expand(12, -1, -1, -1), 0.02)])
    # Honest images alone give 0.55 and -0.5.
    assert authentic(mixed, train).mean() > 0.5
    assert copy_test(mixed, train, held).value > -3
    told = Yardstick(train, held).copies(mixed)
    assert told[300:].all() and told[:300].mean() < 0.03


def test_cells_without_images_are_refused_or_left_out() -> None:
    train, held, new = parts()
    with pytest.raises(UsageError, match="more than 400 samples"):
        copy_test(new, train, held, least=400)
    with pytest.raises(UsageError, match="has no test image"):
        copy_test(new, train, held[:2], cells=10)
    zeros = new[[i for i in range(len(new)) if new[i].mean() < new.mean()]][:60]
    some = copy_test(zeros, train, held, cells=5, least=15)
    used = some.cells[some.cells["counted"]]
    assert 0 < len(used) < 5 and (used["n_samples"] > 15).all()
    assert some.value == pytest.approx(np.average(used["z"], weights=used["n_test"]))
