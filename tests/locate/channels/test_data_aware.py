"""Writers weighed by the inputs they have, and biases as one more coordinate: equal to whole matrices."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from interp.errors import UsageError
from interp.locate.channels.components import component_scores
from interp.locate.channels.composition import composition
from interp.locate.channels.data_aware import both_scores, value_moments
from interp.locate.channels.factors import Factors
from interp.locate.channels.weights import Weights
from interp.models.subject import CausalLM
from tests.subjects import examples, subject
from tests.tiny import tiny

DOUBLE = torch.float64


def inputs(s, layer):
    """Normed input of a layer's attention without the gain, n d: of each prompt alone, so without padding."""
    out = []
    for example in examples():
        x = s.run(s.batch([example], forced=False), {f"resid_pre[{layer}]": lambda x: None}, keep=1)
        x = x[f"resid_pre[{layer}]"][0].to(DOUBLE)
        before, _ = Weights(s).norms(layer)
        if before is not None:
            x = x - x.mean(-1, keepdim=True) if before.centred else x
            x = x / x.square().mean(-1, keepdim=True).sqrt()
        out.append(x)
    return torch.cat(out)


def square_root(moment):
    values, vectors = torch.linalg.eigh(moment)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.mT


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "olmo2"])
def test_scores_are_those_of_inputs_second_moment(family):
    """||Sigma^(1/2) W_OV W_R|| with the whole d x d Sigma, from prompts that are run one by one."""
    s = subject(family)
    frame = both_scores(s, examples(), ("Q", "V"), dtype=DOUBLE, anticausal=False)
    raw = list(Weights(s, True, DOUBLE).layers())
    sigma = {i: square_root((x.mT @ x) / len(x)) for i in (0, 1) for x in [inputs(s, i)]}
    score = frame["score"].iloc[0]
    for row in frame.sample(24, random_state=0).itertuples():
        a, b = int(row.writer[3:]), int(row.reader[3:])
        writer, reader = raw[row.writer_layer], raw[row.reader_layer]
        ov = writer.v[s.kv_head(a)] @ writer.o[a]
        g = s.kv_head(b)
        if score == "full":
            reads = reader.q[b] @ reader.k[g].mT if row.mode == "Q" else reader.v[g] @ reader.o[b]
        else:
            reads = reader.q[b] if row.mode == "Q" else reader.v[g]
        for value, seen in ((row.value, ov), (row.data_value, sigma[row.writer_layer] @ ov)):
            wanted = (seen @ reads).norm() / (seen.norm() * reads.norm())
            assert value == pytest.approx(float(wanted), rel=3e-3)  # values are those of a pass in fp32
    assert (frame["value"] / frame["data_value"] - 1).abs().max() > 0.02
    assert (frame["data_expected"] == frame["expected"]).all()


def test_moments_are_of_values_with_or_without_their_bias():
    s = subject("gpt2")
    raw = Weights(s, True, DOUBLE).layer(1)
    values = torch.einsum("nd,gdk->ngk", inputs(s, 1), raw.v)
    for biases, wanted in ((False, values), (True, values + raw.b_v)):
        found = value_moments(s, examples(), biases=biases)[1]
        moment = torch.einsum("ngi,ngj->gij", wanted, wanted) / len(wanted)
        torch.testing.assert_close(found, moment, rtol=1e-3, atol=1e-4)
    few = value_moments(s, examples()[:1])[1]
    assert (few - found).abs().max() > 1e-2
    with pytest.raises(UsageError, match="at least one example"):
        value_moments(s, [])


def test_inputs_that_use_all_directions_alike_change_nothing():
    s = subject("llama")
    moments = {heads.layer: heads.v.mT @ heads.v for heads in Weights(s, True, DOUBLE).layers()}
    aware = composition(s, weights=Weights(s, True, DOUBLE, moments=moments))
    plain = composition(s, dtype=DOUBLE)
    np.testing.assert_allclose(aware["value"], plain["value"], rtol=1e-8)
    np.testing.assert_allclose(aware["z"], plain["z"], rtol=1e-5, atol=1e-5)


