"""Composition at an offset: equal to whole rotated matrices, and to what the model does with positions."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers.models.cohere.modeling_cohere import CohereRotaryEmbedding

from interp.errors import UsageError
from interp.locate.channels.composition import composition
from interp.locate.channels.rotary import Rotation
from interp.locate.channels.weights import Weights
from interp.models.engines.base import Record
from interp.models.subject import CausalLM
from tests.locate.channels.test_geometry import DOUBLE, place
from tests.subjects import examples, subject
from tests.tiny import tiny


@pytest.mark.parametrize("family", ["llama", "neox", "gemma3"])
def test_rotations_are_the_models_own(family):
    """Partial in neox, of two lengths in gemma 3: rotated queries and keys from plain ones, at every position."""
    s = subject(family)
    sites = [f"{kind}[{layer}]" for layer in (0, 1) for kind in ("k", "k_rot")]
    trace = s.run(s.batch(examples((24,))), {site: Record() for site in sites})
    for layer in (0, 1):
        rotation = Rotation.of(s, layer)
        assert rotation.layout == "half" and rotation.d_head == s.d_head
        assert len(rotation.angles) == (s.d_head // 8 if family == "neox" else s.d_head // 2)
        k, turned = trace[f"k[{layer}]"][0].to(DOUBLE), trace[f"k_rot[{layer}]"][0].to(DOUBLE)
        norm = getattr(s.module(layer, s.family.attention), "k_norm", None)
        if norm is not None:
            k = norm(k.float()).detach().to(DOUBLE)
        for position in (0, 1, 7, 23):
            found = k[position] @ rotation.matrix(position)
            torch.testing.assert_close(found, turned[position], atol=1e-4, rtol=1e-4)


def test_a_rotated_product_depends_on_the_offset_alone():
    rotation = Rotation.of(subject("llama"), 0)
    found = rotation.matrix(9) @ rotation.matrix(4).mT
    torch.testing.assert_close(found, rotation.matrix(5))


@pytest.mark.parametrize("layout", ["half", "interleaved"])
@pytest.mark.parametrize("n", [2, 5])
def test_means_over_offsets_are_those_of_whole_rotations(layout, n):
    generator = torch.Generator().manual_seed(n)
    rotation = Rotation(torch.rand(n, generator=generator, dtype=DOUBLE), 10, layout)
    x = torch.randn(3, 20, 10, generator=generator, dtype=DOUBLE)
    moment = x.mT @ x
    for offsets in ([0], [7], range(128), {1: 0.2, 5: 3.0}):
        weights = offsets if isinstance(offsets, dict) else dict.fromkeys(offsets, 1.0)
        total = sum(weights.values())
        turns = {d: rotation.matrix(d) for d in weights}
        there = sum(w * turns[d] @ moment @ turns[d].mT for d, w in weights.items()) / total
        back = sum(w * turns[d].mT @ moment @ turns[d] for d, w in weights.items()) / total
        torch.testing.assert_close(rotation.mean(moment, offsets), there, rtol=1e-12, atol=1e-11)
        torch.testing.assert_close(rotation.mean(moment, offsets, back=True), back, rtol=1e-12, atol=1e-11)


@pytest.mark.parametrize("family", ["llama", "neox"])
def test_scores_at_an_offset_equal_whole_matrices(family):
    s = subject(family)
    layers = list(Weights(s, True, DOUBLE).layers())
    for offsets in ([3], {0: 1.0, 1: 2.0, 40: 1.0}):
        weights = offsets if isinstance(offsets, dict) else dict.fromkeys(offsets, 1.0)
        frame = composition(s, score="offset", offsets=offsets, dtype=DOUBLE, anticausal=False)
        for row in frame.sample(24, random_state=0).itertuples():
            (i, a), (j, b) = place(row.writer), place(row.reader)
            ov = layers[i].v[s.kv_head(a)] @ layers[i].o[a]
            g, rotation = s.kv_head(b), Rotation.of(s, j)
            above = below = 0.0
            for d, weight in weights.items():
                qk = layers[j].q[b] @ rotation.matrix(d) @ layers[j].k[g].mT
                reader = {"Q": qk, "K": qk.mT, "V": layers[j].v[g] @ layers[j].o[b]}[row.mode]
                above += weight * float((ov @ reader).norm() ** 2)
                below += weight * float(ov.norm() ** 2 * reader.norm() ** 2)
            assert row.value == pytest.approx((above / below) ** 0.5, rel=1e-10)
            assert row.alignment <= 1 + 1e-9
    assert set(frame["score"]) == {"offset"}


def test_at_offset_zero_it_is_the_full_score():
    s = subject("llama")
    full = composition(s, score="full", dtype=DOUBLE, anticausal=False)
    zero = composition(s, score="offset", offsets=[0], dtype=DOUBLE, anticausal=False)
    for column in ("value", "z", "alignment"):
        assert zero[column].to_numpy() == pytest.approx(full[column].to_numpy(), rel=1e-6)


def test_a_layout_of_neighbours_is_recognised():
    module = copy.deepcopy(tiny("llama"))
    module.model.rotary_emb = CohereRotaryEmbedding(module.config)
    s = CausalLM(module, None, name="neighbours")
    rotation = Rotation.of(s, 0)
    assert rotation.layout == "interleaved" and float(rotation.angles[0]) == pytest.approx(1.0)


def test_bad_offsets_say_what_to_write():
    with pytest.raises(UsageError, match="offsets="):
        composition(subject("llama"), score="offset")
    with pytest.raises(UsageError, match="offsets="):
        composition(subject("llama"), score="full", offsets=[1])
    with pytest.raises(UsageError, match="does not rotate"):
        Rotation.of(subject("gpt2"), 0)
    rotation = Rotation.of(subject("llama"), 0)
    for wrong in ([], {1: -1.0}, {1: 0.0}):
        with pytest.raises(UsageError, match="not negative"):
            rotation.mean(torch.eye(12), wrong)
