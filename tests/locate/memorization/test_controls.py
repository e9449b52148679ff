"""Controls cut as much as the edit that they stand beside, elsewhere."""

from __future__ import annotations

import torch

from interp.intervene.weights import ProjectOut, Prune, Stack
from interp.locate.memorization.controls import control_edits
from interp.models.parts import parts, weight_of
from tests.subjects import subject


def test_as_many_weights_of_each_row_or_as_many_whole_rows() -> None:
    model = subject("llama")
    first, second = parts(model, "ff_out")[:2]
    mask = torch.rand(weight_of(model, first).shape, generator=torch.Generator().manual_seed(0)) < 0.1
    again = mask.roll(1, 1)
    edit = Stack((
        Prune(first, mask, model.fingerprint),
        Prune(first, again, model.fingerprint),
        Prune.units(model, second, [1, 4], "out"),
    ))  # fmt: skip
    found = control_edits(model, edit, draws=2)
    assert list(found) == ["random 0", "random 1", "magnitude"]
    cuts = {name: {s.part: s.mask for s in own.singles} for name, own in found.items()}  # type: ignore[attr-defined]
    both = mask | again
    for own in cuts.values():
        assert own[first].sum(1).equal(both.sum(1)) and not own[first].equal(both)
        assert own[second].any(1).equal(own[second].all(1)) and int(own[second].any(1).sum()) == 2
    assert not cuts["random 0"][first].equal(cuts["random 1"][first])
    sizes = weight_of(model, second).norm(dim=1)
    assert set(cuts["magnitude"][second].any(1).nonzero()[:, 0].tolist()) == set(
        sizes.topk(2).indices.tolist()
    )
    row = int(both.sum(1).argmax())
    largest = weight_of(model, first)[row].abs().topk(int(both[row].sum())).indices
    assert set(cuts["magnitude"][first][row].nonzero()[:, 0].tolist()) == set(largest.tolist())


def test_controls_of_units_are_whole_columns_and_seeds_share_no_draw() -> None:
    model = subject("llama")
    part = parts(model, "ff_out")[0]
    edit = Prune.units(model, part, [1, 4, 7])
    found = control_edits(model, edit, draws=2) | {
        f"other {i}": own for i, own in enumerate(control_edits(model, edit, draws=2, seed=1).values())
    }
    units = {}
    for name, own in found.items():
        (single,) = own.singles
        assert isinstance(single, Prune)
        assert torch.equal(single.mask.any(0), single.mask.all(0)) and int(single.mask.any(0).sum()) == 3
        units[name] = tuple(single.mask.any(0).nonzero()[:, 0].tolist())
    loudest = weight_of(model, part).norm(dim=0).topk(3).indices.tolist()
    assert units["magnitude"] == units.pop("other 2") == tuple(sorted(loudest))
    assert len(set(units.values())) == 5 and (1, 4, 7) not in units.values()


def test_what_does_not_prune_has_no_budget_of_weights() -> None:
    model = subject("llama")
    part = parts(model, "ff_out")[0]
    basis = torch.eye(weight_of(model, part).shape[1])[:, :2]
    assert control_edits(model, ProjectOut(part, basis, "in", model.fingerprint)) == {}
