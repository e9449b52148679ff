"""Channels: a planted subspace is found as one, and attention sees it."""

from __future__ import annotations

import copy
from dataclasses import replace

import pandas as pd
import pytest
import torch

from interp.errors import UsageError
from interp.intervene.subspace import Subspace
from interp.locate.channels.channels import Channel, channels
from interp.locate.channels.components import component_scores
from interp.locate.channels.factors import Factors
from interp.locate.channels.validation import attention_change
from interp.locate.channels.weights import Weights
from interp.models.engines.base import Record, Rows
from interp.models.sites import Head, Site
from interp.models.subject import CausalLM
from tests.locate.channels.test_components import planted
from tests.subjects import examples


@pytest.fixture(scope="module")
def found():
    s, v = planted("llama")
    weights, scores = Weights(s), component_scores(s, ("Q", "V"), top=60)
    return weights, scores, channels(weights, scores, level=1e-3), v


def test_the_planted_channel_is_one_direction_at_its_reader(found):
    weights, _, every, v = found
    best = every[0]
    assert (best.reader, best.mode, best.rank) == ("L2H3", "Q", 1)
    assert best.components == ((Head(0, 1), 0),) and best.space.site == Site("resid_pre", 2)
    assert abs(float(best.space.basis[0] @ v)) > 0.95
    assert repr(best) == "L0H1.0 -> L2H3 (Q, 1d)" and best.readers(weights) == (Head(2, 3),)
    # What the head writes without it has nothing left along the direction.
    s = weights.subject
    batch, site = s.batch(examples((20,))), "head_out[0].1"
    clean = s.run(batch, {site: Record()})[site]
    with best.cut(weights).atoms()[0].applied(s):
        cut = s.run(batch, {site: Record()})[site]
    along = best.space.basis[0]
    assert (cut @ along).abs().max() < 1e-4 < 0.1 < (clean @ along).abs().max()
    torch.testing.assert_close(cut, clean - (clean @ along)[..., None] * along, atol=1e-4, rtol=1e-4)


def test_outliers_of_one_reader_are_one_channel(found):
    weights, scores, _, _ = found
    # With no level every reader is a channel of its best components, at most three.
    every = channels(weights, scores, level=1.0, rank=3)
    assert len({(c.reader, c.mode) for c in every}) == len(every) > 4
    assert max(c.rank for c in every) == 3
    for channel in every:
        own = scores.readers[
            (scores.readers["reader"] == channel.reader) & (scores.readers["mode"] == channel.mode)
        ]
        assert channel.scores["p"].tolist() == own["p"].tolist()[: len(channel.components)]
    assert channels(weights, scores, level=0.0) == []
    by_null = channels(weights, scores, level=1.0, by="q_null")
    assert {c.reader for c in by_null} == {c.reader for c in every}


