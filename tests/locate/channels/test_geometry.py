"""Composition scores: equal to dense products, to TransformerLens' where both apply, and with an exact null."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from scipy import stats

from interp.locate.channels.composition import composition
from interp.locate.channels.factors import MODES, Factors, spectrum
from interp.locate.channels.null import cosine_p, empirical, haar, without_hubs
from interp.locate.channels.weights import Weights
from interp.models.norms import Norm
from interp.models.subject import CausalLM
from tests.subjects import ALL, examples, subject
from tests.tiny import tiny

DOUBLE = torch.float64


def dense(s, fold=True):
    """OV and QK of every query head as whole d x d matrices, and what each reads with alone."""
    out = {}
    for heads in Weights(s, fold, DOUBLE).layers():
        for h in range(s.n_heads):
            g = s.kv_head(h)
            out[heads.layer, h] = {
                "OV": heads.v[g] @ heads.o[h],
                "QK": heads.q[h] @ heads.k[g].mT,
                "side": {"Q": heads.q[h], "K": heads.k[g], "V": heads.v[g]},
            }
    return out


def by_hand(matrices, writer, reader, mode, score):
    left, right = matrices[writer], matrices[reader]
    side = (
        {"Q": right["QK"], "K": right["QK"].mT, "V": right["OV"]}[mode]
        if score == "full"
        else right["side"][mode]
    )
    return float((left["OV"] @ side).norm() / (left["OV"].norm() * side.norm()))


def place(name):
    layer, head = name[1:].split("H")
    return int(layer), int(head)


@pytest.mark.parametrize("family", ALL)
@pytest.mark.parametrize("score", ["full", "side"])
def test_scores_equal_dense_products(family, score):
    s = subject(family)
    matrices = dense(s)
    frame = composition(s, score=score, dtype=DOUBLE)
    assert len(frame) == 3 * (s.n_layers * s.n_heads) ** 2
    for row in frame.sample(60, random_state=0).itertuples():
        wanted = by_hand(matrices, place(row.writer), place(row.reader), row.mode, score)
        assert row.value == pytest.approx(wanted, rel=1e-10)
        assert row.causal == (place(row.writer)[0] < place(row.reader)[0])


@pytest.mark.parametrize("family", ["gpt2", "neox", "llama", "qwen2"])
def test_scores_are_those_of_transformer_lens_where_both_apply(family):
    """It takes weights as they are, masks what is not causal, and has no side scores."""
    s = subject(family)
    frame = composition(s, score="full", fold=False, anticausal=False)
    bridge = Weights(s).bridge
    for mode, own in frame.groupby("mode"):
        table = bridge.all_composition_scores(mode).detach()
        for row in own.itertuples():
            (i, a), (j, b) = place(row.writer), place(row.reader)
            assert row.value == pytest.approx(float(table[i, a, j, b]), rel=1e-4)


def test_the_score_is_a_mean_of_squared_cosines():
    """CS^2 = sum s_i^2 t_j^2 <v_i, u_j>^2 / (sum s^2 sum t^2): one strong channel is averaged away."""
    s = subject("llama")
    weights = Weights(s, True, DOUBLE)
    writer, reader = Factors(weights.layer(0)), Factors(weights.layer(2))
    frame = composition(s, ("Q",), "full", dtype=DOUBLE).set_index(["writer", "reader"])
    for a in range(s.n_heads):
        for b in range(s.n_heads):
            left, right = writer.ov.s[a].square(), reader.qk.s[b].square()
            cosines = writer.ov.write[a] @ reader.qk.read[b].mT
            square = (left[:, None] * right[None] * cosines.square()).sum() / (left.sum() * right.sum())
            assert frame.loc[(f"L0H{a}", f"L2H{b}"), "value"] ** 2 == pytest.approx(float(square), rel=1e-10)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "olmo2"])
def test_components_are_singular_and_their_sum_is_the_head(family):
    s = subject(family)
    matrices = dense(s)
    factors = Factors(Weights(s, True, DOUBLE).layer(1))
    for found, name in ((factors.ov, "OV"), (factors.qk, "QK")):
        for h in range(s.n_heads):
            whole = torch.einsum("k,ka,kb->ab", found.s[h], found.read[h], found.write[h])
            torch.testing.assert_close(whole, matrices[1, h][name])
            torch.testing.assert_close(
                found.write[h] @ found.write[h].mT, torch.eye(s.d_head, dtype=DOUBLE), atol=1e-9, rtol=0
            )
            assert (found.s[h].diff() <= 0).all()


@pytest.mark.parametrize("family", ALL)
def test_folded_weights_read_what_the_model_reads(family):
    """Queries of the model, from the raw stream: the folded reading divided by the norm's own length."""
    s = subject(family)
    batch = s.batch(examples((16,)))
    trace = s.run(batch, {"resid_pre[1]": lambda x: None, "q[1]": lambda x: None, "v[1]": lambda x: None})
    x = trace["resid_pre[1]"].to(DOUBLE)
    heads = Weights(s, True, DOUBLE).layer(1)
    raw = Weights(s, False, DOUBLE).layer(1)
    before, _ = Weights(s).norms(1)
    if before is None:
        length = torch.ones(*x.shape[:2], 1, dtype=DOUBLE)
    else:
        length = (
            ((x - x.mean(-1, keepdim=True)) if before.centred else x).square().mean(-1, keepdim=True).sqrt()
        )
    found = torch.einsum("btd,gdk->btgk", x / length, heads.v) + heads.b_v
    torch.testing.assert_close(found, trace["v[1]"].to(DOUBLE), atol=2e-3, rtol=2e-3)
    if not any(name in heads.flags for name in ("q_norm",)):
        found = torch.einsum("btd,hdk->bthk", x / length, heads.q) + heads.b_q
        torch.testing.assert_close(found, trace["q[1]"].to(DOUBLE), atol=2e-3, rtol=2e-3)
    assert heads.o.shape == raw.o.shape
    assert ("post-norm" in heads.flags) == s.family.post_norm


