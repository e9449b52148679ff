"""Activation patching: cells in a batch against one hooked run each, and what must hold at the ends."""

from __future__ import annotations

import pytest
import torch

import interp
from interp.errors import UsageError
from interp.intervene.patch import cells
from interp.models.batch import Batch
from interp.models.engines.base import Record
from interp.models.sites import Site
from tests.subjects import ALL, examples, subject


def diff(logits, e):
    return float(logits[0, e.answer_ids[0]] - logits[0, e.foil_ids[0]])


def naive(s, e, kind, cell, denoise):
    """One cell by hand."""
    dirty = Batch.of_ids([[*e.corrupt["value_swap"].ids, *e.answer_ids[:-1]]])
    clean = s.batch([e])
    source, into = (clean, dirty) if denoise else (dirty, clean)
    site = Site(kind, cell.layer)
    value = s.run(source, {site: Record()})[site][0]

    def tap(x):
        out = x.clone()
        for p in cell.positions:
            if cell.head >= 0:
                out[0, p, cell.head] = value[p, cell.head]
            else:
                out[0, p] = value[p]
        return out

    return diff(s.run(into, {site: tap}, keep=len(e.answer_ids)).logits[0], e)


@pytest.mark.parametrize("family", ALL)
@pytest.mark.parametrize(("kind", "over"), [("resid_post", "position"), ("z", "head"), ("mlp_out", "role")])
def test_batched_cells_equal_one_run_each(family, kind, over, monkeypatch):
    s, e = subject(family), examples((12,))[0]
    monkeypatch.setattr("interp.trace.each.BUDGET", {"cpu": 100})  # several chunks
    frame = interp.patch(s, [e], kind, direction="both", over=over)
    every = cells(s, e, kind, over, range(s.n_layers))
    assert len(frame) == 2 * len(every)
    for i in range(0, len(every), 5):
        for way in ("denoise", "noise"):
            row = frame[frame.direction == way].iloc[i]
            assert row.value == pytest.approx(naive(s, e, kind, every[i], way == "denoise"), abs=1e-4)


def test_ends_of_the_map_are_the_clean_and_the_corrupt_run():
    s, e = subject("llama"), examples((12,))[0]
    frame = interp.patch(s, [e], "resid_pre", layers=[0])
    # The first layer's input differs only at the value: patching both its tokens restores everything.
    value = frame[frame.role == "value"]
    assert list(value.position) == [3, 4, 5]
    assert frame[frame.role != "value"].recovery.abs().max() < 1e-4
    role = interp.patch(s, [e], "resid_pre", over="role", layers=[0]).set_index("role")
    assert role.recovery["value"] == pytest.approx(1.0, abs=1e-4)
    assert role.recovery["other"] == pytest.approx(0.0, abs=1e-4)
    last = interp.patch(s, [e], "resid_post", over="role", layers=[2]).set_index("role")
    assert last.recovery["last"] == pytest.approx(
        1.0, abs=1e-4
    )  # only the last row is read at the first answer token
    noise = interp.patch(s, [e], "resid_post", over="role", layers=[2], direction="noise").set_index("role")
    assert noise.recovery["last"] == pytest.approx(0.0, abs=1e-4)


def test_mean_over_examples_is_a_ratio_of_means():
    s, data = subject("llama"), examples((12, 15))
    both = interp.patch(s, data, "z", layers=[1])
    one = [interp.patch(s, [e], "z", layers=[1]) for e in data]
    means = {c: (one[0][c] + one[1][c]) / 2 for c in ("value", "clean", "corrupt")}
    expected = (means["value"] - means["corrupt"]) / (means["clean"] - means["corrupt"])
    assert torch.allclose(torch.tensor(both.recovery), torch.tensor(expected), atol=1e-6)
    assert (both.n == 2).all()


@pytest.mark.parametrize(
    ("kwargs", "told"),
    [
        ({"kind": "resid_post", "over": "head"}, "no query heads"),
        ({"kind": "logits"}, "cannot be patched"),
        ({"kind": "z", "corruption": "order_swap"}, "it has value_swap"),
        ({"kind": "z", "metric": "f1"}, "not defined"),
        ({"kind": "zz"}, "unknown kind of site"),
    ],
)
def test_bad_requests_say_what_to_write(kwargs, told):
    with pytest.raises(UsageError, match=told):
        interp.patch(subject("llama"), examples((12,)), **kwargs)
