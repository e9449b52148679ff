"""Universal and intrinsic: models whose agreement is known, because it was made."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

import interp
from interp.errors import UsageError
from interp.locate.properties import intrinsic, sparse, universal
from tests.locate.test_properties import at, scored
from tests.planted.retrieval import Planted, plant, planted_task


def noisy(planted: Planted, noise: float) -> Any:
    """A copy of a planted model with noise added to its weights, as a training that changes little would."""
    module = copy.deepcopy(planted.module)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in module.parameters():
            if weight.ndim > 1:
                weight.add_(noise * weight.std() * torch.randn(weight.shape, generator=generator))
    return interp.load(module, tokenizer=None)


def grid(layers: int, heads: int, strong: dict[tuple[int, int], float], n: int = 6) -> interp.RetrievalHeads:
    values = np.zeros((n, layers, heads))
    for place, score in strong.items():
        values[(slice(None), *place)] = score
    return scored(values)


# -- intrinsic -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def family() -> tuple[Planted, Any, Any]:
    planted = plant("llama", seed=0)
    task = planted_task(planted, 10, 0, 60)
    return planted, interp.load(planted.module, tokenizer=None), task


def test_a_copy_with_noise_has_the_heads_of_its_base(family: Any) -> None:
    planted, base, task = family
    k = len(planted.retrieval)
    found = intrinsic(base, noisy(planted, 0.1), task, top=(k, 5), names=("planted", "planted, noisy"))
    heads = found.tables["heads"]
    assert found.value("pearson") == pytest.approx(np.corrcoef(heads["base"], heads["derived"])[0, 1])
    assert found.value("pearson") > 0.95
    assert found.value(f"overlap_top_{k}") == 1.0
    row = at(found, f"overlap_top_{k}")
    # One planted head in each of two layers of 12: 2 (1/12) of them are shared by chance, and both in 1 of 144 draws.
    assert (row["null"], row["p"]) == (pytest.approx(2 / 12 / 2), pytest.approx(1 / 144))
    assert found.value("pearson_of_ceiling") == pytest.approx(1.0, abs=0.05)
    assert set(heads.nlargest(k, "derived")["component"]) == {f"L{i}H{h}" for i, h in planted.retrieval}
    assert "planted and planted, noisy: copy scores correlate by 0.99" in found.summary


def test_other_heads_are_not_inherited(family: Any) -> None:
    """A derived model that has as strong heads in the same layers, but others."""
    _, base, task = family
    ours = interp.RetrievalHeads().fit(base, task)
    theirs = scored(np.roll(ours.per_instance_["copy"], 5, axis=2), ours.clusters_)
    found = intrinsic(ours, theirs, top=(2, 5))
    assert found.value("overlap_top_2") == 0.0
    assert found.value("overlap_top_2_of_ceiling") == 0.0
    assert at(found, "overlap_top_2")["p"] == 1.0
    assert abs(found.value("pearson")) < 0.15 and at(found, "pearson")["p"] > 0.05


def test_agreement_is_judged_by_what_halves_of_the_instances_reach() -> None:
    """Two noisy measurements of one truth correlate by less than 1, and by all that the noise allows."""
    rng = np.random.default_rng(0)
    truth = rng.random((8, 10))

    def measured(of: np.ndarray) -> interp.RetrievalHeads:
        return scored(of + 1.0 * rng.standard_normal((40, 8, 10)))

    same = intrinsic(measured(truth), measured(truth))
    assert same.value("pearson") < 0.85
    assert same.value("pearson_of_ceiling") == pytest.approx(1.0, abs=0.15)
    half = truth.copy()
    half[:4] = rng.permuted(truth[:4].ravel()).reshape(4, 10)
    other = intrinsic(measured(truth), measured(half))
    assert other.value("pearson_of_ceiling") < same.value("pearson_of_ceiling") - 0.25


def test_ties_are_not_called_an_overlap() -> None:
    equal = grid(3, 4, {(0, 0): 1.0, (1, 1): 1.0})
    found = intrinsic(equal, equal, top=(1, 2))
    assert np.isnan(found.value("overlap_top_1")) and found.value("overlap_top_2") == 1.0
    assert "the top 1 are tied" in intrinsic(equal, equal, top=(1,)).summary


def test_intrinsic_refuses_other_shapes_and_no_task(family: Any) -> None:
    _, base, _ = family
    with pytest.raises(UsageError, match=r"base has 2 x 3 heads and derived 3 x 2"):
        intrinsic(grid(2, 3, {(0, 0): 1.0}), grid(3, 2, {(0, 0): 1.0}), top=(1,))
    with pytest.raises(UsageError, match="needs a task"):
        intrinsic(base, base)


# -- universal -------------------------------------------------------------------------------------------------------


def test_universal_of_known_grids() -> None:
    """One strong head in the first of 2 layers, and one in the last of 4."""
    first, last = grid(2, 4, {(0, 1): 1.0}), grid(4, 8, {(3, 6): 1.0})
    found = universal({"shallow": first, "deep": last})
    assert found.value("depth", "shallow") == 0.0 and found.value("depth", "deep") == 1.0
    pair = found.frame[found.frame["subject"] == "shallow and deep"].set_index("statistic")
    assert pair.loc["depth_distance", "value"] == 1.0
    # Dealt out anew, they end at opposite ends like this, or the other way around: 1 is the largest distance.
    assert pair.loc["depth_distance", "p"] == 1.0
    assert pair.loc["share_over_0.1_difference", "value"] == 1 / 32 - 1 / 8
    assert pair.loc["gini_difference", "value"] == pytest.approx((1 - 1 / 32) - (1 - 1 / 8))
    # The curves differ where more than 1/32 and less than 1/8 of the heads lie above.
    assert pair.loc["strength_distance", "value"] == pytest.approx(1 / 8 - 1 / 32, abs=0.005)
    assert not {"pearson", "spearman"} & set(found.frame["statistic"]), "no head is taken for another"
    depth = found.tables["depth"].set_index(["subject", "depth"])["share"]
    assert (depth["shallow", 0.05], depth["deep", 0.95], depth["deep"].sum()) == (1.0, 1.0, 1.0)
    strength = found.tables["strength"]
    assert strength.groupby("subject").size().to_dict() == {"deep": 32, "shallow": 8}
    assert strength[strength["subject"] == "deep"].iloc[0][["component", "share"]].tolist() == [
        "L3H6",
        1 / 32,
    ]


def test_the_same_relative_depth_is_closer_than_chance() -> None:
    one, other = grid(5, 4, {(2, h): 1.0 for h in range(4)}), grid(9, 4, {(4, h): 1.0 for h in range(4)})
    found = universal({"five": one, "nine": other})
    row = at(found, "depth_distance")
    assert row["value"] == 0.0 and row["p"] == pytest.approx(1 / 1000, abs=0.002)
    assert row["null"] > 0.1


def test_universal_on_models(family: Any) -> None:
    planted, base, task = family
    other = plant("gpt2", seed=1)
    theirs = interp.RetrievalHeads().fit(
        interp.load(other.module, tokenizer=None), planted_task(other, 6, 0, 60)
    )
    ours = interp.RetrievalHeads().fit(base, task)
    derived = interp.RetrievalHeads().fit(noisy(planted, 0.1), task)
    found = universal({"llama": ours, "llama, noisy": derived, "gpt2": theirs})
    for name, heads in (("llama", ours), ("gpt2", theirs)):
        alone = sparse(heads)
        for statistic in ("share_over_0.1", "share_zero", "gini", "mass_top_5%"):
            assert found.value(statistic, name) == alone.value(statistic), (name, statistic)
        mean = heads.per_instance_["copy"].mean(0).sum(1)
        expected = np.average(np.linspace(0, 1, len(mean)), weights=mean)
        assert found.value("depth", name) == pytest.approx(expected)
    same = found.frame[found.frame["statistic"] == "pearson"]
    assert same["subject"].tolist() == ["llama and llama, noisy"]
    assert same["value"].item() > 0.95 and same["p"].item() < 0.01
    assert "correlation of the heads of models of one shape" in found.summary
    assert universal({"a": ours, "b": theirs}).summary == universal({"a": ours, "b": theirs}).summary


def test_universal_refuses_what_it_cannot_compare(family: Any) -> None:
    _, base, task = family
    with pytest.raises(UsageError, match="name two or more"):
        universal([base], task)
    with pytest.raises(UsageError, match="two models are called 'LlamaForCausalLM'"):
        universal([base, base], task)
    with pytest.raises(UsageError, match="needs a task"):
        universal({"a": base, "b": base})