def test_gemmas_gain_is_one_more_than_its_weight():
    s = subject("gemma2")
    module = s.module(0, "input_layernorm")
    torch.testing.assert_close(Norm.of(module).gain, 1 + module.weight.detach())


def test_scores_do_not_change_with_a_heads_own_axes_or_scale_or_a_turned_stream():
    """W_V A and A^-1 W_O are the same head; so is a scaled one, and all heads in a turned stream."""
    generator = torch.Generator().manual_seed(0)
    s = subject("llama")
    base = Weights(s, True, DOUBLE)
    writer, reader = base.layer(0), base.layer(1)
    value = _scores(writer, reader)
    a = torch.randn(2, s.d_head, s.d_head, generator=generator, dtype=DOUBLE)
    turned = _with(writer, v=writer.v @ a, o=torch.linalg.inv(a).repeat_interleave(2, 0) @ writer.o)
    torch.testing.assert_close(_scores(turned, reader), value)
    torch.testing.assert_close(_scores(_with(writer, o=3 * writer.o), _with(reader, q=0.1 * reader.q)), value)
    turn = torch.linalg.qr(torch.randn(s.d_model, s.d_model, generator=generator, dtype=DOUBLE)).Q
    moved = [
        _with(heads, q=turn.mT @ heads.q, k=turn.mT @ heads.k, v=turn.mT @ heads.v, o=heads.o @ turn)
        for heads in (writer, reader)
    ]
    torch.testing.assert_close(_scores(*moved), value)


def _with(heads, **changes):
    from dataclasses import replace

    return replace(heads, **changes)


def _scores(writer, reader):
    from interp.locate.channels.factors import squares

    x = Factors(writer).writer
    out = []
    for mode in MODES:
        y = Factors(reader).reader(mode)
        out.append((squares(x, y) / (spectrum(x.mT).sum(-1)[:, None] * spectrum(y).sum(-1)[None])).sqrt())
    return torch.stack(out)


