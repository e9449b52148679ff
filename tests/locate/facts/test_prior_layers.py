"""PriorLayers: planted priors among decoys, the null, and every number against its definition."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from interp.errors import NoAcceptedExample, UsageError
from interp.locate.facts.prior_layers import METHODS, PriorLayers, within
from interp.locate.readout import Readout
from interp.models.engines.base import Record
from interp.models.sites import MLP, Site
from interp.tasks.base import Example
from tests.planted.priors import planted
from tests.subjects import ALL, subject

FAMILY = [(0, "gpt2"), (0, "llama"), (2, "gpt2"), (3, "llama")]


@cache
def fitted(seed: int, kind: str, noise: float = 0.02) -> PriorLayers:
    """A fitted locator; shared, so leave it as it was."""
    model = planted(seed, kind, noise)
    examples = model.examples()
    return PriorLayers(permutations=200).fit(model.subject, examples, reference=model.priors(examples))


def of(found: PriorLayers, method: str) -> pd.DataFrame:
    own = found.scores_[found.scores_["method"] == method]
    return own.set_index("layer")


@pytest.mark.parametrize(("seed", "kind"), FAMILY)
def test_planted_layers_are_found_and_decoys_are_not(seed: int, kind: str) -> None:
    model, found = planted(seed, kind), fitted(seed, kind)
    bias, confidence = model.layers["bias"], model.layers["confidence"]
    for method in ("added", "added_mlp"):
        assert found.top(1, method) == (MLP(bias),) and of(found, method)["score"][bias] > 0.95
    assert found.top(1, "probe_mlp") == (MLP(confidence),)
    assert (
        of(found, "probe_mlp")["score"][confidence]
        > 0.8
        > 0.4
        > of(found, "probe_mlp")["score"].nlargest(2).iloc[1]
    )
    for method, layer in (("added", bias), ("added_mlp", bias), ("probe_mlp", confidence)):
        own = of(found, method)
        assert own["q"][layer] < 0.05
        decoys = [model.layers[n] for n in ("rule", "names", "loud")]
        assert (own["q"][decoys] > 0.05).all(), (method, own)
    # What attention writes is nothing here; states carry on what was written before them.
    assert (of(found, "added_attn")["score"] == 0).all() and (of(found, "probe_attn")["score"] <= 0).all()
    lens = of(found, "lens")
    assert lens["score"].idxmax() >= bias and (lens["q"][:bias] > 0.05).all() if bias else True
    assert found.right_.mean() > 0.2


def test_a_line_through_the_same_answers_would_take_names_for_priors() -> None:
    """Folds that leave single examples out, and not whole answers, find the decoy: the reason for the folds."""
    model, found = planted(0, "gpt2"), fitted(0, "gpt2")
    examples = model.examples()
    alone = [replace(e, answer_ids=(*e.answer_ids, i % 2)) for i, e in enumerate(examples)]
    # Two prompts a question: told apart by a second token, most are in another fold than their like.
    fooled = PriorLayers(permutations=50).fit(model.subject, alone, reference=found.priors_)
    names = model.layers["names"]
    assert of(fooled, "probe_mlp")["score"][names] > 0.6 > 0.3 > of(found, "probe_mlp")["score"][names]
    assert of(fooled, "probe_mlp")["q"][names] < 0.05


def test_it_fails_where_noise_hides_what_is_planted() -> None:
    hits = [
        of(fitted(0, "gpt2", noise), "added")["score"][planted(0, "gpt2").layers["bias"]]
        for noise in (0.02, 0.5, 3.0)
    ]
    assert hits[0] > 0.95 and hits[0] > hits[1] > hits[2] and hits[2] < 0.7


def test_shuffled_priors_are_found_nowhere() -> None:
    model = planted(2, "gpt2")
    examples = model.examples()
    ps = []
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(len(model.answer))
        shuffled = model.priors(examples)[::2][order].repeat(2)
        found = PriorLayers(permutations=100, seed=seed).fit(model.subject, examples, reference=shuffled)
        ps.append(found.scores_[found.scores_["method"].isin(["added", "lens", "probe", "probe_mlp"])]["p"])
    every = np.concatenate(ps)
    assert (every < 0.05).mean() < 0.15 and np.median(every) > 0.25


def random_examples(n: int = 30, seed: int = 0) -> list[Example]:
    """Prompts and answers of one to three tokens, two prompts of each answer."""
    rng = np.random.default_rng(seed)
    out = []
    for _ in range(n // 2):
        answer = tuple(int(x) for x in rng.integers(0, 256, int(rng.integers(1, 4))))
        for _ in range(2):
            ids = tuple(int(x) for x in rng.integers(0, 256, int(rng.integers(5, 15))))
            out.append(Example("t", ids, answer, cluster=str(answer)))
    return out


@pytest.mark.parametrize("family", ALL)
def test_values_are_those_of_single_prompts(family: str) -> None:
    model, examples = subject(family), random_examples(20)
    priors = np.arange(10.0).repeat(2)
    found = PriorLayers(permutations=20).fit(model, examples, reference=priors)
    values = found.values_.pivot(index=["example", "layer"], columns="method", values="value")
    last = model.n_layers - 1
    for i in (0, 7, 12):
        e = examples[i]
        taps = {
            Site(k, layer): None
            for k in ("resid_post", "attn_out", "mlp_out")
            for layer in range(model.n_layers)
        }
        trace = model.run([e], {site: (lambda value: None) for site in taps})
        logits = trace.logits[0, -len(e.answer_ids) :]
        logs = logits.log_softmax(-1).gather(-1, torch.tensor(e.answer_ids)[:, None]).sum()
        assert values.loc[(i, last), "lens"] == pytest.approx(float(logs), abs=2e-3)
        both = values.loc[i]
        assert np.allclose(both["added"], both["added_attn"] + both["added_mlp"])
    assert set(found.scores_["method"]) == set(METHODS)
    assert len(found.scores_) == len(METHODS) * model.n_layers


@pytest.mark.parametrize("family", ["gpt2", "llama", "neox", "gemma3", "olmo2"])
def test_what_layers_add_sums_to_the_logit(family: str) -> None:
    """With the embeddings' part, under the one scale, and without the unembedding's bias and the norm's."""
    model = subject(family)
    examples = [replace(e, answer_ids=e.answer_ids[:1]) for e in random_examples(24)]
    examples = [replace(e, cluster=str(e.answer_ids)) for e in examples]
    known = {a: i for i, a in enumerate(dict.fromkeys(e.answer_ids for e in examples))}
    priors = np.array([float(known[e.answer_ids]) for e in examples])
    found = PriorLayers(permutations=20).fit(model, examples, reference=priors)
    added = found.values_[found.values_["method"] == "added"].groupby("example")["value"].sum().to_numpy()
    readout, n = Readout(model), model.n_layers
    assert readout.norm is not None
    weight = model.hf.get_output_embeddings().weight.detach().float()
    wanted, scales = [], []
    for e in examples:
        trace = model.run([e], {Site("resid_pre", 0): Record(), Site("resid_post", n - 1): Record()})
        state = trace[Site("resid_post", n - 1)][0, -1].float()
        direction = readout.norm.back(weight[e.answer_ids[0]] - weight.mean(0))
        scales.append(float(readout.norm.scale(state[None])[0]))
        wanted.append(float((state - trace[Site("resid_pre", 0)][0, -1].float()) @ direction))
    assert np.allclose(added, np.array(wanted) * np.mean(scales), atol=2e-3)


