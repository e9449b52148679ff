"""Scores of edges and nodes against plain autograd with a leaf of its own on every edge, and against exact effects."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from interp.errors import EngineError, UsageError
from interp.intervene.ablate import ablate
from interp.locate.circuits.attribution import edge_scores, node_scores
from interp.locate.circuits.faithful import faithfulness
from interp.locate.circuits.patched import edge_effects
from interp.locate.circuits.path_patching import path_patch
from interp.models.sites import Head
from interp.models.subject import CausalLM
from interp.tasks.base import Example
from tests.locate.circuits.dense import FAMILIES, Dense, asked, difference, gradients, whole
from tests.subjects import ALL, examples, subject
from tests.tiny import tiny

DATA = examples((13, 9, 20))


def written(s, ids):
    with torch.no_grad():
        return Dense(s).run(ids, whole)[1]


def gap(s, data=DATA):
    """Mean change of the metric from the clean to the corrupt run."""
    found = []
    with torch.no_grad():
        for e in data:
            ends = [difference(Dense(s).run(asked(e, corrupt=c), whole)[0], e) for c in (False, True)]
            found.append(float(ends[1] - ends[0]))
    return float(np.mean(found))


@pytest.mark.parametrize("family", sorted({*FAMILIES} - {"qwen2"}))
def test_scores_equal_autograd_with_a_leaf_on_every_edge(family):
    s = subject(family)
    frame = edge_scores(s, DATA, steps=1)
    own = []
    for e in DATA:
        ids = asked(e, corrupt=False)
        change = {w: v - written(s, ids)[w] for w, v in written(s, asked(e, corrupt=True)).items()}
        slopes = gradients(s, e, ids)
        assert {f"{w}->{r}" for w, r in slopes} == set(frame.edge)
        own.append({f"{w}->{r}": float((change[w] * g).sum()) for (w, r), g in slopes.items()})
    each = np.array([[o[e] for e in frame.edge] for o in own])
    np.testing.assert_allclose(frame.score, each.mean(0), atol=2e-5 * np.abs(each).max())
    np.testing.assert_allclose(frame.se, each.std(0, ddof=1) / 3**0.5, atol=2e-5 * np.abs(each).max())
    assert np.abs(each).max() > 0.1
    # Batches of one example give the same.
    small = edge_scores(s, DATA, steps=1, tokens=1)
    np.testing.assert_allclose(small.score, frame.score, atol=2e-5 * np.abs(each).max())


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_steps_average_the_gradient_on_the_way_of_the_embeddings(family):
    """Three steps at their midpoints: embeddings a sixth, a half and five sixths on their way."""
    s = subject(family)
    e = DATA[0]
    ids, other = (asked(e, corrupt=c) for c in (False, True))
    own, donor = (s.hf.get_input_embeddings()(torch.tensor(i)).detach() for i in (ids, other))
    change = {w: v - written(s, ids)[w] for w, v in written(s, other).items()}
    wanted: dict[str, float] = {}
    for share in (1 / 6, 1 / 2, 5 / 6):
        moved = share * (donor - own)
        s.hf.get_input_embeddings().register_forward_hook(lambda m, a, out, moved=moved: out + moved)
        try:
            for (w, r), g in gradients(s, e, ids).items():
                wanted[f"{w}->{r}"] = wanted.get(f"{w}->{r}", 0.0) + float((change[w] * g).sum()) / 3
        finally:
            s.hf.get_input_embeddings()._forward_hooks.clear()
    frame = edge_scores(s, [e], steps=3)
    np.testing.assert_allclose(
        frame.score, [wanted[x] for x in frame.edge], atol=1e-5 * frame.score.abs().max()
    )
    assert frame.se.isna().all() and set(frame.n_clusters) == {1}
    plain = edge_scores(s, [e], steps=1)
    assert (plain.score - frame.score).abs().max() > 0.05 * frame.score.abs().max()


@pytest.mark.parametrize("family", ["neox", "llama"])
def test_edges_of_the_embeddings_sum_to_the_whole_change(family):
    """Completeness of integrated gradients: it holds with many steps, and not with one."""
    s = subject(family)
    sums = {}
    for steps in (1, 20):
        frame = edge_scores(s, DATA, steps=steps)
        sums[steps] = frame[frame.writer == "embed"].score.sum()
    assert sums[20] == pytest.approx(gap(s), abs=0.01)
    assert abs(sums[1] - gap(s)) > 0.05


@pytest.mark.parametrize("family", ALL)
@pytest.mark.parametrize("steps", [1, 3])
def test_a_nodes_score_is_the_sum_over_its_edges(family, steps):
    s = subject(family)
    nodes = node_scores(s, DATA, steps=steps).set_index("node")
    assert len(nodes) == 16 and nodes.kind.value_counts().to_dict() == {"head": 12, "mlp": 3, "embed": 1}
    assert nodes.layer.tolist() == [-1] + [i for i in range(3) for _ in range(5)]
    if s.family.post_norm:
        with pytest.raises(UsageError, match="norms what attention writes"):
            edge_scores(s, DATA, steps=steps)
        # No edges to sum: the score is the derivative of the metric when the node moves towards its corrupt value.
        assert nodes.score.abs().min() > 0
        return
    edges = edge_scores(s, DATA, steps=steps)
    np.testing.assert_allclose(nodes.score, edges.groupby("writer").score.sum()[nodes.index], atol=2e-5)


def linear() -> CausalLM:
    """A GPT-2 whose metric is linear in what every edge carries: no norms, no activation, attention uniform."""
    module = copy.deepcopy(tiny("gpt2"))
    d = module.config.n_embd
    for block in module.transformer.h:
        block.ln_1, block.ln_2, block.mlp.act = nn.Identity(), nn.Identity(), nn.Identity()
        with torch.no_grad():
            block.attn.c_attn.weight[:, : 2 * d] = 0
    module.transformer.ln_f = nn.Identity()
    return CausalLM(module, None, name="linear")


def test_scores_are_exact_where_the_model_is_linear():
    s = linear()
    chosen = np.random.default_rng(0).choice(262, 40, replace=False)
    frames = [edge_scores(s, DATA, steps=steps).iloc[chosen] for steps in (1, 2)]
    exact = edge_effects(s, DATA, frames[0].edge).exact.to_numpy()
    for frame in frames:
        np.testing.assert_allclose(frame.score, exact, atol=2e-4 * np.abs(exact).max())
    queries = frames[0].input.isin(["q", "k"]).to_numpy()
    assert (exact[queries] == 0).all() and np.median(np.abs(exact[~queries])) > 0.1
    assert gap(s) == pytest.approx(node_scores(s, DATA, steps=1).score[0], rel=1e-4)


def near(size: float) -> tuple[CausalLM, list[Example]]:
    """A model in which the corrupt tokens are nearly the clean ones."""
    module = copy.deepcopy(tiny("llama"))
    table = module.get_input_embeddings().weight
    e = examples((16,))[0]
    with torch.no_grad():
        for a, b in zip(e.ids, e.corrupt["value_swap"].ids, strict=True):
            if a != b:
                table[b] = table[a] + size * (table[b] - table[a])
    return CausalLM(module, None, name="near"), [e]


def test_scores_are_first_order():
    """Relative error against exact effects falls with the size of the corruption."""
    errors = []
    chosen = np.random.default_rng(0).choice(190, 16, replace=False)
    for size in (0.3, 0.1, 0.03):
        s, data = near(size)
        frame = edge_scores(s, data, steps=1).iloc[chosen]
        exact = edge_effects(s, data, frame.edge).exact.to_numpy()
        errors.append(np.abs(frame.score - exact).sum() / np.abs(exact).sum())
    assert errors[1] < errors[0] / 2 and errors[2] < errors[1] / 2 and errors[2] < errors[0] / 8, errors


@pytest.mark.parametrize("family", ["gpt2"])
def test_scores_agree_with_exact_effects(family):
    """On random models the clean run's gradient ranks edges better than shuffled scores do."""
    s = subject(family)
    rng = np.random.default_rng(0)
    frame = edge_scores(s, DATA[:1], steps=1)
    chosen = rng.choice(len(frame), 40, replace=False)
    exact = edge_effects(s, DATA[:1], frame.edge[chosen]).exact.to_numpy()
    found = stats.spearmanr(frame.score[chosen], exact).statistic
    shuffled = [stats.spearmanr(rng.permutation(frame.score[chosen]), exact).statistic for _ in range(200)]
    assert found > max(shuffled)


