"""Edits as files: small, whole, what was written, and for the model they were made for."""

from __future__ import annotations

import pytest
import torch

from interp.errors import BrokenData, UsageError
from interp.intervene.weights import Delta, PartEdit, Prune, Stack, prune
from interp.models.parts import parts, weight_of
from tests.intervene.refusals import refuses_broken_files
from tests.intervene.weights.cases import KINDS, bits, draw, edit, fresh, part, run, same, subject


@pytest.mark.parametrize("name", ["llama", "gpt2", "pipeline"])
def test_a_file_holds_every_kind_for_a_model_loaded_anew(name, tmp_path):
    s, new = subject(name), fresh(name)
    at = part(s, "ff_out")
    clean = run(s)
    for kind in KINDS:
        one = edit(s, at, kind).made_for(s)
        path = one.save(tmp_path / "new" / f"{kind}.safetensors")
        found = PartEdit.load(path, new)
        assert found == one and type(found) is type(one) and found.model == s.fingerprint  # type: ignore[attr-defined]
    stack = Stack(tuple(edit(s, p, kind) for p in parts(s, "ff_out")[:2] for kind in KINDS)).made_for(s)
    found = PartEdit.load(stack.save(tmp_path / "stack.safetensors"), new)
    assert isinstance(found, Stack) and found == stack and found.parts == stack.parts
    with stack.applied(s):
        wanted = run(s)
    before = bits(new)
    with found.applied(new):
        assert torch.equal(run(new), wanted) and (wanted - clean).abs().max() > 1e-3
    assert same(new, before) and torch.equal(run(new), clean)


def test_files_are_small(tmp_path):
    s = subject("llama")
    at = part(s, "ff_out")
    big = Prune(at, torch.rand(1280, 5120, generator=torch.Generator().manual_seed(0)) < 0.01, "x")
    # A hundredth of the weights of the widest matrix of Stable Diffusion 1.x: 16 of them have to be under 5 MB.
    assert big.save(tmp_path / "mask.safetensors").stat().st_size < 110_000
    sparse = torch.zeros(400, 500)
    sparse[3, 7], sparse[399, 499] = 2.5, -1
    one = Delta(at, sparse, None, "x")
    assert one.save(tmp_path / "delta.safetensors").stat().st_size < 1000
    assert torch.equal(PartEdit.load(tmp_path / "delta.safetensors").change, sparse)  # type: ignore[attr-defined]
    dense = Delta(at, draw(400, 500), None, "x")
    assert 800_000 < dense.save(tmp_path / "dense.safetensors").stat().st_size < 801_000


def test_a_mask_is_known_by_its_bits_and_not_by_how_they_are_compressed(monkeypatch):
    import zlib

    s = subject("llama")
    one, scaled = edit(s, part(s, "ff_out"), "prune"), edit(s, part(s, "ff_out"), "scaled")
    was, compress = (one.digest, scaled.digest), zlib.compress
    monkeypatch.setattr(zlib, "compress", lambda data, level: compress(data, 1))
    assert (edit(s, one.parts[0], "prune").digest, edit(s, one.parts[0], "scaled").digest) == was


@pytest.mark.parametrize("name", ["llama", "pipeline"])
def test_another_model_is_refused_and_an_edit_of_none_is_not_saved(name, tmp_path):
    s, other = subject(name), fresh(name, seed=1)
    at = part(s, "ff_out")
    one = edit(s, at, "delta").made_for(s)
    path = one.save(tmp_path / "edit.safetensors")
    before = bits(other)
    with pytest.raises(UsageError, match="made for a model with fingerprint"):
        PartEdit.load(path, other)
    with pytest.raises(UsageError, match="load that model"), one.applied(other):
        pass
    assert same(other, before)
    assert PartEdit.load(path) == one  # it can be looked at
    with edit(s, at, "delta").applied(other):  # made for none
        pass
    with pytest.raises(UsageError, match=r"save edit.made_for\(subject\)"):
        (one + edit(s, at, "prune")).save(tmp_path / "none.safetensors")
    assert not (tmp_path / "none.safetensors").exists()


def test_edits_made_on_top_of_another_belong_there(tmp_path):
    s = subject("llama")
    at = part(s, "ff_out")
    first, beside = edit(s, at, "low_rank").made_for(s), edit(s, at, "prune", seed=3).made_for(s)
    loose = edit(s, at, "low_rank")
    with first.applied(s):
        second = prune(s, {at: weight_of(s, at).abs()}, 0.1)
        with second.applied(s), beside.applied(s):  # one made on top, one for the model below
            pass
    with pytest.raises(UsageError, match="made for a model"), second.applied(s):
        pass
    with loose.applied(s):
        with second.applied(s):  # the weights are those that it was made for
            pass
        with pytest.raises(UsageError, match="edits around it have to say"), beside.applied(s):
            pass
    both = PartEdit.load((first + second).save(tmp_path / "both.safetensors"), s)
    with both.applied(s):
        pass
    with pytest.raises(UsageError, match="made for a model"), (second + first).applied(s):
        pass


def test_files_that_are_no_edits_or_were_changed_are_refused(tmp_path):
    s = subject("llama")
    path = edit(s, part(s, "ff_out"), "delta").made_for(s).save(tmp_path / "edit.safetensors")
    refuses_broken_files(PartEdit.load, path, "weights")
    for old, new, why in (
        (b'\\"kind\\": \\"delta\\"', b'\\"kind\\": \\"dalta\\"', "no kind 'dalta'"),
        (b'"0.change"', b'"9.change"', "is not whole"),
    ):
        data = path.read_bytes()
        assert old in data
        (tmp_path / "other.safetensors").write_bytes(data.replace(old, new))
        with pytest.raises(BrokenData, match=why):
            PartEdit.load(tmp_path / "other.safetensors")
    mask = edit(s, part(s, "ff_out"), "prune").made_for(s)
    data = bytearray(mask.save(tmp_path / "mask.safetensors").read_bytes())
    data[-3] ^= 255
    (tmp_path / "mask.safetensors").write_bytes(data)
    with pytest.raises(BrokenData, match=r"not whole|not those"):
        PartEdit.load(tmp_path / "mask.safetensors")
