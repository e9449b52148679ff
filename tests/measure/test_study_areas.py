"""Areas of a study's curves: of all doses, or of none."""

from __future__ import annotations

import numpy as np
import pytest

from interp.intervene.ablate import ablate
from interp.measure.effects import Measured
from interp.measure.outcomes import Outcomes
from interp.measure.plans import Condition
from interp.studies.tables import areas
from tests.subjects import examples


def test_a_draw_that_lacks_a_dose_has_no_area() -> None:
    """One head has few others in its layer: later draws begin at a larger dose, and their mean is of other doses."""
    cuts = [Condition(ablate(" ".join(f"L0H{i}" for i in range(k))), "cut", k) for k in (1, 2, 3)]
    draws = [
        Condition(ablate(" ".join(f"L{draw + 1}H{i}" for i in range(k))), "control", k, draw, 2, "layer")
        for draw in (0, 1)
        for k in (1, 2, 3)[draw:]
    ]
    plan = [*cuts, *draws]
    values = {c.name: {"accuracy": np.full(3, 1.0 / c.k)} for c in plan}
    found = areas(Measured(Outcomes(examples(), values), tuple(plan), "ok"), {"copy": plan})
    assert list(zip(found["condition"], found["draw"], strict=True)) == [("cut", -1), ("control", 0)]
    assert found["value"][0] == pytest.approx(found["value"][1])
