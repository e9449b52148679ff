"""Searches side by side: each as if it were alone, done ones at rest."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from interp.errors import EngineError
from interp.intervene.attack.search import descend, generator


class Bowl:
    """|x - goal|^2 of each start; found where that is below 1. It notes who was asked at each step."""

    def __init__(self, goals: torch.Tensor, size: int = 2):
        self.goals, self.size = goals, size
        self.asked: list[tuple[int, int]] = []

    def groups(self, starts: Sequence[int]) -> list[list[int]]:
        return [list(starts[i : i + self.size]) for i in range(0, len(starts), self.size)]

    def __call__(
        self, starts: Sequence[int], at: torch.Tensor, step: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        self.asked += [(step, i) for i in starts]
        losses = (at - self.goals[list(starts)]).square().sum((1, 2))
        return losses, losses.detach() < 1


GOALS = torch.tensor([[[0.2, 0.1]], [[2.0, -1.0]], [[30.0, 30.0]], [[0.0, 3.0]]])


def alone(goal: torch.Tensor, steps: int, rate: float) -> tuple[torch.Tensor, int, bool]:
    """The search written out for one start."""
    x = torch.zeros_like(goal).requires_grad_()
    adam = torch.optim.Adam([x], lr=rate)
    for step in range(steps + 1):
        loss = (x - goal).square().sum()
        if loss < 1 or step == steps:
            return x.detach(), step, bool(loss < 1)
        adam.zero_grad()
        loss.backward()
        adam.step()
    raise AssertionError


@pytest.mark.parametrize("size", [1, 3, 4])
def test_each_start_goes_as_if_it_were_alone(size: int) -> None:
    goal = Bowl(GOALS, size)
    end = descend(torch.zeros(4, 1, 2), goal, rate=0.25, steps=20)
    for i, (at, steps, found) in enumerate(alone(g, 20, 0.25) for g in GOALS):
        assert torch.equal(end.at[i], at), i
        assert (int(end.steps[i]), bool(end.found[i])) == (steps, found)
    assert end.found.tolist() == [True, True, False, True]
    assert end.steps[0] == 0 and 0 < end.steps[1] < end.steps[2] == 20
    torch.testing.assert_close(end.first, GOALS.square().sum((1, 2)))
    torch.testing.assert_close(end.last, (end.at - GOALS).square().sum((1, 2)))


def test_what_is_found_costs_nothing_more() -> None:
    goal = Bowl(GOALS)
    end = descend(torch.zeros(4, 1, 2), goal, rate=0.25, steps=20)
    asked = [sum(i == n for _, i in goal.asked) for n in range(4)]
    assert asked == (end.steps + 1).tolist() and asked[0] == 1 and asked[2] == 21
    goal = Bowl(GOALS)
    on = descend(torch.zeros(4, 1, 2), goal, rate=0.25, steps=20, stop=False)
    assert len(goal.asked) == 4 * 21 and on.steps.tolist() == [20] * 4
    assert float(on.last[1]) < float(end.last[1])


def test_all_found_ends_the_search() -> None:
    told: list[tuple[int, int]] = []
    goal = Bowl(GOALS[:2])
    descend(
        torch.zeros(2, 1, 2),
        goal,
        rate=0.25,
        steps=500,
        progress=lambda done, total, what: told.append((done, total)),
    )
    assert len(told) < 30 and told[0] == (0, 500)


def test_starts_are_left_as_they_were(rng_untouched: None) -> None:
    starts = torch.zeros(4, 1, 2)
    descend(starts, Bowl(GOALS), rate=0.25, steps=3)
    assert not starts.any() and not starts.requires_grad


def test_a_loss_that_is_not_finite_is_an_error() -> None:
    with pytest.raises(EngineError, match="not finite after 0 updates"):
        descend(torch.zeros(1, 1, 2), Bowl(torch.full((1, 1, 2), torch.inf)), rate=0.1, steps=3)


def test_generators_are_told_apart_by_their_parts() -> None:
    draws = {tuple(torch.randn(2, generator=generator(*p)).tolist()) for p in [("a", 0), ("a", 1), ("b", 0)]}
    assert len(draws) == 3
    assert torch.equal(
        torch.randn(2, generator=generator("a", 0)), torch.randn(2, generator=generator("a", 0))
    )
