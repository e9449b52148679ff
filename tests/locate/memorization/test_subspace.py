"""Contrastive subspaces: the eigenproblem, planted directions, ranks by exchanges, edits of a given size."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy
import torch

from interp.errors import UsageError
from interp.locate.memorization.subspace import ContrastSubspace, contrast, held_out, leading
from interp.models.parts import weight_of
from interp.trace.passes import Prompts
from tests.locate.memorization.planted_columns import (
    CONTROLS,
    HELD_OUT,
    LOUD,
    MEMORY,
    TARGETS,
    Planted,
    planted,
)
from tests.locate.memorization.small import OTHERS, TEXTS, small_pipeline

OPTIONS: dict[str, Any] = dict(steps=5, tau=3, draws=39, limit=32)


def _moments(generator: torch.Generator, n: int, d: int = 6) -> torch.Tensor:
    x = torch.randn(n, 40, d, generator=generator, dtype=torch.float64)
    return x.transpose(1, 2) @ x / 40


def test_eigenproblem_is_that_of_scipy() -> None:
    a, b = _moments(torch.Generator().manual_seed(0), 2)
    values, vectors = contrast(a, b, 0.1)
    floored = b + 0.1 * b.diagonal().mean() * torch.eye(6).double()
    expected, directions = scipy.linalg.eigh(a.numpy(), floored.numpy())
    np.testing.assert_allclose(values, expected[::-1], rtol=1e-9)
    np.testing.assert_allclose((vectors.T @ torch.from_numpy(directions).flip(1)).abs().argmax(1), range(6))
    np.testing.assert_allclose(a @ vectors, floored @ vectors * values, rtol=1e-7, atol=1e-9)
    flat = torch.zeros(4, 4, dtype=torch.float64)
    flat[1, 1], flat[2, 2] = 3.0, 1.0
    assert leading(flat, 8).abs().round().T.tolist() == [
        [0, 1, 0, 0],
        [0, 0, 1, 0],
    ]  # what holds nothing is left out


def test_energy_is_measured_where_it_was_not_fitted() -> None:
    pool = _moments(torch.Generator().manual_seed(1), 8)
    labels = torch.tensor([True] * 4 + [False] * 4)
    pool[:4, 2, 2] += 9.0
    fold = torch.arange(8) % 2
    found = held_out(pool, labels, fold, 2, 0.01)
    expected = []
    for one in (0, 1):
        a, b = (pool[(fold != one) & (labels == side)].mean(0) for side in (True, False))
        c, d = (pool[(fold == one) & (labels == side)].mean(0) for side in (True, False))
        v = contrast(a, b, 0.01)[1][:, :2]
        floored = d + 0.01 * d.diagonal().mean() * torch.eye(6).double()
        expected.append(torch.stack([(x @ c @ x / (x @ floored @ x)).log() for x in v.T]))
    torch.testing.assert_close(found, torch.stack(expected).mean(0))
    assert found[0] > np.log(5) and found[1] < np.log(2)


@pytest.fixture(scope="module")
def plant() -> tuple[Planted, ContrastSubspace]:
    it = planted()
    return it, ContrastSubspace(**OPTIONS).fit(it.pipe, TARGETS + HELD_OUT, reference=list(CONTROLS))


def _own(found: ContrastSubspace, it: Planted) -> Any:
    return found.scores_[found.scores_["part"] == repr(it.part)]


def test_the_planted_direction_is_found_and_is_the_only_one(plant: tuple[Planted, ContrastSubspace]) -> None:
    it, found = plant
    own = _own(found, it)
    assert found.ranks_[it.part] == 1 and own["kept"].tolist() == [True] + [False] * 7
    assert own["ratio"].iloc[0] > 100 > 1 > own["ratio"].iloc[1]
    assert own["score"].iloc[0] > own["threshold"].iloc[0] + 1 and own["p"].iloc[0] == 1 / 40
    v = found.basis(it.part)
    energy = v[:, 0].square()
    assert energy[list(MEMORY)].sum() > 0.6 and energy[list(LOUD)].sum() < 0.05
    torch.testing.assert_close(found.basis(it.part, 5).T @ found.basis(it.part, 5), torch.eye(5).double())


def test_the_planted_direction_fades() -> None:
    it = planted(0.0)
    found = ContrastSubspace(**OPTIONS).fit(it.pipe, TARGETS + HELD_OUT, reference=list(CONTROLS))
    assert _own(found, it)["ratio"].iloc[0] < 1.05
    assert found.basis(it.part, 1)[list(MEMORY)].square().sum() < 0.01


def test_taking_it_out_moves_target_prompts(plant: tuple[Planted, ContrastSubspace]) -> None:
    it, found = plant
    x, t = it.pipe.latents(range(2)), int(it.pipe.timesteps(5)[0])
    prompts = {"held out": HELD_OUT, "others": CONTROLS[:2]}

    def noise() -> dict[str, torch.Tensor]:
        with torch.no_grad():
            return {k: it.pipe.noise(x, t, it.pipe.embed(v)) for k, v in prompts.items()}

    before = noise()
    weight = weight_of(it.pipe, it.part).clone()
    edit = next(e for e in found.edit().singles if e.parts == (it.part,))
    with edit.applied(it.pipe):
        after = noise()
        left = weight_of(it.pipe, it.part) @ found.basis(it.part).float()
    assert left.abs().max() < 1e-5
    assert torch.equal(weight_of(it.pipe, it.part), weight)
    moved = {k: float((after[k] - before[k]).norm() / before[k].norm()) for k in prompts}
    assert moved["held out"] > 2 * moved["others"]


def test_exchangeable_sides_give_no_directions() -> None:
    pipe, texts = small_pipeline(), TEXTS + OTHERS
    target = Prompts(texts, tuple(range(6)), 5, 3)
    other = Prompts(texts, tuple(range(50, 56)), 5, 3)
    found = ContrastSubspace(**OPTIONS).fit(pipe, target, reference=other)
    assert sum(rank > 0 for rank in found.ranks_.values()) <= 1
    first = found.scores_[found.scores_["unit"] == 0]
    assert (first["ratio"] > 1).all()  # what is fitted always looks like more
    assert len(first) == 7 and first["p"].between(1 / 40, 1).all()


def test_rank_and_norm_of_the_edit() -> None:
    pipe = small_pipeline()
    for side in ("in", "out"):
        found = ContrastSubspace("paired", side=side, **OPTIONS).fit(pipe, TEXTS + OTHERS)
        table = found.scores_
        first = table[table["unit"] == 2].set_index("part")["norm"]
        edit = found.edit(3)
        for single in edit.singles:
            part = single.parts[0]
            assert single.budget(pipe).norm == pytest.approx(first[repr(part)], rel=1e-3)
            weight, v = weight_of(pipe, part).double(), found.basis(part, 3)
            expected = weight - weight @ v @ v.T if side == "in" else weight - v @ v.T @ weight
            with single.applied(pipe):
                torch.testing.assert_close(weight_of(pipe, part).double(), expected, rtol=1e-4, atol=1e-5)
        whole = edit.budget(pipe).norm
        small = found.edit(norm=0.5 * whole).budget(pipe).norm
        assert 0 < small <= 0.5 * whole
        assert found.edit(norm=0.9 * whole).budget(pipe).norm > small


def test_wrong_arguments_are_told(plant: tuple[Planted, ContrastSubspace]) -> None:
    it, found = plant
    with pytest.raises(UsageError, match="rank=9: 8 directions were solved for"):
        found.edit(9)
    with pytest.raises(UsageError, match="give one of them"):
        found.edit(1, norm=1.0)
    with pytest.raises(UsageError, match="no direction is told from chance, or fits the norm"):
        found.edit(norm=1e-6)
    with pytest.raises(UsageError, match="at least two of each side"):
        ContrastSubspace().fit(it.pipe, TARGETS[:1])
    with pytest.raises(UsageError, match="side='both': write one of in, out"):
        ContrastSubspace(side="both").fit(it.pipe, TARGETS)  # type: ignore[arg-type]
