"""The reference engine against plain Hugging Face runs, on every family of the site table, padded and not."""

from __future__ import annotations

import pytest
import torch

from interp.errors import EngineError, UsageError
from interp.models.batch import Batch
from interp.models.engines.base import Record, Reduce, Rows
from interp.models.sites import Site
from tests.subjects import ALL, examples, subject

STREAM = ("resid_pre", "attn_out", "mlp_out", "resid_post")


def padded() -> Batch:
    return Batch.of_ids([e.ids for e in examples()])


def bare(s, batch, **kwargs):
    with torch.no_grad():
        return s.hf(input_ids=batch.ids, attention_mask=batch.mask, position_ids=batch.positions, **kwargs)


def hooks_left(s) -> int:
    """Hooks of ours; transformers keeps some of its own once it was asked for attentions."""
    hooks = [h for m in s.hf.modules() for h in (*m._forward_hooks.values(), *m._forward_pre_hooks.values())]
    return sum(getattr(h, "__module__", "").startswith("interp") for h in hooks)


@pytest.mark.parametrize("family", ALL)
def test_logits_are_those_of_the_own_kernel_bit_for_bit(family):
    s, batch = subject(family), padded()
    before = s.hf.config._attn_implementation
    columns = torch.tensor([[batch.width - 4, batch.width - 1]] * len(batch))
    taps = {Site(kind, i): Record() for kind in (*STREAM, "z", "q_rot", "k_rot") for i in range(s.n_layers)}
    trace = s.run(batch, taps, rows=Rows(columns), keep=batch.width)
    real = batch.mask.bool()
    assert torch.equal(trace.logits[real], bare(s, batch).logits[real])
    assert s.hf.config._attn_implementation == before
    assert hooks_left(s) == 0


@pytest.mark.parametrize("family", ALL)
def test_rows_equal_eager_attention(family):
    s, batch = subject(family), padded()
    columns = torch.tensor([[batch.width - 4, -1, batch.width - 1]] * len(batch))
    rows = s.run(batch, rows=Rows(columns), keep=1).rows
    before = s.hf.config._attn_implementation
    s.hf.set_attn_implementation("eager")
    try:
        eager = bare(s, batch, output_attentions=True).attentions
    finally:
        s.hf.set_attn_implementation(before)
    for i in range(s.n_layers):
        assert rows[i].dtype == torch.float32
        torch.testing.assert_close(rows[i][:, :, [0, 2]], eager[i][:, :, [-4, -1]], atol=1e-5, rtol=0)
        assert not rows[i][:, :, 1].any()  # a row that was not asked for holds zeros, not NaN


