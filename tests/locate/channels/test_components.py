"""Component scores: equal to whole matrices, and planted channels found where they can be found."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from scipy import linalg, stats

from interp.errors import UsageError
from interp.locate.channels.components import BINS, component_scores
from interp.locate.channels.factors import Factors
from interp.locate.channels.null import benjamini_hochberg, cosine_p, empirical, reading_p
from interp.locate.channels.parts import Parts, readers, writers
from interp.locate.channels.weights import LayerHeads, Weights
from interp.models.subject import CausalLM
from tests.locate.channels.test_geometry import DOUBLE, dense
from tests.subjects import subject
from tests.tiny import tiny


def vectors(matrix, n):
    """Left and right singular vectors of the first n components, and their shares."""
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    return u[:, :n].mT, vh[:n], (s.square() / s.square().sum())[:n]


@pytest.mark.parametrize("family", ["gpt2", "llama", "olmo2"])
def test_scores_are_those_of_whole_matrices(family):
    s = subject(family)
    found = component_scores(s, top=40, dtype=DOUBLE)
    assert found.score == ("full" if family == "gpt2" else "side")
    matrices, k = dense(s), s.d_head
    written = {place: vectors(own["OV"], k)[1] for place, own in matrices.items()}
    kept = {key: own for key, own in found.readers.groupby(["writer", "reader", "mode"])}
    best: dict[str, float] = {}
    pairs = singles = 0
    for j in (1, 2):
        for mode in "QKV":
            # Keys of a group are one reader where only their own side is read.
            step = s.n_heads // s.n_kv_heads if mode == "K" and found.score == "side" else 1
            for b in range(0, s.n_heads, step):
                own = matrices[j, b]
                full = {"Q": own["QK"], "K": own["QK"].mT, "V": own["OV"]}[mode]
                reader = own["side"][mode] if found.score == "side" and mode != "V" else full
                name = f"L{j}KV{b // step}" if step > 1 else f"L{j}H{b}"
                reads, _, shares = vectors(reader, k)
                for i, a in ((i, a) for i in range(j) for a in range(s.n_heads)):
                    cosines = (written[i, a] @ reads.mT).abs()
                    best[mode] = max(best.get(mode, 0), float(cosines.max()))
                    pairs, singles = pairs + cosines.numel(), singles + k
                    wanted = (written[i, a] @ reader).norm(dim=1) / reader.norm()
                    torch.testing.assert_close(
                        (cosines.square() * shares).sum(1).sqrt(), wanted, rtol=1e-9, atol=1e-12
                    )
                    for row in kept.pop((f"L{i}H{a}", name, mode), found.readers[:0]).itertuples():
                        assert row.value == pytest.approx(float(wanted[row.component]), rel=1e-9)
    assert not kept
    for mode, own in found.pairs.groupby("mode"):
        assert len(own) == 40 and own["value"].max() == pytest.approx(best[mode], rel=1e-9)
    assert found.tests == {"pairs": pairs, "readers": singles}
    for (kind, mode, i, j), counts in found.histograms.items():
        assert kind in ("pairs", "readers") and mode in "QKV" and 0 <= i < 3 and 0 <= j < 3
        assert len(counts) == BINS
    causal = sum(c.sum() for (kind, _, i, j), c in found.histograms.items() if kind == "pairs" and i < j)
    assert causal == pairs
    # As many pairs stand the wrong way around as the right one; those of one layer are of neither kind.
    for spectrum in map(found.spectrum, "QKV"):
        assert spectrum["anticausal"].sum() == spectrum["causal"].sum() > 0
    top = found.pairs.iloc[0]
    assert top["p"] == cosine_p(np.array([top["value"]]), s.d_model)[0]
    assert (found.pairs["p"].diff().dropna() >= 0).all() and (found.pairs["q"] >= found.pairs["p"]).all()


def test_the_kernel_sums_squared_cosines_of_principal_angles():
    s = subject("llama")
    frame = component_scores(s, ("Q",), top=5, dtype=DOUBLE).kernel
    assert len(frame) == (3 * 4) ** 2
    raw = [heads for heads in Weights(s, True, DOUBLE).layers()]
    for row in frame.sample(12, random_state=0).itertuples():
        a, b = int(row.writer[3:]), int(row.reader[3:])
        write = raw[row.writer_layer].o[a].mT.numpy()
        angles = linalg.subspace_angles(write, raw[row.reader_layer].q[b].numpy())
        assert row.value == pytest.approx(float((np.cos(angles) ** 2).sum()), rel=1e-9)
        assert row.expected == pytest.approx(s.d_head**2 / s.d_model)
    assert empirical(frame)["causal"].all()
    # Random heads: mean and spread are those of random subspaces.
    assert abs(frame["z"].mean()) < 0.4 and 0.8 < frame["z"].std() < 1.25


def test_components_without_weight_are_not_tested():
    """Their vectors are whatever the decomposition came by."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.linalg.qr(torch.randn(2, 9, 4, generator=generator)).Q.mT
    parts = Parts.of(torch.tensor([[3.0, 1.0, 1e-9, 0.0], [2.0, 2.0, 2.0, 2.0]]), rows, ["a", "b"])
    assert parts.unit.tolist() == [0, 0, 1, 1, 1, 1] and parts.number.tolist() == [0, 1, 0, 1, 2, 3]
    torch.testing.assert_close(parts.spectra()[0], torch.tensor([0.9, 0.1, 0.0, 0.0]))