def test_haar_moments_are_exact():
    """Mean and variance over random rotations; the closed form has nothing to fit."""
    rng = np.random.default_rng(0)
    d, draws = 24, 6000
    a = torch.tensor(rng.exponential(size=(1, 5)))
    b = torch.tensor(rng.exponential(size=(1, 7)))
    mean, sd, most = haar(a, b, d)
    left, right = np.diag(np.pad((a / a.sum()).numpy()[0], (0, d - 5))), (b / b.sum()).numpy()[0]
    turns = stats.ortho_group.rvs(d, size=draws, random_state=1)
    seen = np.einsum("nij,jk,nik,i->n", turns, left, turns, np.pad(right, (0, d - 7)))
    assert seen.mean() == pytest.approx(float(mean), abs=4 * float(sd) / np.sqrt(draws))
    assert seen.std() == pytest.approx(float(sd), rel=0.05)
    # Aligned spectra reach the largest value, and no rotation passes it.
    order = [np.sort(x.numpy()[0])[::-1] for x in (a / a.sum(), b / b.sum())]
    assert float(most) == pytest.approx(float(order[0] @ order[1][:5]))
    assert seen.max() <= float(most)


def test_cosines_of_random_directions_have_uniform_p_values():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4000, 32))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    assert stats.kstest(cosine_p(x[:, 0], 32), "uniform").pvalue > 0.01
    assert cosine_p(np.array([1.0, 0.0]), 32).tolist() == [0.0, 1.0]


def test_empirical_null_is_calibrated():
    """Where nothing is planted, causal pairs rank among anti-causal ones like any of them."""
    found = []
    for seed in range(12):
        s = CausalLM(tiny("llama", seed), None, name="random")
        found.append(empirical(composition(s, score="full")))
        assert found[-1]["causal"].all() and (found[-1]["q"] >= found[-1]["p"] - 1e-12).all()
    # Pairs of one head are not independent, so whole models are the draws.
    by_model = np.array([[(f["p"] <= level).mean() for level in (0.1, 0.5)] for f in found])
    error = by_model.std(0, ddof=1) / np.sqrt(len(found))
    expected = np.floor(np.array([0.1, 0.5]) * 17) / 17
    assert (np.abs(by_model.mean(0) - expected) < 4 * error + 0.03).all()


def test_a_pair_that_shares_a_direction_stands_out_among_anticausal_pairs():
    module = copy.deepcopy(tiny("llama", 3))
    s = CausalLM(module, None, name="planted")
    generator = torch.Generator().manual_seed(1)
    u, a, b = (torch.randn(n, generator=generator) for n in (s.d_model, s.d_head, s.d_head))
    u /= u.norm()
    with torch.no_grad():
        module.model.layers[0].self_attn.o_proj.weight[:, 12:24] += torch.outer(u, a)
        module.model.layers[2].self_attn.q_proj.weight[36:48] += torch.outer(b, u)
    frame = empirical(composition(s, ("Q",), "side"))
    best = frame.sort_values("value").iloc[-1]
    assert (best["writer"], best["reader"]) == ("L0H1", "L2H3")
    assert best["p"] == pytest.approx(1 / (1 + best["null_n"]))
    with pytest.raises(ValueError, match="anticausal=True"):
        empirical(composition(s, score="full", anticausal=False))


def test_hub_correction_takes_out_what_a_head_scores_with_everyone():
    s = subject("gpt2")
    frame = composition(s, ("V",), "full")
    loud = frame["writer"] == "L0H1"
    frame.loc[loud, "value"] *= 3
    pair = loud & (frame["reader"] == "L1H2")
    frame.loc[pair, "value"] *= 2
    corrected = without_hubs(frame)
    causal = corrected[corrected["causal"]]
    others = causal[(causal["writer"] == "L0H1") & (causal["reader"] != "L1H2")]["corrected"]
    assert others.abs().max() < causal.loc[pair, "corrected"].iloc[0]
    assert abs(causal.groupby("writer")["corrected"].mean()).max() < 1e-8
    assert abs(causal.groupby("reader")["corrected"].mean()).max() < 1e-8
