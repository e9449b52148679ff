"""Activation patching: cells in a batch against one hooked run each, and what must hold at the ends."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import interp
from interp.errors import UsageError
from interp.intervene.patch import Patch, Source, cells
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


def test_positions_are_averaged_over_examples_whatever_their_tokens():
    s, data = subject("llama"), examples((12, 12, 10))
    every = interp.patch(s, data, over="position", layers=[1])
    alone = [interp.patch(s, [e], over="position", layers=[1]) for e in data]
    assert list(every.position) == list(range(12)) and list(every.n) == [3] * 10 + [2] * 2
    assert every.value[4] == pytest.approx(sum(a.value[4] for a in alone) / 3, abs=1e-5)
    assert every.value[11] == pytest.approx((alone[0].value[11] + alone[1].value[11]) / 2, abs=1e-5)
    # Labels where all agree on them: tokens are random, the value spans are at the same place.
    assert [every.role[i] for i in (4, 9, 11)] == ["value", "", "last"] and every.token[4] == ""
    assert interp.plot.patch_map(every).data  # one value a site, so it can be drawn


@pytest.mark.parametrize(
    ("change", "told"),
    [({}, "is the clean prompt"), ({"ids": (*examples((12,))[0].ids, 1)}, "has 13 tokens")],
)
def test_a_twin_that_cannot_be_patched_between_is_refused(change, told):
    e = examples((12,))[0]
    twin = replace(e.corrupt["value_swap"], **({"ids": e.ids} | change))
    with pytest.raises(UsageError, match=told):
        interp.patch(subject("llama"), [replace(e, corrupt={"value_swap": twin})])


@pytest.mark.parametrize(
    ("kind", "layers", "positions", "head", "told"),
    [
        ("resid_post", (7,), (3,), None, r"resid_post\[7\]: its source holds layers \[0, 1, 2\]"),
        ("resid_post", (1,), (-1,), None, "at token -1: its source holds tokens 0 to 25"),
        ("resid_post", (1,), (26,), None, "at token 26"),
        ("resid_post", (1,), (3,), 2, "no heads or neurons"),
        ("z", (1,), (3,), 4, r"z\[1\].4: its source holds indices 0 to 3"),
        ("z", (1,), (3,), -1, "indices 0 to 3"),
    ],
)
def test_patches_of_what_the_source_lacks_are_refused(kind, layers, positions, head, told):
    s = subject("llama")
    source = Source.of(s, examples()[0], kind)
    with pytest.raises(UsageError, match=told):
        Patch(source, layers, positions, head)


def test_a_patch_past_the_end_of_a_row_is_refused_and_not_left_out():
    s = subject("llama")
    deep = Patch(Source.of(s, examples()[2], "resid_post"), (1,), (30,))
    with (
        s.apply(deep),
        pytest.raises(UsageError, match="position 30: the shortest row has positions 0 to 18"),
    ):
        s.run(examples())
    with pytest.raises(UsageError, match="position 30"):
        list(s.each([deep], examples()))


@pytest.mark.parametrize(
    ("kwargs", "told"),
    [
        ({"kind": "resid_post", "over": "head"}, "no query heads"),
        ({"kind": "logits"}, "cannot be patched"),
        ({"kind": "z", "corruption": "order_swap"}, "it has value_swap"),
        ({"kind": "z", "metric": "f1"}, "not defined"),
        ({"kind": "zz"}, "unknown kind of site"),
        ({"direction": "denoising"}, "'denoise', 'noise', 'both'"),
        ({"over": "token"}, "'position', 'role', 'head'"),
        ({"layers": []}, "layers is empty"),
        ({"layers": [3]}, "layers 0 to 2"),
    ],
)
def test_bad_requests_say_what_to_write(kwargs, told):
    with pytest.raises(UsageError, match=told):
        interp.patch(subject("llama"), examples((12,)), **kwargs)
