"""Edits of components: the same on raw and on folded weights, on weights and on activations, and undone bit for bit."""

from __future__ import annotations

import copy

import pytest
import torch

from interp.errors import EngineError, UsageError
from interp.intervene import edit as registry
from interp.intervene.query import QueryEdit
from interp.locate.channels.edits import ov_edit, qk_edit
from interp.locate.channels.factors import Factors
from interp.locate.channels.weights import Weights
from interp.models.engines.base import Record
from interp.models.sites import Head
from interp.models.subject import CausalLM
from tests.intervene.test_edit import bits, same
from tests.locate.channels.test_geometry import DOUBLE
from tests.subjects import ALL, examples, subject
from tests.tiny import tiny

HEAD = Head(1, 2)
SCALES = {0: 0.0, 3: 0.4}


def weights_of(family):
    return Weights(subject(family), True, DOUBLE)


@pytest.mark.parametrize("family", ["gpt2", "neox", "llama", "qwen3", "gemma2", "olmo2"])
def test_folding_the_edited_model_is_editing_the_folded_model(family):
    """LayerNorm, RMSNorm, gains of one more, norms behind attention, norms of queries."""
    weights = weights_of(family)
    s = weights.subject
    before = Factors(weights.layer(1))
    one = ov_edit(weights, HEAD, SCALES)
    with one.applied(s):
        after = Factors(weights.layer(1))
    wanted = before.ov.s[2].clone()
    wanted[0], wanted[3] = 0, 0.4 * wanted[3]
    rebuilt = torch.einsum("k,ka,kb->ab", wanted, before.ov.read[2], before.ov.write[2])
    v = after.heads.v[s.kv_head(2)]
    torch.testing.assert_close(v @ after.heads.o[2], rebuilt, atol=1e-6, rtol=1e-5)
    assert torch.equal(after.heads.o[[0, 1, 3]], before.heads.o[[0, 1, 3]])
    assert torch.equal(after.heads.v, before.heads.v) and torch.equal(after.heads.k, before.heads.k)
    if family == "olmo2":
        return
    for score in ("full", "side"):
        two = qk_edit(weights, HEAD, SCALES, score=score)
        with two.applied(s):
            after = Factors(weights.layer(1))
        q, k = before.heads.q[2], before.heads.k[s.kv_head(2)]
        u = before.qk.read[2] if score == "full" else torch.linalg.svd(q, full_matrices=False)[0].mT
        turn = sum((c - 1) * torch.outer(u[i], u[i]) for i, c in SCALES.items())
        torch.testing.assert_close(after.heads.q[2], q + turn @ q, atol=1e-6, rtol=1e-5)
        assert torch.equal(after.heads.q[[0, 1, 3]], before.heads.q[[0, 1, 3]])
        assert torch.equal(after.heads.k, before.heads.k)
        # The part of the queries that belongs to no token stays.
        torch.testing.assert_close(after.heads.b_q, before.heads.b_q, atol=1e-6, rtol=1e-5)
        if score == "full":
            wanted = before.qk.s[2].clone()
            wanted[0], wanted[3] = 0, 0.4 * wanted[3]
            rebuilt = torch.einsum("k,ka,kb->ab", wanted, before.qk.read[2], before.qk.write[2])
            torch.testing.assert_close(after.heads.q[2] @ k.mT, rebuilt, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("family", ALL)
def test_weights_activations_and_rows_of_each_agree_and_every_bit_comes_back(family):
    weights = Weights(subject(family))
    s, data = weights.subject, examples()
    every = [ov_edit(weights, HEAD, SCALES), ov_edit(weights, Head(0, 1), {1: 3.0})]
    if family != "olmo2":
        every += [qk_edit(weights, HEAD, SCALES), qk_edit(weights, Head(0, 3), {0: 2.0})]
    before, clean = bits(s), s.run(data).logits
    wanted = []
    for one in every:
        if family == "qwen2" and one.site.kind == "o":
            with pytest.raises(EngineError, match="no bias"), one.applied(s):
                pass
            with s.apply(one):
                wanted.append(s.run(data).logits)
            continue
        with one.applied(s):
            wanted.append(s.run(data).logits)
        assert same(s, before)
        with s.apply(one):
            torch.testing.assert_close(s.run(data).logits, wanted[-1], atol=1e-4, rtol=0)
    assert not registry._edited
    for number, logits in s.each(every, s.batch(data)):
        torch.testing.assert_close(logits, wanted[number], atol=1e-4, rtol=0)
        assert (logits - clean).abs().max() > 1e-3


@pytest.mark.parametrize("family", ["gpt2", "qwen2"])
def test_what_a_head_writes_loses_the_component_and_keeps_its_constant(family):
    weights = weights_of(family)
    s, data = weights.subject, examples((20,))
    heads = Factors(weights.layer(1))
    v, h = heads.ov.write[2][0], HEAD.head
    constant = heads.heads.b_v[s.kv_head(h)] @ heads.heads.o[h]
    sites = {"z[1]": Record(), "attn_out[1]": Record()}
    clean = s.run(data, sites)
    with s.apply(ov_edit(weights, HEAD, {0: 0.0})):
        cut = s.run(data, sites)
    share = clean["z[1]"][0, :, h].to(DOUBLE) @ heads.heads.o[h]
    lost = (clean["attn_out[1]"] - cut["attn_out[1]"])[0].to(DOUBLE)
    torch.testing.assert_close(lost, torch.outer((share - constant) @ v, v), atol=1e-4, rtol=1e-4)
    assert (constant @ v).abs() > 1e-3


def test_edits_of_one_weight_are_made_one_on_another_and_left_in_any_order():
    weights = Weights(subject("gpt2"))
    s, data = weights.subject, examples()
    one, two, before = qk_edit(weights, HEAD, {0: 0.0}), qk_edit(weights, HEAD, {1: 3.0}), bits(s)
    with two.applied(s):
        only_two = bits(s)
    with s.apply(one, two):
        wanted = s.run(data).logits
    outer, inner = one.applied(s), two.applied(s)
    outer.__enter__()
    inner.__enter__()
    torch.testing.assert_close(s.run(data).logits, wanted, atol=1e-5, rtol=0)
    outer.__exit__(None, None, None)
    assert same(s, only_two)
    inner.__exit__(None, None, None)
    assert same(s, before)
    with pytest.raises(ZeroDivisionError), one.applied(s):
        raise ZeroDivisionError
    assert same(s, before) and not registry._edited


def test_descriptions_are_by_content():
    weights = Weights(subject("llama"))
    base = qk_edit(weights, HEAD, {0: 0.0})
    others = [qk_edit(weights, HEAD, {1: 0.0}), qk_edit(weights, HEAD, {0: 0.5})]
    others.append(QueryEdit(Head(1, 3), base.a, base.b))
    assert len({base.key(), *(o.key() for o in others)}) == 4
    assert copy.deepcopy(base) == base and hash(copy.deepcopy(base)) == hash(base)
    same_factors = ov_edit(weights, HEAD, {0: 0.0})
    assert same_factors.shift is None  # no bias of values, nothing to keep


def zeroed(family, path):
    module = copy.deepcopy(tiny(family))
    s = CausalLM(module, None, name="zeroed")
    with torch.no_grad():
        s.module(1, path).weight[3] = -1.0 if family == "gemma2" else 0.0
    return Weights(s)


@pytest.mark.parametrize(
    ("make", "error", "told"),
    [
        (lambda: ov_edit(Weights(subject("llama")), Head(1, 9), {0: 0}), UsageError, "heads 0 to 3"),
        (lambda: ov_edit(Weights(subject("llama")), HEAD, {12: 0}), UsageError, "numbered 0 to 11"),
        (lambda: qk_edit(Weights(subject("llama")), HEAD, {}), UsageError, "numbered 0 to 11"),
        (lambda: qk_edit(Weights(subject("olmo2")), HEAD, {0: 0}), EngineError, "normed over all heads"),
        (
            lambda: ov_edit(zeroed("gemma2", "post_attention_layernorm"), HEAD, {0: 0}),
            EngineError,
            "behind attention has gains of zero",
        ),
        (
            lambda: qk_edit(zeroed("qwen3", "self_attn.q_norm"), HEAD, {0: 0}),
            EngineError,
            "of queries has gains of zero",
        ),
        (lambda: QueryEdit(HEAD, torch.ones(4, 2), torch.ones(3, 4)), UsageError, r"\(d_head, r\)"),
        (lambda: QueryEdit(HEAD, torch.full((4, 2), torch.nan), torch.ones(2, 4)), UsageError, "not finite"),
        (
            lambda: QueryEdit(HEAD, torch.ones(4, 2), torch.ones(2, 4)).applied(subject("llama")).__enter__(),
            UsageError,
            "12 wide, not 4",
        ),
    ],
)
def test_bad_edits_say_what_is_wrong(make, error, told):
    with pytest.raises(error, match=told):
        make()
