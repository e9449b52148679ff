"""Channels: a planted subspace is found as one, and attention sees it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from interp.errors import UsageError
from interp.locate.channels.channels import channels
from interp.locate.channels.components import component_scores
from interp.locate.channels.validation import attention_change
from interp.locate.channels.weights import Weights
from interp.models.engines.base import Record, Rows
from interp.models.sites import Head, Site
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