# -- nulls -------------------------------------------------------------------------------------------------------------


def test_p_values_of_readers_are_right_far_out():
    """A random direction against spectra flat, steep and with one large entry."""
    rng = np.random.default_rng(0)
    d, k, n = 60, 12, 400_000
    normal = rng.chisquare(1, (n, k))
    rest = rng.chisquare(d - k, n)
    for t in (np.ones(k), np.exp(-np.arange(k) / 3), np.r_[20.0, np.ones(k - 1)]):
        seen = (normal @ t) / t.sum() / (normal.sum(1) + rest)
        levels = np.array([0.5, 0.1, 0.01, 1e-3, 1e-4])
        x = np.quantile(seen, 1 - levels)
        found = reading_p(x, np.tile(t, (len(x), 1)), d)
        assert found[:4] == pytest.approx(levels[:4], rel=0.15)
        assert found[4] == pytest.approx(levels[4], rel=0.5)  # 40 draws
    flat = reading_p(np.array([0.05, 0.07]), np.ones((2, k)), d)
    assert flat == pytest.approx(stats.beta.sf(np.array([0.05, 0.07]) * k, k / 2, (d - k) / 2), rel=0.02)
    assert reading_p(np.array([0.0, 0.2]), np.ones((2, k)), d).tolist() == [1.0, 0.0]
    # At the mean, 1 / d, numbers in fp32 are worth as much as those in fp64.
    mean, even = np.array([1 / 64]), np.ones((1, 18))
    (single,) = reading_p(mean.astype(np.float32), even.astype(np.float32), 64)
    assert single == pytest.approx(stats.beta.sf(18 / 64, 9, 23), rel=0.02)
    # A reader of all directions sees some share of any of them.
    whole = reading_p(np.array([0.1, 0.2, 0.5, 0.6, 0.8]), np.tile([3.0, 1.0], (5, 1)), 2)
    wanted = [1.0, 1.0, 0.5, stats.beta.sf(0.7, 0.5, 0.5), 0.0]
    assert whole == pytest.approx(np.array(wanted), rel=0.15)


def test_q_values_of_some_tests_out_of_many():
    rng = np.random.default_rng(0)
    p = np.sort(rng.uniform(size=500) ** 3)
    every = stats.false_discovery_control(p)
    kept = benjamini_hochberg(p[:60][::-1], 500)[::-1]
    assert (kept >= every[:60] - 1e-15).all()
    assert benjamini_hochberg(p, 500) == pytest.approx(every)
    with pytest.raises(ValueError, match="cannot come out of 3 tests"):
        benjamini_hochberg(p, 3)