def test_a_direction_that_no_token_has_is_not_what_a_head_writes():
    """L0H1 carries an unused direction tenfold into what L2H3 reads: its weights tell of that, prompts do not."""
    module = copy.deepcopy(tiny("llama", 5))
    s = CausalLM(module, None, name="planted")
    generator = torch.Generator().manual_seed(2)
    v, a, b = (torch.randn(n, generator=generator) for n in (s.d_model, s.d_head, s.d_head))
    v, a, b = (x / x.norm() for x in (v, a, b))
    unused = torch.linalg.qr(torch.randn(s.d_model, 1, generator=generator)).Q[:, 0]
    norm = [Weights(s).norms(layer)[0].gain for layer in (0, 2)]
    with torch.no_grad():
        table = s.hf.get_input_embeddings().weight
        table -= (table @ unused)[:, None] * unused
        value = module.model.layers[0].self_attn.v_proj.weight
        value[:12] += torch.outer(
            a, 10 * unused / norm[0] - a @ value[:12]
        )  # along a it carries nothing else
        module.model.layers[0].self_attn.o_proj.weight[:, 12:24] += 4 * torch.outer(v, a)
        module.model.layers[2].self_attn.q_proj.weight[36:48] += 8 * torch.outer(b, v / norm[1])
    plain = component_scores(s, ("Q",), top=5).readers.iloc[0]
    assert (plain["writer"], plain["component"], plain["reader"]) == ("L0H1", 0, "L2H3")
    weights = Weights(s, moments=value_moments(s, examples()))
    aware = component_scores(s, ("Q",), top=500, weights=weights).readers
    own = aware[(aware["writer"] == "L0H1") & (aware["reader"] == "L2H3")]
    assert plain["q"] < 1e-6 and own["q"].min() > 0.05
    row = both_scores(s, examples(), ("Q",), anticausal=False).set_index(["writer", "reader"])
    row = row.loc[[("L0H1", "L2H3")]].iloc[0]
    assert row["z"] > 10 and abs(row["data_z"]) < 3


@pytest.mark.parametrize("family", ["gpt2", "qwen2"])
def test_biases_are_one_more_coordinate(family):
    """Whole (d + 1)-matrices: what is always written, and what keys are always asked for."""
    s = subject(family)
    weights = Weights(s, True, DOUBLE, biases=True)
    frame = composition(s, score="full", weights=weights, anticausal=False)
    without = composition(s, score="full", dtype=DOUBLE, anticausal=False)
    raw = list(Weights(s, True, DOUBLE).layers())
    for row in frame.sample(24, random_state=1).itertuples():
        a, b = int(row.writer[3:]), int(row.reader[3:])
        writer, reader = raw[row.writer_layer], raw[row.reader_layer]
        g, w = s.kv_head(b), s.kv_head(a)
        ov = torch.cat([writer.v[w], writer.b_v[w][None]]) @ writer.o[a]
        q, k = torch.cat([reader.q[b], reader.b_q[b][None]]), torch.cat([reader.k[g], reader.b_k[g][None]])
        reads = {"Q": reader.q[b] @ k.mT, "K": reader.k[g] @ q.mT, "V": reader.v[g] @ reader.o[b]}[row.mode]
        assert row.value == pytest.approx(float((ov @ reads).norm() / (ov.norm() * reads.norm())), rel=1e-9)
    for mode in "QKV":
        at = frame["mode"] == mode
        assert (frame.loc[at, "value"] - without.loc[at, "value"]).abs().max() > 1e-3
    # Components are of the same matrices.
    factors = Factors(weights.layer(1))
    for h in range(s.n_heads):
        found = factors.output
        whole = torch.einsum("k,ka,kb->ab", found.s[h], found.read[h], found.write[h])
        torch.testing.assert_close(
            whole, factors.heads.of_query_heads(factors.heads.written)[h] @ factors.heads.o[h]
        )
        for mode, (own, other) in {
            "Q": (factors.heads.q[h], factors.heads.of_query_heads(factors.heads.offered)[h]),
            "K": (factors.heads.of_query_heads(factors.heads.k)[h], factors.heads.asked[h]),
        }.items():
            found = factors.reading(mode)
            whole = torch.einsum("k,ka,kb->ab", found.s[h], found.read[h], found.write[h])
            torch.testing.assert_close(whole, own @ other.mT)


def test_without_biases_nothing_changes():
    s = subject("llama")
    with_, without = (composition(s, weights=Weights(s, True, DOUBLE, biases=b)) for b in (True, False))
    np.testing.assert_allclose(with_["value"], without["value"], rtol=1e-9)
