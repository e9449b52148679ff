"""The shapes in signatures are checked while the tests run."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from jaxtyping import Float, TypeCheckError, jaxtyped

from interp.models.engines.base import Rows
from tests.shapes import checked


@jaxtyped(typechecker=checked)
def product(
    a: Float[torch.Tensor, "row inner"], b: Float[torch.Tensor, "inner column"], note: int = 0
) -> Any:
    return a @ b


def test_shapes_that_do_not_fit_are_refused() -> None:
    assert product(torch.ones(2, 3), torch.ones(3, 4)).shape == (2, 4)
    with pytest.raises(TypeCheckError):
        product(torch.ones(3, 3), torch.ones(2, 4).expand(2, 4))
    with pytest.raises(TypeCheckError):
        product(torch.ones(2, 3, dtype=torch.int64), torch.ones(3, 4))


def test_annotations_without_a_shape_are_left_alone() -> None:
    assert product(torch.ones(2, 3), torch.ones(3, 4), "no int").shape == (2, 4)  # type: ignore[arg-type]


def test_the_package_is_imported_under_the_checks() -> None:
    assert Rows(torch.zeros(2, 1, dtype=torch.int64)).columns.shape == (2, 1)
    with pytest.raises(TypeCheckError):
        Rows(torch.zeros(2, dtype=torch.int64))


def test_checks_leave_the_global_random_state_alone(rng_untouched: None) -> None:
    @checked
    def total(rows: list[Float[torch.Tensor, " n"]]) -> float:
        return float(sum(row.sum() for row in rows))

    assert total([torch.ones(2), torch.ones(2)]) == 4
