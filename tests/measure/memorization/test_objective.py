"""The objective on single items equals a naive loop, and does not depend on what else is asked for."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from interp.errors import UsageError
from interp.measure.memorization.objective import loss
from tests.subjects import ALL, subject


@dataclass(frozen=True)
class Text:
    ids: tuple[int, ...]
    prefix: int


def texts(seed: int = 0) -> list[Text]:
    generator = torch.Generator().manual_seed(seed)
    out = []
    for n, prefix in ((12, 4), (7, 0), (19, 18)):
        out.append(Text(tuple(torch.randint(0, 256, (n,), generator=generator).tolist()), prefix))
    return out


def naive(hf: torch.nn.Module, item: Text, vectors: torch.Tensor | None = None) -> torch.Tensor:
    """One sequence at a time, every token by itself."""
    ids = torch.tensor([item.ids])
    embedded = hf.get_input_embeddings()(ids)  # type: ignore[operator]
    if vectors is not None:
        embedded = torch.cat([vectors[None], embedded], 1)
    logs = hf(inputs_embeds=embedded).logits[0, -len(item.ids) :].log_softmax(-1)
    given = max(1, item.prefix)
    return -torch.stack([logs[i - 1, item.ids[i]] for i in range(given, len(item.ids))]).mean()


@pytest.mark.parametrize("family", ALL)
def test_the_likelihood_of_a_suffix_equals_the_loop(family: str) -> None:
    it, items = subject(family), texts()
    with torch.no_grad():
        found = loss(it, items)
        torch.testing.assert_close(found, torch.stack([naive(it.hf, i) for i in items]), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(loss(it, items, batch=2), found, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_a_soft_prompt_stands_before_the_tokens_and_has_gradients(family: str) -> None:
    it, items = subject(family), texts()
    width = it.hf.get_input_embeddings().weight.shape[1]
    vectors = torch.randn(3, 2, width, generator=torch.Generator().manual_seed(1)).requires_grad_()
    found = loss(it, items, embeddings=vectors)
    expected = torch.stack([naive(it.hf, i, v) for i, v in zip(items, vectors, strict=True)])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    (own,) = torch.autograd.grad(found[1], vectors, retain_graph=True)
    (theirs,) = torch.autograd.grad(expected[1], vectors)
    torch.testing.assert_close(own, theirs, rtol=1e-3, atol=1e-5)
    assert own[[0, 2]].abs().max() == 0 and own[1].abs().max() > 0


def test_what_cannot_be_asked_for_is_refused() -> None:
    it = subject("llama")
    with pytest.raises(UsageError, match="at least one item"):
        loss(it, [])
    with pytest.raises(UsageError, match="none is left"):
        loss(it, [Text((1, 2, 3), 3)])
    with pytest.raises(UsageError, match="2 embeddings for 3 items"):
        loss(it, texts(), embeddings=torch.zeros(2, 1, 48))