def test_errors_are_of_clusters():
    """Two examples of one haystack count once."""
    s = subject("llama")
    data = [replace(e, cluster="ab"[i > 0]) for i, e in enumerate(DATA)]
    each = np.array([edge_scores(s, [e], steps=1).score for e in DATA])
    frame = edge_scores(s, data, steps=1)
    rest = each - each.mean(0)
    wanted = np.sqrt(2 * (rest[0] ** 2 + (rest[1] + rest[2]) ** 2)) / 3
    np.testing.assert_allclose(frame.se, wanted, atol=1e-5)
    assert set(frame.n_clusters) == {2} and set(frame.n) == {3}


def test_examples_without_a_cluster_are_each_their_own():
    s, data = subject("llama"), [replace(e, cluster="") for e in DATA]
    edges = edge_scores(s, data, steps=1)
    paths = path_patch(s, data, "logits", senders="L1H0 L2H1")
    curve = faithfulness(s, data, edges, sizes=(0.5, 1.0)).frame
    assert {*edges.n_clusters, *paths.n_clusters, *curve.n_clusters} == {3}
    assert not (edges.se.isna().any() or paths.se.isna().any() or curve.ci_lo.isna().any())


def test_log_probabilities_have_scores_too():
    s = subject("llama")
    one, other = (edge_scores(s, DATA, steps=1, metric=m).score for m in ("logprob", "logit_diff"))
    assert (one - other).abs().max() > 0.05
    for metric in ("accuracy", "rank"):
        with pytest.raises(UsageError, match=f"no gradient of metric '{metric}'"):
            node_scores(s, DATA, metric=metric)


