"""The channel part of an atlas on a small model: what is read, what is deleted in its place, and what that does."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import interp
from interp.atlas_channels import NEAREST, Deletions, Part, read_by, spectra, table
from interp.locate.channels.locator import Channels
from interp.measure.effects import COLUMNS, measure
from interp.measure.outcomes import evaluate
from interp.models.sites import Head
from interp.models.subject import CausalLM
from interp.tasks.base import Task
from tests.tiny import byte_tokenizer, tiny


@pytest.fixture(scope="module")
def model() -> CausalLM:
    return interp.load(tiny("llama"), tokenizer=byte_tokenizer())


@pytest.fixture(scope="module")
def found(model: CausalLM) -> Channels:
    return Channels(level=1.0, hubs=True).fit(model)


@pytest.fixture(scope="module")
def niah(model: CausalLM) -> Task:
    return interp.task("niah", length=300, n=3)


def test_the_table_knows_the_components_of_each_channel_in_their_order(found: Channels) -> None:
    edges = table(found)
    assert len(edges) == len(found.readers_)
    for number, channel in enumerate(found.channels_):
        own = edges[edges["channel"] == number].sort_values("place")
        assert [(r.writer, r.component) for r in own.itertuples()] == [
            (repr(h), i) for h, i in channel.components
        ]
        assert set(own["reader"]) == {channel.reader} and set(own["mode"]) == {channel.mode}
    assert (edges["channel"] == -1).sum() == len(edges) - sum(len(c.components) for c in found.channels_)


def test_spectra_are_of_every_mode(found: Channels) -> None:
    told = spectra(found)
    for mode in "QKV":
        pd.testing.assert_frame_equal(
            told[told["mode"] == mode].drop(columns="mode").reset_index(drop=True),
            found.components_.spectrum(mode),
        )


def test_what_heads_read_is_theirs_or_their_groups_best_channel_first(
    model: CausalLM, found: Channels
) -> None:
    heads = [Head(2, 1), Head(1, 3)]
    want: list[Part] = []
    for channel in found.channels_:
        if set(heads) & set(channel.readers(found.weights_)):
            want += [Part(h, i) for h, i in channel.components if Part(h, i) not in want]
    assert want and read_by(model, table(found), heads) == want
    assert any(c.reader == "L2KV0" for c in found.channels_), "a group of the first head is among them"
    assert read_by(model, table(found), []) == []


def test_others_are_of_the_same_heads_near_in_strength_and_none_to_avoid(found: Channels) -> None:
    deletions = Deletions(found.weights_)
    parts, avoid = [Part(Head(0, 1), 0), Part(Head(1, 2), 3)], [Part(Head(0, 1), 0), Part(Head(1, 2), 3)]
    avoid.append(Part(Head(1, 2), 4))
    seen = set()
    for draw in range(40):
        drawn, gap = deletions.others(parts, avoid, draw, 0)
        assert [p.head for p in drawn] == [p.head for p in parts] and not set(drawn) & set(avoid)
        s = [deletions.strengths(p.head.layer)[p.head.head] for p in parts]
        logs = [abs(np.log(s[i][drawn[i].number] / s[i][parts[i].number])) for i in range(2)]
        assert gap == pytest.approx(np.mean(logs))
        for i, part in enumerate(parts):
            free = [j for j in range(len(s[i])) if Part(part.head, j) not in avoid]
            near = sorted(free, key=lambda j, i=i, part=part: abs(np.log(s[i][j] / s[i][part.number])))[
                :NEAREST
            ]
            assert drawn[i].number in near
        seen.add(tuple(drawn))
        assert deletions.others(parts, avoid, draw, 0)[0] == drawn
    assert len(seen) > 10


def test_a_head_without_others_gives_fewer(found: Channels) -> None:
    every = [Part(Head(0, 1), i) for i in range(12)]
    drawn, gap = Deletions(found.weights_).others(every, every, 0, 0)
    assert drawn == [] and np.isnan(gap)


def test_effects_are_those_of_the_edited_model(model: CausalLM, found: Channels, niah: Task) -> None:
    parts = read_by(model, table(found), [Head(2, 1)])
    deletions = Deletions(found.weights_)
    plan = list(deletions.plan(parts, (2, 5, 999), 2, 0))
    assert [c.k for c in plan if c.condition == "cut"] == [2, 5, len(parts)], "no more than there are"
    rows = measure(model, niah, plan[:6], metrics=("logprob", "logit_diff"), off_target=(), floor="mark")
    assert list(rows.columns) == COLUMNS and set(rows["scope"]) == {"", "all"}
    assert set(rows["mode"]) == {"", "delete"} and set(rows["status"]) <= {"ok", "at chance"}
    own = rows[rows["metric"] == "logprob"].reset_index(drop=True)
    examples = niah.examples(model)
    for condition, row in zip(plan[:6], own.iloc[1:].itertuples(), strict=True):
        told = [Part(Head(int(p[1]), int(p[3])), int(p.split(".")[1])) for p in row.components.split()]
        with model.apply(deletions.cut(told)):
            want = evaluate(model, examples, {"": None}).values[""]["logprob"].mean()
        assert row.value == pytest.approx(want, abs=1e-4) and row.k == condition.k
        assert row.value != pytest.approx(own["value"].iloc[0], abs=1e-4), "and not that of the intact one"
    assert own["control"].tolist() == ["", "", "component", "component", "", "component", "component"]
