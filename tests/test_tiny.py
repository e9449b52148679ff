"""The tiny models are what the other tests take them for."""

from __future__ import annotations

import pytest
import torch

from tests.tiny import CONTEXT, FAMILIES, HEADS, KV_HEADS, LAYERS, VOCAB, WINDOW, byte_tokenizer, tiny


def logits(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(ids).logits


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(0, 256, (1, 40), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("family", FAMILIES)
def test_seeded_and_lively(family: str, ids: torch.Tensor, rng_untouched: None) -> None:
    model, again, other = tiny(family), tiny(family), tiny(family, seed=1)
    out = logits(model, ids)
    assert torch.equal(out, logits(again, ids))
    assert not torch.allclose(out, logits(other, ids), atol=0.1)
    assert out.shape == (1, 40, VOCAB)
    assert 0.3 < out.std() < 10
    assert not model.training


@pytest.mark.parametrize("family", FAMILIES)
def test_every_weight_matters(family: str, ids: torch.Tensor) -> None:
    model = tiny(family)
    before = logits(model, ids)
    for name, weight in model.named_parameters():
        kept = weight.detach().clone()
        with torch.no_grad():
            # Turned round, not scaled: a norm that follows would undo a scale.
            weight.copy_(kept.flip(0))
        moved = (logits(model, ids) - before).abs().max()
        with torch.no_grad():
            weight.copy_(kept)
        assert moved > 1e-3, name


@pytest.mark.parametrize("family", FAMILIES)
def test_shape_of_the_family(family: str) -> None:
    config = tiny(family).config
    assert (config.num_hidden_layers, config.num_attention_heads) == (LAYERS, HEADS)
    assert config.max_position_embeddings == CONTEXT
    grouped = not family.startswith(("gpt2", "neox"))
    assert getattr(config, "num_key_value_heads", HEADS) == (KV_HEADS if grouped else HEADS)


@pytest.mark.parametrize("family", ["mistral", "gemma2", "gemma3"])
def test_window_is_seen(family: str, ids: torch.Tensor) -> None:
    """The logits change when the window of the sliding layers is opened."""
    model = tiny(family)
    narrow = logits(model, ids)
    wide = tiny(family)
    for layer in wide.model.layers:
        if getattr(layer.self_attn, "sliding_window", None):
            layer.self_attn.sliding_window = CONTEXT
    wide.config.sliding_window = CONTEXT
    moved = (logits(wide, ids) - narrow).abs().amax(-1)[0]
    assert moved[:WINDOW].max() == 0
    assert moved[WINDOW + 1 :].min() > 1e-3


def test_byte_tokenizer() -> None:
    text = "Ünïque: 12 words\nand <s>"
    plain = byte_tokenizer()(text, return_offsets_mapping=True)
    assert byte_tokenizer().decode(plain["input_ids"]) == text
    assert plain["input_ids"][-1] == 256
    assert plain["offset_mapping"][0] == plain["offset_mapping"][1] == (0, 1)
    assert byte_tokenizer(bos=True)("a")["input_ids"] == [256, 64]
    assert len(byte_tokenizer()) == VOCAB
