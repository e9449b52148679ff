"""Curves and areas against runs one by one, and against planted circuits whose edges are known."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pandas as pd
import pytest
import torch

from interp.errors import UsageError
from interp.intervene.ablate import ablate
from interp.intervene.reference import Reference
from interp.locate.circuits.attribution import edge_scores, node_scores
from interp.locate.circuits.circuit import Circuit, auroc, ranked, select
from interp.locate.circuits.faithful import SIZES, cmd, cpr, faithfulness
from interp.locate.circuits.graph import Graph, edge
from interp.locate.circuits.patched import EdgeRuns, edge_effects
from interp.locate.circuits.streams import Pairs, Written
from interp.measure.metrics import score_answer
from interp.models.sites import MLP, Head
from tests.locate.circuits.planted import pairs, planted
from tests.subjects import examples, subject

DATA = examples((13, 9, 20, 13))
PAIRS = pairs()
model = cache(planted)


def difference(s, data, *, corrupt=False):
    """Mean logit difference, each example alone."""
    out = []
    for e in data:
        asked = replace(e, ids=e.corrupt["value_swap"].ids) if corrupt else e
        out.append(score_answer(s.run([asked]).logits[0], e)["logit_diff"])
    return float(np.mean(out))


# -- runs ------------------------------------------------------------------------------------------------------------


def test_edges_of_every_size_are_run_as_they_are_named():
    s = subject("llama")
    scores = edge_scores(s, DATA, steps=1)
    found = faithfulness(s, DATA, scores, sizes=(0.0, 0.1, 0.5, 1.0))
    clean, corrupt = difference(s, DATA), difference(s, DATA, corrupt=True)
    assert (found.full, found.empty) == pytest.approx((clean, corrupt), abs=1e-4)
    assert found.frame["items"].tolist() == [0, 19, 95, 190] == found.frame.kept.tolist()
    values = []
    for n in (0, 19, 95, 190):
        circuit = select(scores, n, Graph.of(s))
        total = 0.0
        for _, part in Pairs.of(s, DATA, "value_swap", 1):
            runs = EdgeRuns(s, part.clean, Written.of_run(s, part.corrupt))
            total += score_answer(runs.logits(circuit)[0], part.examples[0])["logit_diff"]
        values.append(total / len(DATA))
    np.testing.assert_allclose(found.frame.value, values, atol=1e-4)
    np.testing.assert_allclose(found.frame.f, (np.array(values) - corrupt) / (clean - corrupt), atol=1e-3)
    assert found.frame.f[0] == pytest.approx(0, abs=1e-4) and found.frame.f[3] == pytest.approx(1, abs=1e-4)
    assert abs(found.frame.f[1]) > 0.01


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
@pytest.mark.parametrize("ablation", ["resample", "mean"])
def test_nodes_of_every_size_are_cut_as_they_are_named(family, ablation):
    """Post-norm families too: a node is cut whole."""
    s = subject(family)
    order = ["L1H2", "M0", "L0H1", "M2", "L2H0", "L0H3", "L1H0", "M1", "L2H3"]
    found = faithfulness(s, DATA, order, ablation=ablation, sizes=(0.0, 0.2, 0.4, 1.0))
    assert found.frame["items"].tolist() == [0, 3, 6, 15] == found.frame.kept.tolist()
    source = Reference(None, pool="twin", twin="value_swap") if ablation == "resample" else Reference(DATA)
    every = [*s.heads(), *(MLP(i) for i in range(3))]
    for row, n in zip(found.frame.itertuples(), (0, 3, 6, 15), strict=True):
        outside = [c for c in every if repr(c) not in order[:n]]
        with s.apply(*([ablate(outside, ablation, reference=source)] if n < 15 else [])):
            assert row.value == pytest.approx(difference(s, DATA), abs=1e-4)
        assert row.f == pytest.approx((row.value - found.empty) / (found.full - found.empty), abs=1e-6)
    if ablation == "resample":
        assert found.empty == pytest.approx(difference(s, DATA, corrupt=True), abs=1e-4)
    elif not s.family.post_norm:  # edges and nodes share their zero
        edges = faithfulness(s, DATA, ["embed->logits"], ablation="mean", sizes=(0.0,))
        assert found.empty == pytest.approx(edges.empty, abs=1e-4)
    assert set(found.frame.reference) == {source.name} and set(found.frame.level) == {"node"}


def test_unconnected_edges_carry_nothing_when_resampled_but_do_for_means():
    """Cut off from the embeddings a writer repeats the corrupt run, but not the mean."""
    s = subject("llama")
    order = np.random.default_rng(3).permutation([repr(e) for e in Graph.of(s).edges])
    for ablation in ("resample", "mean"):
        whole, left = (
            faithfulness(s, DATA, order, ablation=ablation, sizes=(0.1, 0.3), connected=c).frame
            for c in (False, True)
        )
        assert (
            (left.kept < left["items"]).all() and (whole.kept == whole["items"]).all() and left.kept[1] > 10
        )
        same = np.abs(left.value - whole.value).max()
        assert same < 1e-4 if ablation == "resample" else same > 1e-2


def test_batches_and_progress():
    s = subject("llama")
    told = []
    order = ["L0H1->logits", "embed->L0KV0.v"]
    whole = faithfulness(s, DATA, order, sizes=(0.01, 0.5), progress=lambda *a: told.append(a))
    alone = faithfulness(s, DATA, order, sizes=(0.01, 0.5), tokens=1)
    np.testing.assert_allclose(whole.frame.value, alone.frame.value, atol=1e-4)
    assert told == [(i, 4, "runs") for i in (1, 2, 3, 4)]


def test_shares_are_rounded_down_and_each_circuit_runs_once():
    s = subject("llama")
    n = Graph.of(s).n_edges
    told = []
    found = faithfulness(
        s,
        DATA,
        ["L0H1->logits", "embed->L0KV0.v"],
        ablation="mean",
        sizes=(0.0, 0.6 / n, 1.6 / n, 1.0),
        controls=1,
        progress=lambda *a: told.append(a),
    )
    assert found.frame["items"].tolist() == [0, 0, 1, n] * 2
    # The full model, the zero of f, and as circuits: nothing, everything, and the first edge of each order.
    assert told[-1] == (6, 6, "runs")
    own, drawn = found.frame.value[:4].to_numpy(), found.frame.value[4:].to_numpy()
    assert own[0] == own[1] == drawn[0] == drawn[1] == pytest.approx(found.empty, abs=1e-6)
    assert own[3] == drawn[3] == pytest.approx(found.full, abs=1e-4)
    assert abs(own[2] - drawn[2]) > 1e-3


# -- curves ----------------------------------------------------------------------------------------------------------


def test_areas_are_trapezoids_over_the_share():
    f = np.array([0.0, 0.5, 1.2, 1.0])
    sizes = (0.0, 0.1, 0.5, 1.0)
    assert cpr(sizes, f) == pytest.approx(0.1 * 0.25 + 0.4 * 0.85 + 0.5 * 1.1)
    assert cmd(sizes, f) == pytest.approx(0.1 * 0.75 + 0.4 * 0.35 + 0.5 * 0.1)
    assert cpr(SIZES, np.ones(10)) == pytest.approx(0.999) and cmd(SIZES, np.ones(10)) == 0
    s = subject("llama")
    found = faithfulness(s, DATA, ["M0", "L1H2", "M2"], sizes=sizes)
    assert found.cpr == pytest.approx(float(cpr(sizes, found.frame.f.to_numpy())))
    assert found.cmd == pytest.approx(float(cmd(sizes, found.frame.f.to_numpy())))


def test_intervals_resample_clusters():
    s = subject("llama")
    order, sizes = ["M0", "L1H2", "M2"], (0.1, 0.5)
    data = [replace(e, cluster="ab"[i > 1]) for i, e in enumerate(DATA)]
    solo = [faithfulness(s, [e], order, sizes=sizes) for e in data]
    found = faithfulness(s, data, order, sizes=sizes)
    values = np.array([[x.full, x.empty, *x.frame.value] for x in solo])
    # Two clusters: a resample is one of them twice, or both.
    draws = [values[:2].mean(0), values.mean(0), values[2:].mean(0)]
    f = np.array([(d[2:] - d[1]) / (d[0] - d[1]) for d in draws])
    np.testing.assert_allclose(found.frame.ci_lo, f.min(0), atol=1e-3)
    np.testing.assert_allclose(found.frame.ci_hi, f.max(0), atol=1e-3)
    areas = cpr(sizes, f)
    assert (found.areas.cpr_lo[0], found.areas.cpr_hi[0]) == pytest.approx(
        (areas.min(), areas.max()), abs=1e-3
    )
    assert set(found.frame.n_clusters) == {2} and found.frame.ci_lo[1] < found.frame.ci_hi[1] - 0.01
    assert solo[0].frame.ci_lo.isna().all() and np.isnan(solo[0].areas.cmd_hi[0])


def test_runs_that_are_alike_have_no_faithfulness():
    """Accuracy is 0 in both runs."""
    found = faithfulness(subject("llama"), DATA, ["M0"], metric="accuracy", sizes=(0.5, 1.0), controls=1)
    assert found.full == found.empty == 0 and found.frame.f.isna().all() and found.areas.cpr.isna().all()


def test_random_orders_are_controls(rng_untouched):
    s = subject("llama")
    one, same, other = (
        faithfulness(s, DATA, ["M0"], sizes=(0.4,), controls=2, seed=seed, name="mine").frame
        for seed in (0, 0, 1)
    )
    assert one.order.tolist() == ["mine", "random 0", "random 1"]
    assert one.equals(same) and one.value[0] == other.value[0]
    assert not one.value[1:].equals(other.value[1:])
    assert one.value[1] != one.value[2]


@pytest.mark.parametrize(
    ("order", "options", "told"),
    [
        (["M0", "M0"], {}, "names each node once"),
        (["embed->M0", "embed->M0"], {}, "names each edge once"),
        (["L9H0"], {}, "no node L9H0"),
        (["M0", "embed->M0"], {}, "is no edge"),
        (["M0"], {"sizes": (0.5, 0.1)}, "each above the one before"),
        (["M0"], {"sizes": ()}, "each above the one before"),
        (["M0"], {"sizes": (0.1, 1.5)}, "from 0 to 1"),
        (["M0"], {"connected": True}, "connected=False"),
        (["M0"], {"ablation": "zero"}, "write one of resample, mean"),
        (["M0"], {"reference": DATA}, "leave out the reference"),
        (["M0"], {"metric": "loss"}, "no metric 'loss'"),
        (["M0"], {"corruption": "x"}, "no corruption 'x'"),
        (pd.DataFrame({"node": ["M0"]}), {}, "column 'score'"),
    ],
)
def test_bad_requests_say_what_to_write(order, options, told):
    with pytest.raises(UsageError, match=told):
        faithfulness(subject("llama"), DATA, order, **options)
    with pytest.raises(UsageError, match="norms what attention writes"):
        faithfulness(subject("gemma2"), DATA, ["embed->M0"])


# -- planted circuits ------------------------------------------------------------------------------------------------


def reference(p) -> Circuit:
    return Circuit("planted", frozenset(map(edge, p.carries)), Graph.of(p.subject))


@pytest.mark.parametrize("seed", [0, 1])
def test_the_planted_circuit_is_found_and_is_the_model(seed):
    p = model(seed)
    s = p.subject
    right = [int(s.run([e]).logits[0, -1].argmax()) == e.answer_ids[0] for e in PAIRS]
    assert np.mean(right) == 1
    for steps in (1, 5):
        scores = edge_scores(s, PAIRS, steps=steps)
        assert set(ranked(scores)[:3]) == set(ranked(scores, "loss")[:3]) == p.carries
        assert auroc(scores, reference(p)) == 1
    sizes = (0.0, 3 / 262, 0.5, 1.0)
    found = faithfulness(s, PAIRS, scores, sizes=sizes, controls=3, connected=True)
    f = found.frame.pivot(index="order", columns="share", values="f")
    assert found.frame.kept[1] == 3
    assert f.loc["order"].to_numpy() == pytest.approx([0, 1, 1, 1], abs=0.05)
    assert f.drop(index="order")[3 / 262].abs().max() < 0.05
    assert found.cmd < 0.05 < found.areas.cmd[1:].min()
    # Each of its edges is needed: all others together do nothing without it.
    for edge_ in p.carries:
        others = [repr(e) for e in Graph.of(s).edges if repr(e) != edge_]
        assert abs(faithfulness(s, PAIRS, others, sizes=(261 / 262,)).frame.f[0]) < 0.1


def test_nodes_of_the_planted_circuit_are_found():
    p = model(0)
    scores = node_scores(p.subject, PAIRS)
    heads = scores[scores.kind == "head"]
    assert set(ranked(heads)[:2]) == {p.previous, p.match}
    found = faithfulness(p.subject, PAIRS, heads, sizes=(1 / 15, 2 / 15, 1.0), ablation="resample")
    assert found.frame.f[0] < 0.1 and found.frame.f[1:].to_numpy() == pytest.approx([1, 1], abs=0.1)


def test_gradients_fail_where_attention_saturates_and_paths_do_not():
    """A difficulty curve: exact effects find the circuit throughout."""
    hits = {}
    for sharp in (4.0, 32.0):
        p = model(0, sharp=sharp)
        tops = [set(ranked(edge_scores(p.subject, PAIRS, steps=k))[:3]) for k in (1, 5)]
        hits[sharp] = [len(top & p.carries) for top in tops]
        known = edge_effects(p.subject, PAIRS, sorted(p.carries)).exact
        assert known.max() < -0.5 * difference_of(p)
    assert hits == {4.0: [3, 3], 32.0: [1, 3]}


def difference_of(p):
    return float(np.mean([score_answer(p.subject.run([e]).logits[0], e)["logit_diff"] for e in PAIRS]))


@pytest.mark.parametrize("broken", ["activation", "magnitude"])
def test_broken_scores_do_not_find_the_circuit(broken, monkeypatch):
    """Gradient times activation, without the corrupt run; and the length of the change alone."""
    from interp.locate.circuits import attribution

    p = model(0)
    if broken == "activation":
        true = Written.less
        monkeypatch.setattr(Written, "less", lambda self, other, *a: true(self, nothing(other), *a))
    else:
        own = attribution._inputs

        def ones(*args):
            for rows, seen, grads in own(*args):
                yield rows, seen, torch.ones_like(grads)

        monkeypatch.setattr(attribution, "_inputs", ones)
    scores = edge_scores(p.subject, PAIRS, steps=1)
    assert set(ranked(scores)[:3]) != p.carries and auroc(scores, reference(p)) < 0.99


def nothing(like):
    """Writers that wrote zero."""
    zero = torch.zeros_like
    return Written(zero(like.embed), tuple(map(zero, like.z)), tuple(map(zero, like.mlp)))


def test_what_an_ablation_finds_depends_on_what_it_puts():
    """Zero finds all that the computation rests on, and a decoy that only a bias needs; resampling what differs."""
    p = model(0)
    s = p.subject
    constant = f"{p.constant}->logits"
    others = {repr(e) for e in Graph.of(s).edges} - p.needed - {constant}
    others = set(np.random.default_rng(0).choice(sorted(others), 24, replace=False))
    names = [*p.needed, constant, *others]
    zero = zero_effects(s, names)
    twin = edge_effects(s, PAIRS, names).set_index("edge").exact.abs()
    assert zero[sorted(p.needed)].min() > 5 > zero[constant] > 0.5 > zero[sorted(others)].max()
    assert twin[sorted(p.carries)].min() > 5 and twin.drop(p.carries).max() < 0.5
    assert twin[constant] < 1e-3


def zero_effects(s, names):
    """Exact size of the change of the metric when one edge carries nothing."""
    ((_, part),) = Pairs.of(s, PAIRS, "key_swap")
    runs = EdgeRuns(s, part.clean, nothing(Written.of_run(s, part.clean)))

    def metric(matrix):
        logits = runs.logits(matrix)
        return np.mean([score_answer(logits[i], e)["logit_diff"] for i, e in enumerate(part.examples)])

    whole = metric(runs.graph.full)
    scores = [metric(runs.graph.full & ~runs.graph.matrix([n])) - whole for n in names]
    return pd.Series(np.abs(scores), names)


def test_heads_are_components():
    p = model(1)
    kept = select(edge_scores(p.subject, PAIRS), 3, Graph.of(p.subject), connected=True)
    assert [repr(h) for h in kept.heads] == [p.previous, p.match] and kept.mlps == ()
    assert kept.heads[0] == Head(0, int(p.previous[-1]))


def test_a_hundredth_of_the_edges_of_smollm2_says_who_the_object_is(smollm2):
    """And random edges say nothing; the whole graph is the model."""
    import interp

    data = interp.task("ioi", n=4, seed=1).examples(smollm2)
    scores = edge_scores(smollm2, data, corruption="s2_io", steps=1)
    assert len(scores) == 70651
    found = faithfulness(smollm2, data, scores, corruption="s2_io", sizes=(0.01, 1.0), controls=1)
    f = found.frame.pivot(index="order", columns="share", values="f")
    assert found.full > 2 > -2 > found.empty
    assert f.loc["order", 0.01] > 0.5 and abs(f.loc["random 0", 0.01]) < 0.05
    assert f[1.0].to_numpy() == pytest.approx([1, 1], abs=1e-4)