def drawn(seed, planted=()):
    """Random heads in the shape of the tiny Llama, with channels (a, writer layer, head, reader layer, head)."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    layers = []
    for i in range(3):
        shapes = {"q": (4, 48, 12), "k": (2, 48, 12), "v": (2, 48, 12), "o": (4, 12, 48)}
        weights = {name: normal(*shape) for name, shape in shapes.items()}
        zero = {"b_q": torch.zeros(4, 12), "b_k": torch.zeros(2, 12), "b_v": torch.zeros(2, 12)}
        layers.append(LayerHeads(i, **weights, **zero))
    for a, i, head, j, other in planted:
        direction, x, y = (v / v.norm() for v in (normal(48), normal(12), normal(12)))
        layers[i].o[head] += a * torch.outer(x, direction)
        layers[j].q[other] += a * torch.outer(direction, y)
    return layers


def found_in(monkeypatch, layers):
    monkeypatch.setattr(Weights, "layer", lambda self, i: layers[i])
    return component_scores(subject("llama"), ("Q",), top=20, anticausal=False)


def test_a_planted_channel_is_found_from_some_strength_on_and_nothing_where_nothing_is(monkeypatch):
    """Strength in units of the largest singular values of a random head, about sqrt(48) + sqrt(12)."""
    edge = 48**0.5 + 12**0.5
    rates = {}
    for strength in (0.5, 1, 2, 4, 8):
        hits = 0
        for seed in range(12):
            pairs = found_in(monkeypatch, drawn(seed, [(strength * edge, 0, 1, 2, 3)])).pairs
            hit = pairs[pairs["q"] < 0.05]
            hits += ((hit["writer"] == "L0H1") & (hit["reader"] == "L2H3")).any()
        rates[strength] = hits / 12
    assert list(rates.values()) == sorted(rates.values())
    assert rates[0.5] <= 0.1 and rates[4] >= 0.9 and rates[8] == 1
    found = [found_in(monkeypatch, drawn(100 + seed)) for seed in range(40)]
    for frames in ([f.pairs for f in found], [f.readers for f in found]):
        # Of random models at most a twentieth shows anything; 40 draws allow for 6 with 0.3 % chance of more.
        assert sum((frame["q"] < 0.05).any() for frame in frames) <= 6
    spectra = [f.spectrum("Q") for f in found]
    for low in (0.2, 0.4):
        seen = np.array([s.loc[s["low"] >= low, "causal"].sum() for s in spectra])
        wanted = spectra[0].loc[spectra[0]["low"] >= low, "expected"].sum()
        assert abs(seen.mean() - wanted) < 4 * seen.std(ddof=1) / len(seen) ** 0.5 + 0.02 * wanted


# -- planted in models -------------------------------------------------------------------------------------------------


def planted(family, strength=8.0):
    """A tiny model in which L0H1 writes a direction that L2H3 reads through its norm, and its component numbers."""
    module = copy.deepcopy(tiny(family, 5))
    s = CausalLM(module, None, name=f"planted {family}")
    generator = torch.Generator().manual_seed(2)
    v, a, b = (torch.randn(n, generator=generator) for n in (s.d_model, s.d_head, s.d_head))
    norm, _ = Weights(s).norms(2)
    if norm.centred:
        v -= v.mean()
    v, a, b = (x / x.norm() for x in (v, a, b))
    out, into = s.module(0, s.family.out_proj).weight, s.module(2, s.family.sites["q"].module).weight
    where, query = slice(s.d_head, 2 * s.d_head), slice(3 * s.d_head, 4 * s.d_head)
    read = v / norm.gain  # what the norm turns into v
    behind = Weights(s).gain_behind(0)
    write = v if behind is None else v / behind  # what a norm behind attention turns into v
    with torch.no_grad():
        if family == "gpt2":
            out[where] += strength * torch.outer(a, write)
            into[:, query] += strength * torch.outer(read, b)
        else:
            out[:, where] += strength * torch.outer(write, a)
            into[query] += strength * torch.outer(b, read)
    return s, v


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_a_planted_channel_is_found_through_norms_groups_and_rotations(family):
    s, v = planted(family)
    found = component_scores(s, top=30)
    best = found.pairs.iloc[0]
    assert (best["writer"], best["reader"], best["mode"]) == ("L0H1", "L2H3", "Q")
    assert best["q"] < 1e-3 and best["value"] > 0.9
    assert (best["component"], best["reader_component"]) == (0, 0)
    single = found.readers.iloc[0]
    assert (single["writer"], single["component"], single["reader"], single["mode"]) == (
        "L0H1",
        0,
        "L2H3",
        "Q",
    )
    # Above all anti-causal pairs of its distance, which are as many as the causal ones.
    n = sum(
        c.sum() for (kind, m, i, j), c in found.histograms.items() if (kind, m, i - j) == ("pairs", "Q", 2)
    )
    assert best["p_null"] == pytest.approx(1 / (1 + n))
    weights = Weights(s)
    write = writers(Factors(weights.layer(0)))
    written = write.rows[(write.unit == 1) & (write.number == 0)][0]
    read = readers(Factors(weights.layer(2)), "Q", found.score)
    seen = read.rows[(read.unit == 3) & (read.number == 0)][0]
    assert abs(float(seen @ v)) > 0.95
    assert abs(float(written @ v)) > 0.95
    # The norm's gain is part of it: without it the two meet less well.
    plain = component_scores(s, ("Q",), top=1, fold=False).pairs.iloc[0]
    assert plain["value"] < best["value"]


def test_models_without_pairs_are_refused():
    with pytest.raises(UsageError, match="top >= 1"):
        component_scores(subject("llama"), top=0)
