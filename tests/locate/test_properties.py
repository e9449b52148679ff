"""Properties of retrieval heads where the answer is known: by arithmetic, by a planted circuit, by the plain loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import pytest

import interp
from interp.errors import AtChance, NoAcceptedExample, UsageError
from interp.intervene.reference import Reference
from interp.locate.properties import causal, dynamic, sparse
from interp.locate.properties.activity import expected_jaccard, jaccard
from interp.locate.properties.sparsity import gini
from interp.models.sites import MLP, Head
from interp.tasks.base import FixedTask
from tests.planted import naive
from tests.planted.retrieval import Planted, plant, planted_task


def scored(values: Any, clusters: Sequence[str] | None = None) -> interp.RetrievalHeads:
    """A fitted locator with these instance scores (instance, layer, head)."""
    values = np.asarray(values, dtype=float)
    n, layers, heads = values.shape
    places = [(i, h) for i in range(layers) for h in range(heads)]
    out = interp.RetrievalHeads()
    out.per_instance_ = {"copy": values}
    out.instances_ = pd.DataFrame({
        "example": range(n), "accepted": True, "cluster": list(clusters or [f"c{i}" for i in range(n)]),
    })  # fmt: skip
    out.scores_ = pd.DataFrame({
        "component": [f"L{i}H{h}" for i, h in places], "method": "copy", "layer": [i for i, _ in places],
        "head": [h for _, h in places], "kv_head": 0, "score": values.mean(0).ravel(), "se": 0.0, "n": n,
    })  # fmt: skip
    return out


def at(found: Any, statistic: str) -> pd.Series:
    return found.frame.set_index("statistic").loc[statistic]


# -- sparse ----------------------------------------------------------------------------------------------------------


def one_hot(n: int, heads: int, chosen: Sequence[int]) -> np.ndarray:
    out = np.zeros((n, 1, heads))
    out[np.arange(n), 0, list(chosen)] = 1.0
    return out


def test_sparse_statistics_by_hand() -> None:
    values = np.zeros((4, 2, 20))
    values[:, 0, 3], values[:, 1, 7], values[:2, 1, 8], values[0, 0, 0] = 1.0, 0.5, 0.15, 0.2
    found = sparse(scored(values), subject="by hand")
    means = {"L0H3": 1.0, "L1H7": 0.5, "L1H8": 0.075, "L0H0": 0.05}
    total = sum(means.values())
    expected = {
        "share_over_0.1": 2 / 40, "share_over_0.5": 2 / 40, "share_zero": 36 / 40, "mass_top_1%": 1 / total,
        "mass_top_5%": 1.5 / total, "mass_top_10%": 1.0,
    }  # fmt: skip
    for name, value in expected.items():
        assert found.value(name) == pytest.approx(value), name
    pairs = sum(abs(a - b) for a in [*means.values(), *[0] * 36] for b in [*means.values(), *[0] * 36])
    # The mean absolute difference over twice the mean.
    assert found.value("gini") == pytest.approx(pairs / (2 * 40 * total))
    ranked = found.tables["ranked"]
    assert ranked["component"].tolist()[:4] == list(means)
    assert ranked["mass"].tolist()[:4] == pytest.approx(np.cumsum(list(means.values())) / total)
    assert ranked["share"].iloc[1] == 2 / 40
    # Two more pass 0.1 where a resample holds enough of the instances they copy in.
    told = "by hand: 2 of 40 heads, 5.0 % (5.0 to 10.0), score 0.1 or more on copy and 36 (90.0 %) exactly 0"
    assert found.summary.startswith(told)
    assert not any(word in found.summary for word in ("sparse", "confirm", "holds", "claim"))


def test_gini_of_equal_scores_is_zero_and_of_none_unknown() -> None:
    assert gini(np.array([[0.3] * 8]))[0] == pytest.approx(0.0)
    with np.errstate(all="raise"):
        assert np.isnan(gini(np.zeros((1, 8)))[0])


def test_the_same_heads_in_each_instance_are_more_concentrated_than_exchangeable_ones() -> None:
    found = sparse(scored(one_hot(12, 30, [4] * 12)))
    assert at(found, "gini")["p"] == at(found, "mass_top_1%")["p"] == pytest.approx(1 / 1000)
    assert at(found, "gini")["value"] == pytest.approx(1 - 1 / 30)
    # Twelve instances, each in one of thirty heads: 30 (1 - (29/30)^12) of them are hit on average.
    assert at(found, "share_zero")["null"] == pytest.approx((29 / 30) ** 12, abs=0.01)


def test_a_head_of_its_own_in_each_instance_is_not() -> None:
    rng = np.random.default_rng(0)
    inside = [
        (lambda r: r["null_lo"] <= r["value"] <= r["null_hi"])(
            at(sparse(scored(one_hot(12, 30, rng.integers(30, size=12)))), "gini")
        )
        for _ in range(20)
    ]
    assert sum(inside) >= 17  # 95 % of 20 on average


def test_instances_of_one_cluster_trade_places_together() -> None:
    """Two haystacks, each of which lights up a head of its own ten times: that is two observations, not twenty."""
    values = one_hot(20, 30, [4] * 10 + [9] * 10)
    apart, together = sparse(scored(values)), sparse(scored(values, ["a"] * 10 + ["b"] * 10))
    assert at(apart, "gini")["p"] < 0.01
    assert at(together, "gini")["p"] > 0.9
    assert together.frame["n_clusters"].unique().tolist() == [2]
    alone = sparse(scored(values, ["a"] * 20))
    assert alone.frame[["ci_lo", "null", "p"]].isna().all().all()
    assert "exchangeable" not in alone.summary


def test_sparse_interval_resamples_clusters() -> None:
    """Two clusters give three resamples: the second head passes 0.75 only in the one (of four) that has no b."""
    values = np.zeros((4, 1, 10))
    values[:, 0, 0], values[:2, 0, 1] = 1.0, 1.0
    row = at(sparse(scored(values, ["a", "a", "b", "b"]), threshold=0.75), "share_over_0.75")
    assert (row["value"], row["ci_lo"], row["ci_hi"]) == (0.1, 0.1, 0.2)
    assert np.isnan(at(sparse(scored(values)), "share_zero")["ci_lo"])


def test_sparse_refuses_what_it_cannot_say() -> None:
    signed = scored(one_hot(4, 5, [0] * 4) - 0.5)
    with pytest.raises(UsageError, match="'copy' has negative means"):
        sparse(signed)
    with pytest.raises(UsageError, match=r"no score 'qr'.*has copy"):
        sparse(signed, "qr")
    with pytest.raises(UsageError, match="not fitted"):
        sparse(interp.RetrievalHeads())


# -- dynamic ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def planted(request: pytest.FixtureRequest) -> tuple[Planted, Any, FixedTask]:
    made = plant(request.param, seed=0)
    return made, interp.load(made.module, tokenizer=None), planted_task(made, 6, 0, 60)


def copying(planted: Planted, task: FixedTask) -> list[np.ndarray]:
    """Step, layer, head: whether the head copies, from the squares of eager attention."""
    out = []
    for example in task.examples(None):
        attention, _ = naive.forward(planted, example)
        (span,) = example.spans_of("value", 0)
        tops = attention[:, :, list(example.answer_rows)].argmax(-1).permute(2, 0, 1).numpy()
        ids = np.array(example.full_ids)
        emitted = np.array(example.answer_ids)[:, None, None]
        out.append((tops >= span.start) & (tops < span.end) & (ids[tops] == emitted))
    return out


def test_activity_equals_the_plain_loop(planted: Any) -> None:
    made, model, task = planted
    heads = [Head(*place) for place in sorted(made.retrieval)]
    found = dynamic(model, task, heads)
    plain = copying(made, task)
    activity = found.tables["activity"]
    active = np.mean([c.any(0) for c in plain], axis=0).ravel()
    steps = np.mean([c.mean(0) for c in plain], axis=0).ravel()
    assert activity["active"].to_numpy() == pytest.approx(active)
    assert activity["steps"].to_numpy() == pytest.approx(steps)
    now_and_then = (steps > 0) & (steps < 1)
    assert now_and_then.sum() >= 5, "there are heads that copy at some steps only"
    assert set(activity[activity["always"]]["component"]) >= {repr(h) for h in heads}
    assert found.value("always_active") == (active == 1).sum()
    assert found.value("never_active") == (active == 0).sum()
    assert found.value("static_active") == 1.0
    assert found.value("silent_steps") == 0.0
    static = np.zeros(plain[0].shape[1:], bool)
    for place in made.retrieval:
        static[place] = True
    expected = [np.mean([(c & static).sum() / (c | static).sum() for c in one]) for one in plain]
    assert found.value("jaccard") == pytest.approx(np.mean(expected))
    later = [np.mean([(a & b).sum() / (a | b).sum() for a, b in pairwise(one)]) for one in plain]
    assert found.value("jaccard_next") == pytest.approx(np.mean(later))
    assert found.value("set_size") == pytest.approx(np.mean([c.sum((1, 2)).mean() for c in plain]))
    table = found.tables["steps"]
    assert len(table) == sum(map(len, plain))
    assert table["size"].tolist() == [int(step.sum()) for one in plain for step in one]


def test_a_head_that_copies_in_one_context_only(planted: Any) -> None:
    """A head that looks a fixed distance back copies where the needle lies at that distance, and nowhere else."""
    made, model, _ = planted
    place, distance = made.decoys["offset"], made.offsets["offset"]
    every = [
        replace(e, cluster=f"{d} {i}")
        for d in (distance, 40)
        for i, e in enumerate(planted_task(made, 4, 0, 60, distance=d).examples(None))
    ]
    found = dynamic(model, FixedTask(every, name="two distances"), [Head(*place)], by="distance")
    contexts = found.tables["contexts"].set_index("context")
    assert contexts["active"].to_dict() == {str(distance): 1.0, "40": 0.0}
    assert contexts["n"].tolist() == [4, 4]
    row = at(found, "context_range")
    assert row["value"] == 1.0
    # 2 of the C(8, 4) = 70 ways to deal the two distances out are as far apart.
    assert row["p"] == pytest.approx(2 / 70, abs=0.02)
    assert found.value("silent_steps") == 0.5
    assert at(found, "static_active")["value"] == 0.5
    assert "ranges over 1.00" in found.summary
    alone = dynamic(model, FixedTask(every, name="two distances"), [Head(*place)], by="nothing")
    assert np.isnan(alone.value("context_range")) and "ranges over" not in alone.summary


def test_jaccard_and_its_expectation() -> None:
    assert jaccard(np.zeros(3, bool), np.zeros(3, bool)) == 0.0
    rng = np.random.default_rng(0)
    fixed = np.arange(12) < 5
    drawn = [jaccard(fixed, rng.permutation(np.arange(12) < 3)) for _ in range(4000)]
    assert expected_jaccard(3, 5, 12) == pytest.approx(np.mean(drawn), abs=0.01)
    assert expected_jaccard(0, 5, 12) == 0.0


def test_dynamic_refuses_what_it_cannot_say(planted: Any) -> None:
    made, model, task = planted
    with pytest.raises(UsageError, match="no static set"):
        dynamic(model, task, [])
    with pytest.raises(UsageError, match="M0 is none"):
        dynamic(model, task, [MLP(0)])
    with pytest.raises(UsageError, match="has layers 0 to"):
        dynamic(model, task, [Head(99, 0)])
    wrong = [replace(e, answer_ids=e.answer_ids[::-1]) for e in task.examples(None)]
    blank = FixedTask([replace(e, spans=()) for e in wrong], name="blank")
    with pytest.raises(UsageError, match="does not stand in the prompt"):
        dynamic(model, blank, [Head(0, 0)])
    noisy = plant(made.kind, seed=0, noise=0.8)
    few = FixedTask(task.examples(None)[:2], name="two")
    with pytest.raises(NoAcceptedExample, match="recalls none of 2 needles"):
        dynamic(interp.load(noisy.module, tokenizer=None), few, [Head(0, 0)])


# -- causal ----------------------------------------------------------------------------------------------------------


def test_causal_needs_all_planted_heads(planted: Any) -> None:
    made, model, task = planted
    heads = interp.RetrievalHeads().fit(model, task)
    k = len(made.retrieval)
    found = causal(model, planted_task(made, 8, 1, 60), heads, sizes=(*range(1, k + 1), 10_000), controls=3)
    names = [*(f"cut_{i}" for i in range(1, k + 1)), *(f"keep_{i}" for i in range(k + 1))]
    assert found.frame["statistic"].tolist() == ["clean", *names]
    # The planted heads alone may see the needle, and that is enough; as many others are not.
    assert (found.value(f"keep_{k}"), found.value("keep_0")) == (0.0, -1.0)
    assert at(found, f"keep_{k}")["null"] == -1.0
    effects = found.tables["effects"]
    assert set(effects[effects["condition"].str.startswith("keep")]["mode"]) == {"knockout"}
    assert set(effects[effects["condition"].isin(["cut", "control"])]["mode"]) == {"zero"}
    assert "with all others cut it changes by 0.00 (0.00 to 0.00) (as many others -1.00)" in found.summary
    assert found.value("clean") == 1.0
    last = at(found, f"cut_{k}")
    assert (last["value"], last["ci_hi"], last["null"], last["n"]) == (-1.0, -1.0, 0.0, 8)
    assert last["p"] == pytest.approx(2 / 2**8)
    assert f"p = {2 / 2**8:.2g} by cluster" in found.summary
    assert "from 1.00 by -1.00 (-1.00 to -1.00)" in found.summary
    assert "3 matched draws change it by +0.00 (+0.00 to +0.00), rank 1 of 4" in found.summary
    assert found.tables["contrast"]["n_controls"].tolist() == [3] * 2 * 0 + [3] * len(
        found.tables["contrast"]
    )
    decoy = causal(
        model, task, [Head(*made.decoys["sink"])], sizes=(1,), controls=0, mode="uniform", enough=None
    )
    assert decoy.value("cut_1") == 0.0
    assert "with all others cut" not in decoy.summary and decoy.frame["statistic"].tolist() == [
        "clean",
        "cut_1",
    ]
    assert "matched draws" not in decoy.summary and "(uniform, scope answer)" in decoy.summary


def test_causal_tests_clusters_and_takes_a_reference(planted: Any) -> None:
    """Instances of one haystack are no further evidence; a mean's reference is none of the knockout's."""
    made, model, _ = planted
    told = [
        replace(e, cluster=f"c{i // 2}") for i, e in enumerate(planted_task(made, 8, 1, 60).examples(None))
    ]
    task, heads = FixedTask(told, copies=True), [Head(*place) for place in sorted(made.retrieval)]
    k = len(heads)
    found = causal(model, task, heads, sizes=(k,), controls=0, mode="mean", reference=Reference(task))
    assert (found.value(f"cut_{k}"), at(found, f"cut_{k}")["p"]) == (-1.0, pytest.approx(2 / 2**4))
    assert found.value(f"keep_{k}") == 0.0


def test_causal_keeps_the_floor_rule_and_its_sizes(planted: Any) -> None:
    made, model, task = planted
    with pytest.raises(UsageError, match="take 1 to 2"):
        causal(model, task, [Head(0, 0), Head(0, 1)], sizes=(5,))
    noisy = plant(made.kind, seed=0, noise=0.8)
    with pytest.raises(AtChance):
        causal(interp.load(noisy.module, tokenizer=None), task, [Head(0, 0)], sizes=(1,), controls=0)


def test_properties_are_the_same_again(planted: Any) -> None:
    made, model, task = planted
    heads = interp.RetrievalHeads().fit(model, task)
    chosen = [Head(*place) for place in sorted(made.retrieval)]
    for make in (
        lambda: sparse(heads), lambda: dynamic(model, task, chosen, by="value_length"),
        lambda: causal(model, task, heads, sizes=(1,), controls=2),
    ):  # fmt: skip
        once, again = make(), make()
        assert once.summary == again.summary and once.summary in repr(once)
        pd.testing.assert_frame_equal(once.frame, again.frame)
        for name, table in once.tables.items():
            pd.testing.assert_frame_equal(table, again.tables[name])
    with pytest.raises(UsageError, match=r"has no statistic 'x'; it has share_over_0\.1"):
        sparse(heads).value("x")


@pytest.mark.usefixtures("rng_untouched")
def test_properties_leave_the_global_state(planted: Any) -> None:
    made, model, task = planted
    chosen = [Head(*place) for place in sorted(made.retrieval)]
    sparse(scored(one_hot(12, 30, range(12))))
    causal(model, task, chosen, sizes=(1,), controls=2)