def test_attention_changes_where_the_channel_is_read(found):
    weights, _, every, _ = found
    s, data, best = weights.subject, examples(), every[0]
    frame = attention_change(weights, best, data)
    whole = frame[frame["role"] == ""]
    assert whole["before"].tolist() == pytest.approx([1, 1, 1], abs=1e-5)
    assert len(frame) == 9 and set(frame["role"]) == {"", "key", "value"}
    # By hand, without padding.
    for n, example in enumerate(data):
        batch = s.batch([replace(example, answer_ids=())], forced=False)
        rows = Rows(torch.tensor([[len(example.ids) - 1]]), heads={2: [3]})
        clean = s.run(batch, rows=rows, keep=1).rows[2][0, 0, 0]
        with best.cut(weights).atoms()[0].applied(s):
            cut = s.run(batch, rows=rows, keep=1).rows[2][0, 0, 0]
        own = frame[frame["example"] == n].set_index("role")
        assert own.loc["", "moved"] == pytest.approx(float((clean - cut).abs().sum() / 2), abs=1e-4)
        assert own.loc["value", "before"] == pytest.approx(float(clean[3:6].sum()), abs=1e-4)
        assert own.loc["value", "change"] == pytest.approx(float((cut - clean)[3:6].sum()), abs=1e-4)
    # No other component of the same head moves it as much.
    for number in range(1, s.d_head):
        other = attention_change(weights, replace(best, components=((Head(0, 1), number),)), data)
        assert other.loc[other["role"] == "", "moved"].mean() < whole["moved"].mean()


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
@pytest.mark.parametrize("factor", [0.0, 0.5, 2.0, -1.5])
def test_a_channel_removed_or_added_is_the_weights_edited_by_hand(family, factor):
    """The whole prompt under a copy of the model whose output weights were scaled along the component."""
    s, _ = planted(family)
    weights, parts = Weights(s), ((Head(0, 1), 0), (Head(0, 1), 3), (Head(1, 2), 1))
    data = examples((20, 14))
    space = Subspace.spanned(Site("resid_pre", 2), torch.eye(s.d_model)[:1])
    channel = Channel("L2KV1" if s.n_kv_heads < s.n_heads else "L2H3", "K", parts, space, pd.DataFrame())
    frame = attention_change(weights, channel, data, factor).set_index(["example", "reader", "role"])
    edited = CausalLM(copy.deepcopy(s.hf), None, name="edited")
    by_hand(edited, parts, factor)
    moved = 0.0
    for n, example in enumerate(data):
        batch = s.batch([replace(example, answer_ids=())], forced=False)
        rows = Rows(torch.tensor([[len(example.ids) - 1]]), heads={2: list(range(s.n_heads))})
        clean, after = (m.run(batch, rows=rows, keep=1).rows[2][0, :, 0] for m in (s, edited))
        for head in channel.readers(weights):
            a, b = clean[head.head], after[head.head]
            own = frame.loc[(n, repr(head))]
            assert own.loc["", "moved"] == pytest.approx(float((a - b).abs().sum() / 2), abs=1e-5)
            assert own.loc["value", "after"] == pytest.approx(float(b[3:6].sum()), abs=1e-5)
            assert own.loc["value", "change"] == pytest.approx(float((b - a)[3:6].sum()), abs=1e-5)
            moved = max(moved, own.loc["", "moved"])
    assert moved > 1e-3


def by_hand(edited, parts, factor):
    """What heads write, scaled along their components, apart from what they always write: y + (factor - 1) (y v) v."""
    weights, k, d = Weights(edited), edited.d_head, edited.d_model
    chosen = [(head, Factors(weights.layer(head.layer)).ov.write[head.head][n]) for head, n in parts]
    for head, v in chosen:
        own, output = (
            slice(head.head * k, (head.head + 1) * k),
            edited.module(head.layer, edited.family.out_proj),
        )
        block = edited.blocks[head.layer]
        with torch.no_grad():
            if edited.family.name == "gpt2":
                values = block.attn.c_attn.weight[:, 2 * d :], block.attn.c_attn.bias[2 * d :]
                always = (block.ln_1.bias @ values[0] + values[1])[own]
                written = output.weight[own]  # k d
                output.bias -= (factor - 1) * (always @ written @ v) * v
                written += (factor - 1) * torch.outer(written @ v, v)
            else:
                written = output.weight[:, own]  # d k
                # Of Gemma 2 a norm stands behind attention.
                norm = edited.family.name == "gemma"
                gain = 1 + block.post_attention_layernorm.weight if norm else torch.ones(d)
                written += (factor - 1) * torch.outer(v / gain, (gain * v) @ written)


def test_a_channel_to_keys_of_a_group_has_all_its_heads_as_readers(found):
    weights, _, every, _ = found
    group = replace(every[0], reader="L2KV1", mode="K")
    assert group.readers(weights) == (Head(2, 2), Head(2, 3))
    frame = attention_change(weights, group, examples((12,)))
    assert frame["reader"].unique().tolist() == ["L2H2", "L2H3"]


def test_bad_requests_say_what_is_wrong(found):
    weights, scores, every, _ = found
    with pytest.raises(UsageError, match="1 to 3 dimensions"):
        channels(weights, scores, rank=4)
    with pytest.raises(UsageError, match="measure the output"):
        attention_change(weights, replace(every[0], mode="V"), examples())
    with pytest.raises(UsageError, match="0 removes the channel"):
        attention_change(weights, every[0], examples(), float("nan"))
