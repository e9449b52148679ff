"""A resumed or stopped run equals the full one, on every family, padded and not, with taps and with edits."""

from __future__ import annotations

import pytest
import torch

from interp.errors import EngineError, UsageError
from interp.intervene.ablate import ablate
from interp.models.engines.base import Record, Rows
from interp.models.engines.resume import Checkpoint
from interp.models.sites import Site
from tests.models.test_hooks_engine import hooks_left
from tests.subjects import ALL, examples, subject
from tests.trace.test_each import Scale


@pytest.mark.parametrize("lengths", [(24,), (24, 17, 40)], ids=["solo", "padded"])
@pytest.mark.parametrize("family", ALL)
def test_resumed_equals_full(family: str, lengths: tuple[int, ...]) -> None:
    model = subject(family)
    batch = model.batch(examples(lengths))
    last = Site("z", model.n_layers - 1)
    whole = model.run(batch, {last: Record()})
    for layer in range(model.n_layers):
        for after in (False, True):
            start = model.checkpoint(batch, layer, after_attention=after)
            again = model.run(batch, {last: Record()}, start=start)
            assert torch.equal(again.logits, whole.logits), (layer, after)
            assert torch.equal(again[last], whole[last])
    end = model.run(batch, stop=model.n_layers).checkpoint
    assert torch.equal(model.run(batch, start=end).logits, whole.logits)


@pytest.mark.parametrize("family", ALL)
def test_a_stopped_run_records_what_lies_below(family: str) -> None:
    model = subject(family)
    batch = model.batch(examples())
    whole = model.run(batch, {"resid_post[1]": Record(), "neurons[0]": Record()})
    part = model.run(batch, {"resid_post[1]": Record(), "neurons[0]": Record()}, stop=2)
    assert part.logits.shape == (3, 0, whole.logits.shape[-1])
    assert part.checkpoint is not None and part.checkpoint.layer == 2
    assert torch.equal(part["neurons[0]"], whole["neurons[0]"])
    assert torch.equal(part.checkpoint.hidden, whole["resid_post[1]"])
    assert torch.equal(part["resid_post[1]"], whole["resid_post[1]"])


def test_work_below_the_checkpoint_is_not_done() -> None:
    model = subject("llama")
    batch = model.batch(examples())
    start = model.checkpoint(batch, 2)
    seen: list[int] = []
    handles = [
        m.register_forward_hook(lambda *_, i=i: seen.append(i))
        for i, m in enumerate(b.mlp for b in model.blocks)
    ]
    model.run(batch, start=start)
    model.run(batch, stop=1)
    for handle in handles:
        handle.remove()
    assert seen == [2, 0]


@pytest.mark.parametrize("family", ["llama", "gpt2", "neox", "gemma2"])
def test_edits_above_the_checkpoint_and_rows_repeated(family: str) -> None:
    model = subject(family)
    batch = model.batch(examples())
    cut = ablate("L1H2 L2H0")
    with model.apply(cut):
        naive = model.run(batch).logits
    start = model.checkpoint(batch, 1, after_attention=True)
    with model.apply(cut):
        assert torch.allclose(model.run(batch, start=start).logits, naive, atol=1e-5)
    assert not torch.allclose(model.run(batch, start=start).logits, naive, atol=1e-3)
    turned = torch.tensor([2, 0, 0, 1])
    more = model.batch([examples()[i] for i in turned])
    assert torch.allclose(model.run(more, start=start.rows(turned)).logits, model.run(more).logits, atol=1e-5)


def test_interventions_below_a_checkpoint_belong_to_it() -> None:
    model = subject("llama")
    batch = model.batch(examples())
    cut = ablate("L0H1")
    clean = model.checkpoint(batch, 1)
    with model.apply(cut):
        under = model.checkpoint(batch, 1)
        assert torch.equal(model.run(batch, start=under).logits, model.run(batch).logits)
        with pytest.raises(UsageError, match=r"z\[0\], before the checkpoint"):
            model.run(batch, start=clean)


@pytest.mark.parametrize("kind", ["resid_pre", "q", "z", "mlp_out", "resid_post"])
def test_a_checkpoint_holds_each_edit_once(kind: str) -> None:
    model = subject("llama")
    batch = model.batch(examples())
    with model.apply(*(Scale(kind, i, (3, 9)) for i in range(3))):
        whole = model.run(batch).logits
        for layer in range(3):
            for after in (False, True):
                start = model.checkpoint(batch, layer, after_attention=after)
                assert torch.equal(model.run(batch, start=start).logits, whole), (layer, after)


def test_an_equal_intervention_is_known_to_a_checkpoint() -> None:
    model = subject("llama")
    batch = model.batch(examples())
    with model.apply(ablate("L0H1 L2H0")):
        start, whole = model.checkpoint(batch, 1), model.run(batch).logits
    with model.apply(ablate("L0H1 L2H0")):
        assert torch.equal(model.run(batch, start=start).logits, whole)


def test_what_cannot_be_resumed_is_refused() -> None:
    model = subject("llama")
    batch = model.batch(examples())
    start = model.checkpoint(batch, 1, after_attention=True)
    with pytest.raises(UsageError, match=r"q\[1\] lies before the start, z\[1\]"):
        model.run(batch, {"q[1]": Record()}, start=start)
    with pytest.raises(UsageError, match=r"z\[2\] lies after the stop, layer 2"):
        model.run(batch, {"z[2]": Record()}, stop=2)
    with pytest.raises(UsageError, match="logits lies after the stop"):
        model.run(batch, {"logits": Record()}, stop=2)
    with pytest.raises(UsageError, match="3 rows and the batch 2"):
        model.run(model.batch(examples()[:2]), start=start)
    with pytest.raises(UsageError, match="42 columns and the batch 16"):
        model.run(model.batch(examples((14, 9, 12))), start=start)
    last = torch.full((3, 1), batch.width - 1)
    assert sorted(model.run(batch, rows=Rows(last), start=start).rows) == [2]
    with pytest.raises(UsageError, match=r"attention\[1\] lies before the start"):
        model.run(batch, rows=Rows(last, layers=frozenset({1, 2})), start=start)
    with pytest.raises(UsageError, match=r"attention\[1\] lies after the stop"):
        model.run(batch, rows=Rows(last, layers=frozenset({1})), stop=1)
    with pytest.raises(UsageError, match="keep=0"):
        model.run(batch, keep=0)
    with pytest.raises(UsageError, match="stop=1"):
        model.run(batch, start=start, stop=1)
    with pytest.raises(UsageError, match="cannot start at layer 4"):
        model.run(batch, start=Checkpoint(4, start.hidden))
    with pytest.raises(EngineError, match="KV cache"):
        model.run(batch, start=start, use_cache=True)


@pytest.mark.parametrize("stop", [None, 2])
def test_nothing_is_left_after_an_exception(stop: int | None) -> None:
    model = subject("llama")
    batch = model.batch(examples())
    start = model.checkpoint(batch, 1, after_attention=True)
    before = model.run(batch).logits

    def fail(value: torch.Tensor) -> None:
        raise RuntimeError("in a tap")

    with pytest.raises(RuntimeError, match="in a tap"):
        model.run(batch, {"mlp_out[1]": fail}, start=start, stop=stop)
    assert not any("forward" in m.__dict__ for m in model.hf.modules())
    assert hooks_left(model) == 0
    assert torch.equal(model.run(batch).logits, before)
