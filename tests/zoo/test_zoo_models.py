"""Small memory models are subjects like any other: sites, cache, padding, kernels and files. Mixers are exact."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import DynamicCache
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

import interp
from interp.errors import EngineError, UnknownArchitecture
from interp.models.batch import Batch
from interp.models.engines.base import Record, Rows
from interp.models.families import FAMILIES
from interp.models.sites import Head, Site
from interp.models.zoo.config import ZooConfig
from interp.models.zoo.mixers import Around, ShortConv
from interp.models.zoo.mixers.attention import rotated
from interp.models.zoo.model import untrained
from interp.tasks.mqar import MQAR
from interp.tasks.symbols import symbols

SHAPES = {
    "conv": {},
    "rotary": {"conv_width": 0, "num_hidden_layers": 2, "positions": "rotary", "intermediate_size": 48},
    "learned": {"conv_width": 4, "num_hidden_layers": 2, "positions": "learned", "attention_bias": True},
}
TOKENS = symbols(64)


def make(shape: str, seed: int = 0):
    """A model with weights so large that a wrong head shows."""
    return untrained(
        ZooConfig(**{"vocab_size": 64, "hidden_size": 32, "initializer_range": 0.3, **SHAPES[shape]}),
        seed=seed,
    )


def ids(rows: int, n: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(2, 64, (rows, n), generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=SHAPES)
def model(request):
    return interp.load(make(request.param), tokenizer=TOKENS, name=request.param)


def test_it_is_a_subject(model):
    assert model.family is FAMILIES["zoo"]
    assert (model.n_heads, model.d_head, model.d_model) == (4, 8, 32)
    assert model.context_length == 512
    assert model.d_mlp == (48 if model.name == "rotary" else 0)
    model.check(Head(model.n_layers - 1, 3))


def test_a_row_that_does_not_fit_is_refused():
    with pytest.raises(UnknownArchitecture, match="does not fit the row 'llama'"):
        interp.load(make("conv"), family="llama")


def test_equal_seeds_give_equal_weights_and_the_global_state_is_left_alone():
    before = torch.get_rng_state()
    a, b, c = make("conv", 1), make("conv", 1), make("conv", 2)
    assert torch.equal(before, torch.get_rng_state())
    same = [torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True)]
    assert all(same)
    assert not torch.equal(a.lm_head.weight, c.lm_head.weight)
    assert a.lm_head.weight is a.model.embed_tokens.weight


@pytest.mark.parametrize("cut", [1, 2, 7])
def test_a_cached_pass_is_the_whole_pass_and_a_cropped_cache_holds_too(model, cut):
    module, row = model.hf, ids(3, 12)
    whole = module(row).logits
    cache = DynamicCache()
    first = module(row[:, :cut], past_key_values=cache, use_cache=True)
    assert torch.allclose(first.logits, whole[:, :cut], atol=1e-5)
    module(ids(3, 3, seed=1), past_key_values=cache, use_cache=True)  # a draft that is refuted
    cache.crop(-3)
    rest = module(row[:, cut:], past_key_values=cache, use_cache=True)
    assert torch.allclose(rest.logits, whole[:, cut:], atol=1e-5)


def test_padded_equals_solo(model):
    rows = [ids(1, n, seed=n)[0].tolist() for n in (5, 11, 8)]
    batch = Batch.of_ids(rows, device=model.device)
    together = model.run(batch, keep=5).logits
    for i, row in enumerate(rows):
        alone = model.hf(torch.tensor([row])).logits[0, -5:]
        assert torch.allclose(together[i], alone, atol=1e-4)


def test_generation_goes_token_by_token(model):
    prompt = ids(1, 6)
    (said,) = model.generate(Batch.of_ids(prompt.tolist()), 5)
    by_hand = prompt
    for _ in range(5):
        by_hand = torch.cat([by_hand, model.hf(by_hand).logits[:, -1:].argmax(-1)], dim=1)
    assert said == by_hand[0, 6:].tolist()


def test_rows_times_values_is_z_and_heads_can_be_cut(model):
    batch = Batch.of_ids(ids(2, 9).tolist())
    last = model.n_layers - 1
    sites = {Site(k, last): Record() for k in ("z", "v", "attn_out", "resid_pre", "resid_mid", "mlp_out")}
    trace = model.run(batch, sites, rows=Rows(torch.arange(9)[None].expand(2, -1)))
    pattern = trace.rows[last]  # b h t k
    assert torch.allclose(pattern.sum(-1), torch.ones(2, 4, 9), atol=1e-5)
    assert pattern.triu(1).abs().max() == 0
    z = torch.einsum("bhtk,bkhd->bthd", pattern, trace[Site("v", last)])
    assert torch.allclose(z, trace[Site("z", last)], atol=1e-5)
    middle = trace[Site("resid_pre", last)] + trace[Site("attn_out", last)]
    assert torch.allclose(middle, trace[Site("resid_mid", last)], atol=1e-5)
    if model.d_mlp == 0:
        assert trace[Site("mlp_out", last)].abs().max() == 0
    cut = model.run(batch, {Site("z", last, 2): lambda z: torch.zeros_like(z)}).logits
    twin = make(model.name)
    with torch.no_grad():
        twin.model.layers[last].mixer.o_proj.weight[:, 16:24] = 0
    assert torch.allclose(cut[:, -1], twin(batch.ids).logits[:, -1], atol=1e-5)


def test_every_cut_at_once_equals_each_alone(model):
    batch = Batch.of_ids(ids(3, 10).tolist())
    cuts = [interp.ablate(h) for h in model.heads()]
    for i, logits in model.each(cuts, batch, keep=2):
        with model.apply(cuts[i]):
            alone = model.run(batch, keep=2).logits
        assert torch.allclose(logits, alone, atol=1e-4), cuts[i]


def test_a_run_goes_on_from_a_checkpoint(model):
    batch = Batch.of_ids(ids(2, 9).tolist())
    whole = model.run(batch).logits
    for layer in range(model.n_layers):
        start = model.checkpoint(batch, layer)
        assert torch.allclose(model.run(batch, start=start).logits, whole, atol=1e-5)


def test_kernels_agree(model):
    row = ids(2, 9)
    fast = model.hf(row).logits
    model.hf.set_attn_implementation("eager")
    assert torch.allclose(model.hf(row).logits, fast, atol=1e-5)


def test_files(model, tmp_path):
    model.hf.save_pretrained(tmp_path)
    TOKENS.hf.save_pretrained(tmp_path)
    again = interp.load(str(tmp_path))
    assert again.weights_hash == model.weights_hash
    assert again.tokens.encode("s5 s63").ids == (5, 63)
    row = ids(1, 7)
    assert torch.equal(again.hf(row).logits, model.hf(row).logits)


def test_retrieval_heads_and_cuts_run_on_an_untrained_model(model):
    task = MQAR(length=32, pairs=4, n=6)
    heads = interp.RetrievalHeads(mode="forced").fit(model, task)
    assert len(heads.scores_) == 2 * 4 * model.n_layers
    assert len(heads.top(2)) == 2


@pytest.mark.parametrize("width", [1, 2, 5])
def test_the_convolution_is_its_equation(width):
    config = ZooConfig(hidden_size=8, conv_width=width, vocab_size=64)
    mixer = untrained(config).model.stem.mixer
    x = torch.randn(2, 7, 8, generator=torch.Generator().manual_seed(0))
    found, _ = mixer(x, Around(torch.arange(7)[None]))
    w, b = mixer.conv.weight.detach().numpy()[:, 0], mixer.conv.bias.detach().numpy()
    for t in range(7):
        # The last weight is of the token itself.
        near = sum(w[:, width - 1 - j] * x[:, t - j].numpy() for j in range(width) if t - j >= 0) + b
        gate = x[:, t].numpy() @ mixer.gate.weight.detach().numpy().T + mixer.gate.bias.detach().numpy()
        np.testing.assert_allclose(found[:, t].detach(), gate * near, atol=1e-5)


def test_the_convolution_is_causal_and_sees_so_many_tokens():
    config = ZooConfig(hidden_size=8, conv_width=3, vocab_size=64)
    mixer = untrained(config).model.stem.mixer
    x = torch.randn(1, 9, 8, generator=torch.Generator().manual_seed(0))
    other = x.clone()
    other[0, 4] += 1
    around = Around(torch.arange(9)[None])
    changed = (mixer(x, around)[0] - mixer(other, around)[0]).abs().amax(-1)[0]
    assert (changed > 0).nonzero()[:, 0].tolist() == [4, 5, 6]


def test_the_convolution_refuses_a_mask_of_four_dimensions():
    mixer = untrained(ZooConfig(hidden_size=8, vocab_size=64)).model.stem.mixer
    assert isinstance(mixer, ShortConv)
    with pytest.raises(EngineError, match="4-D attention mask"):
        mixer(torch.zeros(1, 3, 8), Around(torch.arange(3)[None], padding=torch.zeros(1, 1, 3, 3)))


def test_rotation_is_that_of_llama():
    from transformers import LlamaConfig

    config = LlamaConfig(
        hidden_size=32,
        num_attention_heads=4,
        rope_parameters={"rope_type": "default", "rope_theta": 500.0},
    )
    q = torch.randn(2, 4, 6, 8, generator=torch.Generator().manual_seed(0))
    at = torch.arange(6)[None] + torch.tensor([[3], [40]])
    cos, sin = LlamaRotaryEmbedding(config)(q, at)
    wanted, _ = apply_rotary_pos_emb(q, q, cos, sin)
    assert torch.allclose(rotated(q, at, 500.0), wanted, atol=1e-5)


def test_only_distances_count_for_rotary_models_and_nothing_for_those_without_positions():
    row, at = ids(1, 8), torch.arange(8)[None]
    for shape, moves in (("conv", False), ("rotary", False), ("learned", True)):
        module = make(shape)
        near, far = (module(row, position_ids=at + shift).logits for shift in (0, 100))
        assert torch.allclose(near, far, atol=1e-3) is not moves, shape


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"mixer": "memory"}, "no mixer 'memory'; write one of attention"),
        ({"positions": "alibi"}, "no positions 'alibi'; write one of rotary, learned, none"),
        ({"num_attention_heads": 5}, "5 heads do not divide a width of 64 evenly"),
        ({"hidden_size": 12, "positions": "rotary"}, "rotary positions need heads of even width, not 3"),
    ],
)
def test_configurations_that_do_not_fit_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        ZooConfig(**wrong)