def test_correlations_are_of_ranks_within_answers_of_equal_length() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=12), rng.normal(size=12)
    one = np.zeros(12, dtype=int)
    assert within(x, y[None], one)[0] == pytest.approx(stats.spearmanr(x, y).statistic)
    # Lengths that explain all: within them nothing is left, whatever their means are.
    strata = np.repeat([1, 2], 6)
    far = x + 100 * (strata == 2)
    assert within(far, (y + 50 * (strata == 2))[None], strata)[0] == pytest.approx(
        within(x, y[None], strata)[0]
    )
    parts = [np.corrcoef(*(stats.rankdata(v[strata == s]) for v in (x, y)))[0, 1] for s in (1, 2)]
    assert within(x, y[None], strata)[0] == pytest.approx(np.mean(parts))
    assert within(np.ones(12), y[None], one)[0] == 0


def test_scores_have_their_columns_and_a_seed_repeats_them() -> None:
    model, examples = subject("llama"), random_examples()
    priors = np.random.default_rng(1).normal(size=15).repeat(2)
    first, again = (
        PriorLayers(permutations=60, seed=3).fit(model, examples, reference=priors) for _ in range(2)
    )
    pd.testing.assert_frame_equal(first.scores_, again.scores_)
    own = first.scores_
    assert (own["n"] == 30).all() and (own["n_answers"] == 15).all() and own["p"].between(1 / 61, 1).all()
    assert (own["q"] >= own["p"] - 1e-12).all() and (own["null_lo"] < own["null_hi"]).all()
    assert (own["se"] > 0.05).all() and own["given_right"].isna().all()  # none is right
    assert first.ranking()["method"].unique().tolist() == ["added"]
    # A probe that saw nothing but noise has no score to speak of; its own value is its prediction.
    value = first.values_[(first.values_["method"] == "probe") & (first.values_["layer"] == 1)][
        "value"
    ].to_numpy()
    lengths = np.array([len(e.answer_ids) for e in examples])
    told = own[(own["method"] == "probe") & (own["layer"] == 1)]["score"].iloc[0]
    assert told == pytest.approx(within(value, priors[None], lengths)[0])


def test_given_right_compares_like_with_like() -> None:
    found, model = fitted(0, "gpt2"), planted(0, "gpt2")
    lengths = 2 + (found.right_ > 0.5)
    own = found.values_[
        (found.values_["method"] == "added") & (found.values_["layer"] == model.layers["bias"])
    ]
    wanted = within(own["value"].to_numpy(), found.priors_[None], lengths.astype(int))[0]
    assert of(found, "added")["given_right"][model.layers["bias"]] == pytest.approx(wanted) and wanted > 0.9


def test_what_cannot_be_fitted_is_told() -> None:
    model, examples = subject("llama"), random_examples()
    priors = np.arange(15.0).repeat(2)
    with pytest.raises(UsageError, match="learns from questions"):
        PriorLayers().fit(model)
    with pytest.raises(NoAcceptedExample):
        PriorLayers().fit(model, [])
    with pytest.raises(UsageError, match="7 different answers"):
        PriorLayers().fit(model, examples[:14], reference=priors[:14])
    with pytest.raises(UsageError, match="29 priors of 30"):
        PriorLayers().fit(model, examples, reference=priors[:29])
    with pytest.raises(UsageError, match="one prior"):
        PriorLayers().fit(model, examples, reference=np.arange(30.0))
    with pytest.raises(UsageError, match="permutations=5"):
        PriorLayers(permutations=5).fit(model, examples, reference=priors)
