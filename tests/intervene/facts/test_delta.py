"""Edits of facts as files: what is read is what was written, for that model only, and every bit comes back."""

from __future__ import annotations

import pytest
import torch

from interp.errors import UsageError
from interp.intervene.facts import FactEdit, Search, memit, rome
from interp.models.subject import CausalLM
from tests.intervene.facts.rewrites import contexts, moments, rewrites
from tests.intervene.refusals import refuses_broken_files
from tests.subjects import examples, subject
from tests.tiny import tiny

SHORT = Search(steps=3)


def made(family: str = "gpt2") -> FactEdit:
    px = contexts(family)
    return memit(subject(family), rewrites(), [0, 1], moments(family), prefixes=px, search=SHORT)


@pytest.mark.parametrize("family", ["gpt2", "llama", "neox"])
def test_a_file_holds_the_edit_for_a_fresh_model_and_every_bit_comes_back(family, tmp_path):
    edit = made(family)
    path = edit.save(tmp_path / "new" / "edit.safetensors")
    fresh = CausalLM(tiny(family), None, name="fresh")
    found = FactEdit.load(path, fresh)
    assert found.edits == edit.edits and found.rewrites == edit.rewrites
    assert (found.model, found.recipe, found.history) == (edit.model, edit.recipe, edit.history)
    assert (
        found.recipe["layers"] == [0, 1]
        and found.recipe["search"]["steps"] == 3
        and found.key() == edit.key()
    )
    s, data = subject(family), examples()
    with edit.applied(s):
        wanted = s.run(data).logits
    before = {name: t.clone() for name, t in fresh.hf.state_dict().items()}
    clean = fresh.run(data).logits
    with found.applied(fresh):
        assert torch.equal(fresh.run(data).logits, wanted)
    assert all(torch.equal(t, before[name]) for name, t in fresh.hf.state_dict().items())
    with pytest.raises(ZeroDivisionError), found.applied(fresh):
        raise ZeroDivisionError
    assert torch.equal(fresh.run(data).logits, clean) and (wanted - clean).abs().max() > 0.05
    with fresh.apply(found):
        torch.testing.assert_close(fresh.run(data).logits, wanted, atol=1e-4, rtol=0)
    assert path.stat().st_size < 2 * 4 * sum(e.a.numel() + e.b.numel() for e in edit.edits) + 10_000


def test_another_model_is_refused(tmp_path):
    edit = made()
    path = edit.save(tmp_path / "edit.safetensors")
    other = CausalLM(tiny("gpt2", seed=1), None, name="other")
    with pytest.raises(UsageError, match="and other has"):
        FactEdit.load(path, other)
    with pytest.raises(UsageError, match="load that model"), edit.applied(other):
        pass
    # Without a model it can be looked at.
    assert FactEdit.load(path).model == subject("gpt2").fingerprint


def test_an_edit_made_under_another_belongs_on_top_of_it():
    s = CausalLM(tiny("llama"), None, name="twice")
    px = contexts("llama")
    first = rome(s, rewrites()[0], 1, moments("llama"), prefixes=px, search=SHORT)
    with s.apply(first):
        second = rome(s, rewrites()[1], 1, moments("llama"), prefixes=px, search=SHORT)
        with second.applied(s):
            pass
    with pytest.raises(UsageError, match="made for a model"), second.applied(s):
        pass
    alone = rome(s, rewrites()[1], 1, moments("llama"), prefixes=px, search=SHORT)
    assert alone.edits != second.edits


def test_files_that_are_no_edits_or_were_changed_are_refused(tmp_path):
    edit = made()
    path = edit.save(tmp_path / "edit.safetensors")
    refuses_broken_files(FactEdit.load, path, "facts")
