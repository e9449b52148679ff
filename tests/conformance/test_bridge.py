"""The lens engine's own: bridges that are handed in, what TransformerLens gets wrong, its cache and masks."""

from __future__ import annotations

import pytest
import torch
import transformers
from transformer_lens.model_bridge.sources import build_bridge_from_module

import interp
from interp.errors import EngineError, UsageError
from interp.models.batch import Batch
from interp.models.engines import lens
from interp.models.engines.base import Record
from interp.models.subject import CausalLM
from tests.conformance.common import CLOSE, FAMILIES, bare, batch, gap, model
from tests.subjects import examples, subject
from tests.tiny import _SHARED, byte_tokenizer, tiny


def bridge(family: str):
    module = tiny(family)
    return build_bridge_from_module(module, type(module).__name__, hf_config=module.config)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_bridge_is_loaded_as_the_module_it_was_made_of(family, tmp_path):
    """Bit for bit, over the same tensors, while the bridge goes on working."""
    given, original, theirs = batch(), tiny(family), bridge(family)
    before = bare(theirs.original_model, given).logits
    s = interp.load(theirs, tokenizer=byte_tokenizer())
    assert s.engine.name == "lens" and type(s.hf) is type(original)
    assert not any(m.training for m in (*s.hf.modules(), *s.engine.bridge.original_model.modules()))
    assert list(s.hf.state_dict()) == list(original.state_dict())
    assert all(torch.equal(s.hf.state_dict()[k], v) for k, v in original.state_dict().items())
    assert s.hf.config._attn_implementation == original.config._attn_implementation
    assert torch.equal(bare(s.hf, given).logits, bare(original, given).logits)
    assert torch.equal(bare(theirs.original_model, given).logits, before)
    trace = s.run(given, {"z[1]": Record()}, keep=given.width)
    truth = subject(family).run(given, {"z[1]": Record()}, keep=given.width)
    assert (
        gap(trace.logits, truth.logits, given) <= CLOSE and gap(trace["z[1]"], truth["z[1]"], given) <= CLOSE
    )
    assert {id(p) for p in s.hf.parameters()} <= {id(p) for p in theirs.original_model.parameters()}
    with torch.no_grad():
        s.hf.get_input_embeddings().weight.mul_(1.5)
    assert gap(bare(theirs.original_model, given).logits, before, given) > 0.01
    s.hf.save_pretrained(tmp_path)


def test_a_bridge_can_be_run_by_another_engine_and_brings_no_tokenizer():
    assert interp.load(bridge("llama"), engine="hooks").engine.name == "hooks"
    assert not interp.load(bridge("llama")).has_tokens


def test_an_engine_is_chosen_when_a_model_is_loaded(tmp_path):
    tiny("llama").save_pretrained(tmp_path)
    given = batch()
    truth = interp.load(tmp_path).run(given).logits
    for name in ("hooks", "lens", "nnsight"):
        s = interp.load(tmp_path, engine=name)
        assert s.engine.name == s.with_engine(name).engine.name == name
        torch.testing.assert_close(s.run(given).logits, truth, atol=CLOSE, rtol=0)
    with pytest.raises(UsageError, match="no engine 'lense'; write one of hooks, lens, nnsight"):
        interp.load(tmp_path, engine="lense")


def test_a_bridge_that_is_no_longer_its_module_is_refused():
    folded = bridge("llama")
    folded.enable_compatibility_mode()
    with pytest.raises(EngineError, match="compatibility mode"):
        interp.load(folded)
    edited = bridge("neox")  # its queries are a copy that TransformerLens made of the fused weight
    with torch.no_grad():
        edited.blocks[1].attn.q.weight.mul_(3)
    with pytest.raises(EngineError, match=r"logits are off by 0\.\d+ of their scale"):
        interp.load(edited)
    hollow = bridge("llama")
    hollow.original_model.model.norm._original_component.register_parameter("weight", None)
    with pytest.raises(EngineError, match=r"does not hold model\.norm\.weight"):
        interp.load(hollow)
    other = bridge("llama")
    object.__setattr__(other, "original_model", torch.nn.Linear(2, 2))
    with pytest.raises(EngineError, match="made of a Linear"):
        interp.load(other)


def small_gpt2(**options) -> torch.nn.Module:
    with torch.random.fork_rng(devices=[]):
        config = transformers.GPT2Config(**_SHARED, n_layer=2, n_head=4, n_embd=48, **options)
        return transformers.GPT2LMHeadModel(config).eval()


def test_a_model_that_transformer_lens_reads_wrongly_is_refused():
    """Its GPT-2 attention scales the scores by the head's width whatever the config says."""
    module = small_gpt2(scale_attn_weights=False)
    with torch.no_grad():
        for weight in module.parameters():
            weight.mul_(10)  # fresh weights are so small that attention is uniform with either scale
    with pytest.raises(EngineError, match=r"logits are off by .* of their scale; use engine 'hooks'"):
        interp.load(module, engine="lens")
    assert interp.load(small_gpt2(), engine="lens").engine.name == "lens"