@pytest.mark.parametrize("family", ALL)
def test_padded_equals_solo(family):
    s, batch = subject(family), padded()
    together = s.run(batch, {"z[1]": Record()}, keep=1)
    for row, e in enumerate(examples()):
        alone = s.run(Batch.of_ids([e.ids]), {"z[1]": Record()}, keep=1)
        torch.testing.assert_close(together.logits[row], alone.logits[0], atol=1e-4, rtol=0)
        n = len(e.ids)
        torch.testing.assert_close(together["z[1]"][row, -n:], alone["z[1]"][0], atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", ALL)
def test_sites_are_what_their_names_say(family):
    s, batch = subject(family), padded()
    kinds = [
        *STREAM,
        "q",
        "k",
        "v",
        "z",
        "head_out",
        "neurons",
        *(["resid_mid"] if not s.family.parallel else []),
    ]
    trace = s.run(batch, {Site(k, i): Record() for k in kinds for i in range(s.n_layers)})
    for i in range(s.n_layers):
        pre, attn, mlp, post = (trace[Site(k, i)] for k in STREAM)
        torch.testing.assert_close(pre + attn + mlp, post, atol=1e-4, rtol=1e-5)
        if not s.family.parallel:
            torch.testing.assert_close(trace[Site("resid_mid", i)], pre + attn, atol=1e-4, rtol=1e-5)
        assert trace[Site("z", i)].shape[2:] == (s.n_heads, s.d_head)
        assert trace[Site("q", i)].shape[2:] == (s.n_heads, s.d_head)
        assert trace[Site("k", i)].shape[2:] == (s.n_kv_heads, s.d_head)
        assert trace[Site("neurons", i)].shape[2:] == (s.d_mlp,)
        bias = getattr(s.module(i, s.family.out_proj), "bias", None)
        share = trace[Site("head_out", i)].sum(2) + (0 if bias is None else bias)
        if not s.family.post_norm:
            torch.testing.assert_close(share, attn, atol=1e-4, rtol=1e-5)
    assert set(trace.records) == {Site(k, i) for k in kinds for i in range(s.n_layers)}


@pytest.mark.parametrize("family", ALL)
def test_q_k_v_give_the_rows_they_say(family):
    """q and k before rotation, position 0 of a solo prompt: rotation there is the identity."""
    s = subject(family)
    one = Batch.of_ids([examples()[0].ids])
    trace = s.run(one, {"q[0]": Record(), "q_rot[0]": Record(), "k[0]": Record(), "k_rot[0]": Record()})
    normed = hasattr(s.module(0, s.family.attention), "q_norm")
    if not normed:  # Qwen3, Gemma 3 and OLMo 2 norm queries and keys before they rotate them
        torch.testing.assert_close(trace["q[0]"][:, 0], trace["q_rot[0]"][:, 0])
        torch.testing.assert_close(trace["k[0]"][:, 0], trace["k_rot[0]"][:, 0])
    z = s.run(one, {"z[0]": Record(), "v[0]": Record()})
    group = [s.kv_head(h) for h in range(s.n_heads)]
    # The first token sees itself only, so its z is its value.
    torch.testing.assert_close(z["z[0]"][:, 0], z["v[0]"][:, 0][:, group], atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", ALL)
def test_edits_at_equivalent_sites_agree(family):
    s, batch = subject(family), padded()
    cut = s.run(batch, {"z[1].2": torch.zeros_like}).logits
    same = s.run(batch, {"head_out[1].2": torch.zeros_like}).logits
    whole = s.run(batch, {"z[1]": lambda z: z * torch.tensor([1.0, 1, 0, 1])[:, None]}).logits
    torch.testing.assert_close(cut, same, atol=1e-4, rtol=0)
    torch.testing.assert_close(cut, whole, atol=1e-6, rtol=0)
    assert (cut - s.run(batch).logits).abs().max() > 0.01
    shift = torch.linspace(-1, 1, s.d_model)
    by_attention = s.run(batch, {"attn_out[1]": lambda x: x + shift}).logits
    if not s.family.parallel:
        by_stream = s.run(batch, {"resid_mid[1]": lambda x: x + shift}).logits
        torch.testing.assert_close(by_attention, by_stream, atol=1e-4, rtol=0)
    by_post = s.run(batch, {"resid_post[1]": lambda x: x + shift}).logits
    by_pre = s.run(batch, {"resid_pre[2]": lambda x: x + shift}).logits
    torch.testing.assert_close(by_post, by_pre, atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", ALL)
@pytest.mark.parametrize("kind", ["q", "k", "v", "q_rot", "k_rot"])
def test_edits_of_queries_keys_and_values_reach_the_kernel(family, kind):
    """Scaling one head's tensor changes the logits, and as much as scaling all heads with that head's factor."""
    s, batch = subject(family), padded()
    size = s.n_heads if kind in ("q", "q_rot") else s.n_kv_heads
    one = s.run(batch, {Site(kind, 1, 1): lambda x: 0.5 * x}).logits
    scale = torch.ones(size, 1)
    scale[1] = 0.5
    every = s.run(batch, {Site(kind, 1): lambda x: x * scale}).logits
    torch.testing.assert_close(one, every, atol=1e-6, rtol=0)
    if not (kind in ("q", "k") and hasattr(s.module(1, s.family.attention), "q_norm")):
        assert (one - s.run(batch).logits).abs().max() > 1e-4


@pytest.mark.parametrize("family", ALL)
def test_generation_under_an_edit_equals_the_step_by_step_loop(family):
    s = subject(family)
    prompts = [e.ids for e in examples()]
    out = s.generate(Batch.of_ids(prompts), 5, taps={"z[1].2": torch.zeros_like})
    for ids, said in zip(prompts, out, strict=True):
        every = list(ids)
        for _ in range(5):
            logits = s.run(Batch.of_ids([every]), {"z[1].2": torch.zeros_like}, keep=1).logits
            every.append(int(logits[0, -1].argmax()))
        assert said == every[len(ids) :]
    assert hooks_left(s) == 0


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_everything_is_restored_after_an_exception(family):
    s, batch = subject(family), padded()
    reference = s.run(batch).logits
    before = s.hf.config._attn_implementation

    def fail(value):
        raise RuntimeError("on purpose")

    for site in ("z[1]", "attention[2]", "q_rot[0]", "logits"):
        with pytest.raises(RuntimeError, match="on purpose"):
            s.run(batch, {site: fail})
    assert hooks_left(s) == 0
    assert s.hf.config._attn_implementation == before
    assert torch.equal(s.run(batch).logits, reference)


def test_a_tap_that_never_fires_is_an_error():
    s, batch = subject("llama"), padded()
    block = s.blocks[1]
    block.mlp.forward = lambda x: torch.zeros_like(x)  # down_proj is never called
    try:
        with pytest.raises(EngineError, match=r"neurons\[1\] fired 0x"):
            s.run(batch, {"neurons[1]": Record(), "z[1]": Record()})
    finally:
        del block.mlp.forward


def test_taps_fire_once_a_step_in_generation():
    s = subject("llama")
    counts: dict[int, int] = {}

    def count(value, frame):
        counts[frame.past] = counts.get(frame.past, 0) + 1
        return value.shape[1]

    prompts = [e.ids for e in examples()]
    out = s.generate(Batch.of_ids(prompts), 4, taps={"mlp_out[0]": Reduce(count)})
    width = max(map(len, prompts))
    assert counts == {0: 1, width: 1, width + 1: 1, width + 2: 1}
    assert all(len(o) == 4 for o in out)


def test_a_tap_must_not_run_the_model_it_taps():
    s, batch = subject("llama"), padded()
    with pytest.raises(EngineError, match="before the pass"):
        s.run(batch, {"z[1]": lambda z: s.run(batch).logits})
    assert hooks_left(s) == 0 and not s.hooked


def test_a_tap_must_keep_the_shape():
    s, batch = subject("llama"), padded()
    with pytest.raises(EngineError, match="shape"):
        s.run(batch, {"z[1]": lambda z: z[..., 0]})


def test_embed_can_be_recorded_and_edited():
    s, batch = subject("llama"), padded()
    trace = s.run(batch, {"embed": Record()})
    torch.testing.assert_close(trace["embed"], s.hf.get_input_embeddings()(batch.ids))
    shift = torch.linspace(-1, 1, s.d_model)
    by_embed = s.run(batch, {"embed": lambda x: x + shift}).logits
    torch.testing.assert_close(by_embed, s.run(batch, {"resid_pre[0]": lambda x: x + shift}).logits)


def test_heads_shares_are_edited_before_what_they_add_up_to():
    s, batch = subject("llama"), padded()
    both = s.run(batch, {"attn_out[1]": Record(), "head_out[1]": torch.zeros_like})
    assert both["attn_out[1]"].abs().max() < 1e-5  # the Llama projection has no bias
    cut = s.run(batch, {"attn_out[1]": torch.zeros_like, "head_out[1]": lambda x: 3 * x}).logits
    torch.testing.assert_close(cut, s.run(batch, {"attn_out[1]": torch.zeros_like}).logits)


def test_positions_mean_columns_of_the_batch_also_for_logits_and_behind_a_cache():
    from transformers import DynamicCache

    s = subject("llama")
    batch = Batch.of_ids([examples()[0].ids])
    last = batch.width - 1
    whole = s.run(batch, {"z[1]": Record()}, keep=batch.width)
    kept = s.run(batch, {"logits": Record(torch.tensor([[last - 1, last]]))}, keep=3)
    torch.testing.assert_close(kept["logits"], whole.logits[:, -2:])
    with pytest.raises(UsageError, match="are there to be recorded"):
        s.run(batch, {"logits": Record(torch.tensor([[0]]))}, keep=3)
    cache = DynamicCache()
    s.run(Batch.of_ids([examples()[0].ids[:10]]), cache=cache, keep=1)
    later = s.run(batch, {"z[1]": Record(torch.tensor([[12]]))}, cache=cache, past=10)
    torch.testing.assert_close(later["z[1]"][0, 0], whole["z[1]"][0, 12], atol=1e-5, rtol=0)
    with pytest.raises(UsageError, match="holds 24 columns"):
        s.run(batch, cache=cache, past=10)


def test_what_a_trace_cannot_hold_or_a_cache_cannot_keep_is_refused():
    s, batch = subject("llama"), padded()
    with pytest.raises(EngineError, match="two taps record"):
        s.run(batch, {"z[1]": [Record(), Record()]})
    with pytest.raises(UsageError, match="layers 0 to 2"):
        s.run(batch, rows=Rows(torch.tensor([[1]] * 3), layers=frozenset({9})))
    with pytest.raises(EngineError, match="not kept in the KV cache"):
        s.generate(Batch.of_ids([[1, 2, 3]]), 3, taps={"k_rot[1]": torch.zeros_like})


def test_generation_is_greedy_whatever_the_checkpoint_penalises():
    s = subject("llama")
    prompts = Batch.of_ids([[7, 7, 7, 7, 9]])
    plain = s.generate(prompts, 12)
    s.hf.generation_config.repetition_penalty = 1.5
    try:
        assert s.generate(prompts, 12) == plain
    finally:
        s.hf.generation_config.repetition_penalty = 1.0


def test_two_models_in_one_process_do_not_disturb_each_other():
    a, b, batch = subject("llama"), subject("qwen3"), padded()
    alone = b.run(batch).logits
    columns = torch.tensor([[batch.width - 1]] * len(batch))

    def other(value):
        assert torch.equal(b.run(batch, rows=Rows(columns)).logits, alone)
        return None

    a_alone = a.run(batch).logits
    trace = a.run(batch, {"z[1]": other}, rows=Rows(columns))
    assert torch.equal(trace.logits, a_alone)
    assert trace.rows[2].shape[1] == a.n_heads


@pytest.mark.parametrize(
    ("site", "told"),
    [
        ("z[9]", "layers 0 to 2"),
        ("z[0].7", "indices 0 to 3"),
        ("k[0].2", "indices 0 to 1"),
        ("resid_mid[0]", "parallel"),
    ],
)
def test_a_site_that_does_not_exist_says_what_does(site, told):
    s = subject("neox" if site.startswith("resid_mid") else "llama")
    with pytest.raises(UsageError, match=told):
        s.run(padded(), {site: Record()})


def test_a_sequence_longer_than_the_context_is_refused():
    s = subject("llama")
    with pytest.raises(UsageError, match="do not fit the context"):
        s.run(examples((600,)))


def test_recording_at_positions_keeps_only_those():
    s, batch = subject("llama"), padded()
    positions = torch.tensor([[batch.width - 1, batch.width - 2]] * len(batch))
    trace = s.run(batch, {"resid_post[1]": Record(positions)})
    whole = s.run(batch, {"resid_post[1]": Record()})["resid_post[1]"]
    assert torch.equal(trace["resid_post[1]"], whole[:, [-1, -2]])


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3"])
def test_sites_agree_with_transformer_lens(family):
    """TransformerLens as an independent reading of the same weights: names, shapes and values."""
    import warnings

    from transformer_lens.model_bridge.sources import build_bridge_from_module

    from tests.tiny import tiny

    s = subject(family)
    twin = tiny(family)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bridge = build_bridge_from_module(twin, type(twin).__name__, hf_config=twin.config)
    ids = torch.tensor([examples()[0].ids])
    kinds = ["resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "z", "v", "neurons"]
    sites = [Site(k, i) for k in kinds for i in range(s.n_layers)]
    ours = s.run(Batch.of_ids(ids.tolist()), {x: Record() for x in sites}, keep=ids.shape[1])
    with torch.no_grad():
        logits, cache = bridge.run_with_cache(ids, prepend_bos=False)
    torch.testing.assert_close(ours.logits, logits, atol=1e-4, rtol=0)
    for site in sites:
        theirs = cache[site.lens_name()].reshape(ours[site].shape)
        torch.testing.assert_close(ours[site], theirs, atol=1e-4, rtol=0, msg=lambda m, s=site: f"{s}: {m}")
