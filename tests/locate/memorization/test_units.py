"""The table of units: a mean over target items, less that over other items."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from interp.locate.memorization.units import unit_table
from interp.models.parts import Part


def test_reference_items_may_be_more_than_target_items() -> None:
    part = Part("a.b", "ff_out", 0)
    target, other = torch.tensor([[1.0, 4.0], [3.0, 4.0]]), torch.tensor([[0.0, 1.0], [1.0, 1.0], [2.0, 4.0]])
    found = unit_table("m", {part: target}, {part: other})
    assert found["score"].tolist() == pytest.approx([1.0, 2.0]) and found["n"].tolist() == [2, 2]
    assert found["se"].iloc[0] == pytest.approx(np.sqrt(2 / 2 + 1 / 3))
    assert unit_table("m", {part: target})["null"].tolist() == [0.0, 0.0]