def test_a_model_that_transformer_lens_cannot_bridge_is_refused():
    with torch.random.fork_rng(devices=[]):
        config = transformers.GPTNeoXConfig(
            vocab_size=259, hidden_size=64, intermediate_size=96, num_hidden_layers=1, num_attention_heads=4,
            attention_bias=False,
        )  # fmt: skip
        module = transformers.GPTNeoXForCausalLM(config).eval()
    with pytest.raises(EngineError, match="cannot bridge this GPTNeoXForCausalLM"):
        interp.load(module, engine="lens")

    class Own(torch.nn.Module):
        config = tiny("llama").config

    s = subject("llama")
    unknown = CausalLM.__new__(CausalLM)
    unknown.__dict__.update({**s.__dict__, "hf": Own()})
    with pytest.raises(EngineError, match="no adapter for Own"):
        lens.LensEngine(unknown)


def test_offloaded_weights_are_refused():
    s = CausalLM(tiny("llama"), None, name="llama")
    down = s.module(1, "mlp.down_proj")
    down.weight = torch.nn.Parameter(down.weight.to("meta"))
    with pytest.raises(EngineError, match="cannot share offloaded weights"):
        s.with_engine("lens")


def test_an_own_subclass_of_a_known_model_is_bridged():
    class Mine(transformers.LlamaForCausalLM):
        pass

    module = tiny("llama")
    module.__class__ = Mine
    assert interp.load(module, engine="lens").engine.lacks.keys() == {"attention"}


def test_a_hook_in_the_wrong_place_is_found_and_refused(monkeypatch):
    """The sites of TransformerLens are measured, not believed: here it calls the gate the neuron, and loses z."""
    honest = lens.bridged

    def wrong(s):
        made = honest(s)
        for block in made.blocks:
            object.__setattr__(block.mlp, "hook_post", block.mlp.hook_pre)
            # Through object: a bridge hands what is set on it down to the module it wraps.
            object.__setattr__(block.attn.o, "forward", block.attn.o.original_component.forward)
        return made

    monkeypatch.setattr(lens, "bridged", wrong)
    other = CausalLM(tiny("llama"), None, name="llama", engine="lens")
    assert set(other.engine.lacks) == {"attention", "neurons", "z"}
    with pytest.raises(EngineError, match=r"no neurons\[1\] for llama: blocks\.0\.mlp\.hook_post is off by"):
        other.run(batch(), {"neurons[1]": Record()})
    with pytest.raises(EngineError, match=r"no z\[1\].2 for llama: its bridge fires .*hook_z 0 times a pass"):
        other.run(batch(), {"z[1].2": Record()})


def test_a_hook_that_fires_twice_fails_the_run():
    other = CausalLM(tiny("llama"), None, name="llama", engine="lens")
    mlp = other.engine.bridge.blocks[1].mlp
    forward = mlp.forward
    object.__setattr__(mlp, "forward", lambda x: forward(x) + 0 * forward(x))
    with pytest.raises(EngineError, match=r"mlp_out\[1\] fired 2x"):
        other.run(batch(), {"mlp_out[1]": Record()})


@pytest.mark.parametrize("family", ["gpt2", "neox", "mistral", "gemma2", "gemma3"])
def test_a_run_behind_a_kv_cache_equals_the_whole(family):
    """Edited keys are kept in the cache, and windows, positions and padding go on where the first part ended."""
    other, whole = model(family, "lens"), batch()
    edit = {"k[1]": lambda k: 0.5 * k}
    truth = subject(family).run(whole, edit, keep=6).logits
    width = whole.width - 6
    parts = (t[:, :width] for t in (whole.ids, whole.mask, whole.positions))
    first = Batch(*parts, whole.pad, torch.full_like(whole.pad, width - 1))
    cache = other.run(first, edit, use_cache=True, keep=1).cache
    later = other.run(whole, {**edit, "z[2]": Record()}, cache=cache, past=width, keep=6)
    torch.testing.assert_close(later.logits, truth, atol=CLOSE, rtol=0)
    assert later["z[2]"].shape[1] == 6
    with pytest.raises(UsageError, match="KV cache holds"):
        other.run(whole, cache=cache, past=width)


def test_a_mask_of_one_s_own_replaces_the_padding_mask():
    given = Batch.of_ids([examples()[0].ids])
    blocked = torch.zeros(1, 1, given.width, given.width).masked_fill(
        ~torch.ones(given.width, given.width, dtype=torch.bool).tril(), torch.finfo(torch.float32).min
    )
    blocked[..., 10:, 3] = torch.finfo(torch.float32).min
    truth = subject("llama").run(given, mask=blocked).logits
    assert (truth - subject("llama").run(given).logits).abs().max() > 0.01
    torch.testing.assert_close(
        model("llama", "lens").run(given, mask=blocked).logits, truth, atol=CLOSE, rtol=0
    )


def test_hooks_of_the_user_s_on_the_bridge_stay():
    other = CausalLM(tiny("llama"), None, name="llama", engine="lens")
    seen = []
    other.engine.bridge.blocks[1].attn.hook_z.add_hook(lambda value, hook: seen.append(hook.name))
    other.run(batch(), {"z[1]": torch.zeros_like})
    other.run(batch(), {"head_out[1]": Record()})
    assert len(seen) == 2 and len(other.engine.bridge.blocks[1].attn.hook_z.fwd_hooks) == 1


def test_half_precision_runs():
    module = tiny("llama").to(torch.bfloat16)
    s = CausalLM(module, None, name="llama")
    other = s.with_engine("lens")
    truth = s.run(batch(), {"z[1]": Record()})
    trace = other.run(batch(), {"z[1]": Record()})
    assert trace["z[1]"].dtype == torch.bfloat16
    assert (trace.logits.float() - truth.logits.float()).abs().max() < 0.05 * truth.logits.abs().max()
