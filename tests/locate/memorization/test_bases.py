"""Controls of subspaces take out as many directions of the same parts, at equal norm where asked."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import pytest
import torch

from interp.errors import UsageError
from interp.intervene.weights import ProjectOut, Prune, Stack
from interp.locate.memorization.bases import basis_like, random_basis_like, subspace_controls
from interp.locate.memorization.subspace import ContrastSubspace
from interp.models.parts import parts, weight_of
from interp.models.subject import CausalLM
from interp.tasks.memorized import TextItem
from tests.subjects import subject


def _projected(model: CausalLM, side: Any) -> Stack:
    generator = torch.Generator().manual_seed(0)
    out = []
    for part, rank in zip(parts(model, "ff_out")[:2], (2, 5), strict=True):
        d = weight_of(model, part).shape[1 if side == "in" else 0]
        basis = torch.linalg.qr(torch.randn(d, rank, generator=generator)).Q
        out.append(ProjectOut(part, basis, side, model.fingerprint))
    return Stack(tuple(out))


def _singles(edit: Any) -> list[Any]:
    return list(edit.singles)


def test_random_bases_have_as_many_directions_of_each_part() -> None:
    model = subject("llama")
    for side in ("in", "out"):
        edit = _projected(model, side)
        own = _singles(random_basis_like(edit, 3))
        for single, drawn in zip(_singles(edit), own, strict=True):
            assert (
                drawn.part == single.part and drawn.side == side and drawn.basis.shape == single.basis.shape
            )
            torch.testing.assert_close(drawn.basis.T @ drawn.basis, torch.eye(drawn.rank), atol=1e-5, rtol=0)
        each = (edit, random_basis_like(edit, 3), random_basis_like(edit, 4), random_basis_like(edit, 3, 1))
        first = [_singles(one)[0].basis for one in each]
        assert all(float((a.T @ b).abs().max()) < 0.95 for a, b in combinations(first, 2))
        assert _singles(random_basis_like(edit, 3))[1].basis.equal(own[1].basis)
    with pytest.raises(UsageError, match="does not only take directions out"):
        random_basis_like(Prune.units(model, parts(model, "ff_out")[0], [1]))


def test_subspaces_of_other_items_have_the_same_ranks_and_norm() -> None:
    model = subject("llama")
    texts = [TextItem(str(i), tuple(range(i + 3, i + 12)), 4) for i in range(6)]
    other = ContrastSubspace("prompts", draws=1, groups=2, limit=16)
    other.fit(model, texts[:3], reference=texts[3:])
    edit = _projected(model, "in")
    plain = subspace_controls(model, edit, {"ordinary": other}, draws=2)
    assert list(plain) == ["random 0", "random 1", "ordinary"]
    for single, own in zip(_singles(edit), _singles(plain["ordinary"]), strict=True):
        torch.testing.assert_close(own.basis, other.basis(single.part, single.rank).float())
    norm = edit.budget(model).norm
    assert any(abs(own.budget(model).norm / norm - 1) > 0.01 for own in plain.values())
    alike = subspace_controls(model, edit, {"ordinary": other}, draws=2, equal_norm=True)
    assert [own.budget(model).norm for own in alike.values()] == pytest.approx([norm] * 3, rel=1e-4)
    with pytest.raises(UsageError, match="directions of side 'out', and the fit is of 'in'"):
        basis_like(_projected(model, "out"), other)
