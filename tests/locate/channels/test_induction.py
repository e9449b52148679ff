"""The analytic induction model: its scores are known in closed form, and its channel is all that it works by."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from interp.intervene.subspace import project_out
from interp.locate.channels.components import component_scores
from interp.locate.channels.composition import composition
from interp.locate.channels.edits import ov_edit, qk_edit
from interp.locate.channels.locator import Channels
from interp.locate.channels.weights import Weights
from interp.models.sites import Head
from tests.locate.channels.induction import SPARE, TOKENS, induction, repeated

DOUBLE = torch.float64


@pytest.fixture(scope="module")
def model():
    return induction()


def accuracy(model, *edits):
    batch = model.batch(data := repeated(), forced=False)
    with model.apply(*edits):
        guessed = model.run(batch, keep=1).logits[:, -1].argmax(-1).tolist()
    return float(np.mean([g == e.answer_ids[0] for g, e in zip(guessed, data, strict=True)]))


def test_scores_are_those_of_the_closed_form(model):
    frame = composition(model, score="full", dtype=DOUBLE, anticausal=False)
    frame = frame.set_index(["writer", "reader", "mode"])
    value, aligned = frame["value"].to_dict(), frame["alignment"].to_dict()
    assert value["L0H0", "L1H0", "K"] == pytest.approx(1 / np.sqrt(TOKENS), rel=1e-5)
    assert aligned["L0H0", "L1H0", "K"] == pytest.approx(1, rel=1e-5)  # no two such spectra could score more
    assert max(value["L0H0", "L1H0", mode] for mode in "QV") < 1e-6
    assert value["L0H1", "L1H1", "Q"] == pytest.approx(1 / np.sqrt(SPARE), rel=1e-5)
    assert max(value["L0H1", "L1H0", mode] for mode in "QKV") < 1e-6


def test_each_component_of_the_channel_is_read_alike_and_their_span_is_what_is_read(model):
    found = component_scores(model, ("K",), top=1000, dtype=DOUBLE)
    rows = found.readers[(found.readers["writer"] == "L0H0") & (found.readers["reader"] == "L1H0")]
    assert len(rows) == TOKENS
    assert rows["value"].to_numpy() == pytest.approx(np.full(TOKENS, 1 / np.sqrt(TOKENS)), rel=1e-5)
    kernel = found.kernel.set_index(["writer", "reader"])["value"].to_dict()
    assert kernel["L0H0", "L1H0"] == pytest.approx(TOKENS, rel=1e-5) and kernel["L0H0", "L1H1"] < 1e-9
    channels = Channels(hubs=False).fit(model).channels_
    # The spare block is read by queries, keys and values alike, as it is written.
    assert {(c.components[0][0], c.reader, c.mode) for c in channels} == {
        (Head(0, 0), "L1H0", "K"),
        *((Head(0, 1), "L1H1", mode) for mode in "QKV"),
    }


def test_it_repeats_without_error_until_its_channel_is_deleted(model):
    weights = Weights(model)
    every = {i: 0.0 for i in range(TOKENS)}
    assert accuracy(model) == 1
    assert accuracy(model, ov_edit(weights, Head(0, 0), every)) <= 1 / 11
    assert accuracy(model, qk_edit(weights, Head(1, 0), every)) <= 1 / 11
    # What is not the channel: another head's components, and a direction that it does not use.
    assert accuracy(model, ov_edit(weights, Head(0, 1), {i: 0.0 for i in range(SPARE)})) == 1
    spare = Weights(model).layer(0).o[1][:SPARE]
    assert accuracy(model, project_out("resid_pre[1]", spare)) == 1
    previous = Weights(model).layer(0).o[0][:TOKENS]
    assert accuracy(model, project_out("resid_pre[1]", previous)) <= 1 / 11


def test_in_the_weights_themselves_the_edit_does_the_same(model):
    edit = ov_edit(Weights(model), Head(0, 0), {i: 0.0 for i in range(TOKENS)})
    before = model.module(0, "attn.c_proj").weight.detach().clone()
    with edit.applied(model):
        assert accuracy(model) <= 1 / 11
        heads = Weights(model).layer(0)
        assert (heads.v[0] @ heads.o[0]).norm() < 1e-5 < 0.1 < (heads.v[1] @ heads.o[1]).norm()
    assert torch.equal(model.module(0, "attn.c_proj").weight, before) and accuracy(model) == 1