def test_scoring_is_two_passes_and_a_backward_one(rng_untouched):
    s = subject("llama")
    calls = []
    handle = s.blocks[-1].register_forward_pre_hook(lambda *_: calls.append(1))
    flags = [p.requires_grad for p in s.hf.parameters()]
    told = []
    try:
        edge_scores(s, DATA, steps=1, progress=lambda *a: told.append(a))
        node_scores(s, DATA, steps=1)
        assert len(calls) == 2 + 2
        edge_scores(s, DATA, steps=4)
        assert len(calls) == 4 + 2 + 4
    finally:
        handle.remove()
    assert told == [(3, 3, "examples")]
    assert [p.requires_grad for p in s.hf.parameters()] == flags
    assert all(p.grad is None for p in s.hf.parameters())


def test_what_cannot_be_scored_is_refused(monkeypatch):
    s = subject("llama")
    with pytest.raises(UsageError, match="steps is 0"):
        edge_scores(s, DATA, steps=0)
    with pytest.raises(UsageError, match="no corruption 'x'"):
        node_scores(s, DATA, corruption="x")
    query = ablate([Head(1, 0)], "mean_query", reference=DATA)
    with s.apply(query), pytest.raises(UsageError, match=r"edits q\[1\]"):
        edge_scores(s, DATA)
    monkeypatch.setattr(type(s.engine), "capabilities", s.engine.capabilities - {"grad"})
    with pytest.raises(EngineError, match="no gradients"):
        edge_scores(s, DATA)
