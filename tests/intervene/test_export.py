"""Exports to nnsight: traces of the edited model are runs under the intervention."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import interp
from interp.errors import EngineError, InterpError, UsageError
from interp.intervene.ablate import ablate
from interp.intervene.export import to_nnsight
from interp.models.batch import Batch
from interp.models.engines.nnsight import library
from interp.models.subject import CausalLM
from interp.models.tokens import Tokens
from tests.subjects import examples
from tests.tiny import byte_tokenizer, tiny

CLOSE = 1e-4
EVERYWHERE = ablate("L0H1 M2 L1N4", mode="mean", reference=examples()) + ablate("L1H2", mode="uniform")


def told(family: str = "llama") -> CausalLM:
    """A tiny model with a tokenizer, so that nnsight wraps it as a TransformersModel."""
    return CausalLM(tiny(family), Tokens(byte_tokenizer()), name=family)


def batch(lengths: tuple[int, ...] = (24, 17, 40)) -> Batch:
    return Batch.of_ids([e.ids for e in examples(lengths)])


def gap(a: torch.Tensor, b: torch.Tensor) -> float:
    assert a.shape == b.shape, (a.shape, b.shape)
    return float((a - b).abs().max())


def traced(edited: Any, given: Batch) -> torch.Tensor:
    """Logits of a plain trace, which knows nothing of interventions."""
    nnsight = library()
    with (
        torch.no_grad(),
        edited.trace(input_ids=given.ids, attention_mask=given.mask, position_ids=given.positions),
    ):
        logits = nnsight.save(edited.output.logits)
    return logits


@pytest.mark.parametrize("family", ["gpt2", "neox", "llama", "gemma2"])
def test_traces_of_an_export_are_runs_under_the_intervention(family):
    s = told(family)
    resample = ablate("L0H0 L2H3", mode="resample", reference=examples())
    for cut in (EVERYWHERE, resample, ablate("L1N3 M0") + ablate("L2H1")):
        edited = interp.to_nnsight(cut, s)
        for given in (batch(), batch((24,)), batch()):  # the edit reads what it is fed
            with s.apply(cut):
                reference = s.run(given, keep=given.width).logits
            assert gap(traced(edited, given), reference) <= CLOSE
            assert gap(reference, s.run(given, keep=given.width).logits) > 0.1


def test_exports_of_text_compose_and_leave_their_model_unedited():
    s = told()
    n = s.with_engine("nnsight")
    one, two = ablate("L1H1"), ablate("M0")
    first = to_nnsight(one, n)
    both = to_nnsight(two, n, model=first)
    texts = ["hello there", "hi"]
    given = Batch.of_ids([s.tokens.encode(text).ids for text in texts])
    nnsight = library()
    for model, cut in ((n.engine.model, ()), (first, (one,)), (both, (one, two))):
        with torch.no_grad(), model.trace(texts):
            logits = nnsight.save(model.output.logits[:, -1:])
        with s.apply(*cut):
            assert gap(logits, s.run(given, keep=1).logits) <= CLOSE
    assert gap(n.run(given, keep=1).logits, s.run(given, keep=1).logits) <= CLOSE
    with pytest.raises(EngineError, match="one pass over whole prompts"):
        first.generate("hello", max_new_tokens=2)


def test_what_depends_on_a_batch_is_exported_for_it_alone():
    s = told()
    given = s.batch(examples())
    cut = (
        ablate("L1H1", scope="answer")
        + ablate("L0H2", scope="value")
        + ablate("M1", mode="mean", reference=examples())
    )
    for part, told_why in zip(cut.atoms(), ("depends on the batch", "bare ids has no spans"), strict=False):
        with pytest.raises(UsageError, match=f"{told_why}.*to_nnsight"):
            to_nnsight(part, s)
    edited = to_nnsight(cut, s, batch=given)
    with s.apply(cut):
        assert gap(traced(edited, given), s.run(given, keep=given.width).logits) <= CLOSE
    with pytest.raises(UsageError, match="exported for a batch of 3 x 42 tokens"):
        traced(edited, batch())
    with pytest.raises(UsageError, match="layers 0 to 2"):
        to_nnsight(ablate("L9H1"), s)
    with pytest.raises(InterpError, match="needs a reference"):
        to_nnsight(ablate("L1H1", mode="mean"), s)
