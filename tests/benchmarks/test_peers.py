"""The peers of the benchmarks do the same thing, and do not get in each other's way."""

from __future__ import annotations

import pytest
import torch

from interp.models.batch import Batch
from interp.models.engines.base import Record
from interp.models.sites import Head
from tests.benchmarks.harness import bare_forward
from tests.benchmarks.peers import Noised, absent, peers
from tests.subjects import subject
from tests.tiny import tiny


@pytest.fixture(scope="module")
def model():
    from interp.models.subject import CausalLM

    return CausalLM(tiny("llama"), None, name="llama")


@pytest.fixture(scope="module")
def tools(model):
    assert not absent()
    return peers(model)


def ids(n: int = 11, rows: int = 1) -> torch.Tensor:
    return torch.randint(0, 256, (rows, n), generator=torch.Generator().manual_seed(0))


def test_all_cut_the_same_head(model, tools):
    batch = Batch.of_ids(ids(rows=3).tolist())
    ours = model.run(batch, {"z[1].2": torch.zeros_like}, keep=1).logits[:, -1]
    assert (ours - bare_forward(model, batch)[:, -1]).abs().max() > 0.01
    for tool in tools.values():
        torch.testing.assert_close(tool.without_head(batch, Head(1, 2)), ours, atol=2e-5, rtol=0)


@pytest.mark.parametrize(("kind", "layers"), [("resid_post", [1]), ("mlp_out", [0, 1]), ("attn_out", [0, 1])])
def test_all_restore_the_same_cell(model, tools, kind, layers):
    noise = torch.randn(4, 2, model.d_model, generator=torch.Generator().manual_seed(1))
    prompt = Noised(ids(), 3, noise, answer=7)
    first, *others = (tool.cell(prompt, kind, layers, 4) for tool in tools.values())
    for found in others:
        torch.testing.assert_close(found, first, atol=1e-7, rtol=0)
    apart = tools["torch hooks"].cell(prompt, kind, layers, 5)
    assert first.shape == (4,) and (first - apart).abs().max() > 1e-5
    # The last token after the last layer is all that is read: restoring it gives the clean probability in all rows.
    clean = bare_forward(model, Batch.of_ids(ids().tolist()))[0, -1].softmax(-1)[7]
    whole = tools["torch hooks"].cell(prompt, "resid_post", [model.n_layers - 1], 10)
    torch.testing.assert_close(whole, clean.expand(4), atol=1e-7, rtol=0)


def test_all_read_the_same_state(model, tools):
    batch = Batch.of_ids(ids(rows=2).tolist())
    ours = model.run(batch, {"resid_post[1]": Record()}, keep=1)["resid_post[1]"]
    for tool in tools.values():
        torch.testing.assert_close(tool.read(batch, 1), ours, atol=2e-5, rtol=0)
        assert (tool.read(batch, 0) - ours).abs().max() > 0.01


def test_the_model_is_left_as_it_was(model, tools):
    batch = Batch.of_ids(ids(rows=2).tolist())
    plain = bare_forward(subject("llama"), batch)
    for tool in tools.values():
        tool.without_head(batch, Head(0, 0))
    assert torch.equal(bare_forward(model, batch), plain)
    assert not any("forward" in vars(module) for module in model.hf.modules())
