"""The locator: planted channels are found, decoys and hubs are not, and attention says which are used."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from interp.errors import UsageError
from interp.locate.channels import components
from interp.locate.channels.components import component_scores
from interp.locate.channels.factors import Factors
from interp.locate.channels.hubs import Hubs, apart, chance
from interp.locate.channels.locator import Channels
from interp.locate.channels.null import decoys
from interp.locate.channels.parts import readers, writers
from interp.locate.channels.validation import attention_change, others, validate
from interp.locate.channels.weights import Weights
from interp.models.sites import Head
from interp.models.subject import CausalLM
from interp.tasks.base import FixedTask
from tests.locate.channels.planting import Planting, three
from tests.subjects import examples, subject
from tests.tiny import tiny

FAMILIES = ["gpt2", "llama", "gemma2"]


def linked(found):
    return {(repr(head), c.reader, c.mode) for c in found.channels_ for head, _ in c.components}


def rates(family, seeds, strength=8.0):
    """Precision and recall over models."""
    hits = named = true = 0
    for seed in seeds:
        model = three(family, seed, strength)
        found = linked(Channels(level=0.01).fit(model.subject))
        hits, named, true = hits + len(found & model.links), named + len(found), true + len(model.links)
    return hits / max(named, 1), hits / true


@pytest.mark.parametrize("family", FAMILIES)
def test_planted_channels_are_found_and_decoys_are_not(family):
    precision, recall = rates(family, range(3))
    assert recall >= 0.9 and precision >= 0.9


def test_weak_channels_are_missed_and_a_broken_score_finds_nothing(monkeypatch):
    assert rates("llama", range(3), 0.5)[1] <= 0.1
    plain = components.readers

    def shifted(factors, mode, score):
        parts = plain(factors, mode, score)
        return replace(parts, rows=parts.rows.roll(1, 1))

    monkeypatch.setattr(components, "readers", shifted)
    assert rates("llama", range(3))[1] <= 0.1


def test_heads_are_ranked_by_their_best_component():
    model = three("llama", 0)
    found = Channels().fit(model.subject)
    frame = found.scores_
    assert list(dict.fromkeys(frame["method"])) == ["writes", "reads"]
    assert len(frame) == 8 + 8  # the last layer writes to nobody, the first reads from nobody
    assert set(found.top(3)) == {Head(0, 1), Head(1, 2), Head(0, 0)}
    assert {h.layer for h in found.top(8)} == {0, 1}
    # A KV group reads for its two heads.
    assert {Head(2, 3), Head(2, 2), Head(1, 0), Head(1, 1)} == set(found.top(4, "reads"))
    assert set(found.select()) == {Head(0, 1), Head(1, 2), Head(0, 0)}
    assert set(found.select(20.0)) == {
        h for h, s in zip(found.top(8), found.ranking()["score"], strict=True) if s >= 20
    }
    best = frame[(frame["component"] == "L0H1") & (frame["method"] == "writes")].iloc[0]
    assert (best["partner"], best["mode"], best["number"]) == ("L2H3", "Q", 0)
    assert best["score"] == pytest.approx(-np.log10(max(found.readers_["p_apart"].min(), 0)), rel=2)
    row = found.readers_.query("writer == 'L0H1' and reader == 'L2H3' and component == 0").iloc[0]
    assert best["score"] == pytest.approx(-np.log10(row["p_apart"])) and best["value"] == row["value"]
    assert found.pairs_ is found.components_.pairs and found.kernel_ is found.components_.kernel
    assert repr(Channels(level=0.1)).startswith(
        "Channels(modes=('Q', 'K', 'V'), score=None, level=0.1, by='q'"
    )


def test_the_frame_holds_the_best_of_every_head_even_if_little_is_kept():
    s = subject("llama")
    few, many = (component_scores(s, ("Q",), top=n).readers for n in (1, 10_000))
    assert len(few) < 40 and len(many) == 48 * 8 + 48 * 4
    assert set(few["writer"]) == set(many["writer"]) and set(few["reader"]) == set(many["reader"])
    for end in ("writer", "reader"):
        best = {frame_id: own.groupby(end)["p"].min() for frame_id, own in (("few", few), ("many", many))}
        # The best by z is the best by p, up to readers of different spectra.
        assert (best["few"] <= 3 * best["many"]).all()


# -- hubs --------------------------------------------------------------------------------------------------------------


def test_what_hubs_score_is_that_of_medians_of_the_whole_table():
    s = subject("llama")
    frame = component_scores(s, ("Q", "V"), top=10_000).readers
    factors = [Factors(heads) for heads in Weights(s).layers()]
    for mode, own in frame.groupby("mode"):
        reader = {j: readers(factors[j], mode, "side") for j in (1, 2)}
        writer = {i: writers(factors[i]) for i in (0, 1)}
        logs, excess = {}, {}
        for i, j in ((0, 1), (0, 2), (1, 2)):
            square = (writer[i].rows @ reader[j].rows.mT).square()
            logs[i, j] = (square @ (reader[j].member * reader[j].share[:, None])).log().numpy() / 2
            excess[i, j] = logs[i, j] - chance(reader[j].spectra().numpy(), s.d_model)
        middle = lower(np.concatenate([e.ravel() for e in excess.values()]))
        for i, j in excess:
            rows = np.concatenate([excess[i, b] for a, b in excess if a == i], 1)
            columns = np.concatenate([excess[a, j] for a, b in excess if b == j], 0)
            for row in own[(own["writer_layer"] == i) & (own["reader_layer"] == j)].head(8).itertuples():
                unit = reader[j].names.index(row.reader)
                names = writer[i].names
                at = int(
                    (
                        (writer[i].unit == names.index(row.writer)) & (writer[i].number == row.component)
                    ).nonzero()
                )
                wanted = lower(rows[at]) + lower(columns[:, unit]) - middle
                got = np.log(row.value / row.apart)
                assert row.value == pytest.approx(np.exp(logs[i, j][at, unit]), rel=1e-4)
                assert got == pytest.approx(max(wanted, 0), abs=0.08)  # bins are 0.05 wide, three of them


def lower(values):
    return np.sort(values.ravel())[(values.size - 1) // 2]


def test_a_table_of_effects_is_expected_as_it_is():
    """Excess 0.8 + row + column everywhere: all of it is hubs, and the 0.8 is counted once."""
    rng = np.random.default_rng(0)
    row = [rng.permutation(np.linspace(-0.6, 0.6, 61)) for _ in range(2)]
    column = [rng.permutation(np.linspace(-0.4, 0.4, 41)) for _ in range(2)]
    hubs = Hubs()
    for i, j in ((0, 1), (0, 2), (1, 2)):
        hubs.add(i, j, 0.8 + row[i][:, None] + column[j - 1][None])
    at = np.arange(41)
    assert hubs.expected(0, 2, at, at) == pytest.approx(0.8 + row[0][:41] + column[1], abs=0.08)
    assert apart(np.array([0.5, 0.5]), np.array([0.8, -0.3])) == pytest.approx([0.5 * np.exp(-0.8), 0.5])


def test_chance_is_the_median_of_random_directions():
    rng = np.random.default_rng(0)
    d, k = 60, 12
    x = rng.standard_normal((20_000, d))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    for t, tolerance in ((np.ones(k), 0.01), (np.exp(-np.arange(k) / 3), 0.08)):
        seen = np.log((x[:, :k] ** 2 @ t) / t.sum()) / 2
        assert chance(t[None], d)[0] == pytest.approx(np.median(seen), abs=tolerance)


def test_a_hub_is_no_channel_unless_asked_for():
    for family in ("gpt2", "llama"):
        model = Planting(family, 3)
        model.link((0, 1), (2, 3), "Q")
        model.hubs()
        found = Channels(("Q",), level=0.01).fit(model.subject)
        assert linked(found) == model.links
        every = linked(Channels(("Q",), level=0.01, hubs=False).fit(model.subject))
        assert every >= model.links | model.hub and len(model.hub) == 8
        # It scores as high as the channel does; what sets it apart is that all read it.
        rows = found.readers_.set_index(["writer", "reader", "component"])
        assert rows.loc[("L0H2", "L2H3", 0), "apart"] < 0.5 * rows.loc[("L0H2", "L2H3", 0), "value"]
        hub = found.readers_[found.readers_["writer"] == "L0H2"].iloc[0]
        assert hub["q"] < 1e-6 < 0.01 < hub["q_apart"]
        assert (found.readers_["apart"] <= found.readers_["value"]).all()
        assert (found.readers_["p_apart"] >= found.readers_["p"] * (1 - 1e-9)).all()


def test_by_chance_nothing_is_found():
    """Of random models at most a twentieth shows anything at that level; of 12, 3 or more would by 2 % chance."""
    locator = Channels(("Q", "K"), kept=50)
    found = [
        locator.fit(CausalLM(tiny("llama", 50 + seed), None, name="random")).channels_ for seed in range(12)
    ]
    assert sum(bool(c) for c in found) <= 2


# -- null of anti-causal pairs -----------------------------------------------------------------------------------------


def test_q_values_by_counting_hold_what_they_say():
    rng = np.random.default_rng(0)
    false, said = [], []
    for _ in range(200):
        null = rng.integers(0, 60, 400)
        causal = np.r_[rng.integers(0, 60, 380), rng.integers(45, 100, 20)]
        real = np.r_[np.zeros(380, bool), np.ones(20, bool)]
        counts = [np.bincount(x, minlength=100) for x in (causal, null)]
        p, q = decoys(*counts)
        assert p[0] == 1 and p[99] == 1 / 401 and (np.diff(q) <= 1e-12).all()
        named = q[causal] <= 0.2
        false.append((named & ~real).sum() / max(named.sum(), 1))
        said.append(named[real].mean())
    assert np.mean(false) <= 0.2 and np.mean(said) > 0.5


# -- validation --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def validated():
    model = three("llama", 0)
    data = [replace(e, cluster=str(i)) for i, e in enumerate(examples((20, 14, 26, 17, 23, 19, 21, 16)))]
    found = Channels(level=0.01, draws=6).fit(model.subject, FixedTask(data, name="tiny"))
    return found, data


def test_attention_moves_more_than_for_other_components_of_the_same_head(validated):
    found, _ = validated
    frame = found.validation_[found.validation_["factor"] == 0]
    assert {c.split("(")[1][0] for c in frame["channel"]} == {"Q", "K"}  # attention does not show values
    assert set(frame["role"]) == {"", "key", "value"}
    query = frame[(frame["reader"] == "L2H3") & (frame["mode"] == "Q") & (frame["role"] == "")].iloc[0]
    assert query["moved"] > query["control_moved"]
    assert query["p"] < 0.05 and query["beyond"] == 0
    assert (query["n"], query["n_clusters"], query["n_draws"], query["n_distinct"]) == (8, 8, 6, 11)
    assert 0 < query["control_share"] < query["share"] < 1
    assert (frame["q"] >= frame["p"]).all()


@pytest.mark.parametrize("factor", [0.0, 2.0])
def test_rows_of_the_frame_are_those_of_edits_made_one_by_one(validated, factor):
    found, data = validated
    channel = next(c for c in found.channels_ if c.mode == "K")
    controls, distinct = others(found.weights_, channel, 6, 0)
    assert distinct == 11 and len(set(controls)) == 6 and channel.components not in controls
    own = attention_change(found.weights_, channel, data, factor)
    drawn = [attention_change(found.weights_, replace(channel, components=c), data, factor) for c in controls]
    assert set(found.validation_["factor"]) == {0, 2}
    frame = found.validation_[found.validation_["factor"] == factor]
    for reader in ("L2H2", "L2H3"):
        for role in ("", "key", "value"):
            row = frame[
                (frame["channel"] == repr(channel)) & (frame["reader"] == reader) & (frame["role"] == role)
            ]
            at = (own["reader"] == reader) & (own["role"] == role)
            column = "change" if role else "moved"
            assert row["change"].item() == pytest.approx(own.loc[at, "change"].mean(), abs=1e-9)
            assert row["control"].item() == pytest.approx(
                np.mean([d.loc[at, "change"].mean() for d in drawn]), abs=1e-9
            )
            gap = own.loc[at, column].to_numpy() - np.mean([d.loc[at, column] for d in drawn], axis=0)
            signs = 1 - 2 * (np.arange(256)[:, None] >> np.arange(8) & 1)
            wanted = (np.abs(signs @ gap) >= abs(gap.sum()) - 1e-12).mean()
            assert row["p"].item() == pytest.approx(wanted)
            far = [abs(d.loc[at, column].mean()) >= abs(own.loc[at, column].mean()) for d in drawn]
            assert row["beyond"].item() == sum(far)


def test_controls_are_all_there_are_if_few(validated):
    found, _ = validated
    channel = found.channels_[0]
    head = channel.components[0][0]
    two = replace(channel, components=((head, 0), (head, 3)))
    sets, distinct = others(found.weights_, two, 1000, 0)
    assert distinct == len(sets) == 45 and all(i not in (0, 3) for c in sets for _, i in c)
    both = replace(channel, components=((head, 0), (Head(1, 2), 1)))
    sets, distinct = others(found.weights_, both, 5, 0)
    assert distinct == 121 and len(sets) == 5 and {h for c in sets for h, _ in c} == {head, Head(1, 2)}
    assert others(found.weights_, both, 5, 0)[0] == sets != others(found.weights_, both, 5, 1)[0]


def test_a_channel_that_the_prompts_do_not_use_moves_nothing():
    """The weights show it, yet its writer never carries the direction: the values that would feed it are constant."""
    model = three("llama", 0)
    s = model.subject
    weights = Weights(s)
    factors = Factors(weights.layer(0))
    read = factors.ov.read[1][0]
    with torch.no_grad():  # of the embeddings nothing is left along what the component reads
        table = s.hf.get_input_embeddings().weight
        axis = read / read.norm()
        table -= (table @ axis)[:, None] * axis
    found = Channels(level=0.01).fit(s)
    channel = next(c for c in found.channels_ if c.mode == "Q")
    frame = validate(found.weights_, [channel], examples(), draws=3)
    whole = frame[frame["role"] == ""].iloc[0]
    assert whole["moved"] < 1e-5 and whole["moved"] < whole["control_moved"]


def test_bad_requests_say_what_is_wrong(validated):
    found, data = validated
    with pytest.raises(UsageError, match="write some of Q, K, V"):
        Channels(("Q", "Z")).fit(found.weights_.subject)
    with pytest.raises(UsageError, match="write q or q_null"):
        Channels(by="p").fit(found.weights_.subject)
    with pytest.raises(UsageError, match="at least one of each"):
        validate(found.weights_, [], data)
    with pytest.raises(UsageError, match="0 factors: validation takes"):
        validate(found.weights_, found.channels_[:3], data, factors=())
    with pytest.raises(UsageError, match="not fitted"):
        Channels().top(1)
    refit = Channels(("V",)).fit(found.weights_.subject, FixedTask(data, name="tiny"))
    assert not hasattr(refit, "validation_")
    assert isinstance(refit.scores_, pd.DataFrame)
